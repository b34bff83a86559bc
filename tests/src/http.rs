//! Questions over HTTP, asked in a pod's network namespace. By a thread of the test, which no socket
//! program sees, so that asking moves no counter.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::{Context, anyhow};
use serde_json::Value;

use crate::Pod;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub code: u16,
    /// In lower case.
    pub head: String,
    pub body: String,
}

impl Answer {
    /// The body as JSON; `null` if it is none.
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }

    /// The value of a series in Prometheus' text format, labels and all.
    #[must_use]
    pub fn metric(&self, series: &str) -> Option<f64> {
        let mut lines = self.body.lines();
        let value = lines.find_map(|line| line.strip_prefix(series)?.strip_prefix(' '))?;
        value.parse().ok()
    }
}

impl Pod {
    /// `GET`, or why there was no answer.
    pub fn get(&self, at: SocketAddr, path: &str) -> Result<Answer, String> {
        let answer = self.place().netns.run(|| Ok(ask(at, path)?));
        let answer = answer.with_context(|| format!("GET http://{at}{path}"));
        let parsed = answer.and_then(|text| parse(&text).ok_or(anyhow!("no HTTP: {text:?}")));
        parsed.map_err(|error| format!("{error:#}"))
    }
}

fn ask(at: SocketAddr, path: &str) -> io::Result<String> {
    let mut server = TcpStream::connect_timeout(&at, PATIENCE)?;
    server.set_read_timeout(Some(PATIENCE))?;
    server.write_all(format!("GET {path} HTTP/1.0\r\nHost: {at}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    server.read_to_string(&mut answer)?;
    Ok(answer)
}

fn parse(answer: &str) -> Option<Answer> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some(Answer {
        code: head.split(' ').nth(1)?.parse().ok()?,
        head: head.to_lowercase(),
        body: body.to_owned(),
    })
}
