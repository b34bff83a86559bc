//! `cargo xtask tidy`: the rules of this tree that no compiler knows. They are also a test, so that
//! `cargo test` says so first.

mod documents;
mod imports;
mod manifests;
mod modules;
mod reference;
mod source;

use std::process::ExitCode;

use anyhow::{Result, bail};

use self::source::Source;
use crate::{run, tree::Tree};

/// Check the tree's own rules: module docs, orphans, import walls, unsafe, documents, versions
///
/// Also names the ten longest files and functions, which are worth a look and never an error.
#[derive(clap::Args)]
pub(crate) struct Args {}

pub(crate) fn tidy(_: &Args) -> Result<ExitCode> {
    let tree = Tree::find()?;
    say_longest(&source::all(&tree.root)?);
    check(&tree)?;
    eprintln!("the tree is tidy");
    Ok(ExitCode::SUCCESS)
}

/// An error that lists every breach.
pub(crate) fn check(tree: &Tree) -> Result<()> {
    let problems = problems(tree)?;
    if problems.is_empty() {
        return Ok(());
    }
    bail!(
        "{} breaches of the tree's rules\n{}",
        problems.len(),
        problems.join("\n")
    )
}

fn problems(tree: &Tree) -> Result<Vec<String>> {
    let sources = source::all(&tree.root)?;
    let mut problems = Vec::new();
    problems.extend(without_paragraph(&sources));
    problems.extend(modules::orphans(&sources));
    problems.extend(imports::breaches(&sources));
    problems.extend(unsafe_elsewhere(&sources));
    problems.extend(programs_that_permit_unsafe(&sources));
    problems.extend(documents::dead_paths(&tree.root, &sources)?);
    problems.extend(documents::top_level(&tree.root)?);
    problems.extend(reference::gaps(&tree.root)?);
    problems.extend(manifests::other_versions(&tree.root)?);
    Ok(problems)
}

/// A file opens by saying what it is for and why it exists apart from its neighbours.
fn without_paragraph(sources: &[Source]) -> Vec<String> {
    let silent = sources
        .iter()
        .filter(|source| !source.text.starts_with("//! "));
    silent
        .map(|source| {
            format!(
                "{}:1: open with a //! paragraph: what, and why apart",
                source.path
            )
        })
        .collect()
}

/// The only files with an unsafe block; the compiler's lint is told so in each of them.
const MAY_BE_UNSAFE: &[&str] = &[
    "lb-ebpf/src/calls.rs",
    "lb-ebpf/src/flows.rs",
    "lb-ebpf/src/maps.rs",
    "lb-ebpf/src/packet.rs",
    "lb-ebpf/src/sock.rs",
    "lb-ebpf/src/tcp.rs",
    "lb-ebpf/src/bin/",
    "lb-agent/src/datapath/sys.rs",
    "tests/src/netns.rs",
];

fn unsafe_elsewhere(sources: &[Source]) -> Vec<String> {
    let may = |source: &&Source| {
        MAY_BE_UNSAFE
            .iter()
            .any(|path| source.path.starts_with(path))
    };
    let others = sources.iter().filter(|source| !may(source));
    let lines =
        others.flat_map(|source| source.unsafe_lines.iter().map(move |line| (source, *line)));
    lines
        .map(|(source, line)| {
            let path = &source.path;
            format!(
                "{path}:{line}: unsafe; it lives in {} only",
                MAY_BE_UNSAFE.join(", ")
            )
        })
        .collect()
}

/// A program is safe code over the few files that are not.
fn programs_that_permit_unsafe(sources: &[Source]) -> Vec<String> {
    let programs = sources
        .iter()
        .filter(|source| imports::is_program(&source.path));
    let permissive = programs.filter(|source| !source.text.contains("#![forbid(unsafe_code)]"));
    permissive
        .map(|source| {
            format!(
                "{}:1: a program carries #![forbid(unsafe_code)]",
                source.path
            )
        })
        .collect()
}

fn say_longest(sources: &[Source]) {
    let mut files: Vec<_> = sources
        .iter()
        .map(|source| (source.lines(), &source.path))
        .collect();
    let mut functions: Vec<_> = sources
        .iter()
        .flat_map(|source| {
            source
                .functions
                .iter()
                .map(move |function| (source, function))
        })
        .map(|(source, function)| (function.lines, &source.path, &function.name))
        .collect();
    files.sort_unstable_by(|a, b| b.cmp(a));
    functions.sort_unstable_by(|a, b| b.cmp(a));
    run::say_title("longest files");
    for (lines, path) in files.iter().take(10) {
        eprintln!("{lines:5} {path}");
    }
    run::say_title("longest functions");
    for (lines, path, name) in functions.iter().take(10) {
        eprintln!("{lines:5} {name} in {path}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_tidy() {
        let tree = Tree::find().unwrap();
        let problems = problems(&tree).unwrap();
        assert!(problems.is_empty(), "\n{}", problems.join("\n"));
    }

    #[test]
    fn a_file_without_its_paragraph_is_named() {
        let silent = Source::new("lb-agent/src/lib.rs", "mod a;\n").unwrap();
        assert_eq!(without_paragraph(&[silent]).len(), 1);
    }

    #[test]
    fn unsafe_is_found_where_it_does_not_belong() {
        let text = "//! A file.\nfn f() {\n    unsafe { g() }\n}\n";
        let breaches = |path: &str| unsafe_elsewhere(&[Source::new(path, text).unwrap()]);
        assert!(breaches("lb-agent/src/sync.rs")[0].starts_with("lb-agent/src/sync.rs:3:"));
        assert!(breaches("lb-ebpf/src/maps.rs").is_empty());
    }

    #[test]
    fn a_program_must_forbid_unsafe_code() {
        let breaches = |path: &str| {
            let source = Source::new(path, "//! A file.\n").unwrap();
            programs_that_permit_unsafe(&[source]).len()
        };
        assert_eq!(breaches("lb-ebpf/src/connect.rs"), 1);
        assert_eq!(breaches("lb-ebpf/src/maps.rs"), 0);
    }
}
