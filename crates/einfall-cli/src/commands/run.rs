//! `einfall run`: arrays in files in, an array in a file (or values on the terminal) out.

use std::io::Write;
use std::path::Path;
use std::time::Instant;

use einfall::{DType, Einsum, Equation, Tensor, TensorError, View, half, num_complex};
use serde_json::{Value, json};

use super::{view, with_sizes, write_json};
use crate::arguments::RunArgs;
use crate::bench::units;
use crate::failure::Failure;
use crate::files::{self, ArrayRef, StoredArray};
use crate::host;
use crate::sizes::Lengths;

/// Most values that are printed.
const MOST_PRINTED: usize = 1000;

pub(super) fn run(args: &RunArgs, out: &mut dyn Write) -> Result<(), Failure> {
    let equation = Equation::parse(&args.equation).map_err(einfall::Error::from)?;
    let lengths = Lengths::new(&args.size).map_err(Failure::bad_input)?;
    // Whatever is wrong with the target is said before anything is computed.
    let target = args.output.as_deref().map(Target::new).transpose()?;
    if let Some(target) = target.as_ref().filter(|_| !args.force) {
        target.check_inputs(&args.files)?;
    }
    let arrays: Vec<StoredArray> = args.files.iter().map(|file| files::read(file)).collect::<Result<_, _>>()?;
    let views: Vec<View<'_>> = arrays.iter().map(view).collect::<Result<_, _>>()?;
    let opened = host::open(args.device, args.threads, None)?;
    let einsum = with_sizes(Einsum::new(&args.equation), &lengths.for_library(&equation));
    let einsum = einsum.bounds(args.bounds.into()).device(opened.device());
    let einsum = args.dtype.into_iter().fold(einsum, Einsum::dtype);
    let einsum = args.memory_limit.into_iter().fold(einsum, Einsum::memory_limit);
    let start = Instant::now();
    let result = einsum.run(&views).map_err(|error| Failure::of_call(&error, &equation))?;
    let seconds = start.elapsed().as_secs_f64();
    if let Some(target) = &target {
        target.write(&result)?;
    }
    let printed = target.is_none() && is_short(result.shape());
    if args.json {
        let values = if printed { Some(nested(&elements(&result)?, result.shape())) } else { None };
        let document = json!({
            "format": 1,
            "equation": equation.to_string(),
            "shape": result.shape(),
            "dtype": result.dtype().name(),
            "device": args.device.to_string(),
            "seconds": seconds,
            "output": args.output,
            "values": values,
        });
        return write_json(out, &document);
    }
    let copied = opened.gpu().map_or("", |_| ", with what it takes to compile kernels and to copy there and back");
    writeln!(out, "{:?} {} in {}{copied}", result.shape(), result.dtype(), units::seconds(seconds))?;
    match &args.output {
        Some(output) => writeln!(out, "written to {output}")?,
        None if printed => writeln!(out, "{}", brackets(&elements(&result)?, result.shape(), 0))?,
        None => writeln!(out, "{} values, not printed; write them with `-o FILE`", count(&result))?,
    }
    Ok(())
}

fn count(tensor: &Tensor) -> usize {
    tensor.as_bytes().len() / tensor.dtype().bytes()
}

/// Whether a tensor is short to print: an empty one may still have very many empty lists.
fn is_short(shape: &[usize]) -> bool {
    shape.iter().fold(1, |brackets: usize, &len| brackets.saturating_mul(len.max(1))) <= MOST_PRINTED
}

/// Where the result goes.
struct Target<'a> {
    path: &'a Path,
    name: &'a str,
}

impl<'a> Target<'a> {
    fn new(text: &'a str) -> Result<Self, Failure> {
        let (path, name) = files::split_name(text);
        files::check_name(path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
            return Err(Failure::bad_input(format!(
                "cannot write `{}`: there is no folder `{}`",
                path.display(),
                folder.display()
            )));
        }
        let name = name.unwrap_or("result");
        // Writing replaces the file: an archive must not lose what is not written.
        let kept: Vec<String> = match files::names(path) {
            Ok(names) => names.into_iter().filter(|other| !other.is_empty() && other != name).collect(),
            Err(_) => Vec::new(),
        };
        if !kept.is_empty() {
            let names = kept.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
            return Err(Failure::bad_input(format!(
                "`{}` holds other arrays, which would be lost: {names}\nhint: write to a file of its own",
                path.display()
            )));
        }
        Ok(Self { path, name })
    }

