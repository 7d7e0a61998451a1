//! Why a command ended without its result: a message in the house style and an exit code.
//!
//! In: an error of any part. Out: a [`Failure`], which `main` prints after `error: ` and turns into the exit code.
//! Text that the library words for its callers is reworded here for the command line.

use std::fmt;
use std::io::{self, Write};

use einfall::{BindError, CudaError, Diagnostic, Equation, Error, RunError, TensorError};

use crate::files::FileError;

/// Exit code for what the caller can put right: arguments, files, shapes, dtypes.
pub const BAD_INPUT: u8 = 2;
/// Exit code for what the caller cannot: no memory, a wrong result in a benchmark.
pub const INTERNAL: u8 = 1;

/// A message without `error: `, its hint on a line of its own, and an exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What happened.
    pub message: String,
    /// [`BAD_INPUT`] or [`INTERNAL`].
    pub code: u8,
}

impl Failure {
    /// Something the caller can put right.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: BAD_INPUT }
    }

    /// Something the caller cannot put right.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: INTERNAL }
    }

    /// Whether the reader of our output went away, which is no error.
    pub fn is_broken_pipe(&self) -> bool {
        self.code == 0
    }
}

/// Lets a panic be told like any other failure: that it is a bug of ours, where, and what to do. With `RUST_BACKTRACE`
/// set Rust's own report comes before that. For the program itself: the hook is that of the whole process.
pub fn report_panics() {
    let rusts = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
            rusts(panic);
        }
        // Where standard error is gone there is nobody to tell.
        let _ = writeln!(io::stderr(), "error: {}", Failure::bug(panic.location()));
    }));
}

impl Failure {
    /// A mistake of ours, which the caller can do nothing about but report.
    fn bug(at: Option<&std::panic::Location<'_>>) -> Self {
        let place = at.map_or_else(String::new, |at| format!(", at {}:{}", at.file(), at.line()));
        Self::internal(format!(
            "einfall has a bug{place}\nhint: please report it, with what the same command prints under `RUST_BACKTRACE=1`"
        ))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::bad_input(error.to_string())
    }
}

impl From<CudaError> for Failure {
    fn from(error: CudaError) -> Self {
        Self::bad_input(error.to_string())
    }
}

/// From writing to standard output.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self { message: String::new(), code: 0 },
            _ => Self::internal(format!("cannot write the output: {error}")),
        }
    }
}

impl Failure {
    /// What a call of the library says, pointing at its equation where it is about a place in it.
    pub fn of_call(error: &Error, equation: &Equation) -> Self {
        let drawn = match error {
            Error::Run(RunError::TableValue { .. }) => error.diagnostic(equation),
            _ => None,
        };
        let mut failure = Self::from(error);
        if let Some(diagnostic) = drawn {
            let hint = Some("`--bounds skip` leaves such terms out".to_owned());
            failure.message = Diagnostic { hint, ..diagnostic }.to_string();
        }
        failure
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        let code = match error {
            Error::Run(RunError::Changed | RunError::OutOfMemory { .. }) => INTERNAL,
            Error::Tensor(TensorError::OutOfMemory { .. }) => INTERNAL,
            _ => BAD_INPUT,
        };
        Self { message: reworded(error), code }
    }
}

/// The library's text, with the options of the command line instead of keyword arguments.
fn reworded(error: &Error) -> String {
    match error {
        Error::Run(RunError::TableValue { argument, position, value, len }) => format!(
            "table argument {argument} holds {value} at {position:?}, outside the axis of length {len}\n\
             hint: `--bounds skip` leaves such terms out"
        ),
        Error::Bind(BindError::MissingSize(diagnostic)) => with_hint(diagnostic),
        Error::Bind(BindError::UnknownSize(diagnostic)) => {
            Diagnostic { message: diagnostic.message.replace("`sizes` names", "`-s` names"), ..(**diagnostic).clone() }
                .to_string()
        }
        Error::Bind(BindError::SizeConflict(diagnostic)) => {
            Diagnostic { message: diagnostic.message.replace("in `sizes`", "in `-s`"), ..(**diagnostic).clone() }
                .to_string()
        }
        Error::Plan(error) => error.to_string().replace("`memory_limit`", "`--memory-limit`"),
        other => other.to_string(),
    }
}

/// The hint names a key with a length, `[e]=1000`; a shell wants brackets quoted.
fn with_hint(diagnostic: &Diagnostic) -> String {
    let hint = diagnostic.hint.as_deref().unwrap_or("");
    let example = hint.split('`').find(|text| text.contains('='));
    let quoted = match example {
        Some(example) if example.starts_with('[') => format!("'{example}'"),
        Some(example) => example.to_owned(),
        None => "w=9".to_owned(),
    };
    // What may have been meant goes before it.
    let before = hint.split_once("name it in `sizes`").map_or("", |(before, _)| before);
    let hint = format!("{before}give it with `-s`, as in `-s {quoted}`");
    Diagnostic { hint: Some(hint), ..diagnostic.clone() }.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bug_is_told_in_words() {
        let here = std::panic::Location::caller();
        let failure = Failure::bug(Some(here));
        let wanted = format!("einfall has a bug, at {}:{}\nhint: please report it", here.file(), here.line());
        assert!(failure.code == INTERNAL && failure.message.starts_with(&wanted), "{failure}");
    }
}
