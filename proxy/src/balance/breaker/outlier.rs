//! Which endpoints to eject and for how long: Envoy's outlier detection.
//!
//! In: what an outcome is charged to, successes and failures of an interval, `now`, chance. Out: detections, and the
//! next [`State`] of an endpoint, a value of 64 bits. The rules are those of `outlier_detection_impl.cc`: consecutive
//! failures are detected as they happen; success rates and failure percentages at the interval's sweep, which also
//! lets ejected endpoints return. The ejection time grows with every ejection and shrinks with every healthy interval.
//!
//! Invariant: [`Settings::may_eject`] is asked before every ejection, so no more than the share it allows are out.
//! Surprise: Envoy charges a local-origin *success* when it has a connection and a *failure* when that connection
//! later breaks or times out, so failures after connecting are rarely consecutive. Here an attempt is charged once,
//! when its answer begins or is given up; and, as there, once more should an answer that has begun break off.

use std::time::Duration;

use super::{Cause, Outcome};

/// From one sweep to the next unless said otherwise. This and all other defaults: Envoy,
/// `config.cluster.v3.OutlierDetection`.
pub const INTERVAL: Duration = Duration::from_secs(10);

/// Time of the first ejection.
pub const BASE_EJECTION_TIME: Duration = Duration::from_secs(30);

/// Longest ejection, unless the base is longer.
pub const MAX_EJECTION_TIME: Duration = Duration::from_secs(300);

/// Share of a cluster that may be out, percent.
pub const MAX_EJECTION_PERCENT: u8 = 10;

/// Failures in a row, for each of the three kinds.
pub const CONSECUTIVE: u32 = 5;

/// Endpoints with enough traffic that a comparison of success rates needs.
pub const SUCCESS_RATE_MINIMUM_HOSTS: u32 = 5;

/// Attempts in an interval that make an endpoint's success rate comparable.
pub const SUCCESS_RATE_REQUEST_VOLUME: u32 = 100;

/// Standard deviations below the mean, in thousandths.
pub const SUCCESS_RATE_STDEV_FACTOR: u32 = 1900;

/// Failures that are too many, percent.
pub const FAILURE_PERCENTAGE_THRESHOLD: u8 = 85;

/// Endpoints with enough traffic that judging by percentage needs.
pub const FAILURE_PERCENTAGE_MINIMUM_HOSTS: u32 = 5;

/// Attempts in an interval that make an endpoint's percentage count.
pub const FAILURE_PERCENTAGE_REQUEST_VOLUME: u32 = 50;

/// How endpoints are judged. `Default`: what xDS means by an empty message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// From one sweep to the next.
    pub interval: Duration,
    /// Time of the first ejection; the `n`-th in a row takes `n` times as long …
    pub base_ejection_time: Duration,
    /// … but no longer than this.
    pub max_ejection_time: Duration,
    /// Every ejection is up to this much longer.
    pub max_ejection_time_jitter: Duration,
    /// Share of the cluster that may be out, percent.
    pub max_ejection_percent: u8,
    /// Whether one may be out whatever the share says.
    pub always_eject_one: bool,
    /// Server errors in a row; 0 = never.
    pub consecutive_5xx: u32,
    /// Gateway errors in a row; 0 = never.
    pub consecutive_gateway_failure: u32,
    /// Connect failures, time-outs and resets in a row; 0 = never. Counts only with `split`.
    pub consecutive_local_origin_failure: u32,
    /// Whether connect failures, time-outs and resets are counted apart. Otherwise they are gateway errors.
    pub split: bool,
    /// Judging by comparison.
    pub success_rate: SuccessRate,
    /// Judging by percentage.
    pub failure_percentage: FailurePercentage,
    /// How likely each kind of detection ejects, percent.
    pub enforcing: Enforcing,
    /// Whether a passed active check ends an ejection.
    pub health_check_unejects: bool,
}

/// Judging an endpoint by its siblings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SuccessRate {
    /// Endpoints with enough traffic that are needed.
    pub minimum_hosts: u32,
    /// What is enough traffic, per interval.
    pub request_volume: u32,
    /// Standard deviations below the mean, in thousandths.
    pub stdev_factor: u32,
}

/// Judging an endpoint by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FailurePercentage {
    /// Failures that are too many, percent.
    pub threshold: u8,
    /// Endpoints with enough traffic that are needed.
    pub minimum_hosts: u32,
    /// What is enough traffic, per interval.
    pub request_volume: u32,
}

