//! HTTP/2 with prior knowledge, gRPC included.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use tokio::net::TcpStream;
use tokio::task::spawn_local;
use weft_proxy::balance::policy::{Algorithm, Policy};
use weft_proxy::drain::Phase;
use weft_proxy::http::Target;
use weft_proxy::http::Version::{Http1, Http2};
use weft_proxy::xds::{Cluster, ClusterSpec, Endpoint, Listener, ListenerSpec, RouteTable};

use crate::harness::{App, Raw, app, nobody, story, until};
use crate::policy::{cluster, forward, listener, retrying, rule};

/// A gRPC-like app: echoes the body, says OK in trailers.
async fn echo() -> App {
    let calls = Rc::new(Cell::new(0));
    let count = Rc::clone(&calls);
    let app = app(move |raw, _| echo_one(raw, Rc::clone(&count))).await;
    app.counting(calls)
}

async fn echo_one(raw: Raw, calls: Rc<Cell<usize>>) {
    let mut connection = h2::server::handshake(raw.stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        calls.set(calls.get() + 1);
        spawn_local(async move {
            let mut body = request.into_body();
            let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let Ok(mut send) = respond.send_response(response, false) else { return };
            while let Some(Ok(data)) = body.data().await {
                body.flow_control().release_capacity(data.len()).unwrap();
                if send.send_data(data, false).is_err() {
                    return;
                }
            }
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "0".parse().unwrap());
            let _ = send.send_trailers(trailers);
        });
    }
}

async fn client(address: SocketAddr) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) = h2::client::handshake(stream).await.unwrap();
    spawn_local(connection);
    sender.ready().await.unwrap()
}

fn post() -> Request<()> {
    Request::builder()
        .method("POST")
        .uri("http://orders.shop:8080/shop.Orders/Get")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

async fn whole(response: Response<h2::RecvStream>) -> (Response<()>, Vec<u8>, Option<HeaderMap>) {
    let (head, mut body) = response.into_parts();
    let mut bytes = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.unwrap();
        body.flow_control().release_capacity(data.len()).unwrap();
        bytes.extend_from_slice(&data);
    }
    (Response::from_parts(head, ()), bytes, body.trailers().await.unwrap())
}

#[test]
fn a_grpc_call_keeps_its_trailers() {
    story(|mesh| async move {
        let app = echo().await;
        let mut sender = client(mesh.sidecar(Http2, Target::App(app.address)).await).await;
        for _ in 0..3 {
            let (response, mut body) = sender.send_request(post(), false).unwrap();
            body.send_data(Bytes::from_static(b"ping"), true).unwrap();
            let (head, bytes, trailers) = whole(response.await.unwrap()).await;
            assert_eq!(head.headers()["content-type"], "application/grpc");
            assert_eq!(bytes, b"ping");
            assert_eq!(trailers.unwrap()["grpc-status"], "0");
        }
        assert_eq!(app.connections(), 1);
        mesh.recorded(&["http_server_request_duration_seconds_count", "shop.Orders", " 3"]).await;
    });
}

#[test]
fn streams_share_a_connection_and_large_bodies_flow() {
    story(|mesh| async move {
        let app = echo().await;
        let sender = client(mesh.sidecar(Http2, Target::App(app.address)).await).await;
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let mut sender = sender.clone();
                spawn_local(async move {
                    let (response, mut body) = sender.send_request(post(), false).unwrap();
                    let upload = spawn_local(async move {
                        for _ in 0..40 {
                            body.reserve_capacity(10_000);
                            while body.capacity() < 10_000 {
                                std::future::poll_fn(|context| body.poll_capacity(context))
                                    .await
                                    .unwrap()
                                    .unwrap();
                            }
                            body.send_data(vec![7; 10_000].into(), false).unwrap();
                        }
                        body.send_data(Bytes::new(), true).unwrap();
                    });
                    let (_, bytes, _) = whole(response.await.unwrap()).await;
                    upload.await.unwrap();
                    assert_eq!(bytes.len(), 400_000);
                })
            })
            .collect();
        for call in calls {
            call.await.unwrap();
        }
        assert_eq!(app.connections(), 1);
    });
}

