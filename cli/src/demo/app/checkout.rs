//! `orders` and what an order needs: `inventory`, `payments` (see there) and `notifications`.
//!
//! `inventory` is the slow one: usually some tens of milliseconds, sometimes most of a second.
//! `notifications` streams to whoever listens, as server-sent events and over WebSocket.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::response::sse::{Event, Sse};
use axum::routing::{get, post};
use futures_util::Stream;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::payments::{Charge, Payments};
use super::{Client, trace, work};

/// Orders remembered for `GET /orders/{id}`.
const ORDERS_MAX: usize = 500;
/// Notifications that a slow listener may be behind before it misses some.
const BACKLOG: usize = 64;

// === orders ===

#[derive(Debug)]
struct Orders {
    client: Client,
    payments: Payments,
    recent: Mutex<VecDeque<String>>,
}

pub(super) fn orders(client: Client, payments: &str) -> anyhow::Result<Router> {
    let orders = Orders { client, payments: Payments::new(payments)?, recent: Mutex::default() };
    Ok(Router::new()
        .route("/orders", post(place))
        .route("/orders/{id}", get(show))
        .route("/reports/daily", get(report))
        .with_state(Arc::new(orders)))
}

async fn place(
    State(orders): State<Arc<Orders>>,
    headers: HeaderMap,
    _body: String,
) -> Result<(StatusCode, Json<Value>), StatusCode> {
    let trace = trace(&headers);
    let id = identifier();
    let unavailable = |_| StatusCode::BAD_GATEWAY;
    let (status, _) = orders
        .client
        .post("http://inventory:8080/reservations", &trace, json!({ "order": id }).to_string())
        .await
        .map_err(unavailable)?;
    if !status.is_success() {
        return Err(StatusCode::CONFLICT);
    }
    let charge = Charge { order: id.clone(), cents: fastrand::u32(900..20_000), currency: "EUR".into() };
    let receipt = orders.payments.charge(charge, &trace).await.map_err(|_| StatusCode::PAYMENT_REQUIRED)?;
    let news = json!({ "order": id, "receipt": receipt.authorization }).to_string();
    // An order stands even when nobody hears of it.
    orders.client.post("http://notifications:8080/notifications", &trace, news).await.ok();
    let mut recent = orders.recent.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.len() == ORDERS_MAX {
        recent.pop_front();
    }
    recent.push_back(id.clone());
    Ok((StatusCode::CREATED, Json(json!({ "id": id }))))
}

async fn show(State(orders): State<Arc<Orders>>, Path(id): Path<String>) -> Result<Json<Value>, StatusCode> {
    let known = orders.recent.lock().unwrap_or_else(PoisonError::into_inner).contains(&id);
    if known { Ok(Json(json!({ "id": id, "state": "packed" }))) } else { Err(StatusCode::NOT_FOUND) }
}

async fn report(State(orders): State<Arc<Orders>>) -> Json<Value> {
    Json(json!({ "orders": orders.recent.lock().unwrap_or_else(PoisonError::into_inner).len() }))
}

/// A random UUID (version 4), as order numbers often are.
fn identifier() -> String {
    let bits = fastrand::u128(..) & !(0xf << 76) & !(0b11 << 62) | (4 << 76) | (0b10 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

// === inventory ===

pub(super) fn inventory() -> Router {
    Router::new().route("/reservations", post(reserve))
}

async fn reserve() -> (StatusCode, Json<Value>) {
    // Median 90 ms, one in a hundred around 700 ms.
    work(Duration::from_millis(90), 0.9).await;
    (StatusCode::CREATED, Json(json!({ "reserved": true })))
}

// === notifications ===

type News = broadcast::Sender<Arc<str>>;

pub(super) fn notifications() -> Router {
    let (news, _) = broadcast::channel::<Arc<str>>(BACKLOG);
    Router::new()
        .route("/notifications", post(publish))
        .route("/events", get(stream))
        .route("/ws", get(upgrade))
        .with_state(news)
}

async fn publish(State(news): State<News>, body: String) -> StatusCode {
    // An error only says that nobody listens at the moment.
    news.send(body.into()).ok();
    StatusCode::ACCEPTED
}

async fn stream(State(news): State<News>) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    Sse::new(futures_util::stream::unfold(news.subscribe(), |mut news| async move {
        let text = next(&mut news).await?;
        Some((Ok(Event::default().data(&*text)), news))
    }))
}

async fn upgrade(State(news): State<News>, upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(move |socket| push(socket, news.subscribe()))
}

async fn push(mut socket: WebSocket, mut news: broadcast::Receiver<Arc<str>>) {
    loop {
        tokio::select! {
            text = next(&mut news) => {
                let Some(text) = text else { return };
                if socket.send(Message::Text((*text).into())).await.is_err() {
                    return;
                }
            }
            // Listeners have nothing to say; the end of their stream is what matters.
            message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
        }
    }
}

async fn next(news: &mut broadcast::Receiver<Arc<str>>) -> Option<Arc<str>> {
    loop {
        match news.recv().await {
            Ok(text) => return Some(text),
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn order_numbers_are_uuids() {
        let id = super::identifier();
        assert_eq!(id.len(), 36);
        assert_eq!(&id[14..15], "4");
        assert!(matches!(&id[19..20], "8" | "9" | "a" | "b"), "{id}");
    }
}
