//! The client's state for `/metrics`.
//!
//! In: the directory's [`Status`] at the moment of a scrape. Out: a fixed number of series, whatever is subscribed.

use std::sync::Weak;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::directory::{Directory, Status};
use crate::exposition::{self, label, value};

/// Name, help, kind and how to read the series' labels and values out of the status.
struct Family {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    read: fn(&Status) -> Vec<Series>,
}

type Series = (Vec<(&'static str, &'static str)>, f64);

/// Every family. Numbers are far below 2⁵³, where `f64` would begin to skip.
const FAMILIES: [Family; 9] = [
    Family {
        name: "weft_xds_connected",
        help: "Whether the stream to the control plane is up.",
        kind: MetricType::GAUGE,
        read: |status| one(u64::from(status.connected())),
    },
    Family {
        name: "weft_xds_streams_total",
        help: "Streams to the control plane that were opened.",
        kind: MetricType::COUNTER,
        read: |status| one(status.streams),
    },
    Family {
        name: "weft_xds_failures",
        help: "Attempts that failed since the control plane was last heard.",
        kind: MetricType::GAUGE,
        read: |status| one(status.failures),
    },
    Family {
        name: "weft_xds_updated_timestamp_seconds",
        help: "When configuration was last accepted, in Unix time.",
        kind: MetricType::GAUGE,
        read: |status| {
            let since = status.updated_at.and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
            since.map(|since| (vec![], since.as_secs_f64())).into_iter().collect()
        },
    },
    Family {
        name: "weft_xds_responses_total",
        help: "Responses of the control plane, by whether this proxy accepted or refused them.",
        kind: MetricType::COUNTER,
        read: |status| {
            vec![labelled("result", "accepted", status.acks), labelled("result", "refused", status.nacks)]
        },
    },
    Family {
        name: "weft_xds_questions_refused_total",
        help: "Destinations that were not asked about because a bound was reached.",
        kind: MetricType::COUNTER,
        read: |status| one(status.refused),
    },
    Family {
        name: "weft_xds_subscriptions_expired_total",
        help: "Destinations unsubscribed because nobody used them.",
        kind: MetricType::COUNTER,
        read: |status| one(status.expired),
    },
    Family {
        name: "weft_xds_subscriptions",
        help: "Names subscribed to, by type of resource.",
        kind: MetricType::GAUGE,
        read: |status| {
            let by_type =
                by_type(status).map(|(word, counts)| labelled("type", word, size(counts.subscribed)));
            by_type.to_vec()
        },
    },
    Family {
        name: "weft_xds_resources",
        help: "Subscribed names that the control plane has answered, by type and answer.",
        kind: MetricType::GAUGE,
        read: |status| {
            let both = |(word, counts): (&'static str, super::TypeStatus)| {
                let series = |answer, count| (vec![("type", word), ("answer", answer)], size(count) as f64);
                [series("present", counts.present), series("absent", counts.absent)]
            };
            by_type(status).into_iter().flat_map(both).collect()
        },
    },
];

fn one(value: u64) -> Vec<Series> {
    vec![(vec![], value as f64)]
}

fn labelled(name: &'static str, word: &'static str, value: u64) -> Series {
    (vec![(name, word)], value as f64)
}

fn size(count: usize) -> u64 {
    u64::try_from(count).unwrap_or(u64::MAX)
}

fn by_type(status: &Status) -> [(&'static str, super::TypeStatus); 4] {
    [
        ("listener", status.listeners),
        ("route", status.routes),
        ("cluster", status.clusters),
        ("endpoint", status.endpoints),
    ]
}

/// Registers with a Prometheus registry. Weak, because whoever owns the registry may outlive the directory.
#[derive(Debug)]
pub struct Metrics {
    directory: Weak<Directory>,
    descriptions: Vec<Desc>,
}

impl Metrics {
    pub(super) fn new(directory: Weak<Directory>) -> Self {
        let describe = |family: &Family| exposition::description(&(family.name, family.help, family.kind));
        Self { directory, descriptions: FAMILIES.iter().filter_map(describe).collect() }
    }
}

impl Collector for Metrics {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let status = self.directory.upgrade().map(|directory| directory.status());
        // Without a control plane there is nothing to say about one.
        let Some(status) = status.filter(|status| status.configured) else { return vec![] };
        let families = FAMILIES.iter().map(|family| (family, (family.read)(&status)));
        families
            .filter(|(_, series)| !series.is_empty())
            .map(|(family, series)| message(family, series))
            .collect()
    }
}

fn message(family: &Family, series: Vec<Series>) -> MetricFamily {
    let metric = |(labels, number): Series| {
        let labels = labels.into_iter().map(|(name, word)| label(name, word)).collect();
        value(family.kind, labels, number)
    };
    exposition::family(&(family.name, family.help, family.kind), series.into_iter().map(metric).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus::{Encoder as _, Registry, TextEncoder};

    fn page(directory: &std::sync::Arc<Directory>) -> String {
        let registry = Registry::new();
        registry.register(Box::new(directory.metrics())).expect("good names, each once");
        let mut page = vec![];
        TextEncoder::new().encode(&registry.gather(), &mut page).expect("encodes");
        String::from_utf8(page).expect("text")
    }

    #[test]
    fn a_scrape_shows_the_client() {
        let (directory, _) = Directory::connected();
        directory.set_status(Status { configured: true, streams: 3, nacks: 1, ..Status::default() });
        let page = page(&directory);
        for line in [
            "weft_xds_connected 0",
            "weft_xds_streams_total 3",
            "weft_xds_responses_total{result=\"refused\"} 1",
            "weft_xds_resources{type=\"endpoint\",answer=\"absent\"} 0",
        ] {
            assert!(page.lines().any(|shown| shown == line), "{line} is not in {page}");
        }
        assert!(!page.contains("weft_xds_updated"), "it was never updated");
    }

    #[test]
    fn without_a_control_plane_there_is_nothing_to_show() {
        assert_eq!(page(&Directory::standalone()), "");
    }
}
