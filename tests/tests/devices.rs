//! The packet programs at a node's interfaces: which ones they get to, that they follow as interfaces come
//! and go, and that nothing of anybody else's is touched.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{collections::BTreeMap, fs, path::Path, process::Command, sync::Arc};

use aya::{
    maps::{Array, HashMap, Map, MapData},
    programs::{SchedClassifier, TcAttachType},
};
use bytemuck::Zeroable;
use lb_agent::datapath::{BpfMaps, Pins, maps::LocalTables};
use lb_common::{
    addr::{Port, Proto},
    flow::{End, FlowKey, Half, Hook, Node as Cell, seen},
};
use lb_tests::{
    Agent, Lab, Node, Objects, agent,
    netns::Netns,
    objects,
    scene::{NODE, ZONE},
    wait,
};
use serde_json::{Value, json};

/// Both ways that this kernel has.
const WAYS: [&str; 2] = ["tcx", "clsact"];

const BOTH: [&str; 2] = ["nh_egress", "nh_ingress"];

#[test]
fn ethernet_interfaces_get_both_programs_and_bridges_give_theirs_to_their_ports() {
    for way in WAYS {
        let bed = Bed::new();
        let _agent = bed.start(&["--packet-attach", way]);
        bed.ip("link add br0 type bridge");
        bed.veth("port0");
        bed.ip("link set port0 master br0");

        bed.wait_for(&["eth0", "port0", "port0-peer"]);

        assert_eq!(bed.programs_at("eth0"), BOTH, "{way}");
        assert_eq!(bed.programs_at("port0"), BOTH, "{way}");
        assert_eq!(bed.programs_at("br0"), [""; 0], "{way}");
        assert_eq!(bed.programs_at("lo"), [""; 0], "{way}");
    }
}

#[test]
fn interfaces_that_come_and_go_are_followed() {
    for way in WAYS {
        let bed = Bed::new();
        let _agent = bed.start(&["--packet-attach", way]);

        bed.veth("pod.1");
        bed.wait_for(&["eth0", "pod.1", "pod.1-peer"]);
        assert_eq!(bed.programs_at("pod.1"), BOTH, "{way}");

        bed.ip("link set pod.1 name renamed");
        bed.wait_for(&["eth0", "pod.1-peer", "renamed"]);
        assert_eq!(bed.programs_at("renamed"), BOTH, "{way}");

        bed.ip("link del renamed");
        bed.wait_for(&["eth0"]);
        bed.veth("pod.1");
        bed.wait_for(&["eth0", "pod.1", "pod.1-peer"]);
        assert_eq!(bed.programs_at("pod.1"), BOTH, "{way}");
    }
}

#[test]
fn an_interface_that_moves_to_a_pod_leaves_its_programs_behind() {
    let bed = Bed::new();
    let _agent = bed.start(&[]);
    let pod = bed.node.pod("10.0.1.5");
    bed.veth("veth0");
    bed.wait_for(&["eth0", "veth0", "veth0-peer"]);

    let netns = &pod.place().netns;
    bed.ip(&format!("link set veth0-peer netns {}", netns.name));
    bed.wait_for(&["eth0", "veth0"]);

    let gone = || match tcx_at(netns, "veth0-peer") {
        programs if programs.is_empty() => Ok(()),
        programs => Err(programs.join(" ")),
    };
    wait::until("no program in the pod", wait::PATIENCE, gone).unwrap();
}

#[test]
fn names_given_by_hand_choose_the_interfaces() {
    let only = Bed::new();
    let _agent = only.start(&["--devices", "pod*,tap?", "--exclude-devices", "*-peer"]);
    only.veth("pod1");
    only.veth("tap12");
    only.wait_for(&["pod1"]);

    let except = Bed::new();
    let _agent = except.start(&["--exclude-devices", "eth*"]);
    except.veth("pod1");
    except.wait_for(&["pod1", "pod1-peer"]);
}

