//! How long something may take, counted from the end of a request's body.
//!
//! In: a duration. Out: the moment it is over. Invariant: a request without a timeout has no clock. Surprise: the timer is
//! made when the body has ended, because an upload's length is the caller's affair; until then the whole time is left.

use std::cell::RefCell;
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
    timer: RefCell<Option<Pin<Box<Sleep>>>>,
}

impl Clock {
    /// A timeout that begins when `upload` ends, or now.
    #[must_use]
    pub fn new(after: Duration, upload: Option<Rc<Upload>>) -> Self {
        let clock = Self { after, upload, timer: RefCell::new(None) };
        if clock.is_running() {
            clock.start();
        }
        clock
    }

    fn is_running(&self) -> bool {
        self.upload.as_ref().is_none_or(|upload| upload.ended.get())
    }

    fn start(&self) {
        *self.timer.borrow_mut() = Some(Box::pin(tokio::time::sleep(self.after)));
    }

    /// Completes when the time is over.
    pub fn poll_over(&self, context: &mut Context<'_>) -> Poll<()> {
        if self.timer.borrow().is_none() {
            if let Some(upload) = &self.upload {
                ready!(upload.poll_ended(context));
            }
            self.start();
        }
        match &mut *self.timer.borrow_mut() {
            Some(timer) => timer.as_mut().poll(context),
            None => Poll::Pending,
        }
    }

    /// What is left of it.
    #[must_use]
    pub fn left(&self) -> Duration {
        match &*self.timer.borrow() {
            Some(timer) => timer.deadline().saturating_duration_since(Instant::now()),
            None => self.after,
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
        let clock = Clock::new(Duration::from_secs(2), Some(Rc::clone(&upload)));
        let begun = Instant::now();
        assert!(is_pending(&clock).await);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(clock.left(), Duration::from_secs(2));
        upload.end();
        poll_fn(|context| clock.poll_over(context)).await;
        assert_eq!(begun.elapsed().as_secs(), 7);
        assert_eq!(clock.left(), Duration::ZERO);
    }

    async fn is_pending(clock: &Clock) -> bool {
        poll_fn(|context| Poll::Ready(clock.poll_over(context).is_pending())).await
    }
}
