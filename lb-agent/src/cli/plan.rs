//! `lb-agent plan`: what this node would program for a folder of objects, and why. Neither root nor
//! kernel: the same model that `run` uses, printed.

mod json;
mod table;

use std::{
    collections::BTreeSet,
    io::{self, Write},
    path::PathBuf,
};

use clap::Parser;

use crate::{
    cli::Output,
    model::{Model, Object, ServicePort, state::Settings},
    source::{
        Problem,
        dir::{self, DirError},
    },
};

/// Show what this node would program for a folder of Kubernetes objects
///
/// Prints every Service port with the addresses it answers at, what a client gets there, and each
/// endpoint with the reason why this node uses it or does not. Needs neither root nor a cluster.
/// For a NodePort, LoadBalancer or ExternalIP the verdict is that of a client outside the cluster.
#[derive(Clone, Debug, Parser)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// A folder of Service, EndpointSlice, Node and ServiceCIDR objects in YAML or JSON
    #[arg(long, value_name = "DIR")]
    pub objects: PathBuf,
    /// The node to plan for, as nodeName and node hints write it
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// The node's zone, whatever its Node object says
    #[arg(long, value_name = "ZONE")]
    pub zone: Option<String>,
    /// How to print it
    #[arg(short, long, value_name = "FORMAT", default_value = "table")]
    pub output: Output,
}

const EXAMPLES: &str = "\
Examples:
  What would node-1 do with the objects in this folder?
    lb-agent plan --objects examples/cross-zone --node node-1

  What would change if it stood in another zone?
    lb-agent plan --objects examples/cross-zone --node node-1 --zone c

  Which Service ports would refuse or drop connections?
    lb-agent plan --objects DIR --node NAME -o json |
      jq '.services[] | select(.frontends[].verdict != \"forward\")'

  The objects of a running cluster:
    kubectl get services,endpointslices,nodes,servicecidrs -A -o yaml > DIR/cluster.yaml";

/// What a node would program.
#[derive(Clone, Debug)]
pub struct Plan {
    pub model: Model,
    /// Sorted by namespace, name, port, protocol and family.
    pub services: Vec<ServicePort>,
    pub problems: Vec<Problem>,
    /// How many objects were of kinds that nobody here reads.
    pub ignored: usize,
    /// Of all Nodes.
    pub zones: BTreeSet<String>,
}

/// Plan for the folder that the arguments name.
///
/// # Errors
///
/// The folder cannot be read. Broken files in it are problems of the plan.
pub fn plan(args: &Args) -> Result<Plan, DirError> {
    let snapshot = dir::read_dir_once(&args.objects)?;
    let mut model = Model::new(Settings {
        node: args.node.trim().to_lowercase(),
        zone: args.zone.clone().filter(|zone| !zone.is_empty()),
        external_ips: true,
    });
    let zones = zones_of(&snapshot.objects);
    let _all = model.relist(snapshot.objects);
    let services = model
        .services()
        .flat_map(|name| model.service_ports(name))
        .collect();
    Ok(Plan {
        services,
        model,
        problems: snapshot.problems,
        ignored: snapshot.ignored,
        zones,
    })
}

fn zones_of(objects: &[Object]) -> BTreeSet<String> {
    let zone = |object: &Object| match object {
        Object::Node(node) => node.zone.clone(),
        Object::Service(_) | Object::Slice(_) | Object::ServiceCidr(_) => None,
    };
    objects.iter().filter_map(zone).collect()
}

pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let plan = plan(args)?;
    plan.warn(&mut anstream::stderr().lock())?;
    // Standard output is flushed line by line, and a large plan has some 100,000 of them.
    let mut out = io::BufWriter::new(anstream::stdout().lock());
    match args.output {
        Output::Table => table::write(&plan, &mut out)?,
        Output::Json => json::write(&plan, &mut out)?,
    }
    Ok(out.flush()?)
}

impl Plan {
    pub(super) fn warn(&self, to: &mut impl Write) -> io::Result<()> {
        for problem in &self.problems {
            writeln!(to, "warning: {problem}")?;
        }
        let node = self.model.node();
        if !self.model.knows_own_node() {
            writeln!(
                to,
                "warning: no Node {node} in the folder{}",
                self.without_node()
            )?;
        }
        Ok(())
    }

    fn without_node(&self) -> &'static str {
        match self.model.zone() {
            Some(_) => "; the given zone is used",
            None => ", so it has no zone and zone hints are ignored; add it, or give --zone",
        }
    }
}
