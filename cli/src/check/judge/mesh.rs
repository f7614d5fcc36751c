//! What the control plane's answers about itself and its configuration mean.

use super::super::catalog::Check;
use super::super::facts::{Authority, Fact, Mesh};
use super::{Outcome, date, known};
use crate::table;

/// A root that lives less than this any more is told of.
const SOON: i64 = 30 * 24 * 3600;
/// The same of the control plane's own certificate, which it renews by itself every few hours.
const OWN_SOON: i64 = 3600;
/// How the control plane's own certificate is called.
pub(in crate::check) const OWN: &str = "the control plane's own certificate";

pub(super) fn judge(check: Check, mesh: &Mesh) -> Outcome {
    let judged = match check {
        Check::Api => Ok(api(mesh)),
        Check::SameVersion => same_version(mesh, env!("CARGO_PKG_VERSION")),
        Check::Authority => authority(mesh),
        Check::Problems => listed(&mesh.problems, "the last good state of these is in force"),
        Check::Objects => listed(&mesh.objects, "these do not do what their authors wanted"),
        other => unreachable!("{other} is judged elsewhere"),
    };
    judged.unwrap_or_else(|outcome| outcome)
}

fn api(mesh: &Mesh) -> Outcome {
    match &mesh.version {
        Ok(_) => Outcome::passed(mesh.at.clone()),
        Err(trouble) => Outcome::fail(trouble.to_string()),
    }
}

fn same_version(mesh: &Mesh, ours: &str) -> Result<Outcome, Outcome> {
    let theirs = known(&mesh.version)?;
    Ok(match theirs == ours {
        true => Outcome::passed(ours),
        false => Outcome::warn(format!("this program is {ours}, the control plane {theirs}")),
    })
}

fn authority(mesh: &Mesh) -> Result<Outcome, Outcome> {
    let Some(authority) = known(&mesh.authority)? else {
        return Ok(Outcome::note(
            "there is none: sidecars have no identity, and calls between them are plain text",
        ));
    };
    let Authority { at, kept, certificates, rotation } = authority;
    let words = |(what, until): &(String, i64)| match until.saturating_sub(*at) {
        left if left <= 0 => format!("{what} ended on {}", date(*until)),
        left => format!("{what} ends on {} (in {})", date(*until), table::age(left.unsigned_abs())),
    };
    let soon = |(what, until): &&(String, i64)| {
        let limit = if what == OWN { OWN_SOON } else { SOON };
        until.saturating_sub(*at) < limit
    };
    let near: Vec<String> = certificates.iter().filter(soon).map(words).collect();
    let ended = certificates.iter().any(|(_, until)| until <= at);
    Ok(match (ended, near.is_empty(), kept) {
        (true, ..) => Outcome::fail("sidecars cannot prove who they are").about(near),
        (false, false, _) => Outcome::warn("it is time to replace the root: `weft ca rotate`").about(near),
        (false, true, false) => Outcome::note(
            "its keys are in memory only: after a restart every sidecar must join anew (--data-dir keeps them)",
        ),
        (false, true, true) => match rotation {
            Some(words) => Outcome::note(words.clone()),
            None => Outcome::pass(),
        },
    })
}

fn listed(fact: &Fact<Vec<String>>, why: &str) -> Result<Outcome, Outcome> {
    let items = known(fact)?.clone();
    Ok(Outcome::unless_empty(items, || Outcome::warn(why)))
}
