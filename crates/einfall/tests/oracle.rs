//! Every plan and kernel against the oracle, on random problems: bit for bit where the arithmetic is exact.

mod common;

use common::{check_case, devices};
use einfall_testing::generator::random_case;

/// Cases per run; `EINFALL_CASES` asks for more.
fn case_count() -> u64 {
    std::env::var("EINFALL_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(1500)
}

#[test]
fn random_problems_match_the_oracle() {
    let devices = devices();
    let failures: Vec<String> = (0..case_count())
        .filter_map(|seed| {
            let case = random_case(seed);
            check_case(&case, &devices[seed as usize % devices.len()]).err().map(|why| format!("seed {seed}: {why}"))
        })
        .take(20)
        .collect();
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
