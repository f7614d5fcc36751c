//! Settings: what is accepted, and that a rejection names variable and fix.

use std::hint::black_box;

use clap::Parser;
use proptest::prelude::*;

use super::parse::{duration, parse_destination};
use super::*;

#[derive(clap::Parser)]
#[command(version)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

/// Flags only: a test must not depend on the environment it runs in.
fn parse(flags: &[&str]) -> Result<Config, Error> {
    let command = Command::try_parse_from(std::iter::once("weft-proxy").chain(flags.iter().copied()));
    Config::try_from(command.expect("flags are known").arguments)
}

fn rejection(flags: &[&str]) -> String {
    parse(flags).expect_err("must be rejected").to_string()
}

#[test]
fn the_options_are_consistent() {
    <Command as clap::CommandFactory>::command().debug_assert();
}

#[test]
fn without_settings_a_sidecar_stands_alone() {
    let config = parse(&[]).expect("defaults are valid");
    assert!(config.control_plane.is_none());
    assert_eq!(config.identity.workload.to_string(), "default/standalone");
    assert_eq!(config.listen.inbound, Some("[::]:15006".parse().unwrap()));
    assert_eq!(config.listen.admin, Some("127.0.0.1:15000".parse().unwrap()));
    assert_eq!(config.drain_deadline, Duration::from_secs(30));
    assert!(config.workers.get() <= WORKERS_DEFAULT_MAX);
    assert!(!config.identity.addresses.is_empty());
}

#[test]
fn lists_are_read_entry_by_entry() {
    let config = parse(&[
        "--control-plane=http://127.0.0.1:15010",
        "--workload=orders",
        "--namespace=shop",
        "--register=orders.shop:8080/http, orders-raw.shop:9000",
        "--outbound-forward=127.0.0.1:9001=stock.shop:8080,[::1]:9002=10.0.0.7:5432",
        "--socket-mark=0x2102",
        "--pod-ips=10.0.0.7,::ffff:10.0.0.8",
        "--metrics-listen=off",
    ])
    .expect("valid");
    assert_eq!(config.identity.workload.to_string(), "shop/orders");
    assert_eq!(config.register[0].protocol, Some(Protocol::Http));
    assert_eq!(config.register[1].protocol, None);
    assert_eq!(config.outbound_forward[0].destination.to_string(), "stock.shop:8080");
    assert_eq!(
        config.outbound_forward[1].destination,
        Destination::Address("10.0.0.7:5432".parse().unwrap())
    );
    assert_eq!(config.socket_mark, Some(weft_wire::port::PROXY_MARK));
    assert_eq!(config.identity.addresses[1], "10.0.0.8".parse::<IpAddr>().unwrap());
    assert_eq!(config.listen.metrics, None);
}

