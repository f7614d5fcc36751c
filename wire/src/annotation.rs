//! Annotations and labels: every key below `weft.dev/`, what it means and what it may hold.
//!
//! In: keys and values that people wrote into the metadata of pods and namespaces. Out: typed values, or why not, in words.
//! [`TABLE`] is the one list: the injector checks against it, warns of keys that are not in it, and the documentation is
//! tested against it.
//!
//! Invariant: one prefix, kebab-case, one scalar per key. Surprise: lists are scalars too, separated by commas, because
//! annotations hold nothing but text. Non-goal: who wins when a namespace and a pod disagree (the pod; see the injector).

use std::net::IpAddr;

use crate::xds::Protocol;

/// How every key begins.
pub const PREFIX: &str = "weft.dev/";

/// Whether pods get a sidecar.
pub const INJECT: &str = "weft.dev/inject";
/// Which kind of sidecar.
pub const SIDECAR: &str = "weft.dev/sidecar";
/// The sidecar's image.
pub const IMAGE: &str = "weft.dev/image";
/// When the image is pulled.
pub const IMAGE_PULL_POLICY: &str = "weft.dev/image-pull-policy";
/// What the sidecar logs.
pub const LOG_LEVEL: &str = "weft.dev/log-level";
/// CPU that the sidecar asks for.
pub const CPU_REQUEST: &str = "weft.dev/cpu-request";
/// CPU that the sidecar may use.
pub const CPU_LIMIT: &str = "weft.dev/cpu-limit";
/// Memory that the sidecar asks for.
pub const MEMORY_REQUEST: &str = "weft.dev/memory-request";
/// Memory that the sidecar may use.
pub const MEMORY_LIMIT: &str = "weft.dev/memory-limit";
/// Worker threads.
pub const WORKERS: &str = "weft.dev/workers";
/// Ports of the pod that are not captured.
pub const SKIP_INBOUND_PORTS: &str = "weft.dev/skip-inbound-ports";
/// Ports of others that are not captured.
pub const SKIP_OUTBOUND_PORTS: &str = "weft.dev/skip-outbound-ports";
/// Callers that are not captured.
pub const SKIP_INBOUND_CIDRS: &str = "weft.dev/skip-inbound-cidrs";
/// Destinations that are not captured.
pub const SKIP_OUTBOUND_CIDRS: &str = "weft.dev/skip-outbound-cidrs";
/// Users whose connections are not captured.
pub const SKIP_UIDS: &str = "weft.dev/skip-uids";
/// The only ports of the pod that are captured.
pub const ONLY_INBOUND_PORTS: &str = "weft.dev/only-inbound-ports";
/// The only ports of others that are captured.
pub const ONLY_OUTBOUND_PORTS: &str = "weft.dev/only-outbound-ports";
/// The only destinations that are captured.
pub const ONLY_OUTBOUND_CIDRS: &str = "weft.dev/only-outbound-cidrs";
/// What the app speaks at ports that do not say so themselves.
pub const INBOUND_PROTOCOLS: &str = "weft.dev/inbound-protocols";
/// Whether the kubelet's probes go by the sidecar.
pub const PROBES: &str = "weft.dev/probes";
/// How long connections may take to finish.
pub const DRAIN_DEADLINE: &str = "weft.dev/drain-deadline";
/// Who may call while nothing is known.
pub const DEFAULT_ACCESS: &str = "weft.dev/default-access";
/// Value of [`DEFAULT_ACCESS`]: everybody.
pub const ALLOW: &str = "allow";
/// Value of [`DEFAULT_ACCESS`]: nobody.
pub const DENY: &str = "deny";
/// How long ambiguous first bytes are held back.
pub const DETECT_TIMEOUT: &str = "weft.dev/detect-timeout";
/// Whether the control plane may restart what lacks a sidecar.
pub const RESTART: &str = "weft.dev/restart";
/// When it did.
pub const RESTARTED_AT: &str = "weft.dev/restarted-at";
/// What the injector did.
pub const STATUS: &str = "weft.dev/status";
/// The replica that has the lease.
pub const LEADER: &str = "weft.dev/leader";

/// Where a key means something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// On pods, and on namespaces for all pods of theirs that do not say otherwise.
    Both,
    /// As both, as a label too.
    BothAndLabel,
    /// On namespaces.
    Namespace,
    /// Written by the control plane.
    Written,
}

/// One key.
#[derive(Debug, Clone, Copy)]
pub struct Annotation {
    /// The whole key.
    pub key: &'static str,
    /// Where it means something.
    pub place: Place,
    /// What it may hold, for people.
    pub values: &'static str,
    /// What it does, for people.
    pub meaning: &'static str,
    check: fn(&str) -> Result<(), String>,
}

