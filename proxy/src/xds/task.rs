//! The sockets and the clock of the client.
//!
//! In: a [`Client`] and the address of the control plane. Out: a stream kept up for as long as the process lives.
//! Runs on the admin thread. Invariant: whatever the stream does, wishes from workers are taken at once.
//! With an identity, streams wait for its first certificate, and none outlives the certificate it was opened with: the next
//! is opened before the last is ended, so that nobody sees this sidecar gone.
//! Surprise: [`Task::run`] ends the stream in an orderly way when told to stop, which withdraws this sidecar's
//! registrations at once instead of after the grace time for lost streams. Known config is served on.

use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Endpoint;
use weft_wire::node::NodeMetadata;

use crate::connect::{ConnectOptions, Dialer};
use crate::identity::Identity;

use super::backoff::Backoff;
use super::client::{Client, Input, Now, Output};
use super::directory::{Directory, Interest};

/// Largest response taken: some 50,000 endpoints in one assignment.
const MESSAGE_MAX: usize = 16 * 1024 * 1024;
/// Requests handed to the transport ahead of time; more would only hide that the server does not read.
const REQUESTS_AHEAD: usize = 4;
/// How long the control plane may take to accept a connection, and to answer the stream's headers.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A silent connection is probed this often …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
/// … and given up when the probe is not answered within this time.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream stays beside the one that replaces it.
const OVERLAP: Duration = Duration::from_secs(1);
/// How long to wait for the server's half of an orderly end.
const GOODBYE: Duration = Duration::from_secs(1);

/// The client's task. Does nothing until [`Task::run`] is polled.
#[derive(Debug)]
pub struct Task {
    directory: Arc<Directory>,
    client: Client,
    endpoint: Endpoint,
    dialer: Dialer,
    interests: mpsc::Receiver<Interest>,
    node: Option<watch::Receiver<NodeMetadata>>,
    backoff: Backoff,
    identity: Option<Arc<Identity>>,
    certificates: Option<watch::Receiver<u64>>,
    /// A stream of the last certificate, kept until there is one of this.
    last: Option<Stream>,
}

type Stream = (mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>);

/// Why a stream or attempt is over.
enum Ended {
    /// Told to stop.
    Stop,
    /// The node changed: open another stream at once.
    Renew,
    /// The certificate was renewed: open another stream at once, then end this one.
    Rekeyed(Box<Stream>),
    /// By the server, the network or a deadline.
    Lost(String),
}

