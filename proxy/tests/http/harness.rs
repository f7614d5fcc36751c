//! A worker, apps and clients on one thread.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::Parser;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{LocalSet, spawn_local};
use weft_proxy::accept::Bound;
use weft_proxy::balance::Circuits;
use weft_proxy::config::{Arguments, Config};
use weft_proxy::detect::Prefixed;
use weft_proxy::record::{Direction, EdgeSpec, Identity, Telemetry, Tls};
use weft_proxy::tcp::Upstream;
use weft_proxy::worker::{Common, Worker};
use weft_proxy::{drain, http, xds};

/// Longest wait for anything; only reached when the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    arguments: Arguments,
}

/// A worker without a control plane, and what its telemetry says.
pub(crate) struct Mesh {
    pub(crate) worker: Rc<Worker>,
    pub(crate) telemetry: Arc<Telemetry>,
    pub(crate) circuits: Arc<Circuits>,
    /// How often connections' tasks were polled.
    pub(crate) polls: Rc<Cell<usize>>,
}

/// Runs a story on one thread.
pub(crate) fn story<F: Future<Output = ()>>(story: impl FnOnce(Mesh) -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        let config = Config::try_from(Command::parse_from(["weft-proxy"]).arguments).unwrap();
        let identity = Identity {
            workload: "shop/web".parse().unwrap(),
            version: None,
            pod: None,
            instance: "test".into(),
        };
        let telemetry = Telemetry::new(config.record.clone(), identity);
        let circuits = Circuits::new();
        telemetry.registry().register(Box::new(circuits.metrics())).unwrap();
        let common = Common {
            config: config.into(),
            bound: Arc::new(Bound::default()),
            directory: xds::Directory::standalone(),
            circuits: Arc::clone(&circuits),
            mesh: weft_proxy::tls::Mesh::new(weft_proxy::identity::Slot::default()),
        };
        let worker = Worker::new(common, telemetry.shard(), drain::Watch::default(), 100);
        spawn_local(http::tend(Rc::clone(&worker)));
        spawn_local(Arc::clone(&circuits).tend(std::future::pending()));
        tokio::time::timeout(PATIENCE, story(Mesh { worker, telemetry, circuits, polls: Rc::default() }))
            .await
            .expect("the story ends in time");
    });
}

impl Mesh {
    /// A sidecar in front of `target`: its address.
    pub(crate) async fn sidecar(&self, version: http::Version, target: http::Target) -> SocketAddr {
        self.start(version, target, None).await
    }

    /// An inbound sidecar whose first connection comes with one to the app.
    pub(crate) async fn ahead(&self, opened: Upstream) -> SocketAddr {
        let target = http::Target::App(opened.address);
        self.start(http::Version::Http1, target, Some(opened)).await
    }

    async fn start(
        &self,
        version: http::Version,
        target: http::Target,
        mut opened: Option<Upstream>,
    ) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let worker = Rc::clone(&self.worker);
        let polls = Rc::clone(&self.polls);
        spawn_local(async move {
            while let Ok((stream, client)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let inbound = matches!(target, http::Target::App(_) | http::Target::Own { .. });
                let edge = EdgeSpec {
                    direction: if inbound { Direction::Inbound } else { Direction::Outbound },
                    service: None,
                    server_address: "orders.shop".into(),
                    server_port: 8080,
                    tls: Tls::None,
                    client: inbound.then(|| client.ip()),
                    caller: None,
                };
                let client = std::net::Ipv4Addr::LOCALHOST.into();
                let scope =
                    http::Scope { edge, target: target.clone(), asked: None, opened: opened.take(), client };
                let io = Prefixed::new(stream.into(), Bytes::new());
                let mut connection = Box::pin(http::serve(Rc::clone(&worker), io, version, scope));
                let polls = Rc::clone(&polls);
                spawn_local(std::future::poll_fn(move |context| {
                    polls.set(polls.get() + 1);
                    connection.as_mut().poll(context)
                }));
            }
        });
        address
    }

    /// An inbound HTTP/1 sidecar in front of an app.
    pub(crate) async fn inbound(&self, app: SocketAddr) -> SocketAddr {
        self.sidecar(http::Version::Http1, http::Target::App(app)).await
    }

    /// The metrics page.
    pub(crate) fn metrics(&self) -> String {
        String::from_utf8(self.telemetry.encode()).unwrap()
    }

    /// Waits until a line of the metrics page has all these words.
    pub(crate) async fn recorded(&self, words: &[&str]) {
        let has = || self.metrics().lines().any(|line| words.iter().all(|word| line.contains(word)));
        until(has).await;
    }
}

