//! What a table means once it is read: each field by what the rule does with it, each refusal by its place.

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::{
    DataSource, HeaderValue as ProtoHeader, HeaderValueOption, RuntimeFractionalPercent,
    data_source::Specifier, header_value_option::HeaderAppendAction,
};
use envoy_types::pb::envoy::config::route::v3::{
    CorsPolicy as RouteCors, DirectResponseAction, FilterConfig, HeaderMatcher, QueryParameterMatcher,
    RateLimit, RedirectAction, RetryPolicy as ProtoRetry, RouteAction, RouteConfiguration, RouteMatch,
    VirtualHost, WeightedCluster, header_matcher::HeaderMatchSpecifier,
    query_parameter_matcher::QueryParameterMatchSpecifier, rate_limit, redirect_action, retry_policy,
    route as of_route, route_action, route_match, weighted_cluster::ClusterWeight,
};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::{
    LocalRateLimitDescriptor, rate_limit_descriptor,
};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, fault_delay};
use envoy_types::pb::envoy::extensions::filters::http::cors::v3::CorsPolicy;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault, fault_abort};
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit;
use envoy_types::pb::envoy::r#type::matcher::v3::{
    RegexMatchAndSubstitute, RegexMatcher, StringMatcher, string_matcher::MatchPattern,
};
use envoy_types::pb::envoy::r#type::v3::{
    FractionalPercent, TokenBucket, fractional_percent::DenominatorType,
};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration as ProtoDuration, UInt32Value};
use http::HeaderMap;

use super::*;
use crate::policy::fault::Abort;
use crate::policy::retry::RetryOn;
use crate::route::rule::Action;
use crate::xds::parse::explain;
use crate::xds::plane::any;

fn regex(text: &str) -> RegexMatcher {
    RegexMatcher { regex: text.into(), ..Default::default() }
}

fn matching(pattern: MatchPattern) -> StringMatcher {
    StringMatcher { match_pattern: Some(pattern), ..Default::default() }
}

fn seconds(seconds: i64) -> Option<ProtoDuration> {
    Some(ProtoDuration { seconds, nanos: 0 })
}

fn half() -> FractionalPercent {
    FractionalPercent { numerator: 50, denominator: DenominatorType::Hundred as i32 }
}

fn always() -> Option<RuntimeFractionalPercent> {
    let all = FractionalPercent { numerator: 100, denominator: DenominatorType::Hundred as i32 };
    Some(RuntimeFractionalPercent { default_value: Some(all), ..Default::default() })
}

fn add(name: &str, value: &str, action: HeaderAppendAction) -> HeaderValueOption {
    let header = ProtoHeader { key: name.into(), value: value.into(), ..Default::default() };
    HeaderValueOption { header: Some(header), append_action: action as i32, ..Default::default() }
}

fn prefix(prefix: &str) -> Option<RouteMatch> {
    let path = route_match::PathSpecifier::Prefix(prefix.into());
    Some(RouteMatch { path_specifier: Some(path), ..Default::default() })
}

fn to_a() -> RouteAction {
    let cluster = route_action::ClusterSpecifier::Cluster("a".into());
    RouteAction { cluster_specifier: Some(cluster), ..Default::default() }
}

