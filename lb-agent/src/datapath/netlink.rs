//! What the agent asks the kernel's routing family: which interfaces there are, and the qdisc and filters
//! on them. Each question is one blocking exchange on a socket of its own, which the kernel answers at
//! once; what changes is told on another, and a change only says that it is time to ask again.
#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "the kernel says more than is asked"
)]

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context, Result};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteMessage},
    tc::{TcAttribute, TcBpfFlags, TcFilterBpf, TcFilterBpfOption, TcHandle, TcMessage, TcOption},
};
use netlink_sys::{
    AsyncSocket, AsyncSocketExt, Socket, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE,
};

use crate::datapath::interface::{Interface, Kind};

/// The interfaces of this network namespace, in the order of their numbers.
///
/// # Errors
///
/// The kernel did not answer, or not intelligibly.
pub fn interfaces() -> Result<Vec<Interface>> {
    let question = RouteNetlinkMessage::GetLink(LinkMessage::default());
    let answers = ask(question, NLM_F_DUMP).context("asking for the interfaces")?;
    let mut interfaces: Vec<_> = answers.into_iter().filter_map(interface).collect();
    interfaces.sort_by_key(|interface| interface.index);
    Ok(interfaces)
}

/// What of this network namespace decides how clients are hidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Machine {
    /// Those by which others may reach it.
    pub addresses: Vec<IpAddr>,
    /// What the kernel would choose to reach others.
    pub sources: Vec<IpAddr>,
    pub interfaces: Vec<Interface>,
}

impl Machine {
    /// # Errors
    ///
    /// The kernel did not answer, or not intelligibly.
    pub fn read() -> Result<Self> {
        let question = RouteNetlinkMessage::GetAddress(AddressMessage::default());
        let answers = ask(question, NLM_F_DUMP).context("asking for the addresses")?;
        Ok(Self {
            addresses: answers.into_iter().filter_map(address).collect(),
            sources: ELSEWHERE.into_iter().filter_map(source_to).collect(),
            interfaces: interfaces()?,
        })
    }
}

/// Addresses of nobody (RFC 5737 and 3849), which take the default route. Nothing is sent there.
const ELSEWHERE: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
];

/// A peer's address is not ours: `Local` says which is, where both are told.
fn address(answer: RouteNetlinkMessage) -> Option<IpAddr> {
    let RouteNetlinkMessage::NewAddress(message) = answer else {
        return None;
    };
    if message.header.scope != AddressScope::Universe {
        return None;
    }
    let find = |of: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(of);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(addr) => Some(*addr),
        _ => None,
    });
    local.or_else(|| {
        find(|attribute| match attribute {
            AddressAttribute::Address(addr) => Some(*addr),
            _ => None,
        })
    })
}

/// The address that the kernel would send from; `None`: there is no way there.
fn source_to(addr: IpAddr) -> Option<IpAddr> {
    let mut message = RouteMessage::default();
    (
        message.header.address_family,
        message.header.destination_prefix_length,
    ) = match addr {
        IpAddr::V4(_) => (AddressFamily::Inet, 32),
        IpAddr::V6(_) => (AddressFamily::Inet6, 128),
    };
    message.attributes = vec![RouteAttribute::Destination(addr.into())];
    let answers = ask(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK).ok()?;
    answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewRoute(route) = answer else {
            return None;
        };
        route
            .attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(addr)) => Some(IpAddr::V4(addr)),
                RouteAttribute::PrefSource(RouteAddress::Inet6(addr)) => Some(IpAddr::V6(addr)),
                _ => None,
            })
    })
}

fn interface(answer: RouteNetlinkMessage) -> Option<Interface> {
    let RouteNetlinkMessage::NewLink(link) = answer else {
        return None;
    };
    let mut found = Interface {
        index: link.header.index,
        name: String::new(),
        kind: Kind::Other,
        is_ethernet: link.header.link_layer_type == LinkLayerType::Ether,
        master: None,
    };
    for attribute in link.attributes {
        match attribute {
            LinkAttribute::IfName(name) => found.name = name,
            LinkAttribute::Controller(0) => {}
            LinkAttribute::Controller(index) => found.master = Some(index),
            LinkAttribute::LinkInfo(infos) => found.kind = kind(&infos),
            _ => {}
        }
    }
    Some(found)
}

