//! What a command needs beside cargo: probed each time without running anything slow, and installed
//! when it is missing, so that nobody installs anything by hand.

pub(crate) mod go;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use console::style;

use crate::{processor::Processor, run};

const BPF_LINKER: &str = "0.13.0";
/// The LLVM majors that this bpf-linker can be built against.
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 21..=23;
const CARGO_DENY: &str = "0.20.2";

#[derive(Clone, Copy)]
pub(crate) enum Need {
    RustSrc,
    Rustfmt,
    Clippy,
    BpfLinker,
    CargoDeny,
    Bpftool,
    Iproute2,
    Nftables,
    Iptables,
    Qemu,
    /// Rust's library for static programs.
    Musl(Processor),
    /// A C compiler for that processor.
    Gcc(Processor),
    /// Runs programs of another processor.
    Emulator(Processor),
    Containerd,
    CniPlugins,
    Go,
    /// Runs containers of the image.
    Runc,
}

/// Installs what is missing of `needs`, in their order.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let mut host = Host::look()?;
    for need in needs {
        if !need.is_met(&host) {
            let (name, why) = need.explained();
            eprintln!("{} is missing: {why}", style(name).for_stderr().bold());
            need.install(&host)
                .with_context(|| format!("installing {name}"))?;
            host = Host::look()?;
            ensure!(
                need.is_met(&host),
                "{name} was installed and still is not found"
            );
        }
    }
    Ok(())
}

impl Need {
    fn explained(self) -> (&'static str, &'static str) {
        match self {
            Self::RustSrc => ("rust-src", "core is compiled for the BPF target"),
            Self::Rustfmt => ("rustfmt", "the format is checked"),
            Self::Clippy => ("clippy", "the lints are checked"),
            Self::BpfLinker => (
                "bpf-linker",
                "it links the kernel object and writes its BTF",
            ),
            Self::CargoDeny => (
                "cargo-deny",
                "licences and sources of dependencies are checked",
            ),
            Self::Bpftool => ("bpftool", "maps are dumped by it"),
            Self::Iproute2 => ("iproute2", "the lab's namespaces are made with ip"),
            Self::Nftables => ("nftables", "kube-proxy writes its rules with nft"),
            Self::Iptables => ("iptables", "kube-proxy writes its rules with it"),
            Self::Qemu => ("qemu", "other kernels run in it"),
            Self::Musl(_) => ("rust-std for musl", "the agent of the image is static"),
            Self::Gcc(_) => ("gcc", "it compiles and links for the image's processor"),
            Self::Emulator(_) => ("qemu-user", "programs of another processor run in it"),
            Self::Runc => ("runc", "the image runs in it as it does on a node"),
            Self::Containerd => ("containerd", "the pods of real nodes run in it"),
            Self::CniPlugins => (
                "CNI plugins",
                "the pods of real nodes get their network by them",
            ),
            Self::Go => ("go", "the cluster of the tests is built with it"),
        }
    }

    fn is_met(self, host: &Host) -> bool {
        match self {
            Self::RustSrc => host
                .sysroot
                .join("lib/rustlib/src/rust/library/core")
                .is_dir(),
            Self::Rustfmt => host.sysroot.join("bin/cargo-fmt").is_file(),
            Self::Clippy => host.sysroot.join("bin/cargo-clippy").is_file(),
            Self::BpfLinker => host.linker_is_new_enough(),
            Self::CargoDeny => host.features("cargo-deny", CARGO_DENY).is_some(),
            Self::Bpftool => found("bpftool"),
            Self::Iproute2 => found("ip"),
            Self::Nftables => found("nft"),
            Self::Iptables => found("iptables-restore"),
            Self::Qemu => found("qemu-system-x86_64"),
            Self::Musl(processor) => host.has_library(&processor.triple()),
            Self::Gcc(processor) => {
                found(processor.gcc()) && processor.headers().join("stdint.h").is_file()
            }
            Self::Emulator(processor) => processor.is_own() || found(&processor.emulator()),
            Self::Runc => found("runc"),
            Self::Containerd => found("containerd") && found("ctr"),
            Self::CniPlugins => Path::new("/usr/lib/cni/ptp").is_file() && found("iptables"),
            Self::Go => go::is_usable(),
        }
    }

