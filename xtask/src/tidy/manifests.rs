//! What deploy/ promises: it names the image of this version, which is the one that these sources make.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Before a version: in a reference to the image, and in the name of its archive.
const NAMES: [&str; 2] = ["nearhop/lb-agent:", "images/lb-agent-"];

pub(crate) fn other_versions(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for path in files(&root.join("deploy"))? {
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let name = path.strip_prefix(root)?.display().to_string();
        found.extend(others_in(&name, &text));
    }
    Ok(found)
}

/// All files in a folder and below it, in order.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths = entries
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<Vec<_>>>()?;
    paths.sort();
    let mut all = Vec::new();
    for path in paths {
        match path.is_dir() {
            true => all.extend(files(&path)?),
            false => all.push(path),
        }
    }
    Ok(all)
}

fn others_in(name: &str, text: &str) -> Vec<String> {
    let numbered = text.lines().zip(1..);
    let versions =
        numbered.flat_map(|(line, number)| versions_in(line).map(move |version| (number, version)));
    let others = versions.filter(|(_, version)| *version != VERSION);
    others
        .map(|(line, version)| format!("{name}:{line}: the image of {version}; this is {VERSION}"))
        .collect()
}

fn versions_in(line: &str) -> impl Iterator<Item = &str> {
    NAMES.into_iter().flat_map(move |name| {
        line.split(name).skip(1).map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
            rest[..end.unwrap_or(rest.len())].trim_end_matches('.')
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_of_another_version_is_named_with_its_line() {
        let text = format!(
            "image: docker.io/nearhop/lb-agent:{VERSION}\n\
             image: docker.io/nearhop/lb-agent:0.0.1\n\
             load target/images/lb-agent-{VERSION}-x86_64.tar, not target/images/lb-agent-9.9.9-x86_64.tar.\n\
             image: docker.io/nearhop/lb-agent:\n"
        );
        assert_eq!(
            others_in("deploy/a.yaml", &text),
            [
                format!("deploy/a.yaml:2: the image of 0.0.1; this is {VERSION}"),
                format!("deploy/a.yaml:3: the image of 9.9.9; this is {VERSION}"),
                format!("deploy/a.yaml:4: the image of ; this is {VERSION}"),
            ]
        );
    }
}
