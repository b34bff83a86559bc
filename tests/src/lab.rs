//! The lab, its nodes and its pods: values that own namespaces, cgroups, processes and pins, and
//! undo them in the order that works.

use std::{
    fs,
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    process,
    sync::{
        Arc, Mutex, MutexGuard, Weak,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use anyhow::{Context, ensure};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::{
    agent::Agent,
    cgroup, must,
    netns::{self, Netns},
    objects::Objects,
    veth, wait,
    worker::{Place, Worker, lock},
};

/// Where each lab has its folder: objects, logs and a bpffs of its own.
pub const LABS: &str = "/run";

/// Everything a lab makes is named `nh-<pid>-<n>…`.
pub const PREFIX: &str = "nh-";

/// Node addresses count up from here.
const HOSTS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);

/// A test bed. Cheap to make (tens of milliseconds), undone when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct Lab {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    router: Netns,
    cgroup: PathBuf,
    dir: PathBuf,
    cables: AtomicU32,
    made: Mutex<Made>,
}

/// What has to be undone, and what a failed test prints.
#[derive(Debug, Default)]
struct Made {
    agents: Vec<Arc<Agent>>,
    workers: Vec<Arc<Worker>>,
    namespaces: Vec<String>,
    undone: bool,
}

impl Lab {
    #[must_use]
    #[expect(
        clippy::new_without_default,
        reason = "making a lab changes the machine"
    )]
    pub fn new() -> Self {
        must(Self::create(|_| Ok(())))
    }

    /// For a program: `guard` gets what undoes the lab before there is anything to undo, and errors
    /// are values.
    pub fn create(guard: impl FnOnce(Undo) -> anyhow::Result<()>) -> anyhow::Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "the lab makes namespaces, cgroups and BPF pins: run it as root"
        );
        let lab = Self {
            inner: Arc::new(Inner::planned(next_name())?),
        };
        guard(Undo(Arc::downgrade(&lab.inner)))?;
        lab.inner.make()?;
        Ok(lab)
    }

    /// A simulated node.
    #[must_use]
    pub fn node(&self, name: &str) -> Node {
        must(Node::create(self, name))
    }

    /// A folder of Kubernetes objects for the agents, empty at first.
    #[must_use]
    pub fn objects(&self) -> Objects {
        must(Objects::create(self.inner.dir.join("objects")))
    }

    /// The lab's own folder, for logs and odd files of a test.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Undoes everything, once; dropping the last handle does the same.
    pub fn undo(&self) {
        self.inner.undo();
    }

    pub(crate) fn track_agent(&self, agent: &Arc<Agent>) {
        lock(&self.inner.made).agents.push(Arc::clone(agent));
    }
}

/// Undoes a lab from a signal's thread. Does not keep the lab alive.
#[derive(Clone, Debug)]
pub struct Undo(Weak<Inner>);

impl Undo {
    pub fn undo(&self) {
        if let Some(inner) = self.0.upgrade() {
            inner.undo();
        }
    }
}

/// Unique on the machine while this process lives.
fn next_name() -> String {
    static LABS_MADE: AtomicU32 = AtomicU32::new(0);
    let number = LABS_MADE.fetch_add(1, Ordering::Relaxed);
    format!("{PREFIX}{}-{number}", process::id())
}

impl Inner {
    fn planned(name: String) -> anyhow::Result<Self> {
        Ok(Self {
            router: Netns {
                name: format!("{name}-net"),
            },
            cgroup: cgroup::own()?.join(&name),
            dir: Path::new(LABS).join(&name),
            name,
            cables: AtomicU32::new(0),
            made: Mutex::default(),
        })
    }

    fn make(&self) -> anyhow::Result<()> {
        let mut made = self.building()?;
        let bpffs = self.bpffs();
        fs::create_dir_all(&bpffs).with_context(|| format!("make {}", bpffs.display()))?;
        // A bpffs of the lab's own: no pin can outlive its unmounting.
        mount("bpf", &bpffs, "bpf", MountFlags::empty(), None)
            .with_context(|| format!("mount bpffs on {}", bpffs.display()))?;
        cgroup::create(&self.cgroup)?;
        made.namespaces.push(self.router.name.clone());
        veth::create_router(&self.router)
    }

    fn next_cable(&self) -> u32 {
        self.cables.fetch_add(1, Ordering::Relaxed)
    }

    /// Held while something is made: undoing waits for it, and nothing is made afterwards.
    fn building(&self) -> anyhow::Result<MutexGuard<'_, Made>> {
        let made = lock(&self.made);
        ensure!(!made.undone, "lab {} is undone", self.name);
        Ok(made)
    }

    fn bpffs(&self) -> PathBuf {
        self.dir.join("bpf")
    }

    fn undo(&self) {
        let mut made = lock(&self.made);
        if std::mem::replace(&mut made.undone, true) {
            return;
        }
        for error in made
            .kill()
            .into_iter()
            .chain(undo_named(&self.name, &made.namespaces))
        {
            eprintln!("undoing lab {}: {error:#}", self.name);
        }
    }

    fn report(&self) {
        let made = lock(&self.made);
        eprintln!("---- lab {} ----", self.name);
        eprintln!("namespaces: {}", made.namespaces.join(" "));
        for agent in &made.agents {
            eprintln!("{}", agent.report());
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if thread::panicking() {
            self.report();
        }
        self.undo();
    }
}

