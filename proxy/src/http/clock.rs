//! How long something may take, counted from the end of a request's body.
//!
//! In: a duration. Out: the moment it is over. Invariants: a request without a timeout has no clock; a clock that
//! [rests](Clock::rest) is not over. Surprises: time runs from when the body has ended, because an upload's length is the
//! caller's affair; until then the whole time is left. A timer is the dearest part of a timeout. So one is wound only when
//! somebody has to wait; of two clocks that run at once the one that ends later rests; and whoever needs a timer takes one
//! that ran for somebody else ([`Timers`]) and lets it run on, if it is over no later.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::body::Upload;

/// Timers kept for the next who needs one: as many as a worker has requests with a timeout at once, in most hours. What
/// runs meanwhile wakes a task that has nothing to do, once.
const SPARE_MAX: usize = 128;

/// Timers of one worker that nobody waits for any more. They still run.
#[derive(Debug, Default)]
pub struct Timers(RefCell<Vec<Pin<Box<Sleep>>>>);

impl Timers {
    /// A timer that is over at `over_at`, or before: then it must be wound up again.
    fn take(&self, over_at: Instant) -> Pin<Box<Sleep>> {
        match self.0.borrow_mut().pop() {
            Some(mut timer) => {
                if timer.deadline() > over_at {
                    timer.as_mut().reset(over_at);
                }
                timer
            }
            None => Box::pin(tokio::time::sleep_until(over_at)),
        }
    }

    fn put(&self, timer: Pin<Box<Sleep>>) {
        let mut spare = self.0.borrow_mut();
        if spare.len() < SPARE_MAX {
            spare.push(timer);
        }
    }
}

/// One timeout.
#[derive(Debug)]
pub struct Clock {
    after: Duration,
    /// The body to wait for, if there is one.
    upload: Option<Rc<Upload>>,
    /// When it is over; `None` until the body has ended.
    over_at: Cell<Option<Instant>>,
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
    timers: Rc<Timers>,
    resting: Cell<bool>,
}

impl Clock {
    /// A timeout that begins when `upload` ends, or at `now`.
    #[must_use]
    pub fn new(timers: &Rc<Timers>, after: Duration, upload: Option<Rc<Upload>>, now: Instant) -> Self {
        let begins = upload.as_ref().is_none_or(|upload| upload.ended.get());
        Self {
            after,
            upload,
            over_at: Cell::new(begins.then(|| now + after)),
            timer: RefCell::new(None),
            timers: Rc::clone(timers),
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
        let timer = timer.get_or_insert_with(|| self.timers.take(over_at));
        loop {
            ready!(timer.as_mut().poll(context));
            if timer.deadline() >= over_at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(over_at);
        }
    }

    /// How long it is in all.
    #[must_use]
    pub fn after(&self) -> Duration {
        self.after
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

impl Drop for Clock {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take() {
            self.timers.put(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn time_runs_from_the_end_of_the_body() {
        let upload = Rc::new(Upload::default());
        let clock =
            Clock::new(&Rc::default(), Duration::from_secs(2), Some(Rc::clone(&upload)), Instant::now());
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
        let clock = Clock::new(&Rc::default(), Duration::from_secs(2), None, Instant::now());
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
        let clock =
            Clock::new(&Rc::default(), Duration::from_secs(2), Some(Rc::clone(&upload)), Instant::now());
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

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_ran_for_another_clock_tells_the_right_time() {
        let timers = Rc::default();
        for (others, own) in [(1, 3), (3, 1), (2, 2)] {
            let other = Clock::new(&timers, Duration::from_secs(others), None, Instant::now());
            assert!(is_pending(&other).await);
            drop(other);
            assert_eq!(timers.0.borrow().len(), 1, "kept");
            let begun = Instant::now();
            let clock = Clock::new(&timers, Duration::from_secs(own), None, begun);
            poll_fn(|context| clock.poll_over(context)).await;
            assert_eq!(begun.elapsed().as_secs(), own, "after a timer of {others} s");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_over_already_is_wound_up_again() {
        let timers = Rc::default();
        let other = Clock::new(&timers, Duration::from_secs(1), None, Instant::now());
        assert!(is_pending(&other).await);
        drop(other);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let clock = Clock::new(&timers, Duration::from_secs(2), None, Instant::now());
        assert!(is_pending(&clock).await);
        let begun = Instant::now();
        poll_fn(|context| clock.poll_over(context)).await;
        assert_eq!(begun.elapsed().as_secs(), 2);
    }

    async fn is_pending(clock: &Clock) -> bool {
        poll_fn(|context| Poll::Ready(clock.poll_over(context).is_pending())).await
    }
}
