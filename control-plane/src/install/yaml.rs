//! Objects as text: YAML with fields in the API's order.

use serde::Serialize;
use serde_yaml::Value;

/// One document, without the line that parts it from others.
///
/// # Panics
/// Never on objects of the API: their maps have texts as keys.
#[must_use]
pub fn document(object: &impl Serialize) -> String {
    let mut value = serde_yaml::to_value(object).expect("an object of the API is YAML");
    whole(&mut value);
    serde_yaml::to_string(&value).expect("what was read is YAML")
}

/// Writes numbers without a fraction as people do: schemas have all their bounds as fractions.
fn whole(value: &mut Value) {
    /// Whole numbers are exact up to here.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value {
        Value::Number(number) => {
            let exact = number.as_f64().filter(|number| number.fract() == 0.0 && number.abs() < EXACT);
            if let Some(exact) = exact.filter(|_| number.is_f64()) {
                *number = (exact as i64).into();
            }
        }
        Value::Sequence(items) => items.iter_mut().for_each(whole),
        Value::Mapping(fields) => fields.values_mut().for_each(whole),
        _ => {}
    }
}