impl Annotation {
    /// Whether `value` means something.
    ///
    /// # Errors
    /// What it should be instead.
    pub fn check(&self, value: &str) -> Result<(), String> {
        (self.check)(value)
    }
}

const PORTS: &str = "ports, separated by commas";
const CIDRS: &str = "addresses and CIDRs, separated by commas";
const CPU: &str = "CPUs: `100m`, `0.5`, `2`";
const MEMORY: &str = "bytes: `64Mi`, `1Gi`";
const DURATION: &str = "`500ms`, `30s`, `5m`, `1h`";

/// Every key, in the order people read about them.
pub const TABLE: &[Annotation] = &[
    row(INJECT, Place::BothAndLabel, "`enabled`, `disabled`", "Whether pods get a sidecar.", |text| {
        switch(text).map(drop)
    }),
    row(
        SIDECAR,
        Place::Both,
        "`native`, `classic`",
        "An init container that stays (Kubernetes 1.29 and later), or an ordinary container.",
        |text| sidecar(text).map(drop),
    ),
    row(IMAGE, Place::Both, "an image", "The sidecar's image.", image),
    row(
        IMAGE_PULL_POLICY,
        Place::Both,
        "`Always`, `IfNotPresent`, `Never`",
        "When the image is pulled.",
        pull_policy,
    ),
    row(
        LOG_LEVEL,
        Place::Both,
        "`error`, `warn`, `info`, `debug`, or `target=level,…`",
        "What the sidecar logs.",
        log_filter,
    ),
    row(CPU_REQUEST, Place::Both, CPU, "CPU that the sidecar asks for.", |text| millicores(text).map(drop)),
    row(
        CPU_LIMIT,
        Place::Both,
        CPU,
        "CPU that the sidecar may use. It has as many workers as this is whole CPUs, rounded up.",
        |text| millicores(text).map(drop),
    ),
    row(MEMORY_REQUEST, Place::Both, MEMORY, "Memory that the sidecar asks for.", |text| {
        quantity(text).map(drop)
    }),
    row(MEMORY_LIMIT, Place::Both, MEMORY, "Memory that the sidecar may use.", |text| {
        quantity(text).map(drop)
    }),
    row(WORKERS, Place::Both, "1 to 64", "Worker threads, whatever the CPU limit says.", |text| {
        workers(text).map(drop)
    }),
    row(
        SKIP_INBOUND_PORTS,
        Place::Both,
        PORTS,
        "Ports of the pod that callers reach without the sidecar.",
        |text| ports(text).map(drop),
    ),
    row(
        SKIP_OUTBOUND_PORTS,
        Place::Both,
        PORTS,
        "Ports of others that the app reaches without the sidecar.",
        |text| ports(text).map(drop),
    ),
    row(SKIP_INBOUND_CIDRS, Place::Both, CIDRS, "Callers that reach the app without the sidecar.", |text| {
        cidrs(text).map(drop)
    }),
    row(
        SKIP_OUTBOUND_CIDRS,
        Place::Both,
        CIDRS,
        "Destinations that the app reaches without the sidecar.",
        |text| cidrs(text).map(drop),
    ),
    row(
        SKIP_UIDS,
        Place::Both,
        "user ids, separated by commas",
        "Users of the pod whose connections go without the sidecar.",
        |text| uids(text).map(drop),
    ),
    row(ONLY_INBOUND_PORTS, Place::Both, PORTS, "Capture these ports of the pod and no others.", |text| {
        ports(text).map(drop)
    }),
    row(
        ONLY_OUTBOUND_PORTS,
        Place::Both,
        PORTS,
        "Capture connections to these ports (or to `only-outbound-cidrs`) and no others.",
        |text| ports(text).map(drop),
    ),
    row(
        ONLY_OUTBOUND_CIDRS,
        Place::Both,
        CIDRS,
        "Capture connections to these destinations (or to `only-outbound-ports`) and no others.",
        |text| cidrs(text).map(drop),
    ),
    row(
        INBOUND_PROTOCOLS,
        Place::Both,
        "`3306=tcp,9000=http2`",
        "What the app speaks at its ports, where no Service says so: `http`, `http2`, `tls` or `tcp`.",
        |text| protocols(text).map(drop),
    ),
    row(
        PROBES,
        Place::Both,
        "`enabled`, `disabled`",
        "Whether the kubelet asks the sidecar, which asks the app, so that probes pass where only mutual TLS may. Default: enabled.",
        |text| switch(text).map(drop),
    ),
    row(
        DRAIN_DEADLINE,
        Place::Both,
        DURATION,
        "How long connections may take to finish when the pod ends. Default: 3 s less than `terminationGracePeriodSeconds`.",
        |text| duration_ms(text).map(drop),
    ),
    row(
        DEFAULT_ACCESS,
        Place::Both,
        "`allow`, `deny`",
        "On a namespace: whether its services may be called where no policy speaks. On a pod: whether it may be called while the control plane has not said anything yet; by default `deny` where its namespace is closed, by this or by a policy.",
        access,
    ),
    row(
        DETECT_TIMEOUT,
        Place::Both,
        DURATION,
        "How long bytes that may or may not be HTTP or TLS are held back until they count as neither.",
        |text| duration_ms(text).map(drop),
    ),
    row(
        RESTART,
        Place::BothAndLabel,
        "`enabled`, `disabled`",
        "Whether the control plane may restart the owners of pods that should have a sidecar and have none.",
        |text| switch(text).map(drop),
    ),
    row(RESTARTED_AT, Place::Written, "a time", "When it did.", anything),
    row(
        STATUS,
        Place::Written,
        "JSON",
        "What the injector added to the pod, and which version it is of.",
        anything,
    ),
    row(
        LEADER,
        Place::Written,
        "`true`",
        "A label on the replica of the control plane that has the lease.",
        anything,
    ),
];

