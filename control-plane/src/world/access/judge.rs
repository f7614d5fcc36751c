//! What becomes of one call: the decision, who made it, and what policies in audit mode would have done.
//!
//! The words of `weft authz check`. What sidecars do is compiled from the same rules; a test compares the two.

use weft_wire::SpiffeId;

use super::super::policy::PolicyId;
use super::super::route::{PathMatch, Pattern, ValueMatch};
use super::{Access, AccessRule, AccessView, AccountName, Action, Operation, Posture, Source, matches};

/// A call.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    /// Who calls; `None` is whoever shows no certificate.
    pub caller: Option<&'a SpiffeId>,
    /// What is spoken.
    pub speaks: Speaks<'a>,
}

/// What a call speaks.
#[derive(Debug, Clone, Copy)]
pub enum Speaks<'a> {
    /// Bytes.
    Bytes,
    /// A request.
    Http {
        /// Its method.
        method: &'a str,
        /// Its path, normalized, without a query.
        path: &'a str,
        /// Its headers, names in lower case.
        headers: &'a [(String, String)],
    },
}

/// What is decided, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// Whether the call goes through.
    pub allowed: bool,
    /// Who decided it.
    pub cause: Cause,
    /// What policies in audit mode would have decided otherwise or beside it.
    pub audits: Vec<Audit>,
}

/// Who decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// A rule, by its policy and position.
    Rule(PolicyId, usize),
    /// There are policies that allow, and none of them allows this.
    NoneAllows(Vec<PolicyId>),
    /// No policy speaks here: the posture of the namespace.
    Posture(Posture),
}

/// What a policy in audit mode would have done if it were in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Audit {
    /// A rule would have kept the call out.
    WouldDeny(PolicyId, usize),
    /// No policy, in force or not, would have let it in.
    WouldLack(Vec<PolicyId>),
    /// A rule would have let it in.
    WouldAllow(PolicyId, usize),
}

impl AccessView<'_> {
    /// What becomes of a call here.
    #[must_use]
    pub fn judge(&self, ask: &Ask<'_>) -> Judgement {
        let audits = self.audits(ask);
        if let Some((id, rule)) = self.first(Action::Deny, false, ask) {
            return Judgement { allowed: false, cause: Cause::Rule(id, rule), audits };
        }
        let (allowed, cause) = match self.first(Action::Allow, false, ask) {
            Some((id, rule)) => (true, Cause::Rule(id, rule)),
            None if self.of(Action::Allow, false).next().is_some() => {
                (false, Cause::NoneAllows(self.ids(Action::Allow, false)))
            }
            None => (self.posture == Posture::Allow, Cause::Posture(self.posture)),
        };
        Judgement { allowed, cause, audits }
    }

    fn audits(&self, ask: &Ask<'_>) -> Vec<Audit> {
        let denied = self.first(Action::Deny, true, ask).map(|(id, rule)| Audit::WouldDeny(id, rule));
        let mut audits: Vec<Audit> = denied.into_iter().collect();
        let watching = self.ids(Action::Allow, true);
        if watching.is_empty() {
            return audits;
        }
        audits.push(match self.first(Action::Allow, true, ask) {
            Some((id, rule)) => Audit::WouldAllow(id, rule),
            None if self.first(Action::Allow, false, ask).is_some() => return audits,
            None => Audit::WouldLack(watching),
        });
        audits
    }

    fn ids(&self, action: Action, audit: bool) -> Vec<PolicyId> {
        self.of(action, audit).map(|(id, _)| id.clone()).collect()
    }

    /// The first rule that names a call.
    fn first(&self, action: Action, audit: bool, ask: &Ask<'_>) -> Option<(PolicyId, usize)> {
        self.of(action, audit).find_map(|(id, access)| {
            let mut rules = access.rules.iter();
            Some((id.clone(), rules.position(|rule| self.names(access, rule, ask))?))
        })
    }

    fn names(&self, access: &Access, rule: &AccessRule, ask: &Ask<'_>) -> bool {
        let from = |source: &Source| self.is_from(access.action, source, ask.caller);
        let to = |operation: &Operation| self.asks(access.action, operation, ask.speaks);
        (rule.from.is_empty() || rule.from.iter().any(from)) && (rule.to.is_empty() || rule.to.iter().any(to))
    }

    fn is_from(&self, action: Action, source: &Source, caller: Option<&SpiffeId>) -> bool {
        let Some(caller) = caller else {
            return source.authenticated == Some(false)
                || (action == Action::Deny && !source.needs_identity());
        };
        let is = |account: &AccountName| self.is_account(source, account, caller);
        let domain = source.trust_domain.as_deref().unwrap_or(self.trust_domain);
        let ours = caller.trust_domain() == domain;
        let within = |namespace: &str| ours && caller.namespace() == namespace;
        // Whoever is of another trust domain is none of those that are excluded, and not let in by that.
        let excludes = source.not_namespace.is_some() || source.not_service_account.is_some();
        source.authenticated != Some(false)
            && source.service_account.as_ref().is_none_or(is)
            && source.namespace.as_deref().is_none_or(within)
            && source.not_namespace.as_deref().is_none_or(|namespace| !within(namespace))
            && source.not_service_account.as_ref().is_none_or(|account| !is(account))
            && source.trust_domain.as_deref().is_none_or(|domain| caller.trust_domain() == domain)
            && (!excludes || action == Action::Deny || ours)
    }

    fn is_account(&self, source: &Source, account: &AccountName, caller: &SpiffeId) -> bool {
        let domain = source.trust_domain.as_deref().unwrap_or(self.trust_domain);
        caller.trust_domain() == domain
            && caller.namespace() == &*account.namespace
            && caller.service_account() == &*account.name
    }

    fn asks(&self, action: Action, operation: &Operation, speaks: Speaks<'_>) -> bool {
        if !operation.is_at(self.port) {
            return false;
        }
        let Speaks::Http { method, path, headers } = speaks else {
            return !operation.is_http() || action == Action::Deny;
        };
        let has = |wanted: &ValueMatch| {
            let mut values = headers.iter().filter(|(name, _)| **name == *wanted.name);
            values.any(|(_, value)| matches(&wanted.value, value))
        };
        (operation.methods.is_empty() || operation.methods.iter().any(|one| **one == *method))
            && (operation.paths.is_empty() || operation.paths.iter().any(|one| is_path(one, path)))
            && operation.headers.iter().all(has)
    }
}

fn is_path(wanted: &PathMatch, path: &str) -> bool {
    match wanted {
        PathMatch::Exact(exact) => **exact == *path,
        PathMatch::Prefix(prefix) if &**prefix == "/" => true,
        PathMatch::Prefix(prefix) => {
            path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
        PathMatch::Regex(expression) => matches(&Pattern::Regex(expression.clone()), path),
        PathMatch::Grpc { service, method } => {
            let mut parts = path.strip_prefix('/').unwrap_or_default().split('/');
            let (Some(one), Some(two), None) = (parts.next(), parts.next(), parts.next()) else {
                return false;
            };
            let is = |wanted: &Option<Pattern>, text: &str| {
                !text.is_empty() && wanted.as_ref().is_none_or(|wanted| matches(wanted, text))
            };
            is(service, one) && is(method, two)
        }
    }
}
