//! AccessPolicy: who may call what, and whether by mutual TLS only.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use weft_wire::SpiffeId;
use weft_wire::tls::{Mode, TRUST_DOMAIN_DEFAULT};

use super::schema::{self, Rule};
use super::{TARGETS, TargetRef};
use crate::resources::gateway::{self, CallShape, PathShape, ValueShape};
use crate::resources::{Refusal, Segment};
use crate::world::access::{Access, AccessRule, AccountName, Action, Mtls, Operation, Source};

/// Rules of one policy, and sources, methods, paths and ports in each: a sidecar may look at every one of them for every
/// request.
const ITEMS_MAX: usize = 32;
/// Operations of a rule: an API server that looks at every path of all of them must be able to promise how long it takes.
const OPERATIONS_MAX: usize = 16;

/// What an AccessPolicy says.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(POLICY)))]
pub struct AccessPolicySpec {
    /// The Services, or ports of them, that it is for; absent is every workload of its namespace.
    #[serde(default)]
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-validations" = schema::rules(&[TARGETS, &[SERVICES]].concat())))]
    pub target_refs: Option<Vec<TargetRef>>,
    /// `Allow` (if absent) or `Deny`.
    #[serde(default)]
    #[schemars(extend("enum" = ["Allow", "Deny"]))]
    pub action: Option<String>,
    /// `Enforce` (if absent) or `Audit`: only count what would be denied.
    #[serde(default)]
    #[schemars(extend("enum" = ["Enforce", "Audit"]))]
    pub mode: Option<String>,
    /// Whom and what it is about: any of these. `[]` with `Allow` is nobody.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub rules: Option<Vec<RuleSpec>>,
    /// Whether mutual TLS is asked for.
    #[serde(default)]
    pub mtls: Option<MtlsSpec>,
}

/// Any of the sources, with any of the operations.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleSpec {
    /// Who calls; absent is anybody.
    #[serde(default)]
    #[schemars(length(min = 1, max = 32))]
    from: Option<Vec<SourceSpec>>,
    /// What is asked; absent is anything.
    #[serde(default)]
    #[schemars(length(min = 1, max = 16))]
    to: Option<Vec<OperationSpec>>,
}

/// Who calls. Everything that is set must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(SOURCE)))]
pub struct SourceSpec {
    /// This service account, of `namespace` or of the policy's own.
    #[serde(default)]
    #[schemars(with = "Option<schema::Name>")]
    service_account: Option<String>,
    /// A service account of this namespace.
    #[serde(default)]
    #[schemars(with = "Option<schema::Name>")]
    namespace: Option<String>,
    /// None of this namespace.
    #[serde(default)]
    #[schemars(with = "Option<schema::Name>")]
    not_namespace: Option<String>,
    /// Not this service account, of `namespace` or of the policy's own.
    #[serde(default)]
    #[schemars(with = "Option<schema::Name>")]
    not_service_account: Option<String>,
    /// Of this trust domain instead of the mesh's own.
    #[serde(default)]
    #[schemars(with = "Option<schema::Name>")]
    trust_domain: Option<String>,
    /// `true`: anybody with an identity.
    #[serde(default)]
    authenticated: Option<bool>,
    /// `true`: nobody with an identity.
    #[serde(default)]
    unauthenticated: Option<bool>,
}

/// What to write instead of a field that one might expect and that there cannot be.
pub(super) fn instead_of(path: &[Segment]) -> Option<&'static str> {
    let [.., Segment::Key(from), Segment::Index(_), Segment::Key(field)] = path else { return None };
    (from == "from" && field == "workload").then_some(
        "a certificate names a service account and no workload; write serviceAccount, with a service account that only \
         this workload has (a Pod's spec.serviceAccountName, or weft token create --name WORKLOAD --service-account NAME)",
    )
}