const fn row(
    key: &'static str,
    place: Place,
    values: &'static str,
    meaning: &'static str,
    check: fn(&str) -> Result<(), String>,
) -> Annotation {
    Annotation { key, place, values, meaning, check }
}

/// What the table says of a key.
#[must_use]
pub fn find(key: &str) -> Option<&'static Annotation> {
    TABLE.iter().find(|row| row.key == key)
}

/// The known key that is most like an unknown one, for a warning.
#[must_use]
pub fn nearest(key: &str) -> Option<&'static str> {
    /// Two letters wrong is a slip; more is another word.
    const SLIPS_MAX: usize = 2;
    /// No key of ours is half as long.
    const KEY_MAX: usize = 128;
    if key.len() > KEY_MAX {
        return None;
    }
    let near = TABLE.iter().map(|row| (distance(row.key, key), row.key)).min()?;
    (near.0 <= SLIPS_MAX).then_some(near.1)
}

/// Letters to insert, remove or replace.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, to) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

/// Which kind of container a sidecar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sidecar {
    /// An init container with `restartPolicy: Always`: starts before and ends after the app.
    Native,
    /// A container beside the app's.
    Classic,
}

impl Sidecar {
    /// The word in annotations.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Native => "native",
            Self::Classic => "classic",
        }
    }
}

/// Reads `enabled` or `disabled`.
///
/// # Errors
/// What it should be instead.
pub fn switch(text: &str) -> Result<bool, String> {
    match text {
        "enabled" => Ok(true),
        "disabled" => Ok(false),
        _ => Err("write enabled or disabled".into()),
    }
}

/// Reads `native` or `classic`.
///
/// # Errors
/// What it should be instead.
pub fn sidecar(text: &str) -> Result<Sidecar, String> {
    match text {
        "native" => Ok(Sidecar::Native),
        "classic" => Ok(Sidecar::Classic),
        _ => Err("write native or classic".into()),
    }
}

/// Reads ports.
///
/// # Errors
/// What it should be instead.
pub fn ports(text: &str) -> Result<Vec<u16>, String> {
    let port = |entry: &str| entry.parse().ok().filter(|port: &u16| *port != 0);
    entries(text)
        .map(|entry| port(entry).ok_or_else(|| format!("{entry:?} is not a port from 1 to 65535")))
        .collect()
}

/// Reads user ids.
///
/// # Errors
/// What it should be instead.
pub fn uids(text: &str) -> Result<Vec<u32>, String> {
    entries(text).map(|entry| entry.parse().map_err(|_| format!("{entry:?} is not a user id"))).collect()
}

/// Reads addresses and CIDRs; they stay text.
///
/// # Errors
/// What it should be instead.
pub fn cidrs(text: &str) -> Result<Vec<&str>, String> {
    let is_cidr = |entry: &str| {
        let (address, prefix) = entry.split_once('/').map_or((entry, None), |(a, p)| (a, Some(p)));
        let Ok(address) = address.parse::<IpAddr>() else { return false };
        let longest = if address.is_ipv4() { 32 } else { 128 };
        prefix.is_none_or(|prefix| prefix.parse::<u8>().is_ok_and(|prefix| prefix <= longest))
    };
    let checked = entries(text).map(|entry| match is_cidr(entry) {
        true => Ok(entry),
        false => Err(format!("{entry:?} is not an address or a CIDR such as 10.0.0.0/8 or fd00::/8")),
    });
    checked.collect()
}

