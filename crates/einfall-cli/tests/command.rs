//! Help, completions, `explain`, `machine` and `bench keys`: what they print, and what programs may rely on.

mod common;

use std::process::Stdio;
use std::time::{Duration, Instant};

use common::{Place, list};
use einfall::{CudaDevice, CudaError, Machine, example_gpu};
use einfall_cli::bench::record::{BenchReport, Case, Op};
use serde_json::{Value, json};

#[test]
fn help_is_as_agreed() {
    let place = Place::new();
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help_run", &["run", "--help"]),
        ("help_explain", &["explain", "--help"]),
        ("help_machine", &["machine", "--help"]),
        ("help_bench_keys", &["bench", "keys", "--help"]),
        ("help_bench_dense", &["bench", "dense", "--help"]),
        ("help_bench_lookups", &["bench", "lookups", "--help"]),
    ] {
        let ran = place.run(arguments);
        insta::assert_snapshot!(name, ran.out());
        for line in ran.stdout.lines() {
            assert!(line.chars().count() <= 120, "{line}");
        }
    }
    assert_eq!(place.run(&["--version"]).out(), format!("einfall {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_shell_gets_a_completion() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let ran = place.run(&["completions", shell]);
        assert!(ran.out().contains("memory-limit"), "{shell}");
    }
}

