//! Names that cannot hold a bad value: parse once at the border, then trust.

use std::fmt;
use std::str::FromStr;

/// Longest name accepted anywhere: a DNS name (RFC 1035).
const LENGTH_MAX: usize = 253;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidName {
    /// Nothing, or an empty part.
    #[error("{kind} {text:?} has an empty part")]
    Empty {
        /// What was being parsed.
        kind: &'static str,
        /// The rejected text.
        text: String,
    },
    /// More than 253 bytes (2,048 for a SPIFFE id).
    #[error("{kind} is {length} bytes long")]
    TooLong {
        /// What was being parsed.
        kind: &'static str,
        /// Its length in bytes.
        length: usize,
    },
    /// A character that the kind of name does not allow.
    #[error("{kind} {text:?} contains {character:?}")]
    Character {
        /// What was being parsed.
        kind: &'static str,
        /// The rejected text.
        text: String,
        /// The first character that is not allowed.
        character: char,
    },
    /// The wrong number of parts.
    #[error("{kind} {text:?} is not of the form {form}")]
    Form {
        /// What was being parsed.
        kind: &'static str,
        /// The rejected text.
        text: String,
        /// What was expected.
        form: &'static str,
    },
}

fn label(kind: &'static str, text: &str) -> Result<(), InvalidName> {
    if text.is_empty() {
        return Err(InvalidName::Empty { kind, text: text.into() });
    }
    if text.len() > LENGTH_MAX {
        return Err(InvalidName::TooLong { kind, length: text.len() });
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    match text.chars().find(|&c| !allowed(c)) {
        Some(character) => Err(InvalidName::Character { kind, text: text.into(), character }),
        None => Ok(()),
    }
}

macro_rules! namespaced {
    ($(#[$doc:meta])+ $type:ident, $kind:literal, $separator:literal, $form:literal) => {
        $(#[$doc])+
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $type {
            namespace: Box<str>,
            name: Box<str>,
        }

        impl $type {
            /// Builds the id from its parts.
            ///
            /// # Errors
            /// When a part is empty, too long, or not made of `a-z 0-9 - _ .` (the namespace: no dot).
            pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidName> {
                label($kind, name)?;
                label($kind, namespace)?;
                if namespace.contains('.') {
                    return Err(InvalidName::Character { kind: $kind, text: namespace.into(), character: '.' });
                }
                Ok(Self { namespace: namespace.into(), name: name.into() })
            }

            /// The namespace.
            #[must_use]
            pub fn namespace(&self) -> &str {
                &self.namespace
            }

            /// The name inside the namespace.
            #[must_use]
            pub fn name(&self) -> &str {
                &self.name
            }
        }
    };
}

namespaced! {
    /// A service: what callers ask for. `Display` is `name.namespace`, as in DNS.
    ServiceId, "service", '.', "name.namespace"
}

namespaced! {
    /// A workload: what runs (a Deployment, a StatefulSet, a program). `Display` is `namespace/name`.
    WorkloadId, "workload", '/', "namespace/name"
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.name, self.namespace)
    }
}

impl FromStr for ServiceId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // Namespaces have no dots, names may.
        let (name, namespace) = text.rsplit_once('.').ok_or_else(|| InvalidName::Form {
            kind: "service",
            text: text.into(),
            form: "name.namespace",
        })?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for WorkloadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl FromStr for WorkloadId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, name) = text.split_once('/').ok_or_else(|| InvalidName::Form {
            kind: "workload",
            text: text.into(),
            form: "namespace/name",
        })?;
        Self::new(namespace, name)
    }
}

/// One port of a service. `Display` is `name.namespace:port`; clusters and route tables bear this name in xDS.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServicePort {
    /// The service.
    pub service: ServiceId,
    /// The port callers use.
    pub port: u16,
}

impl fmt::Display for ServicePort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.service, self.port)
    }
}

impl FromStr for ServicePort {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form =
            || InvalidName::Form { kind: "service port", text: text.into(), form: "name.namespace:port" };
        let (service, port) = text.rsplit_once(':').ok_or_else(form)?;
        Ok(Self { service: service.parse()?, port: port.parse().map_err(|_| form())? })
    }
}

/// A host name as callers write it, lower-cased at birth so that no comparison can forget to.
///
/// A trailing dot is dropped; ports are not part of a host.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(Box<str>);