fn kind(infos: &[LinkInfo]) -> Kind {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    match kind {
        Some(InfoKind::Bridge) => Kind::Bridge,
        Some(InfoKind::Bond | InfoKind::Team) => Kind::Bond,
        Some(InfoKind::Dummy) => Kind::Dummy,
        _ => Kind::Other,
    }
}

/// A filter on an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    pub(super) priority: u16,
    pub(super) handle: u32,
    /// `None`: it is of another kind than BPF.
    pub(super) program_id: Option<u32>,
}

/// Where a filter hangs below the qdisc clsact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parent {
    Ingress,
    Egress,
}

impl Parent {
    fn handle(self) -> TcHandle {
        TcHandle {
            major: TcHandle::CLSACT.major,
            minor: match self {
                Self::Ingress => TcHandle::MIN_INGRESS,
                Self::Egress => TcHandle::MIN_EGRESS,
            },
        }
    }
}

/// The filters there; none where there is no clsact.
pub(super) fn filters(index: u32, parent: Parent) -> io::Result<Vec<Filter>> {
    let mut message = about(index)?;
    message.header.parent = parent.handle();
    let question = RouteNetlinkMessage::GetTrafficFilter(message);
    match ask(question, NLM_F_DUMP) {
        Ok(answers) => Ok(answers.into_iter().filter_map(filter).collect()),
        // There is no such parent.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The kernel names each filter, and before it the chain that it hangs in, whose handle is 0.
fn filter(answer: RouteNetlinkMessage) -> Option<Filter> {
    let RouteNetlinkMessage::NewTrafficFilter(message) = answer else {
        return None;
    };
    let handle = u32::from(message.header.handle);
    let options = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            TcAttribute::Options(options) => Some(options),
            _ => None,
        });
    let program_id = options
        .into_iter()
        .flatten()
        .find_map(|option| match option {
            TcOption::Bpf(TcFilterBpfOption::ProgId(id)) => Some(*id),
            _ => None,
        });
    (handle != 0).then(|| Filter {
        priority: u16::try_from(message.header.info >> 16).unwrap_or_default(),
        handle,
        program_id,
    })
}

/// A BPF filter to be.
pub(super) struct BpfFilter<'a> {
    pub(super) index: u32,
    pub(super) parent: Parent,
    pub(super) priority: u16,
    pub(super) handle: u32,
    pub(super) name: &'a str,
    pub(super) program: u32,
}

impl BpfFilter<'_> {
    /// Makes it, unless there is one in its place: `AlreadyExists`.
    pub(super) fn make(&self) -> io::Result<()> {
        self.set(NLM_F_CREATE | NLM_F_EXCL)
    }

    /// Gives the one in its place another program. No packet meets both or none.
    pub(super) fn replace(&self) -> io::Result<()> {
        self.set(NLM_F_CREATE)
    }

    fn set(&self, flags: u16) -> io::Result<()> {
        let mut message = in_place(self.index, self.parent, self.priority, self.handle)?;
        let options = [
            TcFilterBpfOption::ProgFd(self.program),
            TcFilterBpfOption::ProgName(self.name.to_owned()),
            TcFilterBpfOption::Flags(TcBpfFlags::DirectAction),
        ];
        message.attributes = vec![
            TcAttribute::Kind(TcFilterBpf::KIND.to_owned()),
            TcAttribute::Options(options.map(TcOption::Bpf).into()),
        ];
        tell(RouteNetlinkMessage::NewTrafficFilter(message), flags)
    }
}

/// Removes the filter in a place.
pub(super) fn remove_filter(
    index: u32,
    parent: Parent,
    priority: u16,
    handle: u32,
) -> io::Result<()> {
    let message = in_place(index, parent, priority, handle)?;
    tell(RouteNetlinkMessage::DelTrafficFilter(message), 0)
}

/// Adds the qdisc that filters hang below; `AlreadyExists`.
pub(super) fn add_clsact(index: u32) -> io::Result<()> {
    let message = RouteNetlinkMessage::NewQueueDiscipline(clsact(index)?);
    tell(message, NLM_F_CREATE | NLM_F_EXCL)
}

