//! What an operator may wish of an installation: the chart's values, and the options of `weft install`.
//!
//! In: YAML, or `path=value`. Out: [`Values`], every one of them usable. Invariant: a value that no object uses does not
//! exist; an unknown one is an error that names it. What goes into a command line or a name of an image has no character
//! that YAML or Kubernetes could take for something else, so that a template needs no quotes.

mod api;
mod patterns;
mod sidecar;
mod together;

use std::collections::BTreeMap;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::{ResourceRequirements, Toleration};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use weft_wire::tls::TRUST_DOMAIN_DEFAULT;

pub use api::{Api, CLIENT_SECRET_KEY, Oidc, TOKENS_KEY};
pub use sidecar::{Limits, Requests, Resources, Sidecar};
pub use together::{If, Rule, rules};

/// Everything that may be wished.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Values {
    /// Three control planes on different nodes instead of one
    pub ha: bool,
    /// Where the programs come from
    pub image: Image,
    /// The mesh's name in every identity: spiffe://NAME/ns/…/sa/…
    #[schemars(regex(pattern = patterns::DOMAIN))]
    pub trust_domain: String,
    /// What the control plane logs
    #[schemars(regex(pattern = patterns::LOG))]
    pub log: String,
    /// The control plane's pods
    pub control_plane: ControlPlane,
    /// Who may use the API and the dashboard, and from where
    pub api: Api,
    /// How sidecars come into pods
    pub injector: Injector,
    /// What they are like where neither pod nor namespace says otherwise (annotations weft.dev/…)
    pub sidecar: Sidecar,
    /// Who may reach the control plane
    pub network_policy: Toggle,
    /// Namespace weft-system with its Pod Security labels. Without it, make it before
    pub namespace: Create,
    /// The kinds AccessPolicy, CircuitBreaker and TrafficPolicy. Without them, install them before
    pub crds: Create,
}

/// Where the programs come from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Image {
    /// Registry and path before weft-control-plane and weft-proxy, for instance registry.example.org/mesh; empty for none
    #[schemars(regex(pattern = patterns::REGISTRY))]
    pub registry: String,
    /// Tag of both images
    #[schemars(regex(pattern = patterns::TAG))]
    pub tag: String,
    /// When images are pulled: Always, IfNotPresent or Never
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub pull_policy: String,
    /// Secrets in weft-system with which the control plane's image is pulled, as {name: …}
    pub pull_secrets: Vec<SecretName>,
}

/// The name of a Secret.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SecretName {
    /// The name
    #[schemars(regex(pattern = patterns::NAME), length(min = 1, max = patterns::NAME_MAX))]
    pub name: String,
}

/// The control plane's pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ControlPlane {
    /// What a pod asks for and may use, as in a container
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    pub resources: ResourceRequirements,
    /// Labels of the nodes that it may run on
    pub node_selector: BTreeMap<String, String>,
    /// Taints that it bears, as in a pod
    #[schemars(with = "Vec<BTreeMap<String, serde_json::Value>>")]
    pub tolerations: Vec<Toleration>,
    /// Priority class of its pods; empty for none
    #[schemars(regex(pattern = patterns::NAME), length(max = patterns::NAME_MAX))]
    pub priority_class_name: String,
    /// The graph's history
    pub history: History,
}

/// Where the graph's history is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct History {
    /// A PersistentVolumeClaim in weft-system that outlives the pod; empty for a volume that ends with it. Not with ha: each
    /// replica has a history of its own, and one claim is not for several
    #[schemars(regex(pattern = patterns::NAME), length(max = patterns::NAME_MAX))]
    pub persistent_volume_claim: String,
}

/// How sidecars come into pods.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Injector {
    /// What becomes of new pods while no control plane answers: Ignore (they start without a sidecar, and are found later) or
    /// Fail (they are not made)
    #[schemars(extend("enum" = ["Ignore", "Fail"]))]
    pub failure_policy: String,
    /// The right to restart Deployments, StatefulSets and DaemonSets whose pods came without their sidecars. It is used only where
    /// a pod or its namespace says weft.dev/restart: enabled
    pub may_restart: bool,
}

/// On or off.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Toggle {
    /// Whether it is there
    pub enabled: bool,
}

/// Whether something is made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Create {
    /// Whether it is made
    pub create: bool,
}

impl Default for Toggle {
    fn default() -> Self {
        Self { enabled: true }
    }
}

impl Default for Create {
    fn default() -> Self {
        Self { create: true }
    }
}

impl Default for Injector {
    fn default() -> Self {
        Self { failure_policy: "Ignore".into(), may_restart: false }
    }
}

