//! What shoppers see: `web`, and the `catalog` and `recommendations` behind it.
//!
//! `recommendations` fails one time in five. `web` shows its page without them, so no shopper notices: only the graph
//! does. `catalog` has a second version that takes its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::routing::{get, post};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use super::{Client, trace, work};

/// Products in the catalog.
const PRODUCTS: u32 = 240;
/// Every so manieth recommendation fails. Never several in a row: this is a service to worry about, not one to leave.
const FAILS_EVERY: u32 = 5;
/// After this long, `web` opens its stream of notifications again.
const STREAM_LIFETIME: Duration = Duration::from_secs(20);

// === web ===

pub(super) fn web(client: Client) -> Router {
    tokio::spawn(follow_notifications(client.clone()));
    Router::new()
        .route("/", get(home))
        .route("/products/{id}", get(product))
        .route("/cart/{user}/items", post(add_to_cart))
        .route("/cart/{user}", get(show_cart))
        .route("/checkout/{user}", post(checkout))
        .route("/orders/{id}", get(show_order))
        .with_state(Arc::new(client))
}

async fn home(State(client): State<Arc<Client>>, headers: HeaderMap) -> Result<Json<Value>, StatusCode> {
    let trace = trace(&headers);
    let (products, advice) = tokio::join!(
        forward(&client, "http://catalog:8080/products?page=1", &trace),
        client.get("http://recommendations:8080/popular", &trace)
    );
    Ok(Json(
        json!({ "products": products?, "recommended": advice.is_ok_and(|(status, _)| status.is_success()) }),
    ))
}

async fn product(
    State(client): State<Arc<Client>>,
    Path(id): Path<u32>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    let trace = trace(&headers);
    let (catalog, advice) = (
        format!("http://catalog:8080/products/{id}"),
        format!("http://recommendations:8080/products/{id}/similar"),
    );
    let (product, advice) = tokio::join!(forward(&client, &catalog, &trace), client.get(&advice, &trace));
    Ok(Json(json!({ "product": product?, "similar": advice.is_ok_and(|(status, _)| status.is_success()) })))
}

async fn add_to_cart(
    State(client): State<Arc<Client>>,
    Path(user): Path<String>,
    headers: HeaderMap,
    body: String,
) -> StatusCode {
    let answer = client.post(&format!("http://cart:8080/carts/{user}/items"), &trace(&headers), body).await;
    answer.map_or(StatusCode::BAD_GATEWAY, |(status, _)| status)
}

async fn show_cart(
    State(client): State<Arc<Client>>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    forward(&client, &format!("http://cart:8080/carts/{user}"), &trace(&headers)).await.map(Json)
}

async fn checkout(
    State(client): State<Arc<Client>>,
    Path(user): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    let trace = trace(&headers);
    let cart = forward(&client, &format!("http://cart:8080/carts/{user}"), &trace).await?;
    let order = json!({ "user": user, "cart": cart }).to_string();
    let (status, body) =
        client.post("http://orders:8080/orders", &trace, order).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    if !status.is_success() {
        return Err(status);
    }
    serde_json::from_slice(&body).map(Json).map_err(|_| StatusCode::BAD_GATEWAY)
}

async fn show_order(
    State(client): State<Arc<Client>>,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, StatusCode> {
    forward(&client, &format!("http://orders:8080/orders/{id}"), &trace(&headers)).await.map(Json)
}

async fn forward(client: &Client, url: &str, trace: &HeaderMap) -> Result<Value, StatusCode> {
    let (status, body) = client.get(url, trace).await.map_err(|_| StatusCode::BAD_GATEWAY)?;
    if !status.is_success() {
        return Err(status);
    }
    serde_json::from_slice(&body).map_err(|_| StatusCode::BAD_GATEWAY)
}

/// A page that is open somewhere hears of orders as they happen: server-sent events.
async fn follow_notifications(client: Client) {
    loop {
        if let Ok(response) = client.open("http://notifications:8080/events", &HeaderMap::new()).await {
            let mut body = response.into_body();
            let read = async { while let Some(Ok(_)) = body.frame().await {} };
            // The end of the stream and the end of its time are the same to us: open a new one.
            tokio::time::timeout(STREAM_LIFETIME, read).await.ok();
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

// === catalog ===

/// How long each version takes to find one product.
fn effort(version: &str) -> Duration {
    Duration::from_millis(if version == "v1" { 2 } else { 12 })
}

pub(super) fn catalog(version: &str) -> Router {
    let effort = effort(version);
    Router::new().route("/products", get(list)).route("/products/{id}", get(describe)).with_state(effort)
}

async fn list(State(effort): State<Duration>) -> Json<Value> {
    work(effort * 2, 0.4).await;
    Json((1..=12).map(|id| json!({ "id": id, "price_cents": price(id) })).collect())
}

async fn describe(State(effort): State<Duration>, Path(id): Path<u32>) -> Result<Json<Value>, StatusCode> {
    work(effort, 0.4).await;
    if !(1..=PRODUCTS).contains(&id) {
        return Err(StatusCode::NOT_FOUND);
    }
    Ok(Json(json!({ "id": id, "name": format!("Loom no. {id}"), "price_cents": price(id) })))
}

fn price(id: u32) -> u32 {
    900 + id * 37 % 9000
}

// === recommendations ===

pub(super) fn recommendations() -> Router {
    Router::new()
        .route("/popular", get(recommend))
        .route("/products/{id}/similar", get(recommend))
        .with_state(Arc::default())
}

async fn recommend(State(asked): State<Arc<AtomicU32>>) -> Result<Json<Value>, StatusCode> {
    work(Duration::from_millis(8), 0.5).await;
    if asked.fetch_add(1, Ordering::Relaxed) % FAILS_EVERY == FAILS_EVERY - 1 {
        return Err(StatusCode::SERVICE_UNAVAILABLE);
    }
    Ok(Json((0..4).map(|_| Value::from(fastrand::u32(1..=PRODUCTS))).collect()))
}