/// What is asked. Everything that is set must hold.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(OPERATION)))]
pub struct OperationSpec {
    /// One of these methods.
    #[serde(default)]
    #[schemars(with = "Option<Vec<schema::Token>>", length(min = 1, max = 32))]
    methods: Option<Vec<String>>,
    /// One of these paths, as an HTTPRoute spells them.
    #[serde(default)]
    #[schemars(length(min = 1, max = 32))]
    paths: Option<Vec<PathShape>>,
    /// All of these headers, as an HTTPRoute spells them.
    #[serde(default)]
    #[schemars(length(min = 1, max = 16))]
    headers: Option<Vec<ValueShape>>,
    /// At one of these ports, as the app listens.
    #[serde(default)]
    #[schemars(with = "Option<Vec<schema::Port>>", length(min = 1, max = 32))]
    ports: Option<Vec<i32>>,
    /// A gRPC service or method, as a GRPCRoute spells it. Excludes `methods` and `paths`.
    #[serde(default)]
    grpc: Option<CallShape>,
}

/// Whether mutual TLS is asked for: `strict`, `permissive` or `disabled`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::rules(MTLS)))]
pub struct MtlsSpec {
    /// At every port.
    #[serde(default)]
    #[schemars(extend("enum" = schema::MODES))]
    mode: Option<String>,
    /// At these ports, as the app listens, instead.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, schema::Mode>", extend("maxProperties" = 32))]
    ports: BTreeMap<String, String>,
}

const SERVICES: Rule = (
    "",
    "self.all(target, target.kind == 'Service')",
    "names a route: access is decided where a Service's workloads are; name a Service, and paths in rules",
);

const POLICY: &[Rule] = &[
    (
        "mtls",
        "!has(self.mtls) || !has(self.mode) || self.mode != 'Audit'",
        "cannot be audited: permissive mode takes both, and metrics tell what came",
    ),
    (
        "rules",
        "has(self.rules) || !(has(self.action) || has(self.mode) && self.mode == 'Audit')",
        "is missing: whom is it about? [] is nobody",
    ),
    (
        "rules",
        "has(self.rules) || has(self.mtls) || has(self.action) || has(self.mode) && self.mode == 'Audit'",
        "is missing, and so is mtls: what does the policy say?",
    ),
    (
        "rules",
        "!has(self.rules) || size(self.rules) > 0 || !has(self.action) || self.action != 'Deny'",
        "is empty: nobody would be denied",
    ),
];

const SOURCE: &[Rule] = &[
    (
        "",
        "has(self.serviceAccount) || has(self.__namespace__) || has(self.notNamespace) || \
         has(self.notServiceAccount) || has(self.trustDomain) || has(self.authenticated) || has(self.unauthenticated)",
        "says nothing: leave `from` out for anybody",
    ),
    (
        "authenticated",
        "!has(self.authenticated) || self.authenticated",
        "cannot be false: say unauthenticated: true instead",
    ),
    (
        "unauthenticated",
        "!has(self.unauthenticated) || self.unauthenticated",
        "cannot be false: say authenticated: true instead",
    ),
    (
        "unauthenticated",
        "!has(self.unauthenticated) || !(has(self.serviceAccount) || has(self.__namespace__) || \
         has(self.notNamespace) || has(self.notServiceAccount) || has(self.trustDomain) || has(self.authenticated))",
        "excludes everything else: who has no identity is nobody",
    ),
];

const OPERATION: &[Rule] = &[
    (
        "",
        "has(self.methods) || has(self.paths) || has(self.headers) || has(self.ports) || has(self.grpc)",
        "says nothing: leave `to` out for anything",
    ),
    ("methods", "!has(self.methods) || !has(self.grpc)", "is excluded by grpc, which says it already"),
    ("paths", "!has(self.paths) || !has(self.grpc)", "is excluded by grpc, which says it already"),
];

const MTLS: &[Rule] = &[
    ("", "has(self.mode) || has(self.ports) && size(self.ports) > 0", "says nothing: neither mode nor ports"),
    (
        "ports",
        "!has(self.ports) || self.ports.all(port, port.matches('^[1-9][0-9]{0,4}$') && int(port) <= 65535)",
        "has a key that is not a port (1 to 65535)",
    ),
];

