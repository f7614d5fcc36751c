//! What a browser may do with answers to another origin's page: the CORS protocol's server side.
//!
//! In: a rule's policy and a request's head. Out: the answer to a preflight, or the headers that the real answer gets.
//! Pure. Behaves as Envoy's filter of the same name.
//! Invariant: an origin that is not allowed gets no CORS header, and its preflight goes on to the app unless the policy
//! says otherwise.

use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::fraction::Fraction;
use super::matcher::ValueMatch;

const REQUEST_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cors {
    /// Origins that are allowed: one of these holds.
    pub origins: Box<[ValueMatch]>,
    /// `Access-Control-Allow-Methods`; `*` allows what is asked for.
    pub methods: Option<HeaderValue>,
    /// `Access-Control-Allow-Headers`; `*` allows what is asked for.
    pub headers: Option<HeaderValue>,
    /// `Access-Control-Expose-Headers`.
    pub expose: Option<HeaderValue>,
    /// `Access-Control-Max-Age`.
    pub max_age: Option<HeaderValue>,
    /// Whether credentials may be sent.
    pub credentials: bool,
    /// Whether pages of public networks may ask.
    pub private_network: bool,
    /// Whether a preflight from an origin that is not allowed goes on to the app.
    pub forward_not_matching_preflights: bool,
    /// The share of requests that the policy applies to.
    pub enabled: Fraction,
}

/// What CORS makes of a request.
#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// No request of a browser to another origin, or none that concerns the policy.
    Unconcerned,
    /// The answer will be for this origin.
    Origin(HeaderValue),
    /// A preflight: the proxy answers `200` with these headers and no body.
    Preflight(HeaderMap),
}

