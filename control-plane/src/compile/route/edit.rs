//! Changes of headers, hosts and paths, in Envoy's words.
//!
//! Paths follow the table in the Gateway API: `/foo/bar` with the prefix `/foo` replaced by `/xyz` or `/xyz/` is
//! `/xyz/bar`, by nothing or `/` is `/bar`; `/foo` itself becomes `/xyz` or `/`.

use envoy_types::pb::envoy::config::core::v3::{HeaderValue, HeaderValueOption, header_value_option};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatchAndSubstitute;
use header_value_option::HeaderAppendAction;

use super::matching::regex;
use crate::world::{HeaderEdit, PathEdit, PathMatch};

/// Headers to add and to remove.
pub(super) fn headers(edit: &HeaderEdit) -> (Vec<HeaderValueOption>, Vec<String>) {
    let option = |(name, value): &(Box<str>, Box<str>), action: HeaderAppendAction| HeaderValueOption {
        header: Some(HeaderValue {
            key: name.to_string(),
            // A percent sign begins a variable; two of them are one.
            value: value.replace('%', "%%"),
            ..Default::default()
        }),
        append_action: action.into(),
        // Setting a header to nothing is not leaving it out.
        keep_empty_value: true,
        ..Default::default()
    };
    let set = edit.set.iter().map(|pair| option(pair, HeaderAppendAction::OverwriteIfExistsOrAdd));
    let add = edit.add.iter().map(|pair| option(pair, HeaderAppendAction::AppendIfExistsOrAdd));
    (set.chain(add).collect(), edit.remove.iter().map(ToString::to_string).collect())
}

/// A path's change.
pub(super) enum PathChange {
    /// What was matched becomes this.
    Prefix(String),
    /// What the expression finds becomes this.
    Regex(RegexMatchAndSubstitute),
}

/// How a path is changed where `matched` was matched; `None` where it stays as it is.
pub(super) fn path(edit: &PathEdit, matched: &PathMatch) -> Option<PathChange> {
    let prefix = match (edit, matched) {
        (PathEdit::Full(full), _) => return Some(replace("^/.*$".to_owned(), full)),
        (PathEdit::Prefix(new), PathMatch::Prefix(old)) => (old.as_ref(), new.trim_end_matches('/')),
        // Refused when it was read.
        (PathEdit::Prefix(_), _) => return None,
    };
    match prefix {
        ("/", "") => None,
        // What follows the matched slash follows the new prefix and a slash.
        ("/", new) => Some(PathChange::Prefix(format!("{new}/"))),
        // The slash after the prefix stays, and is there even if nothing follows.
        (old, "") => Some(replace(format!("^{}/?", ::regex::escape(old)), "/")),
        (_, new) => Some(PathChange::Prefix(new.to_owned())),
    }
}

fn replace(pattern: String, by: &str) -> PathChange {
    PathChange::Regex(RegexMatchAndSubstitute {
        pattern: Some(regex(pattern)),
        // A backslash begins a reference; two of them are one.
        substitution: by.replace('\\', r"\\"),
    })
}
