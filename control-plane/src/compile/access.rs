//! AccessPolicies as Envoy's RBAC filters: for requests, and for opaque connections.
//!
//! In: what policies come to at an address. Out: at most two filters of each sort, one that denies and then one that allows;
//! what is only audited is their shadow. Every rule is a policy of Envoy's, by the name that telemetry has for it.
//!
//! Invariants: no filter where nobody has to be looked at; the same policies give the same bytes. Surprises: ports are
//! decided here, because a listener has one; a filter's policies are a map, which protobuf writes in no particular
//! order, so each is appended as a message of its own, which readers put together again.

use envoy_types::pb::envoy::config::listener::v3::Filter;
use envoy_types::pb::envoy::config::rbac::v3::{
    Permission, Policy, Principal, Rbac, permission, principal, rbac,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, StringMatcher, path_matcher, string_matcher};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};
use weft_wire::SpiffeId;
use weft_wire::access::{HTTP_ALLOW, HTTP_DENY, NETWORK_ALLOW, NETWORK_DENY};

use super::filters;
use super::listener::network_filter;
use super::route::matching;
use crate::world::access::{
    Access, AccessRule, AccessView, AccountName, Action, Operation, Source, rule_name,
};
use crate::world::{PathMatch, Pattern, PolicyId};

/// What stands in front of an app.
#[derive(Debug, Default)]
pub(super) struct Guards {
    /// In front of requests.
    pub(super) http: Vec<HttpFilter>,
    /// In front of opaque connections.
    pub(super) tcp: Vec<Filter>,
    /// Whether what is decided depends on paths, so that there must be one spelling of each.
    pub(super) looks_at_paths: bool,
}

pub(super) fn guards(view: &AccessView<'_>) -> Guards {
    let mut guards = Guards { looks_at_paths: view.looks_at_paths(), ..Guards::default() };
    if view.is_open() {
        return guards;
    }
    for action in [Action::Deny, Action::Allow] {
        let (http_name, network_name, prefix) = match action {
            Action::Deny => (HTTP_DENY, NETWORK_DENY, "deny."),
            Action::Allow => (HTTP_ALLOW, NETWORK_ALLOW, "allow."),
        };
        let http = Sides::of(view, action, http_policy);
        if !http.is_empty() {
            guards.http.push(filters::named(http_name, http.http_filter(prefix)));
        }
        let bytes = Sides::of(view, action, network_policy);
        if !bytes.is_empty() {
            guards.tcp.push(network_filter(network_name, bytes.network_filter(prefix)));
        }
    }
    guards
}

/// A filter's rules: those in force, and those that are audited.
struct Sides {
    action: Action,
    enforced: Option<Vec<(String, Policy)>>,
    shadow: Option<Vec<(String, Policy)>>,
}