#[test]
fn messages_flow_while_both_sides_talk() {
    story(|mesh| async move {
        let app = echo().await;
        let mut sender = client(mesh.sidecar(Http2, Target::App(app.address)).await).await;
        let (response, mut send) = sender.send_request(post(), false).unwrap();
        let mut receive = response.await.unwrap().into_body();
        for message in [&b"one"[..], b"two", b"three"] {
            send.send_data(Bytes::copy_from_slice(message), false).unwrap();
            assert_eq!(receive.data().await.unwrap().unwrap(), message);
        }
        send.send_data(Bytes::new(), true).unwrap();
        assert!(receive.data().await.is_none());
        assert_eq!(receive.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    });
}

#[test]
fn a_grpc_caller_learns_that_nobody_is_there() {
    story(|mesh| async move {
        let mut sender = client(mesh.sidecar(Http2, Target::App(nobody().await)).await).await;
        let (response, _) = sender.send_request(post(), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["grpc-status"], "14");
        assert_eq!(response.headers()["x-weft-reason"], "connect_refused; by=server_proxy");
    });
}

#[test]
fn an_answer_to_head_has_no_body_whoever_gives_it() {
    story(|mesh| async move {
        let mut sender = client(mesh.sidecar(Http2, Target::App(nobody().await)).await).await;
        let head = Request::head("http://orders.shop:8080/").body(()).unwrap();
        let (response, _) = sender.send_request(head, true).unwrap();
        let (response, body, _) = whole(response.await.unwrap()).await;
        assert_eq!((response.status().as_u16(), body.len()), (502, 0));
        assert!(response.headers()["content-length"].to_str().unwrap().parse::<usize>().unwrap() > 0);
    });
}

#[test]
fn a_cluster_declared_http2_gets_http2_from_an_http1_client() {
    story(|mesh| async move {
        let app = echo().await;
        let spec = ClusterSpec { http2: true, ..ClusterSpec::new("orders.shop:8080") };
        let cluster = Cluster::new(spec, vec![Endpoint::new(app.address)]);
        let name = "outbound/orders.shop:8080".parse().unwrap();
        let listener = Listener::new(ListenerSpec::new(name), RouteTable::to(cluster), None);
        let mut caller = Raw::connect(mesh.sidecar(Http1, Target::Listener(listener)).await).await;
        caller.write("POST / HTTP/1.1\r\nHost: orders\r\nContent-Length: 4\r\n\r\nping").await;
        let head = caller.head().await;
        assert!(head.starts_with("http/1.1 200 "), "{head}");
        assert_eq!(caller.until("0\r\n\r\n").await, "4\r\nping\r\n0\r\n\r\n");
    });
}

#[test]
fn calls_of_one_connection_are_balanced_one_by_one() {
    story(|mesh| async move {
        let apps = [echo().await, echo().await, echo().await];
        let balancing = Policy { algorithm: Algorithm::RoundRobin, ..Policy::default() };
        let spec = ClusterSpec { balancing, ..ClusterSpec::new("orders.shop:8080") };
        let endpoints = apps.iter().map(|app| Endpoint::new(app.address)).collect();
        let name = "outbound/orders.shop:8080".parse().unwrap();
        let routes = RouteTable::to(Cluster::new(spec, endpoints));
        let listener = Listener::new(ListenerSpec::new(name), routes, None);
        let mut sender = client(mesh.sidecar(Http2, Target::Listener(listener)).await).await;
        for _ in 0..9 {
            let (response, _) = sender.send_request(post(), true).unwrap();
            assert_eq!(whole(response.await.unwrap()).await.2.unwrap()["grpc-status"], "0");
        }
        assert_eq!(apps.each_ref().map(App::connections), [1, 1, 1]);
        assert_eq!(apps.each_ref().map(App::calls), [3, 3, 3]);
    });
}

#[test]
fn an_app_that_closes_between_calls_is_called_again() {
    story(|mesh| async move {
        let app = app(|raw, _| async move {
            let mut connection = h2::server::handshake(raw.stream).await.unwrap();
            if let Some(Ok((_, mut respond))) = connection.accept().await {
                respond.send_response(Response::new(()), true).unwrap();
            }
            connection.graceful_shutdown();
            while connection.accept().await.is_some() {}
        })
        .await;
        let mut sender = client(mesh.sidecar(Http2, Target::App(app.address)).await).await;
        for round in 0..4 {
            let (response, _) = sender.send_request(post(), true).unwrap();
            assert!(!response.await.unwrap().headers().contains_key("grpc-status"), "round {round}");
        }
        assert_eq!(app.connections(), 4);
    });
}

#[test]
fn a_cancelled_stream_is_cancelled_at_the_app() {
    story(|mesh| async move {
        let (told, mut cancelled) = tokio::sync::mpsc::channel(1);
        let app = app(move |raw, _| {
            let told = told.clone();
            async move {
                let mut connection = h2::server::handshake(raw.stream).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    let told = told.clone();
                    spawn_local(async move {
                        let reason = std::future::poll_fn(|context| respond.poll_reset(context)).await;
                        told.send(reason.unwrap()).await.unwrap();
                    });
                }
            }
        })
        .await;
        let mut sender = client(mesh.sidecar(Http2, Target::App(app.address)).await).await;
        let (response, body) = sender.send_request(post(), false).unwrap();
        until(|| app.connections() == 1).await;
        drop((response, body));
        assert_eq!(cancelled.recv().await, Some(h2::Reason::CANCEL));
        mesh.recorded(&["client_cancelled", " 1"]).await;
    });
}

