//! A folder to run the command in, with arrays to run it on.
#![allow(dead_code)] // each test binary uses a part

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use einfall_cli::files::{self, ArrayRef};
use tempfile::TempDir;

/// A folder of its own, also for what the command keeps.
pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        let place = Self(TempDir::new().unwrap());
        std::fs::create_dir(place.path("work")).unwrap();
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Where the command runs.
    pub fn work(&self) -> PathBuf {
        self.path("work")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_einfall"));
        command.args(arguments).current_dir(self.work());
        command.env("XDG_CACHE_HOME", self.path("cache")).env("EINFALL_THREADS", "2");
        command.env_remove("EINFALL_ISA").env_remove("COLUMNS").env_remove("VIRTUAL_ENV");
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Ran {
        Ran::from(self.command(arguments).output().unwrap())
    }

    /// Writes an array of f32 in the format that the name ends in.
    pub fn f32(&self, name: &str, shape: &[usize], values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        self.array(name, ArrayRef { dtype: "f32", shape, bytes: &bytes });
    }

    /// The same of i64.
    pub fn i64(&self, name: &str, shape: &[usize], values: &[i64]) {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_ne_bytes()).collect();
        self.array(name, ArrayRef { dtype: "i64", shape, bytes: &bytes });
    }

    fn array(&self, name: &str, array: ArrayRef<'_>) {
        let (path, inside) = files::split_name(name);
        files::write(&self.work().join(path), &[(inside.unwrap_or("array"), array)]).unwrap();
    }

    /// Reads an array of f32 back.
    pub fn read_f32(&self, name: &str) -> (Vec<usize>, Vec<f32>) {
        let array = files::read(self.work().join(name).to_str().unwrap()).unwrap();
        assert_eq!(array.dtype, "f32");
        let values = array.bytes().chunks_exact(4).map(|bytes| f32::from_ne_bytes(bytes.try_into().unwrap()));
        (array.shape.clone(), values.collect())
    }

    /// What lies in the folder that the command runs in.
    pub fn listing(&self) -> Vec<String> {
        list(&self.work())
    }
}

pub fn list(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// What the command said, and how it ended.
#[derive(Debug)]
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Ran {
    /// The output of a command that must not fail.
    #[track_caller]
    pub fn out(&self) -> &str {
        assert_eq!(self.code, Some(0), "{self:?}");
        &self.stdout
    }

    /// Its output as JSON.
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(self.out()).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
