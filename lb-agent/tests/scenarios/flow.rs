//! What clients get: the kernel's own choice over the tables, with every draw.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use lb_agent::tables::{TableSet, why::Held};
use lb_common::{
    addr::{Port, Proto, socket_addr},
    select::{Decision, Draw, Flow, Origin, Remembered, select},
    tables::{Backend, Client, FrontendKey},
};

/// Whole lists are seen up to this length.
const DRAWS: u32 = 128;

/// What clients get at each address.
pub(crate) type View = BTreeMap<(FrontendKey, bool), BTreeSet<String>>;

/// At the addresses of these keys.
pub(crate) fn view<'a>(tables: &TableSet, keys: impl IntoIterator<Item = &'a FrontendKey>) -> View {
    let clients = keys
        .into_iter()
        .flat_map(|key| [(*key, false), (*key, true)]);
    clients
        .map(|(key, is_outside)| {
            let flow = Flow {
                addr: key.addr,
                port: Port(key.port),
                proto: Proto(key.proto),
                origin: if is_outside {
                    Origin::Outside
                } else {
                    Origin::Node
                },
            };
            ((key, is_outside), answers(tables, &flow))
        })
        .collect()
}

/// Whether every address answers wholly as before or wholly as after.
pub(crate) fn is_whole(now: &View, old: &View, new: &View) -> Result<(), String> {
    for (at, now) in now {
        let (old, new) = (&old[at], &new[at]);
        if now != old && now != new {
            let at = socket_addr(at.0.addr, Port(at.0.port));
            return Err(format!(
                "{at} gives {}, and not {} or {}",
                joined(now),
                joined(old),
                joined(new)
            ));
        }
    }
    Ok(())
}

struct Fixed {
    random: u32,
    remembered: Option<Remembered>,
}

impl Draw for Fixed {
    fn random(&self) -> u32 {
        self.random
    }

    fn remembered(&self) -> Option<Remembered> {
        self.remembered
    }

    fn client(&self) -> Client {
        Client(0)
    }

    fn now_nanos(&self) -> u64 {
        0
    }
}

pub(crate) fn decisions(
    tables: &TableSet,
    flow: &Flow,
    remembered: Option<Remembered>,
) -> Vec<Decision> {
    let randoms = (0..DRAWS).map(|step| step * (u32::MAX / DRAWS + 1));
    randoms
        .map(|random| select(tables, flow, &Fixed { random, remembered }))
        .collect()
}

/// Everything that the flow may get.
pub(crate) fn answers(tables: &TableSet, flow: &Flow) -> BTreeSet<String> {
    decisions(tables, flow, None).iter().map(answer).collect()
}

/// The same as `lb-agent why` says it.
pub(crate) fn explained(tables: &TableSet, flow: &Flow) -> BTreeSet<String> {
    let answer = Held::new(tables.clone(), Vec::new(), 0).answer(flow, None);
    if !matches!(answer.decision, Decision::Forward(_)) {
        return BTreeSet::from([self::answer(&answer.decision)]);
    }
    let candidates = answer
        .served
        .into_iter()
        .flat_map(|served| served.candidates);
    candidates
        .map(|candidate| at(&candidate.backend.cell))
        .collect()
}

fn at(backend: &Backend) -> String {
    socket_addr(backend.addr, Port(backend.port)).to_string()
}

pub(crate) fn answer(decision: &Decision) -> String {
    match decision {
        Decision::Forward(to) => at(&to.backend),
        Decision::NotAService | Decision::Reject(_) | Decision::Drop(_) => {
            decision.reason().name().to_owned()
        }
    }
}

pub(crate) fn parse_origin(client: &str) -> Result<Origin, String> {
    match client.trim() {
        "pod" | "host" => Ok(Origin::Node),
        "outside" => Ok(Origin::Outside),
        other => Err(format!("`{other}` is no client; pod, host and outside are")),
    }
}

pub(crate) fn parse_flow(to: &str, origin: Origin) -> Result<Flow, String> {
    let (at, proto) = to.split_once('/').unwrap_or((to, "tcp"));
    let at: SocketAddr = at
        .parse()
        .map_err(|_| format!("`{at}` is not ADDRESS:PORT"))?;
    let proto = match proto {
        "tcp" => Proto::TCP,
        "udp" => Proto::UDP,
        "sctp" => Proto::SCTP,
        other => return Err(format!("`{other}` is none of tcp, udp, sctp")),
    };
    Ok(Flow {
        addr: at.ip().into(),
        port: Port(at.port()),
        proto,
        origin,
    })
}

pub(crate) fn joined(answers: &BTreeSet<String>) -> String {
    answers
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" | ")
}