impl Made {
    fn kill(&mut self) -> Vec<anyhow::Error> {
        let agents = self.agents.iter().map(|agent| agent.kill());
        let workers = self.workers.iter().map(|worker| worker.kill());
        agents.chain(workers).filter_map(Result::err).collect()
    }
}

/// Removes what is named after this lab and goes on after an error. Shared with the sweep, which
/// knows no more than names.
pub(crate) fn undo_named(lab: &str, namespaces: &[String]) -> Vec<anyhow::Error> {
    let dir = Path::new(LABS).join(lab);
    let cgroup = cgroup::own().map(|own| own.join(lab));
    let mut results = vec![
        cgroup.and_then(|path| {
            if path.exists() {
                cgroup::remove(&path)
            } else {
                Ok(())
            }
        }),
        remove_dir(&dir),
    ];
    results.extend(namespaces.iter().map(|name| netns::remove(name)));
    results.into_iter().filter_map(Result::err).collect()
}

fn remove_dir(dir: &Path) -> anyhow::Result<()> {
    let bpffs = dir.join("bpf");
    if bpffs.exists() {
        // Not mounted if making the lab failed early; then the folder goes like any other.
        let _ = unmount(&bpffs, UnmountFlags::DETACH);
    }
    // Again until it is gone: another thread may be about to write a file into it.
    wait::until(
        &format!("{} to be gone", dir.display()),
        wait::PATIENCE,
        || match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => Ok(()),
        },
    )
}

/// A simulated node: the cgroup that its agent attaches to and its pods live in.
#[derive(Clone, Debug)]
pub struct Node {
    name: String,
    host: Pod,
}

impl Node {
    fn create(lab: &Lab, name: &str) -> anyhow::Result<Self> {
        let cgroup = lab.inner.cgroup.join(name);
        let building = lab.inner.building()?;
        cgroup::create(&cgroup)?;
        drop(building);
        let cable = lab.inner.next_cable();
        let addr = Ipv4Addr::from(HOSTS.to_bits() + cable);
        let netns = Netns {
            name: format!("{}-{name}", lab.inner.name),
        };
        let host = Pod::create(lab, addr, cable, Place { netns, cgroup })?;
        Ok(Self {
            name: name.to_owned(),
            host,
        })
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.host.place.cgroup
    }

    /// Where this node's agent pins.
    #[must_use]
    pub fn pin_path(&self) -> PathBuf {
        self.lab().inner.bpffs().join(&self.name)
    }

    /// The node's own processes: in its cgroup and in a namespace beside those of its pods.
    #[must_use]
    pub fn host(&self) -> &Pod {
        &self.host
    }

    /// A pod with this IPv4 address, and the IPv6 address that [`veth::v6_beside`] gives.
    #[must_use]
    pub fn pod(&self, addr: &str) -> Pod {
        let addr: Ipv4Addr = must(addr.parse());
        let place = Place {
            netns: Netns {
                name: format!("{}-{addr}", self.host.place.netns.name),
            },
            cgroup: self.cgroup().to_owned(),
        };
        must(Pod::create(
            self.lab(),
            addr,
            self.lab().inner.next_cable(),
            place,
        ))
    }

    #[must_use]
    pub fn lab(&self) -> &Lab {
        &self.host.lab
    }
}

/// A network namespace with a worker in it. What it can do is in `traffic.rs`.
#[derive(Clone, Debug)]
pub struct Pod {
    lab: Lab,
    addr: Ipv4Addr,
    cable: u32,
    place: Place,
    worker: Arc<Worker>,
}

impl Pod {
    fn create(lab: &Lab, addr: Ipv4Addr, cable: u32, place: Place) -> anyhow::Result<Self> {
        let inner = &lab.inner;
        let mut made = inner.building()?;
        made.namespaces.push(place.netns.name.clone());
        veth::create_pod(&place.netns, addr, &inner.router, cable)?;
        let worker = Arc::new(Worker::start(&place)?);
        made.workers.push(Arc::clone(&worker));
        drop(made);
        Ok(Self {
            lab: lab.clone(),
            addr,
            cable,
            place,
            worker,
        })
    }

    #[must_use]
    pub fn addr(&self) -> IpAddr {
        self.addr.into()
    }

    #[must_use]
    pub fn addr6(&self) -> Ipv6Addr {
        veth::v6_beside(self.addr)
    }

    /// A port of this pod's over IPv4.
    #[must_use]
    pub fn at(&self, port: u16) -> SocketAddr {
        (self.addr, port).into()
    }

    /// A port of this pod's over IPv6.
    #[must_use]
    pub fn at6(&self, port: u16) -> SocketAddr {
        (self.addr6(), port).into()
    }

    #[must_use]
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Ends the pod's processes, and with them its servers and connections.
    pub fn end(&self) {
        must(self.worker.kill());
    }

    /// Gives the pod every address of a range, which stands for as many pods.
    pub(crate) fn add_range(&self, range: &str) {
        let router = &self.lab.inner.router;
        must(router.ip(&format!("route add {range} dev pod{}\n", self.cable)));
        must(
            self.place
                .netns
                .ip(&format!("route add local {range} dev lo\n")),
        );
    }

    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }
}
