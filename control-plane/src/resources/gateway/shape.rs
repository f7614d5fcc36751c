//! The shapes that routes are made of, each once.
//!
//! The generated Gateway API types repeat every shape for every place it can stand in: a header modifier alone has
//! six types. They do the strict reading, so that a field the API does not have is refused; what they hold is then
//! carried over to the shapes here by its serialized form, which is the same in every place.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::resources::Refusal;
use crate::resources::policy::schema;

/// What a path must be that is not an expression.
macro_rules! path_rule {
    ($rule:literal, $message:literal) => {
        (
            "value",
            concat!("!has(self.value) || has(self.type) && self.type == 'RegularExpression' || ", $rule),
            $message,
        )
    };
}

/// Carries a value over from a generated type.
pub(super) fn carry<A: Serialize, B: DeserializeOwned>(generated: &A) -> Result<B, Refusal> {
    let carried = serde_json::to_value(generated).and_then(serde_json::from_value);
    // Only a newer version of the API can bring what these shapes do not have.
    carried.map_err(|error| (path!["spec"], error.to_string()))
}

/// `spec` of an HTTPRoute or a GRPCRoute. What only one of the two has is optional.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Spec<M> {
    #[serde(default)]
    pub(super) parent_refs: Vec<Reference>,
    #[serde(default)]
    pub(super) hostnames: Vec<String>,
    #[serde(default = "Option::default")]
    pub(super) rules: Option<Vec<Rule<M>>>,
    /// Known, so that it is no error; Gateways are not ours.
    #[serde(default, rename = "useDefaultGateways")]
    _gateways: serde::de::IgnoredAny,
}

/// One rule; `M` is what a request is matched by.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Rule<M> {
    #[serde(default)]
    pub(super) name: Option<String>,
    #[serde(default = "Vec::new")]
    pub(super) matches: Vec<M>,
    #[serde(default)]
    pub(super) filters: Vec<Filter>,
    #[serde(default)]
    pub(super) backend_refs: Vec<BackendRef>,
    #[serde(default)]
    pub(super) timeouts: Timeouts,
    #[serde(default)]
    pub(super) retry: Option<Retry>,
    #[serde(default)]
    pub(super) session_persistence: Option<serde_json::Value>,
}

/// A reference to another object, as parent, as backend or as mirror.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Reference {
    #[serde(default)]
    pub(super) group: Option<String>,
    #[serde(default)]
    pub(super) kind: Option<String>,
    pub(super) name: String,
    #[serde(default)]
    pub(super) namespace: Option<String>,
    #[serde(default)]
    pub(super) port: Option<i32>,
    #[serde(default)]
    pub(super) section_name: Option<String>,
}

/// A weighted backend. Its reference stands beside its weight.
#[derive(Deserialize)]
pub(super) struct BackendRef {
    #[serde(flatten)]
    pub(super) to: Reference,
    #[serde(default)]
    pub(super) weight: Option<i32>,
    #[serde(default)]
    pub(super) filters: Vec<Filter>,
}

/// How an HTTP request is matched.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct HttpMatch {
    #[serde(default)]
    pub(super) path: Option<PathMatch>,
    #[serde(default)]
    pub(super) method: Option<String>,
    #[serde(default)]
    pub(super) headers: Vec<ValueMatch>,
    #[serde(default)]
    pub(super) query_params: Vec<ValueMatch>,
}

/// How a gRPC request is matched.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct GrpcMatch {
    #[serde(default)]
    pub(super) method: Option<MethodMatch>,
    #[serde(default)]
    pub(super) headers: Vec<ValueMatch>,
}

/// A path, by `type`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::rules(PATH)))]
#[serde(deny_unknown_fields)]
pub(in crate::resources) struct PathMatch {
    /// How the value is meant; `PathPrefix` if absent.
    #[serde(default, rename = "type")]
    pub(super) kind: PathKind,
    /// The path, its beginning, or an expression for all of it; `/` if absent.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub(super) value: Option<String>,
}

const PATH: &[schema::Rule] = &[
    path_rule!("self.value.startsWith('/')", "does not begin with a slash"),
    path_rule!("!self.value.contains('//')", "has an empty segment"),
    path_rule!("!self.value.contains('/./') && !self.value.endsWith('/.')", "has a segment of dots"),
    path_rule!("!self.value.contains('/../') && !self.value.endsWith('/..')", "has a segment of dots"),
    path_rule!("!self.value.contains('?')", "has a query"),
    path_rule!("!self.value.contains('#')", "has a fragment"),
    path_rule!("!self.value.contains(' ')", "has a character that no path can have"),
    (
        "value",
        "!has(self.type) || self.type != 'RegularExpression' || has(self.value) && self.value != ''",
        "is empty",
    ),
];

/// How a path's value is meant.
#[derive(Debug, Deserialize, Default, Clone, Copy, JsonSchema)]
pub(in crate::resources) enum PathKind {
    Exact,
    #[default]
    PathPrefix,
    RegularExpression,
}

/// How another value is meant.
#[derive(Debug, Deserialize, Default, Clone, Copy, JsonSchema)]
pub(in crate::resources) enum ValueKind {
    #[default]
    Exact,
    RegularExpression,
}

