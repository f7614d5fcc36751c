//! The control plane follows a cluster: what the API server says moves real traffic, and what happens to the server on the
//! way loses nothing.

use std::net::SocketAddr;

use anyhow::{Context as _, ensure};
use axum::Router;
use axum::routing::any;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use weft_tests::apiserver::{ApiServer, Fault};
use weft_tests::client::{self, Ask};
use weft_tests::embedded::{PATIENCE, Plane, Sidecar};
use weft_tests::poll;

const SERVICE: &str = "{apiVersion: v1, kind: Service, metadata: {name: orders, namespace: shop}, \
                       spec: {clusterIP: 10.96.0.1, selector: {app: orders}, \
                       ports: [{name: web, port: 8080, targetPort: http, appProtocol: http}]}}";

/// An app that answers with its name.
async fn app(name: &'static str) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let router = Router::new().route("/{*path}", any(async move || name));
    tokio::spawn(async move { axum::serve(listener, router).await });
    Ok(address)
}

fn slice(app: SocketAddr) -> String {
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": { "name": "orders-1", "namespace": "shop", "labels": { "kubernetes.io/service-name": "orders" } },
        "ports": [{ "name": "web", "port": app.port() }],
        "endpoints": [{ "addresses": [app.ip().to_string()], "conditions": { "ready": true } }],
    });
    object.to_string()
}

fn refuse(verb: &'static str, resource: Option<&'static str>, code: u16, times: usize) -> Fault {
    Fault { verb: Some(verb), resource, code, retry_after: Some(1), times }
}

/// A caller of `orders` in a cluster with that service.
struct Story {
    server: ApiServer,
    plane: Plane,
    caller: Sidecar,
    _files: tempfile::TempDir,
}

impl Story {
    async fn begin(objects: &[&str]) -> anyhow::Result<Self> {
        let server = ApiServer::start().await?;
        server.apply(SERVICE)?;
        for object in objects {
            server.apply(object)?;
        }
        Self::at(server).await
    }

    async fn at(server: ApiServer) -> anyhow::Result<Self> {
        let files = tempfile::tempdir()?;
        let plane = Plane::follow(&server).await?;
        let flags = ["--outbound-forward=127.0.0.1:0=orders.shop:8080"];
        let caller = Sidecar::start(files.path(), plane.control, "web", &flags).await?;
        Ok(Self { server, plane, caller, _files: files })
    }

    async fn ask(&self, path: &str) -> anyhow::Result<client::Answer> {
        client::once(self.caller.address("/forwards/0")?, &Ask::get(path, "orders")).await
    }

    /// Calls until this app answers.
    async fn reaches(&self, path: &str, app: &str) -> anyhow::Result<()> {
        poll::until(app, PATIENCE, async || {
            let answer = self.ask(path).await?;
            ensure!(answer.status == StatusCode::OK && answer.body == app, "{answer:?}");
            anyhow::Ok(())
        })
        .await
    }

    /// What is wrong, and what is worth knowing.
    async fn problems(&self) -> anyhow::Result<(Vec<Value>, Vec<String>)> {
        let said = client::json(self.plane.api, "/api/config/errors").await?;
        let errors = said["errors"].as_array().context("no errors")?.clone();
        Ok((errors, serde_json::from_value(said["notices"].clone())?))
    }

    async fn end(self) -> anyhow::Result<()> {
        self.caller.stop().await?;
        self.plane.stop().await;
        Ok(())
    }
}

#[tokio::test]
async fn an_endpoint_slice_moves_the_traffic() -> anyhow::Result<()> {
    let (one, two) = (app("one").await?, app("two").await?);
    let story = Story::begin(&[&slice(one)]).await?;
    story.reaches("/a", "one").await?;
    story.server.apply(&slice(two))?;
    story.reaches("/a", "two").await?;
    story.server.delete("EndpointSlice", "shop", "orders-1")?;
    poll::until("nobody serves it", PATIENCE, async || {
        let answer = story.ask("/a").await?;
        ensure!(answer.status == StatusCode::SERVICE_UNAVAILABLE, "{answer:?}");
        anyhow::Ok(())
    })
    .await?;
    story.end().await
}

