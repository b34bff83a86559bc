//! Clients: single socket calls, and loads of whole exchanges. Blocking sockets with a time-out, as
//! most applications have; a connect that nobody answers ends in `EINPROGRESS`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    thread,
    time::Duration,
};

use anyhow::{Context, ensure};
use lb_tests::protocol::{Answer, Datagram, Family, Load, Serve, SocketId, Tally, Transport};
use rustix::{
    io::{Errno, Result},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketType,
        sockopt::{Timeout, set_socket_timeout},
    },
};

/// A blocked call gives up after this; long enough for a loaded machine, short enough for a test
/// that wants to see the time-out.
const GIVE_UP: Duration = Duration::from_secs(2);

/// The sockets that the test has open.
#[derive(Default)]
pub(crate) struct Sockets {
    open: BTreeMap<SocketId, OwnedFd>,
    opened: u32,
}

impl Sockets {
    pub(crate) fn open(&mut self, transport: Transport, family: Family) -> Result<SocketId> {
        let socket = open(transport, family)?;
        self.opened += 1;
        let id = SocketId(self.opened);
        self.open.insert(id, socket);
        Ok(id)
    }

    pub(crate) fn connect(&self, id: SocketId, to: SocketAddr) -> Result<()> {
        rustix::net::connect(self.find(id)?, &to)?;
        Ok(())
    }

    pub(crate) fn send(&self, id: SocketId, to: Option<SocketAddr>, text: &str) -> Result<()> {
        let socket = self.find(id)?;
        match to {
            Some(to) => rustix::net::sendto(socket, text.as_bytes(), SendFlags::NOSIGNAL, &to)?,
            // A line for a TCP server; a UDP server does not mind.
            None => {
                let line = format!("{text}\n");
                rustix::net::send(socket, line.as_bytes(), SendFlags::NOSIGNAL)?
            }
        };
        Ok(())
    }

    pub(crate) fn receive(&self, id: SocketId) -> Result<Datagram> {
        let mut buffer = [0; 2048];
        let socket = self.find(id)?;
        let (_, length, from) = rustix::net::recvfrom(socket, &mut buffer[..], RecvFlags::empty())?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok(Datagram {
            from: from.and_then(ip),
            text,
        })
    }

    pub(crate) fn peer_name(&self, id: SocketId) -> Result<SocketAddr> {
        let name = rustix::net::getpeername(self.find(id)?)?;
        name.and_then(ip).ok_or(Errno::NOTCONN)
    }

    pub(crate) fn local_name(&self, id: SocketId) -> Result<SocketAddr> {
        let name = rustix::net::getsockname(self.find(id)?)?;
        ip(name).ok_or(Errno::AFNOSUPPORT)
    }

    pub(crate) fn close(&mut self, id: SocketId) -> Result<()> {
        self.open.remove(&id).map(drop).ok_or(Errno::BADF)
    }

    fn find(&self, id: SocketId) -> Result<&OwnedFd> {
        self.open.get(&id).ok_or(Errno::BADF)
    }
}

fn open(transport: Transport, family: Family) -> Result<OwnedFd> {
    let family = match family {
        Family::Inet => AddressFamily::INET,
        Family::Inet6 => AddressFamily::INET6,
    };
    let kind = match transport {
        Transport::Tcp => SocketType::STREAM,
        Transport::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket(family, kind, None)?;
    for timeout in [Timeout::Send, Timeout::Recv] {
        set_socket_timeout(&socket, timeout, Some(GIVE_UP))?;
    }
    Ok(socket)
}

fn ip(name: SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(name).ok()
}

/// Runs a load, its exchanges shared evenly by its clients.
pub(crate) fn run(load: Load) -> Tally {
    let clients = load.clients.max(1);
    let share = |client| load.count / clients + u32::from(client < load.count % clients);
    thread::scope(|scope| {
        let running: Vec<_> = (0..clients)
            .map(|client| scope.spawn(move || exchanges(load, share(client))))
            .collect();
        let mut total = Tally::default();
        for client in running {
            total.merge(client.join().expect("an exchange reports errors as values"));
        }
        total
    })
}

fn exchanges(load: Load, count: u32) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..count {
        tally.count(exchange(load).map_err(|error| format!("{error:#}")));
    }
    tally
}

fn exchange(load: Load) -> anyhow::Result<SocketAddr> {
    let transport = match load.serve {
        Serve::Tcp | Serve::Http => Transport::Tcp,
        Serve::Udp => Transport::Udp,
    };
    let socket = open(transport, Family::of(load.to)).context("socket")?;
    rustix::net::connect(&socket, &load.to).context("connect")?;
    match load.serve {
        Serve::Tcp => tcp(socket.into()),
        Serve::Http => http(socket.into()),
        Serve::Udp => udp(&socket.into()),
    }
}

fn tcp(mut stream: TcpStream) -> anyhow::Result<SocketAddr> {
    stream.write_all(b"who\n").context("send")?;
    let mut line = String::new();
    BufReader::new(stream)
        .read_line(&mut line)
        .context("receive")?;
    server_of(line.as_bytes())
}

fn udp(socket: &UdpSocket) -> anyhow::Result<SocketAddr> {
    socket.send(b"who").context("send")?;
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).context("receive")?;
    server_of(&buffer[..length])
}

fn http(mut stream: TcpStream) -> anyhow::Result<SocketAddr> {
    stream
        .write_all(b"GET / HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")
        .context("send")?;
    let mut response = String::new();
    stream.read_to_string(&mut response).context("receive")?;
    let (head, body) = response
        .split_once("\r\n\r\n")
        .context("the response has no body")?;
    ensure!(
        head.starts_with("HTTP/1.1 200 "),
        "the response is not a 200: {head}"
    );
    body.parse()
        .with_context(|| format!("the body is no address: {body}"))
}

fn server_of(answer: &[u8]) -> anyhow::Result<SocketAddr> {
    let answer: Answer = serde_json::from_slice(answer).context("the answer was cut off")?;
    Ok(answer.server)
}
