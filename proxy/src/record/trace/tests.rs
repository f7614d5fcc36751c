use proptest::prelude::*;

use super::*;

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const SPAN: &str = "b7ad6b7169203331";

fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(*name, HeaderValue::from_str(value).expect("valid value"));
    }
    map
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    let mut all = headers.get_all(name).iter();
    let value = all.next().expect(name).to_str().expect("ascii");
    assert!(all.next().is_none(), "{name} came out twice");
    value
}

fn all() -> Ratio {
    Ratio::new(1.0)
}

#[test]
fn a_request_without_context_becomes_a_root() {
    let mut map = headers(&[("host", "orders")]);
    let context = propagate(&mut map, all());
    assert_eq!(context.parent_id, SpanId::INVALID);
    assert_eq!(text(&map, "traceparent"), format!("00-{}-{}-01", context.trace_id, context.span_id));
    assert_eq!(text(&map, "x-request-id").len(), 36);
    assert!(!map.contains_key("b3") && !map.contains_key("x-b3-traceid"));
}

#[test]
fn a_valid_traceparent_keeps_its_trace_and_gets_a_new_span() {
    let mut map = headers(&[
        ("traceparent", &format!("00-{TRACE}-{SPAN}-01")),
        ("tracestate", "vendor=1,tenant@sys=x"),
        ("tracestate", "other=2"),
        ("x-request-id", "mine"),
    ]);
    let context = propagate(&mut map, Ratio::new(0.0));
    assert_eq!(context.trace_id.to_string(), TRACE);
    assert_eq!(context.parent_id.to_string(), SPAN);
    assert_ne!(context.span_id, context.parent_id);
    assert!(context.sampled, "the caller's decision stands");
    assert_eq!(text(&map, "traceparent"), format!("00-{TRACE}-{}-01", context.span_id));
    assert_eq!(map.get_all("tracestate").iter().count(), 2, "both lines are kept");
    assert_eq!(text(&map, "x-request-id"), "mine");
}

#[test]
fn a_bad_traceparent_starts_a_new_trace_and_loses_its_state() {
    let zero = "0".repeat(32);
    for bad in [
        format!("ff-{TRACE}-{SPAN}-01"),
        format!("00-{zero}-{SPAN}-01"),
        format!("00-{TRACE}-0000000000000000-01"),
        format!("00-{TRACE}-{SPAN}-01-more"),
        format!("01-{TRACE}-{SPAN}-01more"),
        format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
        format!("0-{TRACE}-{SPAN}-01"),
        format!("00-{TRACE}-{SPAN}-0"),
        format!("00_{TRACE}-{SPAN}-01"),
        format!("0x-{TRACE}-{SPAN}-01"),
        String::new(),
    ] {
        let mut map = headers(&[("traceparent", &bad), ("tracestate", "a=1")]);
        let context = propagate(&mut map, all());
        assert_ne!(context.trace_id.to_string(), TRACE, "{bad}");
        assert_eq!(text(&map, "traceparent").len(), 55);
        assert!(!map.contains_key("tracestate"), "{bad}");
    }
}

#[test]
fn a_future_version_is_read_as_far_as_it_is_known() {
    for value in [format!("01-{TRACE}-{SPAN}-01"), format!("cc-{TRACE}-{SPAN}-01-what.comes.next")] {
        let mut map = headers(&[("traceparent", &value)]);
        let context = propagate(&mut map, all());
        assert_eq!(text(&map, "traceparent"), format!("00-{TRACE}-{}-01", context.span_id));
    }
}

#[test]
fn of_two_traceparents_neither_counts() {
    let mut map = headers(&[
        ("traceparent", &format!("00-{TRACE}-{SPAN}-01")),
        ("traceparent", &format!("00-{TRACE}-{SPAN}-00")),
    ]);
    let context = propagate(&mut map, all());
    assert_ne!(context.trace_id.to_string(), TRACE);
    assert_eq!(text(&map, "traceparent"), format!("00-{}-{}-01", context.trace_id, context.span_id));
}

#[test]
fn an_invalid_tracestate_goes_alone() {
    let many = (0..33).map(|i| format!("k{i}=v")).collect::<Vec<_>>().join(",");
    for bad in ["novalue", "=x", "Key=x", "a=b=c", "a@b@c=1", many.as_str()] {
        let mut map = headers(&[("traceparent", &format!("00-{TRACE}-{SPAN}-01")), ("tracestate", bad)]);
        let context = propagate(&mut map, all());
        assert_eq!(context.trace_id.to_string(), TRACE);
        assert!(!map.contains_key("tracestate"), "{bad}");
    }
}

