//! The shipped agent on this kernel: all programs load, sockets of every kind reach a backend and are
//! refused, and a killed agent's data path goes on. All on loopback: the backends are its addresses.

use std::{
    fs,
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use lb_tests::{objects, wait};
use serde_json::Value;

use crate::{report, run as run_program};

const OBJECTS: &str = "/tmp/objects";
const SERVICE_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x10);
const EMPTY_V4: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
const EMPTY_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, 0x11);
const PORT: u16 = 80;
const BACKEND_PORT: u16 = 8080;
const TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) fn run() {
    report("objects", write_objects());
    report("servers", serve());
    report("check", lb_agent(&["check"]));
    match start_agent() {
        Ok(agent) => with_agent(agent),
        Err(error) => report("programs_load", Err(error)),
    }
}

fn with_agent(mut agent: Child) {
    report("programs_load", wait_ready().and_then(|()| all_attached()));
    sockets();
    report(
        "kill_9_stops_no_traffic",
        agent.kill().map_err(Into::into).and_then(|()| {
            agent.wait()?;
            tcp(SERVICE_V4.into())
        }),
    );
    report("restart_adopts_the_pins", restart());
    report("maps_grow_while_they_serve", grow());
    report("cleanup_leaves_nothing", cleanup());
}

fn sockets() {
    let mapped = |addr: Ipv4Addr| IpAddr::V6(addr.to_ipv6_mapped());
    for (family, service, empty) in [
        ("v4", IpAddr::V4(SERVICE_V4), IpAddr::V4(EMPTY_V4)),
        ("v6", IpAddr::V6(SERVICE_V6), IpAddr::V6(EMPTY_V6)),
        ("mapped", mapped(SERVICE_V4), mapped(EMPTY_V4)),
    ] {
        report(&format!("tcp_{family}_is_answered"), tcp(service));
        report(
            &format!("udp_{family}_unconnected_is_answered_by_the_service"),
            udp(service),
        );
        report(
            &format!("udp_{family}_connected_is_answered"),
            udp_connected(service),
        );
        report(
            &format!("tcp_{family}_without_endpoints_is_refused"),
            tcp_refused(empty),
        );
        report(
            &format!("udp_{family}_without_endpoints_is_not_sent"),
            udp_refused(empty),
        );
    }
}

/// A Service with a backend on loopback and one without any, both of both families.
fn write_objects() -> Result<()> {
    let ips = |v4: Ipv4Addr, v6: Ipv6Addr| [v4.to_string(), v6.to_string()];
    let (web, empty) = (ips(SERVICE_V4, SERVICE_V6), ips(EMPTY_V4, EMPTY_V6));
    let service = |name: &str, ips: &[String; 2]| {
        Value::from(
            objects::service(name, &[&ips[0], &ips[1]])
                .tcp("t", PORT)
                .udp("u", PORT),
        )
    };
    let slice = |family: &str, addr: &str| {
        let slice = objects::slice("default/web", family).tcp("t", BACKEND_PORT);
        Value::from(slice.udp("u", BACKEND_PORT).endpoint(addr, "vm", "a"))
    };
    let objects = [
        objects::node("vm", "a"),
        service("default/web", &web),
        service("default/empty", &empty),
        slice("IPv4", "127.0.0.1"),
        slice("IPv6", "::1"),
    ];
    fs::create_dir_all(OBJECTS)?;
    for (number, object) in objects.iter().enumerate() {
        fs::write(format!("{OBJECTS}/{number}.json"), object.to_string())?;
    }
    Ok(())
}

fn serve() -> Result<()> {
    let at = [
        IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(Ipv6Addr::LOCALHOST),
    ];
    for addr in at.map(|ip| SocketAddr::new(ip, BACKEND_PORT)) {
        let listener = TcpListener::bind(addr)?;
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                // A client that is gone is its own test's failure.
                let _ = stream.write_all(b"hello");
            }
        });
        let socket = UdpSocket::bind(addr)?;
        thread::spawn(move || {
            let mut datagram = [0; 64];
            while let Ok((len, from)) = socket.recv_from(&mut datagram) {
                let _ = socket.send_to(&datagram[..len], from);
            }
        });
    }
    Ok(())
}

fn start_agent() -> Result<Child> {
    start_agent_with(&[])
}

