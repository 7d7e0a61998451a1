//! A device that exists on paper: four kernels with round costs.
#![allow(dead_code)] // each test file uses its own part

use einfall_equation::Equation;
use einfall_plan::pattern::row_dots;
use einfall_plan::{
    Argument, BindOptions, Contraction, Cost, Estimate, KernelSpec, Machine, Plan, PlanError, PlanOptions, Role, Way,
    bind,
};
use einfall_tensor::{DType, Layout};

/// Most specific first, as devices have them.
pub const KERNELS: &[KernelSpec] = &[
    KernelSpec { name: "rows", estimate: rows },
    KernelSpec { name: "matrix", estimate: matrix },
    KernelSpec { name: "scatter", estimate: scatter },
    KernelSpec { name: "loops", estimate: loops },
];

/// One nanosecond a multiply-add and factor; bytes are those of the distinct elements.
fn offer(contraction: &Contraction, way: Way, factor: f64, workspace_bytes: usize) -> Result<Estimate, String> {
    let flops = contraction.flops();
    let elements: f64 = contraction.accesses().map(|access| contraction.distinct_elements(access)).sum();
    let bytes = elements * contraction.dtype.bytes() as f64;
    Ok(Estimate { way, cost: Cost { flops, bytes, seconds: flops / 2e9 * factor }, workspace_bytes })
}

fn rows(contraction: &Contraction, _: &Machine) -> Result<Estimate, String> {
    let pattern = row_dots(contraction)?;
    let rows = pattern.rows.of(contraction).ok_or("needs two inputs")?;
    offer(contraction, if rows.is_plain() { Way::Stream } else { Way::Gather }, 2.0, 0)
}

fn matrix(contraction: &Contraction, _: &Machine) -> Result<Estimate, String> {
    if contraction.right.is_none() || contraction.accesses().any(|access| !access.is_plain()) {
        return Err("needs two plain inputs".into());
    }
    if contraction.len_of(Role::Left) < 2.0 || contraction.len_of(Role::Right) < 2.0 {
        return Err("a vector on one side".into());
    }
    offer(contraction, Way::Gemm, 1.0, 4096)
}

fn scatter(contraction: &Contraction, _: &Machine) -> Result<Estimate, String> {
    if contraction.out.lookups.is_empty() {
        return Err("the output is not scattered by a table".into());
    }
    offer(contraction, Way::Inverted, 3.0, 1000)
}

fn loops(contraction: &Contraction, _: &Machine) -> Result<Estimate, String> {
    let elementwise = contraction.loops_of(Role::Contracted).next().is_none() && contraction.out.is_plain();
    offer(contraction, if elementwise { Way::Elementwise } else { Way::Nest }, 10.0, 0)
}

/// A contiguous argument.
pub fn argument(dtype: DType, shape: &[usize]) -> Argument {
    Argument { dtype, layout: Layout::contiguous(shape) }
}

/// A contiguous argument of `f32`.
pub fn f32(shape: &[usize]) -> Argument {
    argument(DType::F32, shape)
}

/// A table.
pub fn i64(shape: &[usize]) -> Argument {
    argument(DType::I64, shape)
}

/// An argument of `f32` with strides.
pub fn strided(shape: &[usize], strides: &[isize]) -> Argument {
    Argument { dtype: DType::F32, layout: Layout { shape: shape.into(), strides: strides.into() } }
}

/// Options with these lengths.
pub fn sizes(list: &[(&str, usize)]) -> BindOptions {
    BindOptions { sizes: list.iter().map(|&(name, len)| (name.into(), len)).collect(), ..BindOptions::default() }
}

/// Binds and plans with every option.
pub fn try_plan(
    equation: &str,
    arguments: &[Argument],
    bind_options: &BindOptions,
    kernels: &[KernelSpec],
    options: &PlanOptions,
) -> Result<Plan, PlanError> {
    let equation = Equation::parse(equation).expect("an equation");
    let problem = bind(&equation, arguments, bind_options).unwrap_or_else(|error| panic!("{error}"));
    let plan = Plan::new(problem, &Machine::example(), kernels, options)?;
    assert_eq!(plan.verify(), Ok(()));
    Ok(plan)
}
