//! The folder source with real files and real inotify.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs::{self, File},
    io::Write,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

use lb_agent::{
    model::Object,
    source::{
        Batch,
        dir::{Watcher, follow, read_dir_once},
    },
};
use tempfile::TempDir;
use tokio::{sync::mpsc::Receiver, time::timeout};

/// Longer than any burst that the source waits for.
const SOON: Duration = Duration::from_secs(10);
/// Long enough that a change which was read wrongly would have come.
const NOTHING: Duration = Duration::from_millis(400);

/// A folder of Nodes that is followed.
struct Lab {
    dir: TempDir,
    batches: Receiver<Batch>,
}

impl Lab {
    /// A folder with these files; returns also the first batch.
    async fn new(files: &[(&str, &str)]) -> (Self, Batch) {
        let dir = tempfile::tempdir().unwrap();
        for (name, nodes) in files {
            fs::write(dir.path().join(name), yaml(nodes)).unwrap();
        }
        let batches = follow(dir.path()).unwrap();
        let mut lab = Self { dir, batches };
        let first = lab.next().await;
        (lab, first)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, nodes: &str) {
        fs::write(self.path(name), yaml(nodes)).unwrap();
    }

    fn rename(&self, from: &str, to: &str) {
        fs::rename(self.path(from), self.path(to)).unwrap();
    }

    async fn next(&mut self) -> Batch {
        timeout(SOON, self.batches.recv()).await.unwrap().unwrap()
    }

    async fn expect(&mut self, expected: &[&str]) {
        assert_eq!(changes(&self.next().await), expected);
    }

    async fn expect_nothing(&mut self) {
        let batch = timeout(NOTHING, self.batches.recv()).await;
        assert!(
            batch.is_err(),
            "nothing was to come, and this came: {batch:?}"
        );
    }
}

/// Nodes, each `name=zone`.
fn yaml(nodes: &str) -> String {
    nodes.split_whitespace().map(document).collect()
}

fn document(node: &str) -> String {
    let (name, zone) = node.split_once('=').unwrap();
    format!(
        "---\napiVersion: v1\nkind: Node\nmetadata:\n  name: {name}\n  labels:\n    \
         topology.kubernetes.io/zone: {zone}\n"
    )
}

/// A batch as `name=zone` and `-name`, then `!file` for each problem.
fn changes(batch: &Batch) -> Vec<String> {
    let applied = batch.apply.iter().map(|object| match object {
        Object::Node(node) => format!("{}={}", node.name, node.zone.as_deref().unwrap_or("")),
        other @ (Object::Service(_) | Object::Slice(_) | Object::ServiceCidr(_)) => {
            panic!("{other:?} is no Node")
        }
    });
    let deleted = batch.delete.iter().map(|key| format!("-{}", key.name));
    let problems = batch
        .problems
        .iter()
        .map(|problem| format!("!{}", problem.place));
    applied.chain(deleted).chain(problems).collect()
}

#[tokio::test]
async fn the_first_batch_is_the_folder() {
    let (_lab, first) = Lab::new(&[
        ("a.yaml", "n1=a"),
        ("b.yml", "n2=a"),
        ("c.json", ""),
        ("README.md", "n3=a"),
        (".hidden.yaml", "n4=a"),
    ])
    .await;

    assert_eq!(changes(&first), ["n1=a", "n2=a"]);
    assert!(first.complete);
}

#[tokio::test]
async fn what_could_not_be_read_yet_makes_the_first_batch_incomplete() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), yaml("n1=a")).unwrap();
    fs::write(dir.path().join("b.yaml"), "a: [").unwrap();
    let batches = follow(dir.path()).unwrap();
    let mut lab = Lab { dir, batches };

    let first = lab.next().await;
    assert_eq!(changes(&first), ["n1=a", "!b.yaml"]);
    assert!(!first.complete);

    lab.write("b.yaml", "n2=a");
    let second = lab.next().await;
    assert_eq!(changes(&second), ["n2=a"]);
    assert!(second.complete);
}

#[tokio::test]
async fn files_come_change_and_go() {
    let (mut lab, _) = Lab::new(&[]).await;

    lab.write("a.yaml", "n1=a n2=a");
    lab.expect(&["n1=a", "n2=a"]).await;
    lab.write("a.yaml", "n1=a n2=b");
    lab.expect(&["n2=b"]).await;
    fs::remove_file(lab.path("a.yaml")).unwrap();
    lab.expect(&["-n1", "-n2"]).await;
}

