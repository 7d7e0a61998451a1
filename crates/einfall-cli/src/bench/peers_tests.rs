//! The Python process: what every interpreter does, and what one with the packages computes.

use tempfile::TempDir;

use super::*;

const SIZES: Sizes = Sizes { b: 2, h: 3, q: 5, n: 13, k: 7, d: 11 };

fn python() -> Option<PathBuf> {
    let python = find_python(None);
    if python.is_none() {
        eprintln!("skipped: there is no python");
    }
    python
}

/// A fake interpreter: a shell script that gets the path of the real script and ignores it.
#[cfg(unix)]
fn fake(body: &str) -> (TempDir, PathBuf) {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("python");
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    (folder, path)
}

const HELLO: &str = r#"read line; echo '{"ok": true, "python": "0", "packages": {}, "missing": {}}'"#;
const OFFER: &str = r#"read line; echo '{"ok": true, "peers": ["x"], "skipped": {}}'"#;

fn setup(op: Op, case: Case, folder: &DataFolder, data: &Data) -> PeerSetup {
    let mut files = BTreeMap::new();
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    for (role, values) in
        [("query", &data.query), ("weights", &data.weights), ("keys", &data.keys), ("values", &data.values)]
    {
        files.insert(role.to_owned(), folder.write(role, &floats(values)).unwrap());
    }
    let table: Vec<_> = data.table.iter().flat_map(|&row| i32::try_from(row).unwrap().to_le_bytes()).collect();
    files.insert("table".to_owned(), folder.write("table", &table).unwrap());
    PeerSetup {
        question: Question::Keys { op, case, sizes: SIZES },
        dtype: "f32".to_owned(),
        table_dtype: "i32".to_owned(),
        files,
        lent: Vec::new(),
        device: "cpu".to_owned(),
        threads: 1,
        memory_limit: 1 << 30,
        sample: 64,
    }
}

/// Small integers, so that scores and values are exact.
struct Data {
    query: Vec<f32>,
    weights: Vec<f32>,
    keys: Vec<f32>,
    values: Vec<f32>,
    table: Vec<usize>,
}

impl Data {
    fn new() -> Self {
        let Sizes { b, h, q, n, k, d } = SIZES;
        let ints = |len: usize, seed: usize| -> Vec<f32> {
            (0..len).map(|at| ((at * 7919 + seed * 104_729) % 10_007 % 9) as f32 - 4.0).collect()
        };
        Self {
            query: ints(b * h * q * d, 1),
            weights: ints(b * h * q * n, 2)[..b * h * q * n].to_vec(),
            keys: ints(b * h * n * d, 3),
            values: ints(b * h * n * d, 4),
            table: (0..b * h * q * k).map(|at| (at * 6133 + 5) % 1009 % n).collect(),
        }
    }

    /// The plain loops, in f64.
    fn expected(&self, op: Op, case: Case) -> Vec<f64> {
        let Sizes { b, h, q, n, d, .. } = SIZES;
        let k = if case == Case::All { n } else { SIZES.k };
        let mut out = Vec::new();
        for head in 0..b * h {
            for query in 0..q {
                let row = |key: usize| match case {
                    Case::SeparateStored | Case::SeparateLookup => self.table[(head * q + query) * k + key],
                    _ => key,
                };
                let at = |rows: &[f32], key: usize, i: usize| f64::from(rows[(head * n + row(key)) * d + i]);
                let score = |key: usize| -> f64 {
                    (0..d).map(|i| f64::from(self.query[(head * q + query) * d + i]) * at(&self.keys, key, i)).sum()
                };
                let weighted = |weight: &dyn Fn(usize) -> f64| -> Vec<f64> {
                    (0..d).map(|i| (0..k).map(|key| weight(key) * at(&self.values, key, i)).sum()).collect()
                };
                match op {
                    Op::Scores => out.extend((0..k).map(score)),
                    Op::Values => {
                        out.extend(weighted(&|key| f64::from(self.weights[(head * q + query) * k + key])));
                    }
                    Op::Attention => {
                        let raw: Vec<_> = (0..k).map(|key| (score(key) / (d as f64).sqrt()).exp()).collect();
                        let total: f64 = raw.iter().sum();
                        out.extend(weighted(&|key| raw[key] / total));
                    }
                }
            }
        }
        out
    }
}

#[test]
fn any_python_answers_and_missing_packages_are_no_error() {
    let Some(python) = python() else { return };
    let mut peers = Peers::start(&python, 1).unwrap();
    let hello = peers.hello().clone();
    assert!(hello.python.starts_with('3'), "{hello:?}");
    assert_eq!(hello.packages.len() + hello.missing.len(), 4);
    assert!(peers.time("torch.einsum", 1, Duration::from_secs(1)).is_err());
    let folder = DataFolder::new().unwrap();
    let offer = peers.setup(&setup(Op::Scores, Case::Shared, &folder, &Data::new())).unwrap();
    assert_eq!(offer.peers.is_empty(), !hello.packages.contains_key("numpy"), "{offer:?}");
    for (name, package) in [("torch.einsum", "torch"), ("numpy.einsum", "numpy"), ("opt_einsum", "opt_einsum")] {
        if !hello.packages.contains_key(package) {
            assert!(offer.skipped[name].contains("is not installed"), "{offer:?}");
        }
    }
}

