//! Orphans: files that no cargo target reaches by `mod` are never compiled, and tests in them never
//! fail.

use std::collections::{BTreeMap, BTreeSet};

use super::source::{CRATES, Module, Source};

pub(crate) fn orphans(sources: &[Source]) -> Vec<String> {
    let files: BTreeMap<&str, &Source> = sources
        .iter()
        .map(|source| (source.path.as_str(), source))
        .collect();
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = files
        .keys()
        .copied()
        .filter(|path| is_target(path))
        .collect();
    while let Some(path) = next.pop() {
        if !reached.insert(path) {
            continue;
        }
        let candidates = files[path]
            .modules
            .iter()
            .flat_map(|module| places(path, module));
        next.extend(candidates.filter_map(|place| Some(*files.get_key_value(&*place)?.0)));
    }
    let orphans = files.keys().filter(|path| !reached.contains(*path));
    orphans
        .map(|path| format!("{path}: no `mod` leads here, so it is never compiled"))
        .collect()
}

/// Whether cargo finds this file by itself.
fn is_target(path: &str) -> bool {
    let parts: Vec<&str> = path.split('/').collect();
    let [member, inside @ ..] = parts.as_slice() else {
        return false;
    };
    CRATES.contains(member)
        && matches!(
            inside,
            ["build.rs"]
                | ["src", "main.rs" | "lib.rs"]
                | ["src", "bin", _]
                | ["src", "bin", _, "main.rs"]
                | ["tests" | "examples" | "benches", _]
                | ["tests" | "examples" | "benches", _, "main.rs"]
        )
}

/// Where the compiler looks for a module of the file at `path`.
fn places(path: &str, module: &Module) -> Vec<String> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let stem = file.trim_end_matches(".rs");
    match module {
        Module::At(relative) => vec![joined(folder, relative)],
        Module::Named(name) if owns_folder(path, stem) => {
            vec![
                format!("{folder}/{name}.rs"),
                format!("{folder}/{name}/mod.rs"),
            ]
        }
        Module::Named(name) => {
            vec![
                format!("{folder}/{stem}/{name}.rs"),
                format!("{folder}/{stem}/{name}/mod.rs"),
            ]
        }
    }
}

/// Modules of a target's first file lie beside it; those of `foo.rs` in `foo/`.
fn owns_folder(path: &str, stem: &str) -> bool {
    is_target(path) || stem == "mod"
}

fn joined(folder: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in relative.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orphans_of(files: &[(&str, &str)]) -> Vec<String> {
        let read = |(path, text): &(&str, &str)| Source::new(path, text).unwrap();
        let found = orphans(&files.iter().map(read).collect::<Vec<_>>());
        found
            .iter()
            .map(|line| line.split(':').next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_file_is_an_orphan_unless_a_target_leads_to_it() {
        let files = [
            (
                "lb-agent/src/lib.rs",
                "mod model; #[path = \"../other/x.rs\"] mod x;",
            ),
            ("lb-agent/src/model.rs", "mod state;"),
            ("lb-agent/src/model/state.rs", ""),
            ("lb-agent/other/x.rs", ""),
            ("lb-agent/src/state.rs", ""),
            ("lb-agent/tests/it.rs", "mod common;"),
            ("lb-agent/tests/common/mod.rs", ""),
            ("lb-agent/tests/common/lost.rs", ""),
        ];
        assert_eq!(
            orphans_of(&files),
            ["lb-agent/src/state.rs", "lb-agent/tests/common/lost.rs"]
        );
    }

    #[test]
    fn files_that_name_only_each_other_are_orphans() {
        let files = [
            ("xtask/src/a/b.rs", "#[path = \"c.rs\"] mod c;"),
            ("xtask/src/a/c.rs", ""),
        ];
        assert_eq!(orphans_of(&files).len(), 2);
    }
}
