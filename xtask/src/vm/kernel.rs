//! Debian's cloud kernels as packages: found in the suite that has them, fetched with apt into a
//! cache below target/vm, and unpacked there. The host's own sources and lists are left alone.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{run, tree::Tree};

pub(crate) struct Kernel {
    pub(crate) version: &'static str,
    suite: &'static str,
}

pub(crate) const KERNELS: &[Kernel] = &[
    Kernel {
        version: "5.10",
        suite: "bullseye",
    },
    Kernel {
        version: "6.1",
        suite: "bookworm",
    },
    Kernel {
        version: "6.12",
        suite: "bookworm-backports",
    },
];

impl Kernel {
    /// The kernel's image, from the cache if it is there.
    pub(crate) fn fetch(&self, tree: &Tree) -> Result<PathBuf> {
        let cache = tree.target.join("vm").join(self.version);
        if let Some(image) = image(&cache) {
            return Ok(image);
        }
        let apt = Apt::new(&cache.join("apt"), self.suite)?;
        let package = self
            .package(&apt)
            .with_context(|| format!("Linux {}", self.version))?;
        let mut download = apt.command("apt-get");
        download
            .args(["download", &package])
            .current_dir(&apt.folder);
        run::quietly(&format!("apt-get fetches Linux {}", self.version), download)?;
        unpack(&apt.folder, &package, &cache)?;
        fs::remove_dir_all(&apt.folder)?;
        image(&cache).with_context(|| format!("{package} has no boot/vmlinuz-*"))
    }

    /// The newest of the suite's cloud kernels of this version.
    fn package(&self, apt: &Apt) -> Result<String> {
        let mut update = apt.command("apt-get");
        update.arg("update");
        run::quietly(&format!("apt-get reads {}", self.suite), update)?;
        let mut search = apt.command("apt-cache");
        let pattern = format!(
            r"^linux-image-{}[.0-9+a-z-]*-cloud-{}$",
            self.version,
            debian_arch()?
        );
        search.args(["search", "--names-only", &pattern]);
        let found = run::text(search)?;
        let names = found.lines().filter_map(|line| line.split(' ').next());
        let newest = names.max_by_key(|name| numbers(name));
        newest
            .map(str::to_owned)
            .with_context(|| format!("{} has no {pattern}", self.suite))
    }
}

/// Apt with one suite, and lists and caches of its own.
struct Apt {
    folder: PathBuf,
}

impl Apt {
    fn new(folder: &Path, suite: &str) -> Result<Self> {
        fs::create_dir_all(folder.join("lists/partial"))?;
        fs::create_dir_all(folder.join("cache/archives/partial"))?;
        let source = format!("deb {} {suite} main\n", mirror()?);
        fs::write(folder.join("sources.list"), source)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    fn command(&self, program: &str) -> Command {
        let folder = self.folder.display();
        let mut command = Command::new(program);
        for option in [
            format!("Dir::Etc::SourceList={folder}/sources.list"),
            "Dir::Etc::SourceParts=/dev/null".into(),
            format!("Dir::State::Lists={folder}/lists"),
            format!("Dir::Cache={folder}/cache"),
            // The cache need not be readable for apt's own user.
            "APT::Sandbox::User=root".into(),
        ] {
            command.args(["-o", &option]);
        }
        command
    }
}

/// The Debian mirror that this host uses itself.
fn mirror() -> Result<String> {
    let mut targets = Command::new("apt-get");
    targets.args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Created-By: Packages",
    ]);
    let uris = run::text(targets).context("kernels are fetched with apt, so this needs Debian")?;
    let debian = uris
        .lines()
        .find(|uri| uri.trim_end_matches('/').ends_with("/debian"));
    debian
        .map(str::to_owned)
        .context("apt's sources have no Debian mirror (…/debian)")
}

fn unpack(folder: &Path, package: &str, to: &Path) -> Result<()> {
    let prefix = format!("{package}_");
    let mut files = fs::read_dir(folder)?.filter_map(Result::ok);
    let deb = files
        .find(|file| file.file_name().to_string_lossy().starts_with(&prefix))
        .with_context(|| format!("apt-get download left no {prefix}*.deb"))?;
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--extract").arg(deb.path()).arg(to);
    run::quietly("dpkg-deb unpacks it", dpkg)
}

fn image(cache: &Path) -> Option<PathBuf> {
    let boot = fs::read_dir(cache.join("boot")).ok()?;
    let mut files = boot.filter_map(|entry| Some(entry.ok()?.path()));
    files.find(|file| {
        file.file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-"))
    })
}

fn debian_arch() -> Result<&'static str> {
    ensure!(
        std::env::consts::ARCH == "x86_64",
        "the virtual machine is tried on x86-64 only"
    );
    Ok("amd64")
}

/// The numbers of a package's name, which order `…-9-…` before `…-32-…`.
fn numbers(name: &str) -> Vec<u32> {
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_names_are_ordered_by_their_numbers() {
        let old = "linux-image-5.10.0-9-cloud-amd64";
        let new = "linux-image-5.10.0-32-cloud-amd64";
        assert!(numbers(old) < numbers(new) && old > new);
    }
}
