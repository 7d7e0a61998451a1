//! Running a case of attention, forward and backward, and comparing it with the oracle.

use einfall::half::{bf16, f16};
use einfall::{Attend, Bounds, DType, Device, Saved, Tensor, View};
use einfall_testing::attention::AttentionCase;
use einfall_testing::case::Buffer;
use einfall_testing::oracle;
use einfall_testing::oracle::attention::Attended;

/// The call that a case describes.
pub fn call<'a>(case: &'a AttentionCase, device: &'a dyn Device) -> Attend<'a> {
    let bounds = match case.call.bounds {
        oracle::Bounds::Error => Bounds::Error,
        oracle::Bounds::Skip => Bounds::Skip,
    };
    let mut call = Attend::new(&case.equation).device(device).bounds(bounds).causal(case.call.causal);
    for (name, &len) in &case.call.sizes {
        call = call.size(name, len);
    }
    if let Some(scale) = case.call.scale {
        call = call.scale(scale);
    }
    if let Some(labels) = &case.call.offsets {
        call = call.offsets(labels);
    }
    call
}

/// Numbers as a tensor of a floating-point type.
pub fn tensor(dtype: DType, shape: &[usize], values: &[f64]) -> Tensor {
    match dtype {
        DType::F16 => Tensor::from_slice(&values.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>(), shape),
        DType::BF16 => Tensor::from_slice(&values.iter().map(|&x| bf16::from_f64(x)).collect::<Vec<_>>(), shape),
        DType::F32 => Tensor::from_slice(&values.iter().map(|&x| x as f32).collect::<Vec<_>>(), shape),
        _ => Tensor::from_slice(values, shape),
    }
    .expect("the shape has so many elements")
}

/// What a call gave: output, log-sum-exp and gradients.
pub struct Given {
    pub out: Tensor,
    pub lse: Tensor,
    pub gradients: [Option<Tensor>; 4],
}

impl Given {
    /// All bits.
    pub fn bits(&self) -> Vec<Vec<u8>> {
        let tensors =
            [Some(&self.out), Some(&self.lse)].into_iter().chain(self.gradients.each_ref().map(Option::as_ref));
        tensors.flatten().map(|tensor| tensor.as_bytes().to_vec()).collect()
    }
}

/// Runs a call forward and backward.
pub fn run(case: &AttentionCase, call: &Attend<'_>) -> Result<Given, String> {
    let buffers = case.materialise().map_err(|error| error.to_string())?;
    let views: Vec<View<'_>> = buffers.iter().map(Buffer::view).collect();
    let (out, lse) = call.run_with_lse(&views).map_err(|error| format!("refused: {error}"))?;
    let grad_out = tensor(out.dtype(), out.shape(), &case.grad_out(out.shape().iter().product()));
    let saved = Saved { out: out.view(), lse: lse.view(), grad_out: grad_out.view() };
    let has_bias = case.equation.matches(',').count() == 3;
    // Now and then only some.
    let wanted = |operand: u64| !(case.seed + operand).is_multiple_of(5);
    let wanted = [wanted(0), wanted(1), wanted(2), has_bias && wanted(3)];
    let gradients = call.gradients(&views, &saved, wanted).map_err(|error| format!("refused: {error}"))?;
    Ok(Given { out, lse, gradients })
}

/// Compares what a call gave.
pub fn compare(given: &Given, expected: &Attended) -> Result<(), String> {
    expected.out.compare(&given.out.view()).map_err(|why| format!("the output {why}"))?;
    expected.lse.compare(&given.lse.view()).map_err(|why| format!("the log-sum-exp {why}"))?;
    for (operand, (gradient, expected)) in given.gradients.iter().zip(&expected.gradients).enumerate() {
        if let Some(gradient) = gradient {
            let compared = expected.compare(&gradient.view());
            compared.map_err(|why| format!("the gradient of operand {operand} {why}"))?;
        }
    }
    Ok(())
}

/// Runs a case and compares it with the oracle; both must fail, or both succeed with near elements.
pub fn check(case: &AttentionCase, call: &Attend<'_>) -> Result<(), String> {
    check_with(case, call, &case.expected().map_err(|error| error.to_string()))
}

/// The same with what the oracle says of the case, which takes longest.
pub fn check_with(case: &AttentionCase, call: &Attend<'_>, expected: &Result<Attended, String>) -> Result<(), String> {
    let checked = match (run(case, call), expected) {
        (Ok(given), Ok(expected)) => compare(&given, expected),
        (Err(_), Err(_)) => Ok(()),
        (Ok(_), Err(error)) => Err(format!("accepted, but the oracle says: {error}")),
        (Err(error), Ok(_)) => Err(error),
    };
    checked.map_err(|why| format!("{why}\n{case}"))
}
