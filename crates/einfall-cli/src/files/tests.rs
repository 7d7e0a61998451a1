//! Files written by hand, by ourselves and, where Python has it, by NumPy.

use std::fs;
use std::path::Path;
use std::process::Command;

use super::*;

/// An `.npy` file with the given version, header text and data.
fn npy_bytes(version: u8, header: &str, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x93NUMPY".to_vec();
    bytes.extend([version, 0]);
    if version == 1 {
        bytes.extend(u16::try_from(header.len()).unwrap().to_le_bytes());
    } else {
        bytes.extend(u32::try_from(header.len()).unwrap().to_le_bytes());
    }
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    bytes
}

fn dict(descr: &str, fortran: bool, shape: &str) -> String {
    let fortran = if fortran { "True" } else { "False" };
    format!("{{'descr': '{descr}', 'fortran_order': {fortran}, 'shape': {shape}, }}\n")
}

/// Writes `bytes` to a new file of that name and reads it.
fn read_bytes(name: &str, bytes: &[u8]) -> Result<StoredArray, FileError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    read(path.to_str().unwrap())
}

/// The message for a malformed file; it must name the file.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let error = read_bytes(name, bytes).expect_err("the file is bad").to_string();
    assert!(error.contains(name), "{error}");
    error
}

const NPY_DTYPES: [(&str, &str); 14] = [
    ("b1", "bool"),
    ("i1", "i8"),
    ("i2", "i16"),
    ("i4", "i32"),
    ("i8", "i64"),
    ("u1", "u8"),
    ("u2", "u16"),
    ("u4", "u32"),
    ("u8", "u64"),
    ("f2", "f16"),
    ("f4", "f32"),
    ("f8", "f64"),
    ("c8", "c64"),
    ("c16", "c128"),
];

/// Three elements; `bool` gets 0 and 1 only.
fn elements(dtype: &str) -> Vec<u8> {
    let count = u8::try_from(3 * element_size(dtype).unwrap()).unwrap();
    (1..=count).map(|at| if dtype == "bool" { at % 2 } else { at }).collect()
}

#[test]
fn every_dtype_in_both_byte_orders() {
    for (code, dtype) in NPY_DTYPES {
        let data = elements(dtype);
        let scalar = alignment(dtype).unwrap();
        for order in if scalar == 1 { &['|', '<'][..] } else { &['<', '>', '='][..] } {
            for version in [1, 2, 3] {
                let header = dict(&format!("{order}{code}"), false, "(3,)");
                let array = read_bytes("a.npy", &npy_bytes(version, &header, &data)).unwrap();
                let mut wanted = data.clone();
                if *order == '>' {
                    wanted.chunks_exact_mut(scalar).for_each(<[u8]>::reverse);
                }
                assert_eq!(array.dtype, dtype);
                assert_eq!((array.shape.as_slice(), array.strides_elems.as_slice()), (&[3][..], &[1][..]));
                assert_eq!(array.bytes(), wanted, "{order}{code} version {version}");
                assert!(array.bytes().as_ptr().addr().is_multiple_of(scalar));
            }
        }
    }
}

#[test]
fn shapes_and_orders() {
    let data: Vec<u8> = (0..30).collect();
    let cases: [(&str, bool, &[usize], &[isize]); 8] = [
        ("(2, 3, 5)", false, &[2, 3, 5], &[15, 5, 1]),
        ("(2, 3, 5)", true, &[2, 3, 5], &[1, 2, 6]),
        ("(2,3,5,)", false, &[2, 3, 5], &[15, 5, 1]),
        ("(2L, 3L)", false, &[2, 3], &[3, 1]),
        ("()", false, &[], &[]),
        ("(0,)", false, &[0], &[1]),
        ("(3, 0, 2)", false, &[3, 0, 2], &[2, 2, 1]),
        ("(1, 30)", true, &[1, 30], &[1, 1]),
    ];
    for (text, fortran, shape, strides) in cases {
        let array = read_bytes("a.npy", &npy_bytes(1, &dict("|u1", fortran, text), &data)).unwrap();
        assert_eq!((array.shape.as_slice(), array.strides_elems.as_slice()), (shape, strides), "{text} {fortran}");
        assert_eq!(array.bytes(), &data[..array.len()]);
        assert_eq!(array.is_empty(), shape.contains(&0));
    }
}

