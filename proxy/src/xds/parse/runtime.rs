//! A `Runtime` layer → what it says about this pod.
//!
//! In: the `Any`. Out: whether the app has ended. A layer is a map of settings that grows with every release, so fields that
//! nobody knows here are not refused; the one that is known must be what it should be.

use envoy_types::pb::envoy::service::runtime::v3::Runtime;
use envoy_types::pb::google::protobuf::{Any, value::Kind};
use weft_wire::xds::APP_ENDED;

use super::{Invalid, decode, same_name};

/// Reads the layer.
pub(in crate::xds) fn app_ended(name: &str, any: &Any) -> Result<bool, Invalid> {
    let runtime: Runtime = decode(any, "runtime")?;
    same_name("name", &runtime.name, name)?;
    let field = format!("layer.{APP_ENDED}");
    let layer = runtime.layer.unwrap_or_default();
    match layer.fields.get(APP_ENDED).map(|value| value.kind.as_ref()) {
        None => Ok(false),
        Some(Some(Kind::BoolValue(ended))) => Ok(*ended),
        Some(_) => Err(Invalid::value(field, "", "is not true or false")),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::{Struct, Value};
    use prost::{Message as _, Name as _};

    use super::*;

    fn layer(fields: &[(&str, Kind)]) -> Any {
        let value = |kind: &Kind| Value { kind: Some(kind.clone()) };
        let fields = fields.iter().map(|(key, kind)| ((*key).to_owned(), value(kind))).collect();
        let runtime = Runtime { name: "pod/shop/db-0/1".into(), layer: Some(Struct { fields }) };
        Any { type_url: Runtime::type_url(), value: runtime.encode_to_vec() }
    }

    #[test]
    fn a_layer_says_whether_the_app_has_ended() {
        let read = |any: &Any| app_ended("pod/shop/db-0/1", any).map_err(|error| error.to_string());
        assert_eq!(read(&layer(&[])), Ok(false));
        assert_eq!(
            read(&layer(&[(APP_ENDED, Kind::BoolValue(true)), ("newer", Kind::NumberValue(1.0))])),
            Ok(true)
        );
        assert!(
            read(&layer(&[(APP_ENDED, Kind::StringValue("true".into()))]))
                .is_err_and(|e| e.contains(APP_ENDED))
        );
        assert!(app_ended("pod/shop/db-0/2", &layer(&[])).is_err());
    }
}
