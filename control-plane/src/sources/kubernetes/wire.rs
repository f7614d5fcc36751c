//! The two texts that an API server sends: a page of a list, and a line of a watch.
//!
//! In: bytes. Out: the objects in them as texts of their own, unread, because one that cannot be read must not make its
//! neighbours unreadable. Nothing is copied.

use std::ops::Range;

use serde::Deserialize;
use serde::de::IgnoredAny;

/// Why a text is not what a server sends.
#[derive(Debug, thiserror::Error)]
pub(super) enum Garbled {
    #[error("not JSON")]
    Json(#[from] serde_json::Error),
    #[error("not an object with members")]
    Shape,
    #[error("there is no {0}")]
    Missing(&'static str),
}

/// A page of a list.
#[derive(Debug)]
pub(super) struct Page<'a> {
    /// The state of the server that the list shows.
    pub(super) version: Box<str>,
    /// Ask with this for the next page.
    pub(super) more: Option<String>,
    /// The objects.
    pub(super) items: Vec<&'a str>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ListMeta {
    #[serde(default)]
    resource_version: Option<Box<str>>,
    #[serde(default)]
    r#continue: Option<String>,
}

pub(super) fn page(text: &str) -> Result<Page<'_>, Garbled> {
    let (mut meta, mut items) = (ListMeta::default(), None);
    members(text, |key, value| {
        match key {
            "metadata" => meta = serde_json::from_str(value)?,
            // Go writes an empty list as null.
            "items" if value == "null" => items = Some(Vec::new()),
            "items" => items = Some(elements(value)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok(Page {
        version: meta.resource_version.unwrap_or_default(),
        more: meta.r#continue.filter(|token| !token.is_empty()),
        items: items.ok_or(Garbled::Missing("items"))?,
    })
}

/// What a line of a watch says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Said {
    /// The object is there, and like this.
    Set,
    /// The object is gone.
    Gone,
    /// Nothing happened up to here.
    Bookmark,
    /// The watch cannot go on; the object is a Status.
    Error,
}

/// A line of a watch: what it says, and of which object.
pub(super) fn line(text: &str) -> Result<(Said, &str), Garbled> {
    let (mut said, mut object) = (None, None);
    members(text, |key, value| {
        match key {
            "type" => said = serde_json::from_str::<Box<str>>(value).map(Some)?,
            "object" => object = Some(value),
            _ => {}
        }
        Ok(())
    })?;
    let said = match said.as_deref() {
        Some("ADDED" | "MODIFIED") => Said::Set,
        Some("DELETED") => Said::Gone,
        Some("BOOKMARK") => Said::Bookmark,
        Some("ERROR") => Said::Error,
        // A Status without a frame is how a server refuses a watch that has begun.
        _ if object.is_none() => return Ok((Said::Error, text)),
        _ => return Err(Garbled::Missing("type")),
    };
    Ok((said, object.ok_or(Garbled::Missing("object"))?))
}

/// What a server says when it refuses.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    #[serde(default)]
    pub(super) code: Option<u16>,
    #[serde(default)]
    pub(super) message: Option<String>,
    #[serde(default)]
    details: Option<Details>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Details {
    #[serde(default)]
    retry_after_seconds: Option<u64>,
}

impl Status {
    pub(super) fn read(text: &str) -> Self {
        serde_json::from_str(text).unwrap_or_default()
    }

    /// Seconds that the server asks to wait.
    pub(super) fn retry_after(&self) -> Option<u64> {
        self.details.as_ref()?.retry_after_seconds.filter(|seconds| *seconds > 0)
    }
}

/// Calls `found` with every member of an object.
fn members<'a>(
    text: &'a str,
    mut found: impl FnMut(&str, &'a str) -> Result<(), Garbled>,
) -> Result<(), Garbled> {
    let mut at = skip(text, 0);
    if text.as_bytes().get(at) != Some(&b'{') {
        return Err(Garbled::Shape);
    }
    loop {
        at = skip(text, at + 1);
        if text.as_bytes().get(at) == Some(&b'}') {
            return Ok(());
        }
        let key = value(text, at)?;
        let name: std::borrow::Cow<'_, str> =
            serde_json::from_str(text.get(key.clone()).unwrap_or_default())?;
        at = skip(text, key.end);
        if text.as_bytes().get(at) != Some(&b':') {
            return Err(Garbled::Shape);
        }
        let range = value(text, skip(text, at + 1))?;
        at = skip(text, range.end);
        found(&name, text.get(range).unwrap_or_default())?;
        match text.as_bytes().get(at) {
            Some(b',') => {}
            Some(b'}') => return Ok(()),
            _ => return Err(Garbled::Shape),
        }
    }
}

fn elements(text: &str) -> Result<Vec<&str>, Garbled> {
    let mut elements = Vec::new();
    let mut at = skip(text, 0);
    if text.as_bytes().get(at) != Some(&b'[') {
        return Err(Garbled::Shape);
    }
    at = skip(text, at + 1);
    if text.as_bytes().get(at) == Some(&b']') {
        return Ok(elements);
    }
    loop {
        let range = value(text, at)?;
        at = skip(text, range.end);
        elements.push(text.get(range).unwrap_or_default());
        match text.as_bytes().get(at) {
            Some(b',') => at = skip(text, at + 1),
            Some(b']') => return Ok(elements),
            _ => return Err(Garbled::Shape),
        }
    }
}

/// Where the value that begins at a place ends.
fn value(text: &str, at: usize) -> Result<Range<usize>, Garbled> {
    let rest = text.get(at..).ok_or(Garbled::Shape)?;
    let mut values = serde_json::Deserializer::from_str(rest).into_iter::<IgnoredAny>();
    values.next().ok_or(Garbled::Shape)??;
    Ok(at..at + values.byte_offset())
}

fn skip(text: &str, at: usize) -> usize {
    let rest = text.as_bytes().get(at..).unwrap_or_default();
    at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn pages_are_taken_apart() {
        let text = r#" {"kind":"PodList", "items" : [ {"a":"]}\"" }, {"b":[1,{"c":2}]} ,{}], "metadata":{"resourceVersion":"12","continue":"abc","remainingItemCount":3}} "#;
        let read = page(text).expect("a page");
        assert_eq!(read.items, [r#"{"a":"]}\"" }"#, r#"{"b":[1,{"c":2}]}"#, "{}"]);
        assert_eq!((&*read.version, read.more.as_deref()), ("12", Some("abc")));
        let empty =
            page(r#"{"metadata":{"resourceVersion":"1","continue":""},"items":null}"#).expect("a page");
        assert_eq!((empty.items.len(), empty.more), (0, None));
        assert!(page(r#"{"metadata":{}}"#).is_err());
    }

    #[test]
    fn lines_say_what_happened() {
        for (text, expected) in [
            (r#"{"type":"ADDED","object":{"x":1}}"#, Some((Said::Set, r#"{"x":1}"#))),
            (r#"{"object":{"x":1},"type":"DELETED"}"#, Some((Said::Gone, r#"{"x":1}"#))),
            (r#"{"type":"BOOKMARK","object":{}}"#, Some((Said::Bookmark, "{}"))),
            (r#"{"type":"ERROR","object":{"code":410}}"#, Some((Said::Error, r#"{"code":410}"#))),
            (r#"{"kind":"Status","code":410}"#, Some((Said::Error, r#"{"kind":"Status","code":410}"#))),
            (r#"{"type":"LATER","object":{}}"#, None),
            (r#"{"type":"ADDED""#, None),
            ("", None),
        ] {
            assert_eq!(line(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn refusals_are_read_as_far_as_they_go() {
        let status = Status::read(
            r#"{"kind":"Status","code":429,"message":"busy","details":{"retryAfterSeconds":3}}"#,
        );
        assert_eq!((status.code, status.retry_after()), (Some(429), Some(3)));
        assert_eq!(Status::read("Too many requests, please try again later.").code, None);
    }

    proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[\\[\\]{}:,\"\\\\a1 né]{0,40}") {
            // Only that they come back.
            drop((page(&text).map(|page| page.items.len()), line(&text).map(|(said, _)| said)));
        }
    }
}