/// A header or a query parameter.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::rules(VALUE)))]
#[serde(deny_unknown_fields)]
pub(in crate::resources) struct ValueMatch {
    /// How the value is meant; `Exact` if absent.
    #[serde(default, rename = "type")]
    pub(super) kind: ValueKind,
    /// Its name.
    #[schemars(with = "schema::Token")]
    pub(super) name: String,
    /// Its value, or an expression for all of it.
    #[schemars(length(max = 4096))]
    pub(super) value: String,
}

const VALUE: &[schema::Rule] = &[(
    "value",
    "!has(self.type) || self.type != 'RegularExpression' || size(self.value) > 0 && size(self.value) <= 1024",
    "is empty, or longer than 1024 bytes",
)];

/// A gRPC service and method.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-validations" = schema::rules(CALL)))]
#[serde(deny_unknown_fields)]
pub(in crate::resources) struct MethodMatch {
    /// How service and method are meant; `Exact` if absent.
    #[serde(default, rename = "type")]
    pub(super) kind: ValueKind,
    /// The service, with its package; any if absent.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub(super) service: Option<String>,
    /// The method; any if absent.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub(super) method: Option<String>,
}

const CALL: &[schema::Rule] = &[
    (
        "",
        "has(self.service) && self.service != '' || has(self.method) && self.method != ''",
        "names neither a service nor a method",
    ),
    (
        "service",
        "!has(self.service) || has(self.type) && self.type == 'RegularExpression' || \
         self.service.matches('^[A-Za-z0-9_.-]*$')",
        "is not a name in gRPC",
    ),
    (
        "method",
        "!has(self.method) || has(self.type) && self.type == 'RegularExpression' || \
         self.method.matches('^[A-Za-z0-9_.-]*$')",
        "is not a name in gRPC",
    ),
];

/// A filter: a `type`, and the field that belongs to it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Filter {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) request_header_modifier: Option<HeaderModifier>,
    #[serde(default)]
    pub(super) response_header_modifier: Option<HeaderModifier>,
    #[serde(default)]
    pub(super) request_mirror: Option<Mirror>,
    #[serde(default)]
    pub(super) request_redirect: Option<Redirect>,
    #[serde(default)]
    pub(super) url_rewrite: Option<Rewrite>,
    #[serde(default)]
    pub(super) cors: Option<Cors>,
    #[serde(default)]
    pub(super) extension_ref: Option<serde_json::Value>,
    #[serde(default)]
    pub(super) external_auth: Option<serde_json::Value>,
}

/// Headers to set, add and remove.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct HeaderModifier {
    #[serde(default)]
    pub(super) set: Vec<Header>,
    #[serde(default)]
    pub(super) add: Vec<Header>,
    #[serde(default)]
    pub(super) remove: Vec<String>,
}

/// A header.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    pub(super) name: String,
    pub(super) value: String,
}

/// A copy of a share of the requests.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Mirror {
    pub(super) backend_ref: Reference,
    #[serde(default)]
    pub(super) percent: Option<i32>,
    #[serde(default)]
    pub(super) fraction: Option<Fraction>,
}

/// A share.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fraction {
    pub(super) numerator: i32,
    #[serde(default)]
    pub(super) denominator: Option<i32>,
}

/// An answer that sends the caller elsewhere.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Redirect {
    #[serde(default)]
    pub(super) scheme: Option<String>,
    #[serde(default)]
    pub(super) hostname: Option<String>,
    #[serde(default)]
    pub(super) path: Option<PathModifier>,
    #[serde(default)]
    pub(super) port: Option<i32>,
    #[serde(default)]
    pub(super) status_code: Option<i64>,
}

/// A change of host and path on the way to the backend.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Rewrite {
    #[serde(default)]
    pub(super) hostname: Option<String>,
    #[serde(default)]
    pub(super) path: Option<PathModifier>,
}

/// A change of path, by `type`.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct PathModifier {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default)]
    pub(super) replace_full_path: Option<String>,
    #[serde(default)]
    pub(super) replace_prefix_match: Option<String>,
}

/// Who may call from a page of another origin.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Cors {
    #[serde(default)]
    pub(super) allow_origins: Vec<String>,
    #[serde(default)]
    pub(super) allow_methods: Vec<String>,
    #[serde(default)]
    pub(super) allow_headers: Vec<String>,
    #[serde(default)]
    pub(super) expose_headers: Vec<String>,
    #[serde(default)]
    pub(super) allow_credentials: Option<bool>,
    #[serde(default)]
    pub(super) max_age: Option<i32>,
}

/// How long a request may take.
#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Timeouts {
    #[serde(default)]
    pub(super) request: Option<String>,
    #[serde(default)]
    pub(super) backend_request: Option<String>,
}

/// Whether a request is tried again.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Retry {
    #[serde(default)]
    pub(super) attempts: Option<i64>,
    #[serde(default)]
    pub(super) backoff: Option<String>,
    #[serde(default)]
    pub(super) codes: Vec<i64>,
}
