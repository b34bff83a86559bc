//! What a test asks of a worker and what it gets back, one JSON value per line. A client request is
//! one socket call, so that a test says exactly which calls an application makes.

use std::{collections::BTreeMap, net::SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A socket of the worker's, until it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SocketId(pub u32);

/// What a socket is opened as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    Tcp,
    Udp,
}

/// The address family of a socket: an `Inet6` one also reaches `::ffff:a.b.c.d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Family {
    Inet,
    Inet6,
}

impl Family {
    /// The family of the socket that `connect` or `sendto` with this address needs.
    #[must_use]
    pub const fn of(addr: SocketAddr) -> Self {
        match addr {
            SocketAddr::V4(_) => Self::Inet,
            SocketAddr::V6(_) => Self::Inet6,
        }
    }
}

/// What a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Serve {
    /// An [`Answer`] for each line.
    Tcp,
    /// An [`Answer`] for each datagram.
    Udp,
    /// `200` with the server's address as body.
    Http,
    /// TCP, every connection of which is closed at once.
    Discard,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Listen at an address of the pod's and answer for as long as the worker lives.
    Serve {
        serve: Serve,
        at: SocketAddr,
    },
    /// How many requests this server has answered.
    Answered {
        serve: Serve,
        at: SocketAddr,
    },
    /// Replies with the [`SocketId`].
    Open {
        transport: Transport,
        family: Family,
    },
    Connect {
        socket: SocketId,
        to: SocketAddr,
    },
    /// `connect` to `AF_UNSPEC`.
    Disconnect {
        socket: SocketId,
    },
    Send {
        socket: SocketId,
        to: Option<SocketAddr>,
        text: String,
    },
    /// Replies with a [`Datagram`].
    Receive {
        socket: SocketId,
    },
    PeerName {
        socket: SocketId,
    },
    LocalName {
        socket: SocketId,
    },
    Close {
        socket: SocketId,
    },
    /// Several threads do with the same sockets whatever sockets allow, in random order, and close them
    /// all. Replies with nothing.
    Abuse(Abuse),
    /// This many exchanges one after the other. Replies with a [`Tally`].
    Load {
        target: Target,
        count: u32,
    },
    /// So many connects one after the other, each on a socket of its own, to these addresses in turn.
    /// Replies with a [`Timed`] for each.
    TimeConnects {
        to: Vec<SocketAddr>,
        count: u32,
    },
    /// Exchanges by several clients at once, until the load is finished.
    StartLoad {
        target: Target,
        clients: u32,
    },
    /// Lets the load go on until it has had so many exchanges. Replies with a [`Tally`].
    FinishLoad {
        at_least: u32,
    },
}

/// What abuse is about.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Abuse {
    pub targets: Vec<SocketAddr>,
    pub threads: u32,
    /// Socket calls of each thread.
    pub calls: u32,
    pub seed: u64,
}

/// How long one connection's calls took, in nanoseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Timed {
    pub connect: u32,
    /// Of a socket that is closed by a reset, so that nothing of it stays.
    pub close: u32,
}

/// What a load talks to, each time with a socket of its own.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Target {
    pub to: SocketAddr,
    pub serve: Serve,
}

/// The value that the request asks for, or the errno of the socket call that failed.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Reply(pub Result<Value, i32>);

/// What `recvfrom` gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Datagram {
    /// The sender as the kernel shows it; a TCP socket has none.
    pub from: Option<SocketAddr>,
    pub text: String,
}

/// Who answered, as the server itself says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    pub server: SocketAddr,
    /// The client's address as the server saw it.
    pub client: SocketAddr,
    pub text: String,
}

/// What came of a load.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub answers: BTreeMap<SocketAddr, u32>,
    /// Failed exchanges by what the failing call said.
    pub errors: BTreeMap<String, u32>,
    /// Who answered, first to last; of several clients one after the other.
    pub order: Vec<SocketAddr>,
}

impl Tally {
    /// How often this server answered.
    #[must_use]
    pub fn of(&self, server: SocketAddr) -> u32 {
        self.answers.get(&server).copied().unwrap_or(0)
    }

    /// How many exchanges ended in an answer.
    #[must_use]
    pub fn answered(&self) -> u32 {
        self.answers.values().sum()
    }

    pub fn count(&mut self, outcome: Result<SocketAddr, String>) {
        match outcome {
            Ok(server) => {
                *self.answers.entry(server).or_default() += 1;
                self.order.push(server);
            }
            Err(error) => *self.errors.entry(error).or_default() += 1,
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (server, count) in other.answers {
            *self.answers.entry(server).or_default() += count;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.order.extend(other.order);
    }
}
