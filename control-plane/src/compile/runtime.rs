//! Runtime layers: what a classic sidecar must know of its own pod, and nobody else tells it.
//!
//! A layer exists when there is something to say: that the app has ended. Until then the answer is that there is none, which
//! costs every classic sidecar one name. Native sidecars do not ask.

use envoy_types::pb::envoy::service::runtime::v3::Runtime;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use weft_wire::xds::{APP_ENDED, parse_runtime_layer};

use super::proto::Fields;
use super::{Resource, finish};
use crate::world::World;

pub(super) fn compile(world: &World, name: &str) -> Option<Resource> {
    let address = parse_runtime_layer(name)?.to_canonical();
    let mut pods = world.pods_on(address);
    // Of several, while the cluster reuses an address, nobody knows which one asks.
    let pod = pods.next().filter(|pod| pod.app_ended)?;
    if pods.any(|other| other.name != pod.name) {
        return None;
    }
    let ended = Value { kind: Some(value::Kind::BoolValue(true)) };
    let layer = Struct { fields: [(APP_ENDED.to_owned(), ended)].into() };
    let runtime = Runtime { name: name.to_owned(), layer: Some(layer) };
    Some(finish(runtime, Vec::<Fields>::new(), |_, _, _| {}, false))
}
