use proptest::prelude::*;

use super::*;

#[test]
fn keys_are_kebab_case_below_one_prefix_and_differ() {
    for (index, row) in TABLE.iter().enumerate() {
        let name = row.key.strip_prefix(PREFIX).expect(row.key);
        assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'-'), "{name}");
        assert!(TABLE[..index].iter().all(|other| other.key != row.key), "{name} twice");
        assert!(row.meaning.ends_with('.') && !row.values.is_empty(), "{name}");
    }
}

#[test]
fn every_value_is_judged_by_its_row() {
    for (key, good, bad) in [
        (INJECT, "enabled", "true"),
        (SIDECAR, "classic", "old"),
        (IMAGE, "registry.example/weft-proxy@sha256:00", "two words"),
        (IMAGE_PULL_POLICY, "Never", "never"),
        (LOG_LEVEL, "info,weft_proxy::xds=debug", "loud"),
        (CPU_REQUEST, "50m", "banana"),
        (CPU_LIMIT, "1.5", "64Mi"),
        (MEMORY_REQUEST, "64Mi", "64MB"),
        (MEMORY_LIMIT, "1Gi", "0"),
        (WORKERS, "2", "0"),
        (SKIP_INBOUND_PORTS, "22, 9100", "http"),
        (SKIP_OUTBOUND_PORTS, "5432", "0"),
        (SKIP_INBOUND_CIDRS, "10.0.0.0/8", "10.0.0.0/33"),
        (SKIP_OUTBOUND_CIDRS, "169.254.169.254,fd00::/8", "fd00::/129"),
        (SKIP_UIDS, "0,1000", "root"),
        (ONLY_INBOUND_PORTS, "8080", "65536"),
        (ONLY_OUTBOUND_PORTS, "80,443", "-1"),
        (ONLY_OUTBOUND_CIDRS, "10.96.0.0/12", "localhost"),
        (INBOUND_PROTOCOLS, "3306=tcp, 9000=http2", "3306"),
        (PROBES, "disabled", "off"),
        (DRAIN_DEADLINE, "1.5s", "10"),
        (DEFAULT_ACCESS, "deny", "maybe"),
        (DETECT_TIMEOUT, "250ms", "1d"),
        (RESTART, "enabled", "yes"),
    ] {
        let row = find(key).expect(key);
        assert_eq!(row.check(good), Ok(()), "{key}: {good}");
        let words = row.check(bad).expect_err(key);
        assert!(!words.is_empty(), "{key}");
        assert_eq!(row.check("").is_ok(), is_list(key), "{key}");
    }
}

/// An empty list is one.
fn is_list(key: &str) -> bool {
    ["-ports", "-cidrs", "-uids", "-protocols"].iter().any(|end| key.ends_with(end))
}

#[test]
fn a_slip_of_the_pen_has_a_neighbour() {
    assert_eq!(nearest("weft.dev/injekt"), Some(INJECT));
    assert_eq!(nearest("weft.dev/skip-inbound-port"), Some(SKIP_INBOUND_PORTS));
    assert_eq!(nearest("weft.dev/circuit-breaker"), None);
}

#[test]
fn cpus_are_counted_in_thousandths() {
    assert_eq!(millicores("100m"), Ok(100));
    assert_eq!(millicores("0.5"), Ok(500));
    assert_eq!(millicores("2"), Ok(2000));
    assert_eq!(quantity("64Mi"), Ok(64.0 * 1024.0 * 1024.0));
}

proptest! {
    #[test]
    fn no_value_breaks_a_check(value in ".{0,40}") {
        for row in TABLE {
            drop(row.check(&value));
        }
        prop_assert!(nearest(&value).is_none_or(|key| find(key).is_some()));
    }
}