#[test]
fn every_peer_computes_what_the_loops_compute() {
    let Some(python) = python() else { return };
    let mut peers = Peers::start(&python, 1).unwrap();
    if peers.hello().packages.is_empty() {
        eprintln!("skipped: {} has no peers", python.display());
        return;
    }
    let data = Data::new();
    let mut timed = 0;
    for op in Op::ALL {
        for case in Case::ALL {
            let folder = DataFolder::new().unwrap();
            let offer = peers.setup(&setup(op, case, &folder, &data)).unwrap();
            let expected = data.expected(op, case);
            for peer in offer.peers.iter().filter(|peer| !peer.contains("compiled")) {
                let times = peers.time(peer, 3, Duration::from_secs(5)).unwrap();
                assert_eq!(times.seconds.len(), 3);
                assert_eq!(times.shape.iter().product::<usize>(), expected.len(), "{op} {case} {peer}");
                let error = times.max_error(|at| expected[at]);
                let allowed = if op == Op::Attention { 1e-5 } else { 0.0 };
                assert!(error <= allowed, "{op} {case} {peer}: {error}");
                assert!((times.sum - expected.iter().sum::<f64>()).abs() <= 1e-3, "{op} {case} {peer}");
                timed += 1;
            }
        }
    }
    assert!(timed >= 15, "{timed}");
}

#[test]
#[ignore = "compiles C++, which takes up to a minute"]
fn compiling_is_not_part_of_the_time() {
    let Some(python) = python() else { return };
    let mut peers = Peers::start(&python, 1).unwrap();
    if !peers.hello().packages.contains_key("torch") {
        eprintln!("skipped: {} has no torch", python.display());
        return;
    }
    let data = Data::new();
    let folder = DataFolder::new().unwrap();
    peers.setup(&setup(Op::Attention, Case::SeparateLookup, &folder, &data)).unwrap();
    match peers.time("torch mul-sum compiled", 3, Duration::from_secs(5)) {
        Ok(times) => {
            let expected = data.expected(Op::Attention, Case::SeparateLookup);
            assert!(times.max_error(|at| expected[at]) < 1e-5);
            assert!(times.compile_s.unwrap() > 10.0 * times.seconds[0], "{times:?}");
        }
        // Without a compiler the reason must be a sentence, and the process must still work.
        Err(failure) => eprintln!("not compiled: {failure}"),
    }
    assert!(peers.time("torch.einsum", 1, Duration::from_secs(5)).is_ok());
}

#[test]
fn what_does_not_fit_is_skipped_with_the_reason() {
    let Some(python) = python() else { return };
    let mut peers = Peers::start(&python, 1).unwrap();
    let folder = DataFolder::new().unwrap();
    let mut request = setup(Op::Scores, Case::SeparateStored, &folder, &Data::new());
    request.memory_limit = 1000;
    let offer = peers.setup(&request).unwrap();
    assert!(offer.peers.is_empty());
    if peers.hello().packages.contains_key("numpy") {
        assert!(offer.skipped["numpy.einsum"].contains("the limit is 0.0 MB"), "{offer:?}");
    }
    assert!(peers.time("numpy.einsum", 1, Duration::from_secs(1)).is_err());
    request.memory_limit = 1 << 30;
    request.files.clear();
    let offer = peers.setup(&request).unwrap();
    for peer in offer.peers {
        let failure = peers.time(&peer, 1, Duration::from_secs(1)).unwrap_err().to_string();
        assert!(failure.contains("KeyError"), "{failure}");
    }
}

#[cfg(unix)]
#[test]
fn a_crash_is_a_sentence_and_the_next_peer_gets_a_fresh_process() {
    let (_keep, python) = fake(&format!("{HELLO}\n{OFFER}\nread line; echo 'out of luck' >&2; kill -SEGV $$"));
    let mut peers = Peers::start(&python, 1).unwrap();
    let folder = DataFolder::new().unwrap();
    peers.setup(&setup(Op::Scores, Case::Shared, &folder, &Data::new())).unwrap();
    for _ in 0..2 {
        let failure = peers.time("x", 1, Duration::from_secs(1)).unwrap_err().to_string();
        assert!(failure.contains("signal: 11") && failure.ends_with(": out of luck"), "{failure}");
    }
}

#[cfg(unix)]
#[test]
fn a_hang_ends_at_the_timeout() {
    let (_keep, python) = fake(&format!("{HELLO}\n{OFFER}\nread line; exec sleep 60"));
    let mut peers = Peers::start(&python, 1).unwrap();
    peers.set_timeout(Duration::from_millis(200));
    let folder = DataFolder::new().unwrap();
    peers.setup(&setup(Op::Scores, Case::Shared, &folder, &Data::new())).unwrap();
    let start = Instant::now();
    let failure = peers.time("x", 1, Duration::from_secs(1)).unwrap_err().to_string();
    assert!(failure.starts_with("no answer within"), "{failure}");
    assert!(start.elapsed() < Duration::from_secs(10));
}

