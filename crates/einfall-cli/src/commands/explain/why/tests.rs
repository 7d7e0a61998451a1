use einfall::{
    Argument, Contraction, Cost, Device, Einsum, Estimate, KernelSpec, Layout, Machine, RunError, View, ViewMut, Way,
};

use super::*;

/// A device with two kernels of fixed prices on the example machine, so that no kernel of a real one changes the text.
struct Example {
    machine: Machine,
    kernels: [KernelSpec; 2],
}

impl Example {
    fn new() -> Self {
        fn slow(_: &Contraction, _: &Machine) -> Result<Estimate, String> {
            Ok(Estimate { way: Way::Nest, cost: Cost { flops: 1e6, bytes: 3e6, seconds: 4e-3 }, workspace_bytes: 0 })
        }
        fn fast(contraction: &Contraction, _: &Machine) -> Result<Estimate, String> {
            if contraction.accesses().all(|access| access.is_plain()) {
                return Err("nothing is looked up".into());
            }
            Ok(Estimate { way: Way::Gather, cost: Cost { flops: 1e6, bytes: 2e6, seconds: 1e-3 }, workspace_bytes: 64 })
        }
        Self {
            machine: Machine::example(),
            kernels: [KernelSpec { name: "slow", estimate: slow }, KernelSpec { name: "fast", estimate: fast }],
        }
    }
}

impl Device for Example {
    fn machine(&self) -> &Machine {
        &self.machine
    }

    fn kernels(&self) -> &[KernelSpec] {
        &self.kernels
    }

    #[allow(unsafe_code)] // the trait's; nothing is run here
    unsafe fn run(&self, _: &Plan, _: &[View<'_>], _: &mut ViewMut<'_>) -> Result<(), RunError> {
        Ok(())
    }

    fn check_tables(&self, _: &Plan, _: &[View<'_>]) -> Result<(), RunError> {
        Ok(())
    }
}

fn text(equation: &str, sizes: &[(&str, usize)], arguments: Vec<Argument>) -> String {
    let device = Example::new();
    let einsum = sizes.iter().fold(Einsum::new(equation), |einsum, (key, len)| einsum.size(key, *len));
    let prepared = einsum.device(&device).plan_for(arguments, None).unwrap();
    explain(prepared.plan()).text().join("\n")
}

fn array(dtype: DType, shape: &[usize]) -> Argument {
    Argument { dtype, layout: Layout::contiguous(shape) }
}

#[test]
fn looked_up_keys_are_compared_with_stored_ones() {
    let (query, keys) = (array(DType::F32, &[8, 1, 1000, 32]), array(DType::F32, &[8, 1, 1000, 32]));
    let table = array(DType::I64, &[8, 1, 1000, 100]);
    insta::assert_snapshot!(text("bhqd,bh[bhqk]d->bhqk", &[], vec![query, keys, table]));
}

#[test]
fn stored_keys_are_read_for_one_multiply_add() {
    let (query, keys) = (array(DType::F32, &[8, 1, 1000, 32]), array(DType::F32, &[8, 1, 1000, 100, 32]));
    insta::assert_snapshot!(text("bhqd,bhqkd->bhqk", &[], vec![query, keys]));
}

#[test]
fn expanded_keys_repeat() {
    let mut keys = array(DType::F32, &[8, 1, 1000, 100, 32]);
    keys.layout.strides = Layout::contiguous(&[8, 1, 1, 100, 32]).strides;
    keys.layout.strides[2] = 0;
    insta::assert_snapshot!(text("bhqd,bhqkd->bhqk", &[], vec![array(DType::F32, &[8, 1, 1000, 32]), keys]));
}

#[test]
fn windows_are_slid_over() {
    let rows = || array(DType::F32, &[2, 3, 500, 32]);
    insta::assert_snapshot!(text("bhqd,bh[q+w-4]d->bhqw", &[("w", 9)], vec![rows(), rows()]));
}

#[test]
fn a_matrix_product_is_arithmetic() {
    let matrix = || array(DType::F64, &[1000, 1000]);
    let text = text("ij,jk->ik", &[], vec![matrix(), matrix()]);
    assert!(text.replace('\n', " ").contains("so arithmetic decides"), "{text}");
    assert!(!text.contains("Operand"), "{text}");
}

#[test]
fn rows_that_no_table_can_ask_for_are_not_counted() {
    // 3 of 1000 rows of 7 f64: 168 bytes of rows, 24 of the table, 24 of the result.
    let arguments = vec![array(DType::F64, &[1000, 7]), array(DType::I64, &[3])];
    let text = text("[e]d->e", &[], arguments).replace('\n', " ");
    assert!(
        text.starts_with("42.0 FLOP on 216 B of distinct data: ") && text.contains("to move the data once"),
        "{text}"
    );
    assert!(!text.contains("at best"), "{text}");
}