#[test]
fn aligned_data_is_mapped_and_misaligned_data_copied() {
    for (pad, mapped) in [(0, true), (1, false)] {
        let mut header = dict("<f8", false, "(3,)");
        while (10 + header.len()) % 64 != pad {
            header.insert(header.len() - 1, ' ');
        }
        let array = read_bytes("a.npy", &npy_bytes(1, &header, &elements("f64"))).unwrap();
        assert_eq!(array.is_mapped(), mapped);
        assert_eq!(array.bytes(), elements("f64"));
        assert!(array.bytes().as_ptr().addr().is_multiple_of(8));
    }
}

#[test]
fn bad_headers_are_refused_with_a_reason() {
    let deep = "[".repeat(60_000);
    let huge = 1u64 << 62;
    let cases = [
        (dict("<f4", false, "(3,)").replace("'shape'", "'shapes'"), "unknown key `shapes`"),
        ("{'descr': '<f4', 'shape': (3,)}".to_owned(), "`fortran_order` is missing"),
        ("{'fortran_order': False, 'shape': (3,)}".to_owned(), "`descr` is missing"),
        ("{'descr': '<f4', 'fortran_order': False}".to_owned(), "`shape` is missing"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': ()}".to_owned(), "stands twice"),
        (dict("<f4", false, &format!("({huge}, {huge})")), "overflows"),
        (dict("<f4", false, &format!("({huge}, 0, {huge})")), "overflows"),
        (dict("<f4", false, &format!("({},)", u64::MAX)), "overflows"),
        (dict("<f4", false, "(99999999999999999999999,)"), "overflows"),
        (dict("<f4", false, "(-3,)"), "expected a length"),
        (dict("<f4", false, "(3.5,)"), "expected `,` or `)`"),
        (dict("<f4", false, "3"), "expected `(`"),
        (dict("<f4", false, &deep), "expected `(`"),
        (dict("<f4", false, "(4,)"), "needs 16 bytes, 12 are there"),
        (dict("|O", false, "(1,)"), "dtype `|O`"),
        (dict("|f4", false, "(1,)"), "dtype `|f4`"),
        (dict("<U7", false, "(1,)"), "dtype `<U7`"),
        (dict("", false, "(1,)"), "dtype ``"),
        (dict("é4", false, "(1,)"), "dtype `é4`"),
        ("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,)}".to_owned(), "structured dtype"),
        ("{'descr': '<f4".to_owned(), "expected a string"),
        ("{'descr': '<f4' 'shape'".to_owned(), "expected `,` or `}`"),
        ("{'descr': '<f4', 'fortran_order': 0, 'shape': (1,)}".to_owned(), "expected `True` or `False`"),
        (dict("<f4", false, "(3,)") + "x", "expected the end"),
        (String::new(), "expected `{`"),
    ];
    for (header, reason) in cases {
        let error = refusal("bad.npy", &npy_bytes(2, &header, &elements("f32")));
        assert!(error.contains(reason), "wanted {reason:?} in {error:?}");
    }
    let good = npy_bytes(1, &dict("<f4", false, "(3,)"), &elements("f32"));
    for at in 0..good.len() {
        refusal("cut.npy", &good[..at]);
    }
    let mut version = good.clone();
    version[6] = 9;
    assert!(refusal("bad.npy", &version).contains("version 9"));
    let mut claims = npy_bytes(2, "{}", &[]);
    claims[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    assert!(refusal("bad.npy", &claims).contains("a header of 4294967295 bytes"));
    let bools = npy_bytes(1, &dict("|b1", false, "(3,)"), &[0, 1, 2]);
    assert!(refusal("bad.npy", &bools).contains("element 2 of a bool array is 2"));
}

fn sample<'a>(bytes: &'a [u8]) -> [(&'static str, ArrayRef<'a>); 3] {
    [
        ("a", ArrayRef { dtype: "f32", shape: &[2, 3], bytes: &bytes[..24] }),
        ("deep/name", ArrayRef { dtype: "u8", shape: &[], bytes: &bytes[24..25] }),
        ("empty", ArrayRef { dtype: "i64", shape: &[0, 7], bytes: &[] }),
    ]
}

#[test]
fn archives_come_back_as_written() {
    let bytes: Vec<u8> = (7..32).collect();
    let folder = tempfile::tempdir().unwrap();
    for name in ["x.npz", "x.safetensors", "X.NPZ"] {
        let path = folder.path().join(name);
        write(&path, &sample(&bytes)).unwrap();
        assert_eq!(names(&path).unwrap(), ["a", "deep/name", "empty"]);
        for (name, array) in sample(&bytes) {
            let back = read(&format!("{}:{name}", path.display())).unwrap();
            assert_eq!((back.dtype.as_str(), back.shape.as_slice()), (array.dtype, array.shape));
            assert_eq!(back.bytes(), array.bytes);
        }
        let error = read(&format!("{}:b", path.display())).unwrap_err().to_string();
        assert!(error.contains("`b`") && error.contains("`deep/name`"), "{error}");
        assert!(read(path.to_str().unwrap()).unwrap_err().to_string().contains("not exactly one"));

        write(&path, &sample(&bytes)[..1]).unwrap();
        assert_eq!(read(path.to_str().unwrap()).unwrap().bytes(), &bytes[..24]);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn broken_archives_are_errors_and_never_panics() {
    let bytes: Vec<u8> = (7..32).collect();
    let folder = tempfile::tempdir().unwrap();
    for name in ["x.npz", "x.safetensors", "x.npy"] {
        let path = folder.path().join(name);
        write(&path, &sample(&bytes)[..1]).unwrap();
        let good = fs::read(&path).unwrap();
        for end in 0..good.len() {
            refusal(name, &good[..end]);
        }
        for at in 0..good.len() {
            for value in [0, 1, b'9', b'{', 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                // Damaged data may still be a sound file; what counts is that it is an answer.
                let _ = read_bytes(name, &bad).map(|array| array.bytes().len());
            }
        }
    }
}

fn safetensors_bytes(header: &str, data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
}

#[test]
fn safetensors_headers_are_checked() {
    let two = |second: u64| {
        // Two tensors whose ends add up beyond 64 bits.
        let first = u64::MAX / 2;
        format!(
            "{{\"a\":{{\"dtype\":\"U8\",\"shape\":[{first}],\"data_offsets\":[0,{first}]}},\
             \"b\":{{\"dtype\":\"U8\",\"shape\":[{second}],\"data_offsets\":[{first},{}]}}}}",
            first + second
        )
    };
    for header in [two(u64::MAX / 2), two(u64::MAX / 2 - 100), "[".repeat(100_000), "{".into(), String::new()] {
        refusal("bad.safetensors", &safetensors_bytes(&header, &[]));
    }
    let fp8 = r#"{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(refusal("bad.safetensors", &safetensors_bytes(fp8, &[1])).contains("dtype `F8_E4M3`"));
    let bf16 = r#"{"a":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}"#;
    let array = read_bytes("good.safetensors", &safetensors_bytes(bf16, &[0x80, 0x3f])).unwrap();
    assert_eq!((array.dtype.as_str(), array.bytes()), ("bf16", &0x3f80u16.to_ne_bytes()[..]));
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let bytes: Vec<u8> = (7..32).collect();
    let folder = tempfile::tempdir().unwrap();
    for name in ["x.npz", "x.npy", "x.safetensors"] {
        let path = folder.path().join(name);
        write(&path, &sample(&bytes)[..1]).unwrap();
        let before = fs::read(&path).unwrap();
        // The first array is written before the second turns out to be impossible.
        let bad = if name == "x.safetensors" { "c128" } else { "bf16" };
        let [first, ..] = sample(&bytes);
        let size = element_size(bad).unwrap();
        let impossible = ("b", ArrayRef { dtype: bad, shape: &[1], bytes: &bytes[..size] });
        write(&path, &[first, impossible]).unwrap_err();
        write(&path, &[("b", ArrayRef { dtype: "f32", shape: &[7], bytes: &bytes })]).unwrap_err();
        write(&path, &[("b", ArrayRef { dtype: "f31", shape: &[7], bytes: &bytes })]).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), before);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        fs::remove_file(&path).unwrap();
    }
    let nowhere = folder.path().join("no/such/x.npy");
    assert!(write(&nowhere, &sample(&bytes)[..1]).unwrap_err().to_string().starts_with("cannot write"));
}

#[test]
fn a_file_may_be_replaced_by_what_is_computed_from_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.npy");
    let old: Vec<u8> = (0..64).collect();
    write(&path, &[("", ArrayRef { dtype: "u8", shape: &[64], bytes: &old })]).unwrap();
    let mapped = read(path.to_str().unwrap()).unwrap();
    assert!(mapped.is_mapped());
    write(&path, &[("", ArrayRef { dtype: "u8", shape: &[2], bytes: &[8, 9] })]).unwrap();
    assert_eq!(mapped.bytes(), old);
    assert_eq!(read(path.to_str().unwrap()).unwrap().bytes(), [8, 9]);
}

