//! The status for people.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anstyle::{AnsiColor, Style};

use lb_common::tables::Hints;

use crate::{
    cli::status::Status,
    tables::dump::{hints_name, why_no_hints},
};

const GOOD: Style = AnsiColor::Green.on_default().bold();
const BAD: Style = AnsiColor::Red.on_default().bold();

pub(super) fn write(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let (style, word) = if status.ready {
        (GOOD, "ready")
    } else {
        (BAD, "not ready")
    };
    let zone = status.zone.as_deref().unwrap_or("none");
    writeln!(
        out,
        "{style}{word}{style:#}  node {}, zone {zone}",
        status.node
    )?;
    writeln!(out, "addresses   {}", addresses(status))?;
    agent(status, out)?;
    hints(status, out)?;
    kernel(status, out)?;
    interfaces(status, out)?;
    maps(status, out)?;
    counters(status, out)
}

fn addresses(status: &Status) -> String {
    match status.addresses.as_slice() {
        [] => "none in the Node object".to_owned(),
        some => some
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
            .join(" "),
    }
}

fn agent(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let runs = if status.running {
        "runs"
    } else {
        "does not run; the kernel serves what it last programmed"
    };
    writeln!(
        out,
        "agent       {}, pid {} {runs}, started {}",
        status.version,
        status.pid,
        ago(status.started)
    )?;
    let last = status.last_sync.map_or_else(|| "never".to_owned(), ago);
    writeln!(
        out,
        "syncs       {} good, {} failed; last {last}, {} operations",
        status.syncs, status.sync_failures, status.last_sync_ops
    )?;
    match &status.problem {
        Some(problem) => writeln!(
            out,
            "{BAD}problems{BAD:#}    {} to look at, {} without room; first: {problem}",
            status.problems, status.full
        ),
        None => writeln!(out, "problems    none"),
    }
}

/// Where traffic crosses zones though somebody wanted otherwise.
fn hints(status: &Status, out: &mut impl Write) -> io::Result<()> {
    for (hints, ports) in Hints::ALL.iter().filter_map(|hints| {
        let ports = status.hints.get(hints_name(*hints))?;
        Some((why_no_hints(*hints)?, ports))
    }) {
        writeln!(out, "hints       Service ports: {ports}; {hints}")?;
    }
    Ok(())
}

fn kernel(status: &Status, out: &mut impl Write) -> io::Result<()> {
    let programs = if status.programs.is_empty() {
        "none".to_owned()
    } else {
        status.programs.join(" ")
    };
    writeln!(out, "programs    {programs}")?;
    let cgroup = match (&status.cgroup, status.cgroup_id) {
        (Some(path), _) => path.display().to_string(),
        (None, Some(0)) => "removed, so nobody is served; start the agent again".to_owned(),
        (None, Some(id)) => format!("number {id}, not visible from here"),
        (None, None) => "none".to_owned(),
    };
    writeln!(out, "cgroup      {cgroup}")?;
    writeln!(out, "pins        {}", status.pin_path.display())?;
    writeln!(
        out,
        "set         {}, of layout {}; grown {} times, {} takeovers",
        status.set, status.schema, status.growths, status.takeovers
    )?;
    if status.unfinished.is_empty() {
        return Ok(());
    }
    writeln!(
        out,
        "{BAD}unfinished{BAD:#}  {} is left of a growth or upgrade; the next start of the agent removes it",
        status.unfinished.join(" ")
    )
}

/// Where packets are looked at.
fn interfaces(status: &Status, out: &mut impl Write) -> io::Result<()> {
    if status.interfaces.is_empty() {
        return writeln!(out, "interfaces  none; packets go by untranslated");
    }
    writeln!(
        out,
        "\n{:<16}{:>10}  {:<8}programs",
        "interface", "number", "by"
    )?;
    for interface in &status.interfaces {
        let name = interface.name.as_deref().unwrap_or("not here");
        let programs = match interface.programs.as_slice() {
            [] => "none".to_owned(),
            programs => programs.join(" "),
        };
        let (index, by) = (interface.index, interface.attached_by);
        writeln!(out, "{name:<16}{index:>10}  {by:<8}{programs}")?;
    }
    Ok(())
}

fn maps(status: &Status, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{:<24}{:>10}{:>10}", "map", "used", "capacity")?;
    for (name, usage) in &status.maps {
        writeln!(out, "{name:<24}{:>10}{:>10}", usage.used, usage.capacity)?;
    }
    Ok(())
}

fn counters(status: &Status, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "\n{:<24}{:>10}", "reason", "count")?;
    for (name, count) in status.counters.iter().filter(|(_, count)| **count != 0) {
        writeln!(out, "{name:<24}{count:>10}")?;
    }
    Ok(())
}

/// How long ago, in one unit.
fn ago(secs: u64) -> String {
    let then = UNIX_EPOCH + Duration::from_secs(secs);
    let since = SystemTime::now()
        .duration_since(then)
        .unwrap_or_default()
        .as_secs();
    let (count, unit) = match since {
        0..120 => (since, "s"),
        120..7200 => (since / 60, "min"),
        7200..172_800 => (since / 3600, "h"),
        _ => (since / 86_400, "d"),
    };
    format!("{count} {unit} ago")
}
