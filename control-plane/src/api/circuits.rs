//! `/api/circuits` and its event stream.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use axum::response::sse::Event;
use futures_util::stream;

use super::live::{Followed, RETRY};
use super::{Api, Problem, stream_of, uncached};
use crate::circuits::Document;

/// Every circuit.
pub(super) async fn whole(State(api): State<Api>) -> Response {
    uncached(Json(&*api.live.circuits().await))
}

/// Every circuit at once, and again whenever something about them changes.
pub(super) async fn events(State(api): State<Api>) -> Result<Response, Problem> {
    let followed = api.live.follow_circuits().ok_or_else(|| {
        Problem::unavailable(
            "all event streams are taken; close a dashboard or poll /api/circuits".to_owned(),
        )
    })?;
    // Made before the first event, so that a stream never begins with an old picture.
    api.live.circuits().await;
    let follower = Follower { followed, begun: false };
    let events = stream::unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Ok(stream_of(events))
}

/// One client of the event stream.
struct Follower {
    followed: Followed<Document>,
    begun: bool,
}

impl Follower {
    /// The next event; `None` when the program ends.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if self.begun {
                tokio::select! {
                    () = self.followed.shutdown.cancelled() => return None,
                    changed = self.followed.newest.changed() => changed.ok()?,
                }
            }
            let document: Arc<Document> = self.followed.newest.borrow_and_update().clone();
            let event = Event::default().event("circuits").id(document.version.to_string());
            let event = if self.begun { event } else { event.retry(RETRY) };
            self.begun = true;
            match event.json_data(&*document) {
                Ok(event) => return Some(event),
                Err(error) => tracing::error!(%error, "an event could not be written as JSON"),
            }
        }
    }
}