/// How likely a detection becomes an ejection, percent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enforcing {
    /// [`Cause::Consecutive5xx`].
    pub consecutive_5xx: u8,
    /// [`Cause::ConsecutiveGatewayFailure`].
    pub consecutive_gateway_failure: u8,
    /// [`Cause::ConsecutiveLocalOriginFailure`].
    pub consecutive_local_origin_failure: u8,
    /// [`Cause::SuccessRate`].
    pub success_rate: u8,
    /// [`Cause::SuccessRateLocalOrigin`].
    pub success_rate_local_origin: u8,
    /// [`Cause::FailurePercentage`].
    pub failure_percentage: u8,
    /// [`Cause::FailurePercentageLocalOrigin`].
    pub failure_percentage_local_origin: u8,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            interval: INTERVAL,
            base_ejection_time: BASE_EJECTION_TIME,
            max_ejection_time: MAX_EJECTION_TIME,
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: MAX_EJECTION_PERCENT,
            always_eject_one: false,
            consecutive_5xx: CONSECUTIVE,
            consecutive_gateway_failure: CONSECUTIVE,
            consecutive_local_origin_failure: CONSECUTIVE,
            split: false,
            success_rate: SuccessRate {
                minimum_hosts: SUCCESS_RATE_MINIMUM_HOSTS,
                request_volume: SUCCESS_RATE_REQUEST_VOLUME,
                stdev_factor: SUCCESS_RATE_STDEV_FACTOR,
            },
            failure_percentage: FailurePercentage {
                threshold: FAILURE_PERCENTAGE_THRESHOLD,
                minimum_hosts: FAILURE_PERCENTAGE_MINIMUM_HOSTS,
                request_volume: FAILURE_PERCENTAGE_REQUEST_VOLUME,
            },
            // Envoy tries gateway failures and percentages silently: 5xx and success rates cover the same ground.
            enforcing: Enforcing {
                consecutive_5xx: 100,
                consecutive_gateway_failure: 0,
                consecutive_local_origin_failure: 100,
                success_rate: 100,
                success_rate_local_origin: 100,
                failure_percentage: 0,
                failure_percentage_local_origin: 0,
            },
            health_check_unejects: true,
        }
    }
}

impl Settings {
    /// Whether one more of `members` may be out when `ejected` are.
    #[must_use]
    pub fn may_eject(&self, ejected: u32, members: usize) -> bool {
        let share = 100 * (u64::from(ejected) + 1) <= u64::from(self.max_ejection_percent) * members as u64;
        share || self.always_eject_one && ejected == 0
    }

    /// Whether a detection becomes an ejection. `chance` is uniform in `[0, 100)`.
    #[must_use]
    pub fn enforces(&self, cause: Cause, chance: u8) -> bool {
        let enforcing = &self.enforcing;
        let percent = match cause {
            Cause::Consecutive5xx => enforcing.consecutive_5xx,
            Cause::ConsecutiveGatewayFailure => enforcing.consecutive_gateway_failure,
            Cause::ConsecutiveLocalOriginFailure => enforcing.consecutive_local_origin_failure,
            Cause::SuccessRate => enforcing.success_rate,
            Cause::SuccessRateLocalOrigin => enforcing.success_rate_local_origin,
            Cause::FailurePercentage => enforcing.failure_percentage,
            Cause::FailurePercentageLocalOrigin => enforcing.failure_percentage_local_origin,
            // Not detected here.
            _ => 0,
        };
        chance < percent
    }

    /// What an outcome is charged to.
    #[must_use]
    pub fn charge(&self, outcome: Outcome) -> Charge {
        match outcome {
            Outcome::Cancelled => Charge::default(),
            Outcome::LocalOrigin(_) if self.split => Charge { answer: None, local_failed: Some(true) },
            // Envoy maps them to 503 and 504.
            Outcome::LocalOrigin(_) | Outcome::GatewayError => self.answered(Answer::GatewayError),
            Outcome::ServerError => self.answered(Answer::ServerError),
            Outcome::Success => self.answered(Answer::Fine),
        }
    }

    fn answered(&self, answer: Answer) -> Charge {
        Charge { answer: Some(answer), local_failed: self.split.then_some(false) }
    }

    /// Endpoints to eject for their success rate or failure percentage in the interval that just ended, in this order.
    /// A sample is `None` where the endpoint is ejected already; one position may be named twice.
    #[must_use]
    pub fn outliers(&self, origin: Origin, samples: &[Option<Sample>]) -> Vec<(usize, Cause)> {
        let enough = |minimum: u32, found: usize| found > 0 && found as u64 >= u64::from(minimum);
        let rates = |volume: u32| -> Vec<(usize, f64)> {
            let rate = |(position, sample): (usize, &Option<Sample>)| {
                let Sample { attempts, failures } = (*sample)?;
                let counts = attempts > 0 && attempts >= u64::from(volume);
                counts.then(|| (position, 100.0 * (attempts - failures) as f64 / attempts as f64))
            };
            samples.iter().enumerate().filter_map(rate).collect()
        };
        let (by_comparison, by_percentage) = match origin {
            Origin::External => (Cause::SuccessRate, Cause::FailurePercentage),
            Origin::Local => (Cause::SuccessRateLocalOrigin, Cause::FailurePercentageLocalOrigin),
        };
        let mut outliers = vec![];
        let compared = rates(self.success_rate.request_volume);
        if enough(self.success_rate.minimum_hosts, compared.len()) {
            let threshold = threshold(&compared, f64::from(self.success_rate.stdev_factor) / 1000.0);
            let low = compared.iter().filter(|(_, rate)| *rate < threshold);
            outliers.extend(low.map(|(position, _)| (*position, by_comparison)));
        }
        let judged = rates(self.failure_percentage.request_volume);
        if enough(self.failure_percentage.minimum_hosts, judged.len()) {
            let limit = f64::from(self.failure_percentage.threshold);
            let high = judged.iter().filter(|(_, rate)| 100.0 - rate >= limit);
            outliers.extend(high.map(|(position, _)| (*position, by_percentage)));
        }
        outliers
    }
}

