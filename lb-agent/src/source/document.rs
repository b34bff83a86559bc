//! The text of one file → objects: YAML or JSON, several documents, lists within them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    api::{self, Converted, Rejected},
    model::{Object, ObjectKey, object::Kind},
    source::Problem,
};

/// What one file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    pub objects: BTreeMap<ObjectKey, Object>,
    /// Objects that are in the file and could not be used.
    pub rejected: BTreeSet<ObjectKey>,
    pub problems: Vec<Problem>,
    /// How many documents were of kinds that nobody here reads.
    pub ignored: usize,
}

/// Read the text of the file `name`; a name in `.json` means JSON, any other YAML.
///
/// # Errors
///
/// The text is not well-formed. An object that is wrong in a well-formed file costs only itself.
pub fn parse(name: &str, text: &str) -> Result<Contents, Problem> {
    let documents = if has_extension(name, "json") {
        json(text)
    } else {
        yaml(text)
    };
    let documents = documents.map_err(|(line, what)| Problem {
        place: name.to_owned(),
        line,
        what: format!("{what}; the file is not used until it is well-formed"),
    })?;
    let mut reader = Reader {
        file: name,
        contents: Contents::default(),
    };
    for (line, document) in documents {
        reader.document(line, document);
    }
    Ok(reader.contents)
}

pub(super) fn has_extension(name: &str, extension: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, found)| found.eq_ignore_ascii_case(extension))
}

/// Documents, each with the line on which it begins; or the line and what is wrong there.
type Documents = Result<Vec<(Option<u64>, Value)>, (Option<u64>, String)>;

fn yaml(text: &str) -> Documents {
    // The library's limits are for input from strangers; a List of a large cluster's objects goes
    // beyond them. Depth stays limited, because the parser recurses.
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_events: usize::MAX,
            max_nodes: usize::MAX,
            max_documents: usize::MAX,
            max_total_scalar_bytes: usize::MAX,
        },
        with_snippet: false,
    };
    match serde_saphyr::from_multiple_with_options::<serde_saphyr::Spanned<Value>>(text, options) {
        Ok(documents) => Ok(documents
            .into_iter()
            .map(|document| (Some(document.referenced.line()), document.value))
            .collect()),
        Err(error) => {
            let line = error.location().map(|location| location.line());
            Err((line, error.without_snippet().to_string()))
        }
    }
}

fn json(text: &str) -> Documents {
    // The YAML parser skips a byte order mark by itself.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    stream
        .map(|document| match document {
            Ok(document) => Ok((None, document)),
            Err(error) => Err((u64::try_from(error.line()).ok(), error.to_string())),
        })
        .collect()
}

/// Sorts documents into what they are.
struct Reader<'a> {
    file: &'a str,
    contents: Contents,
}

