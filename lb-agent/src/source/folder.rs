//! What a folder's files say when taken together, and what changed in that: the fold behind `dir`,
//! without any file system.

use std::{
    collections::{BTreeMap, BTreeSet},
    mem,
};

use crate::{
    model::{Object, ObjectKey},
    source::{Problem, document::Contents},
};

/// The last good contents of each file, by file name.
#[derive(Debug, Default)]
pub struct Folder {
    files: BTreeMap<String, File>,
    /// Every object with the files that define it. The last file by name wins.
    objects: BTreeMap<(ObjectKey, String), Object>,
    /// What each object was before the changes that nobody has taken yet. An object that moves from
    /// one file to another is here once and, being equal afterwards, is no change.
    before: BTreeMap<ObjectKey, Option<Object>>,
    /// Objects that more than one file defines.
    doubled: BTreeSet<ObjectKey>,
}

#[derive(Debug, Default)]
struct File {
    keys: BTreeSet<ObjectKey>,
    /// What is wrong inside it.
    problems: Vec<Problem>,
    /// What is wrong with it as a whole: its last good objects stay.
    broken: Option<Problem>,
    /// Whether it and every object in it could be used once.
    was_good: bool,
    ignored: usize,
}

impl Folder {
    /// The file was read, or could not be.
    pub fn put(&mut self, name: &str, read: Result<Contents, Problem>) {
        match read {
            Ok(contents) => self.replace(name, contents),
            Err(problem) => {
                self.files.entry(name.to_owned()).or_default().broken = Some(problem);
            }
        }
    }

    /// The file is gone.
    pub fn remove(&mut self, name: &str) {
        let file = self.files.remove(name).unwrap_or_default();
        for key in file.keys {
            self.set(name, key, None);
        }
    }

    fn replace(&mut self, name: &str, contents: Contents) {
        let old = self.files.remove(name).unwrap_or_default();
        // An object that became unusable stays as it was last good.
        let kept = old.keys.intersection(&contents.rejected).cloned();
        let keys: BTreeSet<_> = contents.objects.keys().cloned().chain(kept).collect();
        // An agent that starts does not know how an unusable object was last good; its pins may.
        let is_good = contents.rejected.is_subset(&keys);
        for key in old.keys.difference(&keys) {
            self.set(name, key.clone(), None);
        }
        for (key, object) in contents.objects {
            self.set(name, key, Some(object));
        }
        let file = File {
            keys,
            problems: contents.problems,
            broken: None,
            was_good: old.was_good || is_good,
            ignored: contents.ignored,
        };
        self.files.insert(name.to_owned(), file);
    }

    fn set(&mut self, name: &str, key: ObjectKey, object: Option<Object>) {
        let winner = self.winner(&key).cloned();
        self.before.entry(key.clone()).or_insert(winner);
        let definition = (key.clone(), name.to_owned());
        match object {
            Some(object) => self.objects.insert(definition, object),
            None => self.objects.remove(&definition),
        };
        if self.definitions(&key).nth(1).is_some() {
            self.doubled.insert(key);
        } else {
            self.doubled.remove(&key);
        }
    }

    /// The files that define an object, in order, with what each says.
    fn definitions(&self, key: &ObjectKey) -> impl Iterator<Item = (&String, &Object)> {
        let first = (key.clone(), String::new());
        self.objects
            .range(first..)
            .take_while(move |((defined, _), _)| defined == key)
            .map(|((_, file), object)| (file, object))
    }

    /// The object as its last file says.
    fn winner(&self, key: &ObjectKey) -> Option<&Object> {
        self.definitions(key).last().map(|(_, object)| object)
    }