pub(super) fn read(
    spec: AccessPolicySpec,
    namespace: &str,
    at: &[Segment],
) -> Result<(Option<Access>, Mtls), Refusal> {
    let audit = match spec.mode.as_deref() {
        None | Some("Enforce") => false,
        Some("Audit") => true,
        Some(word) => return Err((path![@at; "mode"], format!("{word:?} is not one of Enforce, Audit"))),
    };
    let action = match spec.action.as_deref() {
        None | Some("Allow") => Action::Allow,
        Some("Deny") => Action::Deny,
        Some(word) => return Err((path![@at; "action"], format!("{word:?} is not one of Allow, Deny"))),
    };
    let mtls = spec.mtls.map(|spec| mtls(&spec, &path![@at; "mtls"])).transpose()?;
    if mtls.is_some() && audit {
        let reason = "cannot be audited: permissive mode takes both, and metrics tell what came";
        return Err((path![@at; "mtls"], reason.into()));
    }
    let mtls = mtls.unwrap_or_default();
    let Some(rules) = spec.rules else {
        let rules = path![@at; "rules"];
        return match (spec.action.is_some() || audit, mtls.is_empty()) {
            (true, _) => Err((rules, "is missing: whom is it about? [] is nobody".into())),
            (false, true) => Err((rules, "is missing, and so is mtls: what does the policy say?".into())),
            (false, false) => Ok((None, mtls)),
        };
    };
    if rules.is_empty() && action == Action::Deny {
        return Err((path![@at; "rules"], "is empty: nobody would be denied".into()));
    }
    let rules = all(rules, &path![@at; "rules"], |one, at| rule(one, namespace, at))?;
    Ok((Some(Access { action, audit, rules }), mtls))
}

/// Reads every item of a list.
fn all<T, U>(
    items: Vec<T>,
    at: &[Segment],
    read: impl Fn(T, &[Segment]) -> Result<U, Refusal>,
) -> Result<Vec<U>, Refusal> {
    if items.len() > ITEMS_MAX {
        return Err((at.to_vec(), format!("has {} entries: at most {ITEMS_MAX} are allowed", items.len())));
    }
    items.into_iter().enumerate().map(|(index, item)| read(item, &path![@at; index])).collect()
}

/// The same, of a list that must not be empty where it is there: an empty one would look like "none" and mean "any".
fn some<T, U>(
    items: Option<Vec<T>>,
    at: &[Segment],
    read: impl Fn(T, &[Segment]) -> Result<U, Refusal>,
) -> Result<Vec<U>, Refusal> {
    match items {
        Some(items) if items.is_empty() => Err((at.to_vec(), "is empty: leave it out for any".into())),
        items => all(items.unwrap_or_default(), at, read),
    }
}

fn rule(spec: RuleSpec, namespace: &str, at: &[Segment]) -> Result<AccessRule, Refusal> {
    if spec.to.as_ref().is_some_and(|to| to.len() > OPERATIONS_MAX) {
        return Err((path![@at; "to"], format!("has more than {OPERATIONS_MAX} entries")));
    }
    Ok(AccessRule {
        from: some(spec.from, &path![@at; "from"], |one, at| source(&one, namespace, at))?,
        to: some(spec.to, &path![@at; "to"], operation)?,
    })
}

fn source(spec: &SourceSpec, own: &str, at: &[Segment]) -> Result<Source, Refusal> {
    let namespace = part(spec.namespace.as_deref(), "namespace", at)?;
    let account = |name: Option<&str>, field: &str| {
        let namespace = namespace.as_deref().unwrap_or(own);
        let name = part(name, field, at)?;
        Ok(name.map(|name| AccountName { namespace: namespace.into(), name }))
    };
    let source = Source {
        service_account: account(spec.service_account.as_deref(), "serviceAccount")?,
        not_service_account: account(spec.not_service_account.as_deref(), "notServiceAccount")?,
        not_namespace: part(spec.not_namespace.as_deref(), "notNamespace", at)?,
        trust_domain: part(spec.trust_domain.as_deref(), "trustDomain", at)?,
        authenticated: None,
        namespace,
    };
    for (said, field, other) in [
        (spec.authenticated, "authenticated", "unauthenticated: true"),
        (spec.unauthenticated, "unauthenticated", "authenticated: true"),
    ] {
        if said == Some(false) {
            return Err((path![@at; field], format!("cannot be false: say {other} instead")));
        }
    }
    match (spec.authenticated.is_some(), spec.unauthenticated.is_some()) {
        (false, false) if source == Source::default() => {
            Err((at.to_vec(), "says nothing: leave `from` out for anybody".into()))
        }
        (_, true) if spec.authenticated.is_some() || source != Source::default() => Err((
            path![@at; "unauthenticated"],
            "excludes everything else: who has no identity is nobody".into(),
        )),
        (_, true) => Ok(Source { authenticated: Some(false), ..source }),
        (true, _) => Ok(Source { authenticated: Some(true), ..source }),
        (false, false) => Ok(source),
    }
}