impl Host {
    /// The host, lower case, without a trailing dot.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Host {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.strip_suffix('.').unwrap_or(text);
        if text.is_empty() {
            return Err(InvalidName::Empty { kind: "host", text: text.into() });
        }
        if text.len() > LENGTH_MAX {
            return Err(InvalidName::TooLong { kind: "host", length: text.len() });
        }
        // reg-name and IP-literal of RFC 3986, without percent encoding, which has no place in a host.
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':' | '[' | ']');
        match text.chars().find(|&c| !allowed(c)) {
            Some(character) => Err(InvalidName::Character { kind: "host", text: text.into(), character }),
            None => Ok(Self(text.to_ascii_lowercase().into())),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>`: a verified identity.
///
/// Source of the rules: the SPIFFE ID specification (2,048 bytes at most, no empty segments).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    trust_domain: Box<str>,
    namespace: Box<str>,
    service_account: Box<str>,
}

impl SpiffeId {
    /// Builds the identity from its parts.
    ///
    /// # Errors
    /// When a part is empty, too long, or not made of `a-z 0-9 - _ .`.
    pub fn new(trust_domain: &str, namespace: &str, service_account: &str) -> Result<Self, InvalidName> {
        for part in [trust_domain, namespace, service_account] {
            label("SPIFFE id", part)?;
        }
        Ok(Self {
            trust_domain: trust_domain.into(),
            namespace: namespace.into(),
            service_account: service_account.into(),
        })
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The service account.
    #[must_use]
    pub fn service_account(&self) -> &str {
        &self.service_account
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidName;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const KIND: &str = "SPIFFE id";
        if text.len() > 2048 {
            return Err(InvalidName::TooLong { kind: KIND, length: text.len() });
        }
        let form = || InvalidName::Form {
            kind: KIND,
            text: text.into(),
            form: "spiffe://<trust-domain>/ns/<namespace>/sa/<service-account>",
        };
        let mut parts = text.strip_prefix("spiffe://").ok_or_else(form)?.split('/');
        let (Some(trust_domain), Some("ns"), Some(namespace), Some("sa"), Some(service_account), None) =
            (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(form());
        };
        Self::new(trust_domain, namespace, service_account)
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/ns/{}/sa/{}", self.trust_domain, self.namespace, self.service_account)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_round_trip() {
        let port: ServicePort = "orders.shop:8080".parse().expect("valid");
        assert_eq!(port.service.name(), "orders");
        assert_eq!(port.service.namespace(), "shop");
        assert_eq!(port.to_string(), "orders.shop:8080");
        let workload: WorkloadId = "shop/orders-v2".parse().expect("valid");
        assert_eq!(workload.to_string(), "shop/orders-v2");
        let id: SpiffeId = "spiffe://cluster.local/ns/shop/sa/orders".parse().expect("valid");
        assert_eq!(id.to_string(), "spiffe://cluster.local/ns/shop/sa/orders");
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        for text in ["", "orders", "orders.", ".shop", "Orders.shop", "or/ders.shop"] {
            assert!(text.parse::<ServiceId>().is_err(), "{text:?}");
        }
        for text in [
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "spiffe://d/ns//sa/b",
            "spiffe://d/ns/a/sa/",
            "spiffe://d/ns/a/sa/b/c",
            "http://d/ns/a/sa/b",
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text:?}");
        }
        let error = "Shop/orders".parse::<WorkloadId>().expect_err("upper case");
        assert_eq!(error.to_string(), "workload \"Shop\" contains 'S'");
    }

    #[test]
    fn hosts_compare_without_case() {
        assert_eq!("Orders.Shop.".parse::<Host>(), "orders.shop".parse::<Host>());
        assert!("a b".parse::<Host>().is_err());
    }

    proptest! {
        #[test]
        fn strangers_never_panic_a_parser(text in ".{0,300}") {
            std::hint::black_box(text.parse::<ServiceId>().is_ok());
            std::hint::black_box(text.parse::<ServicePort>().is_ok());
            std::hint::black_box(text.parse::<WorkloadId>().is_ok());
            std::hint::black_box(text.parse::<Host>().is_ok());
            std::hint::black_box(text.parse::<SpiffeId>().is_ok());
        }
    }
}
