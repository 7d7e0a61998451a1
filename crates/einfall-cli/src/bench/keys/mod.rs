//! `einfall bench keys`: each query attends to k keys of its own; how does time grow with k, and on what does it depend?
//!
//! In: the command line. Out: tables and a summary on the terminal (or the JSON document), `keys.json`, `keys.html` and an SVG an
//! operation. Each result is compared with plain loops; a wrong one of ours fails the run after everything is written.

mod data;
mod options;
mod oracle;
mod ours;
mod rivals;
mod run;
mod softmax;
mod write;

use std::io::Write;
use std::time::Duration;

use einfall::{Device, Isa, Machine};

use super::record::{self, BenchReport, Settings};
use super::{summary, table, units};
use crate::Surroundings;
use crate::arguments::KeysArgs;
use crate::failure::Failure;
use crate::host::Opened;
use crate::{host, interrupt};
use options::Options;

/// Runs the experiment, and writes what it found to `out` and to files.
///
/// # Errors
/// [`Failure`]: what was asked for makes no sense, files cannot be written, or a result of ours is wrong.
pub fn run(args: &KeysArgs, surroundings: &Surroundings<'_>, out: &mut dyn Write) -> Result<(), Failure> {
    interrupt::watch();
    let options = Options::new(args)?;
    check_memory(&options)?;
    let folder = write::Folder::open(&args.out)?;
    let report = measured(args, &options, surroundings)?;
    folder.write(&report)?;
    if args.json {
        out.write_all(report.to_json().as_bytes())?;
    } else {
        table::write(out, &report)?;
        writeln!(out)?;
        for line in summary::lines(&report) {
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{}", folder.written(&report))?;
    }
    out.flush()?;
    check_results(&report)
}

/// Runs the experiment, and writes no files.
///
/// # Errors
/// As [`run`].
pub fn measure(args: &KeysArgs, surroundings: &Surroundings<'_>) -> Result<BenchReport, Failure> {
    let options = Options::new(args)?;
    check_memory(&options)?;
    let report = measured(args, &options, surroundings)?;
    check_results(&report)?;
    Ok(report)
}

fn measured(args: &KeysArgs, options: &Options, surroundings: &Surroundings<'_>) -> Result<BenchReport, Failure> {
    let opened = measured_device(args, options)?;
    let machine = opened.device().machine();
    let mut report = BenchReport {
        machine: about(machine, options),
        settings: Settings {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            unix_time: write::unix_time(),
            threads: machine.threads,
            dtype: options.dtype.name().to_owned(),
            table_dtype: options.table_dtype.name().to_owned(),
            sizes: options.sizes,
            peers: std::collections::BTreeMap::new(),
            command: write::command(surroundings.words.iter().cloned()),
        },
        ..BenchReport::default()
    };
    run::measure(args, options, &opened, surroundings.interpreter, &mut report)?;
    Ok(report)
}

/// Fails where a result of ours is wrong.
fn check_results(report: &BenchReport) -> Result<(), Failure> {
    let wrong: Vec<String> = report
        .rows
        .iter()
        .filter(|row| row.is_ours() && !row.ok)
        .map(|row| format!("{} {} k={}", row.op, row.case, row.k))
        .collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Failure::internal(format!("einfall's result is wrong: {}", wrong.join(", "))))
}

/// Refuses data that there is no room for, which would end the process.
fn check_memory(options: &Options) -> Result<(), Failure> {
    let needed = options.data_bytes();
    let Some(free) = host::available_bytes().map(|bytes| bytes as f64).filter(|free| needed > *free) else {
        return Ok(());
    };
    let (needed, free) = (units::bytes(needed), units::bytes(free));
    Err(Failure::bad_input(format!("{} takes {needed} of memory and {free} are free", options.sizes)))
}

/// The device with rates that somebody measured: given, saved, or measured now. Those of a GPU are estimates.
fn measured_device(args: &KeysArgs, options: &Options) -> Result<Opened, Failure> {
    let device = match host::open(options.device, args.threads, args.machine.as_deref())? {
        Opened::Cpu(device) if !device.machine().measured && args.machine.is_none() => device,
        opened => return Ok(opened),
    };
    let budget = Duration::from_secs_f64(if args.quick { 0.7 } else { 3.0 });
    let isa: Isa = device.isa();
    let machine = host::measure(isa, device.machine().threads, budget, args.json)?;
    Ok(Opened::Cpu(device.with_machine(machine)))
}

fn about(machine: &Machine, options: &Options) -> record::Machine {
    let on_cpu = !host::is_gpu(machine);
    record::Machine {
        cpu: machine.name.clone(),
        isa: machine.isa.clone(),
        cores: if on_cpu { std::thread::available_parallelism().map_or(1, usize::from) } else { 0 },
        memory_bytes: host::memory_bytes().filter(|_| on_cpu).unwrap_or(0),
        os: format!("{} {}", std::env::consts::OS, std::env::consts::ARCH),
        read_bytes_per_s: Some(machine.read_bytes_per_second),
        flops_per_s: Some(machine.flops_per_second(options.dtype)),
    }
}
