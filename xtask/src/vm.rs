//! Other kernels: one of Debian's, booted under software emulation with the shipped agent and the
//! kernel object. The guest's first process is lb-tests' `vm_guest`, which tests and reports on the
//! console. Its words: `PASS name`, `FAIL name: why`, `SKIP name: why`, and `DONE` before it ends.

mod initramfs;
mod kernel;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};

pub(crate) use kernel::{KERNELS, Kernel};

use self::initramfs::Initramfs;
use crate::{
    build,
    run::{self, Event},
    tally::Tally,
    toolchain::{self, Need},
    tree::Tree,
};

/// What a guest is booted for.
struct Mode {
    name: &'static str,
    /// The kernel on which it is tried when nobody asks for another.
    kernel: &'static str,
    cpus: u32,
    options: &'static str,
}

const MODES: &[Mode] = &[
    // The shipped agent and real sockets, on the oldest kernel that nearhop runs on.
    Mode {
        name: "load",
        kernel: "5.10",
        cpus: 2,
        options: "",
    },
    // Lists are swapped while a program walks them. With one CPU, membarrier waits for nobody; that
    // shows only where a program can be preempted, which 5.10 (not a preemptible kernel) and 6.12
    // (a test run disables softirqs) do not do.
    Mode {
        name: "walk",
        kernel: "6.1",
        cpus: 1,
        options: "preempt=full",
    },
];

/// Emulation is some twenty times slower than the machine.
const LIMIT: Duration = Duration::from_secs(8 * 60);

const BOOTS: u32 = 4;

/// Boots each kernel asked for in each mode, or each mode on its own kernel, as far as the mode's
/// name contains `filter`.
pub(crate) fn test(tree: &Tree, asked: &[String], filter: Option<&str>) -> Result<Tally> {
    toolchain::ensure(&[Need::Qemu, Need::Iproute2])?;
    let initrd = initrd(tree)?;
    let mut tally = Tally::default();
    for kernel in KERNELS {
        for mode in MODES
            .iter()
            .filter(|mode| mode.is_wanted(kernel, asked, filter))
        {
            let image = kernel.fetch(tree)?;
            tally.add(boot(kernel, mode, &image, &initrd)?);
        }
    }
    Ok(tally)
}

impl Mode {
    fn is_wanted(&self, kernel: &Kernel, asked: &[String], filter: Option<&str>) -> bool {
        let on_this_kernel = match asked {
            [] => self.kernel == kernel.version,
            asked => asked.iter().any(|version| version == kernel.version),
        };
        on_this_kernel && filter.is_none_or(|filter| self.name.contains(filter))
    }
}

/// Packs everything a guest needs: itself, the agent and the programs that the agent does not embed.
fn initrd(tree: &Tree) -> Result<PathBuf> {
    let mut cargo = build::cargo(tree, "build");
    cargo.args(["--package", "lb-tests", "--bin", "vm_guest"]);
    run::live(cargo).context("building the guest")?;

    let mut files = Initramfs::default();
    files.program("init", &tree.target.join("debug/vm_guest"))?;
    files.program("lb-agent", &tree.agent())?;
    files.program(
        "bin/ip",
        &toolchain::find("ip").context("ip is not on PATH")?,
    )?;
    for bin in build::further_programs(tree)? {
        files.file(&format!("lb-ebpf-{bin}.o"), &tree.object_of(&bin))?;
    }

    let path = tree.target.join("vm/initrd");
    fs::create_dir_all(tree.target.join("vm"))?;
    fs::write(&path, files.packed()).with_context(|| path.display().to_string())?;
    Ok(path)
}

/// Boots, and again if the kernel died before the guest's first word: under qemu 7.2's emulation one
/// boot of 6.12 in five ends in a double fault, which says nothing about nearhop.
fn boot(kernel: &Kernel, mode: &Mode, image: &Path, initrd: &Path) -> Result<Tally> {
    for _ in 1..BOOTS {
        let guest = boot_once(kernel, mode, image, initrd)?;
        if !guest.never_began() {
            return Ok(guest.finish());
        }
        eprintln!(
            "{}: the kernel died before the guest began; again",
            guest.name
        );
    }
    Ok(boot_once(kernel, mode, image, initrd)?.finish())
}