#[test]
fn a_rejection_names_the_variable_and_the_fix() {
    for (flags, variable) in [
        (&["--control-plane=orders:15010", "--workload=a"][..], "WEFT_CONTROL_PLANE"),
        (&["--control-plane=http://c:15010"], "WEFT_WORKLOAD"),
        (&["--workload=Orders"], "WEFT_WORKLOAD"),
        (&["--namespace=a.b"], "WEFT_NAMESPACE"),
        (&["--pod-ips=pod"], "WEFT_POD_IPS"),
        (&["--control-plane=http://c:15010", "--workload=a", "--sidecar=classic"], "WEFT_POD"),
        (&["--inbound-listen=15006"], "WEFT_INBOUND_LISTEN"),
        (&["--admin-listen=0.0.0.0:15000"], "WEFT_ADMIN_LISTEN"),
        (&["--inbound-forward=app"], "WEFT_INBOUND_FORWARD"),
        (&["--outbound-forward=orders.shop:8080"], "WEFT_OUTBOUND_FORWARD"),
        (&["--outbound-forward=127.0.0.1:1=orders:0"], "WEFT_OUTBOUND_FORWARD"),
        (&["--register=orders"], "WEFT_REGISTER"),
        (&["--register=orders.shop:80/smtp"], "WEFT_REGISTER"),
        (&["--register=orders.shop:80", "--inbound-listen=off"], "WEFT_INBOUND_LISTEN"),
        (&["--workers=0"], "WEFT_WORKERS"),
        (&["--socket-mark=0"], "WEFT_SOCKET_MARK"),
        (&["--drain-deadline=30"], "WEFT_DRAIN_DEADLINE"),
        (&["--detect-timeout=-1s"], "WEFT_DETECT_TIMEOUT"),
        (&["--connections-max=0"], "WEFT_CONNECTIONS_MAX"),
        (&["--default-access=Deny"], "WEFT_DEFAULT_ACCESS"),
        (&["--default-access=deny"], "WEFT_DEFAULT_ACCESS"),
        (&["--control-plane=https://c:15012", "--workload=a"], "WEFT_JOIN_TOKEN"),
        (&["--control-plane=https://c:15012", "--workload=a", "--join-token=weft1.x.y.z"], "WEFT_JOIN_TOKEN"),
        (
            &["--control-plane=https://c:15012", "--workload=a", "--identity-token-file=/t"],
            "WEFT_TRUST_BUNDLE",
        ),
        (
            &[
                "--control-plane=https://c:15012",
                "--workload=a",
                "--join-token-file=/a",
                "--identity-token-file=/b",
            ],
            "WEFT_JOIN_TOKEN_FILE",
        ),
        (
            &["--control-plane=https://c:15012", "--workload=a", "--identity-dir=/d", "--trust-domain=A"],
            "WEFT_TRUST_DOMAIN",
        ),
        (&["--control-plane=http://c:15010", "--workload=a", "--join-token-file=/a"], "WEFT_JOIN_TOKEN_FILE"),
        (&["--identity-dir=/d"], "WEFT_IDENTITY_DIR"),
    ] {
        let message = rejection(flags);
        assert!(message.starts_with(variable), "{message}");
        assert!(message.contains("; "), "no fix in {message}");
    }
}

#[test]
fn a_proof_goes_with_an_address_over_tls_and_stays_secret() {
    let secret = "0123456789abcdef".repeat(2);
    let token = format!("--join-token=weft1.0a1b2c3d.{secret}.{}", "ab".repeat(32));
    let https = ["--control-plane=https://c:15012", "--workload=orders", "--namespace=shop"];
    let with = |flags: &[&str]| parse(&[&https[..], flags].concat());
    let config = with(&[&token]).expect("valid");
    let enrolment = config.enrolment.as_ref().expect("TLS");
    assert_eq!(enrolment.namespace, "shop");
    assert_eq!(
        enrolment.control_plane().to_string(),
        "spiffe://cluster.local/ns/weft-system/sa/weft-control-plane"
    );
    for text in [config.describe().to_string(), format!("{config:?}")] {
        assert!(text.contains("0a1b2c3d") && !text.contains(&secret), "{text}");
    }
    let command = Command::try_parse_from(["weft-proxy", &token]).expect("flags");
    assert!(!format!("{:?}", command.arguments).contains(&secret));
    let cut = token.replace("weft1.0a", "weft1.");
    assert!(!with(&[&cut]).expect_err("cut short").to_string().contains(&secret));
    // Somebody else's identity needs no proof, a service account's somebody to believe.
    assert_eq!(with(&["--identity-dir=/d"]).expect("valid").enrolment.expect("TLS").proof, Proof::Directory);
    with(&["--identity-token-file=/t", "--trust-bundle=/b"]).expect("valid");
    // One template may name the roots for both.
    let plain = parse(&["--control-plane=http://c:15010", "--workload=a", "--trust-bundle=/b"]);
    assert!(plain.expect("valid").enrolment.is_none());
}

#[test]
fn durations_have_units() {
    assert_eq!(duration("500ms"), Some(Duration::from_millis(500)));
    assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
    assert_eq!(duration("1h"), Some(Duration::from_secs(3600)));
    for text in ["", "5", "s", "-1s", "25h", "1d", "NaNs", "infs"] {
        assert_eq!(duration(text), None, "{text:?}");
    }
}

proptest! {
    #[test]
    fn no_text_panics_a_parser(text in ".{0,80}") {
        black_box(duration(&text).is_some());
        black_box(parse_destination(&text).is_some());
        black_box(parse_register(&text).is_ok());
        black_box(parse_outbound_forward(&text).is_ok());
        black_box(parse_mark(text.clone()).is_ok());
        black_box(parse_control_plane(text).is_ok());
    }
}