impl Default for Image {
    fn default() -> Self {
        Self {
            registry: String::new(),
            tag: env!("CARGO_PKG_VERSION").into(),
            pull_policy: "IfNotPresent".into(),
            pull_secrets: Vec::new(),
        }
    }
}

impl Default for ControlPlane {
    fn default() -> Self {
        let resources =
            json!({ "requests": { "cpu": "50m", "memory": "64Mi" }, "limits": { "memory": "1Gi" } });
        Self {
            resources: serde_json::from_value(resources).unwrap_or_default(),
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            priority_class_name: String::new(),
            history: History::default(),
        }
    }
}

impl Default for Values {
    fn default() -> Self {
        Self {
            ha: false,
            image: Image::default(),
            trust_domain: TRUST_DOMAIN_DEFAULT.into(),
            log: "info".into(),
            control_plane: ControlPlane::default(),
            api: Api::default(),
            injector: Injector::default(),
            sidecar: Sidecar::default(),
            network_policy: Toggle::default(),
            namespace: Create::default(),
            crds: Create::default(),
        }
    }
}

impl Values {
    /// The defaults with `layers` over them, one after the other.
    ///
    /// # Errors
    /// When a layer has a value that does not exist or cannot be.
    pub fn layered(layers: impl IntoIterator<Item = Value>) -> anyhow::Result<Self> {
        let mut values = serde_json::to_value(Self::default())?;
        for layer in layers {
            merge(&mut values, layer);
        }
        patterns::is_shaped(&values, &schema(), "")?;
        let values: Self = serde_path_to_error::deserialize(values)
            .map_err(|error| anyhow::anyhow!("{}: {}", error.path(), error.inner()))?;
        values.check()?;
        Ok(values)
    }

    /// Whether every value can be used.
    fn check(&self) -> anyhow::Result<()> {
        let values = serde_json::to_value(self)?;
        patterns::fits(&values, &schema(), "")?;
        // As the control plane will judge it.
        weft_wire::SpiffeId::new(&self.trust_domain, super::NAMESPACE, super::NAME)
            .map_err(|error| anyhow::anyhow!("trustDomain: {error}"))?;
        if let Some(words) = together::refused(&values) {
            bail!("{words}");
        }
        self.sidecar.check()?;
        self.api.check()
    }

    /// The name of an image.
    #[must_use]
    pub fn image_of(&self, program: &str) -> String {
        let slash = if self.image.registry.is_empty() { "" } else { "/" };
        format!("{}{slash}{program}:{}", self.image.registry, self.image.tag)
    }
}

/// The schema of the values, as Helm checks them.
#[must_use]
pub fn schema() -> Value {
    let settings = SchemaSettings::draft07().with(|settings| settings.inline_subschemas = true);
    let mut schema = settings.into_generator().into_root_schema_for::<Values>().to_value();
    whole(&mut schema);
    schema
}

/// Makes every field one that must be there: the defaults have them all, so only who takes one away (`null`) hears of it, and not
/// a template that needs it.
fn whole(schema: &mut Value) {
    let Some(fields) = schema.get_mut("properties").and_then(Value::as_object_mut) else { return };
    fields.values_mut().for_each(whole);
    let names: Vec<String> = fields.keys().cloned().collect();
    schema["required"] = json!(names);
}

/// Reads `a.b=value`, the value as YAML, into what it stands for.
///
/// # Errors
/// When it is not of that form.
pub fn assignment(text: &str) -> anyhow::Result<Value> {
    let (path, value) = text.split_once('=').context("it should look like path=value")?;
    if path.is_empty() || path.split('.').any(str::is_empty) {
        bail!("it should look like path=value, with a path such as image.tag");
    }
    let value: Value = match serde_yaml::from_str(value) {
        Ok(value) => value,
        // Such as `*`, which is no YAML: where a text is wanted, it is one.
        Err(_) if is_text(path) => value.into(),
        Err(error) => return Err(error).context("what stands behind = is not YAML"),
    };
    // Nothing behind `=` is an empty text: who wants to take a value away means that.
    let value = if value.is_null() { "".into() } else { value };
    Ok(path.rsplit('.').fold(value, |value, key| json!({ key: value })))
}

/// Whether the default of a value is a text.
fn is_text(path: &str) -> bool {
    let defaults = serde_json::to_value(Values::default()).unwrap_or_default();
    path.split('.').fold(&defaults, |value, field| &value[field]).is_string()
}

