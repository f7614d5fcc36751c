//! Runtime layers: what a classic sidecar must know of its own pod, and nobody else tells it.
//!
//! A layer exists when there is something to say: that the app has ended. Until then the answer is that there is none, which
//! costs every classic sidecar one name. Native sidecars do not ask.

use envoy_types::pb::envoy::service::runtime::v3::Runtime;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use weft_wire::xds::{APP_ENDED, RuntimeLayer};

use super::proto::Fields;
use super::{Resource, finish};
use crate::world::{ObjectName, World};

/// The pod whose layer it is.
pub(super) fn pod(layer: RuntimeLayer<'_>) -> ObjectName {
    ObjectName { namespace: layer.namespace.into(), name: layer.pod.into() }
}

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    let layer = RuntimeLayer::parse(name)?;
    let ended = world.pod(&pod(layer))?.app_ended.as_deref()?;
    // A StatefulSet's next pod has the name of this one.
    if !layer.uid.is_empty() && layer.uid != ended {
        return None;
    }
    let ended = Value { kind: Some(value::Kind::BoolValue(true)) };
    let layer = Struct { fields: [(APP_ENDED.to_owned(), ended)].into() };
    let runtime = Runtime { name: name.to_owned(), layer: Some(layer) };
    Some(finish(runtime, Vec::<Fields>::new(), |_, _, _| {}, false))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::compile::depends_on;
    use crate::resources::{Content, parse};
    use crate::world::{Key, Touched};
    use crate::xds::Kind;

    fn apply(world: &mut World, uid: &str, name: &str, state: &str) -> Touched {
        let yaml = format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: shop, uid: {uid}}}, spec: {{restartPolicy: Never, \
             containers: [{{name: weft-proxy}}, {{name: app}}]}}, status: {{phase: Running, podIP: 10.0.0.7, containerStatuses: \
             [{{name: app, image: a, imageID: a, ready: false, restartCount: 0, state: {{{state}}}}}]}}}}"
        );
        let Content::Object(object) = parse(&yaml).remove(0).content else { panic!("{yaml}") };
        world.apply_all([object.set()], Instant::now())
    }

    #[test]
    fn a_pod_hears_of_its_own_end_and_not_of_another_ones_at_its_address_or_of_its_name() {
        let mut world = World::default();
        let (old, next) = ("pod/shop/db-0/1", "pod/shop/db-0/2");
        let key = depends_on(Kind::Runtime, old, "shop").expect("a layer");
        assert_eq!(depends_on(Kind::Runtime, "pod/10.0.0.7", "shop"), None);
        apply(&mut world, "1", "db-0", "running: {}");
        assert!(compile(&world, old).is_none());
        assert!(apply(&mut world, "1", "db-0", "terminated: {exitCode: 0}").contains(&key));
        assert!(compile(&world, old).is_some());
        assert!(compile(&world, "pod/shop/db-0").is_some(), "who has no uid is known by name");
        // The next one of the name asks before the source has told of it.
        assert!(compile(&world, next).is_none());
        // Another one has got the address.
        let other = Key::Pod(ObjectName { namespace: "shop".into(), name: "web-1".into() });
        assert!(!apply(&mut world, "3", "web-1", "running: {}").contains(&other), "nothing to say of it");
        assert!(compile(&world, "pod/shop/web-1/3").is_none());
        // When the next one is known, nothing is said of either.
        assert!(apply(&mut world, "2", "db-0", "running: {}").contains(&key));
        assert!(compile(&world, old).is_none() && compile(&world, next).is_none());
    }
}
