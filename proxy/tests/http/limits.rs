//! What may be in progress at a time, and who waits for whom.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;
use tokio::task::spawn_local;
use weft_proxy::balance::breaker::limits::Settings;
use weft_proxy::http::Target;
use weft_proxy::http::Version::Http1;
use weft_proxy::route::policies::{Gradient, MinRtt};
use weft_proxy::xds::{Cluster, ClusterSpec, Endpoint, Listener, ListenerSpec, RouteTable};

use crate::harness::{App, GET, OK, Raw, app, story, until};
use crate::policy::{listener, rule};

/// An app whose requests are answered when the test says so.
async fn patient() -> (App, Rc<tokio::sync::Semaphore>, Rc<RefCell<usize>>) {
    let (go, seen) = (Rc::new(tokio::sync::Semaphore::new(0)), Rc::new(RefCell::new(0)));
    let (when, to) = (Rc::clone(&go), Rc::clone(&seen));
    let app = app(move |mut raw, _| {
        let (when, to) = (Rc::clone(&when), Rc::clone(&to));
        async move {
            while raw.try_head().await.is_some() {
                *to.borrow_mut() += 1;
                when.acquire().await.unwrap().forget();
                raw.write(OK).await;
            }
        }
    })
    .await;
    (app, go, seen)
}

fn limited(app: &App, change: impl FnOnce(&mut Settings)) -> Target {
    let mut spec = ClusterSpec::new("orders.shop:80");
    change(&mut spec.breaking.limits);
    let cluster = Cluster::new(spec, vec![Endpoint::new(app.address)]);
    Target::Listener(listener(rule(|_| {}), cluster, vec![]))
}

#[test]
fn who_finds_no_connection_waits_for_one() {
    story(|mesh| async move {
        let (app, go, seen) = patient().await;
        let sidecar = mesh.sidecar(Http1, limited(&app, |limits| limits.max_connections = 1)).await;
        let calls: Vec<_> = (0..3)
            .map(|_| spawn_local(async move { Raw::connect(sidecar).await.call(GET).await.1 }))
            .collect();
        until(|| *seen.borrow() == 1).await;
        // Long enough for them to look more than once.
        tokio::time::sleep(Duration::from_millis(100)).await;
        go.add_permits(3);
        for call in calls {
            assert_eq!(call.await.unwrap(), "ok");
        }
        assert_eq!(app.connections(), 1);
        mesh.recorded(&["weft_circuit_refused_total", "\"max_connections\"", " 2"]).await;
    });
}

#[test]
fn who_may_not_even_wait_is_refused() {
    story(|mesh| async move {
        let (app, go, seen) = patient().await;
        let to = limited(&app, |limits| (limits.max_connections, limits.max_pending_requests) = (1, 1));
        let sidecar = mesh.sidecar(Http1, to).await;
        let first = spawn_local(async move { Raw::connect(sidecar).await.call(GET).await.1 });
        until(|| *seen.borrow() == 1).await;
        let mut waiting = Raw::connect(sidecar).await;
        waiting.write(GET).await;
        let refused = async {
            loop {
                let (head, _) = Raw::connect(sidecar).await.call(GET).await;
                if head.starts_with("http/1.1 503 ") {
                    return head;
                }
            }
        };
        let head = refused.await;
        assert!(head.contains("x-weft-reason: concurrency_limited; by=client_proxy"), "{head}");
        go.add_permits(2);
        assert_eq!(first.await.unwrap(), "ok");
        assert_eq!(waiting.response().await.1, "ok");
    });
}

#[test]
fn requests_beyond_the_clusters_limit_are_refused() {
    story(|mesh| async move {
        let (app, go, seen) = patient().await;
        let sidecar = mesh.sidecar(Http1, limited(&app, |limits| limits.max_requests = 1)).await;
        let mut first = Raw::connect(sidecar).await;
        first.write(GET).await;
        until(|| *seen.borrow() == 1).await;
        let (head, _) = Raw::connect(sidecar).await.call(GET).await;
        assert!(head.contains("x-weft-reason: concurrency_limited; by=client_proxy"), "{head}");
        go.add_permits(1);
        assert_eq!(first.response().await.1, "ok");
        mesh.recorded(&["http_client_request_duration_seconds_count", "concurrency_limited", " 1"]).await;
    });
}

fn own() -> Arc<Listener> {
    let spec = ListenerSpec::new("inbound/10.0.0.7:80".parse().unwrap());
    Listener::new(spec, RouteTable::empty(), None)
}

fn one_at_a_time() -> Gradient {
    Gradient {
        percentile_per_mille: 500,
        limit_max: 100,
        update_interval: Duration::from_secs(60),
        min_rtt: MinRtt::Fixed(Duration::from_millis(5)),
        limit_min: 1,
        buffer_per_mille: 250,
        status: StatusCode::SERVICE_UNAVAILABLE,
    }
}

#[test]
fn a_connection_that_stays_sees_the_limit_change() {
    story(|mesh| async move {
        let (app, go, seen) = patient().await;
        go.add_permits(2);
        let listener = own();
        let to = Target::Own { app: app.address, listener: Arc::clone(&listener) };
        let sidecar = mesh.sidecar(Http1, to).await;
        let mut clients = [Raw::connect(sidecar).await, Raw::connect(sidecar).await];
        for client in &mut clients {
            assert_eq!(client.call(GET).await.1, "ok");
        }
        listener.set_gradient(Some(one_at_a_time()));
        let [first, second] = &mut clients;
        first.write(GET).await;
        until(|| *seen.borrow() == 3).await;
        let (head, _) = second.call(GET).await;
        assert!(head.contains("x-weft-reason: overloaded; by=server_proxy"), "{head}");
        listener.set_gradient(None);
        second.write(GET).await;
        until(|| *seen.borrow() == 4).await;
        go.add_permits(2);
        assert_eq!((first.response().await.1, second.response().await.1), ("ok".into(), "ok".into()));
    });
}

#[test]
fn an_app_gets_no_more_at_a_time_than_its_latency_allows() {
    story(|mesh| async move {
        let (app, go, seen) = patient().await;
        let listener = own();
        listener.set_gradient(Some(one_at_a_time()));
        let sidecar = mesh.sidecar(Http1, Target::Own { app: app.address, listener }).await;
        let mut first = Raw::connect(sidecar).await;
        first.write(GET).await;
        until(|| *seen.borrow() == 1).await;
        let (head, _) = Raw::connect(sidecar).await.call(GET).await;
        assert!(head.contains("x-weft-reason: overloaded; by=server_proxy"), "{head}");
        mesh.recorded(&["weft_limit_total", "\"concurrency\"", " 1"]).await;
        go.add_permits(2);
        assert_eq!(first.response().await.1, "ok");
        assert_eq!(Raw::connect(sidecar).await.call(GET).await.1, "ok", "there is room again");
    });
}
