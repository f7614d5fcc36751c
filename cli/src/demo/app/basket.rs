//! `cart`, and the `cache` it keeps its carts in.
//!
//! The cache speaks a protocol of its own over TCP, and it speaks first: a greeting, then one line per
//! question. A mesh that waits for the client's first byte would wait for ever on it.
//!
//! A `cart` that is told to be frail fails in regular phases: it answers 503 at once, as a program does that has lost
//! what it needs. The other replicas know nothing of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use axum::Json;
use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::work;

/// The longest line either side accepts.
const LINE_MAX: u64 = 4096;
/// Keys the cache holds; the demo's shoppers have about a hundred carts.
const KEYS_MAX: usize = 10_000;
/// Items a cart holds: ten product ids of three digits stay far below a line.
const ITEMS_MAX: usize = 10;
/// `cart` opens a new connection to the cache after this long, so that connections come and go.
const CONNECTION_LIFETIME: Duration = Duration::from_secs(4);
/// A frail cart is well for this long after its start …
const WELL_FIRST: Duration = Duration::from_secs(12);
/// … then fails for this long, less than callers leave it alone …
const FAILING: Duration = Duration::from_secs(8);
/// … and again after each such period: time to see that all is well again.
const PERIOD: Duration = Duration::from_secs(45);

// === cart ===

#[derive(Debug)]
struct Cache {
    host: String,
    port: u16,
    connection: Mutex<Option<(BufReader<TcpStream>, Instant)>>,
}

pub(super) fn cart(cache: &str, frail: bool) -> anyhow::Result<Router> {
    let (host, port) = cache.rsplit_once(':').context("the cache's address is HOST:PORT")?;
    let port = port.parse().context("the cache's port")?;
    let cache = Arc::new(Cache { host: host.into(), port, connection: Mutex::default() });
    let router = Router::new()
        .route("/carts/{user}", get(show))
        .route("/carts/{user}/items", post(add))
        .with_state(cache);
    Ok(if frail { router.layer(middleware::from_fn_with_state(Instant::now(), moods)) } else { router })
}

async fn moods(State(started): State<Instant>, request: Request, next: Next) -> Response {
    if fails(started.elapsed()) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    next.run(request).await
}

/// Whether a frail cart fails, so long after its start.
fn fails(age: Duration) -> bool {
    age.checked_sub(WELL_FIRST).is_some_and(|age| age.as_millis() % PERIOD.as_millis() < FAILING.as_millis())
}

async fn show(State(cache): State<Arc<Cache>>, Path(user): Path<String>) -> Result<Json<Value>, StatusCode> {
    let items = cache.ask(&format!("GET {user}")).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    Ok(Json(json!({ "items": items.split(',').filter(|item| !item.is_empty()).collect::<Vec<_>>() })))
}

async fn add(State(cache): State<Arc<Cache>>, Path(user): Path<String>, item: String) -> StatusCode {
    work(Duration::from_millis(1), 0.3).await;
    let update = async {
        let items = cache.ask(&format!("GET {user}")).await?;
        let mut items: Vec<&str> = items.split(',').filter(|item| !item.is_empty()).collect();
        let item: u32 = item.trim().parse().unwrap_or(1);
        let item = item.to_string();
        items.push(&item);
        let first = items.len().saturating_sub(ITEMS_MAX);
        cache.ask(&format!("SET {user} {}", items[first..].join(","))).await
    };
    update.await.map_or(StatusCode::BAD_GATEWAY, |_| StatusCode::CREATED)
}

impl Cache {
    async fn ask(&self, question: &str) -> anyhow::Result<String> {
        let mut slot = self.connection.lock().await;
        let kept = slot.take().filter(|(_, opened)| opened.elapsed() < CONNECTION_LIFETIME);
        let (mut stream, opened) = match kept {
            Some(kept) => kept,
            None => {
                let mut stream = BufReader::new(weft_dns::connect(&self.host, self.port).await?);
                stream.get_ref().set_nodelay(true)?;
                let greeting = line(&mut stream).await?;
                anyhow::ensure!(greeting.starts_with("+CACHE"), "unexpected greeting {greeting:?}");
                (stream, Instant::now())
            }
        };
        stream.write_all(format!("{question}\r\n").as_bytes()).await?;
        let answer = line(&mut stream).await?;
        *slot = Some((stream, opened));
        Ok(answer.trim_start_matches('+').to_owned())
    }
}

// === cache ===

type Table = Arc<std::sync::Mutex<HashMap<String, String>>>;

pub(super) async fn cache(listener: TcpListener) -> anyhow::Result<()> {
    let table = Table::default();
    loop {
        let (stream, _) = listener.accept().await?;
        let table = Arc::clone(&table);
        // Ends with its connection; the cache's clients are the few cart programs.
        tokio::spawn(async move { converse(stream, &table).await.ok() });
    }
}

async fn converse(stream: TcpStream, table: &Table) -> anyhow::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    stream.write_all(b"+CACHE 1.0 ready\r\n").await?;
    loop {
        let question = line(&mut stream).await?;
        let answer = answer(&question, table);
        stream.write_all(format!("+{answer}\r\n").as_bytes()).await?;
    }
}

fn answer(question: &str, table: &Table) -> String {
    let mut table = table.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut words = question.splitn(3, ' ');
    match (words.next(), words.next(), words.next()) {
        (Some("GET"), Some(key), None) => table.get(key).cloned().unwrap_or_default(),
        (Some("SET"), Some(key), Some(value)) => {
            if table.len() >= KEYS_MAX {
                table.clear();
            }
            table.insert(key.into(), value.into());
            "OK".into()
        }
        _ => "ERR unknown command".into(),
    }
}

async fn line(stream: &mut BufReader<impl AsyncRead + Unpin>) -> anyhow::Result<String> {
    let mut line = String::new();
    let length = (&mut *stream).take(LINE_MAX).read_line(&mut line).await?;
    anyhow::ensure!(length > 0, "the connection ended");
    anyhow::ensure!(line.ends_with('\n'), "a line of more than {LINE_MAX} bytes");
    Ok(line.trim_end().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frail_cart_fails_in_regular_phases() {
        let failing: Vec<u64> = (0..100).filter(|&second| fails(Duration::from_secs(second))).collect();
        let phase = |from: u64| from..from + FAILING.as_secs();
        assert_eq!(failing, phase(12).chain(phase(57)).collect::<Vec<_>>());
    }

    #[test]
    fn the_cache_keeps_what_it_was_given() {
        let table = Table::default();
        assert_eq!(answer("GET ann", &table), "");
        assert_eq!(answer("SET ann 1,2", &table), "OK");
        assert_eq!(answer("GET ann", &table), "1,2");
        assert_eq!(answer("HELLO", &table), "ERR unknown command");
    }
}
