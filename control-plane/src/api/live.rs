//! Keeps one current view per window and hands it to everybody.
//!
//! In: the graph, the circuits. Out: [`Live::view`] for single requests and [`Live::subscribe`] for event streams. A view is
//! computed on the blocking pool, at most once per [`AGE_MAX`] and window, and only while somebody looks. The
//! circuits likewise: [`Live::circuits`], [`Live::follow_circuits`].
//!
//! Invariant: versions of a window grow; the same version means the same content. They begin at the clock's
//! milliseconds, so that a client that outlives a restart of this program never takes a new version for an old.
//! Subscribers do not queue: each compares the newest view with the one *it* sent last, so a slow client gets
//! fewer and larger diffs, never a gap and never a growing buffer.

mod board;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use super::seats::{Seat, Seats};
use crate::circuits::Document;
use crate::graph::circuit::Standings;
use crate::graph::{Mesh, Timestamp, View, Window};
use crate::ingest::Ingest;
use board::Board;

/// How long a browser waits before it opens a broken stream again.
pub const RETRY: Duration = Duration::from_secs(1);

/// A view older than this is computed anew for whoever asks: half of the second that reports take.
pub const AGE_MAX: Duration = Duration::from_millis(500);

/// How often views with subscribers are computed. Longer windows move slowly and cost more.
const fn period(window: Window) -> Duration {
    match window {
        Window::TenSeconds | Window::Minute => Duration::from_secs(1),
        Window::FiveMinutes => Duration::from_secs(2),
        Window::Hour => Duration::from_secs(5),
    }
}

/// The current views.
pub struct Live {
    ingest: Ingest,
    mesh: Arc<dyn Mesh>,
    windows: [Published; 4],
    board: Board,
    seats: Seats,
    shutdown: CancellationToken,
}

struct Published {
    view: watch::Sender<Arc<View>>,
    /// Held while a view is computed, so that a crowd of requests computes one.
    computing: Mutex<()>,
}

/// An open event stream's end of the channel.
pub struct Followed<T> {
    /// The newest one; changes when its content does.
    pub newest: watch::Receiver<Arc<T>>,
    /// Ends the stream when the program does.
    pub shutdown: CancellationToken,
    _seat: Seat,
}

impl Live {
    /// Nobody looks yet.
    #[must_use]
    pub fn new(ingest: Ingest, mesh: Arc<dyn Mesh>, shutdown: CancellationToken) -> Self {
        let graph = ingest.graph();
        let windows = Window::ALL.map(|window| Published {
            view: watch::Sender::new(Arc::new(
                graph.with(|graph| graph.view(window, Timestamp::default(), &[])),
            )),
            computing: Mutex::new(()),
        });
        let board = Board::new(ingest.clone());
        Self { ingest, mesh, windows, board, seats: Seats::default(), shutdown }
    }

    /// The graph in `window`, at most [`AGE_MAX`] old.
    pub async fn view(&self, window: Window) -> Arc<View> {
        let published = self.published(window);
        if let Some(view) = fresh(published) {
            return view;
        }
        let _alone = published.computing.lock().await;
        if let Some(view) = fresh(published) {
            return view;
        }
        let (ingest, mesh) = (self.ingest.clone(), self.mesh.clone());
        let computed = tokio::task::spawn_blocking(move || {
            let proxies = mesh.proxies();
            let standings = ingest.circuits().with(|circuits| circuits.standings());
            let mut view = ingest.graph().with(|graph| graph.view(window, Timestamp::now(), &proxies));
            Standings::new(&standings).mark_view(&mut view);
            let missing = mesh.uninjected();
            for node in &mut view.nodes {
                // `workload:shop/orders` or `unmeshed:shop/orders`: both are told of their pods.
                let workload = node.id.split_once(':').map_or("", |(_, workload)| workload);
                node.uninjected = missing.get(workload).copied().unwrap_or(0);
            }
            view
        });
        // Only a panic or the end of the runtime fails it; the last good view is the best answer to both.
        let Ok(view) = computed.await else { return published.view.borrow().clone() };
        publish(&published.view, view)
    }

    /// A seat at the stream of `window`; `None` when all are taken.
    #[must_use]
    pub fn subscribe(&self, window: Window) -> Option<Followed<View>> {
        let seat = self.seats.take()?;
        let newest = self.published(window).view.subscribe();
        Some(Followed { newest, shutdown: self.shutdown.clone(), _seat: seat })
    }

    /// Every circuit, at most a second old.
    pub async fn circuits(&self) -> Arc<Document> {
        self.board.current().await
    }

    /// A seat at the stream of circuits; `None` when all are taken.
    #[must_use]
    pub fn follow_circuits(&self) -> Option<Followed<Document>> {
        let seat = self.seats.take()?;
        Some(Followed { newest: self.board.follow(), shutdown: self.shutdown.clone(), _seat: seat })
    }

    /// Number of open event streams.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.seats.taken()
    }

    /// Keeps what has subscribers current until the program ends.
    pub async fn run(&self) {
        let keep = |window: Window| async move {
            let mut ticks = tokio::time::interval(period(window));
            ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if self.published(window).view.receiver_count() > 0 {
                    self.view(window).await;
                }
            }
        };
        let [ten_seconds, minute, five_minutes, hour] = Window::ALL.map(keep);
        tokio::select! {
            () = self.shutdown.cancelled() => {}
            _ = async { tokio::join!(ten_seconds, minute, five_minutes, hour, self.board.run()) } => {}
        }
    }

    fn published(&self, window: Window) -> &Published {
        &self.windows[window as usize]
    }
}

fn fresh(published: &Published) -> Option<Arc<View>> {
    let view = published.view.borrow();
    is_fresh(view.at, Timestamp::now()).then(|| view.clone())
}

/// A view from the future is one that a clock set back has left: it would be the newest until its time comes again.
fn is_fresh(made: Timestamp, now: Timestamp) -> bool {
    is_younger(made, now, AGE_MAX)
}

fn is_younger(made: Timestamp, now: Timestamp, age: Duration) -> bool {
    made <= now && now.since(made) < age
}

/// Numbers `view` and makes it the current one; wakes subscribers only if its content changed.
fn publish(sender: &watch::Sender<Arc<View>>, mut view: View) -> Arc<View> {
    let mut published = None;
    sender.send_if_modified(|current| {
        let first = current.version == 0;
        let changed = first || !view.same_content(current);
        view.version = match changed {
            true => (current.version + 1).max(view.at.millis()),
            false => current.version,
        };
        *current = Arc::new(view);
        published = Some(current.clone());
        changed
    });
    published.unwrap_or_else(|| sender.borrow().clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_is_fresh_for_a_moment_and_never_from_the_future() {
        let now = Timestamp::from_millis(1_795_219_200_000);
        assert!(is_fresh(now, now) && is_fresh(now.minus(AGE_MAX / 2), now));
        assert!(!is_fresh(now.minus(AGE_MAX), now), "too old");
        assert!(!is_fresh(now.plus(Duration::from_secs(3_600)), now), "the clock was set back");
        assert!(!is_fresh(Timestamp::default(), now), "none was made yet");
    }
}