#[test]
fn a_killed_agent_leaves_its_links_and_the_next_one_updates_them_in_place() {
    for way in WAYS {
        let bed = Bed::new();
        let agent = bed.start(&["--packet-attach", way]);
        bed.veth("pod1");
        bed.veth("pod2");
        bed.wait_for(&["eth0", "pod1", "pod1-peer", "pod2", "pod2-peer"]);
        let links = bed.link_ids();
        let programs = bed.program_ids("eth0");
        agent.kill().unwrap();
        assert_eq!(bed.programs_at("eth0"), BOTH, "{way}");
        bed.ip("link del pod1");
        bed.veth("pod3");

        let _next = bed.start(&["--packet-attach", way]);
        bed.wait_for(&["eth0", "pod2", "pod2-peer", "pod3", "pod3-peer"]);

        assert_ne!(bed.program_ids("eth0"), programs, "{way}");
        assert_eq!(bed.programs_at("eth0"), BOTH, "{way}");
        let now = bed.link_ids();
        let kept = links.iter().filter(|(pin, id)| now.get(*pin) == Some(id));
        let expected = if way == "tcx" { 6 } else { 0 };
        assert_eq!(kept.count(), expected, "{way}: {links:?}\n{now:?}");
    }
}

#[test]
fn the_way_can_be_changed_by_a_restart_and_nothing_of_the_other_is_left() {
    let bed = Bed::new();
    let first = bed.start(&["--packet-attach", "clsact"]);
    assert_eq!(filters(&bed.node, "eth0").len(), 2);

    first.kill().unwrap();
    let second = bed.start(&["--packet-attach", "tcx"]);
    assert_eq!(bed.tcx("eth0"), BOTH);
    assert!(filters(&bed.node, "eth0").is_empty());
    assert!(!has_clsact(&bed.node, "eth0"));

    second.kill().unwrap();
    let third = bed.start(&["--packet-path=false"]);
    assert_eq!(bed.tcx("eth0"), [""; 0]);
    bed.wait_for(&[]);
    drop(third);
}

#[test]
fn what_others_have_attached_stays_even_where_it_has_our_place() {
    for way in WAYS {
        let bed = Bed::new();
        bed.tc("qdisc add dev eth0 clsact");
        bed.filter("ingress prio 7 handle 0x6e68");
        bed.filter("egress");
        let theirs = filters(&bed.node, "eth0");
        assert_eq!(theirs.len(), 2, "{theirs:?}");

        let agent = bed.start(&["--packet-attach", way]);
        match way {
            "tcx" => bed.wait_for(&["eth0"]),
            _ => bed.wait_for_problem("interface eth0"),
        }
        agent.kill().unwrap();
        let output = bed.node.cli().on_pins(&["cleanup"]);

        assert!(output.status.success(), "{}", agent::text(&output.stderr));
        assert_eq!(filters(&bed.node, "eth0"), theirs, "{way}");
        assert!(has_clsact(&bed.node, "eth0"), "{way}");
    }
}

#[test]
fn a_qdisc_of_somebody_else_is_shared_and_stays() {
    let bed = Bed::new();
    bed.tc("qdisc add dev eth0 clsact");
    bed.filter("ingress");
    let agent = bed.start(&["--packet-attach", "clsact"]);
    bed.wait_for(&["eth0"]);
    assert_eq!(filters(&bed.node, "eth0").len(), 3);

    agent.kill().unwrap();
    let output = bed.node.cli().on_pins(&["cleanup"]);

    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    assert_eq!(filters(&bed.node, "eth0").len(), 1);
}

