//! What the platform asks: `/live`, `/ready`, `/metrics`.
//!
//! Ready means that sidecars can be served: the sources were read once, the journal was replayed, every
//! listener is bound, and the end has not begun. Reading the sources with problems is still ready: a mistake
//! in one file must not take the control plane of everybody else away.

use std::sync::Arc;

use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{IntGauge, Registry, TextEncoder};
use tokio_util::sync::CancellationToken;

use crate::sources::Problems;
use crate::world::Live;

/// Shows in `registry` what is known and what is wrong, computed when somebody looks.
pub fn show(registry: &Registry, live: Live, problems: Problems) {
    let gauge = |name: &str, help: &str| IntGauge::new(name, help).expect("a valid name");
    let known = Known {
        live,
        problems,
        services: gauge("weft_world_services", "Services, declared or registered."),
        endpoints: gauge("weft_world_endpoints", "Endpoints of all service ports."),
        config_problems: gauge("weft_config_problems", "Things that are wrong with the configuration now."),
    };
    // Registered twice only in tests that share a registry; then it is only not exported twice.
    drop(registry.register(Box::new(known)));
}

struct Known {
    live: Live,
    problems: Problems,
    services: IntGauge,
    endpoints: IntGauge,
    config_problems: IntGauge,
}

impl Collector for Known {
    fn desc(&self) -> Vec<&Desc> {
        [&self.services, &self.endpoints, &self.config_problems]
            .into_iter()
            .flat_map(Collector::desc)
            .collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (services, endpoints) = {
            let world = self.live.read();
            let ports = world.services().flat_map(|service| &service.ports);
            (world.services().count(), ports.map(|port| port.endpoints.len()).sum())
        };
        self.services.set(number(services));
        self.endpoints.set(number(endpoints));
        self.config_problems.set(number(self.problems.borrow().problems.len()));
        let gauges = [&self.services, &self.endpoints, &self.config_problems];
        gauges.into_iter().flat_map(Collector::collect).collect()
    }
}

/// Refreshes gauges that are only worth computing when somebody looks.
pub type Refresh = Arc<dyn Fn() + Send + Sync>;

/// Everything, for an address of its own.
pub fn router(registry: Registry, refresh: Refresh, shutdown: CancellationToken) -> Router {
    let metrics = get(move || {
        let (registry, refresh) = (registry.clone(), Arc::clone(&refresh));
        async move {
            refresh();
            match TextEncoder::new().encode_to_string(&registry.gather()) {
                Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
                    .into_response(),
                Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
            }
        }
    });
    ready(shutdown).route("/live", get(async || "live\n")).route("/metrics", metrics)
}

/// `/ready` alone, to go beside the API's own routes.
pub fn ready(shutdown: CancellationToken) -> Router {
    Router::new().route(
        "/ready",
        get(move || {
            // Nothing listens before everything is ready, so only the end is left to tell.
            let ending = shutdown.is_cancelled();
            async move {
                match ending {
                    false => (StatusCode::OK, "ready\n"),
                    true => (StatusCode::SERVICE_UNAVAILABLE, "shutting down\n"),
                }
            }
        }),
    )
}
