//! Envoy's RBAC filters → who may do what.
//!
//! Invariant: what is not understood is refused by its field. A condition that were dropped from a rule would make it mean
//! more, and a rule that were dropped would keep out or let in whom it names.

use std::sync::Arc;

use envoy_types::pb::envoy::config::rbac::v3::{
    self as proto, permission::Rule, principal::Identifier, rbac,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::Rbac as HttpRbac;
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, path_matcher};

use super::super::Invalid;
use super::route;
pub(super) use crate::policy::authorize::Filter;
use crate::policy::authorize::{Action, Condition, Policy, Rules};
use crate::record::RuleName;

/// Conditions of one set of rules: each may be looked at for every request.
const CONDITIONS_MAX: usize = 16 * 1024;
/// Conditions within conditions.
const DEPTH_MAX: usize = 16;

pub(super) fn http(filter: &HttpRbac, place: &str) -> Result<Filter, Invalid> {
    for (there, field) in
        [(filter.matcher.is_some(), "matcher"), (filter.shadow_matcher.is_some(), "shadow_matcher")]
    {
        if there {
            return Err(Invalid::unsupported(format!("{place}.{field}"), "a tree of rules"));
        }
    }
    both(filter.rules.as_ref(), filter.shadow_rules.as_ref(), place)
}

pub(super) fn network(filter: &NetworkRbac, place: &str) -> Result<Filter, Invalid> {
    for (there, field) in
        [(filter.matcher.is_some(), "matcher"), (filter.shadow_matcher.is_some(), "shadow_matcher")]
    {
        if there {
            return Err(Invalid::unsupported(format!("{place}.{field}"), "a tree of rules"));
        }
    }
    // A connection is judged once, when it begins.
    if filter.enforcement_type != 0 {
        return Err(Invalid::unsupported(
            format!("{place}.enforcement_type"),
            "judging bytes again and again",
        ));
    }
    both(filter.rules.as_ref(), filter.shadow_rules.as_ref(), place)
}

fn both(
    in_force: Option<&proto::Rbac>,
    shadow: Option<&proto::Rbac>,
    place: &str,
) -> Result<Filter, Invalid> {
    Ok(Filter {
        rules: in_force.map(|all| rules(all, &format!("{place}.rules"))).transpose()?,
        shadow: shadow.map(|all| rules(all, &format!("{place}.shadow_rules"))).transpose()?,
    })
}

fn rules(all: &proto::Rbac, place: &str) -> Result<Rules, Invalid> {
    let action = match rbac::Action::try_from(all.action) {
        Ok(rbac::Action::Allow) => Action::Allow,
        Ok(rbac::Action::Deny) => Action::Deny,
        Ok(rbac::Action::Log) | Err(_) => {
            return Err(Invalid::unsupported(
                format!("{place}.action"),
                "an action that neither allows nor denies",
            ));
        }
    };
    let mut reader = Reader { left: CONDITIONS_MAX };
    let mut names: Vec<&String> = all.policies.keys().collect();
    names.sort_unstable();
    let policies = names.into_iter().map(|name| {
        let place = format!("{place}.policies[{name:?}]");
        reader.policy(name, &all.policies[name], &place)
    });
    Ok(Rules { action, policies: policies.collect::<Result<_, _>>()? })
}

/// Counts what it reads.
struct Reader {
    left: usize,
}

impl Reader {
    fn policy(&mut self, name: &str, policy: &proto::Policy, place: &str) -> Result<Policy, Invalid> {
        for (there, field) in [
            (policy.condition.is_some(), "condition"),
            (policy.checked_condition.is_some(), "checked_condition"),
        ] {
            if there {
                return Err(Invalid::unsupported(format!("{place}.{field}"), "an expression"));
            }
        }
        if policy.permissions.is_empty() {
            return Err(Invalid::missing(format!("{place}.permissions")));
        }
        if policy.principals.is_empty() {
            return Err(Invalid::missing(format!("{place}.principals")));
        }
        Ok(Policy {
            name: RuleName::resolve(&Arc::from(name), ""),
            permissions: self.permissions(&policy.permissions, &format!("{place}.permissions"), 0)?,
            principals: self.principals(&policy.principals, &format!("{place}.principals"), 0)?,
        })
    }

    fn count(&mut self, place: &str, depth: usize) -> Result<(), Invalid> {
        self.left =
            self.left.checked_sub(1).ok_or_else(|| Invalid::unsupported(place, "so many conditions"))?;
        if depth >= DEPTH_MAX { Err(Invalid::unsupported(place, "conditions so deep")) } else { Ok(()) }
    }

