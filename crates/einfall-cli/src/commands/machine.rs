//! `einfall machine`: measures, prints and saves the rates of this processor, or of a GPU.

use std::io::Write;
use std::path::Path;
use std::time::Duration;

use einfall::{CpuDevice, Device, Error, Machine, default_device, machine_cache_path};
use serde_json::json;

use super::write_json;
use crate::arguments::MachineArgs;
use crate::bench::units;
use crate::device::DeviceArg;
use crate::failure::Failure;
use crate::host;

pub(super) fn run(args: &MachineArgs, out: &mut dyn Write) -> Result<(), Failure> {
    match args.device {
        DeviceArg::Cpu => measure(args, out),
        DeviceArg::H100 => {
            let opened = host::open_to_plan(args.device, args.threads, None)?;
            describe(args, opened.device().machine(), None, None, out)
        }
        DeviceArg::Cuda(_) => {
            let opened = host::open(args.device, args.threads, None)?;
            let gpu = opened.gpu().expect("a GPU was opened");
            let measured = host::measure_gpu(gpu, args.json)?;
            let saved = if args.no_save { None } else { machine_cache_path(&measured.machine) };
            if let Some(path) = &saved {
                save(path, &measured.machine)?;
            }
            describe(args, &measured.machine, Some(measured.bf16_flops_per_second), saved.as_deref(), out)
        }
    }
}

/// What the planner is told of a GPU.
fn describe(
    args: &MachineArgs,
    machine: &Machine,
    bf16: Option<f64>,
    saved: Option<&Path>,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if args.json {
        let document = json!({"format": 1, "device": args.device.to_string(), "machine": machine, "saved": saved});
        return write_json(out, &document);
    }
    writeln!(out, "{}, {} multiprocessors, {}", machine.name, machine.threads, machine.isa)?;
    let (shared, l2) = (machine.l1_bytes >> 10, machine.l2_bytes >> 20);
    writeln!(out, "shared memory {shared} KiB a block, L2 {l2} MiB")?;
    let looked_up = [("look up rows in the L2", machine.l2_bytes_per_second)];
    write_rates(out, machine, &looked_up, "launch a kernel")?;
    if let Some(rate) = bf16 {
        writeln!(out, "  {:<28} {:>14}", "bf16 matrix products", format!("{}/s", units::flop(rate)))?;
    }
    if !machine.measured {
        writeln!(out, "these rates are estimates, from the number of its parts and their clocks")?;
    }
    if let Some(path) = saved {
        writeln!(out, "saved as {}", path.display())?;
    }
    Ok(())
}

fn measure(args: &MachineArgs, out: &mut dyn Write) -> Result<(), Failure> {
    // The device knows which instructions the environment asks for.
    let isa = match args.threads {
        Some(threads) => CpuDevice::new(threads).map_err(Error::from)?.isa(),
        None => default_device()?.isa(),
    };
    let threads = match args.threads {
        Some(threads) => threads,
        None => default_device()?.machine().threads,
    };
    let machine = host::measure(isa, threads, Duration::from_secs_f64(args.budget), args.json)?;
    let saved = if args.no_save { None } else { machine_cache_path(&machine) };
    if let Some(path) = &saved {
        save(path, &machine)?;
    }
    if args.json {
        return write_json(out, &json!({"format": 1, "machine": machine, "saved": saved}));
    }
    write_table(out, &machine)?;
    match saved {
        Some(path) => writeln!(out, "saved as {}", path.display())?,
        None if !args.no_save => writeln!(out, "not saved: neither XDG_CACHE_HOME nor HOME is set")?,
        None => {}
    }
    Ok(())
}

/// Writes the description so that it appears whole or not at all.
fn save(path: &Path, machine: &Machine) -> Result<(), Failure> {
    let failed = |error: std::io::Error| Failure::bad_input(format!("cannot write `{}`: {error}", path.display()));
    let text = serde_json::to_string_pretty(machine).map_err(|error| Failure::internal(error.to_string()))?;
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    writeln!(file, "{text}").map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

fn write_table(out: &mut dyn Write, machine: &Machine) -> Result<(), Failure> {
    let s = if machine.threads == 1 { "" } else { "s" };
    writeln!(out, "{}, {} thread{s}, {}", machine.name, machine.threads, machine.isa)?;
    let kib = |bytes: usize| format!("{} KiB", bytes >> 10);
    writeln!(
        out,
        "caches: L1 {} and L2 {} a core, L3 {}",
        kib(machine.l1_bytes),
        kib(machine.l2_bytes),
        kib(machine.l3_bytes)
    )?;
    let looked_up = [
        ("look up rows of 128 B in L2", machine.l2_bytes_per_second),
        ("look up rows of 128 B in L3", machine.l3_bytes_per_second),
    ];
    write_rates(out, machine, &looked_up, "start and join threads")
}

fn write_rates(out: &mut dyn Write, machine: &Machine, looked_up: &[(&str, f64)], fork: &str) -> Result<(), Failure> {
    let bytes = |rate: f64| format!("{}/s", units::bytes(rate));
    let flops = |rate: f64| format!("{}/s", units::flop(rate));
    let mut rows = vec![
        ("read memory", bytes(machine.read_bytes_per_second)),
        ("write memory", bytes(machine.write_bytes_per_second)),
    ];
    rows.extend(looked_up.iter().map(|&(name, rate)| (name, bytes(rate))));
    rows.extend([
        ("f32 multiply-adds", flops(machine.f32_flops_per_second)),
        ("f64 multiply-adds", flops(machine.f64_flops_per_second)),
        (fork, units::seconds(machine.fork_seconds)),
    ]);
    for (name, rate) in rows {
        writeln!(out, "  {name:<28} {rate:>14}")?;
    }
    Ok(())
}
