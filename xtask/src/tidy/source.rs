//! A Rust file as the rules see it. It is read as tokens rather than parsed: the rules ask for
//! names and lines, and tokens also have what stands inside of macros.

use std::{fs, path::Path};

use anyhow::{Context, Result, anyhow};
use proc_macro2::{Delimiter, Group, Ident, TokenStream, TokenTree};

/// The workspace's members.
pub(crate) const CRATES: &[&str] = &["lb-common", "lb-ebpf", "lb-agent", "tests", "xtask"];

pub(crate) struct Source {
    /// Relative to the repository, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
    /// Every `a::b::c`, outside of `#[cfg(test)]`; `use a::{b, c::d}` is `a::b` and `a::c::d`.
    pub(crate) names: Vec<Name>,
    /// What `mod x;` and `#[path = "x.rs"]` name, in tests too.
    pub(crate) modules: Vec<Module>,
    pub(crate) functions: Vec<Function>,
    pub(crate) unsafe_lines: Vec<usize>,
}

pub(crate) struct Name {
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
}

pub(crate) enum Module {
    Named(String),
    At(String),
}

pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) lines: usize,
}

/// Every Rust file of the workspace's members.
pub(crate) fn all(root: &Path) -> Result<Vec<Source>> {
    let mut sources = Vec::new();
    for member in CRATES {
        collect(root, member, &mut sources)?;
    }
    Ok(sources)
}

fn collect(root: &Path, folder: &str, into: &mut Vec<Source>) -> Result<()> {
    for entry in fs::read_dir(root.join(folder)).with_context(|| folder.to_owned())? {
        let entry = entry?;
        let path = format!("{folder}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            collect(root, &path, into)?;
        } else if path.ends_with(".rs") {
            let text = fs::read_to_string(entry.path()).with_context(|| path.clone())?;
            into.push(Source::new(&path, &text)?);
        }
    }
    Ok(())
}

impl Source {
    pub(crate) fn new(path: &str, text: &str) -> Result<Self> {
        let tokens: TokenStream = text.parse().map_err(|error| anyhow!("{path}: {error}"))?;
        let mut source = Self {
            path: path.to_owned(),
            text: text.to_owned(),
            names: Vec::new(),
            modules: Vec::new(),
            functions: Vec::new(),
            unsafe_lines: Vec::new(),
        };
        source.read_items(&tokens.clone().into_iter().collect::<Vec<_>>());
        source.read_names(outside_of_tests(tokens), &[]);
        Ok(source)
    }

    pub(crate) fn lines(&self) -> usize {
        self.text.lines().count()
    }

    /// Reads modules, functions and unsafe, on every level.
    fn read_items(&mut self, tokens: &[TokenTree]) {
        for (at, token) in tokens.iter().enumerate() {
            match token {
                TokenTree::Group(group) => {
                    self.read_items(&group.stream().into_iter().collect::<Vec<_>>());
                }
                TokenTree::Ident(word) if word == "unsafe" => {
                    self.unsafe_lines.push(word.span().start().line);
                }
                TokenTree::Ident(word) if word == "fn" => {
                    self.functions.extend(function(&tokens[at..]));
                }
                TokenTree::Ident(word) if word == "mod" => {
                    self.modules.extend(module(&tokens[..at], &tokens[at..]));
                }
                TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
    }

    /// Reads paths; those in a group behind `::` begin with what stands before it.
    fn read_names(&mut self, tokens: TokenStream, prefix: &[String]) {
        let mut name = NameInProgress::new(prefix);
        let mut tokens = tokens.into_iter();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Punct(punct) if punct.as_char() == ':' => name.colons += 1,
                TokenTree::Ident(word) if word == "as" => {
                    self.names.extend(name.end());
                    // What follows is not a name that is used.
                    tokens.next();
                }
                TokenTree::Ident(word) if word == "use" => {
                    self.names.extend(name.end());
                    name.imported = true;
                }
                TokenTree::Ident(word) => {
                    if name.colons != 2 {
                        self.names.extend(name.end());
                    }
                    name.push(&word);
                }
                TokenTree::Group(group) if name.colons == 2 => {
                    self.read_names(group.stream(), &name.segments);
                    name.reset();
                }
                TokenTree::Group(group) => {
                    self.names.extend(name.end());
                    self.read_names(outside_of_tests(group.stream()), &[]);
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => self.names.extend(name.end()),
            }
        }
        self.names.extend(name.end());
    }
}

struct NameInProgress<'a> {
    prefix: &'a [String],
    segments: Vec<String>,
    line: usize,
    colons: usize,
    imported: bool,
}

impl<'a> NameInProgress<'a> {
    fn new(prefix: &'a [String]) -> Self {
        Self {
            prefix,
            segments: prefix.to_vec(),
            line: 0,
            colons: 0,
            imported: false,
        }
    }

    fn push(&mut self, word: &Ident) {
        self.segments.push(word.to_string());
        self.line = word.span().start().line;
        self.colons = 0;
    }