#[test]
fn nobody_reading_is_no_error() {
    let place = Place::new();
    let mut child =
        place.command(&["completions", "bash"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

const KEYS: [&str; 6] = ["explain", "bhqd,bh[bhqk]d->bhqk", "-s", "b=8,h=1,q=1000,k=100,d=32", "-s", "[bhqk]=1000"];

#[test]
fn explain_says_what_is_moved_before_it_prints_the_plan() {
    let ran = Place::new().run(&KEYS);
    let (why, plan) = ran.out().split_once("\n\n").unwrap();
    assert!(why.starts_with("51.2 MFLOP on 11.6 MB of distinct data: "), "{why}");
    let why = why.replace('\n', " ");
    assert!(why.contains("it holds 1.02 MB; stored whole as `bhqkd` it would be 102 MB"), "{why}");
    assert!(plan.starts_with("bhqd,bh[bhqk]d->bhqk   b=8 h=1 q=1000 d=32 k=100   f32\n"), "{plan}");
    assert!(plan.lines().any(|line| line.starts_with(" * ")) && plan.contains("workspace"), "{plan}");
}

#[test]
fn explain_gives_programs_steps_candidates_and_costs() {
    let place = Place::new();
    let mut arguments = KEYS.to_vec();
    arguments.push("--json");
    let plan = place.run(&arguments).json();
    assert_eq!(plan["labels"], json!({"b": 8, "h": 1, "q": 1000, "k": 100, "d": 32}));
    assert_eq!(plan["result"], json!({"dtype": "f32", "shape": [8, 1, 1000, 100]}));
    assert_eq!(plan["arguments"][2]["dtype"], "i64");
    let operand = &plan["why"]["operands"][1];
    assert_eq!((&operand["look"], &operand["whole_bytes"]), (&json!("looked-up"), &json!(102_400_000.0)));
    let step = &plan["steps"][0];
    let chosen = &step["candidates"][step["chosen"].as_u64().unwrap() as usize];
    assert_eq!(chosen["way"], step["way"]);
    for field in ["flops", "bytes", "seconds"] {
        assert!(chosen["cost"][field].as_f64().unwrap() > 0.0 && plan["cost"][field].is_f64(), "{field}");
    }
    assert!(chosen["workspace_bytes"].is_u64() && plan["workspace_bytes"].is_u64() && plan["machine"].is_object());
    let candidates = step["candidates"].as_array().unwrap();
    assert!(candidates.iter().all(|one| one["cost"].is_object() != one["refused"].is_string()), "{candidates:?}");
}

#[test]
fn explain_plans_for_a_machine_that_is_not_this_one() {
    let place = Place::new();
    let machine = Machine { read_bytes_per_second: 1.024e9, ..Machine::example() };
    std::fs::write(place.path("machine.json"), serde_json::to_string(&machine).unwrap()).unwrap();
    let file = place.path("machine.json");
    let mut arguments = KEYS.to_vec();
    arguments.extend(["--machine", file.to_str().unwrap()]);
    let text = place.run(&arguments).out().replace('\n', " ");
    assert!(text.contains("only to read that takes 100 ms"), "{text}");
}

#[test]
fn descriptions_of_no_machine_are_refused() {
    let place = Place::new();
    let write = |name: &str, machine: Machine| {
        std::fs::write(place.path(name), serde_json::to_string(&machine).unwrap()).unwrap();
        place.path(name).to_str().unwrap().to_owned()
    };
    let slow = write("slow.json", Machine { read_bytes_per_second: 0.0, ..Machine::example() });
    let cold = write("cold.json", Machine { l2_bytes: 0, ..Machine::example() });
    for file in [slow.as_str(), cold.as_str(), "/dev/zero", "/dev/null"] {
        let mut arguments = KEYS.to_vec();
        arguments.extend(["--machine", file]);
        let ran = place.run(&arguments);
        assert!(ran.code == Some(2) && ran.stderr.contains("describes no machine: "), "{ran:?}");
    }
}

#[test]
fn rates_are_kept_in_no_folder_but_an_absolute_one() {
    let place = Place::new();
    for home in ["", "here"] {
        let mut command = place.command(&["machine", "--threads", "1", "--budget", "0"]);
        let output = command.env_remove("XDG_CACHE_HOME").env("HOME", home).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(place.listing(), [""; 0]);
    }
}

#[test]
fn explain_takes_shapes_files_and_views() {
    let place = Place::new();
    place.f32("a.npy", &[2, 3], &[0.0; 6]);
    place.f32("b.npy", &[3, 5], &[0.0; 15]);
    let shape = |arguments: &[&str]| {
        let mut arguments = [&["explain"], arguments].concat();
        arguments.push("--json");
        place.run(&arguments).json()["result"]["shape"].clone()
    };
    assert_eq!(shape(&["ij,jk->ik", "a.npy", "b.npy"]), json!([2, 5]));
    assert_eq!(shape(&["...j,jk", "--shape", "7,2,3", "--shape", "3,5"]), json!([7, 2, 5]));
    assert_eq!(shape(&[",i", "--shape", "", "--shape", "4"]), json!([4]));
    assert_eq!(shape(&["[e]d,[e]d->e", "-s", "e=5,d=2,0:[e]=3,1:[e]=9"]), json!([5]));
    assert_eq!(shape(&["e,[e]d->[e]d", "-s", "e=5,d=2,[e]=3"]), json!([3, 2]));
    assert_eq!(shape(&["qd,[q+w-1]d->qw", "-s", "q=5,d=2,w=3,[q+w-1]=5"]), json!([5, 3]));
    let view = place.run(&["explain", "qd,qkd->qk", "-s", "q=5,k=3,d=2", "--expand", "1:q", "--json"]).json();
    assert_eq!(view["arguments"][1], json!({"dtype": "f32", "shape": [5, 3, 2], "strides": [0, 2, 1]}));
    assert_eq!(view["why"]["operands"][1]["look"], "expanded");
}

#[test]
fn explain_refuses_what_it_cannot_describe() {
    let place = Place::new();
    for (arguments, wanted) in [
        (
            &["ij,jk", "-s", "i=2,j=3"][..],
            "nothing gives label `k` a length\n  ij,jk\n      ^\nhint: give it with `-s`",
        ),
        (&["[e]->e", "-s", "e=3"], "nothing gives axis `[e]` of operand 0 a length"),
        (&["...i", "-s", "i=3"], "hint: give the shapes instead"),
        (&["i", "--shape", "3,x"], "`x` is not a length"),
        (&["ij,jk", "--shape", "2,3"], "takes 2 arguments but 1"),
        (&["i,i", "-s", "i=3", "--expand", "2:i"], "names operand 2 of 2"),
        (&["i,i", "-s", "i=3", "--expand", "1:j"], "operand 1, `i`, has no label `j`"),
        (&["i,i", "-s", "i=3", "--expand", "i"], "hint: write it as `1:q`"),
        (&["i", "-s", "i=3", "--machine", "missing.json"], "cannot open `missing.json`"),
        (
            &["i", "-s", "i=3", "--table-dtype", "f32"],
            "a table holds integers, not f32\nhint: one of i8, i16, i32, i64, u8, u16, u32, u64\n",
        ),
        (&["i", "-s", "i=3", "--dtype", "f33"], "unknown dtype `f33`\nhint: one of bool, i8, "),
        (&["[i", "-s", "i=3"], "^"),
        (&["i", "missing.npy"], "cannot open `missing.npy`"),
        (&["ij", "-s", "i=9999999999,j=9999999999"], "more"),
    ] {
        let ran = place.run(&[&["explain"], arguments].concat());
        assert!(ran.code == Some(2) && ran.stderr.starts_with("error: ") && ran.stdout.is_empty(), "{ran:?}");
        assert!(ran.stderr.contains(wanted), "{wanted:?} in\n{}", ran.stderr);
    }
}

#[test]
fn plans_for_a_gpu_need_none() {
    let place = Place::new();
    let text = place.run(&[&KEYS[..], &["--device", "cuda:h100"]].concat());
    let first = text.out().lines().next().unwrap();
    assert_eq!(first, "planned for a GPU that is not here, NVIDIA H100: as asked for");
    assert!(text.stdout.contains("dots") && text.stdout.contains("sm_90"), "{text:?}");
    let plan = place.run(&[&KEYS[..], &["--device", "cuda:h100", "--json"]].concat()).json();
    assert_eq!((&plan["machine"]["isa"], &plan["steps"][0]["way"]), (&json!("sm_90"), &json!("gather")));
    let machine = place.run(&["machine", "--device", "cuda:h100", "--json"]).json();
    assert_eq!((&machine["machine"], &machine["saved"]), (&plan["machine"], &Value::Null));
    // A description takes its place, and is told the same way.
    let file = place.path("gpu.json");
    std::fs::write(&file, serde_json::to_string(&Machine { name: "a GPU".into(), ..example_gpu() }).unwrap()).unwrap();
    let described = [&KEYS[..], &["--device", "cuda:h100", "--machine", file.to_str().unwrap()]].concat();
    assert!(place.run(&described).out().starts_with("planned for a GPU that is not here, a GPU: "));
    for wrong in [&["--device", "cuda", "--threads", "2"][..], &["--device", "tpu"]] {
        assert_eq!(place.run(&[&KEYS[..], wrong].concat()).code, Some(2), "{wrong:?}");
    }
}

#[test]
fn without_a_gpu_commands_that_need_one_say_so() {
    if CudaDevice::count().is_ok_and(|count| count > 0) {
        return;
    }
    let place = Place::new();
    place.f32("a.npy", &[2], &[1.0, 2.0]);
    for line in [&["machine", "--device", "cuda"][..], &["run", "i->", "a.npy", "--device", "cuda:1"]] {
        let ran = place.run(line);
        assert!(ran.code == Some(2) && ran.stdout.is_empty(), "{ran:?}");
        assert!(ran.stderr.starts_with("error: "), "{ran:?}");
    }
    if CudaDevice::count().is_err_and(|error| matches!(error, CudaError::Missing { .. })) {
        let said = place.run(&["machine", "--device", "cuda"]).stderr;
        assert!(said.contains("driver (libcuda) could not be loaded\nhint: "), "{said}");
    }
    let explained = place.run(&[&KEYS[..], &["--device", "cuda"]].concat());
    assert!(explained.out().starts_with("planned for a GPU that is not here, NVIDIA H100: "), "{explained:?}");
}

#[test]
fn a_measured_machine_is_saved_and_used() {
    let place = Place::new();
    let ran = place.run(&["machine", "--json", "--budget", "0.2"]).json();
    let saved = ran["saved"].as_str().unwrap();
    let machine: Machine = serde_json::from_str(&std::fs::read_to_string(saved).unwrap()).unwrap();
    assert!(machine.measured && machine.threads == 2 && machine.f32_flops_per_second > 1e8);
    assert_eq!(list(&place.path("cache/einfall")).len(), 1, "no temporary file is left");
    let planned = place.run(&["explain", "i->", "-s", "i=3", "--json"]).json();
    assert_eq!(planned["machine"], serde_json::to_value(&machine).unwrap());
    assert_eq!(ran["machine"], planned["machine"]);
}

#[test]
fn a_machine_can_be_measured_without_a_trace() {
    let place = Place::new();
    let text = place.run(&["machine", "--no-save", "--threads", "1", "--budget", "0.1"]);
    assert!(text.out().contains("1 thread, ") && text.stdout.contains("read memory"), "{text:?}");
    assert!(!place.path("cache").exists());
    std::fs::write(place.path("cache"), "in the way").unwrap();
    let ran = place.run(&["machine", "--budget", "0.1"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("cannot write"), "{ran:?}");
}

/// Runs a small experiment on the example machine.
fn bench(place: &Place, more: &[&str]) -> common::Ran {
    let file = place.path("machine.json");
    std::fs::write(&file, serde_json::to_string(&Machine::example()).unwrap()).unwrap();
    let quick = ["bench", "keys", "--quick", "--out", "results", "--machine", file.to_str().unwrap()];
    place.run(&[&quick, more].concat())
}

#[test]
fn a_quick_experiment_is_right_and_complete() {
    let place = Place::new();
    let started = Instant::now();
    let ran =
        bench(&place, &["--json", "--case", "separate-stored,separate-expanded,separate-lookup,shared,all,window"]);
    assert!(started.elapsed() < Duration::from_secs(60));
    let report = BenchReport::from_json(ran.out()).unwrap();
    for op in Op::ALL {
        for case in Case::ALL {
            let rows = report.rows.iter().filter(|row| row.op == op && row.case == case).count();
            let expected = match (op, case) {
                (Op::Attention, Case::Window) => 0,
                (_, Case::All) => 1,
                _ => 3,
            };
            assert_eq!(rows, expected, "{op} {case}");
        }
    }
    for row in &report.rows {
        assert!(row.ok && row.max_error <= row.tolerance && row.is_ours(), "{row:?}");
        assert!(row.min_s > 0.0 && row.median_s >= row.min_s && row.repeats >= 4 && row.floor_s > Some(0.0), "{row:?}");
        let result =
            row.sizes.b * row.sizes.h * row.sizes.q * if row.op == Op::Scores { row.k } else { row.sizes.d } * 4;
        assert!(row.peak_bytes >= Some(result as u64) && row.way.is_some(), "{row:?}");
    }
    let first: Value = serde_json::from_str::<Value>(&ran.stdout).unwrap()["rows"][0].clone();
    for field in [
        "case",
        "op",
        "k",
        "engine",
        "dtype",
        "threads",
        "sizes",
        "min_s",
        "median_s",
        "repeats",
        "flops",
        "bytes_distinct",
        "floor_s",
        "floor_kind",
        "way",
        "peak_bytes",
        "compile_s",
        "max_error",
        "tolerance",
        "ok",
    ] {
        assert!(first.get(field).is_some(), "{field} in {first}");
    }
    let files = ["keys-attention.svg", "keys-scores.svg", "keys-values.svg", "keys.html", "keys.json"];
    assert_eq!(list(&place.work().join("results")), files);
    assert_eq!(std::fs::read_to_string(place.work().join("results/keys.json")).unwrap(), ran.stdout);
}

#[test]
fn an_experiment_ends_with_a_summary() {
    let place = Place::new();
    let ran = bench(&place, &["--op", "scores", "--k", "3,7", "--case", "separate-lookup,shared,all"]);
    let (_, summary) = ran.out().split_once("\nSummary: einfall's time with looked-up keys, ").unwrap();
    let lines: Vec<&str> = summary.lines().collect();
    for (line, end) in lines[1..].iter().zip([
        ") × that with shared keys",
        ") × that with all keys",
        ") of the floor's speed",
        "Written to results: keys.json, keys.html, keys-scores.svg",
    ]) {
        assert!(line.ends_with(end), "{end:?}: {line}");
    }
    assert_eq!(lines.len(), 5, "{summary}");
    let json = bench(&place, &["--op", "scores", "--k", "3", "--json"]);
    assert!(!json.out().contains("Summary") && json.stderr.is_empty(), "{json:?}");
}

#[test]
fn long_work_says_how_far_it_is_where_there_is_no_terminal() {
    let place = Place::new();
    // 10 problems of 0.5 s each: a line at the start, then one every two seconds.
    let ks = [
        "--op",
        "scores",
        "--case",
        "shared",
        "--k",
        "1,2,3,4,5,6,7,8,9,10",
        "--budget",
        "0.5",
        "--repeats",
        "1000000",
    ];
    let ran = bench(&place, &ks);
    let lines: Vec<&str> = ran.stderr.lines().collect();
    assert!(ran.code == Some(0) && lines.len() >= 3, "{ran:?}");
    assert_eq!(lines[0], "1 of 10: making the data");
    for line in &lines[1..] {
        let (number, rest) = line.split_once(" of 10: scores shared k=").unwrap();
        let (k, left) = rest.split_once(", about ").unwrap();
        assert_eq!(number, k.trim_end_matches(": comparing"), "{line}");
        assert!(left.strip_suffix(" s left").is_some_and(|left| left.parse::<u8>().is_ok()), "{line}");
    }
    // Programs get what they asked for alone.
    assert_eq!(bench(&place, &["--op", "scores", "--case", "shared", "--json"]).stderr, "");
    assert!(place.run(&["machine", "--no-save", "--budget", "0"]).stderr.starts_with("1 of 7: "));
}

#[test]
fn every_type_is_right() {
    let place = Place::new();
    for dtype in ["f64", "bf16", "f16"] {
        let ran = bench(&place, &["--dtype", dtype, "--table-dtype", "i32", "--k", "7", "-s", "n=31,d=17"]);
        assert!(ran.out().contains(&format!("{dtype}, b=2 h=1 q=100 n=31 d=17")), "{ran:?}");
        assert!(ran.stdout.contains("47.6 kFLOP"), "2·2·100·7·17: {ran:?}");
    }
}

/// A folder whose name is no Unicode is as good as any other.
#[cfg(target_os = "linux")]
#[test]
fn names_of_files_may_be_any_bytes() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let folder = std::ffi::OsStr::from_bytes(b"results-\xff");
    let mut command = place.command(&["bench", "keys", "--quick", "--k", "1", "--op", "scores", "--out"]);
    let ran = common::Ran::from(command.arg(folder).output().unwrap());
    assert!(ran.out().contains("keys.json"), "{ran:?}");
    assert!(place.work().join(folder).join("keys.json").is_file());
    // Where text is wanted, the refusal is one of ours.
    for before in [&["run", "ij->ji"][..], &["run"], &["explain"], &["bench"], &[]] {
        let ran = common::Ran::from(place.command(before).arg(folder).output().unwrap());
        assert!(ran.code == Some(2) && ran.stderr.starts_with("error: ") && ran.stdout.is_empty(), "{ran:?}");
        assert!(!ran.stderr.contains("panicked") && !ran.stderr.contains("Err("), "{ran:?}");
    }
}

#[test]
fn experiments_that_make_no_sense_are_refused() {
    let place = Place::new();
    std::fs::write(place.work().join("file"), "").unwrap();
    for (arguments, wanted) in [
        (&["--k", "101"][..], "`--k 101` is not from 1 to n=100"),
        (&["-s", "x=1"], "no label `x`"),
        (&["--op", "sums"], "hint: one of scores, values, attention"),
        (&["--case", "some"], "hint: one of separate-stored"),
        (&["--dtype", "i32"], "i32 is not a floating-point type\nhint: one of f16, bf16, f32, f64\n"),
        (&["--dtype", "f33"], "unknown dtype `f33`\nhint: one of f16, bf16, f32, f64\n"),
        (&["--table-dtype", "u8"], "u8 is neither i64 nor i32\nhint: one of i32, i64\n"),
        (&["--k", "0"], "`--k 0` is not from 1 to n=100\n"),
        (&["-s", "b=99999999999"], "takes 23700 TB of memory and "),
        (&["--budget=-1"], "`-1` is not a number of seconds"),
        (&["--python", "python3"], "--peers"),
    ] {
        let ran = bench(&place, arguments);
        assert!(ran.code == Some(2) && ran.stderr.contains(wanted), "{wanted:?}: {ran:?}");
    }
    let ran = place.run(&["bench", "keys", "--quick", "--out", "file"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("cannot write `file`"), "{ran:?}");
    assert_eq!(place.listing(), ["file"]);
}

/// Waits until something is so, or fails.
#[track_caller]
fn until(mut what: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !what() {
        assert!(Instant::now() < deadline, "waited for a minute");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[cfg(target_os = "linux")]
#[test]
fn an_interruption_leaves_nothing_behind() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    let machine = place.path("machine.json");
    std::fs::write(&machine, serde_json::to_string(&Machine::example()).unwrap()).unwrap();
    std::fs::create_dir(place.path("tmp")).unwrap();
    // A Python that answers twice and then does not listen any more; its number tells where it is.
    let python = place.path("python");
    let answers = r#"echo '{"ok": true, "python": "0", "packages": {}, "missing": {}, "peers": ["x"], "skipped": {}}'"#;
    let busy =
        format!("#!/bin/sh\nread line; {answers}\nread line; {answers}\nread line; echo $$ > busy; exec sleep 60\n");
    std::fs::write(&python, busy).unwrap();
    std::fs::set_permissions(&python, std::fs::Permissions::from_mode(0o755)).unwrap();
    let arguments =
        ["bench", "keys", "--quick", "--k", "10", "--op", "scores", "--out", "results", "--peers", "--python"];
    for signal in ["-INT", "-TERM", "-HUP"] {
        let mut command = place.command(&arguments);
        command.arg(&python).arg("--machine").arg(&machine).env("TMPDIR", place.path("tmp"));
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let busy = place.work().join("busy");
        until(|| std::fs::read_to_string(&busy).is_ok_and(|text| text.ends_with('\n')));
        let kept = list(&place.path("tmp"));
        assert!(kept.len() == 2 && kept[0].starts_with("einfall-bench-"), "{kept:?}");
        let process = format!("/proc/{}", std::fs::read_to_string(&busy).unwrap().trim());
        assert!(std::path::Path::new(&process).exists());
        let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let ran = common::Ran::from(child.wait_with_output().unwrap());
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(130), ""), "{signal}: {ran:?}");
        assert!(ran.stderr.ends_with("\nerror: interrupted\n"), "{ran:?}");
        assert_eq!(list(&place.path("tmp")), [""; 0], "{signal}");
        assert!(!std::path::Path::new(&process).exists(), "{signal}: {process} is alive");
        assert_eq!(list(&place.work().join("results")), [""; 0]);
        std::fs::remove_file(busy).unwrap();
    }
}

#[test]
fn an_absent_python_is_a_note() {
    let place = Place::new();
    let ran = bench(&place, &["--peers", "--python", "/no/such/python", "--k", "10", "--op", "scores"]);
    assert!(ran.out().contains("no peers: `/no/such/python` does not start"), "{ran:?}");
}
