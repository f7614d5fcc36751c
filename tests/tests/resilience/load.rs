//! An open loop: requests leave at their time, whether or not earlier ones have been answered. That is how the world
//! calls, and the only way to see a storm.
//!
//! In: where to, what, how often. Out: every request with when it left, when it was answered and how. Invariant: nothing
//! is sent again, so what callees see beyond it was made by the proxy.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::MissedTickBehavior;
use weft_tests::backend::KEY;

/// Connections; each carries as many requests at once as the other side allows.
const CONNECTIONS: usize = 8;
/// Requests under way at most. A test that reaches it measures a queue, and fails.
const ACTIVE_MAX: usize = 2000;
/// How long the last answers may take after the end.
const LAST: Duration = Duration::from_secs(20);

/// One request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    /// When it was sent.
    pub(crate) sent: Instant,
    /// The status; 0 where the connection broke.
    pub(crate) status: u16,
}

impl Call {
    pub(crate) fn failed(&self) -> bool {
        self.status != 200
    }
}

/// Load that goes on until it is stopped.
pub(crate) struct Load {
    calls: Arc<Mutex<Vec<Call>>>,
    task: JoinHandle<anyhow::Result<()>>,
    end: tokio::sync::oneshot::Sender<()>,
}

impl Load {
    /// `GET /` of `authority` by way of `to`, so many times a second; every request has `key`.
    pub(crate) async fn start(
        to: SocketAddr,
        authority: &str,
        key: &'static str,
        per_second: u32,
    ) -> anyhow::Result<Self> {
        let mut connections = Vec::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            let (sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            connections.push(sender);
        }
        let calls = Arc::new(Mutex::new(Vec::new()));
        let (end, ended) = tokio::sync::oneshot::channel();
        let uri = format!("http://{authority}/");
        let period = Duration::from_secs(1) / per_second;
        let task = tokio::spawn(run(connections, uri, key, period, Arc::clone(&calls), ended));
        Ok(Self { calls, task, end })
    }

    /// Everything that was answered so far, by when it was sent.
    pub(crate) fn calls(&self, sent_since: Instant) -> Vec<Call> {
        lock(&self.calls).iter().filter(|call| call.sent >= sent_since).copied().collect()
    }

    /// Ends it, and waits for the last answers.
    pub(crate) async fn stop(self) -> anyhow::Result<Vec<Call>> {
        self.end.send(()).ok();
        tokio::time::timeout(LAST, self.task).await.context("the last answers do not come")???;
        Ok(std::mem::take(&mut *lock(&self.calls)))
    }
}

async fn run(
    connections: Vec<SendRequest<Empty<Bytes>>>,
    uri: String,
    key: &'static str,
    period: Duration,
    calls: Arc<Mutex<Vec<Call>>>,
    mut ended: tokio::sync::oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(period);
    // On a busy machine what was late follows at once: the loop stays open.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut active = JoinSet::new();
    for connection in connections.iter().cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = &mut ended => break,
        }
        while active.try_join_next().is_some() {}
        ensure!(active.len() < ACTIVE_MAX, "{ACTIVE_MAX} requests are under way");
        let request = Request::get(uri.as_str()).header(KEY, key).body(Empty::new())?;
        let (mut connection, calls) = (connection.clone(), Arc::clone(&calls));
        active.spawn(async move {
            let sent = Instant::now();
            let status = exchange(&mut connection, request).await.unwrap_or_default();
            lock(&calls).push(Call { sent, status });
        });
    }
    active.join_all().await;
    Ok(())
}

async fn exchange(
    connection: &mut SendRequest<Empty<Bytes>>,
    request: Request<Empty<Bytes>>,
) -> Result<u16, hyper::Error> {
    connection.ready().await?;
    let response = connection.send_request(request).await?;
    let status = response.status().as_u16();
    response.into_body().collect().await?;
    Ok(status)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data, whole after any panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
