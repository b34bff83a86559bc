//! The agent for the processor that this machine does not have: cross-built, and run by an emulator. An
//! emulated process has this machine's kernel, whose byte order and structures are its own, so what
//! needs the kernel is not tried.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{build, processor::Processor, run, tally::Tally, tree::Tree};

/// Objects that a plan is made of, in examples/cross-zone.
const OBJECTS: [&str; 3] = ["nodes.yaml", "service.yaml", "endpointslice-hints.yaml"];

/// Builds the agent for every other processor and lets it plan what a node of the example would program.
pub(crate) fn test(tree: &Tree) -> Result<Tally> {
    let objects = tree.target.join("images/objects");
    fs::create_dir_all(&objects)?;
    for name in OBJECTS {
        let example = tree.root.join("examples/cross-zone").join(name);
        fs::copy(&example, objects.join(name)).with_context(|| example.display().to_string())?;
    }
    let own = plan(Command::new(tree.agent()), &objects)?;

    let mut tally = Tally::default();
    let others = Processor::value_variants().iter().copied();
    for processor in others.filter(|processor| !processor.is_own()) {
        let agent = build::static_agent(tree, processor)?;
        let mut emulated = Command::new(processor.emulator());
        emulated.arg(agent);
        match plan(emulated, &objects)? == own {
            true => tally.pass(),
            false => tally.fail(&format!("{processor}: another plan than this machine's")),
        }
    }
    Ok(tally)
}

fn plan(mut agent: Command, objects: &Path) -> Result<String> {
    agent.args(["plan", "--node", "node-a", "--objects"]);
    agent.arg(objects);
    run::text(agent)
}