impl Reader<'_> {
    /// One document: an object, or a list of them.
    fn document(&mut self, line: Option<u64>, mut document: Value) {
        if document.is_null() {
            return;
        }
        let Some((version, kind)) = version_and_kind(&document) else {
            let what = "a document without apiVersion and kind is no Kubernetes object; add them";
            return self.problem(line, what.to_owned());
        };
        match (
            kind.strip_suffix("List"),
            document.get_mut("items").map(Value::take),
        ) {
            (Some(of), Some(Value::Array(items))) => self.items(line, items, &version, of),
            _ => self.object(line, document, &version, &kind),
        }
    }

    /// The items of a `List`, which say what they are, or of a `ServiceList`, which need not.
    fn items(&mut self, line: Option<u64>, items: Vec<Value>, version: &str, of: &str) {
        for mut item in items {
            if let (Value::Object(fields), false) = (&mut item, of.is_empty()) {
                fields.entry("apiVersion").or_insert_with(|| version.into());
                fields.entry("kind").or_insert_with(|| of.into());
            }
            self.document(line, item);
        }
    }

    fn object(&mut self, line: Option<u64>, document: Value, version: &str, kind: &str) {
        match (version, kind) {
            ("v1", "Service") => self.typed(line, document, Kind::Service, api::service::convert),
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                self.typed(
                    line,
                    document,
                    Kind::EndpointSlice,
                    api::endpoint_slice::convert,
                );
            }
            ("v1", "Node") => self.typed(line, document, Kind::Node, api::node::convert),
            ("networking.k8s.io/v1", "ServiceCIDR") => {
                self.typed(
                    line,
                    document,
                    Kind::ServiceCidr,
                    api::service_cidr::convert,
                );
            }
            _ => match current_version(version, kind) {
                Some(current) => self.problem(
                    line,
                    format!("{kind} of {version} is not read; write it as {current}"),
                ),
                None => self.contents.ignored += 1,
            },
        }
    }

    fn typed<T: DeserializeOwned>(
        &mut self,
        line: Option<u64>,
        document: Value,
        kind: Kind,
        convert: impl Fn(&T) -> Result<Converted, Rejected>,
    ) {
        let key = api::key_of(kind, &metadata(&document));
        let read = serde_path_to_error::deserialize(document).map_err(|error| Rejected {
            object: key.clone(),
            why: error.to_string(),
        });
        match read.and_then(|object| convert(&object)) {
            Ok(converted) => self.converted(line, key, converted),
            Err(rejected) => {
                self.problem(line, rejected.unused());
                self.contents.rejected.insert(key);
            }
        }
    }

    fn converted(&mut self, line: Option<u64>, key: ObjectKey, converted: Converted) {
        for dropped in converted.dropped {
            self.problem(line, dropped.to_string());
        }
        let before = match converted.object {
            Some(object) => self.contents.objects.insert(key.clone(), object),
            None => self.contents.objects.remove(&key),
        };
        if before.is_some() {
            self.problem(
                line,
                format!("{key} is given twice in this file; the later one counts"),
            );
        }
    }

    fn problem(&mut self, line: Option<u64>, what: String) {
        self.contents.problems.push(Problem {
            place: self.file.to_owned(),
            line,
            what,
        });
    }
}

fn version_and_kind(document: &Value) -> Option<(String, String)> {
    let field = |name| document.get(name)?.as_str().map(str::to_owned);
    Some((field("apiVersion")?, field("kind")?))
}

/// The version to use for a kind of ours that is given in another one.
fn current_version(version: &str, kind: &str) -> Option<&'static str> {
    let group = version.split_once('/').map_or("", |(group, _)| group);
    match (group, kind) {
        ("", "Service" | "Node") => Some("v1"),
        ("discovery.k8s.io", "EndpointSlice") => Some("discovery.k8s.io/v1"),
        ("networking.k8s.io", "ServiceCIDR") => Some("networking.k8s.io/v1"),
        _ => None,
    }
}

