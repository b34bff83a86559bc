//! What a real API server cannot be made to show: a proxy between it and an agent that says nothing,
//! breaks off, is slow, or answers in its stead. Upstream of it is `kubectl proxy`, which speaks plain
//! HTTP and knows who asks, so what passes here can be read and cut anywhere.

use std::{
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::Context;
use rustix::net::Shutdown as How;

use crate::{
    must, wait,
    worker::{Place, lock},
};

/// What the proxy does to those who talk through it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Passes on what it gets.
    #[default]
    None,
    /// Takes connections and bytes, and passes nothing on: neither side hears of an end.
    Silence,
    /// Passes an answer on in small pieces with a pause after each.
    Slow,
    /// Passes on the beginning of an answer with objects in it, and breaks off.
    Tear,
    /// Answers requests for such paths with this status by itself.
    Answer {
        path: &'static str,
        status: &'static str,
    },
}

/// Bytes that pass at once while it is slow, and the pause after them: some 100 kB each second.
const PIECE: usize = 1024;
const PAUSE: Duration = Duration::from_millis(10);
/// How much of an answer passes before it is torn: its head, and the beginning of the list in it.
const TORN: usize = 1024;

/// A proxy, which ends when it is dropped.
#[derive(Debug)]
pub struct FaultyProxy {
    at: SocketAddr,
    shared: Arc<Shared>,
    listener: TcpListener,
    accepting: Option<JoinHandle<()>>,
    kubectl: Child,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    upstream: SocketAddr,
}

#[derive(Debug, Default)]
struct State {
    fault: Fault,
    /// How many requests met the fault.
    met: u32,
    ended: bool,
    /// Both ends of every connection.
    open: Vec<TcpStream>,
}

impl FaultyProxy {
    /// Listens at `at`, and talks to the `kubectl proxy` that this command starts at `upstream`.
    pub(super) fn start(
        place: &Place,
        at: SocketAddr,
        upstream: SocketAddr,
        kubectl: Command,
    ) -> anyhow::Result<Self> {
        let kubectl = start_kubectl(kubectl, upstream)?;
        let bind = || TcpListener::bind(at).with_context(|| format!("listen at {at}"));
        let listener = place.netns.run(bind)?;
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            upstream,
        });
        let proxy = Self {
            at,
            accepting: Some(start_accepting(place, listener.try_clone()?, &shared)),
            shared,
            listener,
            kubectl,
        };
        wait::until("kubectl proxy", wait::PATIENCE, || {
            place.netns.run(|| Ok(TcpStream::connect(upstream)?))
        })?;
        Ok(proxy)
    }

    /// What an agent is given as its API server.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.at)
    }

    /// From now on, also for connections that are open.
    pub fn set(&self, fault: Fault) {
        let mut state = self.shared.lock();
        state.fault = fault;
        state.met = 0;
        self.shared.changed.notify_all();
    }

    /// How many requests have met the fault that is set.
    #[must_use]
    pub fn met(&self) -> u32 {
        self.shared.lock().met
    }

    /// Ends all connections, as a proxy does that is started anew.
    pub fn cut(&self) {
        self.shared.lock().cut();
    }
}

impl Drop for FaultyProxy {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.cut();
        drop(state);
        self.shared.changed.notify_all();
        // Wakes the thread that accepts.
        let _ = rustix::net::shutdown(&self.listener, How::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let _ = self.kubectl.kill();
        let _ = self.kubectl.wait();
    }
}

