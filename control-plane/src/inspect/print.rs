//! Resources as text that people can compare.
//!
//! In: a compiled resource. Out: lines, one field each, indented; and the difference of two such texts. The text is
//! the message's debug form without what is unset, with what is packed inside (`Any`) unpacked and with the entries
//! of maps in order.
//! Invariants: equal resources give equal lines; what cannot be read is shown as its type and length. Non-goal: a
//! form that a program reads back; that is xDS itself.

use std::fmt::{Debug, Write as _};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::endpoint::v3::ClusterLoadAssignment;
use envoy_types::pb::envoy::config::listener::v3::Listener;
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::http::adaptive_concurrency::v3::AdaptiveConcurrency;
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::HttpFault;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use similar::{Algorithm, ChangeTag, capture_diff_slices_deadline, group_diff_ops};

use crate::xds::Kind;

/// Messages inside messages are unpacked this deep: a listener holds a connection manager, which holds filters.
const DEPTH_MAX: usize = 4;

/// How long the shortest difference is searched. It is found at once in what people write; in tables that are made to
/// have none, the work grows with the square of their length, and a longer one must do.
const SEARCH_MAX: Duration = Duration::from_millis(50);

/// Unchanged lines shown around a change.
const CONTEXT: usize = 3;

/// The word for a kind of resource.
#[must_use]
pub const fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Cluster => "Cluster",
        Kind::Endpoint => "Endpoint",
        Kind::Listener => "Listener",
        Kind::Route => "Route",
        Kind::Runtime => "Runtime",
        Kind::Secret => "Secret",
    }
}

/// A resource, line by line.
#[must_use]
pub fn lines(resource: &Any) -> Vec<String> {
    let mut lines = Vec::new();
    for node in unpack(&resource.type_url, &resource.value, 0) {
        node.write(0, &mut lines);
    }
    lines
}

/// How `old` becomes `new`: changed lines and what is around them, at most `max`.
#[must_use]
pub fn diff(old: &[String], new: &[String], max: usize) -> Vec<String> {
    let mut text = Vec::new();
    let deadline = Instant::now() + SEARCH_MAX;
    let ops = capture_diff_slices_deadline(Algorithm::Myers, old, new, Some(deadline));
    for (place, group) in group_diff_ops(ops, CONTEXT).iter().enumerate() {
        if place > 0 {
            text.push(" …".to_owned());
        }
        for change in group.iter().flat_map(|op| op.iter_changes(old, new)) {
            let sign = match change.tag() {
                ChangeTag::Delete => '-',
                ChangeTag::Equal => ' ',
                ChangeTag::Insert => '+',
            };
            text.push(format!("{sign}{}", change.value()));
        }
    }
    if text.len() > max {
        let more = text.len() - max;
        text.truncate(max);
        text.push(format!(" … and {more} more lines"));
    }
    text
}

/// One line of debug text and what is indented below it.
#[derive(Debug, Default)]
struct Node {
    head: String,
    children: Vec<Self>,
    /// Whether it is a constructor around its children: `Some(…)`, a one-of's variant.
    wraps: bool,
}

/// A message of a known type as a tree; `None` for others and for what is no such message.
fn debug_of(type_url: &str, value: &[u8]) -> Option<String> {
    fn of<M: Message + Name + Default + Debug>(type_url: &str, value: &[u8]) -> Option<String> {
        (M::type_url() == type_url).then(|| M::decode(value).ok().map(|message| format!("{message:#?}")))?
    }
    of::<RouteConfiguration>(type_url, value)
        .or_else(|| of::<Cluster>(type_url, value))
        .or_else(|| of::<ClusterLoadAssignment>(type_url, value))
        .or_else(|| of::<Listener>(type_url, value))
        .or_else(|| of::<HttpConnectionManager>(type_url, value))
        .or_else(|| of::<TcpProxy>(type_url, value))
        .or_else(|| of::<CorsPolicy>(type_url, value))
        .or_else(|| of::<HttpFault>(type_url, value))
        .or_else(|| of::<LocalRateLimit>(type_url, value))
        .or_else(|| of::<AdaptiveConcurrency>(type_url, value))
        .or_else(|| of::<HttpProtocolOptions>(type_url, value))
}

