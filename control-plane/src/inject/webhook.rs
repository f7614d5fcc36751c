//! The webhook: answers the API server about new pods.
//!
//! In: `POST /inject` over TLS, what namespaces say ([`Namespaces`]). Out: AdmissionReviews, by [`super::review`]. Invariants: a
//! body is at most [`BODY_MAX`], an answer takes at most [`ANSWER_TIME_MAX`]; what takes longer is answered with yes and a
//! warning, because the API server would let the pod in without any word. Nothing in a body makes this panic. Surprise: a
//! namespace that the watch has not shown yet is asked for by name, because a pod may be made in the same second.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Request, State};
use axum::response::{IntoResponse as _, Response};
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use k8s_openapi::api::core::v1::Namespace as NamespaceObject;
use kube::api::PartialObjectMeta;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Client};
use prometheus::{Histogram, HistogramOpts, IntCounterVec, Opts, Registry};
use tokio::sync::Semaphore;
use tracing::{debug, info, warn};

use super::review::{Decision, Question, words};
use super::{Namespace, Settings};
use crate::world::Live;

/// The largest question: the API server's own limit of a request is 3 MiB.
pub const BODY_MAX: usize = 4 << 20;

/// How long an answer may take; the webhook configuration gives it 5 s.
pub const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// How long a question may take to arrive.
const ARRIVAL_TIME_MAX: Duration = Duration::from_secs(1);

/// Questions at a time: anybody may ask, and each may become some hundred MB of JSON values.
const PLACES: usize = 4;

/// Where the API server asks.
pub const PATH: &str = "/inject";

/// Longest name of a namespace (RFC 1123).
const NAMESPACE_NAME_MAX: usize = 63;

/// What namespaces say, and what is said of them. Cheap to clone.
#[derive(Clone)]
pub struct Namespaces {
    seen: Store<PartialObjectMeta<NamespaceObject>>,
    live: Live,
    client: Option<Client>,
}

impl Namespaces {
    /// What a watch has seen; others are asked for, if there is somebody to ask. `live` knows their policies.
    #[must_use]
    pub fn new(seen: Store<PartialObjectMeta<NamespaceObject>>, live: Live, client: Option<Client>) -> Self {
        Self { seen, live, client }
    }

    /// What a namespace says; `None` if nobody knows it.
    async fn get(&self, name: &str) -> Option<Namespace> {
        // Whoever asks here need not be the API server, and the name becomes part of a path.
        let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if name.is_empty() || name.len() > NAMESPACE_NAME_MAX || !name.bytes().all(fits) {
            return None;
        }
        let closed = self.live.read().is_closed(name);
        if let Some(seen) = self.seen.get(&ObjectRef::new(name)) {
            return Some(of_object(&seen, closed));
        }
        let api: Api<NamespaceObject> = Api::all(self.client.clone()?);
        match api.get_metadata_opt(name).await {
            Ok(found) => found.as_ref().map(|found| of_object(found, closed)),
            Err(error) => {
                warn!(
                    namespace = name,
                    error = &error as &dyn std::error::Error,
                    "a namespace could not be read"
                );
                None
            }
        }
    }
}

fn of_object(object: &PartialObjectMeta<NamespaceObject>, closed: bool) -> Namespace {
    let metadata = &object.metadata;
    Namespace {
        name: metadata.name.clone().unwrap_or_default(),
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: metadata.annotations.clone().unwrap_or_default(),
        closed,
    }
}

/// Answers. Cheap to clone.
#[derive(Clone)]
pub struct Webhook(Arc<Inner>);

struct Inner {
    places: Semaphore,
    namespaces: Namespaces,
    settings: Settings,
    reviews: IntCounterVec,
    time: Histogram,
}

impl Webhook {
    /// Counts in `registry`.
    #[must_use]
    pub fn new(namespaces: Namespaces, settings: Settings, registry: &Registry) -> Self {
        let reviews = Opts::new(
            "weft_injector_reviews_total",
            "Pods that the webhook was asked about, by what became of them.",
        );
        let reviews = IntCounterVec::new(reviews, &["outcome"]).expect("a valid name");
        let time = HistogramOpts::new(
            "weft_injector_review_duration_seconds",
            "Time until the webhook had answered.",
        );
        let time =
            Histogram::with_opts(time.buckets(vec![0.001, 0.0025, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0]));
        let time = time.expect("a valid name");
        // Registered twice only in tests that share a registry; then they are only not exported twice.
        drop(registry.register(Box::new(reviews.clone())));
        drop(registry.register(Box::new(time.clone())));
        for word in words().chain(["malformed", "late", "busy"]) {
            reviews.with_label_values(&[word]);
        }
        Self(Arc::new(Inner { places: Semaphore::new(PLACES), namespaces, settings, reviews, time }))
    }

    /// What is served over TLS.
    pub fn router(&self) -> Router {
        Router::new()
            .route(PATH, post(answer))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(self.clone())
    }

    async fn decide(&self, question: &Arc<Question>) -> Decision {
        let known = async {
            match &question.pod {
                Some(_) => self.0.namespaces.get(&question.namespace).await,
                None => Some(Namespace::default()),
            }
        };
        let Ok(namespace) = tokio::time::timeout(ANSWER_TIME_MAX, known).await else {
            return Decision { word: "late", ..question.without_namespace() };
        };
        let Some(namespace) = namespace else { return question.without_namespace() };
        let (question, settings) = (Arc::clone(question), self.0.settings.clone());
        // A pod may be megabytes of JSON; whoever else is served here need not wait for it.
        let deciding = tokio::task::spawn_blocking(move || question.decide(&namespace, &settings));
        match deciding.await {
            Ok(decision) => decision,
            // A bug of ours; the pod is let in without a sidecar, and the reconciler will find it.
            Err(error) => {
                tracing::error!(%error, "the injector failed");
                Decision { word: "failed", body: serde_json::Value::Null }
            }
        }
    }
}

async fn answer(State(webhook): State<Webhook>, request: Request) -> Response {
    let begun = Instant::now();
    let count = |word: &str| webhook.0.reviews.with_label_values(&[word]).inc();
    let Ok(Ok(_place)) = tokio::time::timeout(ANSWER_TIME_MAX, webhook.0.places.acquire()).await else {
        count("busy");
        return (StatusCode::SERVICE_UNAVAILABLE, "too many questions at a time\n").into_response();
    };
    let body = match tokio::time::timeout(ARRIVAL_TIME_MAX, Bytes::from_request(request, &())).await {
        Ok(Ok(body)) => body,
        Ok(Err(refusal)) => {
            count("malformed");
            return refusal.into_response();
        }
        Err(_) => {
            count("malformed");
            return (StatusCode::REQUEST_TIMEOUT, "the question does not arrive\n").into_response();
        }
    };
    let question = match Question::read(&body) {
        Ok(question) => Arc::new(question),
        Err(error) => {
            count("malformed");
            debug!(error = &error as &dyn std::error::Error, "a question that cannot be read");
            return (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response();
        }
    };
    let Decision { word, body } = webhook.decide(&question).await;
    count(word);
    webhook.0.time.observe(begun.elapsed().as_secs_f64());
    if question.pod.is_some() && word != "not_asked" {
        info!(namespace = question.namespace, outcome = word, "pod reviewed");
    }
    if body.is_null() {
        return (StatusCode::INTERNAL_SERVER_ERROR, "the injector failed\n").into_response();
    }
    Json(body).into_response()
}