    fn install(self, host: &Host) -> Result<()> {
        match self {
            Self::RustSrc => rustup(&["component", "add", "rust-src"]),
            Self::Rustfmt => rustup(&["component", "add", "rustfmt"]),
            Self::Clippy => rustup(&["component", "add", "clippy"]),
            Self::BpfLinker => bpf_linker(host.llvm),
            Self::CargoDeny => cargo_install("cargo-deny", CARGO_DENY, |_| {}),
            Self::Bpftool => apt_install(&["bpftool".into()]),
            Self::Iproute2 => apt_install(&["iproute2".into()]),
            Self::Nftables => apt_install(&["nftables".into()]),
            Self::Iptables => apt_install(&["iptables".into()]),
            Self::Qemu => apt_install(&["qemu-system-x86".into()]),
            Self::Musl(processor) => rustup(&["target", "add", &processor.triple()]),
            Self::Gcc(processor) => {
                let packages = processor.gcc_packages().iter();
                apt_install(&packages.map(|name| (*name).into()).collect::<Vec<_>>())
            }
            Self::Emulator(_) => apt_install(&["qemu-user-static".into()]),
            Self::Runc => apt_install(&["runc".into()]),
            Self::Containerd => apt_install(&["containerd".into()]),
            Self::CniPlugins => {
                apt_install(&["containernetworking-plugins".into(), "iptables".into()])
            }
            Self::Go => go::install(),
        }
    }
}

/// What is known about the machine before anything is installed.
struct Host {
    /// The active toolchain's folder.
    sysroot: PathBuf,
    /// The major version of rustc's LLVM, whose bitcode the linker must be able to read.
    llvm: u32,
    /// What `cargo install` recorded.
    installed: serde_json::Value,
}

impl Host {
    fn look() -> Result<Self> {
        let sysroot = sysroot()?;
        // Not rustup's proxy, which takes longer to start than this one to answer.
        let mut version = Command::new(sysroot.join("bin/rustc"));
        version.arg("-vV");
        Ok(Self {
            llvm: llvm_major(&run::text(version)?)?,
            installed: installed()?,
            sysroot,
        })
    }

    /// The features with which cargo installed exactly this version, if it is still there.
    fn features(&self, name: &str, version: &str) -> Option<Vec<&str>> {
        let prefix = format!("{name} {version} ");
        let installs = self.installed["installs"].as_object()?;
        let (_, install) = installs.iter().find(|(id, _)| id.starts_with(&prefix))?;
        let features = install["features"].as_array()?;
        found(name).then(|| {
            features
                .iter()
                .filter_map(|feature| feature.as_str())
                .collect()
        })
    }

    /// Whether programs can be built for this target.
    fn has_library(&self, triple: &str) -> bool {
        let library = self.sysroot.join("lib/rustlib").join(triple);
        library.join("lib").is_dir()
    }

    /// A linker for an older LLVM cannot read what this rustc writes.
    fn linker_is_new_enough(&self) -> bool {
        let features = self.features("bpf-linker", BPF_LINKER).unwrap_or_default();
        let mut majors = features
            .iter()
            .filter_map(|feature| feature.strip_prefix("llvm-"));
        majors.any(|major| major.parse::<u32>().is_ok_and(|major| major >= self.llvm))
    }
}

/// Cargo's record of what it installed; only a JSON file of this name has the features.
fn installed() -> Result<serde_json::Value> {
    let path = install_root()?.join(".crates2.json");
    let record = fs::read_to_string(&path).unwrap_or_default();
    // An installation that was interrupted leaves an empty file.
    if record.trim().is_empty() {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_str(&record).with_context(|| path.display().to_string())
}

/// Where `cargo install` puts programs.
fn install_root() -> Result<PathBuf> {
    env::var_os("CARGO_INSTALL_ROOT").map_or_else(cargo_home, |root| Ok(PathBuf::from(root)))
}

/// Where cargo keeps the sources of crates.
pub(crate) fn cargo_home() -> Result<PathBuf> {
    let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(home)
        .context("neither CARGO_HOME nor HOME is set")
}

fn sysroot() -> Result<PathBuf> {
    let mut sysroot = Command::new("rustc");
    sysroot.args(["--print", "sysroot"]);
    Ok(PathBuf::from(run::text(sysroot)?.trim()))
}

/// Where the sources of rustc's own library lie.
pub(crate) fn library() -> Result<PathBuf> {
    Ok(sysroot()?.join("lib/rustlib/src/rust"))
}

/// Where a program lies; the system's folders are not on everybody's PATH.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut places = env::split_paths(&path)
        .chain(system)
        .map(|folder| folder.join(program));
    places.find(|place| place.is_file())
}

fn found(program: &str) -> bool {
    find(program).is_some()
}

/// The major of the line `LLVM version: 22.1.2`.
fn llvm_major(version: &str) -> Result<u32> {
    let line = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "));
    let major = line.and_then(|version| version.split('.').next());
    major
        .and_then(|major| major.parse().ok())
        .context("rustc -vV names no LLVM version")
}

fn rustup(args: &[&str]) -> Result<()> {
    let what = args.join(" ");
    ensure!(
        found("rustup"),
        "this rustc is not managed by rustup, so what `rustup {what}` fetches must come from where rustc came from"
    );
    let mut rustup = Command::new("rustup");
    rustup.args(args);
    run::quietly(&format!("rustup {what}"), rustup)
        .with_context(|| format!("`rustup {what}` failed; its server must be reachable once"))
}

