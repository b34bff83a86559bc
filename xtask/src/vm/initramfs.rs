//! The guest's root file system: an archive in cpio's `newc` format (the kernel's
//! Documentation/driver-api/early-userspace/buffer-format.rst). Programs are packed as they ship,
//! with the shared libraries that the host's loader finds for them.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::run;

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const CONSOLE: u32 = 0o020_600;
/// Major and minor number of /dev/console, which the kernel opens before anything is mounted.
const CONSOLE_DEVICE: (u32, u32) = (5, 1);

#[derive(Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    present: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Adds a program and the libraries it is linked to.
    pub(crate) fn program(&mut self, name: &str, path: &Path) -> Result<()> {
        self.file(name, path)?;
        let mut ldd = Command::new("ldd");
        ldd.arg(path);
        for library in libraries(&run::text(ldd)?) {
            self.file(library.trim_start_matches('/'), Path::new(library))?;
        }
        Ok(())
    }

    pub(crate) fn file(&mut self, name: &str, path: &Path) -> Result<()> {
        let content = fs::read(path).with_context(|| path.display().to_string())?;
        self.entry(Path::new(name), PROGRAM, (0, 0), &content);
        Ok(())
    }

    pub(crate) fn packed(mut self) -> Vec<u8> {
        self.entry(Path::new("dev/console"), CONSOLE, CONSOLE_DEVICE, &[]);
        self.entry(Path::new("TRAILER!!!"), 0, (0, 0), &[]);
        self.archive
    }

    /// Writes one entry, after the folders it lies in; one that is there already stays.
    fn entry(&mut self, name: &Path, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        if !self.present.insert(name.to_owned()) {
            return;
        }
        if let Some(parent) = name
            .parent()
            .filter(|parent| !parent.as_os_str().is_empty())
        {
            self.entry(parent, FOLDER, (0, 0), &[]);
        }
        let name = name.to_string_lossy();
        let inode = self.present.len();
        let (size, name_len) = (content.len(), name.len() + 1);
        // ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        let header = format!(
            "070701{inode:08x}{mode:08x}{0:08x}{0:08x}{1:08x}{0:08x}{size:08x}{0:08x}{0:08x}\
             {major:08x}{minor:08x}{name_len:08x}{0:08x}",
            0, 1
        );
        self.padded(format!("{header}{name}\0").as_bytes());
        self.padded(content);
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.archive.extend_from_slice(bytes);
        self.archive
            .resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// The absolute paths in `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux.so.2 (0x…)`.
fn libraries(ldd: &str) -> Vec<&str> {
    ldd.split_whitespace()
        .filter(|word| word.starts_with('/'))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_in_what_ldd_says() {
        let ldd = "\tlinux-vdso.so.1 (0x7f)\n\tlibc.so.6 => /lib/libc.so.6 (0x7f)\n\
                   \t/lib64/ld.so.2 (0x7f)\n";
        assert_eq!(libraries(ldd), ["/lib/libc.so.6", "/lib64/ld.so.2"]);
        assert!(libraries("\tstatically linked\n").is_empty());
    }

    #[test]
    fn every_entry_begins_at_a_multiple_of_four_after_its_folder() {
        let mut files = Initramfs::default();
        files.entry(Path::new("a/b"), PROGRAM, (0, 0), b"hello");
        files.entry(Path::new("a/b"), PROGRAM, (0, 0), b"again");
        let archive = files.packed();

        let magic = |at: &usize| archive[*at..].starts_with(b"070701");
        let starts: Vec<usize> = (0..archive.len() - 6).filter(magic).collect();
        assert!(starts.iter().all(|start| start % 4 == 0));
        let names: Vec<_> = starts
            .iter()
            .map(|start| name(&archive[start + 110..]))
            .collect();
        assert_eq!(names, ["a", "a/b", "dev", "dev/console", "TRAILER!!!"]);
    }

    fn name(bytes: &[u8]) -> &str {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        std::str::from_utf8(&bytes[..end]).unwrap()
    }
}