fn start_agent_with(flags: &[&str]) -> Result<Child> {
    let run = ["run", "--objects", OBJECTS, "--node", "vm"];
    Command::new("/lb-agent")
        .args(run)
        .args(flags)
        .spawn()
        .context("starting /lb-agent")
}

fn lb_agent(args: &[&str]) -> Result<()> {
    run_program("/lb-agent", args)
}

fn status() -> Result<Value> {
    let output = Command::new("/lb-agent")
        .args(["status", "-o", "json"])
        .stderr(Stdio::inherit())
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn wait_ready() -> Result<()> {
    wait::until(
        "the agent is ready",
        Duration::from_secs(60),
        || match status() {
            Ok(status) if status["ready"] == true && status["running"] == true => Ok(()),
            Ok(status) => Err(status.to_string()),
            Err(error) => Err(format!("{error:#}")),
        },
    )
}

fn all_attached() -> Result<()> {
    let status = status()?;
    let programs = status["programs"].as_array().map_or(0, Vec::len);
    ensure!(
        programs == 10,
        "{programs} programs are attached: {}",
        status["programs"]
    );
    Ok(())
}

fn tcp(service: IpAddr) -> Result<()> {
    let to = SocketAddr::new(service, PORT);
    let mut stream = TcpStream::connect_timeout(&to, TIMEOUT).context("connect")?;
    ensure!(
        stream.peer_addr()? == to,
        "getpeername says {}",
        stream.peer_addr()?
    );
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).context("read")?;
    ensure!(&answer == b"hello", "{answer:?}");
    Ok(())
}

fn tcp_refused(empty: IpAddr) -> Result<()> {
    match TcpStream::connect_timeout(&SocketAddr::new(empty, PORT), TIMEOUT) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn udp_socket(like: IpAddr) -> Result<UdpSocket> {
    let any = match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

fn udp(service: IpAddr) -> Result<()> {
    let to = SocketAddr::new(service, PORT);
    let socket = udp_socket(service)?;
    socket.send_to(b"hi", to).context("sendto")?;
    let (_, from) = socket.recv_from(&mut [0; 64]).context("recvfrom")?;
    ensure!(from == to, "answered by {from}");
    Ok(())
}

fn udp_connected(service: IpAddr) -> Result<()> {
    let to = SocketAddr::new(service, PORT);
    let socket = udp_socket(service)?;
    socket.connect(to).context("connect")?;
    ensure!(
        socket.peer_addr()? == to,
        "getpeername says {}",
        socket.peer_addr()?
    );
    socket.send(b"hi").context("send")?;
    let (_, from) = socket.recv_from(&mut [0; 64]).context("recvfrom")?;
    ensure!(from == to, "answered by {from}");
    Ok(())
}

/// EPERM before 6.1, ECONNREFUSED from then on.
fn udp_refused(empty: IpAddr) -> Result<()> {
    match udp_socket(empty)?.send_to(b"hi", SocketAddr::new(empty, PORT)) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Ok(()),
        other => bail!("{other:?}"),
    }
}

fn restart() -> Result<()> {
    let mut agent = start_agent()?;
    let adopted = wait_ready().and_then(|()| {
        let status = status()?;
        ensure!(
            status["first_sync_ops"] == 0,
            "the first sync had {}",
            status["first_sync_ops"]
        );
        tcp(SERVICE_V6.into())
    });
    agent.kill()?;
    agent.wait()?;
    adopted
}

/// Links move to other maps, beside those that need not grow.
fn grow() -> Result<()> {
    let to = SocketAddr::new(SERVICE_V4.into(), PORT);
    let connected = udp_socket(SERVICE_V4.into())?;
    connected.connect(to).context("connect")?;
    let mut agent = start_agent_with(&["--capacity-backends", "1000"])?;
    let grown = wait_ready().and_then(|()| {
        let status = status()?;
        let backends = &status["maps"]["BACKENDS"]["capacity"];
        ensure!(
            status["growths"] == 1 && backends == 1000 && status["set"] == "v1-1",
            "{status}"
        );
        all_attached()?;
        ensure!(connected.peer_addr()? == to, "{}", connected.peer_addr()?);
        tcp(SERVICE_V6.into())?;
        udp(SERVICE_V4.into())
    });
    agent.kill()?;
    agent.wait()?;
    grown
}

fn cleanup() -> Result<()> {
    lb_agent(&["cleanup"])?;
    ensure!(!fs::exists("/sys/fs/bpf/nearhop")?, "pins are left");
    Ok(())
}