fn unpack(type_url: &str, value: &[u8], depth: usize) -> Vec<Node> {
    let name = type_url.rsplit('/').next().unwrap_or(type_url);
    match debug_of(type_url, value) {
        Some(text) if depth < DEPTH_MAX => {
            let mut nodes = tree(&mut text.lines());
            for node in &mut nodes {
                node.tidy(depth);
            }
            nodes
        }
        _ if value.is_empty() => vec![Node { head: name.to_owned(), ..Node::default() }],
        _ => vec![Node { head: format!("{name} of {} bytes", value.len()), ..Node::default() }],
    }
}

/// Reads pretty debug text: a line that ends with an opening bracket has children until the line that closes it.
fn tree<'a>(lines: &mut impl Iterator<Item = &'a str>) -> Vec<Node> {
    let mut nodes = Vec::new();
    while let Some(line) = lines.next() {
        let line = line.trim();
        let line = line.strip_suffix(',').unwrap_or(line);
        if matches!(line, ")" | "]" | "}") {
            break;
        }
        let opens = line.ends_with(['(', '[', '{']) && !line.ends_with("\"(");
        let children = if opens { tree(lines) } else { Vec::new() };
        let head = if opens { line[..line.len() - 1].trim_end() } else { line };
        nodes.push(Node { head: head.to_owned(), children, wraps: opens && line.ends_with('(') });
    }
    nodes
}

impl Node {
    /// Makes it readable, from the inside out.
    fn tidy(&mut self, depth: usize) {
        if let Some(inner) = self.unpacked(depth) {
            (self.children, self.wraps) = (inner, true);
        }
        // First, because a wrapped zero looks like one that is unset afterwards.
        self.children.retain(|child| !child.is_unset());
        for child in &mut self.children {
            child.tidy(depth);
        }
        // `Some(x)` is x, and a one-of's variant is a word before its value.
        if self.wraps && self.children.len() == 1 {
            let inner = self.children.remove(0);
            let head = self.head.strip_suffix("Some").or_else(|| self.head.strip_suffix("Any"));
            self.head = format!("{} {}", head.unwrap_or(&self.head).trim_end(), inner.head).trim().to_owned();
            (self.children, self.wraps) = (inner.children, false);
        }
        self.shorten();
        // Entries of a map come in no order.
        if self.children.len() > 1 && self.children.iter().all(|child| child.head.starts_with('"')) {
            self.children.sort_by(|one, other| one.head.cmp(&other.head));
        }
    }

    /// Writes wrapped numbers and durations as what they are.
    fn shorten(&mut self) {
        let field = |name: &str| self.children.iter().find_map(|child| child.head.strip_prefix(name));
        let short = if self.head.ends_with("Value") && self.children.len() == 1 {
            field("value: ").map(ToOwned::to_owned)
        } else if self.head.ends_with("Duration") {
            let number = |name| field(name).map_or(Some(0), |text| text.parse::<i64>().ok());
            number("seconds: ").zip(number("nanos: ")).map(|(seconds, nanos)| {
                let fraction = format!(".{nanos:09}");
                format!("{seconds}{}s", fraction.trim_end_matches('0').trim_end_matches('.'))
            })
        } else {
            None
        };
        let Some(short) = short else { return };
        let name = self.head.rfind(' ').map_or("", |end| &self.head[..=end]);
        self.head = format!("{name}{short}");
        self.children.clear();
    }

    fn is_unset(&self) -> bool {
        let Some((name, value)) = self.head.split_once(": ") else { return false };
        // A wrapper's zero is a value of its own: it is why there is a wrapper.
        let is_default = matches!(value, "None" | "[]" | "{}" | "\"\"" | "false" | "0" | "0.0");
        is_default && (name != "value" || value == "None")
    }