    /// Refuses a target that is one of the inputs, under whatever name.
    fn check_inputs(&self, inputs: &[String]) -> Result<(), Failure> {
        // A pipe is never an input, and asking whose it is would wait for somebody to write into it.
        let is_file = |path: &Path| path.metadata().is_ok_and(|about| about.is_file());
        let same = |input: &&String| {
            let (path, _) = files::split_name(input);
            is_file(self.path) && is_file(path) && same_file::is_same_file(self.path, path).unwrap_or(false)
        };
        let Some(input) = inputs.iter().find(same) else { return Ok(()) };
        let (output, (input, _)) = (self.path.display(), files::split_name(input));
        let is_it = if self.path == input {
            format!("`{output}` is an input")
        } else {
            format!("`{output}` is the same file as the input `{}`", input.display())
        };
        Err(Failure::bad_input(format!(
            "{is_it} and would be overwritten\nhint: write to another file, or add `--force`"
        )))
    }

    fn write(&self, result: &Tensor) -> Result<(), Failure> {
        let dtype = result.dtype().name();
        let array = ArrayRef { dtype, shape: result.shape(), bytes: result.as_bytes() };
        Ok(files::write(self.path, &[(self.name, array)])?)
    }
}

/// An element for people and for programs: what JSON has no number for is null, a complex number a pair.
struct Element {
    text: String,
    json: Value,
}

fn integer(value: impl std::fmt::Display + serde::Serialize) -> Element {
    Element { text: value.to_string(), json: json!(value) }
}

fn real(value: impl std::fmt::Display) -> Element {
    // Through the shortest text, so that an f32 looks like one and not like its neighbour in f64.
    let text = value.to_string();
    let json = text.parse::<f64>().map_or(Value::Null, |value| json!(value));
    Element { text, json }
}

fn complex(value: num_complex::Complex<impl std::fmt::Display>) -> Element {
    let (re, im) = (real(value.re), real(value.im));
    let sign = if im.text.starts_with('-') { "" } else { "+" };
    Element { text: format!("{}{sign}{}i", re.text, im.text), json: json!([re.json, im.json]) }
}

fn elements(tensor: &Tensor) -> Result<Vec<Element>, Failure> {
    fn each<T: einfall::Element>(tensor: &Tensor, of: impl Fn(T) -> Element) -> Result<Vec<Element>, TensorError> {
        Ok(tensor.as_slice::<T>()?.iter().map(|&value| of(value)).collect())
    }
    let elements = match tensor.dtype() {
        DType::Bool => each::<bool>(tensor, integer),
        DType::I8 => each::<i8>(tensor, integer),
        DType::I16 => each::<i16>(tensor, integer),
        DType::I32 => each::<i32>(tensor, integer),
        DType::I64 => each::<i64>(tensor, integer),
        DType::U8 => each::<u8>(tensor, integer),
        DType::U16 => each::<u16>(tensor, integer),
        DType::U32 => each::<u32>(tensor, integer),
        DType::U64 => each::<u64>(tensor, integer),
        DType::F16 => each::<half::f16>(tensor, real),
        DType::BF16 => each::<half::bf16>(tensor, real),
        DType::F32 => each::<f32>(tensor, real),
        DType::F64 => each::<f64>(tensor, real),
        DType::C64 => each::<num_complex::Complex<f32>>(tensor, complex),
        DType::C128 => each::<num_complex::Complex<f64>>(tensor, complex),
    };
    elements.map_err(|error| Failure::internal(error.to_string()))
}

/// Nested lists for programs.
fn nested(elements: &[Element], shape: &[usize]) -> Value {
    match shape {
        [] => elements[0].json.clone(),
        [len, rest @ ..] => parts(*len, rest).map(|part| nested(&elements[part], rest)).collect(),
    }
}

/// Nested lists for people, one innermost list a line.
fn brackets(elements: &[Element], shape: &[usize], depth: usize) -> String {
    let (len, rest) = match shape {
        [] => return elements[0].text.clone(),
        [len, rest @ ..] => (*len, rest),
    };
    let items: Vec<String> = parts(len, rest).map(|part| brackets(&elements[part], rest, depth + 1)).collect();
    let between = if rest.is_empty() { ", ".to_owned() } else { format!(",\n{}", " ".repeat(depth + 1)) };
    format!("[{}]", items.join(&between))
}

/// The elements of each part of an axis.
fn parts(len: usize, rest: &[usize]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let each: usize = rest.iter().product();
    (0..len).map(move |at| at * each..(at + 1) * each)
}
