//! The first process of a node: it makes the node's mounts, runs containerd and the kubelet, and inherits
//! whose parent has ended. The kernel ends everything on the node when it ends.

use std::{
    ffi::CString,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, bail, ensure};
use rustix::{
    mount::{MountFlags, MountPropagationFlags, mount, mount_bind, mount_change},
    process::{WaitOptions, wait as wait_for_child},
};

use super::{Kind, Node, background, cgroups, config, run};
use crate::{cgroup, cluster::control_plane, kind::start::DNS, wait};

/// What a kubelet insists on. They belong to the whole machine, so the node sees files in their place.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// These belong to the network namespace: a node forwards its pods' packets.
const FORWARDING: [&str; 2] = ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"];

/// Makes the calling process one of the node's, whose cgroup is the root of all it can see.
pub fn enter(kind: &Kind, node: Node, images: &[PathBuf]) -> anyhow::Result<()> {
    kind.folders()?.join(node.name)?;
    node.netns().enter()?;
    go_on(kind, node, images, "settle", &["--cgroup"])
}

/// Leaves the root to its folders, since only one without processes has controllers to hand on, and
/// starts the first process.
pub fn settle(kind: &Kind, node: Node, images: &[PathBuf]) -> anyhow::Result<()> {
    let own = kind.node_place(node)?.cgroup;
    cgroup::create(&own)?;
    cgroup::join(&own)?;
    let apart = [
        "--mount",
        "--uts",
        "--ipc",
        "--pid",
        "--fork",
        "--kill-child=KILL",
    ];
    go_on(kind, node, images, "first", &apart)
}

/// Becomes this program again, in namespaces of its own.
fn go_on(
    kind: &Kind,
    node: Node,
    images: &[PathBuf],
    task: &str,
    namespaces: &[&str],
) -> anyhow::Result<()> {
    let mut unshare = Command::new("unshare");
    unshare.args(namespaces).arg("--").arg(own_program()?);
    unshare.arg("--dir").arg(&kind.dir).args([task, node.name]);
    for image in images {
        unshare.arg("--image").arg(image);
    }
    Err(unshare.exec()).context("start unshare, of util-linux")
}

/// What the first process does. It returns when the node cannot go on.
pub fn be_first(kind: &Kind, node: Node, images: &[PathBuf]) -> anyhow::Result<()> {
    make_mounts(kind, node)?;
    rustix::system::sethostname(node.name.as_bytes()).context("set the host's name")?;
    for sysctl in FORWARDING {
        write(&Path::new("/proc/sys").join(sysctl), "1")?;
    }
    let containerd = start_containerd(kind, node)?;
    for image in images {
        import(image)?;
    }
    let kubelet = start_kubelet(kind, node)?;
    inherit(
        kind,
        node,
        &[("containerd", containerd), ("kubelet", kubelet)],
    )
}

/// A file system view in which nothing is shared that a node writes.
fn make_mounts(kind: &Kind, node: Node) -> anyhow::Result<()> {
    let host = cgroups::Folders::read(&kind.cgroups_file())?;
    // Apart from the host, and shared with the node's pods: an init container may mount for the node.
    for propagation in [
        MountPropagationFlags::PRIVATE,
        MountPropagationFlags::SHARED,
    ] {
        mount_change("/", propagation | MountPropagationFlags::REC).context("part the mounts")?;
    }
    mount_new("proc", Path::new("/proc"), "")?;
    for path in ["/run", "/var/lib"] {
        mount_new("tmpfs", Path::new(path), "mode=755")?;
    }
    bind(
        &made(kind.node_dir(node).join("log"))?,
        Path::new("/var/log"),
    )?;
    // It shows the devices of the network namespace.
    mount_new("sysfs", Path::new("/sys"), "")?;
    mount_cgroups(&host)?;
    if node.bpffs {
        mount_new("bpf", Path::new("/sys/fs/bpf"), "mode=700")?;
    }
    mount_sysctls()
}

