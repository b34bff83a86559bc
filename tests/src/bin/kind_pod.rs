//! What runs in the pods of a real cluster: a server that says who it is, a client that counts who
//! answered, and the process that holds a pod's namespaces. One static program is a whole image.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs},
    process,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use clap::{Parser, Subcommand};
use kube::{Client, Config};
use lb_tests::kind::answers::Answers;
use rustix::system::uname;

#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    task: Option<Task>,
}

#[derive(Subcommand)]
enum Task {
    /// Do nothing, as the pod's first container does
    Pause,
    /// Answer each connection with the pod's name
    Serve {
        #[arg(long, default_value_t = 80)]
        port: u16,
    },
    /// Connect so often, resolving the name each time, and print who answered
    Ask {
        /// As name:port or address:port
        to: String,
        #[arg(long, default_value_t = 1)]
        count: u32,
        /// For a connect that nobody answers, in milliseconds
        #[arg(long, default_value_t = 5000)]
        patience: u64,
    },
    /// Connect all the time until standard input ends, and print who answered
    Load {
        to: String,
        #[arg(long, default_value_t = 2)]
        clients: u32,
    },
    /// Ask the API server for its version, by name and as the pod's ServiceAccount
    Api {
        /// As `https://kubernetes.default`
        server: String,
    },
}

fn main() -> anyhow::Result<()> {
    // The first process of a container gets no signal that it has not asked for.
    ctrlc::set_handler(|| process::exit(0)).context("catch SIGTERM")?;
    match Args::parse().task.unwrap_or(Task::Pause) {
        Task::Pause => pause(),
        Task::Serve { port } => serve(port),
        Task::Ask {
            to,
            count,
            patience,
        } => print(&ask(&to, count, Duration::from_millis(patience))),
        Task::Load { to, clients } => print(&load(&to, clients)?),
        Task::Api { server } => api(&server),
    }
}

fn pause() -> ! {
    loop {
        thread::park();
    }
}

fn serve(port: u16) -> anyhow::Result<()> {
    // Takes IPv4 as well.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port));
    let listener = listener.with_context(|| format!("listen at port {port}"))?;
    let name = uname().nodename().to_string_lossy().into_owned();
    for stream in listener.incoming() {
        let name = name.clone();
        // A client that goes away in the middle is the client's business.
        thread::spawn(move || answer(stream?, &name));
    }
    Ok(())
}

fn answer(stream: TcpStream, name: &str) -> io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?).lines();
    while request
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    write!(
        &stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{name}",
        name.len()
    )
}

fn ask(to: &str, count: u32, patience: Duration) -> Answers {
    let mut answers = Answers::default();
    for _ in 0..count {
        answers.count(request(to, patience));
    }
    answers
}

/// Ends with the standard input, so that whoever started it with `kubectl exec` says when.
fn load(to: &str, clients: u32) -> anyhow::Result<Answers> {
    ensure!(clients > 0, "a load needs a client");
    let goes_on = AtomicBool::new(true);
    let total = Mutex::new(Answers::default());
    thread::scope(|scope| {
        for _ in 0..clients {
            scope.spawn(|| {
                let mut answers = Answers::default();
                while goes_on.load(Ordering::Relaxed) {
                    answers.count(request(to, PATIENCE));
                }
                total
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .merge(answers);
            });
        }
        let ended = io::copy(&mut io::stdin().lock(), &mut io::sink());
        goes_on.store(false, Ordering::Relaxed);
        ended
    })
    .context("read standard input")?;
    Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner))
}

const PATIENCE: Duration = Duration::from_secs(5);

/// One connection: the name of the pod that answered.
fn request(to: &str, patience: Duration) -> anyhow::Result<String> {
    let mut addresses = to
        .to_socket_addrs()
        .with_context(|| format!("resolve {to}"))?;
    let address = addresses
        .next()
        .with_context(|| format!("{to} has no address"))?;
    let mut stream = TcpStream::connect_timeout(&address, patience).context("connect")?;
    stream
        .set_read_timeout(Some(patience))
        .context("set a time limit")?;
    write!(
        stream,
        "GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n"
    )
    .context("send")?;
    let mut response = String::new();
    stream.read_to_string(&mut response).context("receive")?;
    match response.split_once("\r\n\r\n") {
        Some((head, name)) if head.starts_with("HTTP/1.1 200 ") => Ok(name.to_owned()),
        _ => bail!("no 200: {response:?}"),
    }
}

#[expect(clippy::print_stdout, reason = "what the test reads")]
fn print(answers: &Answers) -> anyhow::Result<()> {
    println!(
        "{}",
        serde_json::to_string(answers).context("write the answers")?
    );
    Ok(())
}

/// Over TLS, with the authority and the token that every pod is given.
#[expect(clippy::print_stdout, reason = "what the test reads")]
#[tokio::main(flavor = "current_thread")]
async fn api(server: &str) -> anyhow::Result<()> {
    let mut config = Config::incluster_dns().context("read the pod's ServiceAccount")?;
    config.cluster_url = server
        .parse()
        .with_context(|| format!("the address {server}"))?;
    let client = Client::try_from(config).context("make a client")?;
    let version = client.apiserver_version().await;
    let version = version.with_context(|| format!("ask {server} for its version"))?;
    println!("{}", version.git_version);
    Ok(())
}