    fn permissions(
        &mut self,
        all: &[proto::Permission],
        place: &str,
        depth: usize,
    ) -> Result<Box<[Condition]>, Invalid> {
        let all = all.iter().enumerate();
        all.map(|(index, one)| self.permission(one, &format!("{place}[{index}]"), depth)).collect()
    }

    fn permission(
        &mut self,
        one: &proto::Permission,
        place: &str,
        depth: usize,
    ) -> Result<Condition, Invalid> {
        self.count(place, depth)?;
        let no = |field: &str, what: &str| Err(Invalid::unsupported(format!("{place}.{field}"), what));
        match &one.rule {
            Some(Rule::AndRules(set)) => Ok(Condition::All(self.permissions(
                &set.rules,
                &format!("{place}.and_rules.rules"),
                depth + 1,
            )?)),
            Some(Rule::OrRules(set)) => Ok(Condition::One(self.permissions(
                &set.rules,
                &format!("{place}.or_rules.rules"),
                depth + 1,
            )?)),
            Some(Rule::Any(true)) => Ok(Condition::Always),
            Some(Rule::NotRule(rule)) => {
                let inner = self.permission(rule, &format!("{place}.not_rule"), depth + 1)?;
                Ok(Condition::Not(Box::new(inner)))
            }
            Some(Rule::Header(header)) => self.header(header, &format!("{place}.header")),
            Some(Rule::UrlPath(matcher)) => path(matcher, &format!("{place}.url_path")),
            Some(Rule::DestinationPort(port)) => match u16::try_from(*port) {
                Ok(port) => Ok(Condition::Port(port)),
                Err(_) => Err(Invalid::value(
                    format!("{place}.destination_port"),
                    &port.to_string(),
                    "is not a port",
                )),
            },
            Some(Rule::Any(false)) | None => Err(Invalid::missing(format!("{place}.rule"))),
            Some(Rule::DestinationIp(_)) => no("destination_ip", "a condition on addresses"),
            Some(Rule::DestinationPortRange(_)) => no("destination_port_range", "a range of ports"),
            Some(Rule::RequestedServerName(_)) => no("requested_server_name", "a condition on SNI"),
            Some(Rule::Matcher(_)) => no("matcher", "a plugin"),
            Some(Rule::UriTemplate(_)) => no("uri_template", "a plugin"),
            // Metadata, in its old and its new form.
            Some(_) => no("rule", "a condition on metadata"),
        }
    }

    fn principals(
        &mut self,
        all: &[proto::Principal],
        place: &str,
        depth: usize,
    ) -> Result<Box<[Condition]>, Invalid> {
        let all = all.iter().enumerate();
        all.map(|(index, one)| self.principal(one, &format!("{place}[{index}]"), depth)).collect()
    }

    fn principal(&mut self, one: &proto::Principal, place: &str, depth: usize) -> Result<Condition, Invalid> {
        self.count(place, depth)?;
        let no = |what: &str| Err(Invalid::unsupported(format!("{place}.identifier"), what));
        match &one.identifier {
            Some(Identifier::AndIds(set)) => {
                Ok(Condition::All(self.principals(&set.ids, &format!("{place}.and_ids.ids"), depth + 1)?))
            }
            Some(Identifier::OrIds(set)) => {
                Ok(Condition::One(self.principals(&set.ids, &format!("{place}.or_ids.ids"), depth + 1)?))
            }
            Some(Identifier::Any(true)) => Ok(Condition::Always),
            Some(Identifier::NotId(id)) => {
                let inner = self.principal(id, &format!("{place}.not_id"), depth + 1)?;
                Ok(Condition::Not(Box::new(inner)))
            }
            Some(Identifier::Authenticated(wanted)) => {
                let place = format!("{place}.authenticated.principal_name");
                let name = wanted.principal_name.as_ref();
                Ok(Condition::Caller(name.map(|name| route::string(name, &place)).transpose()?))
            }
            Some(Identifier::Header(header)) => self.header(header, &format!("{place}.header")),
            Some(Identifier::UrlPath(matcher)) => path(matcher, &format!("{place}.url_path")),
            Some(Identifier::Any(false)) | None => Err(Invalid::missing(format!("{place}.identifier"))),
            Some(_) => no("a condition on what is not verified"),
        }
    }

    fn header(
        &mut self,
        header: &envoy_types::pb::envoy::config::route::v3::HeaderMatcher,
        place: &str,
    ) -> Result<Condition, Invalid> {
        Ok(Condition::Header(Box::new(route::header(header, place)?)))
    }
}

