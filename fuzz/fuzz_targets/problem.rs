//! Any bytes are a problem with its data: every device agrees with the oracle on it, or both refuse it.
//! `cargo +nightly fuzz run problem`.
#![no_main]

use std::sync::OnceLock;

use einfall::CpuDevice;
use einfall_testing::generator::case_from_bytes;
use libfuzzer_sys::fuzz_target;

// How the engine's own tests run a case and compare it.
#[path = "../../crates/einfall/tests/common/mod.rs"]
mod common;

fuzz_target!(|bytes: &[u8]| {
    static DEVICES: OnceLock<Vec<CpuDevice>> = OnceLock::new();
    let devices = DEVICES.get_or_init(common::devices);
    let Some((&first, rest)) = bytes.split_first() else { return };
    let case = case_from_bytes(rest);
    let device = &devices[usize::from(first) % devices.len()];
    if let Err(why) = common::check_case(&case, device) {
        panic!("{why}");
    }
});