fn forward(action: RouteAction) -> proto::Route {
    proto::Route { r#match: prefix("/"), action: Some(of_route::Action::Route(action)), ..Default::default() }
}

fn matched(conditions: RouteMatch) -> proto::Route {
    proto::Route { r#match: Some(conditions), ..forward(to_a()) }
}

fn speaking(key: &str, config: Any) -> proto::Route {
    proto::Route { typed_per_filter_config: [(key.to_owned(), config)].into(), ..forward(to_a()) }
}

fn config(routes: Vec<proto::Route>) -> RouteConfiguration {
    let host = VirtualHost { domains: vec!["*".into()], routes, ..Default::default() };
    RouteConfiguration { virtual_hosts: vec![host], ..Default::default() }
}

fn compiled(config: &RouteConfiguration) -> Vec<Arc<Route>> {
    let draft = table(config).unwrap_or_else(|error| panic!("{}", explain(&error)));
    let table = draft.compile(|name| Cluster::new(ClusterSpec::new(name), vec![])).expect("compiles");
    table.routes().cloned().collect()
}

fn one(route: proto::Route) -> Arc<Route> {
    compiled(&config(vec![route])).remove(0)
}

fn refusal(route: proto::Route) -> String {
    match table(&config(vec![route])) {
        Ok(_) => String::from("accepted"),
        Err(error) => {
            let text = explain(&error);
            text.strip_prefix("virtual_hosts[0].routes[0].").map(str::to_owned).unwrap_or(text)
        }
    }
}

#[test]
fn conditions_are_read() {
    let header = |name: &str, specifier| HeaderMatcher {
        name: name.into(),
        header_match_specifier: Some(specifier),
        ..Default::default()
    };
    let query = QueryParameterMatcher {
        name: "v".into(),
        query_parameter_match_specifier: Some(QueryParameterMatchSpecifier::StringMatch(matching(
            MatchPattern::SafeRegex(regex(r"\d")),
        ))),
    };
    let route = one(matched(RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::SafeRegex(regex("/a/.+"))),
        headers: vec![
            header(":method", HeaderMatchSpecifier::StringMatch(matching(MatchPattern::Exact("PUT".into())))),
            header(
                ":authority",
                HeaderMatchSpecifier::StringMatch(matching(MatchPattern::SafeRegex(regex("a.*")))),
            ),
            HeaderMatcher {
                invert_match: true,
                ..header("X-Gone", HeaderMatchSpecifier::PresentMatch(true))
            },
        ],
        query_parameters: vec![query],
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(half()),
            ..Default::default()
        }),
        ..Default::default()
    }));
    assert_eq!(route.matches().to_string(), r"PUT ~/a/.+ ?v~\d :authority~a.* !x-gone 50%");
}

#[test]
fn policies_are_read() {
    let predicate = retry_policy::RetryHostPredicate {
        config_type: Some(retry_policy::retry_host_predicate::ConfigType::TypedConfig(Any {
            type_url:
                "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
                    .into(),
            value: vec![],
        })),
        ..Default::default()
    };
    let retry = ProtoRetry {
        retry_on: "5xx, connect-failure,retriable-status-codes".into(),
        num_retries: Some(UInt32Value { value: 3 }),
        per_try_timeout: seconds(1),
        retriable_status_codes: vec![429],
        retry_host_predicate: vec![predicate],
        ..Default::default()
    };
    let mirror = route_action::RequestMirrorPolicy {
        cluster: "m".into(),
        runtime_fraction: Some(RuntimeFractionalPercent {
            default_value: Some(half()),
            ..Default::default()
        }),
        ..Default::default()
    };
    let route = one(forward(RouteAction {
        timeout: seconds(2),
        retry_policy: Some(retry),
        request_mirror_policies: vec![mirror],
        ..to_a()
    }));
    let retry = route.retry().expect("retries");
    assert_eq!(route.timeout(), Some(Duration::from_secs(2)));
    assert_eq!(retry.on, RetryOn::SERVER_ERROR | RetryOn::CONNECT_FAILURE | RetryOn::STATUS_CODES);
    assert_eq!((retry.retries, retry.per_try_timeout), (3, Some(Duration::from_secs(1))));
    assert_eq!(retry.backoff.max(), Duration::from_millis(250));
    assert_eq!(&*route.mirrors()[0].cluster.name, "m");
    assert_eq!(one(forward(to_a())).timeout(), Some(Duration::from_secs(15)), "what an unset timeout means");
    assert_eq!(one(forward(RouteAction { timeout: seconds(0), ..to_a() })).timeout(), None);
}