/// Removes the qdisc, and whatever hangs below it.
pub(super) fn remove_clsact(index: u32) -> io::Result<()> {
    tell(RouteNetlinkMessage::DelQueueDiscipline(clsact(index)?), 0)
}

fn clsact(index: u32) -> io::Result<TcMessage> {
    let mut message = about(index)?;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.header.parent = TcHandle::CLSACT;
    message.attributes = vec![TcAttribute::Kind("clsact".to_owned())];
    Ok(message)
}

fn in_place(index: u32, parent: Parent, priority: u16, handle: u32) -> io::Result<TcMessage> {
    /// `ETH_P_ALL`, as it lies in a packet.
    const ALL_PROTOCOLS: u16 = 3_u16.to_be();

    let mut message = about(index)?;
    message.header.parent = parent.handle();
    message.header.handle = handle.into();
    message.header.info = u32::from(priority) << 16 | u32::from(ALL_PROTOCOLS);
    Ok(message)
}

fn about(index: u32) -> io::Result<TcMessage> {
    let index = i32::try_from(index).map_err(io::Error::other)?;
    Ok(TcMessage::with_index(index))
}

fn tell(message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
    ask(message, NLM_F_ACK | flags).map(drop)
}

/// Asks, and collects what is answered until its end.
fn ask(question: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = NetlinkMessage::new(NetlinkHeader::default(), question.into());
    message.header.flags = NLM_F_REQUEST | flags;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send(&bytes, 0)?;

    let mut answers = Vec::new();
    loop {
        for payload in payloads(&socket.recv_from_full()?.0) {
            match payload? {
                NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                // An error of code 0 is an acknowledgement.
                NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok(answers),
                _ => {}
            }
        }
    }
}

/// The messages in what was received at once.
fn payloads(
    mut bytes: &[u8],
) -> impl Iterator<Item = io::Result<NetlinkPayload<RouteNetlinkMessage>>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let message = match NetlinkMessage::deserialize(bytes) {
            Ok(message) => message,
            Err(error) => {
                bytes = &[];
                let error = io::Error::other(format!("an answer of the kernel: {error}"));
                return Some(Err(error));
            }
        };
        let length = (message.header.length as usize).next_multiple_of(4);
        bytes = bytes.get(length..).unwrap_or_default();
        Some(Ok(message.payload))
    })
}

/// Follows interfaces and addresses of this network namespace.
pub struct Follower {
    socket: TokioSocket,
}

/// What may have changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Interfaces with these numbers went away. Others may have the numbers by now.
    pub gone: Vec<u32>,
    /// Some changes were not told, as too many came at once.
    pub lost: bool,
}

impl Follower {
    /// # Errors
    ///
    /// The kernel refuses.
    pub fn new() -> Result<Self> {
        Self::bind().context("following this machine's interfaces by netlink")
    }

    fn bind() -> io::Result<Self> {
        const LINKS: u32 = 1;
        const V4_ADDRESSES: u32 = 0x10;
        const V6_ADDRESSES: u32 = 0x100;

        let mut socket = <TokioSocket as AsyncSocket>::new(NETLINK_ROUTE)?;
        let groups = SocketAddr::new(0, LINKS | V4_ADDRESSES | V6_ADDRESSES);
        socket.socket_mut().bind(&groups)?;
        Ok(Self { socket })
    }

    /// Waits until something has changed, and takes all that is told by then.
    ///
    /// # Errors
    ///
    /// The socket is broken.
    pub async fn changed(&mut self) -> Result<Change> {
        let mut change = Change::default();
        let mut told = self.socket.recv_from_full().await;
        loop {
            match told {
                Ok((bytes, _)) => change.add(&bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(change),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => change.lost = true,
                Err(error) => return Err(error).context("following this machine's interfaces"),
            }
            told = self.socket.socket_ref().recv_from_full();
        }
    }
}

impl Change {
    /// What cannot be read is a change like any other.
    fn add(&mut self, bytes: &[u8]) {
        for payload in payloads(bytes) {
            // A port that leaves its bridge is told by the same message of another family.
            if let Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelLink(link))) = payload
                && link.header.interface_family == AddressFamily::Unspec
            {
                self.gone.push(link.header.index);
            }
        }
    }
}
