//! The cgroup that the programs are attached to. It must hold every pod and the host's own processes,
//! so it is the root of the cgroup2 hierarchy unless somebody says otherwise.

use std::{
    fs,
    fs::File,
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::{fstatfs, statfs};

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: u64 = 0x6367_7270;

/// An open cgroup.
#[derive(Debug)]
pub struct Cgroup {
    pub path: PathBuf,
    pub folder: File,
    /// The kernel's number for it, which is also its inode's.
    pub id: u64,
}

impl Cgroup {
    /// The given one, or else the root of the hierarchy. A folder that is no cgroup itself stands for the
    /// cgroup2 mount below it: a host's /sys/fs/cgroup is one or has one, and a pod is given the folder.
    ///
    /// # Errors
    ///
    /// There is none; the error says how to get one.
    pub fn open(given: Option<&Path>) -> Result<Self> {
        let Some(given) = given else {
            return Self::at(&root(&mountinfo()?)?);
        };
        match below(&mountinfo()?, given) {
            Some(mount) if !is_cgroup2(given) => Self::at(&mount),
            Some(_) | None => Self::at(given),
        }
    }

    fn at(path: &Path) -> Result<Self> {
        let folder = File::open(path).with_context(|| {
            format!(
                "opening the cgroup {}; create it, or give another --cgroup",
                path.display()
            )
        })?;
        let found = fstatfs(&folder).with_context(|| format!("looking at {}", path.display()))?;
        ensure!(
            u64::try_from(found.f_type) == Ok(CGROUP2),
            "{} is not in a cgroup2 hierarchy; give a --cgroup below a mount of type cgroup2",
            path.display()
        );
        let id = folder.metadata()?.ino();
        Ok(Self {
            path: path.to_owned(),
            folder,
            id,
        })
    }

    /// Whether this process is below it, and so meets the programs attached there.
    ///
    /// # Errors
    ///
    /// The process's own cgroup cannot be found.
    pub fn covers_this_process(&self) -> Result<bool> {
        let own = own_cgroup()?;
        for folder in own.ancestors() {
            match fs::metadata(folder) {
                Ok(found)
                    if found.ino() == self.id && found.dev() == self.folder.metadata()?.dev() =>
                {
                    return Ok(true);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("looking at {}", folder.display()));
                }
            }
        }
        Ok(false)
    }
}

/// This process's cgroup, as a folder.
///
/// # Errors
///
/// No cgroup2 hierarchy is mounted.
pub fn own_cgroup() -> Result<PathBuf> {
    let text = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let Some(path) = text.lines().find_map(|line| line.strip_prefix("0::/")) else {
        bail!("this process is in no cgroup2 hierarchy: {}", NOT_MOUNTED);
    };
    let mount = mounts(&mountinfo()?).next().map(|mount| mount.point);
    let mount = mount.context(NOT_MOUNTED)?;
    Ok(match path {
        "" => mount,
        path => mount.join(path),
    })
}

/// The folder of the cgroup with this number, if it can be seen from here.
#[must_use]
pub fn find(id: u64) -> Option<PathBuf> {
    let mountinfo = mountinfo().ok()?;
    mounts(&mountinfo).find_map(|mount| find_below(&mount.point, id))
}

fn find_below(folder: &Path, id: u64) -> Option<PathBuf> {
    if fs::metadata(folder).is_ok_and(|found| found.ino() == id) {
        return Some(folder.to_owned());
    }
    let entries = fs::read_dir(folder).ok()?.flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders
        .into_iter()
        .find_map(|entry| find_below(&entry.path(), id))
}

const NOT_MOUNTED: &str = "cgroup2 is not mounted; run `mkdir -p /sys/fs/cgroup/unified && \
                           mount -t cgroup2 none /sys/fs/cgroup/unified`";

fn mountinfo() -> Result<String> {
    fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")
}

/// The mounted root of the hierarchy. A mount of a part of it, as a container with a cgroup namespace
/// of its own sees, would leave the host's other processes out.
fn root(mountinfo: &str) -> Result<PathBuf> {
    let Some(first) = mounts(mountinfo).next() else {
        bail!(NOT_MOUNTED);
    };
    match mounts(mountinfo).find(Mount::is_root) {
        Some(mount) => Ok(mount.point),
        None => bail!(
            "{} is not the root of the cgroup2 hierarchy but a part of it, so most processes of this \
             node would be left out; mount the host's /sys/fs/cgroup into the pod (hostPath) and give \
             it as --cgroup",
            first.point.display()
        ),
    }
}

/// The first cgroup2 mount in a folder.
fn below(mountinfo: &str, folder: &Path) -> Option<PathBuf> {
    let mut points = mounts(mountinfo).map(|mount| mount.point);
    points.find(|point| point.starts_with(folder))
}

fn is_cgroup2(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| u64::try_from(found.f_type) == Ok(CGROUP2))
}

struct Mount {
    point: PathBuf,
}

impl Mount {
    /// The root alone has no `cgroup.events`.
    fn is_root(&self) -> bool {
        !self.point.join("cgroup.events").exists()
    }
}

/// The mounts of type cgroup2, in the kernel's order.
fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount> {
    mountinfo.lines().filter_map(|line| {
        let (mount, file_system) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        let cgroup2 = file_system.split(' ').next()? == "cgroup2";
        cgroup2.then(|| Mount {
            point: PathBuf::from(unescape(point)),
        })
    })
}

/// The kernel writes spaces and the like as three octal digits.
fn unescape(path: &str) -> String {
    let mut parts = path.split('\\');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| match part.split_at_checked(3) {
        Some((octal, rest)) => match u8::from_str_radix(octal, 8) {
            Ok(byte) => format!("{text}{}{rest}", char::from(byte)),
            Err(_) => format!("{text}\\{part}"),
        },
        None => format!("{text}\\{part}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/uni\\040fied rw,relatime shared:10 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_mount_is_found_on_a_hybrid_host() {
        assert_eq!(root(HYBRID).unwrap(), Path::new("/sys/fs/cgroup/uni fied"));
    }

    #[test]
    fn a_folder_stands_for_the_mount_below_it() {
        let mount = Path::new("/sys/fs/cgroup/uni fied");
        assert_eq!(below(HYBRID, Path::new("/sys/fs/cgroup")).unwrap(), mount);
        assert_eq!(below(HYBRID, mount).unwrap(), mount);
        assert_eq!(below(HYBRID, Path::new("/sys/fs/cgroup/memory")), None);
        assert_eq!(below(HYBRID, Path::new("/sys/fs/cg")), None);
    }

    #[test]
    fn a_host_without_the_mount_is_told_the_command() {
        let error = root("31 23 0:28 / / rw - tmpfs tmpfs rw\n").unwrap_err();

        assert!(error.to_string().contains("mount -t cgroup2"), "{error}");
    }
}