#[test]
fn two_agents_share_an_interface_by_links_and_cleanup_removes_those_of_one() {
    let bed = Bed::new();
    let _agent = bed.start(&[]);
    let other = bed.lab.node("node-b");
    let pins = other.pin_path();
    let pins = pins.to_str().unwrap();
    let mut command = bed
        .node
        .host()
        .place()
        .command(&agent::program().unwrap(), &[])
        .unwrap();
    command.args([
        "run",
        "--packet-path",
        "--node",
        "node-b",
        "--pin-path",
        pins,
    ]);
    command.arg("--objects").arg(bed.objects.dir());
    command.arg("--cgroup").arg(other.cgroup());
    let second = bed.node.start_agent(command);
    let twice = || match bed.tcx("eth0") {
        programs if programs.len() == 4 => Ok(()),
        programs => Err(programs.join(" ")),
    };
    wait::until("four programs at eth0", wait::PATIENCE, twice).unwrap();
    second.kill().unwrap();

    let output = bed.node.cli().run(&["cleanup", "--pin-path", pins]);

    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    assert_eq!(bed.tcx("eth0"), BOTH);
}

#[test]
fn cleanup_leaves_no_program_filter_or_qdisc_at_any_interface() {
    for way in WAYS {
        let bed = Bed::new();
        let agent = bed.start(&["--packet-attach", way]);
        bed.veth("pod1");
        bed.wait_for(&["eth0", "pod1", "pod1-peer"]);
        agent.kill().unwrap();

        let output = bed.node.cli().on_pins(&["cleanup"]);

        assert!(output.status.success(), "{}", agent::text(&output.stderr));
        for name in ["eth0", "pod1"] {
            assert_eq!(bed.programs_at(name), [""; 0], "{way}");
            assert!(!has_clsact(&bed.node, name), "{way}");
        }
        assert!(!bed.node.pin_path().exists(), "{way}");
    }
}

#[test]
fn a_program_that_somebody_detached_is_attached_again() {
    let bed = Bed::new();
    let _agent = bed.start(&[]);
    let pins = bed.node.pin_path().join("links");
    let link = fs::read_dir(pins).unwrap().find_map(|entry| {
        let path = entry.unwrap().path();
        path.to_str()
            .unwrap()
            .contains("nh_ingress-")
            .then_some(path)
    });
    let detached = Command::new("bpftool")
        .args(["link", "detach", "pinned"])
        .arg(link.unwrap())
        .output()
        .unwrap();
    assert!(
        detached.status.success(),
        "{}",
        agent::text(&detached.stderr)
    );
    assert_eq!(bed.tcx("eth0"), ["nh_egress"]);

    let whole = || match bed.tcx("eth0") {
        programs if programs == BOTH => Ok(()),
        programs => Err(programs.join(" ")),
    };
    wait::until("both programs at eth0", wait::PATIENCE, whole).unwrap();
}

#[test]
fn what_packets_must_know_of_the_node_follows_the_node_and_its_addresses() {
    let bed = Bed::new();
    let _agent = bed.start(&["--detect-local-mode=NodeCIDR", "--masquerade-all"]);
    let host = bed.node.host();
    let at_first = bed.local(|local| local.node.flags == Cell::MASQUERADE_ALL);
    assert_eq!(at_first.node.v4.to_string(), host.addr().to_string());
    assert_eq!(at_first.node.v6.to_string(), host.addr6().to_string());

    let mut object = objects::node(NODE, ZONE);
    object["spec"] = json!({"podCIDRs": ["10.1.0.0/24"]});
    object["status"] = json!({"addresses": [{"type": "InternalIP", "address": "10.9.9.9"}]});
    bed.objects.apply(object);
    let flags = Cell::MASQUERADE_ALL | Cell::DETECT_RANGE;
    let known = bed.local(|local| local.node.flags == flags);
    assert_eq!(known.pod_cidrs[0].addr.to_string(), "10.1.0.0");
    assert_eq!(
        known.node.v4, at_first.node.v4,
        "the machine has no such address"
    );

    bed.ip("addr add 10.9.9.9/32 dev eth0");
    bed.local(|local| local.node.v4.to_string() == "10.9.9.9");
    bed.ip("addr del 10.9.9.9/32 dev eth0");
    bed.local(|local| local.node.v4 == at_first.node.v4);
}