/// Mounted anew, they show the folders of this node as their roots.
fn mount_cgroups(host: &cgroups::Folders) -> anyhow::Result<()> {
    let at = Path::new("/sys/fs/cgroup");
    if host.hierarchies().len() > 1 {
        mount_new("tmpfs", at, "mode=755")?;
    }
    for hierarchy in host.hierarchies() {
        let kind = if hierarchy.is_unified() {
            "cgroup2"
        } else {
            "cgroup"
        };
        if hierarchy.mount != at {
            made(hierarchy.mount.clone())?;
        }
        mount_new(kind, &hierarchy.mount, &hierarchy.options)?;
        if hierarchy.is_unified() {
            host.hand_on_controllers(&hierarchy.mount)?;
        }
    }
    Ok(())
}

fn mount_sysctls() -> anyhow::Result<()> {
    let folder = made(PathBuf::from("/run/sysctls"))?;
    for (name, value) in SYSCTLS {
        let file = folder.join(name.replace('/', "."));
        write(&file, value)?;
        bind(&file, &Path::new("/proc/sys").join(name))?;
    }
    Ok(())
}

fn start_containerd(kind: &Kind, node: Node) -> anyhow::Result<u32> {
    let cni = made(PathBuf::from("/run/cni"))?;
    write(
        &cni.join("10-pods.conflist"),
        &config::cni(node).to_string(),
    )?;
    let file = Path::new("/run/containerd.toml");
    let runtime = own_program()?.with_file_name("oci_runtime");
    write(file, &config::containerd(&cni, &runtime))?;
    let mut containerd = Command::new("containerd");
    containerd.arg("--config").arg(file);
    let pid = background(containerd, &kind.node_dir(node).join("containerd.log"))?;
    wait::until("containerd", wait::PATIENCE, || {
        let mut version = ctr();
        version.arg("version");
        run(version)
    })?;
    Ok(pid)
}

fn import(image: &Path) -> anyhow::Result<()> {
    let mut import = ctr();
    import
        .args(["--namespace", "k8s.io", "images", "import"])
        .arg(image);
    run(import).with_context(|| format!("import {}", image.display()))
}

fn ctr() -> Command {
    let mut ctr = Command::new("ctr");
    ctr.args(["--address", config::CONTAINERD_SOCKET]);
    ctr
}

fn start_kubelet(kind: &Kind, node: Node) -> anyhow::Result<u32> {
    let file = Path::new("/run/kubelet.json");
    write(file, &config::kubelet(node, DNS).to_string())?;
    let (v4, v6) = node.addresses();
    let mut kubelet = Command::new(control_plane::program()?);
    kubelet.arg("kubelet").arg("--config").arg(file);
    kubelet
        .arg("--kubeconfig")
        .arg(kind.kubelet_kubeconfig(node));
    kubelet.arg(format!("--hostname-override={}", node.name));
    kubelet.arg(format!("--node-ip={v4},{v6}"));
    kubelet.arg(format!(
        "--node-labels=topology.kubernetes.io/zone={}",
        node.zone
    ));
    background(kubelet, &kind.node_dir(node).join("kubelet.log"))
}

/// Takes note of ends: of those that belong to pods, and of those that end the node.
fn inherit(kind: &Kind, node: Node, needed: &[(&str, u32)]) -> anyhow::Result<()> {
    loop {
        let ended = wait_for_child(WaitOptions::empty()).context("wait for a process")?;
        let pid = ended.and_then(|(pid, _)| u32::try_from(pid.as_raw_nonzero().get()).ok());
        if let Some((name, _)) = needed.iter().find(|(_, needed)| Some(*needed) == pid) {
            let log = kind.node_dir(node).join(format!("{name}.log"));
            bail!("{name} has ended; its log is {}", log.display());
        }
    }
}

fn mount_new(kind: &str, at: &Path, options: &str) -> anyhow::Result<()> {
    let options = CString::new(options).context("mount options")?;
    let options = (!options.is_empty()).then_some(options.as_c_str());
    mount(kind, at, kind, MountFlags::empty(), options)
        .with_context(|| format!("mount {kind} on {}", at.display()))
}

fn bind(from: &Path, at: &Path) -> anyhow::Result<()> {
    mount_bind(from, at).with_context(|| format!("mount {} on {}", from.display(), at.display()))
}

fn made(folder: PathBuf) -> anyhow::Result<PathBuf> {
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    Ok(folder)
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))
}

fn own_program() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("find the running program")?;
    ensure!(own.is_absolute(), "{} has no whole path", own.display());
    Ok(own)
}