#[test]
fn names_that_are_no_files_of_ours() {
    for (spec, reason) in [
        ("a.txt", "must end in"),
        ("a", "must end in"),
        ("no-such.npy", "cannot open"),
        ("no-such.npz:a", "cannot open `no-such.npz`"),
    ] {
        assert!(read(spec).unwrap_err().to_string().contains(reason), "{spec}");
    }
    assert_eq!(split_name("c:/x.npy"), (Path::new("c:/x.npy"), None));
    assert_eq!(split_name("c:/x.npz:a"), (Path::new("c:/x.npz"), Some("a")));
    assert_eq!(split_name("c:/x.npz"), (Path::new("c:/x.npz"), None));
}

/// Runs a script if there is a Python with NumPy; says so if not.
fn numpy(script: &str, folder: &Path) -> Option<String> {
    let python = crate::bench::peers::find_python(None)?;
    let run = |text: &str| Command::new(&python).args(["-c", text]).current_dir(folder).output().ok();
    if !run("import numpy")?.status.success() {
        eprintln!("skipped: {} has no numpy", python.display());
        return None;
    }
    let output = run(script)?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn files_of_numpy_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let script = "
import numpy as np
for code in 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16'.split():
    a = np.arange(30).reshape(2, 3, 5) % 7
    a = (a % 2 if code == 'b1' else a * (1 + 2j) if code[0] == 'c' else a).astype('<' + code)
    np.save(f'{code}.npy', a)
    np.save(f'{code}-big.npy', a.astype(a.dtype.newbyteorder('>')))
    np.save(f'{code}-fortran.npy', np.asfortranarray(a))
    np.savez(f'{code}.npz', first=a, second=a[0])
    np.savez_compressed(f'{code}-packed.npz', first=a, second=a[0], large=np.zeros(300_000, a.dtype))
    a.tofile(f'{code}.raw')
    a.transpose(2, 1, 0).tofile(f'{code}.raw-fortran')
np.save('structured.npy', np.zeros(3, [('x', '<f4')]))
np.save('object.npy', np.array([None]), allow_pickle=True)
";
    if numpy(script, folder.path()).is_none() {
        return;
    }
    let at = |name: String| folder.path().join(name).display().to_string();
    for (code, dtype) in NPY_DTYPES {
        let raw = fs::read(at(format!("{code}.raw"))).unwrap();
        let fortran = fs::read(at(format!("{code}.raw-fortran"))).unwrap();
        for name in [".npy", "-big.npy", "-fortran.npy", ".npz:first", "-packed.npz:first", ".npz:second"] {
            let array = read(&at(format!("{code}{name}"))).unwrap();
            let second = name.ends_with("second");
            let wanted = match name {
                "-fortran.npy" => &fortran,
                _ if second => &raw[..raw.len() / 2],
                _ => &raw[..],
            };
            assert_eq!(array.dtype, dtype);
            assert_eq!(array.shape, if second { &[3, 5][..] } else { &[2, 3, 5] });
            assert_eq!(
                array.strides_elems[0],
                if name == "-fortran.npy" { 1 } else { 15 / if second { 3 } else { 1 } }
            );
            assert_eq!(array.bytes(), wanted, "{code}{name}");
            assert!(name != ".npy" || array.is_mapped());
        }
        assert_eq!(read(&at(format!("{code}-packed.npz:large"))).unwrap().len(), 300_000);
    }
    for name in ["structured.npy", "object.npy"] {
        assert!(read(&at(name.to_owned())).unwrap_err().to_string().contains("not supported"));
    }
    let packed = fs::read(at("f4-packed.npz".to_owned())).unwrap();
    for end in (0..packed.len()).step_by(7) {
        refusal("cut.npz", &packed[..end]);
    }
    for at in 0..packed.len() {
        let mut bad = packed.clone();
        bad[at] ^= 0x15;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("bad.npz");
        fs::write(&path, &bad).unwrap();
        if let Ok(array) = read(&format!("{}:large", path.display())) {
            // Damage outside of this member goes unseen; inside, the checksum tells.
            assert!(array.bytes().iter().all(|&byte| byte == 0), "byte {at}");
        }
    }
}