/// Where the parent is killed, nobody can tell the process to quit.
#[test]
fn the_end_of_its_input_ends_a_busy_process() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let (script, started) = (folder.path().join("peers.py"), folder.path().join("started"));
    fs::write(&script, SCRIPT).unwrap();
    // A package that takes a minute to load.
    let slow = "import os, time\nopen(os.environ['STARTED'], 'w').close()\ntime.sleep(60)\n";
    fs::write(folder.path().join("numpy.py"), slow).unwrap();
    let mut command = Command::new(python);
    command.arg(&script).env("STARTED", &started).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut requests = child.stdin.take().unwrap();
    writeln!(requests, r#"{{"cmd": "hello", "threads": 1}}"#).unwrap();
    let until = |seconds: u64, what: &mut dyn FnMut() -> bool| {
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while !what() {
            assert!(Instant::now() < deadline);
            thread::sleep(Duration::from_millis(10));
        }
    };
    until(30, &mut || started.exists());
    assert!(child.try_wait().unwrap().is_none());
    drop(requests);
    until(20, &mut || child.try_wait().unwrap().is_some());
}

#[cfg(unix)]
#[test]
fn what_is_no_python_is_a_sentence_too() {
    for (body, reason) in
        [("read x; echo hello", "no JSON"), ("exit 3", "exit status: 3"), ("read x; echo '{}'", "no reason")]
    {
        let (_keep, path) = fake(body);
        let failure = Peers::start(&path, 1).err().unwrap().to_string();
        assert!(failure.contains(reason), "{failure}");
    }
    let failure = Peers::start(Path::new("/no/such/python"), 1).err().unwrap().to_string();
    assert!(failure.contains("does not start"), "{failure}");
}

/// A command, and the addresses of the arrays that came with it.
type Asked = (String, Vec<(&'static str, *const u8)>);

/// An interpreter that keeps what it was asked.
#[derive(Default)]
struct Recorder {
    asked: Mutex<Vec<Asked>>,
}

impl Interpreter for Recorder {
    fn answer(&self, request: &str, lent: &Lent) -> Result<String, PeerFailure> {
        let request: serde_json::Value = serde_json::from_str(request).unwrap();
        let command = request["cmd"].as_str().unwrap().to_owned();
        let reply = match command.as_str() {
            "hello" => r#"{"ok": true, "python": "3", "packages": {}, "missing": {}}"#,
            "setup" => r#"{"ok": true, "peers": ["x"], "skipped": {}}"#,
            "time" => r#"{"ok": false, "error": "out of luck"}"#,
            _ => r#"{"ok": true}"#,
        };
        let addresses = lent.iter().map(|(role, array)| (*role, array.as_bytes().as_ptr())).collect();
        self.asked.lock().unwrap().push((command, addresses));
        Ok(reply.to_owned())
    }
}

#[test]
fn an_interpreter_that_is_there_is_lent_arrays_and_told_of_the_end() {
    let recorder = Recorder::default();
    let query = Arc::new(Tensor::from_slice(&[1.0f32, 2.0], &[2]).unwrap());
    {
        let mut peers = Peers::inside(&recorder, 1).unwrap();
        assert!(!peers.reads_files());
        let folder = DataFolder::new().unwrap();
        let mut problem = setup(Op::Scores, Case::Shared, &folder, &Data::new());
        problem.lent = vec![("query", Arc::clone(&query))];
        assert_eq!(peers.setup(&problem).unwrap().peers, ["x"]);
        let failure = peers.time("x", 1, Duration::from_secs(1)).unwrap_err().to_string();
        assert_eq!(failure, "out of luck");
    }
    let asked = recorder.asked.into_inner().unwrap();
    let commands: Vec<&str> = asked.iter().map(|(command, _)| command.as_str()).collect();
    assert_eq!(commands, ["hello", "setup", "time", "quit"]);
    assert_eq!(asked[1].1, [("query", query.as_bytes().as_ptr())]);
}

#[test]
fn samples_are_compared_by_position() {
    let times = PeerTimes {
        seconds: vec![1.0],
        compile_s: None,
        shape: vec![4],
        sum: 0.0,
        abs_sum: 0.0,
        positions: vec![3, 1],
        sample: vec![30.0, 10.5],
    };
    assert_eq!(times.max_error(|at| at as f64 * 10.0), 0.5);
    let broken = PeerTimes { sample: vec![f64::NAN, 10.0], ..times };
    assert!(broken.max_error(|at| at as f64 * 10.0).is_nan());
}

#[test]
fn peers_without_a_gpu_say_so() {
    let Some(python) = python() else { return };
    let mut peers = Peers::start(&python, 1).unwrap();
    let folder = DataFolder::new().unwrap();
    let data = Data::new();
    let setup = PeerSetup { device: "cuda:7777".to_owned(), ..setup(Op::Scores, Case::Shared, &folder, &data) };
    let failure = peers.setup(&setup).unwrap_err();
    assert!(failure.0.contains("cuda:7777") || failure.0.contains("CUDA"), "{failure}");
}
