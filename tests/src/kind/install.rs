//! nearhop on the cluster, as deploy/README.md tells a user to install and remove it: with kubectl, from
//! a copy of deploy/ in which the API server's address is filled in.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};

use super::Kind;
use crate::{Cluster, agent::text};

/// What deploy/ names, and `cargo xtask image` makes.
pub const IMAGE: &str = concat!("docker.io/nearhop/lb-agent:", env!("CARGO_PKG_VERSION"));

/// What a user fills in.
const EMPTY_ADDRESS: &str = r#"api-server: """#;

impl Kind {
    /// Applies deploy/, and waits until every node is served.
    pub fn install(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let deploy = self.filled_in()?;
        kubectl(cluster, &["apply", "-k", &deploy.display().to_string()])?;
        wait_until_ready(cluster)
    }

    /// Removes nearhop from the cluster, and then from every node's kernel.
    pub fn uninstall(&self, cluster: &Cluster) -> anyhow::Result<()> {
        let deploy = self.filled_in()?;
        let cleanup = deploy.join("cleanup").display().to_string();
        kubectl(cluster, &["delete", "-k", &deploy.display().to_string()])?;
        kubectl(cluster, &["apply", "-k", &cleanup])?;
        rolled_out(cluster, "nearhop-cleanup")?;
        kubectl(cluster, &["delete", "-k", &cleanup])
    }

    /// deploy/ with the address at which every node reaches the API server without any Service.
    fn filled_in(&self) -> anyhow::Result<PathBuf> {
        let copy = self.dir.join("deploy");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("deploy");
        copy_manifests(&from, &copy)?;
        copy_manifests(&from.join("cleanup"), &copy.join("cleanup"))?;
        let config = copy.join("config.yaml");
        let text = fs::read_to_string(&config).context("read deploy/config.yaml")?;
        ensure!(
            text.contains(EMPTY_ADDRESS),
            "deploy/config.yaml has no `{EMPTY_ADDRESS}` to fill in"
        );
        let filled = format!(r#"api-server: "{}""#, self.api_server());
        fs::write(&config, text.replace(EMPTY_ADDRESS, &filled)).context("fill in config.yaml")?;
        Ok(copy)
    }
}

/// Waits until every node has an agent that is ready.
pub fn wait_until_ready(cluster: &Cluster) -> anyhow::Result<()> {
    rolled_out(cluster, "nearhop")
}

fn rolled_out(cluster: &Cluster, daemon_set: &str) -> anyhow::Result<()> {
    let name = format!("daemonset/{daemon_set}");
    let status = ["--namespace=kube-system", "rollout", "status", &name];
    kubectl(cluster, &[&status[..], &["--timeout=120s"]].concat())
}

fn kubectl(cluster: &Cluster, args: &[&str]) -> anyhow::Result<()> {
    let output = cluster.try_kubectl(args, "");
    ensure!(
        output.status.success(),
        "kubectl {}: {}{}",
        args.join(" "),
        text(&output.stdout),
        text(&output.stderr).trim()
    );
    Ok(())
}

fn copy_manifests(from: &Path, to: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(to).with_context(|| format!("make {}", to.display()))?;
    let entries = fs::read_dir(from).with_context(|| format!("list {}", from.display()))?;
    for entry in entries {
        let path = entry.context("list deploy/")?.path();
        if let (Some(name), true) = (path.file_name(), path.is_file()) {
            fs::copy(&path, to.join(name)).with_context(|| format!("copy {}", path.display()))?;
        }
    }
    Ok(())
}