#[test]
fn names_may_hold_colons_and_not_every_name_is_free() {
    let folder = tempfile::tempdir().unwrap();
    let scalar = ArrayRef { dtype: "f32", shape: &[], bytes: &[0; 4] };
    for name in ["a.npz", "a.safetensors"] {
        let path = folder.path().join(name);
        write(&path, &[("x:y", scalar)]).unwrap();
        assert!(read(&format!("{}:x:y", path.display())).is_ok(), "{name}");
    }
    assert_eq!(split_name("dir:a.npz:x:y"), (Path::new("dir:a.npz"), Some("x:y")));
    let error = write(&folder.path().join("b.safetensors"), &[("__metadata__", scalar)]).unwrap_err();
    assert!(error.to_string().contains("keeps the name `__metadata__` for itself"), "{error}");
}

#[test]
fn numpy_reads_our_files() {
    let folder = tempfile::tempdir().unwrap();
    for (code, dtype) in NPY_DTYPES {
        let array = ArrayRef { dtype, shape: &[3, 1], bytes: &elements(dtype) };
        write(&folder.path().join(format!("{code}.npy")), &[("", array)]).unwrap();
        write(&folder.path().join(format!("{code}.npz")), &[("x", array), ("y", array)]).unwrap();
    }
    let zero = ArrayRef { dtype: "f64", shape: &[], bytes: &[0; 8] };
    write(&folder.path().join("zero.npy"), &[("", zero)]).unwrap();
    let script = "
import numpy as np
assert np.load('zero.npy').shape == ()
for code in 'b1 i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16'.split():
    archive = np.load(f'{code}.npz')
    for a in np.load(f'{code}.npy'), archive['x'], archive['y']:
        assert a.dtype == np.dtype(code) and a.shape == (3, 1), (code, a.dtype, a.shape)
        wanted = [i % 2 if code == 'b1' else i for i in range(1, a.nbytes + 1)]
        assert list(a.tobytes()) == wanted, code
print('read')
";
    if let Some(output) = numpy(script, folder.path()) {
        assert_eq!(output.trim(), "read");
    }
}
