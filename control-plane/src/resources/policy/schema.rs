//! What an API server is told about policies: the words in which their schemas are written.
//!
//! In: nothing. Out: descriptions of texts and numbers, named by the types of the API (`#[schemars(with = "…")]`), and of
//! what fields mean together, as rules in CEL (`x-kubernetes-validations`). Both are for people who write a policy into a
//! cluster: what the reader would refuse, the API server refuses at once, in the reader's words.
//!
//! Invariant: the schema refuses nothing that the reader takes (`install::crd` has the test). Surprise: an API server
//! counts what a rule may cost at worst before it takes a schema, so every text and list that a rule looks at has a bound.
//! Non-goal: what only a program can tell, such as whether a regular expression compiles.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};
use weft_wire::tls;

use crate::world::policy::RetryOn;

/// A rule: the field that it is about (empty for the object itself), what must hold, what to say otherwise.
pub(in crate::resources) type Rule = (&'static str, &'static str, &'static str);

/// Rules as an API server reads them.
pub(in crate::resources) fn rules(rules: &[Rule]) -> Value {
    let rules = rules.iter().map(|(field, rule, message)| match *field {
        "" => json!({ "rule": rule, "message": message }),
        field => json!({ "rule": rule, "message": message, "fieldPath": format!(".{field}") }),
    });
    rules.collect()
}

/// Beyond this nothing is counted in 32 bits.
const COUNT_MAX: u32 = u32::MAX;
/// Longest name: a DNS name.
const NAME_MAX: usize = 253;
/// Names of objects, and parts of identities.
const NAME: &str = "^[a-z0-9._-]+$";
/// A token of HTTP (RFC 9110): names of methods, headers and cookies.
const TOKEN: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";
/// Durations of the Gateway API (GEP-2257), and how long such a text can be.
const DURATION: (&str, usize) = ("^([0-9]{1,5}(h|m|s|ms)){1,4}$", 28);

/// Whether mutual TLS is asked for, in words.
pub(in crate::resources) const MODES: [&str; 3] =
    [tls::Mode::Strict.word(), tls::Mode::Permissive.word(), tls::Mode::Disabled.word()];

macro_rules! described {
    ($($(#[$doc:meta])+ $name:ident = $schema:expr;)+) => {$(
        $(#[$doc])+
        pub(in crate::resources) enum $name {}

        impl JsonSchema for $name {
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                $schema
            }
        }
    )+};
}

described! {
    /// A duration that may be zero.
    Time = json_schema!({ "type": "string", "pattern": DURATION.0, "maxLength": DURATION.1 });

    /// A duration that is not zero.
    Span = json_schema!({
        "type": "string",
        "pattern": DURATION.0,
        "maxLength": DURATION.1,
        "x-kubernetes-validations": rules(&[("", "duration(self) > duration('0s')", "must be longer than zero")]),
    });

    /// A whole number, 0 included.
    Count = whole(0, COUNT_MAX);

    /// A whole number, 0 excluded.
    Positive = whole(1, COUNT_MAX);

    /// A whole percentage, 0 included.
    Percent = whole(0, 100);

    /// A whole percentage, 0 excluded.
    PositivePercent = whole(1, 100);

    /// A percentage with a fraction.
    Share = json_schema!({ "type": "number", "format": "double", "minimum": 0, "maximum": 100 });

    /// A factor, counted in thousandths.
    Factor = json_schema!({ "type": "number", "format": "double", "minimum": 0.001, "maximum": 100 });

    /// A port.
    Port = json_schema!({ "type": "integer", "format": "int32", "minimum": 1, "maximum": 65535 });

    /// A name of an object, or a part of an identity.
    Name = json_schema!({ "type": "string", "pattern": NAME, "maxLength": NAME_MAX });

    /// The name of a namespace.
    Namespace = json_schema!({ "type": "string", "pattern": "^[a-z0-9_-]+$", "maxLength": NAME_MAX });

    /// The name of a part of an object.
    Section = json_schema!({ "type": "string", "maxLength": NAME_MAX });

    /// The name of a method, a header or a cookie.
    Token = json_schema!({ "type": "string", "pattern": TOKEN });

    /// A failure after which a request may be tried again.
    Failure = json_schema!({ "type": "string", "enum": RetryOn::ALL.map(RetryOn::word) });

    /// What has a limit of rate of its own.
    Bucket = json_schema!({ "type": "string", "enum": ["service", "route", "caller"] });

    /// Whether mutual TLS is asked for.
    Mode = json_schema!({ "type": "string", "enum": MODES });

    /// A path without its query.
    Path = json_schema!({ "type": "string", "pattern": "^/[^\\x00-\\x20\\x7f-\\x{9f}]*$" });
}

/// A whole number within bounds, both included.
fn whole(min: u32, max: u32) -> Schema {
    json_schema!({ "type": "integer", "format": "int64", "minimum": min, "maximum": max })
}
