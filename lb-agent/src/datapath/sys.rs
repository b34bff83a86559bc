//! What the kernel offers and aya 0.14 does not: updating and describing a link, creating an outer map,
//! and maps as memory; and what std does not: a network namespace's cookie. The agent's only unsafe code;
//! everything it exports is safe.
#![expect(
    unsafe_code,
    reason = "bpf(2), mmap(2) and getsockopt(2) take addresses"
)]

use std::{
    ffi::CString,
    io,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    ptr::{self, NonNull},
    slice,
    sync::atomic::AtomicU64,
};

use aya::maps::MapData;
use bytemuck::{Pod, Zeroable};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// A map key or value, for aya. The orphan rule keeps aya's trait off lb-common's types.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub(super) struct Raw<T>(pub(super) T);

// SAFETY: bytemuck's Pod promises what aya's asks: no padding, any bit pattern valid, no pointers.
unsafe impl<T: Pod> aya::Pod for Raw<T> {}

/// A whole array map (`BPF_F_MMAPABLE`) as memory.
///
/// Seen as atomic words, because kernel programs and other processes read and write it at any time.
#[derive(Debug)]
pub(super) struct Mapping {
    start: NonNull<AtomicU64>,
    words: usize,
}

impl Mapping {
    /// Maps the first `words` 64-bit words.
    pub(super) fn new(map: BorrowedFd<'_>, words: usize) -> io::Result<Self> {
        let (len, prot) = (words * size_of::<u64>(), ProtFlags::READ | ProtFlags::WRITE);
        // SAFETY: the kernel picks the address, so no memory of ours is replaced; it refuses a length
        // beyond the map's end.
        let start = unsafe { mmap(ptr::null_mut(), len, prot, MapFlags::SHARED, map, 0) }?;
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Self { start, words })
    }

    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: the mapping is page-aligned, readable and writable for `words` words until `self` is
        // dropped, and whoever else writes it is allowed to, as the words are atomic.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let len = self.words * size_of::<u64>();
        // SAFETY: this very range was mapped in `new`, and the borrows of `words` have ended.
        let unmapped = unsafe { munmap(self.start.as_ptr().cast(), len) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}

const BPF_MAP_CREATE: u32 = 0;
const BPF_MAP_GET_NEXT_KEY: u32 = 4;
const BPF_OBJ_GET: u32 = 7;
const BPF_OBJ_GET_INFO_BY_FD: u32 = 15;
const BPF_PROG_QUERY: u32 = 16;
const BPF_LINK_UPDATE: u32 = 29;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_MAP_TYPE_ARRAY_OF_MAPS: u32 = 12;

