//! The API server that tests are told with, as an ordinary client of the API sees it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use futures_util::StreamExt as _;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::json;
use weft_tests::apiserver::{ApiServer, Fault};

const POD: &str = "{apiVersion: v1, kind: Pod, metadata: {name: a, namespace: shop, labels: {app: a}}, \
                   spec: {containers: []}, status: {phase: Running}}";

fn client(server: &ApiServer) -> anyhow::Result<kube::Client> {
    let mut config = kube::Config::new(server.url().parse()?);
    config.default_retry = false;
    Ok(config.try_into()?)
}

#[tokio::test]
async fn lists_come_in_pages_of_one_moment() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    for name in 0..7 {
        server.apply(&POD.replace("name: a", &format!("name: p{name}")))?;
    }
    let pods: Api<Pod> = Api::all(client(&server)?);
    let first = pods.list(&ListParams::default().limit(3)).await?;
    assert_eq!(first.items.len(), 3);
    server.delete("Pod", "shop", "p5")?;
    let token = first.metadata.continue_.context("there is more")?;
    let rest = pods.list(&ListParams::default().limit(3).continue_token(&token)).await?;
    assert_eq!(rest.items.len(), 3, "what has been deleted since is still in it");
    let token = rest.metadata.continue_.context("there is more")?;
    let last = pods.list(&ListParams::default().limit(3).continue_token(&token)).await?;
    assert_eq!((last.items.len(), last.metadata.continue_.unwrap_or_default()), (1, String::new()));
    server.compact();
    let expired = pods.list(&ListParams::default().limit(3).continue_token(&token)).await;
    ensure!(matches!(&expired, Err(kube::Error::Api(status)) if status.code == 410), "{expired:?}");
    Ok(())
}

#[tokio::test]
async fn watches_go_on_from_a_version_until_it_is_too_old() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    server.apply(POD)?;
    server.bookmark_every(Duration::from_millis(20));
    let pods: Api<Pod> = Api::all(client(&server)?);
    let version = pods.list(&ListParams::default()).await?.metadata.resource_version.context("a version")?;
    let selected = WatchParams::default().fields("status.phase!=Succeeded");
    let mut watch = pods.watch(&selected, &version).await?.boxed();
    server.apply(&POD.replace("app: a", "app: b"))?;
    server.apply(&POD.replace("app: a", "app: b").replace("Running", "Succeeded"))?;
    let mut seen = Vec::new();
    while seen.last() != Some(&"bookmark") {
        seen.push(match watch.next().await.context("the watch goes on")?? {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            WatchEvent::Bookmark(_) => "bookmark",
            WatchEvent::Error(error) => anyhow::bail!("{error:?}"),
        });
    }
    seen.retain(|word| *word != "bookmark");
    assert_eq!(seen, ["modified", "deleted"], "what is no longer selected is gone");
    server.close_watches();
    while watch.next().await.is_some() {}
    server.compact();
    let expired = pods.watch(&selected, &version).await;
    let expired = expired?.boxed().next().await.context("an answer")?;
    ensure!(matches!(&expired, Err(kube::Error::Api(status)) if status.code == 410), "{expired:?}");
    Ok(())
}

#[tokio::test]
async fn what_somebody_else_has_changed_is_a_conflict() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client(&server)?);
    let map: ConfigMap =
        serde_json::from_value(json!({ "metadata": { "name": "m" }, "data": { "a": "1" } }))?;
    let map = maps.create(&PostParams::default(), &map).await?;
    let again = maps.create(&PostParams::default(), &map).await;
    ensure!(matches!(&again, Err(kube::Error::Api(s)) if s.reason == "AlreadyExists"), "{again:?}");
    let merged = Patch::Merge(json!({ "data": { "b": "2" } }));
    maps.patch("m", &PatchParams::default(), &merged).await?;
    let stale = maps.replace("m", &PostParams::default(), &map).await;
    ensure!(
        matches!(&stale, Err(kube::Error::Api(s)) if s.code == 409 && s.reason == "Conflict"),
        "{stale:?}"
    );
    Ok(())
}

#[tokio::test]
async fn status_is_written_apart() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    let kind = GroupVersionKind::gvk("weft.dev", "v1alpha1", "TrafficPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "trafficpolicies");
    let policies: Api<DynamicObject> = Api::namespaced_with(client(&server)?, "default", &resource);
    let absent = policies.list(&ListParams::default()).await;
    ensure!(matches!(&absent, Err(kube::Error::Api(status)) if status.code == 404), "{absent:?}");
    server.define_weft()?;
    let object = json!({ "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": { "name": "p" }, "spec": { "x": 1 }, "status": { "mine": true } });
    let made = policies.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    assert_eq!((made.metadata.generation, &made.data["status"]), (Some(1), &json!(null)));
    let patch = Patch::Merge(json!({ "spec": { "x": 2 }, "status": { "y": 3 } }));
    let patched = policies.patch_status("p", &PatchParams::default(), &patch).await?;
    assert_eq!((&patched.data["spec"]["x"], &patched.data["status"]["y"]), (&json!(1), &json!(3)));
    let patched = policies.patch("p", &PatchParams::default(), &patch).await?;
    assert_eq!((&patched.data["spec"]["x"], patched.metadata.generation), (&json!(2), Some(2)));
    server.delete("CustomResourceDefinition", "", "trafficpolicies.weft.dev")?;
    assert!(policies.list(&ListParams::default()).await.is_err());
    Ok(())
}

#[tokio::test]
async fn refusals_end_and_a_stopped_server_comes_back_with_what_it_had() -> anyhow::Result<()> {
    let mut server = ApiServer::start().await?;
    server.apply(POD)?;
    let pods: Api<Pod> = Api::all(client(&server)?);
    server.refuse(Fault {
        verb: Some("list"),
        resource: Some("pods"),
        code: 429,
        retry_after: Some(1),
        times: 1,
    });
    let refused = pods.list(&ListParams::default()).await;
    ensure!(matches!(&refused, Err(kube::Error::Api(status)) if status.code == 429), "{refused:?}");
    assert_eq!(pods.list(&ListParams::default()).await?.items.len(), 1);
    server.stop().await;
    assert!(pods.list(&ListParams::default()).await.is_err());
    server.resume().await?;
    assert_eq!(pods.list(&ListParams::default()).await?.items.len(), 1);
    assert_eq!(server.asked()[&("list".to_owned(), "pods".to_owned())], 3);
    Ok(())
}

#[tokio::test]
async fn tokens_are_known_for_whom_they_were_made() -> anyhow::Result<()> {
    let server = ApiServer::start().await?;
    server.know_token("secret", "shop", "web", "weft");
    let reviews: Api<TokenReview> = Api::all(client(&server)?);
    let ask = async |token: &str, audience: &str| {
        let spec = TokenReviewSpec { token: token.into(), audiences: Some(vec![audience.into()]) };
        let review = TokenReview { spec, ..TokenReview::default() };
        let answer = reviews.create(&PostParams::default(), &review).await?;
        anyhow::Ok(answer.status.unwrap_or_default())
    };
    let known = ask("secret", "weft").await?;
    assert_eq!(known.user.and_then(|user| user.username).as_deref(), Some("system:serviceaccount:shop:web"));
    assert_eq!(ask("secret", "other").await?.authenticated, Some(false));
    assert_eq!(ask("wrong", "weft").await?.authenticated, Some(false));
    Ok(())
}
