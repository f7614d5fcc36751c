//! What an installation consists of, as `weft install` prints it.

use serde_json::Value;
use weft_control_plane::install;
use weft_control_plane::install::values::Values;

/// Every object, as JSON.
pub(super) fn objects() -> Vec<Value> {
    let objects = install::objects(&Values::default());
    objects.iter().filter_map(|object| serde_json::to_value(&object.value).ok()).collect()
}