/// A part of an identity.
fn part(text: Option<&str>, field: &str, at: &[Segment]) -> Result<Option<Box<str>>, Refusal> {
    let Some(text) = text else { return Ok(None) };
    // Whatever can be any part of an identity can be this one.
    match SpiffeId::new(TRUST_DOMAIN_DEFAULT, text, text) {
        Ok(_) => Ok(Some(text.into())),
        Err(_) => Err((path![@at; field], format!("{text:?} is not a name (a-z, 0-9, -, _ and .)"))),
    }
}

fn operation(spec: OperationSpec, at: &[Segment]) -> Result<Operation, Refusal> {
    if let Some(field) = spec.grpc.as_ref().and_then(|_| {
        let excluded = [(spec.methods.is_some(), "methods"), (spec.paths.is_some(), "paths")];
        excluded.into_iter().find_map(|(there, field)| there.then_some(field))
    }) {
        return Err((path![@at; field], "is excluded by grpc, which says it already".into()));
    }
    let methods = some(spec.methods, &path![@at; "methods"], |method: String, at| {
        let valid = http::Method::from_bytes(method.as_bytes()).is_ok() && !method.is_empty();
        let reason = || (at.to_vec(), format!("{method:?} is not a method"));
        if valid { Ok(method.as_str().into()) } else { Err(reason()) }
    })?;
    let mut paths =
        some(spec.paths, &path![@at; "paths"], |one, at| gateway::path_match(one, &path![@at; "value"]))?;
    paths.extend(spec.grpc.map(|call| gateway::call(call, &path![@at; "grpc"])).transpose()?);
    let ports = some(spec.ports, &path![@at; "ports"], |port, at| {
        crate::resources::core::port_number(port, at.to_vec())
    })?;
    if spec.headers.as_ref().is_some_and(Vec::is_empty) {
        return Err((path![@at; "headers"], "is empty: leave it out for any".into()));
    }
    let headers = gateway::headers(spec.headers.unwrap_or_default(), &path![@at; "headers"])?;
    let operation = Operation { methods, paths, headers, ports };
    if operation == Operation::default() {
        return Err((at.to_vec(), "says nothing: leave `to` out for anything".into()));
    }
    Ok(operation)
}

fn mtls(spec: &MtlsSpec, at: &[Segment]) -> Result<Mtls, Refusal> {
    let mode = |word: &str, at: Vec<Segment>| {
        let reason = || (at, format!("{word:?} is not one of strict, permissive, disabled"));
        Mode::from_word(word).ok_or_else(reason)
    };
    if spec.ports.len() > ITEMS_MAX {
        let reason = format!("has {} entries: at most {ITEMS_MAX} are allowed", spec.ports.len());
        return Err((path![@at; "ports"], reason));
    }
    let ports = spec.ports.iter().map(|(port, word)| {
        let at = path![@at; "ports", port.as_str()];
        // One spelling for one port, so that none is there twice.
        let number = port.parse().ok().filter(|number: &u16| *number != 0 && number.to_string() == *port);
        let number = number.ok_or_else(|| (at.clone(), format!("{port:?} is not a port (1 to 65535)")))?;
        Ok((number, mode(word, at)?))
    });
    let mtls = Mtls {
        ports: ports.collect::<Result<_, _>>()?,
        mode: spec.mode.as_deref().map(|word| mode(word, path![@at; "mode"])).transpose()?,
    };
    if mtls.is_empty() {
        return Err((at.to_vec(), "says nothing: neither mode nor ports".into()));
    }
    Ok(mtls)
}