impl Cors {
    /// Judges a request.
    #[must_use]
    pub fn judge(&self, request: &Parts) -> Verdict {
        let origin = request.headers.get(header::ORIGIN).filter(|origin| !origin.is_empty());
        let Some(origin) = origin.filter(|_| self.enabled.draw()) else { return Verdict::Unconcerned };
        let allowed = self.allows(origin);
        let asked =
            request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).filter(|asked| !asked.is_empty());
        match asked.filter(|_| request.method == Method::OPTIONS) {
            Some(method) if allowed || !self.forward_not_matching_preflights => {
                Verdict::Preflight(self.preflight(request, allowed.then_some(origin), method))
            }
            _ if allowed => Verdict::Origin(origin.clone()),
            _ => Verdict::Unconcerned,
        }
    }

    /// Adds what the answer to an allowed origin needs.
    pub fn allow(&self, origin: HeaderValue, headers: &mut HeaderMap) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if self.credentials {
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
        }
        if let Some(expose) = &self.expose {
            headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
        }
    }

    fn allows(&self, origin: &HeaderValue) -> bool {
        self.origins.iter().any(|allowed| allowed.holds(b"*") || allowed.holds(origin.as_bytes()))
    }

    fn preflight(&self, request: &Parts, origin: Option<&HeaderValue>, method: &HeaderValue) -> HeaderMap {
        let asked = |name: HeaderName| request.headers.get(name);
        let granted = |allowed: &Option<HeaderValue>, asked: Option<&HeaderValue>| match allowed {
            Some(all) if all == "*" => Some(asked.cloned().unwrap_or_else(|| HeaderValue::from_static(""))),
            allowed => allowed.clone(),
        };
        let yes = || HeaderValue::from_static("true");
        let private = self.private_network
            && asked(REQUEST_PRIVATE_NETWORK).is_some_and(|asked| asked.as_bytes() == b"true");
        let lines = [
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.cloned()),
            (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, self.credentials.then(yes)),
            (header::ACCESS_CONTROL_ALLOW_METHODS, granted(&self.methods, Some(method))),
            (
                header::ACCESS_CONTROL_ALLOW_HEADERS,
                granted(&self.headers, asked(header::ACCESS_CONTROL_REQUEST_HEADERS)),
            ),
            // No browser looks at it here; Envoy says it all the same.
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, origin.and(self.expose.clone())),
            (header::ACCESS_CONTROL_MAX_AGE, self.max_age.clone()),
            (ALLOW_PRIVATE_NETWORK, private.then(yes)),
        ];
        lines.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Cors {
        Cors {
            origins: [ValueMatch::Exact("https://shop.test".into()), ValueMatch::Suffix(".eu.test".into())]
                .into(),
            methods: Some(HeaderValue::from_static("GET, POST")),
            headers: Some(HeaderValue::from_static("*")),
            expose: Some(HeaderValue::from_static("x-total")),
            max_age: Some(HeaderValue::from_static("600")),
            credentials: true,
            private_network: true,
            forward_not_matching_preflights: true,
            enabled: Fraction::ALL,
        }
    }

    fn request(method: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = http::Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).expect("a request").into_parts().0
    }

    fn lines(headers: &HeaderMap) -> Vec<String> {
        let mut lines: Vec<_> = headers
            .iter()
            .map(|(name, value)| {
                let name = name.as_str().trim_start_matches("access-control-");
                format!("{name}: {}", value.to_str().unwrap_or("?"))
            })
            .collect();
        lines.sort();
        lines
    }

    #[test]
    fn only_what_comes_from_an_allowed_origin_is_concerned() {
        for (headers, allowed) in [
            (&[][..], false),
            (&[("origin", "")], false),
            (&[("origin", "https://evil.test")], false),
            (&[("origin", "https://shop.test")], true),
            (&[("origin", "https://a.eu.test")], true),
        ] {
            let concerned = matches!(policy().judge(&request("GET", headers)), Verdict::Origin(_));
            assert_eq!(concerned, allowed, "{headers:?}");
        }
        let off = Cors { enabled: Fraction::NONE, ..policy() };
        assert_eq!(off.judge(&request("GET", &[("origin", "https://shop.test")])), Verdict::Unconcerned);
        let any = Cors { origins: [ValueMatch::Exact("*".into())].into(), ..policy() };
        let origin = HeaderValue::from_static("https://any.test");
        assert_eq!(any.judge(&request("GET", &[("origin", "https://any.test")])), Verdict::Origin(origin));
    }

    #[test]
    fn a_preflight_is_answered() {
        let asked = request(
            "OPTIONS",
            &[
                ("origin", "https://shop.test"),
                ("access-control-request-method", "PUT"),
                ("access-control-request-headers", "x-a, x-b"),
                ("access-control-request-private-network", "true"),
            ],
        );
        let Verdict::Preflight(headers) = policy().judge(&asked) else { panic!("a preflight") };
        assert_eq!(
            lines(&headers),
            [
                "allow-credentials: true",
                "allow-headers: x-a, x-b",
                "allow-methods: GET, POST",
                "allow-origin: https://shop.test",
                "allow-private-network: true",
                "expose-headers: x-total",
                "max-age: 600",
            ]
        );
    }

    #[test]
    fn a_preflight_of_a_stranger_goes_on_unless_it_must_not() {
        let asked =
            request("OPTIONS", &[("origin", "https://evil.test"), ("access-control-request-method", "PUT")]);
        assert_eq!(policy().judge(&asked), Verdict::Unconcerned);
        let strict = Cors { forward_not_matching_preflights: false, credentials: false, ..policy() };
        let Verdict::Preflight(headers) = strict.judge(&asked) else { panic!("a preflight") };
        assert!(!headers.contains_key(header::ACCESS_CONTROL_ALLOW_ORIGIN));
        let plain = request("OPTIONS", &[("origin", "https://shop.test")]);
        assert!(matches!(policy().judge(&plain), Verdict::Origin(_)), "OPTIONS that is no preflight");
    }

    #[test]
    fn an_answer_tells_the_browser() {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("*"));
        policy().allow(HeaderValue::from_static("https://shop.test"), &mut headers);
        assert_eq!(
            lines(&headers),
            ["allow-credentials: true", "allow-origin: https://shop.test", "expose-headers: x-total"]
        );
    }
}
