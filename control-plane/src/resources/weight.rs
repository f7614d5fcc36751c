//! How much a document becomes when its aliases are followed.
//!
//! A kilobyte of YAML whose aliases refer to each other is gigabytes of objects. So a text that has any is weighed
//! before it is read: everything is visited, as the readers will, and nothing is kept.

use std::cell::Cell;
use std::fmt;

use serde::de::{
    DeserializeSeed, Deserializer, EnumAccess, Error, MapAccess, SeqAccess, VariantAccess, Visitor,
};

/// How many times as heavy as its length a text may be. One without aliases is at most twice.
const FACTOR: usize = 4;
/// What a text may weigh however short it is.
const FREE: usize = 64 << 10;

/// Whether a text has aliases at all, or looks like it.
pub(super) fn may_have_aliases(text: &str) -> bool {
    text.contains('&') && text.contains('*')
}

/// What the documents of one text may still weigh.
pub(super) struct Scale(Cell<usize>);

impl Scale {
    pub(super) fn new(text: &str) -> Self {
        Self(Cell::new(text.len() * FACTOR + FREE))
    }

    /// # Errors
    /// When the document is too heavy, or cannot be read.
    pub(super) fn weigh(&self, document: serde_yaml::Deserializer<'_>) -> Result<(), serde_yaml::Error> {
        Weigh(&self.0).deserialize(document)
    }
}

#[derive(Clone, Copy)]
struct Weigh<'a>(&'a Cell<usize>);

impl Weigh<'_> {
    /// One node of this many bytes.
    fn node<E: Error>(self, bytes: usize) -> Result<(), E> {
        let left = self.0.get().checked_sub(bytes + 1);
        self.0.set(left.ok_or_else(|| {
            E::custom(format_args!("its aliases make it more than {FACTOR} times as large as it is written"))
        })?);
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for Weigh<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Weigh<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        self.node(0)?;
        while map.next_key_seed(self)?.is_some() {
            map.next_value_seed(self)?;
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        self.node(0)?;
        while seq.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    fn visit_enum<A: EnumAccess<'de>>(self, tagged: A) -> Result<(), A::Error> {
        let ((), value) = tagged.variant_seed(self)?;
        value.newtype_variant_seed(self)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        self.node(0)
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        self.node(0)
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        self.node(0)
    }

    fn visit_i128<E: Error>(self, _: i128) -> Result<(), E> {
        self.node(0)
    }

    fn visit_u128<E: Error>(self, _: u128) -> Result<(), E> {
        self.node(0)
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        self.node(0)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        self.node(text.len())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.node(0)
    }
}
