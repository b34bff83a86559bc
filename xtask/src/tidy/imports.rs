//! Who may import what. The walls keep the choice of backends a plain function: model and tables see
//! no socket, no clock and no other crate, so a move of them to a crate of their own is a rename.

use super::source::{Name, Source};

/// Files behind a wall, and the beginnings of names that they may not contain.
struct Wall {
    inside: &'static [&'static str],
    forbidden: &'static [&'static str],
    why: &'static str,
}

const CLUSTER_CRATES: &[&str] = &["kube", "k8s_openapi"];
const KERNEL_CRATES: &[&str] = &["aya", "aya_obj", "aya_ebpf", "rustix", "libc"];
const RUNTIME_CRATES: &[&str] = &["tokio", "futures", "tracing", "inotify", "notify"];
const SIDE_EFFECTS: &[&str] = &[
    "std::env",
    "std::fs",
    "std::io",
    "std::net::TcpListener",
    "std::net::TcpStream",
    "std::net::ToSocketAddrs",
    "std::net::UdpSocket",
    "std::os",
    "std::process",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "std::sync::atomic",
    "std::sync::mpsc",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
];

const WALLS: &[(Wall, &[&[&str]])] = &[
    (
        Wall {
            inside: &["lb-common/src/"],
            forbidden: &["std", "alloc", "serde", "anyhow"],
            why: "lb-common is core and bytemuck: it is compiled for the kernel",
        },
        &[CLUSTER_CRATES, KERNEL_CRATES, RUNTIME_CRATES],
    ),
    (
        Wall {
            inside: &["lb-agent/src/model.rs", "lb-agent/src/model/"],
            forbidden: &[
                "crate::api",
                "crate::source",
                "crate::tables",
                "crate::datapath",
            ],
            why: "the model is plain values: no Kubernetes type, no kernel, no IO, no clock",
        },
        &[
            CLUSTER_CRATES,
            KERNEL_CRATES,
            RUNTIME_CRATES,
            SIDE_EFFECTS,
            SHELL,
        ],
    ),
    (
        Wall {
            inside: &["lb-agent/src/tables.rs", "lb-agent/src/tables/"],
            forbidden: &["crate::api", "crate::source", "crate::datapath"],
            why: "tables is a function of the model: no Kubernetes type, no kernel, no IO, no clock",
        },
        &[
            CLUSTER_CRATES,
            KERNEL_CRATES,
            RUNTIME_CRATES,
            SIDE_EFFECTS,
            SHELL,
        ],
    ),
    (
        Wall {
            inside: &["lb-agent/src/api.rs", "lb-agent/src/api/"],
            forbidden: &["kube", "crate::source", "crate::tables", "crate::datapath"],
            why: "api turns a Kubernetes object into model values and does nothing else",
        },
        &[KERNEL_CRATES, &["tokio", "futures"], SHELL],
    ),
    (
        Wall {
            inside: &["lb-agent/src/source.rs", "lb-agent/src/source/"],
            forbidden: &["aya", "aya_obj", "crate::tables", "crate::datapath"],
            why: "a source brings objects and knows nothing of the kernel",
        },
        &[SHELL],
    ),
    (
        Wall {
            inside: &["lb-agent/src/datapath.rs", "lb-agent/src/datapath/"],
            forbidden: &["crate::model", "crate::api", "crate::source"],
            why: "the datapath carries out operations on tables and knows no cluster",
        },
        &[CLUSTER_CRATES, SHELL],
    ),
];

/// Those who know everybody, so nobody below may know them.
const SHELL: &[&str] = &["crate::cli", "crate::sync"];

/// What a program may not touch: that is what `maps`, `packet` and `sock` wrap.
const POINTERS: Wall = Wall {
    inside: &["lb-ebpf/src/"],
    forbidden: &[
        "aya_ebpf::EbpfContext",
        "aya_ebpf::bindings",
        "aya_ebpf::btf_maps",
        "aya_ebpf::cty",
        "aya_ebpf::helpers",
        "aya_ebpf::maps",
        "core::intrinsics",
        "core::ptr",
    ],
    why: "a program uses lb-common, packet, sock, tcp, maps, flows, calls and verdict; pointers stay in those",
};

pub(crate) fn breaches(sources: &[Source]) -> Vec<String> {
    sources.iter().flat_map(breaches_of).collect()
}

fn breaches_of(source: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    for (wall, more) in WALLS {
        if wall.inside.iter().any(|path| source.path.starts_with(path)) {
            let forbidden = more.iter().copied().flatten().chain(wall.forbidden);
            breaches.extend(through(source, wall.why, forbidden));
        }
    }
    if is_program(&source.path) {
        breaches.extend(through(source, POINTERS.why, POINTERS.forbidden.iter()));
    }
    breaches
}

