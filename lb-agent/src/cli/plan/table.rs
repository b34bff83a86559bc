//! The plan for people: a block for each Service port, aligned, coloured on a terminal.

use std::{
    fmt::Display,
    io::{self, Write},
};

use anstyle::{AnsiColor, Style};
use lb_common::{addr::socket_addr, select::Origin};

use crate::{
    cli::plan::{
        Plan,
        json::{address, used_by},
    },
    model::{
        ServicePort,
        policy::Chosen,
        service_port::{Frontend, Verdict, kind_name},
    },
};

const HEAD: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();
const WARN: Style = AnsiColor::Yellow.on_default();

pub(super) fn write(plan: &Plan, out: &mut impl Write) -> io::Result<()> {
    let (node, ports) = (plan.model.node(), plan.services.len());
    let zone = plan
        .model
        .zone()
        .map_or_else(|| "no zone".to_owned(), |zone| format!("zone {zone}"));
    writeln!(
        out,
        "node {node}, {zone}: Service ports: {ports}{}",
        ignored(plan.ignored)
    )?;
    for port in &plan.services {
        writeln!(out)?;
        block(port, out)?;
    }
    Ok(())
}

fn ignored(count: usize) -> String {
    match count {
        0 => String::new(),
        count => format!(", objects of other kinds: {count}"),
    }
}

fn block(port: &ServicePort, out: &mut impl Write) -> io::Result<()> {
    let id = &port.id;
    writeln!(
        out,
        "{} {} {}{}",
        paint(HEAD, id),
        id.proto,
        id.family,
        extras(port)
    )?;
    let width = width(port.frontends.iter().map(frontend_address));
    for at in &port.frontends {
        frontend(port, at, width, out)?;
    }
    if let Some(why) = port.choice.why_no_hints() {
        writeln!(out, "  {}", paint(WARN, why))?;
    }
    if port.choice.endpoints.is_empty() {
        writeln!(out, "  no endpoints")?;
    }
    let width = self::width(
        port.choice
            .endpoints
            .iter()
            .map(|endpoint| endpoint.at.to_string()),
    );
    for chosen in &port.choice.endpoints {
        endpoint(chosen, width, out)?;
    }
    Ok(())
}

fn width(column: impl Iterator<Item = String>) -> usize {
    column.map(|cell| cell.len()).max().unwrap_or(0)
}

/// What is not the default.
fn extras(port: &ServicePort) -> String {
    let mut extras = String::new();
    if let Some(secs) = port.affinity_secs {
        extras += &format!(", client affinity {secs} s");
    }
    if !port.source_ranges.is_empty() {
        let ranges: Vec<_> = port.source_ranges.iter().map(ToString::to_string).collect();
        extras += &format!(", load balancer open to {} only", ranges.join(" "));
    }
    extras
}

fn frontend(
    port: &ServicePort,
    at: &Frontend,
    width: usize,
    out: &mut impl Write,
) -> io::Result<()> {
    let verdict = port.verdict(at.kind, Origin::Outside);
    let (kind, address) = (kind_name(at.kind), frontend_address(at));
    writeln!(
        out,
        "  {kind:<12}  {address:<width$}  {}",
        paint(colour(verdict), verdict)
    )
}

fn frontend_address(at: &Frontend) -> String {
    match at.addr {
        Some(addr) => socket_addr(addr, at.port).to_string(),
        None => format!("{}:{}", address(at), at.port),
    }
}

fn colour(verdict: Verdict) -> Style {
    let colour = match verdict {
        Verdict::Forward => AnsiColor::Green,
        Verdict::Reject => AnsiColor::Red,
        Verdict::Drop => AnsiColor::Yellow,
    };
    colour.on_default()
}

fn endpoint(chosen: &Chosen, width: usize, out: &mut impl Write) -> io::Result<()> {
    let lists = used_by(chosen).join("+");
    let style = if lists.is_empty() {
        QUIET
    } else {
        Style::new()
    };
    let line = format!(
        "→ {:<width$}  {:<13}  {}",
        chosen.at.to_string(),
        lists,
        chosen.reason
    );
    writeln!(out, "  {}", paint(style, line))
}

fn paint(style: Style, what: impl Display) -> impl Display {
    format!("{style}{what}{style:#}")
}
