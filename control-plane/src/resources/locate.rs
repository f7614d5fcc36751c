//! From a field's path to the line it stands on.
//!
//! The YAML reader knows lines only while it reads, and only errors carry them out. So a line is found by
//! reading the document once more along the path and failing on purpose on arrival; the error brings the
//! line. It costs a second reading, but only for fields that are wrong, and only until [`READ_MAX`] is spent.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step of a field's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Segment {
    /// A position in a list, from 0.
    Index(usize),
    /// A field's name.
    Key(String),
}

impl From<&str> for Segment {
    fn from(key: &str) -> Self {
        Self::Key(key.into())
    }
}

impl From<usize> for Segment {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// Writes a path as people do: `spec.ports[0].port`.
pub(super) fn display(path: &[Segment]) -> String {
    let mut text = String::new();
    for segment in path {
        match segment {
            Segment::Index(index) => text.push_str(&format!("[{index}]")),
            Segment::Key(key) => {
                if !text.is_empty() {
                    text.push('.');
                }
                text.push_str(key);
            }
        }
    }
    text
}

/// The path of a field that was ignored.
pub(super) fn segments(path: &serde_ignored::Path<'_>) -> Vec<Segment> {
    use serde_ignored::Path;
    let mut segments = match path {
        Path::Root => return Vec::new(),
        Path::Some { parent } | Path::NewtypeStruct { parent } | Path::NewtypeVariant { parent } => {
            return segments(parent);
        }
        Path::Seq { parent, .. } | Path::Map { parent, .. } => segments(parent),
    };
    match path {
        Path::Seq { index, .. } => segments.push(Segment::Index(*index)),
        Path::Map { key, .. } => segments.push(Segment::Key(key.clone())),
        Path::Root | Path::Some { .. } | Path::NewtypeStruct { .. } | Path::NewtypeVariant { .. } => {}
    }
    segments
}

/// What all look-ups in one text may read, in bytes: a second's work. A text with many mistakes (or one that is made to
/// cost) has lines for the first of them; the others are told without.
const READ_MAX: usize = 64 << 20;

/// Finds the lines of one text.
pub struct Lines<'a> {
    text: &'a str,
    /// How many more bytes may be read.
    left: Cell<usize>,
}

impl<'a> Lines<'a> {
    /// The lines of `text`.
    #[must_use]
    pub const fn of(text: &'a str) -> Self {
        Self { text, left: Cell::new(READ_MAX) }
    }

    /// The line on which the document at `position` (from 1) is named.
    #[must_use]
    pub fn name(&self, position: usize) -> Option<usize> {
        self.field(position.checked_sub(1)?, &[Segment::from("metadata"), Segment::from("name")])
    }

    /// The line of a field in document `index`. For a field that is missing: the line of the part that should have it.
    pub(super) fn field(&self, index: usize, path: &[Segment]) -> Option<usize> {
        // Shorter and shorter, until something is there.
        (0..=path.len()).rev().find_map(|length| {
            self.left.set(self.left.get().checked_sub(self.text.len())?);
            let document = serde_yaml::Deserializer::from_str(self.text).nth(index)?;
            let error = Walk(path.get(..length)?).deserialize(document).err()?;
            (error.to_string().contains(ARRIVED)).then(|| error.location().map(|at| at.line())).flatten()
        })
    }
}

const ARRIVED: &str = "weft: arrived";

struct Walk<'a>(&'a [Segment]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Segment::Key(wanted), rest)) = self.0.split_first() else {
            return if self.0.is_empty() { Err(Error::custom(ARRIVED)) } else { Ok(()) };
        };
        // On the last step the key itself is the place: its value may begin on a later line.
        while let Some(found) = map.next_key_seed(Key { wanted, last: rest.is_empty() })? {
            if found {
                map.next_value_seed(Walk(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Segment::Index(wanted), rest)) = self.0.split_first() else {
            return if self.0.is_empty() { Err(Error::custom(ARRIVED)) } else { Ok(()) };
        };
        let mut index = 0;
        loop {
            let more = if index == *wanted {
                seq.next_element_seed(Walk(rest))?.is_some()
            } else {
                seq.next_element::<IgnoredAny>()?.is_some()
            };
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.leaf()
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.leaf()
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.leaf()
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.leaf()
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        self.leaf()
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.leaf()
    }
}

impl Walk<'_> {
    fn leaf<E: Error>(self) -> Result<(), E> {
        if self.0.is_empty() { Err(Error::custom(ARRIVED)) } else { Ok(()) }
    }
}

struct Key<'a> {
    wanted: &'a str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field name")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<bool, E> {
        match (key == self.wanted, self.last) {
            (true, true) => Err(Error::custom(ARRIVED)),
            (found, _) => Ok(found),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_up_has_a_bound() {
        let text = "metadata: {name: a}\n---\nmetadata:\n  name: b\n";
        let lines = Lines { text, left: Cell::new(text.len() * 2) };
        assert_eq!((lines.name(1), lines.name(2), lines.name(1)), (Some(1), Some(4), None));
        assert_eq!(Lines::of(text).name(0), None);
    }
}