/// Reads ports and what is spoken there.
///
/// # Errors
/// What it should be instead.
pub fn protocols(text: &str) -> Result<Vec<(u16, Protocol)>, String> {
    let pair = |entry: &str| {
        let (port, word) = entry.split_once('=')?;
        let port = port.trim().parse().ok().filter(|port: &u16| *port != 0)?;
        Some((port, Protocol::from_word(word.trim())?))
    };
    let wrong = |entry: &str| {
        format!("{entry:?} is not a port and a protocol such as 3306=tcp (http, http2, tls or tcp)")
    };
    entries(text).map(|entry| pair(entry).ok_or_else(|| wrong(entry))).collect()
}

/// Reads a Kubernetes quantity: `0.5`, `100m`, `64Mi`.
///
/// # Errors
/// What it should be instead.
pub fn quantity(text: &str) -> Result<f64, String> {
    let wrong = || format!("{text:?} is not a quantity such as 100m, 0.5, 64Mi or 1Gi");
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: f64 = number.parse().map_err(|_| wrong())?;
    let factor = match unit {
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        _ => return Err(wrong()),
    };
    let amount = number * factor;
    if amount > 0.0 && amount.is_finite() {
        Ok(amount)
    } else {
        Err(format!("{text:?} is nothing: it must be above 0"))
    }
}

/// Reads CPUs, in thousandths, rounded up.
///
/// # Errors
/// What it should be instead.
pub fn millicores(text: &str) -> Result<u64, String> {
    /// More than any machine has; a number above it is one of bytes.
    const CPUS_MAX: f64 = 10_000.0;
    let cpus = quantity(text)?;
    if cpus > CPUS_MAX {
        return Err(format!("{text:?} is more CPUs than there are: write 100m, 0.5 or 2"));
    }
    Ok((cpus * 1000.0).ceil() as u64)
}

/// Reads a number of worker threads.
///
/// # Errors
/// What it should be instead.
pub fn workers(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|number| (1..=64).contains(number));
    number.ok_or_else(|| "write a number from 1 to 64".into())
}

/// Reads a duration as sidecars do, in milliseconds.
///
/// # Errors
/// What it should be instead.
pub fn duration_ms(text: &str) -> Result<u64, String> {
    const DAY_MS: f64 = 86_400_000.0;
    let wrong = || "write a number and a unit: 500ms, 30s, 5m, 1h (at most 24h)".to_owned();
    let at = text.find(|c: char| c.is_ascii_alphabetic()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(at);
    let factor = match unit {
        "ms" => 1.0,
        "s" => 1e3,
        "m" => 60e3,
        "h" => 3600e3,
        _ => return Err(wrong()),
    };
    let milliseconds = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if (0.0..=DAY_MS).contains(&milliseconds) { Ok(milliseconds as u64) } else { Err(wrong()) }
}

fn access(text: &str) -> Result<(), String> {
    if matches!(text, ALLOW | DENY) { Ok(()) } else { Err("write allow or deny".into()) }
}

fn image(text: &str) -> Result<(), String> {
    let is_image = !text.is_empty() && text.len() <= 512 && text.bytes().all(|b| b.is_ascii_graphic());
    if is_image { Ok(()) } else { Err("write an image: registry.example/weft-proxy:0.1.0".into()) }
}

fn pull_policy(text: &str) -> Result<(), String> {
    let known = matches!(text, "Always" | "IfNotPresent" | "Never");
    if known { Ok(()) } else { Err("write Always, IfNotPresent or Never".into()) }
}

fn log_filter(text: &str) -> Result<(), String> {
    let is_level = |text: &str| matches!(text, "off" | "error" | "warn" | "info" | "debug" | "trace");
    let is_target = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b':'))
    };
    let known = !text.is_empty()
        && text.split(',').all(|entry| match entry.split_once('=') {
            Some((target, level)) => is_target(target) && is_level(level),
            None => is_level(entry),
        });
    if known {
        Ok(())
    } else {
        Err("write off, error, warn, info, debug or trace, or target=level,…".into())
    }
}

fn anything(_: &str) -> Result<(), String> {
    Ok(())
}

fn entries(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|entry| !entry.is_empty())
}

#[cfg(test)]
mod tests;