#[test]
fn b3_single_goes_out_as_b3_single() {
    let mut map = headers(&[("b3", &format!("{TRACE}-{SPAN}-1-05e3ac9a4f6e3b90"))]);
    let context = propagate(&mut map, Ratio::new(0.0));
    assert_eq!(text(&map, "b3"), format!("{TRACE}-{}-1-{SPAN}", context.span_id));
    assert!(!map.contains_key("traceparent"));

    // 64-bit ids keep their length, an open decision stays open.
    let mut map = headers(&[("b3", &format!("463ac35c9f6413ad-{SPAN}"))]);
    let context = propagate(&mut map, all());
    assert_eq!(text(&map, "b3"), format!("463ac35c9f6413ad-{}", context.span_id));

    // A bare decision is obeyed.
    let mut map = headers(&[("b3", "0")]);
    let context = propagate(&mut map, all());
    assert!(!context.sampled);
    assert_eq!(text(&map, "b3"), format!("{}-{}-0", context.trace_id, context.span_id));
}

#[test]
fn b3_multi_goes_out_as_b3_multi() {
    let mut map = headers(&[
        ("x-b3-traceid", TRACE),
        ("x-b3-spanid", SPAN),
        ("x-b3-parentspanid", "05e3ac9a4f6e3b90"),
        ("x-b3-sampled", "0"),
    ]);
    let context = propagate(&mut map, all());
    assert!(!context.sampled);
    assert_eq!(text(&map, "x-b3-traceid"), TRACE);
    assert_eq!(text(&map, "x-b3-spanid"), context.span_id.to_string());
    assert_eq!(text(&map, "x-b3-parentspanid"), SPAN);
    assert_eq!(text(&map, "x-b3-sampled"), "0");
    assert!(!map.contains_key("traceparent"));
}

#[test]
fn debug_flags_stay_as_they_came() {
    let mut map = headers(&[("x-b3-traceid", TRACE), ("x-b3-spanid", SPAN), ("x-b3-flags", "1")]);
    let context = propagate(&mut map, Ratio::new(0.0));
    assert!(context.sampled);
    assert_eq!(text(&map, "x-b3-flags"), "1");
    assert!(!map.contains_key("x-b3-sampled"));
}

#[test]
fn when_both_came_both_go_out_with_one_trace() {
    let mut map = headers(&[
        ("traceparent", &format!("00-{TRACE}-{SPAN}-00")),
        ("b3", "00000000000000000000000000000001-0000000000000002-1"),
    ]);
    let context = propagate(&mut map, all());
    assert_eq!(context.trace_id.to_string(), TRACE);
    assert_eq!(text(&map, "b3"), format!("{TRACE}-{}-0-{SPAN}", context.span_id));
    assert_eq!(text(&map, "traceparent"), format!("00-{TRACE}-{}-00", context.span_id));
}

#[test]
fn an_empty_or_repeated_request_id_becomes_one() {
    let mut map = headers(&[("x-request-id", "")]);
    propagate(&mut map, all());
    assert_eq!(text(&map, "x-request-id").len(), 36);
    let mut map = headers(&[("x-request-id", "a"), ("x-request-id", "b")]);
    propagate(&mut map, all());
    assert_eq!(text(&map, "x-request-id"), "a");
}

#[test]
fn a_ratio_is_nested_and_about_right() {
    let (few, more) = (Ratio::new(0.1), Ratio::new(0.5));
    let mut kept = 0;
    for _ in 0..10_000 {
        let id = TraceId::from(Random::trace());
        assert!(!few.keeps(id) || more.keeps(id));
        assert!(Ratio::new(1.0).keeps(id) && !Ratio::new(f64::NAN).keeps(id));
        kept += u32::from(few.keeps(id));
    }
    assert!((800..1200).contains(&kept), "{kept}");
}

proptest! {
    #[test]
    fn whatever_comes_one_valid_context_leaves(
        values in proptest::collection::vec((0_usize..9, proptest::collection::vec(0x20_u8..0x7f, 0..80)), 0..6),
    ) {
        let names = [
            "traceparent", "tracestate", "b3", "x-b3-traceid", "x-b3-spanid", "x-b3-parentspanid",
            "x-b3-sampled", "x-b3-flags", "x-request-id",
        ];
        let mut map = HeaderMap::new();
        for (name, value) in &values {
            map.append(names[*name], HeaderValue::from_bytes(value).expect("visible ascii"));
        }
        let context = propagate(&mut map, all());
        prop_assert!(context.trace_id != TraceId::INVALID && context.span_id != SpanId::INVALID);
        prop_assert_eq!(map.get_all("x-request-id").iter().count(), 1);
        prop_assert!(map.get_all("traceparent").iter().count() <= 1);
        // Our own output is read back as what was returned.
        let again = propagate(&mut map, all());
        prop_assert_eq!(again.trace_id, context.trace_id);
        prop_assert_eq!(again.parent_id, context.span_id);
    }
}
