//! `/api/graph`, its event stream, and `/api/edges/{id}`.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;
use serde::Deserialize;

use super::live::{Followed, RETRY};
use super::{Api, Problem, stream_of, uncached};
use crate::graph::circuit::Standings;
use crate::graph::{Detail, Diff, EdgeId, Timestamp, View, Window};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Parameters {
    window: Option<String>,
    namespace: Option<String>,
    idle: Option<String>,
}

/// Which part of the graph is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selection {
    window: Window,
    namespace: Option<String>,
    idle: bool,
}

impl Selection {
    fn read(query: Result<Query<Parameters>, QueryRejection>) -> Result<Self, Problem> {
        let Query(parameters) = query.map_err(|rejection| {
            let detail = rejection.body_text();
            Problem::bad_parameter(detail).allowing(["window", "namespace", "idle"])
        })?;
        Ok(Self {
            window: window(parameters.window.as_deref())?,
            namespace: parameters.namespace.filter(|namespace| !namespace.is_empty()),
            idle: match parameters.idle.as_deref() {
                None | Some("true") => true,
                Some("false") => false,
                Some(other) => {
                    let shown: String = other.chars().take(40).collect();
                    let problem = Problem::bad_parameter(format!("idle={shown} is neither true nor false"));
                    return Err(problem.allowing(["true", "false"]));
                }
            },
        })
    }

    fn of(&self, view: &Arc<View>) -> Arc<View> {
        if self.namespace.is_none() && self.idle {
            return view.clone();
        }
        Arc::new(view.filtered(self.namespace.as_deref(), self.idle))
    }
}

/// The window that is asked for; a minute when none is.
pub(super) fn window(text: Option<&str>) -> Result<Window, Problem> {
    let allowed = Window::ALL.map(Window::word);
    text.map_or(Ok(Window::Minute), str::parse)
        .map_err(|error| Problem::bad_parameter(error.to_string()).allowing(allowed))
}

/// A whole view.
pub(super) async fn whole(
    State(api): State<Api>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let selection = Selection::read(query)?;
    let view = selection.of(&api.live.view(selection.window).await);
    Ok(uncached(Json(&*view)))
}

/// One edge with everything that is known of it.
pub(super) async fn edge(
    State(api): State<Api>,
    Path(id): Path<String>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let selection = Selection::read(query)?;
    let unknown = || {
        let shown: String = id.chars().take(64).collect();
        Problem::not_found(format!("there is no edge {shown:?}; it may have been idle for an hour"))
    };
    let id: EdgeId = id.parse().map_err(|_| unknown())?;
    let ingest = api.ingest.clone();
    let detail = tokio::task::spawn_blocking(move || {
        let standings = ingest.circuits().with(|circuits| circuits.standings());
        let mut detail = ingest.graph().with(|graph| graph.detail(id, selection.window, Timestamp::now()))?;
        Standings::new(&standings).mark(&mut detail.edge);
        Some(detail)
    });
    let detail: Option<Detail> =
        detail.await.map_err(|_| Problem::unavailable("the detail could not be computed".to_owned()))?;
    Ok(uncached(Json(detail.ok_or_else(unknown)?)))
}

/// A snapshot, then what changes.
pub(super) async fn events(
    State(api): State<Api>,
    query: Result<Query<Parameters>, QueryRejection>,
) -> Result<Response, Problem> {
    let selection = Selection::read(query)?;
    let subscription = api.live.subscribe(selection.window).ok_or_else(|| {
        Problem::unavailable("all event streams are taken; close a dashboard or poll /api/graph".to_owned())
    })?;
    // Computed before the first event, so that a stream never begins with an old picture.
    api.live.view(selection.window).await;
    let follower = Follower { selection, subscription, sent: None };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(stream_of(events))
}

/// One client of the event stream and the view it has.
struct Follower {
    selection: Selection,
    subscription: Followed<View>,
    sent: Option<Arc<View>>,
}

impl Follower {
    /// The next event; `None` when the program ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.sent.is_some() {
                tokio::select! {
                    () = self.subscription.shutdown.cancelled() => return None,
                    changed = self.subscription.newest.changed() => changed.ok()?,
                }
            }
            let view = self.selection.of(&self.subscription.newest.borrow_and_update().clone());
            let event = match &self.sent {
                None => Some(Event::default().event("snapshot").retry(RETRY).json_data(&*view)),
                // A change outside the selection is none to this client.
                Some(sent) if view.same_content(sent) => None,
                Some(sent) => Some(Event::default().event("diff").json_data(Diff::between(sent, &view))),
            };
            let Some(event) = event else { continue };
            let id = view.version.to_string();
            self.sent = Some(view);
            match event {
                Ok(event) => return Some(event.id(id)),
                Err(error) => tracing::error!(%error, "an event could not be written as JSON"),
            }
        }
    }
}
