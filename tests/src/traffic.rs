//! What an application in a pod does with sockets. Each method is one socket call or one exchange,
//! and an error is the errno the application gets.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6, ToSocketAddrs};

use rustix::io::Errno;
use serde::de::DeserializeOwned;

use crate::{
    lab::Pod,
    must,
    protocol::{
        Abuse, Answer, Datagram, Family, Request, Serve, SocketId, Tally, Target, Timed, Transport,
    },
};

/// The IPv4 address as an `AF_INET6` socket names it: `[::ffff:a.b.c.d]:port`.
#[must_use]
pub fn mapped(addr: impl ToSocketAddrs) -> SocketAddr {
    match address(addr) {
        SocketAddr::V4(v4) => {
            let ip: Ipv6Addr = v4.ip().to_ipv6_mapped();
            SocketAddrV6::new(ip, v4.port(), 0, 0).into()
        }
        v6 @ SocketAddr::V6(_) => v6,
    }
}

/// `"10.96.0.10:80"` or anything else that is an address already.
#[must_use]
pub fn address(addr: impl ToSocketAddrs) -> SocketAddr {
    let mut addresses = must(addr.to_socket_addrs());
    addresses.next().expect("a literal address is one address")
}

impl Pod {
    /// Answers at this port, over IPv4 and IPv6, until the lab ends.
    pub fn serve(&self, serve: Serve, port: u16) {
        for at in [self.at(port), self.at6(port)] {
            let listening = self.call::<()>(&Request::Serve { serve, at });
            must(listening.map_err(|errno| format!("serve at {at}: {errno}")));
        }
    }

    /// Answers at this port of every address in an IPv4 range, all of which the pod gets.
    pub fn serve_range(&self, range: &str, port: u16) {
        self.add_range(range);
        let serve = Serve::Tcp;
        let at = (Ipv4Addr::UNSPECIFIED, port).into();
        let listening = self.call::<()>(&Request::Serve { serve, at });
        must(listening.map_err(|errno| format!("serve at {range}: {errno}")));
    }

    /// How many requests the server at this port has answered, over both families.
    #[must_use]
    pub fn answered(&self, serve: Serve, port: u16) -> u32 {
        let count = |at| must(self.call::<u32>(&Request::Answered { serve, at }));
        count(self.at(port)) + count(self.at6(port))
    }

    /// A TCP connection.
    pub fn tcp(&self, to: impl ToSocketAddrs) -> Result<Socket<'_>, Errno> {
        self.connected(Transport::Tcp, address(to))
    }

    /// A connected UDP socket.
    pub fn udp(&self, to: impl ToSocketAddrs) -> Result<Socket<'_>, Errno> {
        self.connected(Transport::Udp, address(to))
    }

    /// An unconnected UDP socket.
    #[must_use]
    pub fn udp_socket(&self, family: Family) -> Socket<'_> {
        self.open(Transport::Udp, family)
    }

    /// So many exchanges one after the other, each on a socket of its own.
    #[must_use]
    pub fn load(&self, serve: Serve, to: impl ToSocketAddrs, count: u32) -> Tally {
        let target = Target {
            to: address(to),
            serve,
        };
        must(self.call(&Request::Load { target, count }))
    }

    /// Everything that sockets allow, in random order, on sockets that threads share; all are closed in
    /// the end.
    pub fn abuse(&self, abuse: Abuse) {
        must(self.call::<()>(&Request::Abuse(abuse)));
    }

    /// Kills the pod's process with all its sockets open. The pod can do nothing after that.
    pub fn kill(&self) {
        must(self.worker().kill());
    }

    /// A TCP socket that is not connected.
    #[must_use]
    pub fn tcp_socket(&self, family: Family) -> Socket<'_> {
        self.open(Transport::Tcp, family)
    }

    /// So many connects to these addresses in turn, each timed alone. The first that fails ends it.
    pub fn time_connects(&self, to: Vec<SocketAddr>, count: u32) -> Result<Vec<Timed>, Errno> {
        self.call(&Request::TimeConnects { to, count })
    }

    /// Exchanges by several clients at once while the test goes on. One such load per pod.
    #[must_use]
    pub fn start_load(
        &self,
        serve: Serve,
        to: impl ToSocketAddrs,
        clients: u32,
    ) -> RunningLoad<'_> {
        let target = Target {
            to: address(to),
            serve,
        };
        must(self.call::<()>(&Request::StartLoad { target, clients }));
        RunningLoad { pod: self }
    }

    fn connected(&self, transport: Transport, to: SocketAddr) -> Result<Socket<'_>, Errno> {
        let socket = self.open(transport, Family::of(to));
        socket.connect(to)?;
        Ok(socket)
    }

    fn open(&self, transport: Transport, family: Family) -> Socket<'_> {
        let id = must(self.call(&Request::Open { transport, family }));
        Socket { pod: self, id }
    }

    fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, Errno> {
        must(self.worker().ask(request))
    }
}

/// A socket in a pod, closed on drop.
#[derive(Debug)]
pub struct Socket<'a> {
    pod: &'a Pod,
    id: SocketId,
}

/// What `recvfrom` gave: the sender as the kernel shows it, and the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// `None` for a TCP socket.
    pub from: Option<SocketAddr>,
    pub answer: Answer,
}

impl Socket<'_> {
    pub fn connect(&self, to: impl ToSocketAddrs) -> Result<(), Errno> {
        let (socket, to) = (self.id, address(to));
        self.pod.call(&Request::Connect { socket, to })
    }

    pub fn disconnect(&self) -> Result<(), Errno> {
        self.pod.call(&Request::Disconnect { socket: self.id })
    }

    pub fn send(&self, text: &str) -> Result<(), Errno> {
        let (socket, text) = (self.id, text.to_owned());
        self.pod.call(&Request::Send {
            socket,
            to: None,
            text,
        })
    }

    pub fn send_to(&self, to: impl ToSocketAddrs, text: &str) -> Result<(), Errno> {
        let (socket, to, text) = (self.id, Some(address(to)), text.to_owned());
        self.pod.call(&Request::Send { socket, to, text })
    }

    pub fn receive(&self) -> Result<Received, Errno> {
        let socket = self.id;
        let Datagram { from, text } = self.pod.call(&Request::Receive { socket })?;
        let answer = must(serde_json::from_str(&text));
        Ok(Received { from, answer })
    }

    /// Sends on a connected socket and takes the answer.
    pub fn ask(&self, text: &str) -> Result<Answer, Errno> {
        self.send(text)?;
        self.receive().map(|received| received.answer)
    }

    pub fn peer_name(&self) -> Result<SocketAddr, Errno> {
        self.pod.call(&Request::PeerName { socket: self.id })
    }

    pub fn local_name(&self) -> Result<SocketAddr, Errno> {
        self.pod.call(&Request::LocalName { socket: self.id })
    }
}

impl Drop for Socket<'_> {
    fn drop(&mut self) {
        // The worker may be gone when a failed test unwinds; its sockets are closed then, too.
        let _ = self
            .pod
            .worker()
            .ask::<()>(&Request::Close { socket: self.id });
    }
}

/// A load that runs until it is finished.
#[derive(Debug)]
pub struct RunningLoad<'a> {
    pod: &'a Pod,
}

impl RunningLoad<'_> {
    /// Ends the load, but not before it has had so many exchanges.
    #[must_use]
    pub fn finish(self, at_least: u32) -> Tally {
        must(self.pod.call(&Request::FinishLoad { at_least }))
    }
}