impl State {
    fn cut(&mut self) {
        for stream in self.open.drain(..) {
            // One that has ended by itself is cut already.
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The fault that bytes meet which come in now. Waits until one passes that holds them back; `None`
    /// at the end.
    fn fault(&self) -> Option<Fault> {
        let mut state = self.lock();
        loop {
            match state.fault {
                _ if state.ended => return None,
                Fault::Silence => {
                    state.met += 1;
                    state = self
                        .changed
                        .wait(state)
                        .unwrap_or_else(PoisonError::into_inner);
                }
                Fault::None | Fault::Slow | Fault::Tear | Fault::Answer { .. } => {
                    return Some(state.fault.clone());
                }
            }
        }
    }

    fn pause(&self) {
        let state = self.lock();
        drop(self.changed.wait_timeout(state, PAUSE));
    }

    fn count(&self) {
        self.lock().met += 1;
    }
}

fn start_kubectl(mut kubectl: Command, at: SocketAddr) -> anyhow::Result<Child> {
    kubectl
        .arg("proxy")
        .arg(format!("--address={}", at.ip()))
        .arg(format!("--port={}", at.port()))
        .arg("--accept-hosts=.*")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("start kubectl proxy")
}

/// On a thread in the place, from which its connections upstream begin too.
fn start_accepting(place: &Place, listener: TcpListener, shared: &Arc<Shared>) -> JoinHandle<()> {
    let (netns, shared) = (place.netns.clone(), Arc::clone(shared));
    thread::spawn(move || {
        must(netns.enter());
        accept(&listener, &shared);
    })
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, _)) = listener.accept() {
        // An upstream that is away looks like a server that is away: the connection ends.
        let Ok(server) = TcpStream::connect(shared.upstream) else {
            continue;
        };
        if relay(client, server, shared).is_err() {
            return;
        }
    }
}

/// Starts both directions of a connection.
fn relay(client: TcpStream, server: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    let both = [client.try_clone()?, server.try_clone()?];
    shared.lock().open.extend(both);
    let (to_client, to_server) = (client.try_clone()?, server.try_clone()?);
    let (up, down) = (Arc::clone(shared), Arc::clone(shared));
    thread::spawn(move || {
        let _ = requests(&client, &to_server, &up);
        close(&client, &to_server);
    });
    thread::spawn(move || {
        let _ = answers(&server, &to_client, &down);
        close(&server, &to_client);
    });
    Ok(())
}

fn close(one: &TcpStream, other: &TcpStream) {
    let _ = one.shutdown(Shutdown::Both);
    let _ = other.shutdown(Shutdown::Both);
}

/// A request of a watch or a list has no body, and comes in one piece.
fn requests(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer)?;
        let Some(fault) = shared.fault().filter(|_| length > 0) else {
            return Ok(());
        };
        let request = String::from_utf8_lossy(&buffer[..length]);
        let line = request.lines().next().unwrap_or_default();
        match fault {
            Fault::Answer { path, status } if line.contains(path) => {
                shared.count();
                from.write_all(refusal(status).as_bytes())?;
            }
            Fault::None | Fault::Silence | Fault::Slow | Fault::Tear | Fault::Answer { .. } => {
                to.write_all(&buffer[..length])?;
            }
        }
    }
}

fn refusal(status: &str) -> String {
    let (code, reason) = status.split_once(' ').unwrap_or((status, ""));
    let body = format!(
        r#"{{"kind":"Status","apiVersion":"v1","metadata":{{}},"status":"Failure","reason":"{reason}","message":"{status}","code":{code}}}"#
    );
    format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}

fn answers(mut from: &TcpStream, mut to: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut buffer = [0; 16 * 1024];
    loop {
        let length = from.read(&mut buffer)?;
        let Some(fault) = shared.fault().filter(|_| length > 0) else {
            return Ok(());
        };
        let bytes = &buffer[..length];
        match fault {
            Fault::Slow => {
                shared.count();
                for piece in bytes.chunks(PIECE) {
                    to.write_all(piece)?;
                    shared.pause();
                }
            }
            Fault::Tear if bytes.len() > TORN => {
                shared.count();
                return to.write_all(&bytes[..TORN]);
            }
            Fault::None | Fault::Silence | Fault::Tear | Fault::Answer { .. } => {
                to.write_all(bytes)?;
            }
        }
    }
}
