//! Clients: single socket calls, and loads of whole exchanges. Blocking sockets with a time-out, as
//! most applications have; a connect that nobody answers ends in `EINPROGRESS`.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use lb_tests::protocol::{
    Answer, Datagram, Family, Serve, SocketId, Tally, Target, Timed, Transport,
};
use rustix::{
    io::{Errno, Result},
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketAddrAny, SocketType,
        sockopt::{Timeout, set_socket_linger, set_socket_timeout},
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

    pub(crate) fn disconnect(&self, id: SocketId) -> Result<()> {
        rustix::net::connect_unspec(self.find(id)?)
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

pub(crate) fn open(transport: Transport, family: Family) -> Result<OwnedFd> {
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

/// So many exchanges one after the other.
pub(crate) fn load(target: Target, count: u32) -> Tally {
    let mut tally = Tally::default();
    for _ in 0..count {
        exchange_once(target, &mut tally);
    }
    tally
}

/// So many connects, each timed alone.
pub(crate) fn time_connects(to: &[SocketAddr], count: u32) -> Result<Vec<Timed>> {
    let targets = to.iter().cycle().take(count as usize);
    targets.map(|to| time_connect(*to)).collect()
}

fn time_connect(to: SocketAddr) -> Result<Timed> {
    let socket = open(Transport::Tcp, Family::of(to))?;
    set_socket_linger(&socket, Some(Duration::ZERO))?;
    let begun = Instant::now();
    rustix::net::connect(&socket, &to)?;
    let connected = Instant::now();
    drop(socket);
    let closed = Instant::now();
    let nanos = |time: Duration| u32::try_from(time.as_nanos()).unwrap_or(u32::MAX);
    Ok(Timed {
        connect: nanos(connected - begun),
        close: nanos(closed - connected),
    })
}

/// The load that runs while other requests are answered.
#[derive(Default)]
pub(crate) struct Background {
    running: Option<Running>,
}

struct Running {
    had: Arc<AtomicU32>,
    /// `u32::MAX` until the load is to be finished.
    at_least: Arc<AtomicU32>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Background {
    pub(crate) fn start(&mut self, target: Target, clients: u32) -> Result<()> {
        if self.running.is_some() {
            return Err(Errno::BUSY);
        }
        let (had, at_least) = (Arc::default(), Arc::new(AtomicU32::new(u32::MAX)));
        let client = |_| {
            let (had, at_least) = (Arc::clone(&had), Arc::clone(&at_least));
            thread::spawn(move || exchanges(target, &had, &at_least))
        };
        let clients = (0..clients).map(client).collect();
        self.running = Some(Running {
            had,
            at_least,
            clients,
        });
        Ok(())
    }

    pub(crate) fn finish(&mut self, at_least: u32) -> Result<Tally> {
        let running = self.running.take().ok_or(Errno::SRCH)?;
        let wanted = at_least.max(running.had.load(Ordering::Relaxed));
        running.at_least.store(wanted, Ordering::Relaxed);
        let mut total = Tally::default();
        for client in running.clients {
            total.merge(client.join().expect("an exchange reports errors as values"));
        }
        Ok(total)
    }
}

fn exchanges(target: Target, had: &AtomicU32, at_least: &AtomicU32) -> Tally {
    let mut tally = Tally::default();
    while had.fetch_add(1, Ordering::Relaxed) < at_least.load(Ordering::Relaxed) {
        exchange_once(target, &mut tally);
    }
    tally
}

fn exchange_once(target: Target, tally: &mut Tally) {
    tally.count(exchange(target).map_err(|error| format!("{error:#}")));
}

fn exchange(target: Target) -> anyhow::Result<SocketAddr> {
    let transport = match target.serve {
        Serve::Tcp | Serve::Http | Serve::Discard => Transport::Tcp,
        Serve::Udp => Transport::Udp,
    };
    let socket = open(transport, Family::of(target.to)).context("socket")?;
    rustix::net::connect(&socket, &target.to).context("connect")?;
    match target.serve {
        Serve::Tcp => tcp(socket.into()),
        Serve::Http => http(socket.into()),
        Serve::Udp => udp(&socket.into()),
        Serve::Discard => Ok(target.to),
    }
}

fn tcp(mut stream: TcpStream) -> anyhow::Result<SocketAddr> {
    stream.write_all(b"who\n").context("send")?;
    // Ended by a reset: tens of thousands of connections would otherwise wait for stray segments, each
    // with a port of its own.
    set_socket_linger(&stream, Some(Duration::ZERO)).context("set SO_LINGER")?;
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
