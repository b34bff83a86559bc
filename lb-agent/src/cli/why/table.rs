//! The answer for people: the verdict, how it came about, and every endpoint that could have been chosen.

use std::{
    fmt::Display,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use lb_common::{
    addr::socket_addr,
    tables::{List, Locality},
};

use crate::{
    cli::why::{
        Case,
        explain::{Told, address},
    },
    model::policy::Chosen,
    tables::{
        dump::{BackendView, locality_name},
        why::{Candidate, Served, Stickiness},
    },
};

const QUIET: Style = Style::new().dimmed();

pub(super) fn write(case: &Case, out: &mut impl Write) -> io::Result<()> {
    let told = case.told();
    headline(case, &told, out)?;
    line("node", node(case), out)?;
    if let Some(served) = &case.answer.served {
        of_service(case, served, out)?;
    }
    for next in &told.next {
        line("next", next, out)?;
    }
    Ok(())
}

fn headline(case: &Case, told: &Told, out: &mut impl Write) -> io::Result<()> {
    let colour = match told.verdict {
        "forward" => AnsiColor::Green,
        "reject" => AnsiColor::Red,
        _ => AnsiColor::Yellow,
    };
    let style = colour.on_default().bold();
    let (asker, flow) = (case.asker, &case.flow);
    writeln!(
        out,
        "{style}{}{style:#}  {asker} → {} {}",
        told.verdict,
        socket_addr(flow.addr, flow.port),
        flow.proto
    )?;
    line("verdict", &told.text, out)
}

fn node(case: &Case) -> String {
    match &case.zone {
        Some(zone) => format!("{}, zone {zone}", case.node),
        None => format!("{}, no zone", case.node),
    }
}

fn of_service(case: &Case, served: &Served, out: &mut impl Write) -> io::Result<()> {
    let id = &served.id;
    let kind = served.kind_name();
    line(
        "service",
        format!("{id} {} {}, at its {kind}", id.proto, id.family),
        out,
    )?;
    let list = match served.list {
        List::Cluster => "cluster",
        List::Local => "local, of endpoints on this node",
    };
    let why = served.why_list(case.flow.origin);
    line("list", format!("{list}: {why}"), out)?;
    if let Some(hints) = case.hints() {
        line("hints", hints, out)?;
    }
    if let Some(affinity) = &served.affinity {
        line("affinity", affinity_text(affinity), out)?;
    }
    endpoints(case, served, out)
}

fn affinity_text(affinity: &Stickiness) -> String {
    let secs = affinity.timeout_secs;
    match &affinity.client {
        Some(entry) => format!("{secs} s; {}", entry.text(secs)),
        None => format!("{secs} s; each client keeps its backend, and this one is not known"),
    }
}

fn endpoints(case: &Case, served: &Served, out: &mut impl Write) -> io::Result<()> {
    let draws: usize = served
        .candidates
        .iter()
        .map(|candidate| candidate.draws)
        .sum();
    let planned = case.planned_port();
    for candidate in &served.candidates {
        let reason = planned.and_then(|port| {
            let mut endpoints = port.choice.endpoints.iter();
            let found = endpoints.find(|endpoint| is_at(endpoint, &candidate.backend))?;
            reason(found, served.list)
        });
        let text = chosen(candidate, draws, reason.as_deref());
        let style = style_of(candidate.backend.locality);
        endpoint("→", &candidate.backend, &text, style, out)?;
    }
    match planned {
        Some(port) => {
            let all = port.choice.endpoints.iter();
            for other in all.filter(|endpoint| !endpoint.is_in(served.list)) {
                let reason = reason(other, served.list).unwrap_or_default();
                writeln!(
                    out,
                    "  {QUIET}· {:<28} {reason}{QUIET:#}",
                    other.at.to_string()
                )?;
            }
        }
        None => {
            for backend in &served.kept {
                endpoint("·", backend, "keeps the flows it has", QUIET, out)?;
            }
        }
    }
    Ok(())
}

fn is_at(endpoint: &Chosen, backend: &BackendView) -> bool {
    (endpoint.addr(), endpoint.port().0) == (backend.cell.addr, backend.cell.port)
}

/// Why an endpoint is in a list, or is not.
pub(super) fn reason(endpoint: &Chosen, list: List) -> Option<String> {
    let why = match list {
        List::Cluster => &endpoint.reason.cluster,
        List::Local => &endpoint.reason.local,
    };
    why.as_ref().map(ToString::to_string)
}

fn chosen(candidate: &Candidate, draws: usize, reason: Option<&str>) -> String {
    let mut text = format!("{} in {draws}", candidate.draws);
    if candidate.clients > 0 {
        text += &format!(", clients that keep it: {}", candidate.clients);
    }
    if let Some(reason) = reason {
        text += &format!("; {reason}");
    }
    text
}

fn endpoint(
    mark: &str,
    backend: &BackendView,
    text: &str,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let zone = match backend.zone.as_str() {
        "" => "no zone".to_owned(),
        zone => format!("zone {zone}"),
    };
    let near = locality_name(backend.locality);
    writeln!(
        out,
        "  {style}{mark} {:<28} {zone:<20} {near:<11}{style:#} {text}",
        address(backend)
    )
}

/// Colour where traffic costs money.
fn style_of(locality: Locality) -> Style {
    match locality {
        Locality::Node | Locality::Zone => AnsiColor::Green.on_default(),
        Locality::Unknown => Style::new(),
        Locality::Other => AnsiColor::Yellow.on_default(),
    }
}

fn line(name: &str, text: impl Display, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{name:<10}{text}")
}