#[test]
fn pods_interfaces_are_marked_as_they_come_and_go() {
    let prefix = Bed::new();
    let _agent = prefix.start(&[
        "--detect-local-mode=InterfaceNamePrefix",
        "--pod-interface-name-prefix=pod",
    ]);
    prefix.veth("pod1");
    prefix.local(|local| local.pods.len() == 2 && local.node.flags == Cell::DETECT_INTERFACE);
    prefix.ip("link del pod1");
    prefix.local(|local| local.pods.is_empty());

    let bridge = Bed::new();
    let _agent = bridge.start(&[
        "--detect-local-mode=BridgeInterface",
        "--pod-bridge-interface=br0",
    ]);
    bridge.ip("link add br0 type bridge");
    bridge.veth("port0");
    bridge.ip("link set port0 master br0");
    bridge.local(|local| local.pods.len() == 1);
    bridge.ip("link set port0 nomaster");
    bridge.local(|local| local.pods.is_empty());
}

#[test]
fn flows_end_by_time_with_all_their_halves_and_no_others_do() {
    let bed = Bed::new();
    let _agent = bed.start(&[]);
    let set = Pins::new(bed.node.pin_path()).sets().unwrap().pop();
    let mut flows = FlowTable::open(&set.unwrap().folder());
    let old = flows.begin(1, Proto::UDP, 1);
    let tcp = flows.begin(2, Proto::TCP, u64::MAX);
    let hidden = flows.begin_hidden(3, 1);
    assert_eq!((flows.count(), flows.hints()), (8, 8));

    let gone = || match flows.count() {
        2 => Ok(()),
        count => Err(format!("{count} entries")),
    };
    wait::until("six halves to be gone", wait::PATIENCE, gone).unwrap();
    assert!(flows.has(&tcp) && !flows.has(&old) && !flows.has(&hidden));
    assert_eq!(flows.hints(), 2);
}

/// The flows of an agent, written as the programs write them.
struct FlowTable {
    flows: HashMap<MapData, [u8; 40], [u8; 48]>,
    hints: Array<MapData, u64>,
}

impl FlowTable {
    fn open(set: &Path) -> Self {
        let map = |name: &str| MapData::from_pin(set.join(name)).unwrap();
        Self {
            flows: Map::HashMap(map("FLOWS")).try_into().unwrap(),
            hints: Map::Array(map("FLOW_HINTS")).try_into().unwrap(),
        }
    }

    /// From the client of this number to one Service, last used then.
    fn begin(&mut self, client: u16, proto: Proto, used_nanos: u64) -> FlowKey {
        let service = end("10.96.0.10", 53);
        let key = FlowKey::new(end("10.0.1.9", client), service, proto, Hook::Ingress);
        self.add_pair(key, half(used_nanos, 0));
        key
    }

    /// The same with the flow around it that hides the client.
    fn begin_hidden(&mut self, client: u16, used_nanos: u64) -> FlowKey {
        let key = self.begin(client, Proto::UDP, used_nanos);
        let to = half(0, 0).by();
        let middle = FlowKey::new(key.from(), to, Proto::UDP, Hook::Egress);
        self.add_pair(middle, half(u64::MAX, Half::MASQUERADE));
        key
    }

    fn add_pair(&mut self, key: FlowKey, half: Half) {
        let (other_key, other) = half.other(&key);
        for (key, half) in [(key, half), (other_key, other)] {
            let (cell, value): ([u8; 40], [u8; 48]) = (bytemuck::cast(key), bytemuck::cast(half));
            self.flows.insert(cell, value, 0).unwrap();
            let hint = self.hints.get(&key.hint(), 0).unwrap();
            self.hints.set(key.hint(), hint + 1, 0).unwrap();
        }
    }