/// Mean minus `factor` standard deviations.
fn threshold(rates: &[(usize, f64)], factor: f64) -> f64 {
    let count = rates.len() as f64;
    let mean = rates.iter().map(|(_, rate)| rate).sum::<f64>() / count;
    let variance = rates.iter().map(|(_, rate)| (rate - mean).powi(2)).sum::<f64>() / count;
    mean - factor * variance.sqrt()
}

/// What an answer says about whoever gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// No server error.
    Fine,
    /// A server error other than a gateway's.
    ServerError,
    /// 502, 503 or 504.
    GatewayError,
}

/// What an outcome is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Charge {
    /// The endpoint's answer.
    pub answer: Option<Answer>,
    /// Whether getting an answer failed; `None`: not counted apart.
    pub local_failed: Option<bool>,
}

/// Whose failures are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The endpoint's answers.
    External,
    /// Connect failures, time-outs, resets.
    Local,
}

/// One endpoint's attempts in one interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sample {
    /// All of them.
    pub attempts: u64,
    /// Those that failed.
    pub failures: u64,
}

/// One endpoint's availability: fits in 64 bits ([`State::pack`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct State {
    /// Whether it is ejected.
    pub ejected: bool,
    /// Whether active checks fail.
    pub failed_check: bool,
    /// Why it is, or last was, out.
    pub cause: Option<Cause>,
    /// How many base times the last ejection took, less one for every healthy interval since.
    backoff: u16,
    /// While ejected: when the first sweep may let it return. Milliseconds of the caller's clock.
    pub until: u64,
}

impl State {
    /// Whether requests may be sent to it.
    #[must_use]
    pub fn is_available(self) -> bool {
        !self.ejected && !self.failed_check
    }

    /// Ejected at `now`. `chance` is uniform in `[0, 1)`.
    #[must_use]
    pub fn eject(self, settings: &Settings, cause: Cause, now: u64, chance: f64) -> Self {
        let base = settings.base_ejection_time;
        let grows =
            base.saturating_mul(u32::from(self.backoff)) < settings.max_ejection_time.saturating_add(base);
        let backoff = if grows { self.backoff.saturating_add(1).min(BACKOFF_MAX) } else { self.backoff };
        let time = base.saturating_mul(u32::from(backoff)).min(settings.max_ejection_time);
        let time = time.saturating_add(settings.max_ejection_time_jitter.mul_f64(chance));
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let until = now.saturating_add(millis).min(UNTIL_MAX);
        Self { ejected: true, cause: Some(cause), backoff, until, ..self }
    }

    /// Whether its time is over.
    #[must_use]
    pub fn may_return(self, now: u64) -> bool {
        self.ejected && now >= self.until
    }

    /// No longer ejected.
    #[must_use]
    pub fn uneject(self) -> Self {
        Self { ejected: false, until: 0, ..self }
    }

    /// After a healthy interval.
    #[must_use]
    pub fn calm(self) -> Self {
        Self { backoff: self.backoff.saturating_sub(1), ..self }
    }

    /// What was held against it is forgotten.
    #[must_use]
    pub fn acquit(self) -> Self {
        Self { ejected: false, until: 0, backoff: 0, ..self }
    }

    /// What active checks say.
    #[must_use]
    pub fn checked(self, healthy: bool) -> Self {
        let cause = if healthy || self.ejected { self.cause } else { Some(Cause::HealthCheck) };
        Self { failed_check: !healthy, cause, ..self }
    }

    /// Base times that the last ejection took, less healthy intervals since.
    #[must_use]
    pub fn backoff(self) -> u16 {
        self.backoff
    }

    /// As one word: ejected 1 bit, failed check 1, cause 5, backoff 13, until 39 (17 years of milliseconds).
    #[must_use]
    pub fn pack(self) -> u64 {
        u64::from(self.ejected) << 63
            | u64::from(self.failed_check) << 62
            | self.cause.map_or(0, |cause| cause as u64 + 1) << 57
            | u64::from(self.backoff) << 44
            | self.until.min(UNTIL_MAX)
    }

    /// The reverse of [`pack`](Self::pack).
    #[must_use]
    pub fn unpack(word: u64) -> Self {
        let cause = (word >> 57 & 31) as usize;
        Self {
            ejected: word >> 63 == 1,
            failed_check: word >> 62 & 1 == 1,
            cause: cause.checked_sub(1).and_then(|index| Cause::ALL.get(index)).copied(),
            backoff: (word >> 44) as u16 & BACKOFF_MAX,
            until: word & UNTIL_MAX,
        }
    }
}

const BACKOFF_MAX: u16 = (1 << 13) - 1;
const UNTIL_MAX: u64 = (1 << 39) - 1;

#[cfg(test)]
mod tests;
