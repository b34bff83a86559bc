//! The form with a container engine: kind makes the nodes, from deploy/kind.yaml as a user has it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use super::{Form, dir};
use crate::{run, toolchain::find, tree::Tree};

/// The name in deploy/kind.yaml.
const NAME: &str = "nearhop";

/// Why this form cannot be had here.
pub(super) fn missing() -> Option<String> {
    if find("kind").is_none() {
        return Some("kind is not installed (https://kind.sigs.k8s.io)".into());
    }
    let mut docker = Command::new("docker");
    docker.args(["version", "--format", "{{.Server.Version}}"]);
    let answer = run::text(docker).err()?;
    Some(format!("no container engine answers: {answer:#}"))
}

/// Makes the cluster, gives every node the images, and installs nearhop.
pub(super) fn up(tree: &Tree, images: &[PathBuf], mut install: Command) -> Result<()> {
    let dir = dir(tree, Form::Engine);
    // By this name the tests know that the nodes are containers.
    let marks = dir.join("engine");
    fs::create_dir_all(&marks).with_context(|| marks.display().to_string())?;
    let mut create = kind("create", "cluster");
    create
        .arg("--config")
        .arg(tree.root.join("deploy/kind.yaml"));
    create.arg("--kubeconfig").arg(kubeconfig(&dir));
    run::live(create)?;
    for image in images {
        let mut load = kind("load", "image-archive");
        load.arg(image);
        run::live(load)?;
    }
    install.arg("install");
    run::live(install)
}

pub(super) fn down(tree: &Tree) -> Result<()> {
    let dir = dir(tree, Form::Engine);
    let mut delete = kind("delete", "cluster");
    delete.arg("--kubeconfig").arg(kubeconfig(&dir));
    run::live(delete)?;
    match dir.exists() {
        true => fs::remove_dir_all(&dir).with_context(|| dir.display().to_string()),
        false => Ok(()),
    }
}

fn kind(verb: &str, what: &str) -> Command {
    let mut kind = run::command("kind");
    kind.args([verb, what, "--name", NAME]);
    kind
}

/// Where the tests look for it.
fn kubeconfig(dir: &Path) -> PathBuf {
    dir.join("control-plane/admin.kubeconfig")
}