#[tokio::test]
async fn what_happens_to_the_server_loses_nothing() -> anyhow::Result<()> {
    let apps =
        [app("one").await?, app("two").await?, app("three").await?, app("four").await?, app("five").await?];
    let mut story = Story::begin(&[&slice(apps[0])]).await?;
    story.reaches("/a", "one").await?;

    // Watches end, and while they do the world goes on.
    story.server.close_watches();
    story.server.apply(&slice(apps[1]))?;
    story.reaches("/a", "two").await?;

    // A version is too old: everything is listed again.
    story.server.stop().await;
    story.server.apply(&slice(apps[2]))?;
    story.server.compact();
    story.server.resume().await?;
    story.reaches("/a", "three").await?;

    // The server throttles, and refuses lists page by page.
    story.server.refuse(refuse("watch", None, 429, 3));
    story.server.refuse(refuse("list", Some("endpointslices"), 429, 2));
    story.server.compact();
    story.server.apply(&slice(apps[3]))?;
    story.server.expire_watches();
    story.reaches("/a", "four").await?;

    // It is away for longer than people should not know of; what was known stays in force.
    story.server.stop().await;
    poll::until("people are told", PATIENCE, async || {
        let (errors, _) = story.problems().await?;
        let away = errors.iter().find(|error| error["effect"] == "state_kept").context("no problem")?;
        ensure!(away["message"].as_str().is_some_and(|text| text.contains("EndpointSlice")), "{away}");
        anyhow::Ok(())
    })
    .await?;
    story.reaches("/a", "four").await?;
    story.server.apply(&slice(apps[4]))?;
    story.server.resume().await?;
    story.reaches("/a", "five").await?;
    poll::until("the problem is over", PATIENCE, async || {
        let (errors, _) = story.problems().await?;
        ensure!(errors.is_empty(), "{errors:?}");
        anyhow::Ok(())
    })
    .await?;
    story.end().await
}

#[tokio::test]
async fn kinds_that_are_installed_later_are_followed_without_a_restart() -> anyhow::Result<()> {
    let (orders, canary) = (app("orders").await?, app("canary").await?);
    let other = slice(canary).replace("orders", "canary");
    let service = SERVICE.replace("orders", "canary").replace("10.96.0.1", "10.96.0.2");
    let story = Story::begin(&[&slice(orders), &service, &other]).await?;
    story.reaches("/a", "orders").await?;
    let (errors, notices) = story.problems().await?;
    ensure!(errors.is_empty() && notices.len() == 2, "{errors:?} {notices:?}");
    ensure!(notices.iter().any(|notice| notice.contains("HTTPRoute")), "{notices:?}");

    story.server.define_gateway_api()?;
    let route = "{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {name: r, namespace: shop}, \
                 spec: {parentRefs: [{group: '', kind: Service, name: orders}], \
                 rules: [{backendRefs: [{name: canary, port: 8080}]}]}}";
    story.server.apply(route)?;
    story.reaches("/a", "canary").await?;
    poll::until("nothing of the Gateway API is missed", PATIENCE, async || {
        let (_, notices) = story.problems().await?;
        ensure!(notices.iter().all(|notice| !notice.contains("Route")), "{notices:?}");
        anyhow::Ok(())
    })
    .await?;

    // A route that cannot be obeyed changes nothing, and people are told which field it is.
    story.server.apply(&route.replace("name: canary", "name: orders, wieght: 3"))?;
    let error = poll::until("people are told", PATIENCE, async || {
        let (errors, _) = story.problems().await?;
        errors.into_iter().next().context("no error")
    })
    .await?;
    assert_eq!(error["object"], "HTTPRoute shop/r");
    assert_eq!(error["field"], "spec.rules[0].backendRefs[0].wieght");
    assert_eq!(error["effect"], "object_kept_last_good");
    story.reaches("/a", "canary").await?;

    story.server.delete("HTTPRoute", "shop", "r")?;
    story.reaches("/a", "orders").await?;
    ensure!(story.problems().await?.0.is_empty(), "what is gone is no problem");
    story.end().await
}

#[tokio::test]
async fn nobody_is_served_from_half_a_cluster() -> anyhow::Result<()> {
    let one = app("one").await?;
    let server = ApiServer::start().await?;
    server.apply(SERVICE)?;
    server.apply(&slice(one))?;
    // Everything but the slices comes at once; they come when the server has been asked five times.
    server.refuse(Fault { retry_after: Some(1), ..refuse("list", Some("endpointslices"), 503, 3) });
    let story = Story::at(server).await?;
    let asked = story.server.asked();
    ensure!(asked[&("list".to_owned(), "endpointslices".to_owned())] == 4, "{asked:?}");
    ensure!(asked.contains_key(&("watch".to_owned(), "services".to_owned())), "{asked:?}");
    let answer = story.ask("/a").await?;
    ensure!(answer.status == StatusCode::OK && answer.body == "one", "the first answer is whole: {answer:?}");
    story.end().await
}
