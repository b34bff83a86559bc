//! What an API server, or the network before it, can do to an agent: nothing of it touches traffic, and
//! the agent catches up when it is over. The API server is real; what it cannot be made to do is done by a
//! proxy before it.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::time::{Duration, Instant};

use lb_tests::{
    Cluster, Serve,
    cluster::{
        faults::{Fault, FaultyProxy},
        scene::Scene,
    },
    scene::{TCP, TCP_PORT},
    wait,
};
use serde_json::{Value, json};

const TWO_MINUTES: Duration = Duration::from_secs(120);
/// A connection that is silent for 150 s is given up.
const SILENCE_NOTICED: Duration = Duration::from_secs(180);

#[test]
fn a_connection_that_goes_silent_is_noticed_and_what_was_missed_is_caught_up_with() {
    let (scene, proxy) = through_a_proxy();

    proxy.set(Fault::Silence);
    scene.apply_slice(scene.slice().hinted());
    wait::until("the silence to be noticed", SILENCE_NOTICED, || {
        assert_eq!(connect(&scene), Ok(()), "traffic does not notice");
        let status = scene.node.cli().status()?;
        let problem = status["problem"].as_str().unwrap_or_default();
        if problem.contains("cannot watch") && problem.contains("timed out") {
            Ok(())
        } else {
            Err(status.to_string())
        }
    })
    .unwrap();
    // New connections are accepted and meet the same silence.
    assert!(proxy.met() > 0);
    assert!(!scene.services().contains("hinted"));

    proxy.set(Fault::None);
    proxy.cut();
    only_near(&scene);
    scene.wait_for_status("no problem", |status| status["problem"].is_null());
}

#[test]
fn an_api_server_that_is_away_for_two_minutes_changes_nothing() {
    let scene = Scene::new();
    let before = scene.services();

    scene.cluster.kill_api();
    let begun = Instant::now();
    wait::until("two minutes", TWO_MINUTES * 2, || {
        assert_eq!(connect(&scene), Ok(()));
        match begun.elapsed() {
            elapsed if elapsed >= TWO_MINUTES => Ok(()),
            elapsed => Err(format!("{elapsed:?}")),
        }
    })
    .unwrap();

    assert_eq!(scene.services(), before);
    let status = scene.node.cli().status().unwrap();
    let problem = status["problem"].as_str().unwrap();
    assert!(problem.contains("cannot watch"), "{problem}");
    scene.cluster.start_api();
    scene.cluster.wait_ready();
    scene.apply_slice(scene.slice().hinted());
    only_near(&scene);
}

#[test]
fn answers_that_are_refused_or_slow_only_delay_a_change() {
    let (scene, proxy) = through_a_proxy();
    let mut hinted = false;
    for fault in [
        Fault::Slow,
        Fault::Answer {
            path: "/",
            status: "429 TooManyRequests",
        },
        Fault::Answer {
            path: "/",
            status: "500 InternalError",
        },
        Fault::Answer {
            path: "/",
            status: "503 ServiceUnavailable",
        },
    ] {
        proxy.set(fault.clone());
        proxy.cut();
        let before = scene.services();
        wait::until(&format!("{fault:?} to be met"), wait::PATIENCE, || {
            if proxy.met() > 2 {
                Ok(())
            } else {
                Err(proxy.met())
            }
        })
        .unwrap();
        assert_eq!(
            scene.client.load(Serve::Tcp, TCP, 50).answered(),
            50,
            "{fault:?}"
        );
        assert_eq!(scene.services(), before, "{fault:?}");

        proxy.set(Fault::None);
        hinted = !hinted;
        match hinted {
            true => {
                scene.apply_slice(scene.slice().hinted());
                only_near(&scene);
            }
            false => {
                scene.apply_slice(scene.slice());
                scene.wait_for_answers("both", |tally| tally.answers.len() == 2);
            }
        }
    }
}

/// Where pins serve, a list that breaks off is no list: the first complete one counts.
#[test]
fn a_list_that_is_torn_is_not_believed() {
    let (scene, proxy) = through_a_proxy();
    let before = scene.services();
    scene.agent.kill().unwrap();

    proxy.set(Fault::Tear);
    let agent = scene.node.agent_of(&scene.kubeconfig);
    wait::until("torn lists", wait::PATIENCE, || {
        if proxy.met() > 3 {
            Ok(())
        } else {
            Err(proxy.met())
        }
    })
    .unwrap();
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 50).answered(), 50);
    assert_eq!(scene.services(), before);

    proxy.set(Fault::None);
    agent.wait_ready().unwrap();
    assert_eq!(scene.services(), before);
    assert_eq!(scene.node.cli().number("first_sync_ops").unwrap(), 0);
}

