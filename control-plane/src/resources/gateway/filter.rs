//! Filters: what a route changes on the way.

use std::time::Duration;

use http::{HeaderName, HeaderValue};

use super::matches::absolute;
use super::shape::{self, Filter, HeaderModifier, PathModifier};
use super::{HeaderEdit, ITEMS_MAX, bounded, port, reference};
use crate::resources::{Refusal, Segment};
use crate::world::{Cors, Filters, Mirror, PathEdit, Redirect, Rewrite};

/// How long a browser may remember a preflight's answer when the route does not say: the API's default.
const CORS_MAX_AGE: Duration = Duration::from_secs(5);

/// Where filters stand, which decides what is allowed.
pub(super) enum Place<'a> {
    /// On a rule.
    Rule {
        /// Of a route in this namespace.
        namespace: &'a str,
        /// Of an HTTPRoute.
        http: bool,
        /// Whether every match is a path prefix, so that "the matched prefix" means something.
        prefixes: bool,
    },
    /// On a backend.
    Backend,
}

pub(super) fn read(shapes: Vec<Filter>, at: &[Segment], place: &Place<'_>) -> Result<Filters, Refusal> {
    bounded(&shapes, ITEMS_MAX, at)?;
    let mut filters = Filters::default();
    let mut seen: Vec<String> = Vec::new();
    for (index, filter) in shapes.into_iter().enumerate() {
        let at = path![@at; index];
        if filter.kind != "RequestMirror" && seen.contains(&filter.kind) {
            return Err((path![@at; "type"], format!("{} is there twice", filter.kind)));
        }
        only_its_own(&filter, &at)?;
        seen.push(filter.kind.clone());
        add(&mut filters, filter, &at, place)?;
    }
    if filters.redirect.is_some() && filters.rewrite.is_some() {
        return Err((at.to_vec(), "URLRewrite and RequestRedirect exclude each other".into()));
    }
    Ok(filters)
}

fn add(filters: &mut Filters, filter: Filter, at: &[Segment], place: &Place<'_>) -> Result<(), Refusal> {
    let kind = filter.kind.as_str();
    match (kind, place) {
        ("RequestHeaderModifier", _) => {
            let at = path![@at; "requestHeaderModifier"];
            filters.request = headers(own(filter.request_header_modifier, &at)?, &at)?;
            for (field, names) in [
                ("set", filters.request.set.iter().map(|(name, _)| name).collect::<Vec<_>>()),
                ("add", filters.request.add.iter().map(|(name, _)| name).collect()),
                ("remove", filters.request.remove.iter().collect()),
            ] {
                if names.iter().any(|name| &***name == "host") {
                    return Err((path![@at; field], "host is changed by a URLRewrite filter only".into()));
                }
            }
        }
        ("ResponseHeaderModifier", _) => {
            let at = path![@at; "responseHeaderModifier"];
            filters.response = headers(own(filter.response_header_modifier, &at)?, &at)?;
        }
        ("RequestMirror", Place::Rule { namespace, .. }) => {
            let at = path![@at; "requestMirror"];
            filters.mirrors.push(mirror(&own(filter.request_mirror, &at)?, namespace, &at)?);
        }
        ("RequestRedirect", Place::Rule { http: true, prefixes, .. }) => {
            let at = path![@at; "requestRedirect"];
            filters.redirect = Some(redirect(own(filter.request_redirect, &at)?, *prefixes, &at)?);
        }
        ("URLRewrite", Place::Rule { http: true, prefixes, .. }) => {
            let at = path![@at; "urlRewrite"];
            filters.rewrite = Some(rewrite(own(filter.url_rewrite, &at)?, *prefixes, &at)?);
        }
        ("CORS", Place::Rule { http: true, .. }) => {
            let at = path![@at; "cors"];
            filters.cors = Some(cors(own(filter.cors, &at)?, &at)?);
        }
        (kind, Place::Backend) => {
            let reason = format!("{kind} is not supported on a backend: only header modifiers are");
            return Err((path![@at; "type"], reason));
        }
        (kind, Place::Rule { .. }) => return Err((path![@at; "type"], format!("{kind} is not supported"))),
    }
    Ok(())
}

