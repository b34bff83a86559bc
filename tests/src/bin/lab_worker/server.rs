//! Servers that say who they are and whom they see: the answer proves where traffic arrived.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
};

use lb_tests::protocol::{Answer, Serve};
use rustix::io::Errno;

/// The servers of this pod, with how often each has answered.
#[derive(Default)]
pub(crate) struct Servers {
    answered: BTreeMap<(u8, SocketAddr), Arc<AtomicU32>>,
}

impl Servers {
    pub(crate) fn start(&mut self, serve: Serve, at: SocketAddr) -> rustix::io::Result<()> {
        let count = Arc::new(AtomicU32::new(0));
        self.answered.insert((serve as u8, at), Arc::clone(&count));
        match serve {
            Serve::Tcp => accept(TcpListener::bind(at), count, echo),
            Serve::Http => accept(TcpListener::bind(at), count, respond),
            Serve::Discard => discard(TcpListener::bind(at), count),
            Serve::Udp => {
                let socket = UdpSocket::bind(at).map_err(errno)?;
                thread::spawn(move || datagrams(&socket, at, &count));
                Ok(())
            }
        }
    }

    pub(crate) fn answered(&self, serve: Serve, at: SocketAddr) -> u32 {
        let count = self.answered.get(&(serve as u8, at));
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

type Exchange = fn(TcpStream, SocketAddr, &AtomicU32) -> io::Result<()>;

fn accept(
    listener: io::Result<TcpListener>,
    count: Arc<AtomicU32>,
    exchange: Exchange,
) -> rustix::io::Result<()> {
    let listener = listener.map_err(errno)?;
    thread::spawn(move || {
        while let Ok((stream, client)) = listener.accept() {
            let count = Arc::clone(&count);
            // A client that goes away in the middle is the client's business.
            thread::spawn(move || exchange(stream, client, &count).ok());
        }
    });
    Ok(())
}

/// On one thread and with a long queue: a benchmark's clients must not wait for it.
fn discard(listener: io::Result<TcpListener>, count: Arc<AtomicU32>) -> rustix::io::Result<()> {
    let listener = listener.map_err(errno)?;
    rustix::net::listen(&listener, 4096)?;
    thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            count.fetch_add(1, Ordering::Relaxed);
            drop(stream);
        }
    });
    Ok(())
}

fn echo(stream: TcpStream, client: SocketAddr, count: &AtomicU32) -> io::Result<()> {
    let server = stream.local_addr()?;
    for line in BufReader::new(stream.try_clone()?).lines() {
        let mut answer = answer(server, client, &line?)?;
        answer.push('\n');
        count.fetch_add(1, Ordering::Relaxed);
        (&stream).write_all(answer.as_bytes())?;
    }
    Ok(())
}

fn respond(stream: TcpStream, _: SocketAddr, count: &AtomicU32) -> io::Result<()> {
    let mut head = BufReader::new(stream.try_clone()?).lines();
    while head
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let body = stream.local_addr()?.to_string();
    count.fetch_add(1, Ordering::Relaxed);
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

fn datagrams(socket: &UdpSocket, server: SocketAddr, count: &AtomicU32) {
    let mut buffer = [0; 2048];
    // An ICMP error of an earlier answer shows up as an error here and must not end the server.
    loop {
        let Ok((length, client)) = socket.recv_from(&mut buffer) else {
            continue;
        };
        let text = String::from_utf8_lossy(&buffer[..length]);
        let Ok(answer) = answer(server, client, &text) else {
            continue;
        };
        count.fetch_add(1, Ordering::Relaxed);
        let _ = socket.send_to(answer.as_bytes(), client);
    }
}

fn answer(server: SocketAddr, client: SocketAddr, text: &str) -> io::Result<String> {
    let answer = Answer {
        server,
        client,
        text: text.to_owned(),
    };
    serde_json::to_string(&answer).map_err(io::Error::other)
}

fn errno(error: io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}
