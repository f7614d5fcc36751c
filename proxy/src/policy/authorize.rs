//! Who may do what: the rules of Envoy's RBAC filters, compiled once for a configuration.
//!
//! In: a [`Call`]: the caller's verified identity if it has one, and the request if there is one. Out: whether it may go on,
//! and which rule says so; what only is audited is told apart. Pure; allocates nothing.
//!
//! Invariants: the caller is who its certificate says, never who a header says; a shadow never decides; rules are
//! tried in the order of their names, as Envoy does, so that both name the same one. Surprise: conditions on requests and on
//! callers are of one type, because they are combined alike. Non-goals: the answer (`reply`), counting (`record`).

use std::sync::Arc;

use http::request::Parts;

use crate::record::RuleName;
use crate::route::matcher::{HeaderMatch, ValueMatch};

/// What is judged.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// The caller's verified identity, as it is written in its certificate.
    pub caller: Option<&'a str>,
    /// The port it came to.
    pub port: u16,
    /// What it asks; `None` for bytes.
    pub request: Option<&'a Parts>,
}

/// A condition on a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// All of these.
    All(Box<[Self]>),
    /// Always.
    Always,
    /// The caller has an identity like this; `None` is any.
    Caller(Option<ValueMatch>),
    /// A header is like this.
    Header(Box<HeaderMatch>),
    /// Not this.
    Not(Box<Self>),
    /// One of these.
    One(Box<[Self]>),
    /// The path, without a query, is like this.
    Path(ValueMatch),
    /// It came to this port.
    Port(u16),
}

impl Condition {
    /// Whether it holds.
    #[must_use]
    pub fn holds(&self, call: &Call<'_>) -> bool {
        match self {
            Self::All(all) => all.iter().all(|one| one.holds(call)),
            Self::Always => true,
            Self::Caller(wanted) => call
                .caller
                .is_some_and(|caller| wanted.as_ref().is_none_or(|wanted| wanted.holds(caller.as_bytes()))),
            Self::Header(header) => match call.request {
                Some(request) => header.holds(request),
                None => header.holds_for_none(),
            },
            Self::Not(one) => !one.holds(call),
            Self::One(some) => some.iter().any(|one| one.holds(call)),
            // `CONNECT` has no path.
            Self::Path(wanted) => call.request.is_some_and(|request| {
                request.uri.path_and_query().is_some() && wanted.holds(request.uri.path().as_bytes())
            }),
            Self::Port(port) => *port == call.port,
        }
    }
}

/// What a rule does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Lets in; all others stay out.
    Allow,
    /// Keeps out.
    Deny,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What it is called.
    pub name: Arc<RuleName>,
    /// What may be asked: one of these.
    pub permissions: Box<[Condition]>,
    /// Who may ask: one of these.
    pub principals: Box<[Condition]>,
}

impl Policy {
    fn holds(&self, call: &Call<'_>) -> bool {
        self.permissions.iter().any(|one| one.holds(call))
            && self.principals.iter().any(|one| one.holds(call))
    }
}

/// Rules that do the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// What they do.
    pub action: Action,
    /// In order of their names.
    pub policies: Box<[Policy]>,
}

impl Rules {
    fn judge(&self, call: &Call<'_>) -> (bool, Option<&Arc<RuleName>>) {
        let found = self.policies.iter().find(|policy| policy.holds(call));
        (found.is_some() == (self.action == Action::Allow), found.map(|policy| &policy.name))
    }
}

/// One filter.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// Rules in force.
    pub rules: Option<Rules>,
    /// Rules that are only counted.
    pub shadow: Option<Rules>,
}

/// What a rule says to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    /// It let the call in.
    Allowed,
    /// It kept the call out; without a rule: none let it in.
    Denied,
    /// It is only audited, and would have let the call in.
    WouldAllow,
    /// It is only audited, and would have kept the call out.
    WouldDeny,
}

impl Verdict {
    /// The word in metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        use weft_wire::access::verdict;
        match self {
            Self::Allowed => verdict::ALLOWED,
            Self::Denied => verdict::DENIED,
            Self::WouldAllow => verdict::WOULD_ALLOW,
            Self::WouldDeny => verdict::WOULD_DENY,
        }
    }
}

/// Filters in their order.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Access {
    /// The first one that denies decides.
    pub filters: Box<[Filter]>,
}

impl Access {
    /// Nobody may.
    #[must_use]
    pub fn nobody() -> Self {
        let rules = Some(Rules { action: Action::Allow, policies: [].into() });
        Self { filters: [Filter { rules, shadow: None }].into() }
    }

    /// Whether there is anything in force.
    #[must_use]
    pub fn denies_any(&self) -> bool {
        self.filters.iter().any(|filter| filter.rules.is_some())
    }