    fn has(&self, key: &FlowKey) -> bool {
        self.flows.get(&bytemuck::cast(*key), 0).is_ok()
    }

    fn count(&self) -> usize {
        self.flows.keys().flatten().count()
    }

    /// Of all entries, as counted.
    fn hints(&self) -> u64 {
        self.hints.iter().flatten().sum()
    }
}

fn half(used_nanos: u64, flags: u16) -> Half {
    let backend = end("10.0.1.1", 5353);
    Half {
        seen: seen::PACKET,
        used_nanos,
        addr: backend.addr,
        port: backend.port.0,
        flags,
        // No cell has this number, so nothing is known of the endpoint.
        backend: u32::MAX,
        ..Half::zeroed()
    }
}

fn end(addr: &str, port: u16) -> End {
    End {
        addr: addr.parse::<std::net::IpAddr>().unwrap().into(),
        port: Port(port),
    }
}

/// A node whose host has an interface `eth0`.
struct Bed {
    objects: Objects,
    node: Node,
    lab: Lab,
}

impl Bed {
    fn new() -> Self {
        let lab = Lab::new();
        let objects = lab.objects();
        objects.apply(objects::node(NODE, ZONE));
        let node = lab.node(NODE);
        Self { objects, node, lab }
    }

    fn start(&self, flags: &[&str]) -> Arc<Agent> {
        let says = flags.iter().any(|flag| flag.starts_with("--packet-path"));
        let on: &[&str] = if says { &[] } else { &["--packet-path"] };
        self.node.agent_with(&self.objects, &[on, flags].concat())
    }

    fn netns(&self) -> &Netns {
        &self.node.host().place().netns
    }

    fn ip(&self, command: &str) {
        self.netns().ip(&format!("{command}\n")).unwrap();
    }

    /// An interface, and its other end in the same namespace.
    fn veth(&self, name: &str) {
        self.ip(&format!("link add {name} type veth peer name {name}-peer"));
    }

    fn tc(&self, command: &str) {
        tc(&self.node, &command.split(' ').collect::<Vec<_>>());
    }

    /// Somebody else's, which matches nothing.
    fn filter(&self, place: &str) {
        let side = place.split(' ').next().unwrap_or(place);
        let rest = place.strip_prefix(side).unwrap_or_default();
        let bytecode = ["bpf", "bytecode", "1,6 0 0 0,"];
        let words = ["filter", "add", "dev", "eth0", side];
        let rest: Vec<_> = rest.split_ascii_whitespace().collect();
        tc(&self.node, &[&words[..], &rest, &bytecode].concat());
    }

    /// What is said of the node in the maps, once it is as expected.
    fn local(&self, expected: impl Fn(&LocalTables) -> bool) -> LocalTables {
        let seen = || {
            let maps = BpfMaps::open_pinned(&Pins::new(self.node.pin_path()));
            match maps.and_then(|maps| maps.local()) {
                Ok(local) if expected(&local) => Ok(local),
                Ok(local) => Err(format!("{:?} {:?}", local.node, local.pods)),
                Err(error) => Err(format!("{error:#}")),
            }
        };
        wait::until("the maps to say it", wait::PATIENCE, seen).unwrap()
    }

    /// Waits until the agent says that it has attached to these interfaces, and no others.
    fn wait_for(&self, names: &[&str]) {
        let seen = || {
            let status = self.node.cli().status()?;
            let interfaces = status["interfaces"].as_array().cloned().unwrap_or_default();
            let mut whole: Vec<_> = interfaces
                .iter()
                .filter(|found| found["programs"].as_array().is_some_and(|p| p.len() == 2))
                .map(|found| found["name"].as_str().unwrap_or("?").to_owned())
                .collect();
            whole.sort();
            if whole == names && interfaces.len() == names.len() {
                Ok(())
            } else {
                Err(Value::from(interfaces).to_string())
            }
        };
        wait::until(&format!("programs at {names:?}"), wait::PATIENCE, seen).unwrap();
    }

