//! `bench dense` and `bench lookups`: what they print, write and refuse.

mod common;

use common::{Place, Ran, list};
use einfall::Machine;
use einfall_cli::bench::suite::record::{Pass, SuiteReport};

/// Runs a suite at small lengths, on a machine that is described and need not be measured.
fn bench(place: &Place, suite: &str, arguments: &[&str]) -> Ran {
    let machine = place.path("machine.json");
    if !machine.exists() {
        std::fs::write(&machine, serde_json::to_string(&Machine::example()).unwrap()).unwrap();
    }
    let fixed = ["bench", suite, "--quick", "--budget", "0.001", "--machine", machine.to_str().unwrap()];
    place.run(&[&fixed[..], arguments].concat())
}

#[test]
fn every_dense_case_is_right() {
    let place = Place::new();
    let ran = bench(&place, "dense", &["--json", "--out", "results"]);
    let report = SuiteReport::from_json(ran.out()).unwrap();
    assert_eq!((report.rows.len(), report.skipped.len()), (71, 0));
    for row in &report.rows {
        assert!(row.ok && row.is_ours() && row.max_error <= row.tolerance, "{row:?}");
        assert!(row.min_s > 0.0 && row.repeats >= 4 && row.predicted_s > Some(0.0), "{row:?}");
        assert!(row.way.is_some() && row.peak_bytes > Some(0) && row.floor_s > Some(0.0), "{row:?}");
    }
    // Integers have nothing to round.
    let integers = report.rows.iter().find(|row| row.name == "int-matmul").unwrap();
    assert_eq!((integers.tolerance, integers.max_error), (Some(0.0), Some(0.0)));
    assert_eq!(list(&place.work().join("results")), ["dense.html", "dense.json"]);
    assert_eq!(std::fs::read_to_string(place.work().join("results/dense.json")).unwrap(), ran.stdout);
}

#[test]
fn every_lookup_is_right_or_says_why_it_was_not_run() {
    let place = Place::new();
    let report = SuiteReport::from_json(bench(&place, "lookups", &["--json"]).out()).unwrap();
    for name in ["thread/k10", "thread/values", "raft-lookup", "rerank", "embedding-bag", "spmm-coo", "moe"] {
        assert!(report.rows.iter().any(|row| row.name == name && row.ok && row.pass == Pass::Forward), "{name}");
    }
    assert!(report.rows.iter().all(|row| row.ok && row.max_error <= row.tolerance));
    for name in ["thread/attention-k100", "thread/attention-bf16", "points-cpu", "image-window-7x7", "window-1d-cpu"] {
        let passes: Vec<Pass> = report.rows.iter().filter(|row| row.name == name).map(|row| row.pass).collect();
        assert_eq!(passes, [Pass::Forward, Pass::Both], "{name}");
    }
    assert!(report.skipped.iter().all(|skipped| !skipped.failed && !skipped.why.is_empty()), "{:?}", report.skipped);
    // What is for a GPU alone is not even mentioned.
    assert!(report.skipped.iter().all(|skipped| !skipped.name.starts_with("dsa-")));
}

#[test]
fn some_cases_in_some_types() {
    let place = Place::new();
    let chosen = ["--only", "matmul,matmul-f64", "bmm-tiny", "--dtype", "bf16,f64", "--threads", "1"];
    let ran = bench(&place, "dense", &chosen);
    let (table, summary) = ran.out().split_once("\nSummary: 5 of 5 cases right\n").unwrap();
    for case in ["matmul bf16 ", "matmul f64 ", "bmm-tiny bf16 ", "bmm-tiny f64 ", "matmul-f64 f64 "] {
        assert!(table.contains(case), "{case:?} in\n{table}");
    }
    assert!(
        summary.contains("  floor ") && summary.contains("  plans ") && !summary.contains("best peer"),
        "{summary}"
    );
    assert!(summary.ends_with("Written to .: dense.json, dense.html\n"), "{summary}");
    let sections = bench(&place, "dense", &["--only", "tccg", "--list"]);
    assert_eq!((sections.out().lines().count(), sections.stdout.lines().next()), (25, Some("tccg")));
    assert!(bench(&place, "lookups", &["--list", "--only", "moe"]).out().contains("td,[t]df->tf"));
}

