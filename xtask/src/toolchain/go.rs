//! Go, which builds the control plane of the tests. Apart from the other needs because distributions
//! have old versions of it: one from 1.21 on fetches the version that a go.mod names by itself, and
//! an older one can at least fetch that version as a module.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{apt_install, find};
use crate::run;

/// The toolchain that is fetched: what Kubernetes' go.mod asks for.
const VERSION: &str = "1.26.0";

/// The first Go that fetches other versions of itself.
const FETCHES_OTHERS: (u32, u32) = (1, 21);

/// The installed Go, permitted to use the version that the module asks for.
pub(crate) fn command() -> Result<Command> {
    let mut go = run::command(usable().context("there is no Go from 1.21 on")?);
    go.env("GOTOOLCHAIN", "auto");
    Ok(go)
}

pub(super) fn is_usable() -> bool {
    usable().is_some()
}

pub(super) fn install() -> Result<()> {
    if installed().is_none() {
        apt_install(&["golang-go".into()])?;
    }
    if is_usable() {
        return Ok(());
    }
    let old = installed().context("golang-go was installed and there is no go")?;
    fetch(&old)
}

/// A Go that can build the module.
fn usable() -> Option<PathBuf> {
    let go = installed()?;
    if version(&go)? >= FETCHES_OTHERS {
        return Some(go);
    }
    let fetched = fetched_root(&go)?.join("bin/go");
    fs::metadata(&fetched)
        .ok()
        .filter(is_executable)
        .map(|_| fetched)
}

/// The one on PATH, or where Go's own archive puts it.
fn installed() -> Option<PathBuf> {
    let unpacked = PathBuf::from("/usr/local/go/bin/go");
    find("go").or_else(|| unpacked.is_file().then_some(unpacked))
}

fn version(go: &Path) -> Option<(u32, u32)> {
    let mut version = Command::new(go);
    // Outside of every module, whose go.mod could name another version.
    version.arg("version").current_dir(env::temp_dir());
    major_minor(&run::text(version).ok()?)
}

/// `go version go1.19.8 linux/amd64`
fn major_minor(said: &str) -> Option<(u32, u32)> {
    let version = said.split_whitespace().find_map(|word| {
        let version = word.strip_prefix("go")?;
        version
            .starts_with(|c: char| c.is_ascii_digit())
            .then_some(version)
    });
    let mut numbers = version?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// Go's releases are modules too.
fn fetch(go: &Path) -> Result<()> {
    let mut download = run::command(go);
    download
        .args(["mod", "download", &toolchain_module()])
        .current_dir(env::temp_dir());
    run::quietly(&format!("go fetches go {VERSION}"), download)?;
    let root = fetched_root(go).context("go names no GOMODCACHE")?;
    // A module's files are not executable.
    make_executable(&root.join("bin"))?;
    make_executable(&root.join("pkg/tool"))
}

fn fetched_root(go: &Path) -> Option<PathBuf> {
    let mut cache = Command::new(go);
    cache.args(["env", "GOMODCACHE"]);
    let cache = run::text(cache).ok()?;
    Some(Path::new(cache.trim()).join(toolchain_module()))
}

fn toolchain_module() -> String {
    let arch = match env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("golang.org/toolchain@v0.0.1-go{VERSION}.linux-{arch}")
}

fn make_executable(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            make_executable(&path)?;
        } else {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o555))
                .with_context(|| path.display().to_string())?;
        }
    }
    Ok(())
}

fn is_executable(file: &fs::Metadata) -> bool {
    file.is_file() && file.permissions().mode() & 0o111 != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_what_go_says() {
        assert_eq!(
            major_minor("go version go1.19.8 linux/amd64\n"),
            Some((1, 19))
        );
        assert_eq!(major_minor("go version go1.26 linux/arm64"), Some((1, 26)));
        assert_eq!(major_minor("go version devel linux/amd64"), None);
    }
}
