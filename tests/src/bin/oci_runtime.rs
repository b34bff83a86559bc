//! An OCI runtime for hosts whose root lacks a capability, as in many CI machines: runc refuses to give
//! a privileged container what its own process may not have. It removes that from what the container
//! asks for and becomes runc.

use std::{
    env,
    ffi::{OsStr, OsString},
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::Context;
use rustix::thread::{CapabilitySet, capability_is_in_bounding_set};
use serde_json::Value;

fn main() -> anyhow::Result<()> {
    let args: Vec<OsString> = env::args_os().skip(1).collect();
    if let Some(bundle) = after(&args, "--bundle") {
        edit(&Path::new(bundle).join("config.json"), |config| {
            &mut config["process"]
        })?;
    }
    if let Some(process) = after(&args, "--process") {
        edit(&PathBuf::from(process), |process| process)?;
    }
    Err(Command::new("runc").args(args).exec()).context("start runc")
}

/// The word after this one: runc takes both of its files as `--name PATH`.
fn after<'a>(args: &'a [OsString], name: &str) -> Option<&'a OsStr> {
    let at = args.iter().position(|arg| arg == name)?;
    args.get(at + 1).map(OsString::as_os_str)
}

fn edit(path: &Path, process: impl FnOnce(&mut Value) -> &mut Value) -> anyhow::Result<()> {
    let text = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    let mut whole: Value = serde_json::from_slice(&text).context("read the container's JSON")?;
    let sets = process(&mut whole)["capabilities"].as_object_mut();
    for set in sets.into_iter().flat_map(|sets| sets.values_mut()) {
        if let Some(names) = set.as_array_mut() {
            names.retain(|name| name.as_str().is_none_or(may_be_had));
        }
    }
    fs::write(path, whole.to_string()).with_context(|| format!("write {}", path.display()))
}

/// A name that is not known here is runc's to judge.
fn may_be_had(name: &str) -> bool {
    let known = CapabilitySet::from_name(name.trim_start_matches("CAP_"));
    known.is_none_or(|known| capability_is_in_bounding_set(known).unwrap_or(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_that_cannot_be_had_is_removed_from_every_set_and_nothing_else() {
        let folder = env::temp_dir().join(format!("nh-oci-{}", std::process::id()));
        let given = serde_json::json!({"args": ["/x"], "capabilities": {
            "bounding": ["CAP_OF_THE_FUTURE"], "effective": []}});
        fs::write(&folder, given.to_string()).unwrap();

        edit(&folder, |process| process).unwrap();

        let kept: Value = serde_json::from_slice(&fs::read(&folder).unwrap()).unwrap();
        fs::remove_file(folder).unwrap();
        assert_eq!(kept, given);
    }
}