/// A file of lb-ebpf that holds programs: all but the list of modules and the unsafe ones.
pub(crate) fn is_program(path: &str) -> bool {
    let file = path
        .strip_prefix("lb-ebpf/src/")
        .filter(|file| !file.contains('/'));
    file.is_some_and(|file| {
        let others = [
            "main.rs",
            "calls.rs",
            "flows.rs",
            "maps.rs",
            "packet.rs",
            "sock.rs",
            "tcp.rs",
        ];
        !others.contains(&file)
    })
}

fn through<'a>(
    source: &Source,
    why: &str,
    forbidden: impl Iterator<Item = &'a &'a str>,
) -> Vec<String> {
    let forbidden: Vec<Vec<&str>> = forbidden.map(|name| name.split("::").collect()).collect();
    let breach = |name: &&Name| {
        let whole = whole(source, name);
        forbidden
            .iter()
            .any(|beginning| whole.starts_with(beginning))
    };
    let path = &source.path;
    source
        .names
        .iter()
        .filter(breach)
        .map(|name| format!("{path}:{}: {}: {why}", name.line, name.segments.join("::")))
        .collect()
}

/// A name with `self` and `super` resolved against the file's own module.
fn whole<'a>(source: &'a Source, name: &'a Name) -> Vec<&'a str> {
    let relative = name
        .segments
        .iter()
        .take_while(|part| *part == "super" || *part == "self");
    let ups = relative.clone().filter(|part| *part == "super").count();
    let rest = name
        .segments
        .iter()
        .skip(relative.clone().count())
        .map(String::as_str);
    if relative.count() == 0 {
        return rest.collect();
    }
    let module = module(&source.path);
    let kept = module.len().saturating_sub(ups);
    ["crate"]
        .into_iter()
        .chain(module.into_iter().take(kept))
        .chain(rest)
        .collect()
}

/// `["model", "state"]` for `lb-agent/src/model/state.rs`.
fn module(path: &str) -> Vec<&str> {
    let inside = path.split_once("/src/").map_or(path, |(_, inside)| inside);
    let parts = inside.trim_end_matches(".rs").split('/');
    parts
        .filter(|part| !["lib", "main", "mod"].contains(part))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn breaches_in(path: &str, text: &str) -> usize {
        breaches(&[Source::new(path, text).unwrap()]).len()
    }

    #[test]
    fn the_model_sees_no_cluster_no_kernel_and_no_clock() {
        let model = |text: &str| breaches_in("lb-agent/src/model/state.rs", text);
        assert_eq!(model("use k8s_openapi::api::core::v1::Service;"), 1);
        assert_eq!(
            model("use std::{collections::BTreeMap, time::{Duration, Instant}};"),
            1
        );
        assert_eq!(model("fn f() { tracing::info!(\"x\"); }"), 1);
        assert_eq!(
            model("use std::net::{IpAddr, Ipv4Addr}; use lb_common::addr::Addr;"),
            0
        );
    }

    #[test]
    fn a_wall_holds_against_relative_names() {
        assert_eq!(
            breaches_in(
                "lb-agent/src/model/state.rs",
                "use super::super::source::Event;"
            ),
            1
        );
        assert_eq!(
            breaches_in(
                "lb-agent/src/model/state.rs",
                "use super::service::Service;"
            ),
            0
        );
        assert_eq!(
            breaches_in("lb-agent/src/tables.rs", "use super::datapath::load;"),
            1
        );
    }

    #[test]
    fn only_files_behind_the_wall_are_looked_at() {
        assert_eq!(
            breaches_in("lb-agent/src/source/kube.rs", "use kube::Client;"),
            0
        );
        assert_eq!(
            breaches_in("lb-agent/src/source/kube.rs", "use crate::datapath::load;"),
            1
        );
        assert_eq!(
            breaches_in("lb-agent/src/sync.rs", "use crate::datapath::load;"),
            0
        );
    }

    #[test]
    fn a_program_has_no_pointers() {
        assert_eq!(
            breaches_in(
                "lb-ebpf/src/connect.rs",
                "use aya_ebpf::helpers::bpf_ktime;"
            ),
            1
        );
        assert_eq!(
            breaches_in(
                "lb-ebpf/src/connect.rs",
                "use aya_ebpf::macros::cgroup_sock_addr;"
            ),
            0
        );
        assert_eq!(
            breaches_in("lb-ebpf/src/maps.rs", "use aya_ebpf::helpers::bpf_ktime;"),
            0
        );
    }
}
