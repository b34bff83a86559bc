//! A node's folder in every cgroup hierarchy of the host. Most hosts have one hierarchy; those with
//! cgroup v1 have one for each controller, and cgroup v2 beside them, where sockets are looked up.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};

use crate::{cgroup, kind::NAME, wait};

/// One hierarchy as the host has mounted it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hierarchy {
    pub mount: PathBuf,
    /// What `mount -o` needs for another mount of it; empty for cgroup v2.
    pub options: String,
    /// The folder for all nodes.
    folder: PathBuf,
}

impl Hierarchy {
    #[must_use]
    pub fn is_unified(&self) -> bool {
        self.options.is_empty()
    }
}

/// The folders of one cluster.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Folders(Vec<Hierarchy>);

impl Folders {
    /// Below the cgroups of the calling process, so that what limits it limits the nodes.
    pub fn planned() -> anyhow::Result<Self> {
        let read = |path: &str| fs::read_to_string(path).with_context(|| format!("read {path}"));
        let found = hierarchies(&read("/proc/self/mountinfo")?, &read("/proc/self/cgroup")?);
        Ok(Self(found))
    }

    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| path.display().to_string())
    }

    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(self).context("write the list of cgroups")?;
        fs::write(path, text).with_context(|| format!("write {}", path.display()))
    }

    #[must_use]
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.0
    }

    /// The folder in cgroup v2: what is attached there concerns all processes below.
    pub fn unified(&self) -> anyhow::Result<&Path> {
        let unified = self.0.iter().find(|hierarchy| hierarchy.is_unified());
        let unified = unified.ok_or_else(|| {
            anyhow!(
                "no cgroup v2 hierarchy is mounted: mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
            )
        })?;
        Ok(&unified.folder)
    }

    /// Makes this folder for a node in every hierarchy.
    pub fn create(&self, node: &str) -> anyhow::Result<()> {
        for hierarchy in &self.0 {
            for path in [&hierarchy.folder, &hierarchy.folder.join(node)] {
                create(path)?;
                let parent = path.parent().context("a cgroup lies below another")?;
                self.hand_on_controllers(parent)?;
            }
        }
        Ok(())
    }

    /// Moves the calling process into them.
    pub fn join(&self, node: &str) -> anyhow::Result<()> {
        for hierarchy in &self.0 {
            cgroup::join(&hierarchy.folder.join(node))?;
        }
        Ok(())
    }

    /// Where cgroup v2 is all there is, a folder has the controllers that the one above it hands on.
    pub fn hand_on_controllers(&self, folder: &Path) -> anyhow::Result<()> {
        if self.0.len() > 1 {
            return Ok(());
        }
        let controllers = fs::read_to_string(folder.join("cgroup.controllers"))
            .with_context(|| format!("read the controllers of {}", folder.display()))?;
        for controller in controllers.split_whitespace() {
            let file = folder.join("cgroup.subtree_control");
            write(&file, &format!("+{controller}"))?;
        }
        Ok(())
    }

    /// Ends all processes in them, and removes them; goes on after an error.
    #[must_use]
    pub fn remove(&self) -> Vec<anyhow::Error> {
        // The unified hierarchy first: only there all processes can be killed at once.
        let (unified, others): (Vec<_>, Vec<_>) =
            self.0.iter().partition(|hierarchy| hierarchy.is_unified());
        let folders = unified.iter().chain(&others).map(|one| &one.folder);
        let there = folders.filter(|folder| folder.exists());
        there
            .filter_map(|folder| match folder.join("cgroup.kill").exists() {
                true => cgroup::remove(folder).err(),
                false => remove_empty(folder).err(),
            })
            .collect()
    }
}

/// The hierarchies of a process, with the folder to make in each.
fn hierarchies(mountinfo: &str, membership: &str) -> Vec<Hierarchy> {
    let own: Vec<(&str, &str)> = membership
        .lines()
        .filter_map(|line| line.split_once(':')?.1.split_once(':'))
        .collect();
    let mut found: Vec<Hierarchy> = mountinfo
        .lines()
        .filter_map(|line| hierarchy(line, &own))
        .collect();
    if let [only] = found.as_mut_slice() {
        // All controllers are here, and a folder gets them only if no process is in those above it.
        only.folder = only.mount.join(NAME);
    }
    found
}

/// A line of mountinfo: `32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu`
fn hierarchy(line: &str, own: &[(&str, &str)]) -> Option<Hierarchy> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, Path::new(mount.next()?));
    let mut words = file_system.split(' ');
    let (kind, given) = (words.next()?, words.nth(1)?);
    let given: Vec<&str> = given.split(',').collect();
    let is_this = |controllers: &str| match kind {
        "cgroup2" => controllers.is_empty(),
        "cgroup" => {
            !controllers.is_empty() && controllers.split(',').all(|name| given.contains(&name))
        }
        _ => false,
    };
    let (controllers, path) = own.iter().find(|(controllers, _)| is_this(controllers))?;
    let below = Path::new(path).strip_prefix(root).unwrap_or(Path::new(""));
    Some(Hierarchy {
        mount: point.to_owned(),
        options: match controllers.starts_with("name=") {
            true => format!("none,{controllers}"),
            false => (*controllers).to_owned(),
        },
        folder: point.join(below).join(NAME),
    })
}

/// Makes a folder that processes can be moved into.
fn create(folder: &Path) -> anyhow::Result<()> {
    if folder.exists() {
        return Ok(());
    }
    cgroup::create(folder)?;
    let parent = folder.parent().context("a cgroup lies below another")?;
    // In cgroup v1 it has no processors and no memory until it is told.
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if folder.join("tasks").exists() && folder.join(file).exists() {
            let above = fs::read_to_string(parent.join(file)).context("read the processors")?;
            write(&folder.join(file), above.trim())?;
        }
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {text} to {}", path.display()))
}

/// Removes a folder of cgroup v1, whose processes have been killed elsewhere.
fn remove_empty(folder: &Path) -> anyhow::Result<()> {
    let what = format!("cgroup {} to be empty", folder.display());
    wait::until(&what, wait::PATIENCE, || remove_below(folder))
}

fn remove_below(folder: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        if entry.file_type()?.is_dir() {
            remove_below(&entry.path())?;
        }
    }
    fs::remove_dir(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
37 31 0:34 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn on_a_hybrid_host_each_hierarchy_is_found_with_the_folder_of_this_process() {
        let membership = "4:memory:/api/x\n3:cpu,cpuacct:/\n2:name=systemd:/s\n0::/\n";

        let found = hierarchies(HYBRID, membership);

        let found: Vec<_> = found
            .iter()
            .map(|one| (one.options.as_str(), one.folder.to_str().unwrap()))
            .collect();
        assert_eq!(
            found,
            [
                ("memory", "/sys/fs/cgroup/memory/api/x/nh-kind"),
                ("cpu,cpuacct", "/sys/fs/cgroup/cpu,cpuacct/nh-kind"),
                ("none,name=systemd", "/sys/fs/cgroup/systemd/s/nh-kind"),
                ("", "/sys/fs/cgroup/unified/nh-kind"),
            ]
        );
    }

    #[test]
    fn where_there_is_one_hierarchy_the_folder_is_at_its_top() {
        let mounts = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

        let found = hierarchies(mounts, "0::/user.slice/session-1.scope\n");

        assert_eq!(found.len(), 1);
        assert_eq!(found[0].folder, Path::new("/sys/fs/cgroup/nh-kind"));
    }
}
