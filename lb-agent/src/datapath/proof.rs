//! Proof by doing: a Service of our own, in maps that nobody else sees, and a real connect to it.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use bytemuck::Zeroable;
use lb_common::{
    addr::{Addr, Port, Proto},
    tables::{
        Backend, BackendIndex, Frontend, FrontendKey, Kind, List, Membership, Ring, ServiceIndex,
        Slot,
    },
};

use crate::{
    datapath::{attach::attach_until_dropped, cgroup::Cgroup, load::Object, store::MapStore},
    tables::{Op, set::Capacities},
};

/// Where the proof's Service answers. In loopback's range, so that a connect which is not translated
/// leaves this machine as little as one which is; nobody listens there.
const SERVICE: Ipv4Addr = Ipv4Addr::new(127, 192, 0, 2);

/// Makes maps of the smallest size, for nobody else.
///
/// # Errors
///
/// The kernel refuses one.
pub fn make_maps() -> Result<Object> {
    let object = Object::create(Capacities {
        frontends: 1,
        ..Capacities::default()
    })?;
    object.maps()?;
    Ok(object)
}

/// Connects this process to a Service whose only backend is a listener of our own.
///
/// # Errors
///
/// The connection did not arrive: processes like this one are not served below this cgroup.
pub fn connect_through(object: &mut Object, cgroup: &Cgroup) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listening on 127.0.0.1")?;
    let SocketAddr::V4(backend) = listener.local_addr()? else {
        unreachable!("it was bound to an IPv4 address");
    };
    let port = Port(backend.port());
    let mut maps = object.maps()?;
    for op in one_service(port) {
        maps.apply(&op)?;
    }
    let _attached = attach_until_dropped(object, "nh_connect4", cgroup)?;

    let service = SocketAddr::from((SERVICE, port.0));
    let mut client = TcpStream::connect_timeout(&service, Duration::from_secs(1))
        .with_context(|| format!("connecting to {service}, which stands for {backend}"))?;
    let reached = client.peer_addr()?;
    ensure!(
        reached == SocketAddr::from(backend),
        "the connection to {service} reached {reached}, not {backend}"
    );
    exchange(&listener, &mut client).context("talking through the connection")
}

fn exchange(listener: &TcpListener, client: &mut TcpStream) -> io::Result<()> {
    let (mut server, _) = listener.accept()?;
    server.write_all(b"hi")?;
    client.set_read_timeout(Some(Duration::from_secs(1)))?;
    client.read_exact(&mut [0; 2])
}

/// The tables with one Service port of one backend, on this port of both addresses.
fn one_service(port: Port) -> [Op; 4] {
    let (service, index) = (ServiceIndex(0), BackendIndex(0));
    [
        Op::WriteBackend {
            index,
            backend: Backend {
                addr: Addr::v4(Ipv4Addr::LOCALHOST.octets()),
                service: service.0,
                port: port.0,
                proto: Proto::TCP.0,
                membership: Membership {
                    lists: Membership::CLUSTER | Membership::SERVING,
                    generation: 1,
                },
                ..Backend::zeroed()
            },
        },
        Op::WriteSlots {
            base: 0,
            slots: vec![Slot {
                backend: index.0,
                service: service.0,
            }],
        },
        Op::PublishRing {
            service,
            list: List::Cluster,
            ring: Ring {
                base: 0,
                len: 1,
                algorithm: Ring::RANDOM,
                on_empty: Ring::REJECT,
            },
        },
        Op::PutFrontend {
            key: FrontendKey::new(Addr::v4(SERVICE.octets()), port, Proto::TCP),
            frontend: Frontend::new(service, Kind::ClusterIp, false),
        },
    ]
}
