//! What was counted, as `ipvsadm -Ln --stats` shows it: a line for each Service port, and one for each of
//! its backends.

use std::io::{self, Write};

use anstyle::Style;
use lb_common::{
    addr::{Port, socket_addr},
    tables::Stats,
};
use serde::Serialize;

use crate::tables::{
    dump::{BackendView, locality_name},
    stats::{BackendStats, ServiceStats},
};

const HEAD: Style = Style::new().bold();

pub(super) fn table(services: &[ServiceStats], out: &mut impl Write) -> io::Result<()> {
    let rows: Vec<Row> = services.iter().flat_map(rows).collect();
    let what = widest("SERVICE", rows.iter().map(|row| &row.what));
    let place = widest("WHERE", rows.iter().map(|row| &row.place));
    writeln!(
        out,
        "{HEAD}{:<what$}  {:<place$}  {:>11}  {:>8}  {:>8}  {:>9}  {:>9}{HEAD:#}",
        "SERVICE", "WHERE", "CONNECTIONS", "ACTIVE", "FAILURES", "BYTES OUT", "BYTES IN"
    )?;
    for row in &rows {
        let Stats {
            connections,
            failures,
            active,
            bytes_out,
            bytes_in,
        } = row.stats;
        let (bytes_out, bytes_in) = (human(bytes_out), human(bytes_in));
        let style = row.style;
        writeln!(
            out,
            "{style}{:<what$}  {:<place$}  {connections:>11}  {active:>8}  {failures:>8}  \
             {bytes_out:>9}  {bytes_in:>9}{style:#}",
            row.what, row.place
        )?;
    }
    Ok(())
}

fn widest<'a>(head: &str, texts: impl Iterator<Item = &'a String>) -> usize {
    let widths = texts.map(|text| text.chars().count());
    widths.max().unwrap_or(0).max(head.len())
}

struct Row {
    what: String,
    place: String,
    stats: Stats,
    style: Style,
}

fn rows(service: &ServiceStats) -> impl Iterator<Item = Row> {
    let id = &service.id;
    let head = Row {
        what: format!("{id} {} {}", id.proto, id.family),
        place: String::new(),
        stats: service.total,
        style: HEAD,
    };
    let backends = service.backends.iter().map(|of| Row {
        what: format!("  → {}", address(&of.backend)),
        place: place(&of.backend),
        stats: of.stats,
        style: Style::new(),
    });
    [head].into_iter().chain(backends)
}

fn address(backend: &BackendView) -> String {
    socket_addr(backend.cell.addr, Port(backend.cell.port)).to_string()
}

fn place(backend: &BackendView) -> String {
    let near = locality_name(backend.locality);
    match backend.zone.as_str() {
        "" => near.to_owned(),
        zone => format!("{near}, {zone}"),
    }
}

/// Three digits and a unit of powers of 1024, or all digits below the first unit.
fn human(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let Some(power) = bytes.checked_ilog2().map(|log| log / 10).filter(|p| *p > 0) else {
        return bytes.to_string();
    };
    let unit = 1_u64 << (10 * power);
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let count = bytes as f64 / unit as f64;
    let name = units[power as usize - 1];
    match count {
        ..10.0 => format!("{count:.2} {name}"),
        10.0..100.0 => format!("{count:.1} {name}"),
        _ => format!("{count:.0} {name}"),
    }
}

pub(super) fn json(services: &[ServiceStats], out: &mut impl Write) -> io::Result<()> {
    let document = Document {
        services: services.iter().map(Service::of).collect(),
    };
    serde_json::to_writer_pretty(&mut *out, &document)?;
    writeln!(out)
}

#[derive(Serialize)]
struct Document<'a> {
    services: Vec<Service<'a>>,
}

#[derive(Serialize)]
struct Service<'a> {
    namespace: &'a str,
    name: &'a str,
    /// The port's name; empty if it has none.
    port: &'a str,
    protocol: String,
    family: String,
    #[serde(flatten)]
    figures: Figures,
    backends: Vec<Backend<'a>>,
}

#[derive(Serialize)]
struct Backend<'a> {
    address: String,
    zone: Option<&'a str>,
    locality: &'static str,
    #[serde(flatten)]
    figures: Figures,
}

#[derive(Serialize)]
struct Figures {
    connections: u64,
    active: u64,
    failures: u64,
    bytes_out: u64,
    bytes_in: u64,
}

impl<'a> Service<'a> {
    fn of(service: &'a ServiceStats) -> Self {
        Self {
            namespace: &service.id.service.namespace,
            name: &service.id.service.name,
            port: &service.id.port,
            protocol: service.id.proto.to_string(),
            family: service.id.family.to_string(),
            figures: Figures::of(service.total),
            backends: service.backends.iter().map(Backend::of).collect(),
        }
    }
}

impl<'a> Backend<'a> {
    fn of(of: &'a BackendStats) -> Self {
        Self {
            address: address(&of.backend),
            zone: (!of.backend.zone.is_empty()).then_some(&of.backend.zone),
            locality: locality_name(of.backend.locality),
            figures: Figures::of(of.stats),
        }
    }
}

impl Figures {
    fn of(stats: Stats) -> Self {
        Self {
            connections: stats.connections,
            active: stats.active,
            failures: stats.failures,
            bytes_out: stats.bytes_out,
            bytes_in: stats.bytes_in,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_three_digits_and_a_unit() {
        let cases = [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.00 KiB"),
            (34_567, "33.8 KiB"),
            (150 << 20, "150 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human(bytes), text);
        }
    }
}
