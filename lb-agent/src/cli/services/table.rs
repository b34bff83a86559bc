//! The served Service ports for people: a block each, with the nearest backends first.

use std::io::{self, Write};

use anstyle::{AnsiColor, Style};
use lb_common::{
    addr::{Port, socket_addr},
    tables::{Frontend, Kind, Locality},
};

use crate::{
    model::service_port::kind_name,
    tables::dump::{
        BackendView, ListView, OnEmpty, ServiceView, distance, locality_name, why_no_hints,
    },
};

const HEAD: Style = Style::new().bold();
const QUIET: Style = Style::new().dimmed();

pub(super) fn write(services: &[ServiceView], out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "Service ports: {}", services.len())?;
    for service in services {
        writeln!(out)?;
        block(service, out)?;
    }
    Ok(())
}

fn block(service: &ServiceView, out: &mut impl Write) -> io::Result<()> {
    let id = &service.id;
    writeln!(
        out,
        "{HEAD}{id}{HEAD:#} {} {}{}",
        id.proto,
        id.family,
        affinity(service)
    )?;
    for (key, frontend) in &service.frontends {
        let kind = Kind::from_cell(frontend.kind).map_or("unknown kind", kind_name);
        let list = if frontend.flags & Frontend::LOCAL == 0 {
            "cluster"
        } else {
            "local"
        };
        let addr = socket_addr(key.addr, Port(key.port)).to_string();
        writeln!(out, "  {kind:<13} {addr:<28} uses the {list} list")?;
    }
    if let Some(why) = why_no_hints(service.hints) {
        let style = AnsiColor::Yellow.on_default();
        writeln!(out, "  {style}{why}{style:#}")?;
    }
    for (name, view) in [("cluster", &service.cluster), ("local", &service.local)] {
        if let Some(view) = view {
            list(name, view, out)?;
        }
    }
    for backend in &service.kept {
        backend_line(backend, "keeps flows", QUIET, out)?;
    }
    Ok(())
}

fn affinity(service: &ServiceView) -> String {
    match service.affinity_secs {
        0 => String::new(),
        secs => format!(", client affinity {secs} s"),
    }
}

fn list(name: &str, view: &ListView, out: &mut impl Write) -> io::Result<()> {
    let answer = match view.on_empty {
        OnEmpty::Reject => "connections are refused",
        OnEmpty::Drop => "connections are dropped",
    };
    if view.backends.is_empty() {
        let style = AnsiColor::Red.on_default();
        return writeln!(out, "  {style}→ {name}: no backend; {answer}{style:#}");
    }
    let mut nearest_first: Vec<_> = view.backends.iter().collect();
    nearest_first.sort_by_key(|backend| {
        (
            distance(backend.locality),
            backend.cell.addr,
            backend.cell.port,
        )
    });
    for backend in nearest_first {
        backend_line(backend, name, style_of(backend.locality), out)?;
    }
    Ok(())
}

/// Colour where traffic costs money.
fn style_of(locality: Locality) -> Style {
    match locality {
        Locality::Node | Locality::Zone => AnsiColor::Green.on_default(),
        Locality::Unknown => Style::new(),
        Locality::Other => AnsiColor::Yellow.on_default(),
    }
}

fn backend_line(
    backend: &BackendView,
    list: &str,
    style: Style,
    out: &mut impl Write,
) -> io::Result<()> {
    let addr = socket_addr(backend.cell.addr, Port(backend.cell.port)).to_string();
    let zone = match backend.zone.as_str() {
        "" => "no zone".to_owned(),
        zone => format!("zone {zone}"),
    };
    let near = locality_name(backend.locality);
    writeln!(
        out,
        "  {style}→ {list:<11} {addr:<28} {zone:<20} {near}{style:#}"
    )
}