    /// Whether a call may go on. Every rule that has something to say is told with what it says; no rule (`None`) where
    /// none of those that let in did.
    pub fn admits(&self, call: &Call<'_>, mut tell: impl FnMut(Verdict, Option<&Arc<RuleName>>)) -> bool {
        for filter in &self.filters {
            if let Some(shadow) = &filter.shadow {
                let (admitted, name) = shadow.judge(call);
                if name.is_some() || !admitted {
                    tell(if admitted { Verdict::WouldAllow } else { Verdict::WouldDeny }, name);
                }
            }
            if let Some(rules) = &filter.rules {
                let (admitted, name) = rules.judge(call);
                if name.is_some() || !admitted {
                    tell(if admitted { Verdict::Allowed } else { Verdict::Denied }, name);
                }
                if !admitted {
                    return false;
                }
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use http::Request;
    use proptest::prelude::*;

    use super::*;
    use crate::route::matcher::Field;

    fn parts(method: &str, target: &str) -> Parts {
        Request::builder().method(method).uri(target).body(()).unwrap().into_parts().0
    }

    fn name(text: &str) -> Arc<RuleName> {
        RuleName::resolve(&Arc::from(text), "")
    }

    fn rules(action: Action, policies: &[(&str, Condition, Condition)]) -> Rules {
        let policies = policies.iter().map(|(text, permission, principal)| Policy {
            name: name(text),
            permissions: [permission.clone()].into(),
            principals: [principal.clone()].into(),
        });
        Rules { action, policies: policies.collect() }
    }

    fn is(id: &str) -> Condition {
        Condition::Caller(Some(ValueMatch::Exact(id.into())))
    }

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";

    fn told(access: &Access, call: &Call<'_>) -> (bool, Vec<(Verdict, Option<String>)>) {
        let mut told = Vec::new();
        let admitted = access
            .admits(call, |verdict, name| told.push((verdict, name.map(|name| name.route().to_owned()))));
        (admitted, told)
    }

    #[test]
    fn the_first_filter_that_denies_decides() {
        let access = Access {
            filters: [
                Filter {
                    rules: Some(rules(Action::Deny, &[("d", is(WEB), Condition::Always)])),
                    shadow: None,
                },
                Filter {
                    rules: Some(rules(Action::Allow, &[("a", Condition::Always, Condition::Caller(None))])),
                    shadow: None,
                },
            ]
            .into(),
        };
        let call = |caller| Call { caller, port: 80, request: None };
        assert_eq!(told(&access, &call(Some(WEB))), (false, vec![(Verdict::Denied, Some("d".into()))]));
        assert_eq!(told(&access, &call(Some("x"))), (true, vec![(Verdict::Allowed, Some("a".into()))]));
        assert_eq!(told(&access, &call(None)), (false, vec![(Verdict::Denied, None)]));
    }

    #[test]
    fn a_shadow_is_told_and_never_decides() {
        let shadow = |action| Access {
            filters: [Filter {
                rules: None,
                shadow: Some(rules(action, &[("s", Condition::Always, is(WEB))])),
            }]
            .into(),
        };
        let call = |caller| Call { caller, port: 80, request: None };
        let would = |verdict| (true, vec![(verdict, Some("s".to_owned()))]);
        assert_eq!(told(&shadow(Action::Deny), &call(Some(WEB))), would(Verdict::WouldDeny));
        assert_eq!(told(&shadow(Action::Deny), &call(None)), (true, vec![]));
        assert_eq!(told(&shadow(Action::Allow), &call(Some(WEB))), would(Verdict::WouldAllow));
        assert_eq!(told(&shadow(Action::Allow), &call(None)), (true, vec![(Verdict::WouldDeny, None)]));
    }

    #[test]
    fn nothing_that_a_request_says_is_an_identity() {
        let mut request = parts("GET", "/");
        for header in ["x-forwarded-client-cert", "x-weft-peer", "authorization", "host"] {
            request.headers.insert(header, http::HeaderValue::from_static(WEB));
        }
        let call = Call { caller: None, port: 80, request: Some(&request) };
        assert!(!is(WEB).holds(&call) && !Condition::Caller(None).holds(&call));
    }

    #[test]
    fn conditions_are_combined() {
        let request = parts("GET", "/a/b?c");
        let call = Call { caller: Some(WEB), port: 80, request: Some(&request) };
        let bytes = Call { request: None, ..call };
        let path = Condition::Path(ValueMatch::Exact("/a/b".into()));
        let header = Condition::Header(Box::new(HeaderMatch {
            field: Field::Method,
            value: ValueMatch::Exact("GET".into()),
            invert: false,
            missing_is_empty: false,
        }));
        let not = |one: &Condition| Condition::Not(Box::new(one.clone()));
        for (condition, http, tcp) in [
            (path.clone(), true, false),
            (header.clone(), true, false),
            (not(&path), false, true),
            (Condition::All([path.clone(), Condition::Port(80)].into()), true, false),
            (Condition::All([path.clone(), Condition::Port(81)].into()), false, false),
            (Condition::One([not(&header), Condition::Port(81)].into()), false, true),
        ] {
            assert_eq!((condition.holds(&call), condition.holds(&bytes)), (http, tcp), "{condition:?}");
        }
        let connect = parts("CONNECT", "a:80");
        let any = Condition::Path(ValueMatch::Prefix("".into()));
        assert!(!any.holds(&Call { request: Some(&connect), ..call }), "CONNECT has no path");
    }

    proptest! {
        /// Whatever the rules are: what is allowed is allowed by name or by default, and a shadow changes nothing.
        #[test]
        fn a_shadow_changes_no_decision(bits in any::<[bool; 6]>()) {
            let condition = |bit| if bit { Condition::Always } else { Condition::Port(81) };
            let action = |bit| if bit { Action::Allow } else { Action::Deny };
            let rules = rules(action(bits[0]), &[("r", condition(bits[1]), condition(bits[2]))]);
            let shadow = self::rules(action(bits[3]), &[("s", condition(bits[4]), condition(bits[5]))]);
            let of = |shadow| Access { filters: [Filter { rules: Some(rules.clone()), shadow }].into() };
            let call = Call { caller: None, port: 80, request: None };
            prop_assert_eq!(told(&of(None), &call).0, told(&of(Some(shadow)), &call).0);
        }
    }
}