#[test]
fn draining_says_goaway_and_finishes() {
    story(|mesh| async move {
        let app = echo().await;
        let mut sender = client(mesh.sidecar(Http2, Target::App(app.address)).await).await;
        let (response, mut body) = sender.send_request(post(), false).unwrap();
        let mut receive = response.await.unwrap().into_body();
        mesh.worker.drain.turn(Phase::Draining);
        until(|| {
            let mut probe = sender.clone();
            let context = &mut std::task::Context::from_waker(std::task::Waker::noop());
            matches!(probe.poll_ready(context), std::task::Poll::Ready(Err(_)))
        })
        .await;
        body.send_data(Bytes::from_static(b"still here"), true).unwrap();
        assert_eq!(receive.data().await.unwrap().unwrap(), "still here");
        assert!(receive.data().await.is_none());
        until(|| mesh.worker.http.lot.is_empty()).await;
    });
}

#[test]
fn a_host_that_disagrees_with_the_authority_is_refused() {
    story(|mesh| async move {
        let app = echo().await;
        let mut sender = client(mesh.sidecar(Http2, Target::App(app.address)).await).await;
        let request = Request::builder().uri("http://orders.shop/").header("host", "evil").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), 400);
        assert_eq!(response.headers()["x-weft-reason"], "protocol_error; by=server_proxy");
        assert_eq!(app.connections(), 0);
    });
}

#[test]
fn who_waits_for_a_connection_that_fails_fails_with_it() {
    story(|mesh| async move {
        // Nobody accepts, and there is no room in line: connecting takes as long as it may.
        let full = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        full.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        full.listen(0).unwrap();
        let address = full.local_addr().unwrap().as_socket().unwrap();
        let _line: Vec<_> = (0..4)
            .map(|_| {
                let one = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                one.set_nonblocking(true).unwrap();
                drop(one.connect(&address.into()));
                one
            })
            .collect();
        let mut spec = ClusterSpec::new("orders.shop:80");
        spec.connect_timeout = Duration::from_millis(500);
        let to = listener(rule(|_| {}), Cluster::new(spec, vec![Endpoint::new(address)]), vec![]);
        let mut sender = client(mesh.sidecar(Http2, Target::Listener(to)).await).await;
        let begun = Instant::now();
        let answers: Vec<_> = (0..8).map(|_| sender.send_request(post(), true).unwrap().0).collect();
        for answer in answers {
            let answer = answer.await.unwrap();
            assert_eq!(answer.headers()["x-weft-reason"], "connect_timeout; by=client_proxy");
        }
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}: not one after the other", begun.elapsed());
    });
}

