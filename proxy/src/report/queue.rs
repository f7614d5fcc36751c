//! Reports that wait, in order, and how long to wait after a failure. Pure: time and chance are passed in.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;

use super::{QUEUE_BYTES_MAX, QUEUE_MAX};

/// The first pause after a failure; it doubles …
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// … up to this, which is how late the graph may be after the control plane has come back.
const PAUSE_MAX: Duration = Duration::from_secs(4);

/// One report, frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Report {
    /// Its place among this instance's reports, from 1.
    pub(super) sequence: u64,
    /// What it tells of.
    pub(super) signal: Signal,
    /// The encoded message.
    pub(super) bytes: Bytes,
}

/// What a report tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Signal {
    /// What was measured.
    Metrics,
    /// This many transitions of circuits.
    Transitions(usize),
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    reports: VecDeque<Report>,
    bytes: usize,
    last_sequence: u64,
    failures: u32,
}

impl Queue {
    pub(super) fn has_room(&self) -> bool {
        self.reports.len() < QUEUE_MAX && self.bytes < QUEUE_BYTES_MAX
    }

    pub(super) fn push(&mut self, signal: Signal, bytes: Bytes) {
        self.last_sequence += 1;
        self.bytes += bytes.len();
        self.reports.push_back(Report { sequence: self.last_sequence, signal, bytes });
    }

    /// The report to send: the oldest, however often it has been sent.
    pub(super) fn next(&self) -> Option<Report> {
        self.reports.front().cloned()
    }

    /// The receiver has everything up to `sequence`.
    pub(super) fn acknowledged(&mut self, sequence: u64) {
        self.failures = 0;
        while let Some(report) = self.reports.pop_front_if(|report| report.sequence <= sequence) {
            self.bytes -= report.bytes.len();
        }
    }

    /// Sending failed. `chance` is uniform in `[0, 1)`; returns the pause: between half and all of a time that
    /// doubles, so that sidecars do not come back all at once.
    pub(super) fn failed(&mut self, chance: f64) -> Duration {
        let pause = PAUSE_MIN.saturating_mul(1 << self.failures.min(10)).min(PAUSE_MAX);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(0.5 + chance / 2.0)
    }

    /// Failures since the last success.
    pub(super) fn failures(&self) -> u32 {
        self.failures
    }

    /// Forgets failures: the next pause is the shortest.
    pub(super) fn start_over(&mut self) {
        self.failures = 0;
    }

    pub(super) fn len(&self) -> usize {
        self.reports.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_acknowledgement_sends_the_same_report_again() {
        let mut queue = Queue::default();
        queue.push(Signal::Metrics, Bytes::from_static(b"a"));
        queue.push(Signal::Metrics, Bytes::from_static(b"b"));
        let first = queue.next().expect("waits");
        assert_eq!(first.sequence, 1);
        queue.failed(0.0);
        queue.push(Signal::Metrics, Bytes::from_static(b"c"));
        assert_eq!(queue.next(), Some(first));
        queue.acknowledged(1);
        assert_eq!(queue.next().map(|report| report.sequence), Some(2));
        queue.acknowledged(3);
        assert_eq!(queue.next(), None);
        assert_eq!(queue.bytes, 0);
    }

    #[test]
    fn pauses_double_up_to_a_bound_and_start_again() {
        let mut queue = Queue::default();
        let pauses: Vec<_> = (0..7).map(|_| queue.failed(0.999_999).as_millis()).collect();
        assert_eq!(pauses, [249, 499, 999, 1999, 3999, 3999, 3999]);
        for _ in 0..100 {
            assert!(queue.failed(0.0) >= PAUSE_MAX / 2);
        }
        queue.acknowledged(0);
        assert!(queue.failed(0.0) < PAUSE_MIN);
    }

    #[test]
    fn both_bounds_count() {
        let mut queue = Queue::default();
        for _ in 0..QUEUE_MAX {
            assert!(queue.has_room());
            queue.push(Signal::Metrics, Bytes::new());
        }
        assert!(!queue.has_room());
        let mut queue = Queue::default();
        queue.push(Signal::Metrics, vec![0; QUEUE_BYTES_MAX].into());
        assert!(!queue.has_room());
    }
}
