//! What documents promise about the tree: the paths they name exist, and the top level holds what
//! it is said to hold.

use std::{collections::BTreeSet, fs, path::Path};

use anyhow::{Context, Result};

use super::source::Source;

const DOCUMENTS: &[&str] = &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md"];

/// Everything at the top of the repository. A new entry is a decision, made here.
const TOP_LEVEL: &[&str] = &[
    ".cargo",
    ".ci",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "clippy.toml",
    "deny.toml",
    "deploy",
    "docs",
    "examples",
    "lb-agent",
    "lb-common",
    "lb-ebpf",
    "rustfmt.toml",
    "tests",
    "xtask",
];

/// What git and cargo put there.
const NOT_OURS: &[&str] = &[".git", "target"];

pub(crate) fn dead_paths(root: &Path, sources: &[Source]) -> Result<Vec<String>> {
    let mut dead = Vec::new();
    for document in DOCUMENTS
        .iter()
        .filter(|document| root.join(document).exists())
    {
        let text = fs::read_to_string(root.join(document)).context(*document)?;
        let missing = paths_in(&text).filter(|(_, path)| !exists(root, sources, path));
        dead.extend(missing.map(|(line, path)| format!("{document}:{line}: no `{path}` here")));
    }
    Ok(dead)
}

/// A folder's or file's path from the top, or the end of a source file's.
fn exists(root: &Path, sources: &[Source], path: &str) -> bool {
    let end = format!("/{path}");
    root.join(path).exists() || sources.iter().any(|source| source.path.ends_with(&end))
}

/// What a document names in backticks or links to and is a path of this repository, with its line.
fn paths_in(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = text.lines().zip(1..).map(|(line, number)| (number, line));
    numbered.flat_map(|(number, line)| {
        // A fence's three backticks leave nothing between them.
        let quoted = line
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|word| is_path(word));
        let linked = line
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', '#']).next());
        let linked = linked.filter(|link| !link.is_empty() && !link.contains("://"));
        quoted.chain(linked).map(move |word| (number, word))
    })
}

fn is_path(word: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let top = word.split('/').next().unwrap_or(word);
    let from_top = word.contains('/') && TOP_LEVEL.contains(&top);
    word.chars().all(plain) && (from_top || word.ends_with(".rs"))
}

pub(crate) fn top_level(root: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(root)?.map(|entry| Ok(entry?.file_name().into_string()));
    let present: Vec<String> = entries
        .filter_map(|name: Result<_>| name.ok()?.ok())
        .collect();
    Ok(unexpected(&present))
}

fn unexpected(present: &[String]) -> Vec<String> {
    let present: BTreeSet<&str> = present.iter().map(String::as_str).collect();
    let allowed: BTreeSet<&str> = TOP_LEVEL.iter().copied().collect();
    let extra = present
        .difference(&allowed)
        .filter(|name| !NOT_OURS.contains(name));
    let extra = extra.map(|name| format!("{name}: not an entry of the top level"));
    let missing = allowed
        .difference(&present)
        .map(|name| format!("{name}: missing"));
    extra.chain(missing).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_told_from_other_words_in_backticks() {
        let text =
            "See `lb-agent/src/lib.rs`, `select.rs` and `docs/`.\n`cargo test` `a/b` `run`\n";
        let found: Vec<_> = paths_in(text).collect();
        assert_eq!(
            found,
            [(1, "lb-agent/src/lib.rs"), (1, "select.rs"), (1, "docs/")]
        );
    }

    #[test]
    fn links_into_the_repository_are_paths() {
        let text = "[a](docs/maps.md#rings), [b](https://example.org/x), [c](#here)";
        let found: Vec<_> = paths_in(text).collect();
        assert_eq!(found, [(1, "docs/maps.md")]);
    }

    #[test]
    fn a_path_exists_from_the_top_or_as_the_end_of_a_source_file() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let sources = [Source::new("lb-common/src/select.rs", "").unwrap()];
        let exists = |path: &str| exists(&root, &sources, path);
        assert!(exists("xtask/src/tidy") && exists("select.rs") && exists("src/select.rs"));
        assert!(!exists("xtask/src/nothing.rs") && !exists("lect.rs"));
    }

    #[test]
    fn an_entry_too_many_or_too_few_at_the_top_is_named() {
        let mut present: Vec<String> = TOP_LEVEL.iter().map(|name| (*name).to_owned()).collect();
        present.push("target".into());
        assert!(unexpected(&present).is_empty());
        present.push("notes".into());
        present.retain(|name| name != "docs");
        assert_eq!(unexpected(&present).len(), 2);
    }
}