/// What a gRPC app says to the first call of all, and to every other.
async fn wavering(first: impl Fn(h2::server::SendResponse<Bytes>) + Copy + 'static) -> App {
    let fresh = Rc::new(Cell::new(true));
    app(move |raw, _| {
        let fresh = Rc::clone(&fresh);
        async move {
            let mut connection = h2::server::handshake(raw.stream).await.unwrap();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let fresh = fresh.replace(false);
                spawn_local(async move {
                    let mut body = request.into_body();
                    let mut bytes = Vec::new();
                    while let Some(Ok(data)) = body.data().await {
                        body.flow_control().release_capacity(data.len()).unwrap();
                        bytes.extend_from_slice(&data);
                    }
                    if fresh {
                        return first(respond);
                    }
                    let head =
                        Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                    let mut send = respond.send_response(head, false).unwrap();
                    send.send_data(bytes.into(), false).unwrap();
                    let trailers = HeaderMap::from_iter([(
                        http::HeaderName::from_static("grpc-status"),
                        http::HeaderValue::from_static("0"),
                    )]);
                    send.send_trailers(trailers).unwrap();
                });
            }
        }
    })
    .await
}

fn trailers_only(status: &str) -> Response<()> {
    Response::builder()
        .header("content-type", "application/grpc")
        .header("grpc-status", status)
        .body(())
        .unwrap()
}

#[test]
fn a_call_is_made_again_with_its_body_where_its_policy_says_so() {
    for (words, first) in [
        (
            "unavailable",
            (|mut respond| drop(respond.send_response(trailers_only("14"), true)))
                as fn(h2::server::SendResponse<Bytes>),
        ),
        ("refused-stream", |mut respond| respond.send_reset(h2::Reason::REFUSED_STREAM)),
        ("reset", |mut respond| respond.send_reset(h2::Reason::INTERNAL_ERROR)),
    ] {
        story(|mesh| async move {
            let app = wavering(first).await;
            let rule = forward(|forward| forward.retry = Some(retrying(words, 1)));
            let to = Target::Listener(listener(rule, cluster("orders.shop:80", &[app.address]), vec![]));
            let mut sender = client(mesh.sidecar(Http2, to).await).await;
            let (answer, mut body) = sender.send_request(post(), false).unwrap();
            body.send_data(Bytes::from_static(b"hel"), false).unwrap();
            body.send_data(Bytes::from_static(b"lo"), true).unwrap();
            let (head, bytes, trailers) = whole(answer.await.unwrap()).await;
            assert_eq!(bytes, b"hello", "{words}: {head:?}");
            assert_eq!(trailers.expect("trailers")["grpc-status"], "0");
            mesh.recorded(&["weft_client_retries_total", "outcome=\"sent\"", " 1"]).await;
        });
    }
}

#[test]
fn a_call_that_may_not_be_made_again_is_not() {
    story(|mesh| async move {
        let app = wavering(|mut respond| drop(respond.send_response(trailers_only("13"), true))).await;
        let rule = forward(|forward| forward.retry = Some(retrying("unavailable", 1)));
        let to = Target::Listener(listener(rule, cluster("orders.shop:80", &[app.address]), vec![]));
        let mut sender = client(mesh.sidecar(Http2, to).await).await;
        let (answer, mut body) = sender.send_request(post(), false).unwrap();
        body.send_data(Bytes::new(), true).unwrap();
        assert_eq!(answer.await.unwrap().headers()["grpc-status"], "13");
    });
}
