use envoy_types::pb::envoy::config::cluster::v3::cluster::{LbConfig, LbPolicy};
use prost::Message;

use super::*;
use crate::compile::resource;
use crate::fixture::world;
use crate::xds::Kind;

fn policy(kind: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: weft.dev/v1alpha1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n{spec}\n"
    )
}

fn on_orders(kind: &str, settings: &str) -> World {
    world(&policy(kind, "p", &format!("  targetRefs: [{{kind: Service, name: orders}}]\n  {settings}")))
}

fn cluster_of(world: &World, name: &str) -> Cluster {
    let resource = resource(world, Kind::Cluster, name, "shop").unwrap();
    Cluster::decode(resource.body.value.as_slice()).unwrap()
}

fn field(cluster: &Cluster, name: &str) -> Option<String> {
    let fields = &cluster.metadata.as_ref()?.filter_metadata["weft.dev"].fields;
    match fields.get(name)?.kind.as_ref()? {
        envoy_types::pb::google::protobuf::value::Kind::StringValue(text) => Some(text.clone()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn without_a_policy_the_defaults_protect() {
    let cluster = cluster_of(&world(""), "orders.shop:8080");
    let outlier = cluster.outlier_detection.as_ref().unwrap();
    let value =
        |number: &Option<envoy_types::pb::google::protobuf::UInt32Value>| number.as_ref().unwrap().value;
    assert_eq!(value(&outlier.consecutive_5xx), 5);
    assert_eq!(value(&outlier.enforcing_consecutive_5xx), 100);
    assert_eq!(value(&outlier.enforcing_consecutive_gateway_failure), 0, "5xx counts them");
    assert_eq!(value(&outlier.enforcing_success_rate), 0, "ratios only on request");
    assert_eq!(value(&outlier.max_ejection_percent), 50);
    assert!(outlier.split_external_local_origin_errors);
    let limits = &cluster.circuit_breakers.as_ref().unwrap().thresholds[0];
    let budget = limits.retry_budget.as_ref().unwrap();
    assert_eq!(budget.budget_percent.as_ref().unwrap().value, 20.0);
    assert_eq!(value(&budget.min_retry_concurrency), 3);
    assert_eq!(value(&limits.max_requests), 4096);
    assert_eq!(cluster.lb_policy, LbPolicy::LeastRequest as i32);
    assert_eq!(field(&cluster, "balancer").as_deref(), Some("peak_ewma"));
    assert_eq!(field(&cluster, "circuit_window_ms"), None, "no circuit that nobody asked for");
    assert!(cluster.health_checks.is_empty());
    assert_eq!(cluster.connect_timeout.as_ref().unwrap().seconds, 2);
}

#[test]
fn a_service_may_ask_for_its_own_zone_and_a_policy_may_not_want_that() {
    let service = "---\n{apiVersion: v1, kind: Service, metadata: {name: near, namespace: shop}, \
                   spec: {trafficDistribution: PreferSameZone, ports: [{port: 80}]}}\n";
    let preferred = |objects: &str| {
        use cluster::common_lb_config::LocalityConfigSpecifier;
        let config = cluster_of(&world(objects), "near.shop:80").common_lb_config.unwrap();
        match config.locality_config_specifier.unwrap() {
            LocalityConfigSpecifier::ZoneAwareLbConfig(zone) => zone.routing_enabled.unwrap().value,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(preferred(service), 100.0);
    let never = policy(
        "TrafficPolicy",
        "p",
        "  targetRefs: [{kind: Service, name: near}]\n  loadBalancer: {zonePreference: {enabled: false}}",
    );
    assert_eq!(preferred(&format!("{service}{never}")), 0.0);
}

#[test]
fn a_pod_that_was_asked_for_by_its_address_is_never_ejected() {
    let pod =
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: shop}\nstatus: {podIP: 10.0.0.1}\n";
    let cluster = cluster_of(&world(pod), "endpoint/10.0.0.1:80");
    assert!(cluster.outlier_detection.is_none());
    assert!(cluster.circuit_breakers.is_some());
}

#[test]
fn a_service_circuit_is_there_when_any_of_it_is_set() {
    let cluster = cluster_of(
        &on_orders("CircuitBreaker", "service: {openFor: 90s, slowCall: {threshold: 300ms}}"),
        "orders.shop:8080",
    );
    for (name, value) in [
        ("circuit_window_ms", "10000"),
        ("circuit_minimum_calls", "20"),
        ("circuit_error_percent", "50"),
        ("circuit_slow_ms", "300"),
        ("circuit_slow_percent", "80"),
        ("circuit_open_ms", "90000"),
        ("circuit_open_max_ms", "90000"),
        ("circuit_probes", "3"),
    ] {
        assert_eq!(field(&cluster, name).as_deref(), Some(value), "{name}");
    }
}

#[test]
fn thresholds_of_zero_switch_an_ejection_off() {
    let world = on_orders(
        "CircuitBreaker",
        "endpoints: {consecutiveFailures: 0, consecutiveGatewayFailures: 2, failurePercentage: {threshold: 60}, baseEjectionTime: 400s}",
    );
    let outlier = cluster_of(&world, "orders.shop:8080").outlier_detection.unwrap();
    assert_eq!(outlier.enforcing_consecutive_5xx.unwrap().value, 0);
    assert_eq!(outlier.enforcing_consecutive_gateway_failure.unwrap().value, 100);
    assert_eq!(outlier.consecutive_gateway_failure.unwrap().value, 2);
    assert_eq!(outlier.failure_percentage_threshold.unwrap().value, 60);
    assert_eq!(outlier.enforcing_failure_percentage.unwrap().value, 100);
    assert_eq!(outlier.max_ejection_time.unwrap().seconds, 400, "never below the first one");
}

#[test]
fn a_bound_on_retries_comes_in_place_of_the_budget() {
    let limits = |settings: &str, kind| {
        let cluster = cluster_of(&on_orders(kind, settings), "orders.shop:8080");
        cluster.circuit_breakers.unwrap().thresholds.remove(0)
    };
    let bound = limits("limits: {maxRetries: 7, maxConnections: 9}", "CircuitBreaker");
    assert_eq!(bound.max_retries.unwrap().value, 7);
    assert!(bound.retry_budget.is_none());
    assert_eq!(bound.max_connections.unwrap().value, 9);
    let budget = limits("retryBudget: {minConcurrency: 1}", "TrafficPolicy").retry_budget.unwrap();
    assert_eq!(budget.budget_percent.unwrap().value, 20.0);
    assert_eq!(budget.min_retry_concurrency.unwrap().value, 1);
}

#[test]
fn balancers_are_those_of_envoy() {
    for (kind, policy) in [
        ("PeakEwma", LbPolicy::LeastRequest),
        ("LeastRequest", LbPolicy::LeastRequest),
        ("RoundRobin", LbPolicy::RoundRobin),
        ("Random", LbPolicy::Random),
        ("RingHash", LbPolicy::RingHash),
        ("Maglev", LbPolicy::Maglev),
    ] {
        let world = on_orders("TrafficPolicy", &format!("loadBalancer: {{type: {kind}}}"));
        let cluster = cluster_of(&world, "orders.shop:8080");
        assert_eq!(cluster.lb_policy, policy as i32, "{kind}");
        assert_eq!(field(&cluster, "balancer").is_some(), kind == "PeakEwma", "{kind}");
    }
    let world = on_orders(
        "TrafficPolicy",
        "loadBalancer: {type: RoundRobin, slowStart: {window: 30s}, panicThreshold: 0, zonePreference: {enabled: true, minHealthyPercent: 40}}",
    );
    let cluster = cluster_of(&world, "orders.shop:8080");
    assert_eq!(field(&cluster, "zone_min_healthy_percent").as_deref(), Some("40"));
    let Some(LbConfig::RoundRobinLbConfig(config)) = cluster.lb_config else { panic!("no config") };
    assert_eq!(config.slow_start_config.unwrap().slow_start_window.unwrap().seconds, 30);
    assert_eq!(cluster.common_lb_config.unwrap().healthy_panic_threshold.unwrap().value, 0.0);
}

#[test]
fn checks_speak_what_the_port_speaks() {
    let check = |settings: &str, port: u16| {
        let world = on_orders("TrafficPolicy", &format!("healthCheck: {settings}"));
        cluster_of(&world, &format!("orders.shop:{port}")).health_checks.remove(0).health_checker.unwrap()
    };
    use envoy_types::pb::envoy::config::core::v3::health_check::HealthChecker;
    let HealthChecker::HttpHealthCheck(http) =
        check("{type: HTTP, path: /ok, expectedStatuses: [204]}", 9000)
    else {
        panic!("not HTTP")
    };
    assert_eq!((http.codec_client_type, http.path.as_str()), (1, "/ok"), "port 9000 is HTTP/2");
    assert_eq!((http.expected_statuses[0].start, http.expected_statuses[0].end), (204, 205));
    assert!(matches!(check("{type: TCP}", 8080), HealthChecker::TcpHealthCheck(_)));
    assert!(matches!(check("{type: GRPC, service: a}", 9000), HealthChecker::GrpcHealthCheck(_)));
}

#[test]
fn a_policy_on_a_port_is_for_that_port() {
    let world = world(&policy(
        "TrafficPolicy",
        "p",
        "  targetRefs: [{kind: Service, name: orders, sectionName: grpc}]\n  timeouts: {connect: 7s}",
    ));
    assert_eq!(cluster_of(&world, "orders.shop:9000").connect_timeout.unwrap().seconds, 7);
    assert_eq!(cluster_of(&world, "orders.shop:8080").connect_timeout.unwrap().seconds, 2);
}
