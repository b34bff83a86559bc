//! The first process of a virtual machine with another kernel: prepares the machine as an init
//! does, runs what `nearhop.test=` on the kernel's command line asks for, and reports on the console
//! what `cargo xtask test` counts: `PASS name`, `FAIL name: why`, `SKIP name: why`, then `DONE`.
#![expect(clippy::print_stdout, reason = "the console is the report")]

mod load;
mod walk;

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};
use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, reboot},
};

const MOUNTS: &[(&str, &str)] = &[
    ("proc", "/proc"),
    ("sysfs", "/sys"),
    ("devtmpfs", "/dev"),
    ("tmpfs", "/tmp"),
    ("tmpfs", "/run"),
    ("cgroup2", "/sys/fs/cgroup"),
    ("bpf", "/sys/fs/bpf"),
];

fn main() -> Result<()> {
    report("boot", boot());
    match mode().as_deref() {
        Ok("load") => load::run(),
        Ok("walk") => report("walk", walk::run()),
        Ok(unknown) => report(
            unknown,
            Err(anyhow::anyhow!("the guest knows no such test")),
        ),
        Err(error) => report("mode", Err(anyhow::anyhow!("{error:#}"))),
    }
    println!("DONE");
    rustix::fs::sync();
    // qemu was started with -no-reboot, so this ends it.
    reboot(RebootCommand::Restart)?;
    Ok(())
}

fn boot() -> Result<()> {
    for (kind, place) in MOUNTS {
        fs::create_dir_all(place).with_context(|| (*place).to_owned())?;
        mount(*kind, *place, *kind, MountFlags::empty(), None)
            .with_context(|| format!("mounting {kind} on {place}"))?;
    }
    run("/bin/ip", &["link", "set", "lo", "up"])
}

fn mode() -> Result<String> {
    let line = fs::read_to_string("/proc/cmdline")?;
    let words = line.split_whitespace();
    let mode = words
        .filter_map(|word| word.strip_prefix("nearhop.test="))
        .next_back();
    mode.map(str::to_owned)
        .context("no nearhop.test= on the kernel's command line")
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let status = Command::new(program)
        .args(args)
        .status()
        .with_context(|| program.to_owned())?;
    ensure!(status.success(), "{program} {}: {status}", args.join(" "));
    Ok(())
}

fn report(name: &str, result: Result<()>) {
    match result {
        Ok(()) => println!("PASS {name}"),
        Err(error) => println!("FAIL {name}: {error:#}"),
    }
}
