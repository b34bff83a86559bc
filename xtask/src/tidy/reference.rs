//! What the reference pages promise about the contract: `docs/maps.md` names every map and every field
//! of every cell, in the order in which they lie, and `docs/operations.md` every reason and metric.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use anyhow::{Context, Result, anyhow, ensure};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

const MAPS: &str = "docs/maps.md";
const OPERATIONS: &str = "docs/operations.md";

pub(crate) fn gaps(root: &Path) -> Result<Vec<String>> {
    let read = |path: &str| fs::read_to_string(root.join(path)).with_context(|| path.to_owned());
    let (maps, operations) = (read(MAPS)?, read(OPERATIONS)?);
    let tables = tokens(&read("lb-common/src/tables.rs")?)?;
    let reasons = tokens(&read("lb-common/src/reason.rs")?)?;
    let metrics = tokens(&read("lb-agent/src/vitals/metrics.rs")?)?;

    let mut gaps = cell_gaps(&cells(tables.clone()), &documented(&maps));
    gaps.extend(row_gaps(MAPS, &maps, &strings_in(tables, "names")?));
    gaps.extend(row_gaps(
        OPERATIONS,
        &operations,
        &strings_in(reasons, "name")?,
    ));
    gaps.extend(row_gaps(
        OPERATIONS,
        &operations,
        &strings_in(metrics, "names")?,
    ));
    Ok(gaps)
}

fn tokens(text: &str) -> Result<TokenStream> {
    text.parse().map_err(|error| anyhow!("{error}"))
}

/// Every `struct` with named fields.
fn cells(tokens: TokenStream) -> BTreeMap<String, Vec<String>> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let cells = tokens.windows(3).filter_map(|window| match window {
        [
            TokenTree::Ident(word),
            TokenTree::Ident(name),
            TokenTree::Group(body),
        ] if word == "struct" && body.delimiter() == Delimiter::Brace => {
            Some((name.to_string(), fields(body.stream())))
        }
        _ => None,
    });
    cells.collect()
}

fn fields(body: TokenStream) -> Vec<String> {
    let tokens: Vec<TokenTree> = body.into_iter().collect();
    let fields = tokens.windows(3).filter_map(|window| match window {
        [
            TokenTree::Ident(word),
            TokenTree::Ident(name),
            TokenTree::Punct(colon),
        ] if word == "pub" && colon.as_char() == ':' => Some(name.to_string()),
        _ => None,
    });
    fields.collect()
}

/// The strings in the braces of the first item of this name. None would be a rule that cannot fail.
fn strings_in(tokens: TokenStream, item: &str) -> Result<BTreeSet<String>> {
    let body = body_of(tokens, item).with_context(|| format!("no item `{item}` with a body"))?;
    let strings: BTreeSet<String> = literals(body).iter().filter_map(|l| unquoted(l)).collect();
    ensure!(!strings.is_empty(), "no string in the item `{item}`");
    Ok(strings)
}

fn body_of(tokens: TokenStream, item: &str) -> Option<TokenStream> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    let is_item = |pair: &[TokenTree]| {
        let [TokenTree::Ident(keyword), TokenTree::Ident(name)] = pair else {
            return false;
        };
        (keyword == "fn" || keyword == "mod") && name == item
    };
    if let Some(at) = tokens.windows(2).position(is_item) {
        return tokens[at..].iter().find_map(braces);
    }
    let inside = |token: &TokenTree| body_of(braces(token)?, item);
    tokens.iter().find_map(inside)
}

fn braces(token: &TokenTree) -> Option<TokenStream> {
    match token {
        TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => Some(group.stream()),
        TokenTree::Group(_) | TokenTree::Ident(_) | TokenTree::Punct(_) | TokenTree::Literal(_) => {
            None
        }
    }
}

/// Leaves out what is in brackets: attributes, which doc comments are too.
fn literals(tokens: TokenStream) -> Vec<String> {
    let literals = tokens.into_iter().flat_map(|token| match token {
        TokenTree::Literal(literal) => vec![literal.to_string()],
        TokenTree::Group(group) if group.delimiter() != Delimiter::Bracket => {
            literals(group.stream())
        }
        TokenTree::Group(_) | TokenTree::Ident(_) | TokenTree::Punct(_) => Vec::new(),
    });
    literals.collect()
}

