//! Whether a request may enter the app: in one spelling of its path, by who its caller is and what it asks.
//!
//! In: the request, and the guard that the control plane put before this port. Out: the request with the path that it was
//! judged by, or a refusal. Invariants: what is judged is what the app gets; the caller is who the connection's certificate
//! names and nobody else; a guard that changes is obeyed from the next request on, on whatever connection it comes.

use http::request::Parts;
use http::uri::PathAndQuery;
use weft_wire::Reason;

use super::{Destination, Refusal, Session};
use crate::policy::authorize::{Call, Verdict};
use weft_wire::spelling::Spelling;

pub(super) fn authorize(
    session: &Session,
    destination: &Destination,
    parts: &mut Parts,
) -> Result<(), Refusal> {
    if destination.is_closed() {
        destination.edge.record_access(None, Verdict::Denied);
        return Err(Reason::PolicyDenied.into());
    }
    let Some((listener, port)) = destination.own() else { return Ok(()) };
    let guard = listener.guard();
    let Some(guard) = &*guard else { return Ok(()) };
    if guard.strict && session.edge.caller.is_none() {
        return Err(Reason::TlsRequired.into());
    }
    spell(guard.spelling, parts)?;
    let call = Call { caller: session.caller(), port, request: Some(parts) };
    let edge = &destination.edge;
    if guard.http.admits(&call, |verdict, rule| edge.record_access(rule, verdict)) {
        Ok(())
    } else {
        Err(Reason::PolicyDenied.into())
    }
}

fn spell(spelling: Spelling, parts: &mut Parts) -> Result<(), Reason> {
    if spelling.is_none() {
        return Ok(());
    }
    let path = parts.uri.path();
    let spelled = spelling.of(path).map_err(|_ambiguous| Reason::ProtocolError)?;
    if *spelled == *path {
        return Ok(());
    }
    let target = match parts.uri.query() {
        Some(query) => format!("{spelled}?{query}"),
        None => spelled.into_owned(),
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    let target = PathAndQuery::from_maybe_shared(bytes::Bytes::from(target));
    uri.path_and_query = Some(target.map_err(|_| Reason::ProtocolError)?);
    parts.uri = http::Uri::from_parts(uri).map_err(|_| Reason::ProtocolError)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_gets_the_path_that_was_judged_and_the_query_as_it_was() {
        let safe = Spelling::SAFE;
        let spelled = |target: &str| {
            let mut parts = http::Request::builder().uri(target).body(()).unwrap().into_parts().0;
            spell(safe, &mut parts).map(|()| parts.uri.to_string())
        };
        assert_eq!(spelled("/a/%2e%2e/b?x=/../y"), Ok("/b?x=/../y".to_owned()));
        assert_eq!(spelled("http://orders//a"), Ok("http://orders/a".to_owned()));
        assert_eq!(spelled("/a%2fb"), Err(Reason::ProtocolError));
        assert_eq!(spelled("*"), Ok("*".to_owned()));
    }
}