    fn wait_for_problem(&self, word: &str) {
        let seen = || match self.node.cli().status()?["problem"].as_str() {
            Some(problem) if problem.contains(word) => Ok(()),
            problem => Err(format!("{problem:?}")),
        };
        wait::until("a problem to be told", wait::PATIENCE, seen).unwrap();
    }

    /// Our programs at an interface, however they got there, as the kernel says.
    fn programs_at(&self, name: &str) -> Vec<String> {
        let mut programs = self.tcx(name);
        let filters = filters(&self.node, name);
        let names = filters
            .iter()
            .filter_map(|filter| filter["options"]["bpf_name"].as_str());
        programs.extend(names.map(str::to_owned));
        programs
    }

    fn tcx(&self, name: &str) -> Vec<String> {
        tcx_at(self.netns(), name)
    }

    /// The numbers of the programs at an interface.
    fn program_ids(&self, name: &str) -> Vec<u64> {
        let links = tcx_infos(self.netns(), name).into_iter();
        let filters = filters(&self.node, name);
        let of_filter = |filter: &Value| filter["options"]["prog"]["id"].as_u64();
        links
            .map(|(_, id)| u64::from(id))
            .chain(filters.iter().filter_map(of_filter))
            .collect()
    }

    /// The ids of the interfaces' links, by their pins.
    fn link_ids(&self) -> BTreeMap<String, Value> {
        let pins = fs::read_dir(self.node.pin_path().join("links")).unwrap();
        let paths = pins.map(|pin| pin.unwrap().path());
        let named = paths.map(|path| (path.display().to_string(), path));
        named
            .filter(|(name, _)| name.contains("nh_ingress-") || name.contains("nh_egress-"))
            .map(|(name, path)| (name, link_id(&path)))
            .collect()
    }
}

fn link_id(pin: &Path) -> Value {
    let output = Command::new("bpftool")
        .args(["--json", "link", "show", "pinned"])
        .arg(pin)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", agent::text(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["id"].clone()
}

/// The names of the programs that the kernel says are linked to an interface, egress first.
fn tcx_at(netns: &Netns, interface: &str) -> Vec<String> {
    let infos = tcx_infos(netns, interface).into_iter();
    infos.map(|(name, _)| name).collect()
}

fn tcx_infos(netns: &Netns, interface: &str) -> Vec<(String, u32)> {
    let query = || {
        let mut found = Vec::new();
        for side in [TcAttachType::Egress, TcAttachType::Ingress] {
            // An interface to which nothing was ever linked is an error to some kernels.
            let programs =
                SchedClassifier::query_tcx(interface, side).map(|(_, programs)| programs);
            let infos = programs.unwrap_or_default().into_iter();
            found.extend(
                infos.map(|info| (info.name_as_str().unwrap_or("?").to_owned(), info.id())),
            );
        }
        Ok(found)
    };
    netns.run(query).unwrap()
}

/// The filters at an interface as `tc` shows them, egress first.
fn filters(node: &Node, interface: &str) -> Vec<Value> {
    let of = |side| {
        let shown = tc(node, &["-j", "filter", "show", "dev", interface, side]);
        let filters: Vec<Value> = serde_json::from_str(&shown).unwrap_or_default();
        filters
    };
    let shown = ["egress", "ingress"].into_iter().flat_map(of);
    // Each is announced by a line about its kind.
    shown
        .filter(|filter| filter["options"].is_object())
        .collect()
}

fn has_clsact(node: &Node, interface: &str) -> bool {
    tc(node, &["qdisc", "show", "dev", interface]).contains("clsact")
}

fn tc(node: &Node, args: &[&str]) -> String {
    let netns = &node.host().place().netns.name;
    let output = Command::new("tc")
        .args(["-n", netns])
        .args(args)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "tc {args:?}: {}",
        agent::text(&output.stderr)
    );
    agent::text(&output.stdout)
}