#[test]
fn filters_are_spoken_to_by_the_most_specific() {
    let fault = |status| {
        any(&HttpFault {
            delay: Some(FaultDelay {
                percentage: Some(half()),
                fault_delay_secifier: Some(fault_delay::FaultDelaySecifier::FixedDelay(ProtoDuration {
                    seconds: 0,
                    nanos: 5_000_000,
                })),
            }),
            abort: Some(FaultAbort {
                percentage: Some(half()),
                error_type: Some(fault_abort::ErrorType::HttpStatus(status)),
                ..Default::default()
            }),
            ..Default::default()
        })
    };
    let key = "envoy.filters.http.fault";
    let off = any(&FilterConfig { config: Some(fault(500)), disabled: true, ..Default::default() });
    let mut config = config(vec![forward(to_a()), speaking(key, fault(503)), speaking(key, off)]);
    config.virtual_hosts[0].typed_per_filter_config.insert(key.into(), fault(429));
    let routes = compiled(&config);
    let abort = |route: &Arc<Route>| match route.fault()?.abort?.0 {
        Abort::Http(status) => Some(status.as_u16()),
        Abort::Grpc(_) => None,
    };
    assert_eq!(routes.iter().map(abort).collect::<Vec<_>>(), [Some(429), Some(503), None]);
    assert!(routes[2].fault().is_none());

    let cors = CorsPolicy {
        allow_origin_string_match: vec![matching(MatchPattern::Exact("*".into()))],
        ..Default::default()
    };
    assert!(one(speaking("envoy.filters.http.cors", any(&cors))).cors().is_some());
}

fn bucket(tokens: u32) -> Option<TokenBucket> {
    Some(TokenBucket { max_tokens: tokens, fill_interval: seconds(1), ..Default::default() })
}

fn limit() -> LocalRateLimit {
    LocalRateLimit {
        stat_prefix: "s".into(),
        token_bucket: bucket(5),
        filter_enabled: always(),
        filter_enforced: always(),
        ..Default::default()
    }
}

fn per_caller() -> LocalRateLimit {
    let entry = rate_limit_descriptor::Entry { key: "remote_address".into(), value: String::new() };
    let descriptor =
        LocalRateLimitDescriptor { entries: vec![entry], token_bucket: bucket(2), ..Default::default() };
    let action = rate_limit::Action {
        action_specifier: Some(rate_limit::action::ActionSpecifier::RemoteAddress(
            rate_limit::action::RemoteAddress {},
        )),
    };
    LocalRateLimit {
        descriptors: vec![descriptor],
        rate_limits: vec![RateLimit { actions: vec![action], ..Default::default() }],
        ..limit()
    }
}

#[test]
fn rate_limits_are_read_or_switched_off() {
    let key = "envoy.filters.http.local_ratelimit";
    let read = |limit: LocalRateLimit| one(speaking(key, any(&limit)));
    assert!(read(limit()).rate_limit().is_some());
    assert!(read(per_caller()).rate_limit().is_some());
    assert!(read(LocalRateLimit { filter_enabled: None, ..limit() }).rate_limit().is_none());
    let refused = |limit: LocalRateLimit| refusal(speaking(key, any(&limit)));
    let place = format!("typed_per_filter_config[{key}]");
    assert_eq!(
        refused(LocalRateLimit { filter_enforced: None, ..limit() }),
        format!("{place}.filter_enforced: a limit that is not enforced is not supported by this proxy")
    );
    assert_eq!(
        refused(LocalRateLimit { token_bucket: bucket(0), ..limit() }),
        format!("{place}.token_bucket.max_tokens: \"0\" never holds a token")
    );
    assert_eq!(
        refused(LocalRateLimit { rate_limits: vec![], ..per_caller() }),
        "route.rate_limits is missing"
    );
}

