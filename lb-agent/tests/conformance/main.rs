//! The conformance vectors, as folders of objects: through the library's plan, the built binary, and the
//! maps that an engine leaves. (The lab has them through the maps of a running agent.)
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod restored;
mod vectors;

use std::{collections::BTreeSet, fs, path::Path, process::Command, slice};

use lb_agent::{
    cli::{
        Output,
        plan::{Args, plan},
    },
    datapath::fake::FakeMaps,
    model::{Object, ServicePort, state::Settings},
    source::{Batch, document},
    sync::{Engine, SyncReport, Wanted},
    tables::programmed::Programmed,
};
use lb_common::{
    select::Origin,
    tables::{Kind, List},
};
use serde_json::Value;
use vectors::{Outcome, Vector, by_node, vectors};

#[test]
fn the_library_plans_every_vector_as_expected() {
    for vector in vectors() {
        for layout in [one_json_list, a_yaml_file_for_each_object] {
            let dir = tempfile::tempdir().unwrap();
            layout(dir.path(), &vector);
            let plan = plan(&args(&vector, dir.path())).unwrap();

            assert_eq!(plan.problems, [], "{}", vector.name);
            assert_eq!(plan.services.len(), 1, "{}", vector.name);
            vector.check(&planned(&plan.services[0]));
        }
    }
}

#[test]
fn the_binary_prints_every_vector_as_expected() {
    for vector in vectors() {
        let dir = tempfile::tempdir().unwrap();
        one_json_list(dir.path(), &vector);
        let output = Command::new(env!("CARGO_BIN_EXE_lb-agent"))
            .args([
                "plan",
                "-o",
                "json",
                "--node",
                vector.node_name(),
                "--objects",
            ])
            .arg(dir.path())
            .output()
            .unwrap();

        assert!(output.status.success(), "{}: {output:?}", vector.name);
        assert_eq!(output.stderr, b"", "{}", vector.name);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(
            printed["services"].as_array().map(Vec::len),
            Some(1),
            "{}",
            vector.name
        );
        vector.check(&printed_outcome(&printed["services"][0]));
    }
}

#[test]
fn what_is_programmed_for_every_vector_is_restored_as_expected() {
    for ((node, _), vectors) in by_node() {
        let list = vectors::objects(&vectors).to_string();
        let contents = document::parse("objects.json", &list).unwrap();
        assert_eq!(contents.problems, [], "{node}");
        let engine = engine(&node, contents.objects.into_values().collect());

        let tables = &engine.store().tables;
        for vector in &vectors {
            vector.check(&restored::outcome(tables, vector));
        }
        assert_eq!(Programmed::restore(tables), *engine.programmed(), "{node}");
    }
}

/// An engine that has programmed these objects.
fn engine(node: &str, objects: Vec<Object>) -> Engine<FakeMaps> {
    let mut wanted = Wanted::new(Settings {
        node: node.to_owned(),
        zone: None,
        external_ips: true,
    });
    wanted.fold(Batch {
        apply: objects,
        complete: true,
        ..Batch::default()
    });
    let maps = FakeMaps::new(wanted.capacities());
    let mut engine = Engine::start(wanted, maps).unwrap();
    let mut report = SyncReport::default();
    engine.sync(&mut report).unwrap();
    assert_eq!(report.full, []);
    engine
}

fn one_json_list(dir: &Path, vector: &Vector) {
    let list = vectors::objects(slice::from_ref(vector));
    fs::write(dir.join("objects.json"), list.to_string()).unwrap();
}

/// In the reverse order, because the order in which slices arrive must not matter.
fn a_yaml_file_for_each_object(dir: &Path, vector: &Vector) {
    let mut objects = vector.objects();
    objects.insert(0, vector.node_object());
    for (i, object) in objects.iter().rev().enumerate() {
        // JSON is YAML.
        fs::write(dir.join(format!("{i}.yaml")), format!("{object:#}")).unwrap();
    }
}

fn args(vector: &Vector, dir: &Path) -> Args {
    Args {
        objects: dir.to_owned(),
        node: vector.node_name().to_owned(),
        zone: None,
        output: Output::Json,
    }
}

fn planned(port: &ServicePort) -> Outcome {
    let list = |list| {
        let members = port.choice.list(list)?;
        Some(
            members
                .iter()
                .map(|endpoint| endpoint.addr().to_string())
                .collect(),
        )
    };
    let verdict = |external| {
        let kinds = port.frontends.iter().map(|at| at.kind);
        let kinds = kinds.filter(|kind| (*kind != Kind::ClusterIp) == external);
        the_one(kinds.map(|kind| port.verdict(kind, Origin::Outside).to_string()))
    };
    Outcome {
        cluster: list(List::Cluster),
        local: list(List::Local),
        clusterip: verdict(false),
        external: verdict(true),
    }
}

fn printed_outcome(service: &Value) -> Outcome {
    let list = |key: &str| {
        let members = service[key].as_array()?.iter();
        let ip = |member: &Value| {
            member
                .as_str()
                .unwrap()
                .rsplit_once(':')
                .unwrap()
                .0
                .to_owned()
        };
        Some(
            members
                .map(|at| ip(at).trim_matches(['[', ']']).to_owned())
                .collect(),
        )
    };
    let verdict = |external| {
        let frontends = service["frontends"].as_array().unwrap().iter();
        let frontends = frontends.filter(|at| (at["kind"] != "ClusterIP") == external);
        the_one(frontends.map(|at| at["verdict"].as_str().unwrap().to_owned()))
    };
    Outcome {
        cluster: list("cluster"),
        local: list("local"),
        clusterip: verdict(false),
        external: verdict(true),
    }
}

/// The verdict that all frontends share; `None` without frontends.
fn the_one(verdicts: impl Iterator<Item = String>) -> Option<String> {
    let verdicts: BTreeSet<_> = verdicts.collect();
    assert!(
        verdicts.len() <= 1,
        "frontends of one sort disagree: {verdicts:?}"
    );
    verdicts.into_iter().next()
}
