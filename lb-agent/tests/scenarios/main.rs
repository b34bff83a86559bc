//! Runs the features in `scenarios/*.txt` through the engine that a node runs: users' YAML in, flows
//! and tables out, without root. `scenarios/README.md` says what a scenario may hold; UPDATE=1 rewrites
//! the sections that are compared with the tables.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod agent;
mod flow;
mod script;
mod world;

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use lb_agent::{
    datapath::{
        fake::{FakeMaps, FaultyMaps},
        store::MapStore,
    },
    tables::set::Capacities,
};
use script::Script;
use world::World;

#[test]
fn every_scenario_holds_though_one_operation_in_ten_fails() {
    for seed in 0..4 {
        run_all(|capacities| FaultyMaps::new(capacities, seed));
    }
}

#[test]
fn every_scenario_holds_with_maps_that_never_fail() {
    run_all(FakeMaps::new);
}

#[test]
fn a_scenario_that_is_wrong_says_where() {
    for (text, expected) in [
        (
            "flow pod -> 10.0.0.1:80 = 10.0.0.2:80",
            ":2: the flow gets pass-not-a-service",
        ),
        ("aply web.yaml", ":2: `aply` is no command"),
        ("apply web.yaml", ":2: there is no section `web.yaml`"),
        ("node node-1", ": it checks nothing"),
        (
            "empty\n\n-- web.yaml --\n",
            ":4: nobody reads section `web.yaml`",
        ),
        (
            "problems wrong\n\n-- wrong --\nb.yaml: bad\n",
            ":2: `wrong` is now",
        ),
        (
            "apply a.yaml\nempty\n\n-- a.yaml --\na: [\n",
            ":3: a problem that no line asks for: a.yaml",
        ),
    ] {
        let script = Script::parse("x.txt", &format!("# Wrong.\n{text}")).unwrap();
        let error = run(&script, FakeMaps::new).unwrap_err();

        assert!(
            error.starts_with(&format!("x.txt{expected}")),
            "{text:?}: {error}"
        );
    }
}

/// Plays every scenario, and fails with all that failed.
fn run_all<S: MapStore + Clone>(store: impl Fn(Capacities) -> S) {
    let files = scenario_files();
    assert!(
        files.len() >= 25,
        "only {} scenarios were found",
        files.len()
    );
    let failures: Vec<_> = files
        .iter()
        .filter_map(|file| run_file(file, &store).err())
        .collect();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n\n"));
}

fn scenario_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    files.sort();
    files
}

fn run_file<S: MapStore + Clone>(
    path: &Path,
    store: impl Fn(Capacities) -> S,
) -> Result<(), String> {
    let name = format!("scenarios/{}", path.file_name().unwrap().display());
    let mut script = Script::parse(&name, &fs::read_to_string(path).unwrap())?;
    script.update = env::var_os("UPDATE").is_some_and(|value| value == "1");
    let script = run(&script, store)?;
    if script.update {
        fs::write(path, script.to_string()).unwrap();
    }
    Ok(())
}

/// Plays one scenario. Returns it with its golden sections as they came out.
fn run<S: MapStore + Clone>(
    script: &Script,
    store: impl Fn(Capacities) -> S,
) -> Result<Script, String> {
    let mut script = script.clone();
    let mut world = World::new(store);
    for line in script.lines.clone() {
        let step = world.step(&line.command, &mut script);
        step.map_err(|why| format!("{}:{}: {why}", script.name, line.number))?;
    }
    world.finish(&script)?;
    Ok(script)
}
