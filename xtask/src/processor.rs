//! The processors that nearhop is shipped for, by the names that Rust, container images and Debian's
//! cross compilers have for them.

use std::{env, fmt, path::PathBuf};

use clap::ValueEnum;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Processor {
    #[value(name = "x86_64", alias = "amd64")]
    X86_64,
    #[value(name = "aarch64", alias = "arm64")]
    Aarch64,
}

impl Processor {
    /// This machine's.
    pub(crate) fn own() -> Option<Self> {
        let all = Self::value_variants().iter().copied();
        all.into_iter()
            .find(|processor| processor.name() == env::consts::ARCH)
    }

    pub(crate) fn is_own(self) -> bool {
        Self::own() == Some(self)
    }

    /// As Rust and `uname -m` have it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        }
    }

    /// As images have it.
    pub(crate) fn oci(self) -> &'static str {
        match self {
            Self::X86_64 => "amd64",
            Self::Aarch64 => "arm64",
        }
    }

    /// Of a static program. With musl, not glibc, because a static glibc finds no host by its name
    /// without the shared objects of the machine it was built on.
    pub(crate) fn triple(self) -> String {
        format!("{}-unknown-linux-musl", self.name())
    }

    /// Debian's C compiler for it.
    pub(crate) fn gcc(self) -> &'static str {
        match (self.is_own(), self) {
            (true, _) => "gcc",
            (false, Self::X86_64) => "x86_64-linux-gnu-gcc",
            (false, Self::Aarch64) => "aarch64-linux-gnu-gcc",
        }
    }

    /// The packages with that compiler and the headers that it asks for.
    pub(crate) fn gcc_packages(self) -> &'static [&'static str] {
        match (self.is_own(), self) {
            (true, _) => &["gcc", "libc6-dev"],
            (false, Self::X86_64) => &["gcc-x86-64-linux-gnu", "libc6-dev-amd64-cross"],
            (false, Self::Aarch64) => &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"],
        }
    }

    /// Where those headers are.
    pub(crate) fn headers(self) -> PathBuf {
        match self.is_own() {
            true => "/usr/include".into(),
            false => format!("/usr/{}-linux-gnu/include", self.name()).into(),
        }
    }

    /// What runs its programs on another processor.
    pub(crate) fn emulator(self) -> String {
        format!("qemu-{}-static", self.name())
    }
}

impl fmt::Display for Processor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