#[test]
fn a_server_without_service_cidrs_is_told_once_and_served_from() {
    let (scene, proxy) = through_a_proxy();
    scene.agent.kill().unwrap();

    let path = "/servicecidrs";
    proxy.set(Fault::Answer {
        path,
        status: "404 NotFound",
    });
    let agent = scene.node.agent_of(&scene.kubeconfig);
    agent.wait_ready().unwrap();
    wait::until("it to be asked again", wait::PATIENCE, || {
        if proxy.met() > 2 {
            Ok(())
        } else {
            Err(proxy.met())
        }
    })
    .unwrap();

    let log = agent.log();
    assert_eq!(log.matches("has no ServiceCIDRs (404)").count(), 1, "{log}");
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 50).answered(), 50);
}

/// A restarted API server remembers nothing of before its start (410), and so the agent must list again
/// to find out what went away meanwhile.
#[test]
fn a_server_that_has_forgotten_where_the_watch_was_is_listed_again() {
    let (scene, proxy) = through_a_proxy();

    proxy.set(Fault::Answer {
        path: "/",
        status: "503 ServiceUnavailable",
    });
    proxy.cut();
    scene.cluster.kubectl(&["delete", "service", "web"]);
    write(&scene.cluster, 20);
    scene.cluster.kill_api();
    scene.cluster.start_api();
    scene.cluster.wait_ready();
    proxy.set(Fault::None);

    scene.wait_for_log("the watch is too old to go on; listing again");
    until_only_kubernetes(&scene);
}

/// As after the loss of etcd's disk: the server is ready, knows nobody's Services, and counts its versions
/// anew, so that a watch would wait for years. What it says counts, if it says so twice.
#[test]
fn a_cluster_that_has_lost_its_data_is_found_out_and_believed_the_second_time() {
    // The administrator's credentials are not in etcd; those of a ServiceAccount are lost with it.
    let scene = Scene::with(Cluster::kubeconfig);
    // More than a new cluster writes at its start.
    write(&scene.cluster, 400);
    scene
        .cluster
        .kubectl(&["label", "service/web", "seen=late"]);
    scene.apply_slice(scene.slice().hinted());
    only_near(&scene);

    scene.cluster.kill_api();
    scene.cluster.kill_etcd();
    scene.cluster.lose_etcd_data();
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 50).answered(), 50);
    scene.cluster.start_etcd();
    scene.cluster.start_api();
    scene.cluster.wait_ready();

    scene.wait_for_log("the API server has gone back in time");
    until_only_kubernetes(&scene);
    let log = scene.agent.log();
    assert!(log.contains("another one must confirm it"), "{log}");

    scene.apply();
    scene.wait_for_answers("what was restored", |tally| tally.answers.len() == 2);
}

/// With the rights of deploy/, and so without any once etcd has lost them: what serves, serves on.
#[test]
fn a_cluster_that_has_lost_the_agents_account_prunes_nothing() {
    let scene = Scene::new();
    let before = scene.services();

    scene.cluster.kill_api();
    scene.cluster.kill_etcd();
    scene.cluster.lose_etcd_data();
    scene.cluster.start_etcd();
    scene.cluster.start_api();
    scene.cluster.wait_ready();

    scene.wait_for_status("the refusal", |status| {
        let problem = status["problem"].as_str().unwrap_or_default();
        problem.contains("does not know who asks (401)")
    });
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 50).answered(), 50);
    assert_eq!(scene.services(), before);
}

/// A scene whose agent reaches the API server through a proxy.
fn through_a_proxy() -> (Scene, FaultyProxy) {
    let mut kept = None;
    let scene = Scene::with(|cluster| {
        let (proxy, kubeconfig) = cluster.faulty_proxy(&cluster.account());
        kept = Some(proxy);
        kubeconfig
    });
    (scene, kept.unwrap())
}

fn connect(scene: &Scene) -> Result<(), String> {
    let tally = scene.client.load(Serve::Tcp, TCP, 1);
    if tally.errors.is_empty() {
        Ok(())
    } else {
        Err(format!("{:?}", tally.errors))
    }
}

fn only_near(scene: &Scene) {
    let near = scene.backends[0].at(TCP_PORT);
    scene.wait_for_answers("the near one alone", |tally| tally.of(near) == 20);
}

fn until_only_kubernetes(scene: &Scene) {
    wait::until(
        "only default/kubernetes to be served",
        wait::PATIENCE * 4,
        || {
            let services = scene.services();
            if services.contains("default/kubernetes") && !services.contains("default/web") {
                Ok(())
            } else {
                Err(services)
            }
        },
    )
    .unwrap();
}

/// Raises the version of the cluster's data with objects that no agent watches.
fn write(cluster: &Cluster, objects: u32) {
    let object = |number: u32| -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"namespace": "default", "name": format!("written-{number}")},
        })
    };
    cluster.apply((0..objects).map(object));
}