/// A filter has the field of its type and no other.
fn only_its_own(filter: &Filter, at: &[Segment]) -> Result<(), Refusal> {
    let fields = [
        ("RequestHeaderModifier", "requestHeaderModifier", filter.request_header_modifier.is_some()),
        ("ResponseHeaderModifier", "responseHeaderModifier", filter.response_header_modifier.is_some()),
        ("RequestMirror", "requestMirror", filter.request_mirror.is_some()),
        ("RequestRedirect", "requestRedirect", filter.request_redirect.is_some()),
        ("URLRewrite", "urlRewrite", filter.url_rewrite.is_some()),
        ("CORS", "cors", filter.cors.is_some()),
        ("ExtensionRef", "extensionRef", filter.extension_ref.is_some()),
        ("ExternalAuth", "externalAuth", filter.external_auth.is_some()),
    ];
    match fields.iter().find(|(kind, _, there)| *there && *kind != filter.kind) {
        Some((_, field, _)) => {
            Err((path![@at; *field], format!("does not belong to a filter of type {}", filter.kind)))
        }
        None => Ok(()),
    }
}

fn own<T>(field: Option<T>, at: &[Segment]) -> Result<T, Refusal> {
    field.ok_or_else(|| (at.to_vec(), "is missing".into()))
}

fn headers(shape: HeaderModifier, at: &[Segment]) -> Result<HeaderEdit, Refusal> {
    let read = |list: Vec<shape::Header>, field: &str| {
        bounded(&list, ITEMS_MAX, &path![@at; field])?;
        let pairs = list.into_iter().enumerate().map(|(index, header)| {
            let name = header_name(&header.name, path![@at; field, index, "name"])?;
            HeaderValue::from_str(&header.value).map_err(|_| {
                (path![@at; field, index, "value"], format!("{:?} is not a header value", header.value))
            })?;
            Ok((name, header.value.into()))
        });
        pairs.collect::<Result<Vec<_>, Refusal>>()
    };
    let (set, add) = (read(shape.set, "set")?, read(shape.add, "add")?);
    bounded(&shape.remove, ITEMS_MAX, &path![@at; "remove"])?;
    let remove = shape.remove.iter().enumerate();
    let remove = remove
        .map(|(index, name)| header_name(name, path![@at; "remove", index]))
        .collect::<Result<Vec<_>, _>>()?;
    Ok(HeaderEdit { set, add, remove })
}

/// A header's name in lower case.
pub(in crate::resources) fn header_name(name: &str, at: Vec<Segment>) -> Result<Box<str>, Refusal> {
    match HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(name.as_str().into()),
        Err(_) => Err((at, format!("{name:?} is not a header name"))),
    }
}

fn mirror(shape: &shape::Mirror, namespace: &str, at: &[Segment]) -> Result<Mirror, Refusal> {
    let to = reference(&shape.backend_ref, namespace, &path![@at; "backendRef"])?;
    let (numerator, denominator, at) = match (shape.percent, &shape.fraction) {
        (Some(_), Some(_)) => return Err((path![@at; "fraction"], "excludes percent".into())),
        (None, None) => (100, 100, at.to_vec()),
        (Some(percent), None) => (percent, 100, path![@at; "percent"]),
        (None, Some(share)) => (share.numerator, share.denominator.unwrap_or(100), path![@at; "fraction"]),
    };
    let positive = u32::try_from(denominator).ok().filter(|denominator| *denominator > 0);
    match (u32::try_from(numerator), positive) {
        (Ok(numerator), Some(denominator)) if numerator <= denominator => {
            Ok(Mirror { to, numerator, denominator })
        }
        _ => Err((at, format!("{numerator} of {denominator} is not a share"))),
    }
}

fn redirect(shape: shape::Redirect, prefixes: bool, at: &[Segment]) -> Result<Redirect, Refusal> {
    if let Some(scheme) = shape.scheme.as_deref()
        && !matches!(scheme, "http" | "https")
    {
        return Err((path![@at; "scheme"], format!("{scheme:?} is not http or https")));
    }
    let status = shape.status_code.unwrap_or(302);
    let status = match status {
        301 | 302 | 303 | 307 | 308 => status.unsigned_abs().try_into().unwrap_or(302),
        _ => {
            let reason = format!("{status} is not 301, 302, 303, 307 or 308");
            return Err((path![@at; "statusCode"], reason));
        }
    };
    let hostname = shape.hostname.map(|name| host(name, path![@at; "hostname"])).transpose()?;
    let path = shape.path.map(|edit| path_edit(edit, prefixes, &path![@at; "path"])).transpose()?;
    let port = shape.port.map(|number| port(number, path![@at; "port"])).transpose()?;
    Ok(Redirect { scheme: shape.scheme.map(Into::into), hostname, port, path, status })
}