fn boot_once(kernel: &Kernel, mode: &Mode, image: &Path, initrd: &Path) -> Result<Guest> {
    let mut qemu = Command::new("qemu-system-x86_64");
    // Half of the memory holds the unpacked programs, a few hundred MB with what debuggers want of them.
    qemu.args(["-accel", "tcg", "-m", "2048", "-no-reboot", "-nic", "none"]);
    // With -nographic the firmware would write its screen into the guest's first line.
    qemu.args(["-display", "none", "-serial", "stdio"]);
    qemu.args(["-smp", &mode.cpus.to_string()]);
    qemu.arg("-kernel").arg(image).arg("-initrd").arg(initrd);
    qemu.arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 NO_COLOR=1 nearhop.test={} {}",
        mode.name, mode.options
    ));
    run::say_command(&qemu);

    let mut guest = Guest::new(kernel.version, mode.name);
    let status = run::stream(qemu, LIMIT, |event| {
        if let Event::Line(line) = event {
            guest.line(line);
        }
    });
    match status {
        Ok(status) => ensure!(status.success(), "{}: qemu: {status}", guest.name),
        Err(error) => guest.tally.fail(&format!("{}: {error:#}", guest.name)),
    }
    Ok(guest)
}

/// Reads a guest's console.
struct Guest {
    name: String,
    tally: Tally,
    done: bool,
}

impl Guest {
    fn new(version: &str, mode: &str) -> Self {
        Self {
            name: format!("{version}/{mode}"),
            tally: Tally::default(),
            done: false,
        }
    }

    fn line(&mut self, line: &str) {
        eprintln!("{} | {line}", self.name);
        match line.trim().split_once(' ').unwrap_or((line.trim(), "")) {
            ("PASS", _) => self.tally.pass(),
            ("FAIL", what) => self.tally.fail(&format!("{}: {what}", self.name)),
            ("SKIP", what) => self.tally.skip(&format!("{}: {what}", self.name)),
            ("DONE", "") => self.done = true,
            _ => {}
        }
    }

    fn never_began(&self) -> bool {
        self.tally.is_empty() && !self.done
    }

    fn finish(mut self) -> Tally {
        if !self.done {
            self.tally.fail(&format!(
                "{}: the guest ended without DONE, see its console",
                self.name
            ));
        }
        self.tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(console: &str) -> Tally {
        let mut guest = Guest::new("5.10", "load");
        console.lines().for_each(|line| guest.line(line));
        guest.finish()
    }

    #[test]
    fn every_mode_runs_by_default_and_on_every_kernel_asked_for() {
        let wanted = |asked: &[&str]| -> Vec<(&str, &str)> {
            let asked: Vec<String> = asked.iter().map(|version| (*version).to_owned()).collect();
            let pairs = KERNELS
                .iter()
                .flat_map(|kernel| MODES.iter().map(move |mode| (kernel, mode)));
            let wanted = pairs.filter(|(kernel, mode)| mode.is_wanted(kernel, &asked, None));
            wanted
                .map(|(kernel, mode)| (kernel.version, mode.name))
                .collect()
        };
        assert_eq!(wanted(&[]), [("5.10", "load"), ("6.1", "walk")]);
        assert_eq!(wanted(&["6.12"]), [("6.12", "load"), ("6.12", "walk")]);
    }

    #[test]
    fn a_guest_is_counted_by_what_it_says() {
        let tally =
            read("[ 0.1] booting\nPASS boot\nFAIL connect: refused\nSKIP walk: none\r\nDONE");
        assert_eq!(tally.to_string(), "1 passed, 1 failed, 1 skipped");
        assert_eq!(tally.notes()[0], "FAIL 5.10/load: connect: refused");
    }

    #[test]
    fn only_a_guest_without_a_word_never_began() {
        let mut guest = Guest::new("6.12", "load");
        guest.line("Kernel panic");
        assert!(guest.never_began());
        guest.line("PASS boot");
        assert!(!guest.never_began());
    }

    #[test]
    fn a_guest_that_dies_is_a_failure_whatever_it_said_before() {
        assert_eq!(
            read("PASS boot\nKernel panic").to_string(),
            "1 passed, 1 failed, 0 skipped"
        );
    }
}
