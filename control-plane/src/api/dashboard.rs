//! The dashboard's files, embedded by `build.rs`.
//!
//! Files under `assets/` bear a hash of their content in their name and are cached for good; everything else is
//! asked for again each time. A path that is no file gets the page itself, which finds its view in the path.

use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use rust_embed::{EmbeddedFile, RustEmbed};

use super::Problem;

#[derive(RustEmbed)]
#[folder = "$OUT_DIR/dashboard"]
struct Files;

const PAGE: &str = "index.html";

pub(super) fn serve(path: &str) -> Response {
    let path = path.trim_start_matches('/');
    if let Some(file) = Files::get(path) {
        return respond(path, file);
    }
    // A missing script or image must not be answered with a page: the browser would try to run it.
    let is_file =
        path.starts_with("assets/") || path.rsplit('/').next().is_some_and(|name| name.contains('.'));
    match Files::get(PAGE) {
        Some(page) if !is_file => respond(PAGE, page),
        _ => Problem::not_found(format!("there is nothing at /{path}")).into_response(),
    }
}

fn respond(path: &str, file: EmbeddedFile) -> Response {
    let cache = if path.starts_with("assets/") { "public, max-age=31536000, immutable" } else { "no-cache" };
    let kind = match file.metadata.mimetype() {
        kind if kind.starts_with("text/") => HeaderValue::from_str(&format!("{kind}; charset=utf-8")),
        kind => HeaderValue::from_str(kind),
    };
    let kind = kind.unwrap_or(HeaderValue::from_static("application/octet-stream"));
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, HeaderValue::from_static(cache))];
    (headers, file.data).into_response()
}