fn unquoted(literal: &str) -> Option<String> {
    let text = literal.strip_prefix('"')?.strip_suffix('"')?;
    Some(text.to_owned())
}

/// The tables of a page, by the first word in backticks of the line that leads to each: the first
/// column of their rows.
fn documented(page: &str) -> BTreeMap<String, Vec<String>> {
    let mut tables: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut about = None;
    for line in page.lines().filter(|line| !line.is_empty()) {
        match (line.starts_with('|'), &about) {
            (false, _) => about = quoted(line),
            (true, Some(name)) => tables.entry(name.clone()).or_default().extend(row(line)),
            (true, None) => {}
        }
    }
    tables
}

fn quoted(line: &str) -> Option<String> {
    line.split('`').nth(1).map(str::to_owned)
}

/// What a row is about; none for the head of a table.
fn row(line: &str) -> Option<String> {
    let name = line.strip_prefix("| `")?;
    name.split_once('`').map(|(name, _)| name.to_owned())
}

fn cell_gaps(
    cells: &BTreeMap<String, Vec<String>>,
    documented: &BTreeMap<String, Vec<String>>,
) -> Vec<String> {
    let differs = |(cell, fields): &(&String, &Vec<String>)| documented.get(*cell) != Some(fields);
    let gaps = cells.iter().filter(differs).map(|(cell, fields)| {
        let fields = fields.join(", ");
        format!("{MAPS}: below a line that names `{cell}`, a table with the rows {fields}")
    });
    gaps.collect()
}

fn row_gaps(path: &str, page: &str, names: &BTreeSet<String>) -> Vec<String> {
    let rows: BTreeSet<String> = page.lines().filter_map(row).collect();
    let gaps = names.difference(&rows);
    gaps.map(|name| format!("{path}: a row that begins with `{name}`"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODE: &str = "
        pub mod names { /// About it.
        pub const A: &str = \"A_MAP\"; }
        pub struct Index(pub u32);
        #[repr(C)]
        pub struct Cell { pub addr: Addr, pub pad: [u8; 3] }
        impl Reason { fn other() -> u8 { 1 } fn name(self) -> &str { match self { A => \"a-reason\" } } }
    ";

    #[test]
    fn cells_and_their_fields_are_read() {
        let fields = ["addr", "pad"].map(str::to_owned).to_vec();
        let expected = BTreeMap::from([("Cell".to_owned(), fields)]);
        assert_eq!(cells(tokens(CODE).unwrap()), expected);
    }

    #[test]
    fn names_are_read_from_the_item_that_holds_them() {
        let strings = |item| strings_in(tokens(CODE).unwrap(), item);
        assert_eq!(strings("names").unwrap(), ["A_MAP".to_owned()].into());
        assert_eq!(strings("name").unwrap(), ["a-reason".to_owned()].into());
        assert!(strings("other").is_err() && strings("nothing").is_err());
    }

    #[test]
    fn a_cell_is_documented_by_the_table_below_its_name() {
        let cells = cells(tokens(CODE).unwrap());
        let gaps = |page: &str| cell_gaps(&cells, &documented(page)).len();
        let whole =
            "Value, `Cell`, of `X`:\n\n| field | |\n| --- | --- |\n| `addr` | |\n| `pad` | |\n";
        assert_eq!(gaps(whole), 0);
        assert_eq!(gaps(&whole.replace("| `pad` | |\n", "")), 1);
        assert_eq!(gaps(&whole.replace("`pad`", "`port`")), 1);
        assert_eq!(gaps(&whole.replace("`Cell`", "`Other`")), 1);
    }

    #[test]
    fn a_reason_without_a_row_is_named() {
        let reasons = BTreeSet::from(["a-reason".to_owned()]);
        assert!(row_gaps("a.md", "| `a-reason` | x |\n", &reasons).is_empty());
        assert_eq!(row_gaps("a.md", "about `a-reason`\n", &reasons).len(), 1);
    }
}
