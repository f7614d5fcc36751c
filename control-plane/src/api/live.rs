//! Keeps one current view per window and hands it to everybody.
//!
//! In: the graph. Out: [`Live::view`] for single requests and [`Live::subscribe`] for event streams. A view is
//! computed on the blocking pool, at most once per [`AGE_MAX`] and window, and only while somebody looks.
//!
//! Invariant: versions of a window grow; the same version means the same content. They begin at the clock's
//! milliseconds, so that a client that outlives a restart of this program never takes a new version for an old.
//! Subscribers do not queue: each compares the newest view with the one *it* sent last, so a slow client gets
//! fewer and larger diffs, never a gap and never a growing buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::{Mutex, watch};
use tokio_util::sync::CancellationToken;

use crate::graph::{Mesh, SharedGraph, Timestamp, View, Window};

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

/// Event streams at a time: a team's dashboards. Each holds one view of the graph.
const SUBSCRIBERS_MAX: usize = 256;

/// The current views.
pub struct Live {
    graph: SharedGraph,
    mesh: Arc<dyn Mesh>,
    windows: [Published; 4],
    subscribers: Arc<AtomicUsize>,
    shutdown: CancellationToken,
}

struct Published {
    view: watch::Sender<Arc<View>>,
    /// Held while a view is computed, so that a crowd of requests computes one.
    computing: Mutex<()>,
}

/// An open event stream's end of the channel.
pub struct Subscription {
    /// The newest view; changes when its content does.
    pub views: watch::Receiver<Arc<View>>,
    /// Ends the stream when the program does.
    pub shutdown: CancellationToken,
    _seat: Seat,
}

/// Counts a subscriber for as long as it lives.
struct Seat(Arc<AtomicUsize>);

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Live {
    /// Nobody looks yet.
    #[must_use]
    pub fn new(graph: SharedGraph, mesh: Arc<dyn Mesh>, shutdown: CancellationToken) -> Self {
        let windows = Window::ALL.map(|window| Published {
            view: watch::Sender::new(Arc::new(
                graph.with(|graph| graph.view(window, Timestamp::default(), &[])),
            )),
            computing: Mutex::new(()),
        });
        Self { graph, mesh, windows, subscribers: Arc::default(), shutdown }
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
        let (graph, mesh) = (self.graph.clone(), self.mesh.clone());
        let computed = tokio::task::spawn_blocking(move || {
            let proxies = mesh.proxies();
            graph.with(|graph| graph.view(window, Timestamp::now(), &proxies))
        });
        // Only a panic or the end of the runtime fails it; the last good view is the best answer to both.
        let Ok(view) = computed.await else { return published.view.borrow().clone() };
        publish(&published.view, view)
    }

    /// A seat at the stream of `window`; `None` when all are taken.
    #[must_use]
    pub fn subscribe(&self, window: Window) -> Option<Subscription> {
        let seat = self.subscribers.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |taken| {
            (taken < SUBSCRIBERS_MAX).then_some(taken + 1)
        });
        seat.ok()?;
        let views = self.published(window).view.subscribe();
        Some(Subscription { views, shutdown: self.shutdown.clone(), _seat: Seat(self.subscribers.clone()) })
    }

    /// Number of open event streams.
    #[must_use]
    pub fn subscribers(&self) -> usize {
        self.subscribers.load(Ordering::Relaxed)
    }

    /// Keeps views with subscribers current until the program ends.
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
            _ = async { tokio::join!(ten_seconds, minute, five_minutes, hour) } => {}
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
    made <= now && now.since(made) < AGE_MAX
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
