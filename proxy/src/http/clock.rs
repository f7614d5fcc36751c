//! How long something may take, counted from the end of a request's body.
//!
//! In: a duration. Out: the moment it is over. Invariants: a request without a timeout has no clock; a clock that
//! [rests](Clock::rest) is not over. Surprises: time runs from when the body has ended, because an upload's length is the
//! caller's affair; until then the whole time is left. A timer is made only when somebody has to wait, and of two clocks
//! that run at once the one that ends later rests, because a timer is the dearest part of a timeout.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::body::Upload;

/// One timeout.
#[derive(Debug)]
pub struct Clock {
    after: Duration,
    /// The body to wait for, if there is one.
    upload: Option<Rc<Upload>>,
    /// When it is over; `None` until the body has ended.
    over_at: Cell<Option<Instant>>,
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
    resting: Cell<bool>,
}

impl Clock {
    /// A timeout that begins when `upload` ends, or at `now`.
    #[must_use]
    pub fn new(after: Duration, upload: Option<Rc<Upload>>, now: Instant) -> Self {
        let begins = upload.as_ref().is_none_or(|upload| upload.ended.get());
        Self {
            after,
            upload,
            over_at: Cell::new(begins.then(|| now + after)),
            timer: RefCell::new(None),
            resting: Cell::new(false),
        }
    }

    /// Completes when the time is over.
    pub fn poll_over(&self, context: &mut Context<'_>) -> Poll<()> {
        // A clock that rests still notices when it begins.
        let over_at = match self.over_at.get() {
            Some(over_at) => over_at,
            None => {
                if let Some(upload) = &self.upload {
                    ready!(upload.poll_ended(context));
                }
                let over_at = Instant::now() + self.after;
                self.over_at.set(Some(over_at));
                over_at
            }
        };
        if self.resting.get() {
            return Poll::Pending;
        }
        let mut timer = self.timer.borrow_mut();
        timer.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(over_at))).as_mut().poll(context)
    }

    /// What is left of it at `now`.
    #[must_use]
    pub fn left(&self, now: Instant) -> Duration {
        match self.over_at.get() {
            Some(over_at) => over_at.saturating_duration_since(now),
            None => self.after,
        }
    }

    /// Until told otherwise another clock, which is over sooner, is looked at in its place. It must still be
    /// [polled](Self::poll_over), and so must this one when the other is taken away.
    pub fn rest(&self, rests: bool) {
        self.resting.set(rests);
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_runs_from_the_end_of_the_body() {
        let upload = Rc::new(Upload::default());
        let clock = Clock::new(Duration::from_secs(2), Some(Rc::clone(&upload)), Instant::now());
        let begun = Instant::now();
        assert!(is_pending(&clock).await);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(clock.left(Instant::now()), Duration::from_secs(2));
        upload.end();
        poll_fn(|context| clock.poll_over(context)).await;
        assert_eq!(begun.elapsed().as_secs(), 7);
        assert_eq!(clock.left(Instant::now()), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_rests_is_not_over_until_it_is_looked_at_again() {
        let clock = Clock::new(Duration::from_secs(2), None, Instant::now());
        clock.rest(true);
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert!(is_pending(&clock).await);
        assert_eq!(clock.left(Instant::now()), Duration::ZERO, "time goes on");
        clock.rest(false);
        assert!(!is_pending(&clock).await);
    }

    #[tokio::test(start_paused = true)]
    async fn time_runs_while_a_clock_rests() {
        let upload = Rc::new(Upload::default());
        let clock = Clock::new(Duration::from_secs(2), Some(Rc::clone(&upload)), Instant::now());
        clock.rest(true);
        assert!(is_pending(&clock).await);
        upload.end();
        assert!(is_pending(&clock).await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        clock.rest(false);
        let begun = Instant::now();
        poll_fn(|context| clock.poll_over(context)).await;
        assert_eq!(begun.elapsed().as_secs(), 1);
    }

    async fn is_pending(clock: &Clock) -> bool {
        poll_fn(|context| Poll::Ready(clock.poll_over(context).is_pending())).await
    }
}