fn bpf_linker(rustc_llvm: u32) -> Result<()> {
    let llvm = llvm_for(rustc_llvm)?;
    let packages = [format!("llvm-{llvm}-dev"), format!("libpolly-{llvm}-dev")];
    let libraries = ["libzstd-dev", "zlib1g-dev", "libxml2-dev"].map(String::from);
    apt_install(&[packages.as_slice(), &libraries].concat())?;
    cargo_install("bpf-linker", BPF_LINKER, |cargo| {
        cargo
            .args([
                "--no-default-features",
                "--features",
                &format!("llvm-{llvm}"),
            ])
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"));
    })
}

/// The oldest LLVM that can read rustc's bitcode, that bpf-linker knows and that this system has.
fn llvm_for(rustc_llvm: u32) -> Result<u32> {
    ensure!(
        rustc_llvm <= *BPF_LINKER_LLVM.end(),
        "rustc's LLVM is {rustc_llvm} and bpf-linker {BPF_LINKER} reads up to {}: \
         use an older toolchain, or raise BPF_LINKER in xtask/src/toolchain.rs",
        BPF_LINKER_LLVM.end()
    );
    let is_there = |major: &u32| is_installed(&dev(*major)) || is_offered(&dev(*major));
    let oldest = || {
        BPF_LINKER_LLVM
            .filter(|major| *major >= rustc_llvm)
            .find(is_there)
    };
    if let Some(major) = oldest() {
        return Ok(major);
    }
    apt_get(&["update"])?;
    let missing = dev(rustc_llvm);
    oldest().with_context(|| format!("apt has no {missing}: add a source that has it"))
}

fn dev(llvm: u32) -> String {
    format!("llvm-{llvm}-dev")
}

fn cargo_install(name: &str, version: &str, adapt: impl FnOnce(&mut Command)) -> Result<()> {
    let mut cargo = run::command("cargo");
    // Cargo builds in a temporary folder then, and does not fill the caller's.
    cargo
        .args(["install", "--locked", "--force"])
        .env_remove("CARGO_TARGET_DIR");
    adapt(&mut cargo);
    cargo.arg(format!("{name}@{version}"));
    run::quietly(&format!("cargo installs {name} {version}"), cargo)?;
    let bin = install_root()?.join("bin");
    ensure!(
        found(name),
        "{name} was installed into {}: add that to PATH",
        bin.display()
    );
    Ok(())
}

/// Installs those of the packages that are missing.
fn apt_install(packages: &[String]) -> Result<()> {
    let missing = packages.iter().filter(|name| !is_installed(name));
    let missing: Vec<&str> = missing.map(String::as_str).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !missing.iter().all(|name| is_offered(name)) {
        apt_get(&["update"])?;
    }
    let options = ["install", "--yes", "--no-install-recommends"];
    let install = [options.as_slice(), &missing].concat();
    apt_get(&install).or_else(|_| {
        // Lists older than the mirror name packages that it does not have any more.
        apt_get(&["update"])?;
        apt_get(&install)
    })
}

fn apt_get(args: &[&str]) -> Result<()> {
    let mut apt = Command::new("apt-get");
    apt.args(args);
    let by_hand = run::shown(&apt);
    ensure!(
        found("apt-get"),
        "there is no apt-get here; what it would do: {by_hand}"
    );
    ensure!(
        rustix::process::geteuid().is_root(),
        "apt-get needs root: run `sudo {by_hand}`, then this command again"
    );
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    run::quietly(&format!("apt-get {}", args[0]), apt)
}

fn is_installed(package: &str) -> bool {
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${db:Status-Status}", package]);
    run::text(query).is_ok_and(|status| status == "installed")
}

fn is_offered(package: &str) -> bool {
    let mut show = Command::new("apt-cache");
    show.args(["show", "--no-all-versions", package]);
    run::text(show).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(llvm: u32, record: &str) -> Host {
        Host {
            sysroot: PathBuf::new(),
            llvm,
            installed: serde_json::from_str(record).unwrap(),
        }
    }

    #[test]
    fn the_llvm_of_rustc_is_read_from_its_version() {
        assert_eq!(
            llvm_major("release: 1.95.0\nLLVM version: 22.1.2\n").unwrap(),
            22
        );
        assert!(llvm_major("release: 1.95.0\n").is_err());
    }

    #[test]
    fn a_program_counts_only_in_the_pinned_version_and_where_it_can_be_started() {
        let record = r#"{"installs": {
            "sh 1.0.0 (registry)": {"features": ["a"]},
            "no-such-program 1.0.0 (registry)": {"features": []}
        }}"#;
        let host = host(22, record);
        assert_eq!(host.features("sh", "1.0.0"), Some(vec!["a"]));
        assert_eq!(host.features("sh", "1.0.1"), None);
        assert_eq!(host.features("no-such-program", "1.0.0"), None);
    }

    #[test]
    fn an_empty_record_means_nothing_is_installed() {
        assert!(!host(22, "null").linker_is_new_enough());
    }
}