#[tokio::test]
async fn a_half_written_file_is_not_read() {
    let (mut lab, _) = Lab::new(&[("a.yaml", "n1=a n2=a")]).await;

    let mut file = File::create(lab.path("a.yaml")).unwrap();
    lab.expect_nothing().await;
    file.write_all(yaml("n1=b").as_bytes()).unwrap();
    // Another file's change must not make it be read either.
    lab.write("b.yaml", "n3=a");
    lab.expect(&["n3=a"]).await;
    file.write_all(yaml("n2=b").as_bytes()).unwrap();
    lab.expect_nothing().await;
    drop(file);

    lab.expect(&["n1=b", "n2=b"]).await;
}

#[tokio::test]
async fn a_file_that_is_written_again_at_once_is_not_read_between() {
    let (mut lab, _) = Lab::new(&[("a.yaml", "n1=a n2=a")]).await;

    lab.write("a.yaml", "n1=b n2=b");
    let mut file = File::create(lab.path("a.yaml")).unwrap();
    file.write_all(yaml("n1=c").as_bytes()).unwrap();
    lab.expect_nothing().await;
    file.write_all(yaml("n2=c").as_bytes()).unwrap();
    drop(file);

    lab.expect(&["n1=c", "n2=c"]).await;
}

#[tokio::test]
async fn a_file_that_is_written_while_others_are_read_is_not_read_half() {
    let (mut lab, _) = Lab::new(&[("b.yaml", "n1=a n2=a")]).await;
    let many: Vec<_> = (0..10_000).map(|i| format!("m{i}=a")).collect();
    // Both are due at once, and the first takes longer to parse than it takes to open the second.
    lab.write("a.yaml", &many.join(" "));
    lab.write("b.yaml", "n1=a n2=a");
    tokio::time::sleep(Duration::from_millis(150)).await;
    let mut file = File::create(lab.path("b.yaml")).unwrap();
    file.write_all(yaml("n1=b").as_bytes()).unwrap();

    let batch = lab.next().await;
    assert_eq!((batch.apply.len(), batch.delete.len()), (many.len(), 0));
    file.write_all(yaml("n2=b").as_bytes()).unwrap();
    drop(file);
    lab.expect(&["n1=b", "n2=b"]).await;
}

#[tokio::test]
async fn a_file_may_be_replaced_by_renaming() {
    let (mut lab, _) = Lab::new(&[("a.yaml", "n1=a n2=a")]).await;

    lab.write("a.yaml.tmp", "n1=b n2=a");
    lab.expect_nothing().await;
    lab.rename("a.yaml.tmp", "a.yaml");

    lab.expect(&["n1=b"]).await;
}

#[tokio::test]
async fn a_renamed_file_keeps_its_objects() {
    let (mut lab, _) = Lab::new(&[("a.yaml", "n1=a")]).await;

    lab.rename("a.yaml", "b.yaml");
    lab.expect_nothing().await;
    lab.rename("b.yaml", "b.yaml.off");

    lab.expect(&["-n1"]).await;
}

#[tokio::test]
async fn an_object_moved_between_files_is_never_gone() {
    let (mut lab, _) = Lab::new(&[("a.yaml", "n1=a n2=a"), ("b.yaml", "")]).await;

    lab.write("a.yaml", "n1=a");
    lab.write("b.yaml", "n2=a");
    lab.expect_nothing().await;
    lab.write("b.yaml", "n2=b");

    lab.expect(&["n2=b"]).await;
}

#[tokio::test]
async fn a_broken_file_is_told_until_it_is_good_again() {
    let (mut lab, _) = Lab::new(&[("a.yaml", "n1=a")]).await;

    fs::write(lab.path("a.yaml"), "kind: [").unwrap();
    lab.expect(&["!a.yaml"]).await;
    lab.write("b.yaml", "n2=a");
    lab.expect(&["n2=a", "!a.yaml"]).await;
    lab.write("a.yaml", "n1=a");
    lab.expect(&[]).await;
}

