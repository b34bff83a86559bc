//! A scenario as text: a comment that says what the feature is, commands, and sections.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// One scenario file.
#[derive(Clone, Debug)]
pub(crate) struct Script {
    pub(crate) name: String,
    /// Everything before the first section, as it was written.
    head: String,
    pub(crate) lines: Vec<Line>,
    sections: Vec<Section>,
    read: BTreeSet<String>,
    /// Golden sections are rewritten, not compared.
    pub(crate) update: bool,
}

/// One command.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) number: usize,
    pub(crate) command: String,
}

#[derive(Clone, Debug)]
struct Section {
    name: String,
    number: usize,
    text: String,
}

impl Script {
    pub(crate) fn parse(name: &str, text: &str) -> Result<Self, String> {
        if !text.starts_with("# ") {
            return Err(format!("{name}:1: say in a comment what the feature is"));
        }
        let mut script = Self {
            name: name.to_owned(),
            head: String::new(),
            lines: Vec::new(),
            sections: Vec::new(),
            read: BTreeSet::new(),
            update: false,
        };
        for (number, line) in (1..).zip(text.lines()) {
            if let Some(section) = section_name(line) {
                script.sections.push(Section {
                    name: section.to_owned(),
                    number,
                    text: String::new(),
                });
            } else if let Some(section) = script.sections.last_mut() {
                section.text += &format!("{line}\n");
            } else {
                script.head += &format!("{line}\n");
                script.lines.extend(command(number, line));
            }
        }
        for section in &mut script.sections {
            section.text = format!("{}\n", section.text.trim_end());
        }
        Ok(script)
    }

    /// The text of a section.
    pub(crate) fn section(&mut self, name: &str) -> Result<&str, String> {
        self.read.insert(name.to_owned());
        let section = self.sections.iter().find(|section| section.name == name);
        section
            .map(|section| section.text.as_str())
            .ok_or_else(|| format!("there is no section `{name}`"))
    }

    /// Compares a golden section with what came out, or makes it that.
    pub(crate) fn expect(&mut self, name: &str, actual: &str) -> Result<(), String> {
        let actual = format!("{}\n", actual.trim_end());
        let expected = self.section(name).unwrap_or_default().to_owned();
        if expected != actual && !self.update {
            return Err(format!(
                "`{name}` is now\n{actual}and was\n{expected}If that is right: UPDATE=1 cargo test"
            ));
        }
        self.write(name, actual);
        Ok(())
    }

    fn write(&mut self, name: &str, text: String) {
        match self
            .sections
            .iter_mut()
            .find(|section| section.name == name)
        {
            Some(section) => section.text = text,
            None => self.sections.push(Section {
                name: name.to_owned(),
                number: 0,
                text,
            }),
        }
    }

    /// A section that nobody reads tests nothing.
    pub(crate) fn all_is_read(&self) -> Result<(), String> {
        let unread = self
            .sections
            .iter()
            .find(|section| !self.read.contains(&section.name));
        unread.map_or(Ok(()), |Section { name, number, .. }| {
            Err(format!(
                "{}:{number}: nobody reads section `{name}`",
                self.name
            ))
        })
    }
}

fn section_name(line: &str) -> Option<&str> {
    line.strip_prefix("-- ")?.strip_suffix(" --")
}

fn command(number: usize, line: &str) -> Option<Line> {
    let command = line.trim();
    let is_command = !command.is_empty() && !command.starts_with('#');
    is_command.then(|| Line {
        number,
        command: command.to_owned(),
    })
}

impl fmt::Display for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.head.trim_end())?;
        for Section { name, text, .. } in &self.sections {
            write!(f, "\n\n-- {name} --\n{}", text.trim_end())?;
        }
        writeln!(f)
    }
}

/// The files of a scenario's node, as they are after edits.
pub(crate) type Files = BTreeMap<String, String>;

/// Replaces text that must be there exactly once; with `@WORD`, once in the only line with that word.
pub(crate) fn edit(text: &str, how: &str) -> Result<String, String> {
    let (place, change) = match how.strip_prefix('@').and_then(|how| how.split_once(' ')) {
        Some((word, change)) => (line_with(text, word)?, change.trim_start()),
        None => (text, how),
    };
    let (old, new) = change
        .split_once(" =>")
        .ok_or("an edit is `FILE [@WORD] OLD => NEW`")?;
    if place.matches(old).count() != 1 {
        return Err(format!("`{old}` is not exactly once in\n{place}"));
    }
    let edited = place.replacen(old, new.trim_start(), 1);
    Ok(text.replacen(place, &edited, 1))
}

fn line_with<'a>(text: &'a str, word: &str) -> Result<&'a str, String> {
    let is_there = |line: &&str| {
        let mut words = line.split(|c: char| !c.is_ascii_alphanumeric() && !".:-_/".contains(c));
        words.any(|found| found.trim_end_matches(':') == word)
    };
    let lines: Vec<_> = text.lines().filter(is_there).collect();
    match lines.as_slice() {
        [line] => Ok(line),
        _ => Err(format!("{} lines have the word `{word}`", lines.len())),
    }
}