/// What the kernel says of a cgroup link: the start of `struct bpf_link_info`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct CgroupLinkInfo {
    pub(super) link_type: u32,
    pub(super) id: u32,
    pub(super) program_id: u32,
    pad: u32,
    /// The cgroup's inode number; 0: the cgroup was removed.
    pub(super) cgroup_id: u64,
    pub(super) attach_type: u32,
    pad_end: u32,
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Attr {
        pathname: u64,
        bpf_fd: u32,
        file_flags: u32,
    }
    let pathname = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = Attr {
        pathname: pathname.as_ptr().expose_provenance() as u64,
        ..Attr::zeroed()
    };
    // SAFETY: `pathname` is a live string that ends in zero.
    let fd = unsafe { bpf(BPF_OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel says of a TCX link: another start of `struct bpf_link_info`.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub(super) struct TcxLinkInfo {
    pub(super) link_type: u32,
    pub(super) id: u32,
    pub(super) program_id: u32,
    pad: u32,
    /// The interface's number in its network namespace; 0: the interface was removed.
    pub(super) index: u32,
    pub(super) attach_type: u32,
    pad_end: u64,
}

/// Describes a cgroup link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<CgroupLinkInfo> {
    info(link)
}

/// Describes a TCX link.
pub(super) fn tcx_link_info(link: BorrowedFd<'_>) -> io::Result<TcxLinkInfo> {
    info(link)
}

fn info<T: Pod>(link: BorrowedFd<'_>) -> io::Result<T> {
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Attr {
        bpf_fd: u32,
        info_len: u32,
        info: u64,
    }
    const INFO_LEN: u32 = 32;
    const { assert!(size_of::<T>() == INFO_LEN as usize) }

    let mut info = T::zeroed();
    let mut attr = Attr {
        bpf_fd: number(link),
        info_len: INFO_LEN,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: `info` is live, `info_len` bytes long, and any bytes are a T.
    unsafe { bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// The ids of the TCX links at an interface of this network namespace, in the order in which they run.
/// `InvalidInput`: this kernel has no TCX.
pub(super) fn tcx_links(index: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    /// `BPF_MPROG_MAX`.
    const MAX: u32 = 64;
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Attr {
        target_ifindex: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        prog_ids: u64,
        count: u32,
        pad: u32,
        prog_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    let (mut programs, mut links) = ([0_u32; MAX as usize], [0_u32; MAX as usize]);
    let mut attr = Attr {
        target_ifindex: index,
        attach_type,
        prog_ids: programs.as_mut_ptr().expose_provenance() as u64,
        count: MAX,
        link_ids: links.as_mut_ptr().expose_provenance() as u64,
        ..Attr::zeroed()
    };
    // SAFETY: both arrays are live and hold `count` numbers.
    match unsafe { bpf(BPF_PROG_QUERY, &mut attr) } {
        Ok(_) => Ok(links[..attr.count.min(MAX) as usize].to_vec()),
        // Some kernels say so where nothing was ever attached.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Makes a link run another program, with no call in between that meets none.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Attr {
        link_fd: u32,
        new_prog_fd: u32,
        flags: u32,
        old_prog_fd: u32,
    }
    let mut attr = Attr {
        link_fd: number(link),
        new_prog_fd: number(program),
        ..Attr::zeroed()
    };
    // SAFETY: the attribute holds no address.
    unsafe { bpf(BPF_LINK_UPDATE, &mut attr) }?;
    Ok(())
}

/// Creates an array of one 32-bit number.
pub(super) fn create_array() -> io::Result<OwnedFd> {
    create_map(BPF_MAP_TYPE_ARRAY, 0)
}

/// Creates an array of one map, for maps like `inner`.
pub(super) fn create_outer_array(inner: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    create_map(BPF_MAP_TYPE_ARRAY_OF_MAPS, number(inner))
}

fn create_map(map_type: u32, inner_map_fd: u32) -> io::Result<OwnedFd> {
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Attr {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        map_flags: u32,
        inner_map_fd: u32,
    }
    let mut attr = Attr {
        map_type,
        key_size: 4,
        value_size: 4,
        max_entries: 1,
        map_flags: 0,
        inner_map_fd,
    };
    // SAFETY: the attribute holds no address.
    let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr) }?;
    // SAFETY: the kernel has just opened it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The cookie of the network namespace that a socket was made in. Since 5.14.
pub(super) fn netns_cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut len: libc::socklen_t = 8;
    // SAFETY: `cookie` and `len` are live, and `len` says how many bytes `cookie` has.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(cookie),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The key after this one in a hash whose keys are such values; the first, where this one is not there.
/// `None`: there is none.
pub(super) fn next_key<K: Pod>(map: &MapData, key: Option<&K>) -> io::Result<Option<K>> {
    #[derive(Clone, Copy, Pod, Zeroable)]
    #[repr(C)]
    struct Attr {
        map_fd: u32,
        pad: u32,
        key: u64,
        next_key: u64,
    }
    let info = map.info().map_err(io::Error::other)?;
    if info.key_size() as usize != size_of::<K>() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut next = K::zeroed();
    let key = key.map_or(ptr::null(), ptr::from_ref);
    let mut attr = Attr {
        map_fd: number(map.fd().as_fd()),
        pad: 0,
        key: key.expose_provenance() as u64,
        next_key: (&raw mut next).expose_provenance() as u64,
    };
    // SAFETY: both keys are live, or the first is null, and as long as the map's are.
    match unsafe { bpf(BPF_MAP_GET_NEXT_KEY, &mut attr) } {
        Ok(_) => Ok(Some(next)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_fd().as_raw_fd().cast_unsigned()
}

/// # Safety
///
/// Addresses in the attribute are valid for what the command does there.
unsafe fn bpf<A: Pod>(command: u32, attr: &mut A) -> io::Result<i32> {
    // SAFETY: the kernel reads and writes no more than the attribute's own length, and any bytes are an
    // A; the caller argues for addresses inside it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, ptr::from_mut(attr), size_of::<A>()) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