#[test]
fn runs_that_make_no_sense_are_refused() {
    let place = Place::new();
    for (suite, arguments, wanted) in [
        ("dense", &["--only", "matmull"][..], "the suite has no case `matmull`\nhint: did you mean `matmul`?"),
        ("dense", &["--only", "frobnicate-everything"], "hint: `--list` names them"),
        ("lookups", &["--only", "dsa-prefill"], "dsa-prefill is not for this device\nhint: `--device cuda`"),
        ("dense", &["--dtype", "i32"], "i32 is not a floating-point type"),
        ("lookups", &["--table-dtype", "u8"], "u8 is neither i64 nor i32"),
        ("dense", &["--no-compile"], "--peers"),
        ("dense", &["--repeats", "0"], "0 is not in 1.."),
        ("dense", &["--threads", "0"], "is not a number from 1 to 1024"),
    ] {
        let ran = bench(&place, suite, arguments);
        assert!(ran.code == Some(2) && ran.stderr.contains(wanted), "{wanted:?}: {ran:?}");
    }
    assert_eq!(place.listing(), [""; 0]);
}

#[test]
fn files_are_replaced_only_if_asked_for() {
    let place = Place::new();
    let only = ["--only", "outer"];
    bench(&place, "dense", &only).out();
    let refused = bench(&place, "dense", &only);
    let said = "`./dense.json` is there already\nhint: `--force` replaces it";
    assert!(refused.code == Some(2) && refused.stderr.contains(said), "{refused:?}");
    bench(&place, "dense", &[&only[..], &["--force"]].concat()).out();
}

#[test]
fn an_absent_python_is_a_note() {
    let place = Place::new();
    let ran = bench(&place, "dense", &["--only", "outer", "--peers", "--python", "/no/such/python"]);
    assert!(ran.out().contains("no peers: `/no/such/python` does not start"), "{ran:?}");
}

/// With whatever the Python here has; the peers that compile take too long.
#[test]
fn peers_stand_beside_us() {
    let place = Place::new();
    let Some(python) = einfall_cli::bench::peers::find_python(None) else { return };
    let python = python.to_str().unwrap();
    let only = ["--only", "bmm-small,matmul-c64,int-matmul,chain", "--json"];
    let peers = ["--peers", "--no-compile", "--python", python];
    let report = SuiteReport::from_json(bench(&place, "dense", &[&only[..], &peers].concat()).out()).unwrap();
    for (package, engine) in [("numpy", "numpy.einsum"), ("torch", "torch.einsum"), ("opt_einsum", "opt_einsum")] {
        let rows: Vec<_> = report.rows.iter().filter(|row| row.engine == engine).collect();
        let there = report.settings.peers.contains_key(package) && report.settings.peers.contains_key("torch");
        assert!(rows.iter().all(|row| row.ok && row.min_s > 0.0), "{rows:?}");
        assert!(!there || rows.len() == 4, "{engine}: {:?}", report.notes);
    }
    let names = "thread/k10,thread/values,embedding-bag,spmm-coo,moe,thread/attention-k10,window-1d-cpu";
    let only = ["--only", names, "--json", "--force"];
    let report = SuiteReport::from_json(bench(&place, "lookups", &[&only[..], &peers].concat()).out()).unwrap();
    if report.settings.peers.contains_key("torch") {
        for engine in [
            "torch.einsum",
            "torch dense, gather",
            "torch embedding_bag",
            "torch index_add",
            "torch sorted, grouped",
            "torch SDPA, mask",
        ] {
            assert!(report.rows.iter().any(|row| row.engine == engine && row.ok), "{engine}: {:?}", report.notes);
        }
        assert!(report.rows.iter().all(|row| row.ok));
    }
}