fn path(matcher: &PathMatcher, place: &str) -> Result<Condition, Invalid> {
    match &matcher.rule {
        Some(path_matcher::Rule::Path(text)) => {
            Ok(Condition::Path(route::string(text, &format!("{place}.path"))?))
        }
        None => Err(Invalid::missing(format!("{place}.path"))),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::rbac::v3::{permission, principal};
    use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

    use super::super::super::explain;
    use super::*;

    fn any() -> proto::Permission {
        proto::Permission { rule: Some(Rule::Any(true)) }
    }

    fn anybody() -> proto::Principal {
        proto::Principal { identifier: Some(Identifier::Any(true)) }
    }

    fn with(permission: proto::Permission, principal: proto::Principal) -> HttpRbac {
        let policy = proto::Policy {
            permissions: vec![permission],
            principals: vec![principal],
            ..Default::default()
        };
        let rules = proto::Rbac { policies: [("p".to_owned(), policy)].into(), ..Default::default() };
        HttpRbac { rules: Some(rules), ..Default::default() }
    }

    fn refusal(filter: &HttpRbac) -> String {
        explain(&http(filter, "f").expect_err("refused"))
    }

    fn nested(depth: usize) -> proto::Permission {
        (0..depth).fold(any(), |inner, _| proto::Permission { rule: Some(Rule::NotRule(Box::new(inner))) })
    }

    #[test]
    fn rules_are_read_in_order_of_their_names() {
        let mut filter = with(any(), anybody());
        let rules = filter.rules.as_mut().expect("there");
        let policy = rules.policies["p"].clone();
        rules.policies = ["b", "a", "c"].map(|name| (name.to_owned(), policy.clone())).into();
        let read = http(&filter, "f").expect("good").rules.expect("in force");
        let names: Vec<&str> = read.policies.iter().map(|policy| policy.name.route()).collect();
        assert_eq!((read.action, names), (Action::Allow, vec!["a", "b", "c"]));
    }

    #[test]
    fn a_caller_is_matched_by_name() {
        let matcher = StringMatcher {
            match_pattern: Some(MatchPattern::Prefix("spiffe://a/".into())),
            ..Default::default()
        };
        let caller = principal::Authenticated { principal_name: Some(matcher) };
        let caller = proto::Principal { identifier: Some(Identifier::Authenticated(caller)) };
        let read = http(&with(any(), caller), "f").expect("good").rules.expect("in force");
        assert!(matches!(&*read.policies[0].principals, [Condition::Caller(Some(_))]));
    }

    #[test]
    fn what_is_not_understood_is_refused_by_its_field() {
        let permission = |rule| proto::Permission { rule: Some(rule) };
        let set = |rules| permission::Set { rules };
        let ip = permission(Rule::DestinationIp(Default::default()));
        for (filter, place) in [
            (with(ip.clone(), anybody()), "f.rules.policies[\"p\"].permissions[0].destination_ip"),
            (
                with(permission(Rule::OrRules(set(vec![any(), ip]))), anybody()),
                "or_rules.rules[1].destination_ip",
            ),
            (with(permission(Rule::Any(false)), anybody()), "permissions[0].rule is missing"),
            (with(permission(Rule::DestinationPort(70_000)), anybody()), "\"70000\" is not a port"),
            (with(any(), proto::Principal { identifier: None }), "principals[0].identifier is missing"),
            (
                with(
                    any(),
                    proto::Principal { identifier: Some(Identifier::DirectRemoteIp(Default::default())) },
                ),
                "principals[0].identifier: a condition on what is not verified",
            ),
            (with(nested(DEPTH_MAX + 1), anybody()), "conditions so deep"),
        ] {
            let said = refusal(&filter);
            assert!(said.contains(place), "{said}");
        }
        let mut filter = with(any(), anybody());
        filter.rules.as_mut().expect("there").action = rbac::Action::Log.into();
        assert!(refusal(&filter).starts_with("f.rules.action"));
        let tree = HttpRbac { matcher: Some(Default::default()), ..Default::default() };
        assert!(refusal(&tree).starts_with("f.matcher"));
        let again = NetworkRbac { enforcement_type: 1, ..Default::default() };
        assert!(explain(&network(&again, "f").expect_err("refused")).starts_with("f.enforcement_type"));
    }

    #[test]
    fn there_is_an_end_to_conditions() {
        let many = permission::Set { rules: vec![any(); CONDITIONS_MAX] };
        let filter = with(proto::Permission { rule: Some(Rule::AndRules(many)) }, anybody());
        assert!(refusal(&filter).contains("so many conditions"));
    }
}
