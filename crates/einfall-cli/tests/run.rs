//! `einfall run` on files, and every way in which it refuses.

mod common;

use common::Place;
use serde_json::json;

/// 2×3 and 3×2 matrices, a table of 4 rows, and one with a row that is not there.
fn place() -> Place {
    let place = Place::new();
    place.f32("a.npy", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    place.f32("b.npz:weights", &[3, 2], &[7.0, 8.0, 9.0, 10.0, 11.0, 12.0]);
    place.f32("c.safetensors:c", &[2], &[10.0, -1.0]);
    place.i64("table.npy", &[4], &[1, 0, 1, 1]);
    place.i64("wild.npy", &[4], &[1, 0, -1, 2]);
    place.f32("four.npy", &[4], &[1.0, 10.0, 100.0, 1000.0]);
    place
}

#[test]
fn files_of_every_format_meet() {
    let place = place();
    let ran = place.run(&["run", "ij,jk,k->i", "a.npy", "b.npz:weights", "c.safetensors"]);
    // [[58, 64], [139, 154]] · [10, −1]
    assert!(ran.out().starts_with("[2] f32 in ") && ran.stdout.ends_with("\n[516, 1236]\n"), "{ran:?}");
}

#[test]
fn results_are_written_in_every_format() {
    let place = place();
    for (target, read) in
        [("c.npy", "c.npy"), ("d.npz:x", "d.npz:x"), ("e.safetensors:y", "e.safetensors"), ("f.npz", "f.npz:result")]
    {
        let ran = place.run(&["run", "ij,jk->ik", "a.npy", "b.npz", "-o", target]);
        assert!(ran.out().contains(&format!("written to {target}")), "{ran:?}");
        assert_eq!(place.read_f32(read), (vec![2, 2], vec![58.0, 64.0, 139.0, 154.0]));
    }
    // Writing again replaces the array.
    place.run(&["run", "ij,jk->ki", "a.npy", "b.npz", "-o", "d.npz:x"]).out();
    assert_eq!(place.read_f32("d.npz").1, [58.0, 139.0, 64.0, 154.0]);
}

#[test]
fn lookups_windows_and_scatters_run() {
    let place = place();
    let picked = place.run(&["run", "[e]j->ej", "a.npy", "table.npy", "--json"]).json();
    assert_eq!(picked["values"], json!([[4.0, 5.0, 6.0], [1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [4.0, 5.0, 6.0]]));
    let skipped = place.run(&["run", "[e]->e", "c.safetensors", "wild.npy", "--bounds", "skip", "--json"]).json();
    assert_eq!(skipped["values"], json!([-1.0, 10.0, 0.0, 0.0]));
    let slid = place.run(&["run", "[q+w-1]->q", "four.npy", "-s", "q=4,w=3", "--json"]).json();
    assert_eq!(slid["values"], json!([11.0, 111.0, 1110.0, 1100.0]));
    let scattered = place.run(&["run", "e->[e]", "four.npy", "table.npy", "-s", "[e]=3", "--json"]).json();
    assert_eq!(scattered["values"], json!([10.0, 1101.0, 0.0]));
}

#[test]
fn json_says_shape_type_time_and_values() {
    let place = place();
    let ran = place.run(&["run", "ij->", "a.npy", "--dtype", "f64", "--threads", "1", "--json"]).json();
    assert_eq!((&ran["shape"], &ran["dtype"], &ran["values"]), (&json!([]), &json!("f64"), &json!(21.0)));
    assert!(ran["seconds"].as_f64().unwrap() > 0.0 && ran["output"].is_null() && ran["format"] == 1);
    let written = place.run(&["run", "ij->ji", "a.npy", "-o", "t.npy", "--json"]).json();
    assert_eq!((&written["output"], &written["values"]), (&json!("t.npy"), &json!(null)));
}

#[test]
fn what_is_no_number_is_printed_and_is_null_in_json() {
    let place = place();
    place.f32("odd.npy", &[3], &[f32::NAN, f32::INFINITY, 0.1]);
    assert!(place.run(&["run", "i->i", "odd.npy"]).out().ends_with("[NaN, inf, 0.1]\n"));
    let values = place.run(&["run", "i->i", "odd.npy", "--json"]).json()["values"].clone();
    assert_eq!(values, json!([null, null, 0.1]));
}

#[test]
fn empty_results_of_very_many_lists_are_not_printed() {
    let place = place();
    place.f32("none.npy", &[0], &[]);
    let ran = place.run(&["run", "j->ij", "none.npy", "-s", "i=1099511627776"]);
    assert!(ran.out().ends_with("0 values, not printed; write them with `-o FILE`\n"), "{ran:?}");
    assert!(place.run(&["run", "j->ij", "none.npy", "-s", "i=2"]).out().ends_with("[[],\n []]\n"));
}

#[cfg(unix)]
#[test]
fn a_pipe_is_refused_without_waiting_for_it() {
    let place = place();
    let made = std::process::Command::new("mkfifo").arg(place.work().join("pipe.npy")).status().unwrap();
    assert!(made.success());
    let ran = place.run(&["run", "i->i", "pipe.npy"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("it is not a regular file"), "{ran:?}");
}

#[cfg(unix)]
#[test]
fn an_input_is_not_overwritten_unasked() {
    let place = place();
    let work = place.work();
    std::os::unix::fs::symlink("a.npy", work.join("link.npy")).unwrap();
    std::fs::hard_link(work.join("a.npy"), work.join("hard.npy")).unwrap();
    place.f32("copy.npy", &[2, 3], &[0.0; 6]);
    let before = place.listing();
    let old = std::fs::read(work.join("a.npy")).unwrap();
    for (target, is_it) in [
        ("a.npy", "`a.npy` is an input"),
        ("./a.npy", "`./a.npy` is the same file as the input `a.npy`"),
        ("link.npy", "`link.npy` is the same file as the input `a.npy`"),
        ("hard.npy", "`hard.npy` is the same file as the input `a.npy`"),
    ] {
        let ran = place.run(&["run", "ij,kj->ik", "a.npy", "copy.npy", "-o", target]);
        let said = format!("error: {is_it} and would be overwritten\nhint: write to another file, or add `--force`\n");
        assert_eq!((ran.code, ran.stderr, ran.stdout.as_str()), (Some(2), said, ""), "{target}");
        assert_eq!((place.listing(), std::fs::read(work.join("a.npy")).unwrap()), (before.clone(), old.clone()));
    }
    // A later input and one inside an archive count too; a link can be the input.
    for arguments in [
        ["ij,kj->ik", "a.npy", "copy.npy", "copy.npy"],
        ["ij,jk->ik", "a.npy", "b.npz:weights", "b.npz:weights"],
        ["ij,kj->ik", "link.npy", "copy.npy", "a.npy"],
    ] {
        let [equation, left, right, target] = arguments;
        let ran = place.run(&["run", equation, left, right, "-o", target]);
        assert!(ran.code == Some(2) && ran.stderr.contains("would be overwritten"), "{arguments:?}: {ran:?}");
    }
    // A file of the same content is another one, and may be replaced.
    std::fs::copy(work.join("a.npy"), work.join("copy.npy")).unwrap();
    place.run(&["run", "ij->ji", "a.npy", "-o", "copy.npy"]).out();
    let ran = place.run(&["run", "ij->ji", "a.npy", "--force"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--output"), "{ran:?}");
}

#[test]
fn a_result_may_replace_what_it_was_made_of() {
    let place = place();
    for name in ["a.npy", "a.npz:x", "a.safetensors:x"] {
        place.f32(name, &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(place.run(&["run", "ij->ji", name, "-o", name]).code, Some(2));
        place.run(&["run", "ij->ji", name, "-o", name, "--force"]).out();
        assert_eq!(place.read_f32(name), (vec![3, 2], vec![1.0, 4.0, 2.0, 5.0, 3.0, 6.0]), "{name}");
    }
}

#[test]
fn large_results_are_not_printed() {
    let place = place();
    place.f32("long.npy", &[1001], &[1.0; 1001]);
    assert!(
        place
            .run(&["run", "i->i", "long.npy"])
            .out()
            .ends_with("1001 values, not printed; write them with `-o FILE`\n")
    );
}

/// Every refusal: what is typed, and what must be said.
const REFUSED: &[(&[&str], &str)] = &[
    (&["run", "ij,jk->ik", "a.npy"], "the equation takes 2 arguments but 1"),
    (
        &["run", "ij,jk->iz", "a.npy", "b.npz"],
        "nothing gives label `z` a length\n  ij,jk->iz\n          ^\nhint: did you mean the output `ik`? no operand has `z`: \
         to repeat the result along it, give it with `-s`, as in `-s z=4`\n",
    ),
    (&["run", "ij,jk->ik)", "a.npy", "b.npz"], "^"),
    (&["run", "ij,jk->ik", "a.npy", "a.npy"], "label `j` is 3 in operand 0 but 2 in operand 1\n  ij,jk->ik\n   ^ ^"),
    (&["run", "ij->ij", "missing.npy"], "cannot open `missing.npy`"),
    (&["run", "ij->ij", "a.txt"], "must end in `.npy`, `.npz` or `.safetensors`"),
    (&["run", "ij->ij", "b.npz:other"], "hint: it holds `weights`; write `b.npz:NAME`"),
    (&["run", "ij->ij", "a.npy:x"], "hint: a `.npy` file holds one array, which has no name"),
    (&["run", "ij->ij", "broken.npy"], "`broken.npy` is malformed"),
    (
        &["run", "[e]->e", "c.safetensors", "wild.npy"],
        "table argument 1 holds -1 at [2], outside the axis of length 2\n  [e]->e\n  ^^^\nhint: `--bounds skip` leaves such",
    ),
    (
        &["run", "e,[e] -> [e]", "four.npy", "c.safetensors", "table.npy", "wild.npy", "-s", "[e]=2"],
        "table argument 3 holds -1 at [2], outside the axis of length 2\n  e,[e] -> [e]\n           ^^^\nhint: ",
    ),
    (&["run", "[e]->e", "c.safetensors", "four.npy"], "is f32, not an integer type"),
    (&["run", "e->[e]", "four.npy", "table.npy"], "hint: give it with `-s`, as in `-s '[e]=1000'`"),
    (&["run", "ij->ij", "a.npy", "-s", "z=3"], "`-s` names `z`"),
    (&["run", "ij->ij", "a.npy", "-s", "i=3"], "in `-s`"),
    (&["run", "ij->ij", "a.npy", "-s", "i=3,i=4"], "`-s` gives `i` the length 3 and the length 4"),
    (&["run", "ij->ij", "a.npy", "-s", "i"], "`i` has no `=`"),
    (
        &["run", "ij->ij", "a.npy", "--dtype", "f33"],
        "unknown dtype `f33`\nhint: one of bool, i8, i16, i32, i64, u8, u16, u32, u64, f16, bf16, f32, f64, c64, c128\n",
    ),
    (&["run", "ij->ij", "a.npy", "--dtype", "i32"], "cannot give a result of type i32"),
    (&["run", "ij->ij", "a.npy", "--bounds", "wrap"], "--bounds"),
    (&["run", "ij->ij", "a.npy", "--threads", "0"], "`0` is not a number from 1 to 1024"),
    (&["run", "ij,jk,k->", "a.npy", "b.npz", "c.safetensors", "--memory-limit", "0"], "--memory-limit"),
    (&["run", "ij->ij"], "FILES"),
    (&["walk"], "unrecognized subcommand 'walk'"),
    (&[], "Usage: einfall"),
];

#[test]
fn refusals_say_why_and_leave_nothing() {
    let place = place();
    std::fs::write(place.work().join("broken.npy"), b"\x93NUMPY\x01\x00\xff").unwrap();
    let before = place.listing();
    for (arguments, wanted) in REFUSED {
        for target in ["out.npy", "out.npz:x", "out.safetensors:x"] {
            let mut arguments = arguments.to_vec();
            if arguments.first() == Some(&"run") {
                arguments.extend(["-o", target]);
            }
            let ran = place.run(&arguments);
            assert_eq!(ran.code, Some(2), "{arguments:?}: {ran:?}");
            assert!(ran.stderr.contains(wanted), "{arguments:?}: {wanted:?} in\n{}", ran.stderr);
            assert!(ran.stderr.starts_with("error: ") || arguments.is_empty(), "{arguments:?}: {}", ran.stderr);
            assert_eq!((ran.stdout.as_str(), place.listing()), ("", before.clone()), "{arguments:?}");
        }
    }
}

#[test]
fn targets_are_refused_before_anything_is_computed() {
    let place = place();
    let before = place.listing();
    for (target, wanted) in [
        ("c.txt", "must end in"),
        ("no/such/c.npy", "there is no folder `no/such`"),
        ("b.npz:new", "`b.npz` holds other arrays, which would be lost: `weights`"),
    ] {
        let ran = place.run(&["run", "ij->ji", "a.npy", "-o", target]);
        assert!(ran.code == Some(2) && ran.stderr.contains(wanted), "{target}: {ran:?}");
    }
    // A folder of that name: only the system can refuse it.
    std::fs::create_dir(place.work().join("d.npy")).unwrap();
    assert_eq!(place.run(&["run", "ij->ji", "a.npy", "-o", "d.npy"]).code, Some(2));
    std::fs::remove_dir(place.work().join("d.npy")).unwrap();
    assert_eq!(place.listing(), before);
}

#[test]
fn a_failure_leaves_the_old_file_as_it_was() {
    let place = place();
    let old = std::fs::read(place.work().join("four.npy")).unwrap();
    let ran = place.run(&["run", "[e]->e", "c.safetensors", "wild.npy", "-o", "four.npy"]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
    assert_eq!(std::fs::read(place.work().join("four.npy")).unwrap(), old);
    assert_eq!(place.listing(), self::place().listing());
}

#[test]
fn a_bad_environment_is_said() {
    let place = place();
    for (variable, value, wanted) in [
        ("EINFALL_THREADS", "many", "error: `EINFALL_THREADS` is `many`, not a number from 1 to 1024\n"),
        ("EINFALL_THREADS", "0", "error: `EINFALL_THREADS` is `0`"),
        ("EINFALL_ISA", "sse9", "unknown instruction set `sse9`"),
    ] {
        let output = place.command(&["run", "ij->ji", "a.npy"]).env(variable, value).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.code() == Some(2) && stderr.contains(wanted), "{stderr}");
    }
}
