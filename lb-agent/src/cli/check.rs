//! `lb-agent check`: what this machine can do, tried rather than read off a version.

use std::{
    fmt::Display,
    io::{self, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Instant,
};

use anstyle::{AnsiColor, Style};
use anyhow::{Result, anyhow};
use aya::{
    maps::MapType,
    programs::ProgramType,
    sys::{is_map_supported, is_program_supported},
};
use clap::Parser;
use serde::Serialize;

use crate::{
    cli::Output,
    config::PIN_PATH,
    datapath::{
        Pins, capability,
        cgroup::{self, Cgroup},
        grace::Grace,
        interface::Rule,
        load, netlink,
        packets::{self, Way},
        proof,
    },
};

/// Show what this machine can do, and prove that its processes are served
///
/// Each line is tried, not read off a kernel version. The last one attaches the connect program to the
/// cgroup for a moment, with tables of its own that hold one test address, and connects this very process
/// through it to a listener on 127.0.0.1. Nothing is pinned and nothing is left.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The cgroup whose processes are to be served [default: the root of the cgroup2 hierarchy]
    #[arg(long, value_name = "DIR")]
    cgroup: Option<PathBuf>,
    /// Where maps and links are to be pinned
    #[arg(long, value_name = "DIR", default_value = PIN_PATH)]
    pin_path: PathBuf,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    output: Output,
}

const EXAMPLES: &str = "\
Examples:
  Before an installation:
    lb-agent check

  What is missing?
    lb-agent check -o json | jq '.findings[] | select(.verdict == \"missing\")'

Exit codes:
  0  this machine can run nearhop
  1  something needed is missing";

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    verdict: Verdict,
    /// What was found, or what is wrong and how to put it right.
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Verdict {
    Ok,
    /// Not there, and done without.
    Without,
    Missing,
}

pub(super) fn run(args: &Args) -> Result<ExitCode> {
    let findings = check(args);
    let ok = findings
        .iter()
        .all(|finding| finding.verdict != Verdict::Missing);
    let mut out = anstream::stdout().lock();
    match args.output {
        Output::Json => {
            let document = serde_json::json!({ "ok": ok, "findings": findings });
            writeln!(out, "{document:#}")?;
        }
        Output::Table => table(&findings, &mut out)?,
    }
    Ok(if ok {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn check(args: &Args) -> Vec<Finding> {
    let mut findings = vec![
        needed(
            "capabilities",
            capability::require().map(|()| "BPF, NET_ADMIN, PERFMON"),
        ),
        needed("bpffs", bpffs(&args.pin_path)),
        optional("kernel BTF", btf()),
        needed("sock_addr programs", sock_addr()),
        needed("socket storage", socket_storage()),
        needed("socket events", socket_events()),
        optional("set_retval", set_retval()),
        needed("grace period", grace()),
    ];
    let cgroup = Cgroup::open(args.cgroup.as_deref());
    let object = proof::make_maps();
    let mapped = "arrays can be mapped into memory";
    findings.push(needed(
        "maps",
        object
            .as_ref()
            .map(|_| mapped)
            .map_err(|e| anyhow!("{e:#}")),
    ));
    findings.push(needed(
        "cgroup",
        cgroup
            .as_ref()
            .map(|cgroup| cgroup.path.display())
            .map_err(|e| anyhow!("{e:#}")),
    ));
    let (Ok(mut object), Ok(cgroup)) = (object, cgroup) else {
        return findings;
    };
    let loaded = object.load_programs();
    findings.push(needed(
        "programs",
        loaded.map(|()| "the kernel accepts all ten"),
    ));
    let loaded = object.load_packet_programs();
    findings.push(optional(
        "packet programs",
        loaded.and_then(|()| packet_way()),
    ));
    findings.push(optional("interfaces", interfaces()));
    findings.push(needed("host processes", host_processes(&cgroup)));
    findings
}

fn needed(name: &'static str, found: Result<impl Display>) -> Finding {
    finding(name, found, Verdict::Missing)
}

fn optional(name: &'static str, found: Result<impl Display>) -> Finding {
    finding(name, found, Verdict::Without)
}

fn finding(name: &'static str, found: Result<impl Display>, otherwise: Verdict) -> Finding {
    let (verdict, text) = match found {
        Ok(text) => (Verdict::Ok, text.to_string()),
        Err(error) => (otherwise, format!("{error:#}")),
    };
    Finding {
        name,
        verdict,
        text,
    }
}

fn bpffs(pin_path: &Path) -> Result<String> {
    Pins::new(pin_path).require_bpffs()?;
    Ok(format!("{} can be used", pin_path.display()))
}

fn btf() -> Result<&'static str> {
    if Path::new("/sys/kernel/btf/vmlinux").exists() {
        Ok("bpftool names the fields of what it dumps")
    } else {
        Err(anyhow!(
            "absent; nothing here needs it, and some of bpftool's output is plainer"
        ))
    }
}

fn sock_addr() -> Result<&'static str> {
    if is_program_supported(ProgramType::CgroupSockAddr)? {
        Ok("connects can be translated")
    } else {
        Err(anyhow!(
            "this kernel has no cgroup socket hooks; CONFIG_CGROUP_BPF is needed"
        ))
    }
}

fn socket_storage() -> Result<&'static str> {
    if is_map_supported(MapType::SkStorage)? {
        Ok("a socket remembers the Services it asked for")
    } else {
        Err(anyhow!(
            "this kernel has no socket storage; 5.10 or later is needed"
        ))
    }
}

