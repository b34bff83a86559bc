//! An agent that is started as kube-proxy was.

#![expect(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::{fs, net::SocketAddr, path::PathBuf, process};

use lb_tests::{
    Lab, Serve,
    objects::service,
    scene::{NODE, Scene, TCP},
    wait,
};

const KUBEADM: &str = include_str!("../../lb-agent/src/config/kubeadm.yaml");

#[test]
fn kubeadms_file_is_followed_and_its_change_ends_the_agent_and_no_traffic() {
    let file = write("kubeadm.conf", KUBEADM);
    let scene = Scene::with_flags(1, &["--config", file.to_str().unwrap()]);

    let log = scene.agent.log();
    assert!(log.contains("clusterCIDR has no meaning here"), "{log}");
    let metrics = SocketAddr::from(([127, 0, 0, 1], 10249));
    let configz = scene.node.host().get(metrics, "/configz").unwrap().json();
    let fields = &configz["kubeproxy.config.k8s.io"];
    assert_eq!(fields["clusterCIDR"], "10.244.0.0/16", "{configz}");
    assert_eq!(fields["hostnameOverride"], NODE, "{configz}");

    fs::write(&file, format!("{KUBEADM}# changed\n")).unwrap();
    assert_eq!(scene.agent.wait_exit().code(), Some(1));
    let log = scene.agent.log();
    assert!(log.contains("was changed; ending"), "{log}");
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 10).answered(), 10);
}

#[test]
fn a_field_that_kube_proxy_does_not_have_is_named_with_its_line() {
    let lab = Lab::new();
    let (node, objects) = (lab.node("a"), lab.objects());
    objects.apply(service("default/web", &["10.96.0.10"]).tcp("http", 80));
    let typo = KUBEADM.replace("metricsBindAddress", "metricBindAddress");
    let file = write("typo.conf", &typo);
    let flags = ["--config", file.to_str().unwrap()];

    let agent = node.start_agent(node.run_command(&objects, &flags, &[]));

    assert_eq!(agent.wait_exit().code(), Some(1));
    let log = agent.log();
    let line = typo
        .lines()
        .position(|line| line.starts_with("metricBind"))
        .unwrap()
        + 1;
    let expected = format!("typo.conf:{line}: no field metricBindAddress");
    assert!(log.contains(&expected), "{log}");
    assert!(
        log.contains("the nearest one is metricsBindAddress"),
        "{log}"
    );
    assert!(node.cli().status().is_err(), "nothing is installed");
}

#[test]
fn kube_proxys_flags_are_accepted_and_those_without_meaning_named() {
    let flags = [
        "--proxy-mode=ipvs",
        "--ipvs-sync-period=7s",
        "--masquerade-all",
        "--cluster-cidr=10.244.0.0/16",
        "--v=4",
    ];
    let scene = Scene::with_flags(1, &flags);

    wait::until("a line for each flag", wait::PATIENCE, || {
        let log = scene.agent.log();
        let named = ["--proxy-mode", "--masquerade-all", "--cluster-cidr"]
            .iter()
            .all(|flag| log.contains(&format!("{flag} has no meaning here")));
        named.then_some(()).ok_or(log)
    })
    .unwrap();
    assert!(scene.agent.log().contains("DEBUG"), "{}", scene.agent.log());
    assert_eq!(scene.client.load(Serve::Tcp, TCP, 5).answered(), 5);
}

/// A file of this process's own.
fn write(name: &str, text: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(process::id().to_string());
    fs::create_dir_all(&folder).unwrap();
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    path
}