    /// What changed since this was called last.
    pub fn take_changes(&mut self) -> (Vec<Object>, Vec<ObjectKey>) {
        let (mut apply, mut delete) = (Vec::new(), Vec::new());
        for (key, before) in mem::take(&mut self.before) {
            match self.winner(&key) {
                Some(object) if before.as_ref() != Some(object) => apply.push(object.clone()),
                None if before.is_some() => delete.push(key),
                Some(_) | None => {}
            }
        }
        (apply, delete)
    }

    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.files.keys()
    }

    /// Whether each file was good at least once.
    pub fn is_complete(&self) -> bool {
        self.files.values().all(|file| file.was_good)
    }

    pub fn ignored(&self) -> usize {
        self.files.values().map(|file| file.ignored).sum()
    }

    pub fn problems(&self) -> Vec<Problem> {
        let files = self.files.values();
        let of_files = files.flat_map(|file| match &file.broken {
            Some(broken) => std::slice::from_ref(broken),
            None => &file.problems,
        });
        let doubled = self
            .doubled
            .iter()
            .filter_map(|key| self.doubled_problem(key));
        of_files.cloned().chain(doubled).collect()
    }

    fn doubled_problem(&self, key: &ObjectKey) -> Option<Problem> {
        let mut files: Vec<_> = self
            .definitions(key)
            .map(|(file, _)| file.as_str())
            .collect();
        let winner = files.pop()?;
        files.reverse();
        Some(Problem {
            place: winner.to_owned(),
            line: None,
            what: format!(
                "{key} is also in {}; the last file by name counts, remove the others",
                files.join(", ")
            ),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::document;

    /// A file of Nodes, each `name=zone`; `!` makes it a broken one.
    fn put(folder: &mut Folder, file: &str, nodes: &str) {
        let documents: Vec<_> = nodes.split_whitespace().map(document).collect();
        folder.put(file, document::parse(file, &documents.join("\n---\n")));
    }

    fn document(node: &str) -> String {
        let Some((name, zone)) = node.split_once('=') else {
            return node.replace('!', "[");
        };
        format!(
            "{{apiVersion: v1, kind: Node, metadata: {{name: {name}, \
             labels: {{topology.kubernetes.io/zone: {zone}}}}}}}"
        )
    }

    /// The changes as `name=zone` and `-name`.
    fn changes(folder: &mut Folder) -> Vec<String> {
        let (apply, delete) = folder.take_changes();
        let applied = apply.into_iter().map(|object| match object {
            Object::Node(node) => format!("{}={}", node.name, node.zone.unwrap_or_default()),
            other @ (Object::Service(_) | Object::Slice(_) | Object::ServiceCidr(_)) => {
                panic!("{other:?} is no Node")
            }
        });
        applied
            .chain(delete.into_iter().map(|key| format!("-{}", key.name)))
            .collect()
    }

    #[test]
    fn changes_are_the_difference_to_what_was_taken_before() {
        let mut folder = Folder::default();
        put(&mut folder, "a.yaml", "n1=a n2=a");
        assert_eq!(changes(&mut folder), ["n1=a", "n2=a"]);
        put(&mut folder, "a.yaml", "n1=a n2=b n3=a");
        assert_eq!(changes(&mut folder), ["n2=b", "n3=a"]);
        put(&mut folder, "a.yaml", "n3=a");
        assert_eq!(changes(&mut folder), ["-n1", "-n2"]);
        folder.remove("a.yaml");
        assert_eq!(changes(&mut folder), ["-n3"]);
        folder.remove("a.yaml");
        assert_eq!(changes(&mut folder), [""; 0]);
    }

    #[test]
    fn an_object_that_moves_between_files_is_no_change() {
        let mut folder = Folder::default();
        put(&mut folder, "a.yaml", "n1=a n2=a");
        assert_eq!(changes(&mut folder).len(), 2);

        put(&mut folder, "a.yaml", "n2=a");
        put(&mut folder, "b.yaml", "n1=a");

        assert_eq!(changes(&mut folder), [""; 0]);
        assert_eq!(folder.problems(), []);
    }

    #[test]
    fn a_broken_file_keeps_its_last_good_objects() {
        let mut folder = Folder::default();
        put(&mut folder, "a.yaml", "n1=a");
        assert_eq!(changes(&mut folder).len(), 1);

        put(&mut folder, "a.yaml", "n1=b !");
        assert_eq!(changes(&mut folder), [""; 0]);
        assert_eq!(folder.problems().len(), 1);
        assert!(folder.is_complete());

        put(&mut folder, "a.yaml", "n1=b");
        assert_eq!(changes(&mut folder), ["n1=b"]);
        assert_eq!(folder.problems(), []);
    }

    #[test]
    fn a_rejected_object_stays_as_it_was_last_good() {
        let mut folder = Folder::default();
        let service = |ip: &str| {
            format!(
                "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{clusterIP: {ip}}}}}"
            )
        };
        folder.put("a.yaml", document::parse("a.yaml", &service("10.0.0.1")));
        assert_eq!(folder.take_changes().0.len(), 1);

        folder.put("a.yaml", document::parse("a.yaml", &service("[]")));
        assert_eq!(folder.take_changes(), (vec![], vec![]));
        assert_eq!(folder.problems().len(), 1);

        folder.put("a.yaml", document::parse("a.yaml", ""));
        assert_eq!(folder.take_changes().1.len(), 1);
    }

    #[test]
    fn a_file_that_was_never_good_makes_the_folder_incomplete() {
        let mut folder = Folder::default();
        put(&mut folder, "a.yaml", "!");
        assert!(!folder.is_complete());
        folder.remove("a.yaml");
        assert!(folder.is_complete());
    }

    #[test]
    fn so_does_an_object_that_was_never_usable() {
        let good = "{apiVersion: v1, kind: Node, metadata: {name: n1}}";
        let bad = "{apiVersion: v1, kind: Node, metadata: {name: [n2]}}";
        let both = format!("{good}\n---\n{bad}");
        let mut folder = Folder::default();

        folder.put("a.yaml", document::parse("a.yaml", &both));
        assert_eq!(changes(&mut folder), ["n1="]);
        assert!(!folder.is_complete());

        folder.put("a.yaml", document::parse("a.yaml", good));
        assert!(folder.is_complete());
        folder.put("a.yaml", document::parse("a.yaml", &both));
        assert!(folder.is_complete());
    }

    #[test]
    fn of_two_files_the_last_by_name_counts_and_the_other_is_told() {
        let mut folder = Folder::default();
        put(&mut folder, "b.yaml", "n1=b");
        put(&mut folder, "a.yaml", "n1=a");
        assert_eq!(changes(&mut folder), ["n1=b"]);
        assert_eq!(
            folder.problems()[0].to_string(),
            "b.yaml: Node n1 is also in a.yaml; the last file by name counts, remove the others"
        );

        folder.remove("b.yaml");
        assert_eq!(changes(&mut folder), ["n1=a"]);
        assert_eq!(folder.problems(), []);
    }
}