/// What a rule becomes; `None` where it can never hold.
type Compile = fn(&AccessView<'_>, Action, &AccessRule) -> Option<Policy>;

impl Sides {
    fn of(view: &AccessView<'_>, action: Action, compile: Compile) -> Self {
        let policies = |audit| {
            let rules = view.of(action, audit).flat_map(|(id, access)| named(id, access));
            let policies = rules.filter_map(|(name, rule)| Some((name, compile(view, action, rule)?)));
            policies.collect::<Vec<_>>()
        };
        let (enforced, audited) = (policies(false), policies(true));
        let watches = view.of(action, true).next().is_some();
        match action {
            Action::Deny => {
                let some = |policies: Vec<_>| Some(policies).filter(|policies| !policies.is_empty());
                Self { action, enforced: some(enforced), shadow: some(audited) }
            }
            // Whoever is let in already would be let in beside the audited ones too.
            Action::Allow => {
                let shadow = watches.then(|| enforced.iter().cloned().chain(audited).collect());
                Self { action, enforced: view.is_closed().then_some(enforced), shadow }
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.enforced.is_none() && self.shadow.is_none()
    }

    fn http_filter(self, prefix: &str) -> Any {
        let empty = HttpRbac {
            rules_stat_prefix: prefix.to_owned(),
            shadow_rules_stat_prefix: prefix.to_owned(),
            track_per_rule_stats: true,
            ..Default::default()
        };
        let action = self.action;
        let rules = |rules| HttpRbac { rules: Some(rules), ..Default::default() };
        let shadow_rules = |rules| HttpRbac { shadow_rules: Some(rules), ..Default::default() };
        let mut bytes = empty.encode_to_vec();
        append(&mut bytes, action, self.enforced, rules);
        append(&mut bytes, action, self.shadow, shadow_rules);
        Any { type_url: HttpRbac::type_url(), value: bytes }
    }

    fn network_filter(self, prefix: &str) -> Any {
        let empty = NetworkRbac {
            stat_prefix: prefix.to_owned(),
            shadow_rules_stat_prefix: prefix.to_owned(),
            ..Default::default()
        };
        let action = self.action;
        let rules = |rules| NetworkRbac { rules: Some(rules), ..Default::default() };
        let shadow_rules = |rules| NetworkRbac { shadow_rules: Some(rules), ..Default::default() };
        let mut bytes = empty.encode_to_vec();
        append(&mut bytes, action, self.enforced, rules);
        append(&mut bytes, action, self.shadow, shadow_rules);
        Any { type_url: NetworkRbac::type_url(), value: bytes }
    }
}

/// Appends rules to a filter's message, each policy by itself: messages that follow each other are one.
fn append<M: Message>(
    bytes: &mut Vec<u8>,
    action: Action,
    policies: Option<Vec<(String, Policy)>>,
    within: impl Fn(Rbac) -> M,
) {
    let Some(policies) = policies else { return };
    let action = match action {
        Action::Allow => rbac::Action::Allow,
        Action::Deny => rbac::Action::Deny,
    };
    bytes.extend(within(Rbac { action: action.into(), ..Default::default() }).encode_to_vec());
    for policy in policies {
        let one = Rbac { action: action.into(), policies: [policy].into(), ..Default::default() };
        bytes.extend(within(one).encode_to_vec());
    }
}

fn named<'a>(id: &'a PolicyId, access: &'a Access) -> impl Iterator<Item = (String, &'a AccessRule)> {
    access.rules.iter().enumerate().map(move |(index, rule)| (rule_name(id, index), rule))
}

fn http_policy(view: &AccessView<'_>, action: Action, rule: &AccessRule) -> Option<Policy> {
    let here = rule.to.iter().filter(|operation| operation.is_at(view.port));
    let permissions: Vec<Permission> = here.map(operation).collect();
    policy(view, action, rule, permissions)
}

/// Of bytes nothing is known but where they go. What would deny by more than that denies; what would allow does not.
fn network_policy(view: &AccessView<'_>, action: Action, rule: &AccessRule) -> Option<Policy> {
    let here = rule.to.iter().filter(|operation| operation.is_at(view.port));
    let here = here.filter(|operation| action == Action::Deny || !operation.is_http());
    policy(view, action, rule, here.map(|_| anything()).collect())
}

fn policy(
    view: &AccessView<'_>,
    action: Action,
    rule: &AccessRule,
    permissions: Vec<Permission>,
) -> Option<Policy> {
    if permissions.is_empty() && !rule.to.is_empty() {
        return None;
    }
    let or = |items: Vec<_>, anything| if items.is_empty() { vec![anything] } else { items };
    let principals = rule.from.iter().map(|source| principal(view, action, source)).collect();
    let anybody = Principal { identifier: Some(principal::Identifier::Any(true)) };
    Some(Policy {
        permissions: if permissions.is_empty() { vec![anything()] } else { permissions },
        principals: or(principals, anybody),
        ..Default::default()
    })
}

fn permission(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn anything() -> Permission {
    permission(permission::Rule::Any(true))
}

fn any_of(mut rules: Vec<Permission>) -> Option<Permission> {
    match rules.len() {
        0 | 1 => rules.pop(),
        _ => Some(permission(permission::Rule::OrRules(permission::Set { rules }))),
    }
}

fn operation(operation: &Operation) -> Permission {
    let method = |method: &str| {
        permission(permission::Rule::Header(matching::header(":method", &Pattern::Exact(method.into()))))
    };
    let mut rules: Vec<Permission> = Vec::new();
    rules.extend(any_of(operation.methods.iter().map(|one| method(one)).collect()));
    rules.extend(any_of(operation.paths.iter().flat_map(paths).collect()));
    rules.extend(
        matching::headers(&operation.headers).map(|header| permission(permission::Rule::Header(header))),
    );
    match rules.len() {
        0 => anything(),
        1 => rules.remove(0),
        _ => permission(permission::Rule::AndRules(permission::Set { rules })),
    }
}

/// A path without its query; several texts where Envoy has no word for it.
fn paths(path: &PathMatch) -> Vec<Permission> {
    let regex = |text: String| string_matcher::MatchPattern::SafeRegex(matching::regex(text));
    let exact = |text: &str| string_matcher::MatchPattern::Exact(text.to_owned());
    let prefix = |text: String| string_matcher::MatchPattern::Prefix(text);
    let patterns = match path {
        PathMatch::Exact(text) => vec![exact(text)],
        PathMatch::Prefix(text) if &**text == "/" => vec![prefix("/".to_owned())],
        PathMatch::Prefix(text) => vec![exact(text), prefix(format!("{text}/"))],
        PathMatch::Regex(text) => vec![regex(text.to_string())],
        PathMatch::Grpc { service: Some(Pattern::Exact(service)), method: Some(Pattern::Exact(method)) } => {
            vec![exact(&format!("/{service}/{method}"))]
        }
        PathMatch::Grpc { service, method } => vec![regex(matching::call(service.as_ref(), method.as_ref()))],
    };
    let url_path = |pattern| {
        let matcher = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
        permission(permission::Rule::UrlPath(PathMatcher { rule: Some(path_matcher::Rule::Path(matcher)) }))
    };
    patterns.into_iter().map(url_path).collect()
}

fn identifier(identifier: principal::Identifier) -> Principal {
    Principal { identifier: Some(identifier) }
}

/// A caller whose verified identity is like this.
fn verified(pattern: string_matcher::MatchPattern) -> Principal {
    let matcher = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
    identifier(principal::Identifier::Authenticated(principal::Authenticated {
        principal_name: Some(matcher),
    }))
}

fn not(principal: Principal) -> Principal {
    identifier(principal::Identifier::NotId(Box::new(principal)))
}

fn principal(view: &AccessView<'_>, action: Action, source: &Source) -> Principal {
    use string_matcher::MatchPattern::{Exact, Prefix};
    let anybody = || verified(Prefix("spiffe://".to_owned()));
    if source.authenticated == Some(false) {
        return not(anybody());
    }
    let domain = source.trust_domain.as_deref().unwrap_or(view.trust_domain);
    let of_domain = || verified(Prefix(format!("spiffe://{domain}/")));
    let within = |namespace: &str| verified(Prefix(format!("spiffe://{domain}/ns/{namespace}/")));
    let is = |account: &AccountName| {
        // Its parts have been names before; what is none would be nobody.
        let id = SpiffeId::new(domain, &account.namespace, &account.name);
        verified(Exact(id.map(|id| id.to_string()).unwrap_or_default()))
    };
    let mut ids = Vec::new();
    match (&source.service_account, &source.namespace) {
        (Some(account), _) => ids.push(is(account)),
        (None, Some(namespace)) => ids.push(within(namespace)),
        (None, None) if source.trust_domain.is_some() => ids.push(of_domain()),
        (None, None) if source.authenticated == Some(true) => ids.push(anybody()),
        (None, None) => {}
    }
    let mut excluded: Vec<Principal> = Vec::new();
    excluded.extend(source.not_namespace.as_deref().map(|namespace| not(within(namespace))));
    excluded.extend(source.not_service_account.as_ref().map(|account| not(is(account))));
    // Who is let in for what he is not has to be somebody, and one of ours.
    if action == Action::Allow && !excluded.is_empty() {
        ids.push(of_domain());
    }
    ids.extend(excluded);
    match ids.len() {
        1 => ids.remove(0),
        _ => identifier(principal::Identifier::AndIds(principal::Set { ids })),
    }
}

#[cfg(test)]
mod tests;