/// Lays one value over another: objects field by field, everything else as a whole.
pub(super) fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (field, value) in over {
                merge(under.entry(field).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(text: &str) -> anyhow::Result<Values> {
        Values::layered([assignment(text)?])
    }

    #[test]
    fn a_wish_is_laid_over_the_defaults() {
        let values = set("image.tag=1.2").expect_err("a number is no tag").to_string();
        assert!(values.contains("image.tag"), "{values}");
        assert_eq!(set("image.tag='1.2'").expect("valid").image.tag, "1.2");
        assert_eq!(
            set("image.registry=a.example/b").expect("valid").image_of("x"),
            format!("a.example/b/x:{}", env!("CARGO_PKG_VERSION"))
        );
        assert!(set("ha=true").expect("valid").ha);
        let values = set("controlPlane.resources={limits: {memory: 2Gi}}").expect("valid");
        let resources = serde_json::to_value(values.control_plane.resources).expect("JSON");
        assert_eq!(resources["limits"]["memory"], "2Gi");
        assert_eq!(resources["requests"]["cpu"], "50m", "what is not said stays");
        assert_eq!(set("image.registry=").expect("valid"), Values::default());
    }

    #[test]
    fn what_is_no_yaml_is_a_text_where_one_is_wanted() {
        let wish = assignment("api.oidc.viewerGroups=*").expect("a text");
        assert_eq!(wish["api"]["oidc"]["viewerGroups"], "*");
        let wish = assignment("api.oidc.viewerGroups=*,sre").expect("a text");
        assert_eq!(wish["api"]["oidc"]["viewerGroups"], "*,sre");
    }

    #[test]
    fn quantities_may_be_numbers() {
        for (wish, text) in [("2", "2"), ("2.0", "2"), ("0.5", "0.5"), ("500m", "500m"), ("'1'", "1")] {
            let values = set(&format!("sidecar.resources.limits.cpu={wish}")).expect(wish);
            assert_eq!(values.sidecar.resources.limits.cpu, text);
        }
        let values = set("sidecar.resources.limits.memory=134217728").expect("bytes");
        assert_eq!(values.sidecar.resources.limits.memory, "134217728");
    }

    #[test]
    fn a_wish_that_cannot_be_is_named() {
        for (text, path) in [
            ("ha=perhaps", "ha"),
            ("image.tags=1", "image.tags"),
            ("image.tag=a b", "image.tag"),
            ("image.registry=a/", "image.registry"),
            ("image.pullPolicy=Sometimes", "image.pullPolicy"),
            ("trustDomain=a/b", "trustDomain"),
            ("log='info: x'", "log"),
            ("injector.failurePolicy=Ask", "injector.failurePolicy"),
            ("sidecar.kind=perhaps", "sidecar.kind"),
            ("sidecar.logLevel=a b", "sidecar.logLevel"),
            ("sidecar.resources.requests.cpu=lots", "sidecar.resources.requests.cpu"),
            ("sidecar.resources.limits.memory=-1", "sidecar.resources.limits.memory"),
            ("sidecar.resources.limits.cpu=true", "sidecar.resources.limits.cpu"),
            ("sidecar=classic", "sidecar.kind, sidecar.logLevel"),
            ("sidecar=null", "sidecar: \"\" is not possible, because it is a map"),
            ("api.oidc.viewerGroups=a#b", "has '#'"),
            ("image.pullSecrets=[{name: A}]", "image.pullSecrets[0].name"),
            ("sidecar.resources.limits.cpu=0", "sidecar.resources.limits.cpu"),
            ("api={publicUrl: 'https://a:99999999'}", "api.publicUrl"),
            ("api={expose: true}", "api.tokensSecret"),
            ("api={expose: true, publicUrl: 'https://a'}", "api.oidc.issuer"),
            ("api.publicUrl=weft.example.com", "api.publicUrl"),
            ("api.oidc.clientId=weft", "api.oidc.issuer"),
            (
                "api={publicUrl: 'https://a', oidc: {issuer: 'https://b', viewerGroups: '*'}}",
                "api.oidc.clientId",
            ),
            ("api.oidc={issuer: 'https://b', clientId: w, viewerGroups: '*'}", "api.publicUrl"),
            ("api={publicUrl: 'https://a', oidc: {issuer: 'https://b', clientId: w}}", "api.oidc"),
            ("ha=true\u{0}controlPlane.history.persistentVolumeClaim=a", "persistentVolumeClaim"),
        ] {
            let layers: Vec<Value> =
                text.split('\u{0}').map(|one| assignment(one).expect("well-formed")).collect();
            let error = format!("{:#}", Values::layered(layers).expect_err(text));
            assert!(error.contains(path), "{text}: {error}");
        }
        for text in ["", "=1", "a", "a..b=1", "a=[1", "sidecar=*", "controlPlane.nodeSelector=*"] {
            assert!(assignment(text).is_err(), "{text:?}");
        }
    }
}