/// Errors and their causes in one line.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl Task {
    pub(super) fn new(
        directory: Arc<Directory>,
        client: Client,
        control_plane: http::Uri,
        interests: mpsc::Receiver<Interest>,
        identity: Option<Arc<Identity>>,
    ) -> Self {
        let certificates = identity.as_deref().map(Identity::certificates);
        let endpoint = Endpoint::from(control_plane)
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let dialer = Dialer::new(ConnectOptions { timeout: CONNECT_TIMEOUT, mark: None });
        Self {
            directory,
            client,
            endpoint,
            dialer,
            interests,
            node: None,
            backoff: Backoff::default(),
            identity,
            certificates,
            last: None,
        }
    }

    /// Opens streams with another dialer, for instance one that marks its sockets.
    #[must_use]
    pub fn dial(mut self, dialer: Dialer) -> Self {
        self.dialer = dialer;
        self
    }

    /// Follows changes of what the node says of itself: each opens a new stream.
    #[must_use]
    pub fn follow(mut self, node: watch::Receiver<NodeMetadata>) -> Self {
        self.node = Some(node);
        self
    }

    /// Keeps a stream up until `stop` is ready, then ends it in an orderly way.
    pub async fn run(mut self, stop: impl Future<Output = ()>) {
        let mut stop = pin!(stop);
        if let Some(identity) = self.identity.clone() {
            let known = pin!(identity.known());
            if self.meanwhile(known, stop.as_mut()).await.is_none() {
                return;
            }
        }
        loop {
            match self.stream(stop.as_mut()).await {
                Ended::Stop => return,
                Ended::Rekeyed(stream) => {
                    tracing::debug!("another certificate: opening another stream");
                    // Not `Down`: until the next is up, this one is.
                    self.last = Some(*stream);
                }
                Ended::Renew => {
                    self.step(Input::Down { reason: "the node changed".into() });
                }
                Ended::Lost(reason) => {
                    tracing::info!(reason, "no stream to the control plane");
                    self.step(Input::Down { reason });
                    let wait = self.backoff.next(fastrand::f64());
                    let sleep = pin!(tokio::time::sleep(wait));
                    if self.meanwhile(sleep, stop.as_mut()).await.is_none() {
                        return;
                    }
                }
            }
        }
    }

    /// Opens a stream and serves it to its end.
    async fn stream<S: Future<Output = ()>>(&mut self, mut stop: Pin<&mut S>) -> Ended {
        let (endpoint, dialer) = (self.endpoint.clone(), self.dialer.clone());
        let (sender, requests) = mpsc::channel(REQUESTS_AHEAD);
        if let Some(certificates) = &mut self.certificates {
            certificates.mark_unchanged();
        }
        let open = async move {
            let channel = endpoint.connect_with_connector(dialer).await.map_err(|error| describe(&error))?;
            let mut service =
                AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
            let stream = service.delta_aggregated_resources(ReceiverStream::new(requests)).await;
            stream.map(tonic::Response::into_inner).map_err(|status| describe_status(&status))
        };
        // The first request goes ahead: a server may answer the headers only after it has seen one.
        self.renew_node();
        self.step(Input::Opening);
        if let Some(request) = self.client.next_request() {
            drop(sender.try_send(request));
        }
        let opening = pin!(tokio::time::timeout(2 * CONNECT_TIMEOUT, open));
        let responses = match self.meanwhile(opening, stop.as_mut()).await {
            None => return Ended::Stop,
            Some(Err(_)) => return Ended::Lost("the control plane does not answer".into()),
            Some(Ok(Err(reason))) => return Ended::Lost(reason),
            Some(Ok(Ok(responses))) => responses,
        };
        self.step(Input::Up);
        if let Some(last) = self.last.take() {
            // The server may still be reading who we are; until it has, the last stream says it.
            tokio::spawn(async move {
                tokio::time::sleep(OVERLAP).await;
                drop(last);
            });
        }
        tracing::info!(control_plane = %self.endpoint.uri(), "connected to the control plane");
        self.serve(sender, responses, stop).await
    }

    async fn serve<S: Future<Output = ()>>(
        &mut self,
        sender: mpsc::Sender<DeltaDiscoveryRequest>,
        mut responses: Streaming<DeltaDiscoveryResponse>,
        mut stop: Pin<&mut S>,
    ) -> Ended {
        let ended = loop {
            let deadline = self.until_deadline();
            tokio::select! {
                () = stop.as_mut() => break Some(Ended::Stop),
                () = changed(&mut self.node) => break Some(Ended::Renew),
                () = changed(&mut self.certificates) => break None,
                permit = sender.reserve(), if self.client.has_request() => match permit {
                    Ok(permit) => if let Some(request) = self.client.next_request() {
                        permit.send(request);
                    },
                    Err(_) => break Some(Ended::Lost("the request stream was closed".into())),
                },
                response = responses.message(), if self.client.takes_responses() => match response {
                    Ok(Some(response)) => {
                        self.backoff.reset();
                        self.step(Input::Response(Box::new(response)));
                    }
                    Ok(None) => break Some(Ended::Lost("the control plane closed the stream".into())),
                    Err(status) => break Some(Ended::Lost(describe_status(&status))),
                },
                Some(interest) = self.interests.recv() => self.step(Input::Want(interest)),
                () = tokio::time::sleep(deadline) => self.step(Input::Tick),
            }
        };
        match ended {
            None => Ended::Rekeyed(Box::new((sender, responses))),
            Some(Ended::Lost(reason)) => Ended::Lost(reason),
            Some(ended) => {
                goodbye(sender, responses).await;
                ended
            }
        }
    }

    /// Waits for a future and takes wishes meanwhile; `None` = told to stop.
    async fn meanwhile<T, F: Future<Output = T>, S: Future<Output = ()>>(
        &mut self,
        mut future: Pin<&mut F>,
        mut stop: Pin<&mut S>,
    ) -> Option<T> {
        loop {
            let deadline = self.until_deadline();
            tokio::select! {
                () = stop.as_mut() => return None,
                outcome = future.as_mut() => return Some(outcome),
                Some(interest) = self.interests.recv() => self.step(Input::Want(interest)),
                () = tokio::time::sleep(deadline) => self.step(Input::Tick),
            }
        }
    }

    fn renew_node(&mut self) {
        if let Some(node) = &mut self.node {
            self.client.set_node(&node.borrow_and_update());
        }
    }

    fn until_deadline(&self) -> Duration {
        // Not quite nothing, so that a deadline in the past cannot become a busy loop.
        self.client.deadline().saturating_sub(self.directory.age()).max(Duration::from_millis(1))
    }

    fn step(&mut self, input: Input) {
        let now = Now { age: self.directory.age(), wall: SystemTime::now() };
        let Output { publish, wake, trust, app_ended } = self.client.step(input, now);
        if let (Some(bundle), Some(identity)) = (trust, &self.identity) {
            identity.trust(bundle);
        }
        if app_ended {
            self.directory.set_app_ended();
        }
        if let Some(map) = publish {
            self.directory.publish(map);
        }
        for waiter in wake {
            // Whoever has given up meanwhile is not missed.
            let _given_up = waiter.send(());
        }
        self.directory.set_status(self.client.status());
    }
}

/// Ready when the node has changed; never when it cannot.
async fn changed<T>(value: &mut Option<watch::Receiver<T>>) {
    let changed = match value {
        Some(value) => value.changed().await.is_ok(),
        None => false,
    };
    if !changed {
        pending().await
    }
}

/// Closes our half and waits a moment for theirs, so that the server sees an end and not a loss.
async fn goodbye(
    sender: mpsc::Sender<DeltaDiscoveryRequest>,
    mut responses: Streaming<DeltaDiscoveryResponse>,
) {
    drop(sender);
    let drained = async { while let Ok(Some(_)) = responses.message().await {} };
    drop(tokio::time::timeout(GOODBYE, drained).await);
}

fn describe_status(status: &tonic::Status) -> String {
    let detail = status.message();
    match std::error::Error::source(status) {
        Some(cause) => format!("{:?}: {detail}: {}", status.code(), describe(cause)),
        None => format!("{:?}: {detail}", status.code()),
    }
}

#[cfg(test)]
mod tests;
