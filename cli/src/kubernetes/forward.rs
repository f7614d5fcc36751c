//! A byte stream to a port of a pod, by way of the API server: what `kubectl port-forward` does.
//!
//! In: a pod and a port. Out: streams, each over a connection of its own, so that one that breaks takes no other along. What the
//! kubelet says when it cannot reach the port comes beside the stream, later, and is kept for whoever reads nothing.

use std::fmt;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Trouble, chain};

/// How long the API server and the kubelet may take to make the connection.
const CONNECT: Duration = Duration::from_secs(10);
/// How long the kubelet's complaint may come after the stream's end.
const COMPLAINT: Duration = Duration::from_millis(500);

/// A port of a pod.
#[derive(Clone)]
pub(crate) struct Forward {
    client: Client,
    namespace: String,
    pod: String,
    port: u16,
}

impl fmt::Debug for Forward {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { client: _, namespace, pod, port } = self;
        write!(formatter, "{namespace}/{pod}:{port}")
    }
}

/// A connection through a cluster.
pub(crate) struct Forwarded {
    pub(crate) stream: Box<dyn Stream>,
    complaint: BoxFuture<'static, Option<String>>,
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("the API server does not forward to {to}: {why}")]
    Refused { to: String, why: String },
    #[error("no way to {to} within {} s", CONNECT.as_secs())]
    Timeout { to: String },
}

impl Forward {
    pub(crate) fn new(client: Client, namespace: &str, pod: &str, port: u16) -> Self {
        Self { client, namespace: namespace.into(), pod: pod.into(), port }
    }

    /// `pod weft-system/weft-control-plane-6d4`, for people.
    pub(crate) fn words(&self) -> String {
        format!("pod {}/{}", self.namespace, self.pod)
    }

    pub(crate) fn pod(&self) -> (&str, &str) {
        (&self.namespace, &self.pod)
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// What the far end believes to be called.
    pub(crate) fn authority(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// A new connection.
    pub(crate) async fn connect(&self) -> Result<Forwarded, Error> {
        let to = || format!("{} port {}", self.words(), self.port);
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let ports = [self.port];
        let connecting = pods.portforward(&self.pod, &ports);
        let forwarder = match tokio::time::timeout(CONNECT, connecting).await {
            Ok(Ok(forwarder)) => Ok(forwarder),
            Ok(Err(error)) => Err(Error::Refused { to: to(), why: refusal(error) }),
            Err(_) => Err(Error::Timeout { to: to() }),
        };
        let mut forwarder = forwarder?;
        let gone = || Error::Refused { to: to(), why: "the forwarder lost the port".into() };
        let stream = forwarder.take_stream(self.port).ok_or_else(gone)?;
        let complaint = forwarder.take_error(self.port).ok_or_else(gone)?;
        Ok(Forwarded { stream: Box::new(stream), complaint: complaint.boxed() })
    }
}

impl Forwarded {
    /// The stream, and what will be said if it is of no use.
    pub(crate) fn split(self) -> (Box<dyn Stream>, Complaint) {
        (self.stream, Complaint(self.complaint))
    }
}

/// What the kubelet has to say.
pub(crate) struct Complaint(BoxFuture<'static, Option<String>>);

impl Complaint {
    /// In words, if it says anything.
    pub(crate) async fn words(self) -> Option<String> {
        let words = tokio::time::timeout(COMPLAINT, self.0).await.ok().flatten()?;
        Some(words.trim().chars().filter(|letter| !letter.is_control()).take(300).collect())
    }
}

/// An upgrade that was refused has no words of its own but a status.
fn refusal(error: kube::Error) -> String {
    match &error {
        kube::Error::UpgradeConnection(refused) => {
            let words = chain(refused);
            match words.contains("403") {
                true => format!("{words}; you need the right to create pods/portforward"),
                false => words,
            }
        }
        _ => Trouble::from(error).to_string(),
    }
}