#[test]
fn headers_come_from_every_level_in_order() {
    let mark = |level: &str| vec![add("x-by", level, HeaderAppendAction::AppendIfExistsOrAdd)];
    let backend = ClusterWeight {
        name: "a".into(),
        weight: Some(UInt32Value { value: 1 }),
        request_headers_to_add: mark("backend"),
        ..Default::default()
    };
    let split = WeightedCluster { clusters: vec![backend], ..Default::default() };
    let cluster = route_action::ClusterSpecifier::WeightedClusters(split);
    let mut route = forward(RouteAction { cluster_specifier: Some(cluster), ..Default::default() });
    route.request_headers_to_add = mark("100%% route");
    let mut config = config(vec![route]);
    config.virtual_hosts[0].request_headers_to_add = mark("host");
    config.request_headers_to_add = mark("table");
    let values = |config: &RouteConfiguration| {
        let route = compiled(config).remove(0);
        let mut headers = HeaderMap::new();
        route.backends()[0].filters.request.apply(&mut headers);
        route.filters().request.apply(&mut headers);
        headers
            .get_all("x-by")
            .iter()
            .map(|value| value.to_str().unwrap_or("?").to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(values(&config), ["backend", "100% route", "host", "table"]);
    config.most_specific_header_mutations_wins = true;
    assert_eq!(values(&config), ["backend", "table", "host", "100% route"]);
}

#[test]
fn answers_of_a_rules_own_are_read() {
    let redirect = RedirectAction {
        response_code: redirect_action::RedirectResponseCode::PermanentRedirect as i32,
        host_redirect: "new.shop".into(),
        ..Default::default()
    };
    let answer = |action| proto::Route { action: Some(action), ..forward(to_a()) };
    let route = one(answer(of_route::Action::Redirect(redirect)));
    assert!(matches!(route.action(), Action::Redirect(redirect) if redirect.status.as_u16() == 308));
    let body =
        Some(DataSource { specifier: Some(Specifier::InlineString("no".into())), ..Default::default() });
    let direct = DirectResponseAction { status: 500, body, ..Default::default() };
    let route = one(answer(of_route::Action::DirectResponse(direct)));
    assert!(matches!(route.action(), Action::Direct(direct) if direct.body == "no"));
}

#[test]
fn what_cannot_be_honoured_is_refused_by_place() {
    let rewrite = |pattern: &str, substitution: &str| {
        Some(RegexMatchAndSubstitute { pattern: Some(regex(pattern)), substitution: substitution.into() })
    };
    let retry = |retry| forward(RouteAction { retry_policy: Some(retry), ..to_a() });
    let put = |option| proto::Route { request_headers_to_add: vec![option], ..forward(to_a()) };
    let unknown = Any { type_url: "type.googleapis.com/a.Filter".into(), value: vec![] };
    let direct =
        |direct| proto::Route { action: Some(of_route::Action::DirectResponse(direct)), ..forward(to_a()) };
    let append = HeaderAppendAction::AppendIfExistsOrAdd;
    let broken = RouteMatch {
        path_specifier: Some(route_match::PathSpecifier::SafeRegex(regex("("))),
        ..Default::default()
    };
    let upgrade =
        route_action::UpgradeConfig { enabled: Some(BoolValue { value: false }), ..Default::default() };
    #[expect(deprecated, reason = "older control planes still write it")]
    let old_cors = forward(RouteAction { cors: Some(RouteCors::default()), ..to_a() });
    for (route, expected) in [
        (matched(broken), "match.safe_regex.regex: not a pattern: "),
        (
            forward(RouteAction { regex_rewrite: rewrite("a", r"\7"), ..to_a() }),
            "route.regex_rewrite: the substitution",
        ),
        (
            forward(RouteAction { prefix_rewrite: "/b".into(), regex_rewrite: rewrite("a", "b"), ..to_a() }),
            "route.prefix_rewrite: \"/b\" contradicts regex_rewrite",
        ),
        (forward(RouteAction { idle_timeout: seconds(1), ..to_a() }), "route.idle_timeout: "),
        (
            forward(RouteAction { timeout: seconds(-1), ..to_a() }),
            "route.timeout: \"-1s 0ns\" is not a duration",
        ),
        (forward(RouteAction { upgrade_configs: vec![upgrade], ..to_a() }), "route.upgrade_configs: "),
        (old_cors, "route.cors: "),
        (
            retry(ProtoRetry { retry_on: "5xx,sometimes".into(), ..Default::default() }),
            "route.retry_policy.retry_on: ",
        ),
        (
            retry(ProtoRetry { retriable_headers: vec![HeaderMatcher::default()], ..Default::default() }),
            "route.retry_policy.retriable_headers: ",
        ),
        (
            put(add(":path", "/", append)),
            "request_headers_to_add[0].header.key: \":path\" may not be changed",
        ),
        (put(add("Host", "a", append)), "request_headers_to_add[0].header.key: \"Host\" may not be changed"),
        (put(add("x-a", "%REQ(x-b)%", append)), "request_headers_to_add[0].header.value: a computed value"),
        (put(add("x-a", "a\nb", append)), "request_headers_to_add[0].header.value: "),
        (speaking("a", unknown), "typed_per_filter_config[a]: a filter of type "),
        (
            direct(DirectResponseAction { status: 101, ..Default::default() }),
            "direct_response.status: \"101\" is not",
        ),
    ] {
        let text = refusal(route);
        assert!(text.starts_with(expected), "{text} instead of {expected}");
    }
}
