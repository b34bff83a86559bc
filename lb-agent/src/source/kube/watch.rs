//! One watch of one kind, as kube's watcher keeps it: list, watch, resume, list again when the server
//! has forgotten where we were. What is added here is what the fold wants to know and the watcher
//! does not say: that the server answered again after a failure, which may have nothing to tell.

use std::{error::Error, fmt::Debug, pin::pin, sync::Arc, time::Duration};

use futures_util::StreamExt;
use kube::{
    Api, Client, Config, Resource,
    client::ClientBuilder,
    runtime::{
        utils::Backoff,
        watcher::{self, DefaultBackoff, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::{
    sync::{Notify, mpsc, watch},
    task, time,
};
use tower::util::MapResponseLayer;
use tracing::{debug, info};

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

/// A watch that is not started yet.
pub(super) struct Watch {
    kind: Kind,
    client: Client,
    told: mpsc::Sender<Told>,
    /// Changes with each good answer.
    answers: watch::Receiver<()>,
    list_again: Arc<Notify>,
    backoff: DefaultBackoff,
    failing: bool,
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
        let mut access = access.clone();
        access.connect_timeout = Some(CONNECT_MAX);
        access.read_timeout = Some(SILENCE_MAX);
        access.reset_reader_on_write = true;
        let builder = ClientBuilder::try_from(access)?.with_layer(&MapResponseLayer::new(note));
        Ok(Self {
            kind,
            client: builder.build(),
            told,
            answers,
            list_again: Arc::default(),
            backoff: DefaultBackoff::default(),
            failing: false,
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
        let mut events = pin!(watcher::watcher(api, config.clone()));
        loop {
            tokio::select! {
                Some(event) = events.next() => match event {
                    Ok(event) => self.heard(event, convert).await?,
                    Err(error) => self.failed(&error).await?,
                },
                Ok(()) = self.answers.changed(), if self.failing => {
                    self.recovered();
                    self.tell(News::Answered).await?;
                }
                () = self.list_again.notified() => return Ok(()),
            }
        }
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
            Some(410) => info!(kind = %self.kind, "the watch is too old to go on; listing again"),
            Some(404) if self.kind == Kind::ServiceCidr => self.tell(News::NoSuchKind).await?,
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
            Some(_) => chain(error.source().unwrap_or(error)),
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
    use watcher::Error as Watcher;
    let status = match error {
        Watcher::WatchError(status) => status,
        Watcher::InitialListFailed(kube::Error::Api(status))
        | Watcher::WatchStartFailed(kube::Error::Api(status))
        | Watcher::WatchFailed(kube::Error::Api(status)) => status,
        Watcher::InitialListFailed(_)
        | Watcher::WatchStartFailed(_)
        | Watcher::WatchFailed(_)
        | Watcher::NoResourceVersion => return None,
    };
    Some(status.code)
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
    use std::net::Ipv4Addr;

    use k8s_openapi::api::core::v1::Service;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::{TcpListener, TcpStream},
        time::Instant,
    };

    use super::*;

    const EMPTY_LIST: &str =
        r#"{"kind":"ServiceList","apiVersion":"v1","metadata":{"resourceVersion":"7"},"items":[]}"#;
    const TOO_OLD: &str = r#"{"type":"ERROR","object":{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","reason":"Expired","message":"too old","code":410}}"#;

    /// A server whose lists are empty, and whose watches say this line, if any, and then nothing.
    async fn server(line: &'static str) -> Config {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        task::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                task::spawn(answer(client, line));
            }
        });
        Config::new(url.parse().unwrap())
    }

    async fn answer(mut client: TcpStream, line: &str) {
        let mut request = [0; 4096];
        while let Ok(read @ 1..) = client.read(&mut request).await {
            let is_watch = String::from_utf8_lossy(&request[..read]).contains("watch=true");
            let answer = match (is_watch, line) {
                (false, _) => format!("content-length: {}\r\n\r\n{EMPTY_LIST}", EMPTY_LIST.len()),
                (true, "") => "transfer-encoding: chunked\r\n\r\n".to_owned(),
                (true, line) => {
                    let len = line.len() + 1;
                    format!("transfer-encoding: chunked\r\n\r\n{len:x}\r\n{line}\n\r\n")
                }
            };
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
            client
                .write_all(format!("{head}{answer}").as_bytes())
                .await
                .unwrap();
        }
    }

    fn start(access: &Config) -> mpsc::Receiver<Told> {
        let (told, news) = mpsc::channel(1);
        let watch = Watch::new(Kind::Service, access, told).unwrap();
        let _list_again = watch.start::<Service>(watcher::Config::default(), api::service::convert);
        news
    }

    async fn next(news: &mut mpsc::Receiver<Told>) -> String {
        let (_, news) = news.recv().await.expect("the watch goes on");
        format!("{news:?}")
    }

    #[tokio::test]
    async fn a_silent_server_is_given_up_and_asked_again() {
        let mut news = start(&server("").await);
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
        let mut news = start(&server(TOO_OLD).await);
        for _ in 0..2 {
            assert_eq!(next(&mut news).await, "ListBegins");
            assert_eq!(next(&mut news).await, "ListEnds");
        }
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