#[tokio::test]
async fn a_mounted_config_map_changes_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let version = |name: &str, a: &str, b: &str| {
        fs::create_dir(path(name)).unwrap();
        fs::write(path(name).join("a.yaml"), yaml(a)).unwrap();
        fs::write(path(name).join("b.yaml"), yaml(b)).unwrap();
    };
    version("..v1", "n1=a n2=a", "n3=a");
    symlink("..v1", path("..data")).unwrap();
    symlink("..data/a.yaml", path("a.yaml")).unwrap();
    symlink("..data/b.yaml", path("b.yaml")).unwrap();
    let batches = follow(dir.path()).unwrap();
    version("..v2", "n1=a", "n2=a n3=b");
    symlink("..v2", path("..data_tmp")).unwrap();
    fs::rename(path("..data_tmp"), path("..data")).unwrap();
    fs::remove_dir_all(path("..v1")).unwrap();
    let mut lab = Lab { dir, batches };

    lab.expect(&["n1=a", "n2=a", "n3=a"]).await;
    lab.expect(&["n3=b"]).await;
}

#[tokio::test]
async fn a_link_is_whole_when_it_is_made() {
    let (mut lab, _) = Lab::new(&[]).await;
    let other = tempfile::tempdir().unwrap();
    let outside = other.path().join("n");
    fs::write(&outside, yaml("n1=a")).unwrap();

    symlink(&outside, lab.path("a.yaml")).unwrap();
    lab.expect(&["n1=a"]).await;
    fs::remove_file(lab.path("a.yaml")).unwrap();
    lab.expect(&["-n1"]).await;
    let inside = lab.path("n");
    fs::write(&inside, yaml("n2=a")).unwrap();
    fs::hard_link(&inside, lab.path("b.yaml")).unwrap();
    lab.expect(&["n2=a"]).await;
}

#[tokio::test]
async fn a_folder_that_goes_away_keeps_its_objects_until_it_is_back() {
    let (mut lab, _) = Lab::new(&[("a.yaml", "n1=a n2=a")]).await;
    let dir = lab.dir.path().to_owned();

    fs::remove_dir_all(&dir).unwrap();
    let gone = lab.next().await;
    assert_eq!(gone.apply, []);
    let last = gone.problems.last().unwrap().to_string();
    assert!(
        last.contains("put it back; until then the last objects stay"),
        "{last}"
    );

    let back = tempfile::tempdir().unwrap().keep();
    fs::write(back.join("a.yaml"), yaml("n1=b")).unwrap();
    fs::rename(back, &dir).unwrap();
    assert_eq!(changes(&eventually_good(&mut lab).await), ["n1=b", "-n2"]);
    lab.write("a.yaml", "n1=c");
    lab.expect(&["n1=c"]).await;
}

/// The next batch without problems.
async fn eventually_good(lab: &mut Lab) -> Batch {
    loop {
        let batch = lab.next().await;
        if batch.problems.is_empty() {
            return batch;
        }
    }
}

#[test]
fn after_lost_events_everything_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, nodes: &str| fs::write(dir.path().join(name), yaml(nodes)).unwrap();
    let open_and_close = |name: &str| {
        File::options()
            .append(true)
            .open(dir.path().join(name))
            .unwrap();
    };
    write("a.yaml", "n1=a");
    write("b.yaml", "n2=a");
    write("gone.yaml", "n0=a");
    let (mut watcher, _) = Watcher::new(dir.path()).unwrap();

    // Nobody takes them, so the kernel's queue runs over and the last ones are lost.
    for _ in 0..=max_queued_events() / 2 {
        open_and_close("a.yaml");
        open_and_close("b.yaml");
    }
    write("c.yaml", "n3=a");
    fs::remove_file(dir.path().join("gone.yaml")).unwrap();

    let (sender, batches) = mpsc::channel();
    thread::spawn(move || sender.send(watcher.next_batch()));
    let batch = batches.recv_timeout(SOON).unwrap();
    assert_eq!(changes(&batch), ["n3=a", "-n0"]);
}

fn max_queued_events() -> usize {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    limit.trim().parse().unwrap()
}

#[test]
fn a_folder_that_is_not_there_is_an_error_that_names_it() {
    let missing = Path::new("/nonexistent/objects");

    for error in [
        read_dir_once(missing).unwrap_err(),
        Watcher::new(missing).unwrap_err(),
    ] {
        let error = error.to_string();
        assert!(
            error.contains("/nonexistent/objects: No such file or directory"),
            "{error}"
        );
    }
}