/// Name and namespace of an object that may otherwise be wrong.
fn metadata(document: &Value) -> ObjectMeta {
    let field = |name| {
        document
            .get("metadata")?
            .get(name)?
            .as_str()
            .map(str::to_owned)
    };
    ObjectMeta {
        name: field("name"),
        namespace: field("namespace"),
        ..ObjectMeta::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = "{apiVersion: v1, kind: Node, metadata: {name: a}}";

    fn keys(name: &str, text: &str) -> Vec<String> {
        let contents = parse(name, text).unwrap();
        assert_eq!(contents.problems, [], "{text}");
        contents.objects.keys().map(ToString::to_string).collect()
    }

    fn problems(name: &str, text: &str) -> Vec<String> {
        match parse(name, text) {
            Ok(contents) => contents.problems.iter().map(ToString::to_string).collect(),
            Err(problem) => vec![problem.to_string()],
        }
    }

    #[test]
    fn a_file_may_hold_documents_and_lists_of_every_form() {
        let json = r#"{"apiVersion": "v1", "kind": "Node", "metadata": {"name": "a"}}"#;
        for (name, text) in [
            ("one.yaml", NODE.to_owned()),
            ("one.json", json.to_owned()),
            ("ONE.JSON", json.to_owned()),
            ("mark.json", format!("\u{feff}{json}")),
            ("mark.yaml", format!("\u{feff}{NODE}")),
            ("tabs.json", "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Node\",\n\t\"metadata\": {\"name\": \"a\"}}".to_owned()),
            ("json.yml", json.to_owned()),
            ("documents.yaml", format!("---\n# nothing\n---\n{NODE}\n---\n")),
            ("list.yaml", format!("{{apiVersion: v1, kind: List, items: [{NODE}]}}")),
            ("typed.yaml", "{apiVersion: v1, kind: NodeList, items: [{metadata: {name: a}}]}".to_owned()),
        ] {
            assert_eq!(keys(name, &text), ["Node a"], "{name}");
        }
        assert_eq!(
            keys(
                "two.json",
                &format!("{json}\n{json}").replacen("\"a\"", "\"b\"", 1)
            ),
            ["Node a", "Node b"]
        );
        assert_eq!(keys("empty.yaml", ""), [""; 0]);
        assert_eq!(keys("empty.json", " \n"), [""; 0]);
    }

    #[test]
    fn a_namespace_that_is_not_given_is_default() {
        let service =
            "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.0.0.1}}";

        assert_eq!(keys("a.yaml", service), ["Service default/web"]);
        assert_eq!(
            keys(
                "a.yaml",
                &service.replace("name:", "namespace: shop, name:")
            ),
            ["Service shop/web"]
        );
    }

    #[test]
    fn other_kinds_are_counted_and_not_mentioned() {
        let text = "{apiVersion: apps/v1, kind: Deployment}\n---\n\
                    {apiVersion: serving.knative.dev/v1, kind: Service, metadata: {name: web}}\n---\n\
                    {apiVersion: v1, kind: PodList, items: [{}, {}]}";

        let contents = parse("a.yaml", text).unwrap();

        assert_eq!(contents.objects.len(), 0);
        assert_eq!(contents.problems, []);
        assert_eq!(contents.ignored, 4);
    }

    #[test]
    fn a_large_list_is_read_whole() {
        let items: Vec<_> = (0..40_000)
            .map(|i| format!("- {{metadata: {{name: n{i}, labels: {{a: b, c: d}}}}}}\n"))
            .collect();
        let list = format!("apiVersion: v1\nkind: NodeList\nitems:\n{}", items.concat());

        assert_eq!(parse("nodes.yaml", &list).unwrap().objects.len(), 40_000);
    }

    #[test]
    fn what_is_wrong_is_told_with_its_file_and_line() {
        for (name, text, expected) in [
            ("a.yaml", "a: [\n", "a.yaml:1: unclosed bracket"),
            ("a.yaml", "a: 1\na: 2\n", "a.yaml:2: "),
            ("a.json", "{\n\"a\": }", "a.json:2: expected value"),
            ("a.json", "{", "a.json:1: EOF while parsing"),
            (
                "a.yaml",
                "just text",
                "a.yaml:1: a document without apiVersion and kind",
            ),
            (
                "a.yaml",
                "---\n{kind: Node}",
                "a.yaml:2: a document without apiVersion and kind",
            ),
            (
                "a.yaml",
                "{apiVersion: discovery.k8s.io/v1beta1, kind: EndpointSlice}",
                "a.yaml:1: EndpointSlice of discovery.k8s.io/v1beta1 is not read; write it as discovery.k8s.io/v1",
            ),
            (
                "a.yaml",
                "---\n---\n{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: [{port: http}]}}",
                "a.yaml:3: Service default/web: spec.ports[0].port: invalid type: string \"http\"",
            ),
            (
                "a.yaml",
                "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {ports: []}}",
                "a.yaml:1: Service default/web: it has no spec.clusterIP, so nothing can reach it; give it one",
            ),
            (
                "a.yaml",
                "{apiVersion: v1, kind: Node, metadata: {name: a}}\n---\n{apiVersion: v1, kind: Node, metadata: {name: a}}",
                "a.yaml:3: Node a is given twice in this file; the later one counts",
            ),
        ] {
            let problems = problems(name, text);

            assert_eq!(problems.len(), 1, "{problems:?}");
            assert!(problems[0].starts_with(expected), "{problems:?}");
        }
    }

    #[test]
    fn a_later_object_counts_also_where_it_is_none_of_ours() {
        let service = |ip: &str| {
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: {ip}}}}}"
            )
        };
        let text = format!("{}\n---\n{}", service("10.0.0.1"), service("None"));

        assert_eq!(parse("a.yaml", &text).unwrap().objects.len(), 0);
        assert_eq!(
            problems("a.yaml", &text),
            ["a.yaml:3: Service default/web is given twice in this file; the later one counts"]
        );
    }

    #[test]
    fn a_bad_object_costs_only_itself() {
        let text = format!("{{apiVersion: v1, kind: Node, metadata: {{name: [b]}}}}\n---\n{NODE}");

        let contents = parse("a.yaml", &text).unwrap();

        assert_eq!(contents.objects.len(), 1);
        assert_eq!(contents.rejected.len(), 1);
    }
}