    /// The name, if it is one: a word alone is a variable or a keyword, unless it is imported.
    fn end(&mut self) -> Option<Name> {
        let least = if self.imported { 1 } else { 2 };
        let is_name = self.segments.len() >= least && self.segments.len() > self.prefix.len();
        let name = is_name.then(|| Name {
            segments: self.segments.clone(),
            line: self.line,
        });
        self.reset();
        name
    }

    fn reset(&mut self) {
        self.imported &= self.segments.len() == self.prefix.len();
        self.segments.truncate(self.prefix.len());
        self.colons = 0;
    }
}

/// Drops each item that carries `#[cfg(test)]`, up to its braces or semicolon.
fn outside_of_tests(tokens: TokenStream) -> TokenStream {
    let mut skipping = false;
    let keep = |token: &TokenTree| {
        skipping |= is_cfg_test(token);
        let kept = !skipping;
        skipping &= !ends_item(token);
        kept
    };
    tokens.into_iter().filter(keep).collect()
}

fn is_cfg_test(token: &TokenTree) -> bool {
    let TokenTree::Group(group) = token else {
        return false;
    };
    group.delimiter() == Delimiter::Bracket && group.stream().to_string() == "cfg (test)"
}

fn ends_item(token: &TokenTree) -> bool {
    match token {
        TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
        TokenTree::Punct(punct) => punct.as_char() == ';',
        TokenTree::Ident(_) | TokenTree::Literal(_) => false,
    }
}

/// The function that begins with these tokens, if it has a name and a body.
fn function(tokens: &[TokenTree]) -> Option<Function> {
    let [keyword, TokenTree::Ident(name), ..] = tokens else {
        return None;
    };
    let TokenTree::Group(body) = tokens.iter().find(|token| ends_item(token))? else {
        return None;
    };
    let end = body.span_close().end().line;
    Some(Function {
        name: name.to_string(),
        lines: end - keyword.span().start().line + 1,
    })
}

/// The file that `mod name;` stands for, given what is before and from the word `mod` on.
fn module(before: &[TokenTree], tokens: &[TokenTree]) -> Option<Module> {
    let [_, TokenTree::Ident(name), TokenTree::Punct(end), ..] = tokens else {
        return None;
    };
    if end.as_char() != ';' {
        return None;
    }
    let own = before.rsplit(ends_item).next().unwrap_or_default();
    let mut attributes = own.iter().filter_map(|token| match token {
        TokenTree::Group(group) => path_attribute(group),
        TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => None,
    });
    Some(
        attributes
            .next_back()
            .map_or_else(|| Module::Named(name.to_string()), Module::At),
    )
}

/// The value of `[path = "…"]`.
fn path_attribute(attribute: &Group) -> Option<String> {
    let text = attribute.stream().to_string();
    let value = text.strip_prefix("path = \"")?;
    Some(value.trim_end_matches('"').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        let source = Source::new("a.rs", text).unwrap();
        source
            .names
            .iter()
            .map(|name| name.segments.join("::"))
            .collect()
    }

    #[test]
    fn names_are_read_from_use_from_code_and_from_macros() {
        assert_eq!(
            names("pub use kube as k; use tokio; let a: u8 = b as c;"),
            ["kube", "tokio"]
        );
        assert_eq!(
            names("use std::{fs, net::{IpAddr, UdpSocket as S}};"),
            ["std::fs", "std::net::IpAddr", "std::net::UdpSocket"]
        );
        assert_eq!(
            names("fn f() -> a::B { x!(c::d); ::e::f(g) }"),
            ["a::B", "c::d", "e::f"]
        );
        assert_eq!(names("struct S { field: Type, other: a::B }"), ["a::B"]);
    }

    #[test]
    fn what_only_tests_use_is_left_out() {
        assert_eq!(
            names("#[cfg(test)] mod tests { use a::b; } use c::d;"),
            ["c::d"]
        );
        assert_eq!(
            names("mod m { #[cfg(test)] use a::b; use c::d; }"),
            ["c::d"]
        );
    }

    #[test]
    fn functions_are_measured_with_their_signature() {
        let source = Source::new("a.rs", "trait T { fn none(); }\nfn a(\n) {\n}\n").unwrap();
        assert_eq!(source.functions.len(), 1);
        assert_eq!(source.functions[0].lines, 3);
    }

    #[test]
    fn modules_are_found_by_name_and_by_path() {
        let text =
            "mod a; #[cfg(test)] #[path = \"b/c.rs\"] mod d; mod inline {} pub(crate) mod e;";
        let source = Source::new("a.rs", text).unwrap();
        let name = |module: &Module| match module {
            Module::Named(name) | Module::At(name) => name.clone(),
        };
        let files: Vec<_> = source.modules.iter().map(name).collect();
        assert_eq!(files, ["a", "b/c.rs", "e"]);
    }
}