    /// What is packed inside an `Any`.
    fn unpacked(&self, depth: usize) -> Option<Vec<Self>> {
        if !self.head.ends_with("Any") {
            return None;
        }
        let field = |name: &str| self.children.iter().find(|child| child.head.starts_with(name));
        let type_url = field("type_url: ")?.head.strip_prefix("type_url: \"")?.strip_suffix('"')?;
        let bytes = field("value:").map_or(&[][..], |value| &value.children);
        let bytes: Option<Vec<u8>> = bytes.iter().map(|byte| byte.head.parse().ok()).collect();
        Some(unpack(type_url, &bytes?, depth + 1))
    }

    fn write(&self, indent: usize, lines: &mut Vec<String>) {
        let mut line = String::new();
        // Writing to a string cannot fail.
        let _infallible = write!(line, "{:indent$}{}", "", self.head, indent = indent * 2);
        lines.push(line);
        for child in &self.children {
            child.write(indent + 1, lines);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use envoy_types::pb::envoy::config::route::v3::{
        Route, RouteAction, VirtualHost, WeightedCluster, route, route_action, weighted_cluster,
    };
    use envoy_types::pb::google::protobuf::{Duration, UInt32Value};

    fn table(weight: u32) -> Any {
        let cluster = |name: &str, weight| weighted_cluster::ClusterWeight {
            name: name.to_owned(),
            weight: Some(UInt32Value { value: weight }),
            ..Default::default()
        };
        let clusters =
            vec![cluster("orders.shop:8080", 100 - weight), cluster("orders-v2.shop:8080", weight)];
        let cors = CorsPolicy { allow_methods: "GET".to_owned(), ..Default::default() };
        let filter = (
            "envoy.filters.http.cors".to_owned(),
            Any { type_url: CorsPolicy::type_url(), value: cors.encode_to_vec() },
        );
        let strange = ("b.strange".to_owned(), Any { type_url: "x/y.Z".to_owned(), value: vec![1, 2, 3] });
        let action = RouteAction {
            timeout: Some(Duration { seconds: 2, nanos: 0 }),
            cluster_specifier: Some(route_action::ClusterSpecifier::WeightedClusters(WeightedCluster {
                clusters,
                ..Default::default()
            })),
            ..Default::default()
        };
        let route = Route {
            name: "HTTPRoute/shop/orders/0".to_owned(),
            action: Some(route::Action::Route(action)),
            typed_per_filter_config: [filter, strange].into(),
            ..Default::default()
        };
        let host = VirtualHost { name: "all".to_owned(), routes: vec![route], ..Default::default() };
        let table = RouteConfiguration {
            name: "orders.shop:8080".to_owned(),
            virtual_hosts: vec![host],
            ..Default::default()
        };
        Any { type_url: RouteConfiguration::type_url(), value: table.encode_to_vec() }
    }

    #[test]
    fn a_resource_is_text_without_what_is_unset() {
        insta::assert_snapshot!("route_table", lines(&table(10)).join("\n"));
    }

    #[test]
    fn a_difference_is_its_lines_and_what_is_around_them() {
        let (old, new) = (lines(&table(10)), lines(&table(0)));
        let text = diff(&old, &new, 60);
        assert!(text.iter().any(|line| line.starts_with('-') && line.ends_with("weight: 90")), "{text:#?}");
        assert!(text.iter().any(|line| line.starts_with('+') && line.ends_with("weight: 0")), "{text:#?}");
        assert!(text.len() < old.len());
        assert_eq!(diff(&old, &old, 60), [""; 0]);
        let cut = diff(&[], &new, 5);
        assert_eq!((cut.len(), cut[5].starts_with(" … and ")), (6, true));
    }

    #[test]
    fn what_is_no_message_is_shown_by_its_length() {
        let broken = Any { type_url: RouteConfiguration::type_url(), value: vec![0xff; 7] };
        assert_eq!(lines(&broken), ["envoy.config.route.v3.RouteConfiguration of 7 bytes"]);
    }
}
