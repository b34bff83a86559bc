//! Thousands of Services and their EndpointSlices, written to the API server by many requests at once:
//! `kubectl apply` would take an hour.

use std::{
    net::{IpAddr, Ipv4Addr},
    ops::Range,
    path::Path,
};

use anyhow::Context;
use futures_util::{StreamExt, TryStreamExt, stream};
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use lb_tests::objects;
use serde_json::Value;

use crate::Step;

/// Where each Service answers.
pub(crate) const PORT: u16 = 80;

const AT_ONCE: usize = 32;

const SERVICES: &str = "/api/v1/namespaces/default/services";
const SLICES: &str = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";

/// The address of the Service of this number: in the range of the lab's control plane, above what that
/// gives out itself.
pub(crate) fn cluster_ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(Ipv4Addr::new(10, 96, 64, 1).to_bits() + number)
}

/// Makes the Services of these numbers, all with these endpoints. On the calling thread, whose network
/// namespace reaches the API server.
pub(crate) fn services(
    kubeconfig: &Path,
    numbers: Range<u32>,
    endpoints: &[IpAddr],
    port: u16,
    step: &Step,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        let client = Client::try_from(config)?;
        let count = numbers.end - numbers.start;
        step.begin(count, &format!("{} Services: making them", numbers.end));
        let made = numbers.map(|number| one(&client, number, endpoints, port));
        let mut made = stream::iter(made).buffer_unordered(AT_ONCE);
        while made.try_next().await?.is_some() {
            step.advance();
        }
        Ok(())
    })
}

async fn one(client: &Client, number: u32, endpoints: &[IpAddr], port: u16) -> anyhow::Result<()> {
    let name = format!("default/bench-{number}");
    let ip = cluster_ip(number).to_string();
    let service = objects::service(&name, &[&ip]).tcp("http", PORT);
    let slice = endpoints.iter().fold(
        objects::slice(&name, "IPv4").tcp("http", port),
        |slice, endpoint| slice.endpoint(endpoint, "bench", "zone-a"),
    );
    create(client, SERVICES, service.into()).await?;
    create(client, SLICES, slice.into()).await
}

async fn create(client: &Client, path: &str, object: Value) -> anyhow::Result<()> {
    let request = http::Request::post(path)
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())?;
    let created: Result<Value, _> = client.request(request).await;
    created.with_context(|| format!("create {}", object["metadata"]["name"]))?;
    Ok(())
}
