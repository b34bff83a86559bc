//! One watch of one kind, as kube's watcher keeps it: list, watch, resume, list again when the server
//! has forgotten where we were. What is added here is what the fold wants to know and the watcher
//! does not say: that the server answered again after a failure, which may have nothing to tell; and
//! that it has gone back in time, which it would never tell: asked for what came after a version that it
//! has not reached yet, an API server is silent.

use std::{error::Error, fmt::Debug, mem, ops::Range, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api, Client, Config, Resource,
    api::ListParams,
    client::{Body, ClientBuilder},
    core::Status,
    runtime::{
        utils::Backoff,
        watcher::{self, DefaultBackoff, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, mpsc, watch},
    task,
    time::{self, Instant},
};
use tower::util::{MapRequestLayer, MapResponseLayer};
use tracing::{debug, info, warn};

use crate::{
    api::{self, Converted, Rejected},
    model::object::Kind,
    source::kube::fold::{News, Read},
};

/// What a watch tells the fold.
pub(super) type Told = (Kind, News);

/// A server sends a bookmark about once a minute, so one that says nothing for this long is away, and
/// so is one that does not answer a list.
const SILENCE_MAX: Duration = Duration::from_secs(150);
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// How long a server that seems to have lost its objects is given to find them.
const BEFORE_CONFIRMING: Duration = Duration::from_secs(1);
/// How long the server is asked to keep a watch open, drawn for each new list so that the nodes of a
/// cluster do not come back at the same moment: kube-proxy's bounds.
const WATCH_SECS: Range<u32> = 300..600;
/// How long the question for the server's version may take, and how long until it is put again.
const VERSION_MAX: Duration = Duration::from_secs(5);
const VERSION_AGAIN: Duration = Duration::from_secs(30);

/// A watch that is not started yet.
pub(super) struct Watch {
    kind: Kind,
    client: Client,
    told: mpsc::Sender<Told>,
    /// Changes with each good answer.
    answers: watch::Receiver<()>,
    /// The version from which the latest watch was asked for.
    asked: watch::Receiver<u64>,
    list_again: Arc<Notify>,
    backoff: DefaultBackoff,
    failing: bool,
    told_missing: bool,
    /// Why there is no answer, as first told: the words differ from try to try, and the problem not.
    no_answer: Option<String>,
}

impl Watch {
    /// A client of its own tells whose request it was that the server answered.
    pub(super) fn new(kind: Kind, access: &Config, told: mpsc::Sender<Told>) -> kube::Result<Self> {
        let (answered, answers) = watch::channel(());
        let note = move |response: http::Response<_>| {
            if response.status().is_success() {
                answered.send_replace(());
            }
            response
        };
        let (ask, asked) = watch::channel(0);
        let note_version = move |request: http::Request<Body>| {
            if let Some(version) = version_watched(request.uri()) {
                ask.send_replace(version);
            }
            request
        };
        let mut access = access.clone();
        access.connect_timeout = Some(CONNECT_MAX);
        access.read_timeout = Some(SILENCE_MAX);
        access.reset_reader_on_write = true;
        // The watch tries again by itself, and says so; the client would be silent about it for minutes.
        access.default_retry = false;
        let builder = ClientBuilder::try_from(access)?
            .with_layer(&MapResponseLayer::new(note))
            .with_layer(&MapRequestLayer::new(note_version));
        Ok(Self {
            kind,
            client: builder.build(),
            told,
            answers,
            asked,
            list_again: Arc::default(),
            backoff: DefaultBackoff::default(),
            failing: false,
            told_missing: false,
            no_answer: None,
        })
    }

    /// Returns by what the watch is told to list again.
    pub(super) fn start<K: Watched>(
        self,
        config: watcher::Config,
        convert: Convert<K>,
    ) -> Arc<Notify> {
        let list_again = Arc::clone(&self.list_again);
        task::spawn(self.run(config, convert));
        list_again
    }

    async fn run<K: Watched>(mut self, config: watcher::Config, convert: Convert<K>) {
        while self.follow(&config, convert).await.is_ok() {
            time::sleep(BEFORE_CONFIRMING).await;
        }
    }

    /// Until a new list is asked for, or nobody listens.
    async fn follow<K: Watched>(
        &mut self,
        config: &watcher::Config,
        convert: Convert<K>,
    ) -> Result<(), NobodyListens> {
        let api = Api::<K>::all(self.client.clone());
        let secs = fastrand::u32(WATCH_SECS);
        let mut resumes = Resumes::new(secs);
        let mut events = pin!(watcher::watcher(api.clone(), config.clone().timeout(secs)));
        loop {
            tokio::select! {
                Some(event) = events.next() => match event {
                    Ok(event) => {
                        resumes.heard(&event);
                        self.heard(event, convert).await?;
                    }
                    Err(error) => self.failed(&error).await?,
                },
                Ok(()) = self.asked.changed() => resumes.asked(*self.asked.borrow_and_update()),
                () = resumes.due() => if self.went_back(&api, config, &mut resumes).await {
                    return self.tell(News::WentBack).await;
                },
                Ok(()) = self.answers.changed(), if self.failing => {
                    self.recovered();
                    self.tell(News::Answered).await?;
                }
                () = self.list_again.notified() => return Ok(()),
            }
        }
    }

    /// Whether the server's data are older than those from which the watch goes on: it was given a
    /// backup, or has lost everything.
    async fn went_back<K: Watched>(
        &self,
        api: &Api<K>,
        config: &watcher::Config,
        resumes: &mut Resumes,
    ) -> bool {
        // One object is asked for, and its content is not: the list as a whole has the version.
        let mut params = ListParams::default().limit(1);
        params.label_selector.clone_from(&config.label_selector);
        params.field_selector.clone_from(&config.field_selector);
        let Ok(Ok(list)) = time::timeout(VERSION_MAX, api.list_metadata(&params)).await else {
            resumes.ask_later();
            return false;
        };
        let version = list.metadata.resource_version.as_deref();
        let Some(has) = version.and_then(|version| version.parse::<u64>().ok()) else {
            resumes.settled();
            return false;
        };
        let went_back = has < resumes.version;
        if went_back {
            warn!(
                kind = %self.kind, before = resumes.version, now = has,
                "the API server has gone back in time, as after a backup or a loss; listing again"
            );
        }
        resumes.settled();
        went_back
    }

    async fn heard<K: Watched>(
        &mut self,
        event: Event<K>,
        convert: Convert<K>,
    ) -> Result<(), NobodyListens> {
        let read = |object: &K| Read {
            key: api::key_of(self.kind, object.meta()),
            outcome: convert(object),
        };
        let news = match &event {
            // The watcher says so before it has asked the server.
            Event::Init => return self.tell(News::ListBegins).await,
            Event::InitApply(object) => News::Listed(read(object)),
            Event::InitDone => News::ListEnds,
            Event::Apply(object) => News::Changed(read(object)),
            Event::Delete(object) => News::Deleted(api::key_of(self.kind, object.meta())),
        };
        self.backoff.reset();
        self.recovered();
        self.tell(news).await
    }

    fn recovered(&mut self) {
        self.failing = false;
        self.no_answer = None;
    }

    /// Tells of the failure, and waits before the watcher tries again.
    async fn failed(&mut self, error: &watcher::Error) -> Result<(), NobodyListens> {
        self.answers.mark_unchanged();
        match status_of(error) {
            Some(410) => {
                info!(kind = %self.kind, "the watch is too old to go on; listing again");
                if matches!(error, watcher::Error::WatchStartFailed(_)) {
                    // The watcher itself would ask for the same version again.
                    self.list_again.notify_one();
                }
            }
            Some(404) if self.kind == Kind::ServiceCidr => {
                self.warn_of_no_cidrs();
                self.tell(News::NoSuchKind).await?;
            }
            _ => {
                self.failing = true;
                let why = self.why(error);
                self.tell(News::Failed(why)).await?;
            }
        }
        let pause = self.backoff.next().unwrap_or_default();
        debug!(kind = %self.kind, ?pause, "trying again after a pause");
        time::sleep(pause).await;
        Ok(())
    }

    /// Once: it is no fault of this server, which is asked again in case it gets them.
    fn warn_of_no_cidrs(&mut self) {
        if !mem::replace(&mut self.told_missing, true) {
            warn!(
                "the API server has no ServiceCIDRs (404), as before Kubernetes 1.33: a port that a \
                 Service does not have, and an address that no Service has, are left alone"
            );
        }
    }

    /// What failed and what to do, in the words that the server, or the lack of one, gives.
    fn why(&mut self, error: &watcher::Error) -> String {
        let kind = self.kind;
        match status_of(error) {
            Some(401) => {
                "the server does not know who asks (401); renew the token or the certificate"
                    .to_owned()
            }
            Some(403) => format!("not allowed to (403); grant list and watch of {kind}s"),
            Some(404) => {
                format!("the server has no {kind}s (404); check the address of the server")
            }
            Some(code) => format!("the server answers {code}: {}", message_of(error)),
            None => {
                let why = || chain(error.source().unwrap_or(error));
                self.no_answer.get_or_insert_with(why).clone()
            }
        }
    }

    async fn tell(&self, news: News) -> Result<(), NobodyListens> {
        let told = self.told.send((self.kind, news)).await;
        told.map_err(|_| NobodyListens)
    }
}

/// How a watch goes on, and whether that has to be looked into: a server ends a watch when its time is
/// over, and one that ended before was cut off by something.
struct Resumes {
    /// How long the server was asked to keep it open.
    open: Duration,
    /// When the latest watch since the list was asked for.
    last: Option<Instant>,
    version: u64,
    /// When to ask for the server's version.
    due: Option<Instant>,
}

impl Resumes {
    fn new(secs: u32) -> Self {
        Self {
            open: Duration::from_secs(secs.into()),
            last: None,
            version: 0,
            due: None,
        }
    }

    /// What was listed is as old as the server is.
    fn heard<K>(&mut self, event: &Event<K>) {
        if matches!(event, Event::InitDone) {
            (self.last, self.due) = (None, None);
        }
    }

    fn asked(&mut self, version: u64) {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last < self.open) {
            self.due = Some(now);
        }
        (self.last, self.version) = (Some(now), version);
    }

    async fn due(&self) {
        match self.due {
            Some(due) => time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    }

    fn ask_later(&mut self) {
        self.due = Some(Instant::now() + VERSION_AGAIN);
    }

    fn settled(&mut self) {
        self.due = None;
    }
}

/// The version after which a request wants to hear what changes; `None` for one that is no watch.
fn version_watched(uri: &http::Uri) -> Option<u64> {
    let mut pairs = uri.query()?.split('&');
    let is_watch = pairs.clone().any(|pair| pair == "watch=true");
    let version = pairs.find_map(|pair| pair.strip_prefix("resourceVersion="))?;
    is_watch.then(|| version.parse().ok())?
}

/// The agent has ended.
struct NobodyListens;

type Convert<K> = fn(&K) -> Result<Converted, Rejected>;

/// What kube's watcher asks of a type, by one name.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Watched for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// The HTTP status, where the server itself said no.
fn status_of(error: &watcher::Error) -> Option<u16> {
    refusal(error).map(|status| status.code)
}

/// Its words.
fn message_of(error: &watcher::Error) -> &str {
    refusal(error).map_or("", |status| &status.message)
}

fn refusal(error: &watcher::Error) -> Option<&Status> {
    use watcher::Error as Watcher;
    match error {
        Watcher::WatchError(status)
        | Watcher::InitialListFailed(kube::Error::Api(status))
        | Watcher::WatchStartFailed(kube::Error::Api(status))
        | Watcher::WatchFailed(kube::Error::Api(status)) => Some(status),
        Watcher::InitialListFailed(_)
        | Watcher::WatchStartFailed(_)
        | Watcher::WatchFailed(_)
        | Watcher::NoResourceVersion => None,
    }
}

/// An error with its causes, each told once: some errors repeat their cause and others do not.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.contains(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{
        net::Ipv4Addr,
        sync::atomic::{AtomicU32, Ordering},
    };

    use k8s_openapi::api::core::v1::Service;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        task::JoinSet,
    };

    use super::*;

    const TOO_OLD: &str = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Expired","message":"too old","code":410}}"#;

    const STATUS_410: &str = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Expired","message":"too old","code":410}"#;
    const SILENCE: &str = "200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

    /// A server that answers each request, given by its first line, with what follows `HTTP/1.1`.
    async fn server(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Config {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let access = access(&listener);
        task::spawn(serve(listener, answer));
        access
    }

    fn access(listener: &TcpListener) -> Config {
        let url = format!("http://{}", listener.local_addr().unwrap());
        Config::new(url.parse().unwrap())
    }

    async fn serve(listener: TcpListener, answer: impl Fn(&str) -> String + Send + Sync + 'static) {
        let answer = Arc::new(answer);
        let mut clients = JoinSet::new();
        while let Ok((client, _)) = listener.accept().await {
            clients.spawn(converse(client, Arc::clone(&answer)));
        }
    }

    async fn converse(mut client: TcpStream, answer: Arc<impl Fn(&str) -> String>) {
        let mut request = [0; 4096];
        while let Ok(read @ 1..) = client.read(&mut request).await {
            let request = String::from_utf8_lossy(&request[..read]);
            let answer = answer(request.lines().next().unwrap_or_default());
            let answer = format!("HTTP/1.1 {answer}");
            if client.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn is_watch(request: &str) -> bool {
        request.contains("watch=true")
    }

    fn empty_list(version: u64) -> String {
        let list = format!(
            r#"{{"kind":"ServiceList","apiVersion":"v1","metadata":{{"resourceVersion":"{version}"}},"items":[]}}"#
        );
        format!("200 OK\r\ncontent-length: {}\r\n\r\n{list}", list.len())
    }

    /// A watch that has this line to say and stays open.
    fn line(line: &str) -> String {
        format!("{SILENCE}{:x}\r\n{line}\n\r\n", line.len() + 1)
    }

    fn start(access: &Config) -> mpsc::Receiver<Told> {
        let (told, news) = mpsc::channel(1);
        let watch = Watch::new(Kind::Service, access, told).unwrap();
        let _list_again = watch.start::<Service>(watcher::Config::default(), api::service::convert);
        news
    }

    async fn next(news: &mut mpsc::Receiver<Told>) -> String {
        // Longer than anything that is waited for on a paused clock.
        let told = time::timeout(SILENCE_MAX * 3, news.recv()).await;
        let (_, news) = told.expect("it says something").expect("the watch goes on");
        format!("{news:?}")
    }

    /// Lists nothing, and has nothing to tell.
    fn quiet(request: &str) -> String {
        match is_watch(request) {
            true => SILENCE.to_owned(),
            false => empty_list(7),
        }
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_and_asked_again() {
        let mut news = start(&server(quiet).await);
        assert_eq!(next(&mut news).await, "ListBegins");
        assert_eq!(next(&mut news).await, "ListEnds");

        time::pause();
        let before = Instant::now();
        let failed = next(&mut news).await;
        let silent = before.elapsed();
        time::resume();

        assert!(failed.contains("timed out"), "{failed}");
        assert!(
            silent >= SILENCE_MAX && silent < SILENCE_MAX * 2,
            "{silent:?}"
        );
        assert_eq!(next(&mut news).await, "Answered");
    }

    #[tokio::test]
    async fn a_server_that_has_forgotten_where_we_were_is_asked_for_a_new_list() {
        let as_an_event = line(TOO_OLD);
        let as_a_status = format!(
            "410 Gone\r\ncontent-length: {}\r\n\r\n{STATUS_410}",
            STATUS_410.len()
        );
        for too_old in [as_an_event, as_a_status] {
            let server = server(move |request| {
                if is_watch(request) {
                    too_old.clone()
                } else {
                    empty_list(7)
                }
            });
            let mut news = start(&server.await);
            for _ in 0..2 {
                assert_eq!(next(&mut news).await, "ListBegins");
                assert_eq!(next(&mut news).await, "ListEnds");
            }
        }
    }

    /// Restored from a backup, a server says nothing to a watch from a later version.
    #[tokio::test]
    async fn a_server_that_went_back_in_time_is_found_out_when_the_watch_goes_on() {
        let watches = AtomicU32::new(0);
        let server = server(move |request| match is_watch(request) {
            true if watches.fetch_add(1, Ordering::Relaxed) == 0 => {
                format!("{SILENCE}0\r\n\r\n")
            }
            true => SILENCE.to_owned(),
            false if watches.load(Ordering::Relaxed) == 0 => empty_list(7),
            false => empty_list(3),
        });
        let mut news = start(&server.await);

        for expected in [
            "ListBegins",
            "ListEnds",
            "WentBack",
            "ListBegins",
            "ListEnds",
        ] {
            assert_eq!(next(&mut news).await, expected);
        }
    }

    #[tokio::test]
    async fn a_watch_that_went_its_time_is_not_looked_into() {
        time::pause();
        let mut resumes = Resumes::new(300);
        resumes.asked(7);
        time::advance(Duration::from_secs(300)).await;
        resumes.asked(8);
        assert_eq!(resumes.due, None);

        time::advance(Duration::from_secs(299)).await;
        resumes.asked(9);
        assert_eq!((resumes.due, resumes.version), (Some(Instant::now()), 9));
    }

    #[test]
    fn the_version_is_that_of_a_watch() {
        for (uri, expected) in [
            (
                "/api/v1/services?&watch=true&timeoutSeconds=300&resourceVersion=12",
                Some(12),
            ),
            ("/api/v1/services?&limit=500&resourceVersion=12", None),
            ("/api/v1/services?&watch=true", None),
            ("/api/v1/services", None),
        ] {
            assert_eq!(version_watched(&uri.parse().unwrap()), expected, "{uri}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_too_busy_is_told_of_at_its_first_refusal() {
        for status in ["429 Too Many Requests", "503 Service Unavailable"] {
            let asked = Arc::new(AtomicU32::new(0));
            let asked_too = Arc::clone(&asked);
            let server = server(move |_| {
                asked_too.fetch_add(1, Ordering::Relaxed);
                format!("{status}\r\ncontent-length: 0\r\n\r\n")
            });
            let mut news = start(&server.await);

            assert_eq!(next(&mut news).await, "ListBegins");
            let failed = next(&mut news).await;
            assert!(failed.starts_with("Failed("), "{failed}");
            assert_eq!(asked.load(Ordering::Relaxed), 1, "{status}");
        }
    }

    /// What the fold makes of it is in `fold.rs`: one problem.
    #[tokio::test]
    async fn an_hour_without_a_server_is_only_failures_and_then_the_watch_goes_on() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (access, at) = (access(&listener), listener.local_addr().unwrap());
        let running = task::spawn(serve(listener, quiet));
        let mut news = start(&access);
        assert_eq!(next(&mut news).await, "ListBegins");
        assert_eq!(next(&mut news).await, "ListEnds");

        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        time::pause();
        let begun = Instant::now();
        let mut failures = 0;
        while begun.elapsed() < Duration::from_secs(3600) {
            let told = next(&mut news).await;
            assert!(told.starts_with("Failed("), "{told}");
            failures += 1;
        }
        // Between 30 s and 60 s lie between two tries.
        assert!((60..=130).contains(&failures), "{failures}");

        let listener = TcpListener::bind(at).await.unwrap();
        task::spawn(serve(listener, quiet));
        let mut told = next(&mut news).await;
        while told.starts_with("Failed(") && begun.elapsed() < Duration::from_secs(7200) {
            told = next(&mut news).await;
        }
        assert_eq!(told, "Answered");
    }

    #[tokio::test]
    async fn a_server_that_refuses_is_asked_ever_more_seldom() {
        let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", closed.local_addr().unwrap());
        drop(closed);
        let mut news = start(&Config::new(url.parse().unwrap()));

        time::pause();
        let before = Instant::now();
        for _ in 0..8 {
            assert_eq!(next(&mut news).await, "ListBegins");
            let failed = next(&mut news).await;
            assert!(failed.contains("onnect"), "{failed}");
        }

        // Doubling from 0.8 s to 30 s, and up to as long again at random.
        let took = before.elapsed().as_secs();
        assert!((75..=170).contains(&took), "{took} s");
    }
}