fn socket_events() -> Result<&'static str> {
    if load::has_socket_events()? {
        Ok("connections are counted from their begin to their end")
    } else {
        Err(anyhow!(
            "programs of the kinds sock_ops or cgroup_sock cannot use socket storage here; 5.10 or later \
             is needed"
        ))
    }
}

fn set_retval() -> Result<&'static str> {
    if load::has_set_retval()? {
        Ok("a refused caller gets ECONNREFUSED")
    } else {
        Err(anyhow!(
            "absent (it came with 6.1); TCP is refused by a redirection to port 0 of loopback, \
             unconnected UDP gets EPERM"
        ))
    }
}

fn packet_way() -> Result<&'static str> {
    Ok(match packets::best_way()? {
        Way::Tcx => "the kernel accepts both, and takes links to interfaces (TCX)",
        Way::Clsact => {
            "the kernel accepts both; it has no TCX (6.6), so filters below clsact are used"
        }
    })
}

fn interfaces() -> Result<String> {
    let chosen = Rule::default().choose(&netlink::interfaces()?);
    if chosen.is_empty() {
        return Err(anyhow!(
            "no interface of this network namespace is for the packet programs; run this in the host's \
             namespace, or name interfaces by --devices"
        ));
    }
    let names: Vec<_> = chosen.iter().map(|interface| &*interface.name).collect();
    Ok(names.join(" "))
}

fn grace() -> Result<String> {
    let mut grace = Grace::new()?;
    let begun = Instant::now();
    grace.wait()?;
    let millis = begun.elapsed().as_millis();
    Ok(format!("waited {millis} ms for the kernel's readers"))
}

/// In an object of its own, since a program is loaded once.
fn host_processes(cgroup: &Cgroup) -> Result<String> {
    if !cgroup.covers_this_process()? {
        let own = cgroup::own_cgroup()?;
        return Err(anyhow!(
            "this process is in {}, outside of {}, so nothing is proved for processes like it; give a \
             --cgroup that holds both the pods and the host's processes, or run this command inside it",
            own.display(),
            cgroup.path.display()
        ));
    }
    let mut object = proof::make_maps()?;
    proof::connect_through(&mut object, cgroup)?;
    Ok(format!(
        "this process, below {}, was connected through the hook",
        cgroup.path.display()
    ))
}

const GOOD: Style = AnsiColor::Green.on_default();
const LESS: Style = AnsiColor::Yellow.on_default();
const BAD: Style = AnsiColor::Red.on_default().bold();

fn table(findings: &[Finding], out: &mut impl Write) -> io::Result<()> {
    for finding in findings {
        let (style, word) = match finding.verdict {
            Verdict::Ok => (GOOD, "ok"),
            Verdict::Without => (LESS, "without"),
            Verdict::Missing => (BAD, "missing"),
        };
        writeln!(
            out,
            "{style}{word:<8}{style:#} {:<20} {}",
            finding.name, finding.text
        )?;
    }
    Ok(())
}
