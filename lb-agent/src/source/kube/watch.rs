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
                    self.failing = false;
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
        self.failing = false;
        self.tell(news).await
    }

    /// Tells of the failure, and waits before the watcher tries again.
    async fn failed(&mut self, error: &watcher::Error) -> Result<(), NobodyListens> {
        self.answers.mark_unchanged();
        match status_of(error) {
            Some(410) => info!(kind = %self.kind, "the watch is too old to go on; listing again"),
            Some(404) if self.kind == Kind::ServiceCidr => self.tell(News::NoSuchKind).await?,
            _ => {
                self.failing = true;
                self.tell(News::Failed(self.why(error))).await?;
            }
        }
        let pause = self.backoff.next().unwrap_or_default();
        debug!(kind = %self.kind, ?pause, "trying again after a pause");
        time::sleep(pause).await;
        Ok(())
    }

    /// What failed and what to do, in the words that the server, or the lack of one, gives.
    fn why(&self, error: &watcher::Error) -> String {
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
            _ => chain(error.source().unwrap_or(error)),
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
