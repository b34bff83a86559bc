//! The ratios as a picture: a group for each number of Services, a mark for each way with the bar of its
//! interval, on a logarithmic scale, as iptables is not in the range of the others.

use std::fmt::Write;

use crate::{
    bed::Way,
    report::{Report, Row},
};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 60.0;
const TOP: f64 = 110.0;
const BOTTOM: f64 = 50.0;

/// Lines across, at these ratios.
const TICKS: [f64; 8] = [0.9, 1.0, 1.1, 1.5, 2.0, 3.0, 5.0, 10.0];

pub(crate) fn svg(report: &Report) -> String {
    let rows = || report.sizes.iter().flat_map(|size| &size.ways);
    let highest = rows().map(|row| row.ratio_p50.high).fold(2.0, f64::max);
    let scale = Scale { highest };
    let mut body = String::new();
    let mut add = |element: String| writeln!(body, "{element}").expect("a String takes all");
    for tick in TICKS.into_iter().filter(|tick| *tick <= highest) {
        let (y, right) = (scale.y(tick), WIDTH - 10.0);
        let grey = if tick == 1.0 { "#444" } else { "#ccc" };
        add(format!(
            r#"<line x1="{LEFT}" x2="{right}" y1="{y:.1}" y2="{y:.1}" stroke="{grey}"/>"#
        ));
        add(text(LEFT - 8.0, y + 4.0, "end", &format!("{tick}")));
    }
    #[expect(clippy::cast_precision_loss, reason = "a few groups")]
    let group = (WIDTH - LEFT - 10.0) / report.sizes.len().max(1) as f64;
    let mut x = LEFT;
    for size in &report.sizes {
        let label = format!("Services: {}", size.services);
        add(text(
            x + group / 2.0,
            HEIGHT - BOTTOM + 24.0,
            "middle",
            &label,
        ));
        for (at, row) in (1_u8..).zip(&size.ways) {
            let x = x + group * f64::from(at) / 6.0;
            add(mark(x, row, &scale));
        }
        x += group;
    }
    for (at, way) in (0_u8..).zip(Way::ALL) {
        let y = 34.0 + 14.0 * f64::from(at);
        let color = color(way);
        add(format!(
            r#"<circle cx="{LEFT}" cy="{y}" r="4" fill="{color}"/>"#
        ));
        add(text(LEFT + 12.0, y + 4.0, "start", way.text()));
    }
    let title = "TCP connect: median, as a multiple of a connect to the pod's own address";
    add(text(LEFT - 4.0, 18.0, "start", title));
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

struct Scale {
    highest: f64,
}

impl Scale {
    fn y(&self, ratio: f64) -> f64 {
        let (low, high) = (TICKS[0].ln(), self.highest.ln());
        let share = (ratio.ln() - low) / (high - low);
        HEIGHT - BOTTOM - share * (HEIGHT - BOTTOM - TOP)
    }
}

fn mark(x: f64, row: &Row, scale: &Scale) -> String {
    let ratio = row.ratio_p50;
    let (y, low, high) = (
        scale.y(ratio.value),
        scale.y(ratio.low),
        scale.y(ratio.high),
    );
    let color = color(row.way);
    let value = text(x + 8.0, y + 4.0, "start", &format!("{:.2}", ratio.value));
    format!(
        r#"<line x1="{x:.1}" x2="{x:.1}" y1="{low:.1}" y2="{high:.1}" stroke="{color}" stroke-width="2"/><circle cx="{x:.1}" cy="{y:.1}" r="4" fill="{color}"/>{value}"#
    )
}

fn text(x: f64, y: f64, anchor: &str, text: &str) -> String {
    format!(r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{text}</text>"#)
}

fn color(way: Way) -> &'static str {
    match way {
        Way::Direct => "#444444",
        Way::Miss => "#56b4e9",
        Way::Nearhop => "#009e73",
        Way::Nftables => "#e69f00",
        Way::Iptables => "#d55e00",
    }
}