/// Waits for a condition.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "the condition came true in time");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// An app that treats each connection with `serve`, which gets the connection and its number from 1.
pub(crate) async fn app<F>(serve: impl Fn(Raw, usize) -> F + 'static) -> App
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Rc::new(Cell::new(0));
    let count = Rc::clone(&connections);
    spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.set(count.get() + 1);
            spawn_local(serve(Raw::new(stream), count.get()));
        }
    });
    App { address, connections, calls: Rc::default() }
}

/// An app that answers each request of each connection with `response`.
pub(crate) async fn answering(response: &'static str) -> App {
    app(move |mut raw, _| async move {
        while raw.try_head().await.is_some() {
            raw.write(response).await;
        }
    })
    .await
}

/// An app that answers nothing, and whether its caller has left it.
pub(crate) async fn abandoned() -> (App, Rc<Cell<bool>>) {
    let gone = Rc::new(Cell::new(false));
    let tell = Rc::clone(&gone);
    let app = app(move |mut raw, _| {
        let tell = Rc::clone(&tell);
        async move {
            raw.head().await;
            raw.rest().await;
            tell.set(true);
        }
    })
    .await;
    (app, gone)
}

pub(crate) struct App {
    pub(crate) address: SocketAddr,
    connections: Rc<Cell<usize>>,
    /// Where the app counts its calls, if it does.
    calls: Rc<Cell<usize>>,
}

impl App {
    /// The same app, which counts its calls here.
    pub(crate) fn counting(self, calls: Rc<Cell<usize>>) -> Self {
        Self { calls, ..self }
    }

    /// Calls so far.
    pub(crate) fn calls(&self) -> usize {
        self.calls.get()
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.connections.get()
    }
}

/// An address where nobody listens.
pub(crate) async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// One end of a connection, byte by byte.
pub(crate) struct Raw {
    pub(crate) stream: TcpStream,
    buffer: Vec<u8>,
}

impl Raw {
    pub(crate) fn new(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { stream, buffer: Vec::new() }
    }

    pub(crate) async fn connect(address: SocketAddr) -> Self {
        Self::new(TcpStream::connect(address).await.unwrap())
    }

    pub(crate) async fn write(&mut self, text: impl AsRef<[u8]>) {
        // The other side may have gone on purpose.
        let _ = self.stream.write_all(text.as_ref()).await;
    }

    /// Everything up to and including `end`; `None` at the end of the stream.
    pub(crate) async fn try_until(&mut self, end: &str) -> Option<String> {
        loop {
            if let Some(at) = self.buffer.windows(end.len()).position(|window| window == end.as_bytes()) {
                let rest = self.buffer.split_off(at + end.len());
                return String::from_utf8(std::mem::replace(&mut self.buffer, rest)).ok();
            }
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    pub(crate) async fn until(&mut self, end: &str) -> String {
        match self.try_until(end).await {
            Some(text) => text,
            None => panic!("expected {end:?} after {:?}", String::from_utf8_lossy(&self.buffer)),
        }
    }

    /// A header section, lower case, or `None` at the end of the stream.
    pub(crate) async fn try_head(&mut self) -> Option<String> {
        self.try_until("\r\n\r\n").await.map(|head| head.to_lowercase())
    }

    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await.to_lowercase()
    }

    pub(crate) async fn exactly(&mut self, length: usize) -> String {
        while self.buffer.len() < length {
            assert!(self.stream.read_buf(&mut self.buffer).await.unwrap() > 0, "ended early");
        }
        let rest = self.buffer.split_off(length);
        String::from_utf8(std::mem::replace(&mut self.buffer, rest)).unwrap()
    }

    /// Reads and forgets until `seen` counts `length` bytes in all.
    pub(crate) async fn skip(&mut self, length: usize, seen: &Cell<usize>) {
        loop {
            seen.set(seen.get() + std::mem::take(&mut self.buffer).len());
            if seen.get() >= length || !matches!(self.stream.read_buf(&mut self.buffer).await, Ok(1..)) {
                return;
            }
        }
    }

    /// Everything to the end, and whether the end was orderly.
    pub(crate) async fn rest(&mut self) -> (String, bool) {
        let orderly = loop {
            match self.stream.read_buf(&mut self.buffer).await {
                Ok(0) => break true,
                Ok(_) => {}
                Err(_) => break false,
            }
        };
        (String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned(), orderly)
    }

    /// Sends a request and reads a response with `content-length`.
    pub(crate) async fn call(&mut self, request: &str) -> (String, String) {
        self.write(request).await;
        self.response().await
    }

    pub(crate) async fn response(&mut self) -> (String, String) {
        let head = self.head().await;
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        let body = self.exactly(length).await;
        (head, body)
    }
}

pub(crate) const GET: &str = "GET /orders/42?x=1 HTTP/1.1\r\nHost: orders.shop:8080\r\n\r\n";
pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