fn rewrite(shape: shape::Rewrite, prefixes: bool, at: &[Segment]) -> Result<Rewrite, Refusal> {
    let hostname = shape.hostname.map(|name| host(name, path![@at; "hostname"])).transpose()?;
    let path = shape.path.map(|edit| path_edit(edit, prefixes, &path![@at; "path"])).transpose()?;
    Ok(Rewrite { hostname, path })
}

fn path_edit(shape: PathModifier, prefixes: bool, at: &[Segment]) -> Result<PathEdit, Refusal> {
    let (field, value) = match (shape.kind.as_str(), shape.replace_full_path, shape.replace_prefix_match) {
        ("ReplaceFullPath", Some(full), None) => ("replaceFullPath", full),
        ("ReplacePrefixMatch", None, Some(prefix)) => ("replacePrefixMatch", prefix),
        ("ReplaceFullPath", None, _) => return Err((path![@at; "replaceFullPath"], "is missing".into())),
        ("ReplacePrefixMatch", _, None) => {
            return Err((path![@at; "replacePrefixMatch"], "is missing".into()));
        }
        (kind, ..) => {
            return Err((path![@at; "type"], format!("{kind} has the field of another type beside its own")));
        }
    };
    if field == "replacePrefixMatch" && !prefixes {
        let reason = "needs matches that are all of type PathPrefix";
        return Err((path![@at; field], reason.into()));
    }
    // An empty prefix takes the matched one away, as "/" does.
    if !value.is_empty() {
        absolute(&value, &path![@at; field])?;
    } else if field == "replaceFullPath" {
        return Err((path![@at; field], "is empty".into()));
    }
    let value: Box<str> = value.into();
    Ok(if field == "replaceFullPath" { PathEdit::Full(value) } else { PathEdit::Prefix(value) })
}

fn host(name: String, at: Vec<Segment>) -> Result<Box<str>, Refusal> {
    match name.parse::<weft_wire::Host>() {
        Ok(_) if !name.contains([':', '[']) => Ok(name.into()),
        _ => Err((at, format!("{name:?} is not a host name"))),
    }
}

fn cors(shape: shape::Cors, at: &[Segment]) -> Result<Cors, Refusal> {
    for (index, origin) in shape.allow_origins.iter().enumerate() {
        let rest = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
        let named = rest.is_some_and(|host| !host.is_empty() && !host.contains(['/', '?', '#', ' ']));
        if origin != "*" && !named {
            let reason = format!("{origin:?} is neither * nor of the form https://host:port");
            return Err((path![@at; "allowOrigins", index], reason));
        }
    }
    let names = |list: Vec<String>, field: &str| {
        let names = list.iter().enumerate().map(|(index, name)| match name.as_str() {
            "*" => Ok("*".into()),
            name => header_name(name, path![@at; field, index]),
        });
        names.collect::<Result<Vec<_>, _>>()
    };
    let headers = names(shape.allow_headers, "allowHeaders")?;
    let expose = names(shape.expose_headers, "exposeHeaders")?;
    let methods = shape.allow_methods.into_iter().enumerate().map(|(index, method)| {
        match http::Method::from_bytes(method.as_bytes()) {
            Ok(_) => Ok(method.into()),
            Err(_) => Err((path![@at; "allowMethods", index], format!("{method:?} is not a method"))),
        }
    });
    let methods = methods.collect::<Result<Vec<_>, Refusal>>()?;
    let max_age = match shape.max_age {
        None => CORS_MAX_AGE,
        Some(seconds) => match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds),
            _ => return Err((path![@at; "maxAge"], format!("{seconds} is not positive"))),
        },
    };
    let origins = shape.allow_origins.into_iter().map(Into::into).collect();
    let credentials = shape.allow_credentials.unwrap_or(false);
    Ok(Cors { origins, methods, headers, expose, credentials, max_age })
}
