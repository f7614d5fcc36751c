//! The tree of templates: one node per segment, shared by learning and looking up.

use std::sync::Arc;

use super::segment::{self, Class, Segment};
use super::{COLLAPSE_ABOVE, DEPTH_MAX, Kind, Registry, RouteId};

/// Name of everything below [`DEPTH_MAX`].
const REST: &str = "{rest}";

/// All templates of one learner.
#[derive(Debug, Clone, Default)]
pub(super) struct Tree {
    http: Node,
    grpc: Node,
    /// Whether unknown paths cannot be learned.
    pub(super) full: bool,
}

/// One place in a path.
#[derive(Debug, Clone, Default)]
pub(super) struct Node {
    /// The route that ends here.
    route: Option<RouteId>,
    /// Hashes of `literals`, apart from them so that a scan touches few cache lines.
    hashes: Vec<u32>,
    literals: Vec<(Arc<str>, Self)>,
    classes: Vec<(Class, Self)>,
    /// What lies too deep.
    rest: Option<RouteId>,
    /// Literals are data here.
    collapsed: bool,
}

/// A segment, ready to look up: files have become literals.
#[derive(Debug)]
pub(super) enum Step<'a> {
    Literal(&'a [u8], u32),
    File([u8; FILE_MAX], usize, u32),
    Class(Class),
}

/// `{param}` and a dot and five letters.
const FILE_MAX: usize = 16;

impl<'a> Step<'a> {
    /// Takes the next segment off `path`.
    fn next(path: &mut &'a [u8], kind: Kind) -> Option<Self> {
        let (text, kinds, hash) = segment::next(path)?;
        let segment = match kind {
            Kind::Http => segment::classify(text, kinds, hash),
            Kind::Grpc => segment::grpc(text, kinds, hash),
        };
        Some(match segment {
            Segment::Literal(text, hash) => Self::Literal(text, hash),
            Segment::Class(class) => Self::Class(class),
            Segment::File(class, extension) => {
                let mut text = [0; FILE_MAX];
                let placeholder = class.placeholder().as_bytes();
                let length = placeholder.len() + 1 + extension.len();
                text[..placeholder.len()].copy_from_slice(placeholder);
                text[placeholder.len()] = b'.';
                text[placeholder.len() + 1..length].copy_from_slice(extension);
                let hash = text[..length]
                    .iter()
                    .fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
                Self::File(text, length, hash)
            }
        })
    }

    /// The text and hash to look for among literals, or the class.
    fn key(&self) -> Result<(&[u8], u32), Class> {
        match self {
            Self::Literal(text, hash) => Ok((text, *hash)),
            Self::File(text, length, hash) => Ok((&text[..*length], *hash)),
            Self::Class(class) => Err(*class),
        }
    }
}

impl Tree {
    pub(super) fn new(full: bool) -> Self {
        Self { full, ..Self::default() }
    }

    /// The route of a known path.
    pub(super) fn find(&self, path: &str, kind: Kind) -> Option<RouteId> {
        let mut rest = path.as_bytes();
        let mut node = match kind {
            Kind::Http => &self.http,
            Kind::Grpc => &self.grpc,
        };
        for _ in 0..DEPTH_MAX {
            let Some(step) = Step::next(&mut rest, kind) else { return node.route };
            node = node.child(&step)?;
        }
        if rest.iter().all(|&byte| byte == b'/') { node.route } else { node.rest }
    }

    /// Learns a path that [`find`](Self::find) does not know. Adds one route at most.
    pub(super) fn insert(&mut self, path: &str, kind: Kind, registry: &mut Registry<'_>) {
        let mut rest = path.as_bytes();
        let mut name = String::new();
        let mut node = match kind {
            Kind::Http => &mut self.http,
            Kind::Grpc => &mut self.grpc,
        };
        for _ in 0..DEPTH_MAX {
            let Some(step) = Step::next(&mut rest, kind) else { return node.end_here(&name, registry) };
            node = node.child_or_new(&step, kind, &mut name, registry);
        }
        if rest.iter().all(|&byte| byte == b'/') {
            node.end_here(&name, registry);
        } else if node.rest.is_none() {
            node.rest = Some(registry.create(&format!("{name}/{REST}")));
        }
    }

    /// Drops routes, and the places that lead nowhere without them.
    pub(super) fn retain(&mut self, keep: &impl Fn(RouteId) -> bool) {
        self.http.retain(keep);
        self.grpc.retain(keep);
    }

    #[cfg(test)]
    pub(super) fn nodes(&self) -> usize {
        self.http.nodes() + self.grpc.nodes()
    }
}

impl Node {
    fn literal(&self, text: &[u8], hash: u32) -> Option<usize> {
        let mut from = 0;
        while let Some(found) = self.hashes[from..].iter().position(|&other| other == hash) {
            let at = from + found;
            if self.literals[at].0.as_bytes() == text {
                return Some(at);
            }
            from = at + 1;
        }
        None
    }

    fn class(&self, class: Class) -> Option<&Self> {
        self.classes.iter().find(|(other, _)| *other == class).map(|(_, node)| node)
    }

    fn child(&self, step: &Step<'_>) -> Option<&Self> {
        match step.key() {
            Ok(_) if self.collapsed => self.class(Class::Param),
            Ok((text, hash)) => self.literal(text, hash).map(|at| &self.literals[at].1),
            Err(class) => self.class(class),
        }
    }

    fn class_or_new(&mut self, class: Class) -> &mut Self {
        let at = self.classes.iter().position(|(other, _)| *other == class).unwrap_or_else(|| {
            self.classes.push((class, Self::default()));
            self.classes.len() - 1
        });
        &mut self.classes[at].1
    }

    /// Goes one step down, learning it if it is new, and appends to the name of the place.
    fn child_or_new(
        &mut self,
        step: &Step<'_>,
        kind: Kind,
        name: &mut String,
        registry: &mut Registry<'_>,
    ) -> &mut Self {
        name.push('/');
        let class = match step.key() {
            Err(class) => class,
            Ok(_) if self.collapsed => Class::Param,
            Ok((text, hash)) => {
                let at = self.literal(text, hash);
                if at.is_none() && kind == Kind::Http && self.literals.len() >= COLLAPSE_ABOVE {
                    self.collapse(&name[..name.len() - 1], registry);
                    Class::Param
                } else {
                    let at = at.unwrap_or_else(|| {
                        self.hashes.push(hash);
                        self.literals.push((String::from_utf8_lossy(text).into(), Self::default()));
                        self.literals.len() - 1
                    });
                    name.push_str(&self.literals[at].0);
                    return &mut self.literals[at].1;
                }
            }
        };
        name.push_str(class.placeholder());
        self.class_or_new(class)
    }

    fn end_here(&mut self, name: &str, registry: &mut Registry<'_>) {
        if self.route.is_none() {
            self.route = Some(registry.create(if name.is_empty() { "/" } else { name }));
        }
    }

    /// Literals here are data: merges them all into `{param}`. `name` is this place's.
    fn collapse(&mut self, name: &str, registry: &mut Registry<'_>) {
        self.collapsed = true;
        self.hashes = Vec::new();
        let literals = std::mem::take(&mut self.literals);
        let name = format!("{name}/{}", Class::Param.placeholder());
        let into = self.class_or_new(Class::Param);
        for (_, literal) in literals {
            into.merge(literal, &name, registry);
        }
    }

    /// Folds `other` and everything below it into this place, whose name is `name`. Routes only get fewer.
    fn merge(&mut self, other: Self, name: &str, registry: &mut Registry<'_>) {
        if let Some(old) = other.route {
            self.end_here(name, registry);
            if let Some(into) = self.route {
                registry.fold(old, into);
            }
        }
        if let Some(old) = other.rest {
            let into = *self.rest.get_or_insert_with(|| registry.create(&format!("{name}/{REST}")));
            registry.fold(old, into);
        }
        for (class, node) in other.classes {
            let name = format!("{name}/{}", class.placeholder());
            self.class_or_new(class).merge(node, &name, registry);
        }
        if other.collapsed && !self.collapsed {
            self.collapse(name, registry);
        }
        for (hash, (text, node)) in other.hashes.into_iter().zip(other.literals) {
            if !self.collapsed
                && self.literals.len() >= COLLAPSE_ABOVE
                && self.literal(text.as_bytes(), hash).is_none()
            {
                self.collapse(name, registry);
            }
            if self.collapsed {
                let name = format!("{name}/{}", Class::Param.placeholder());
                self.class_or_new(Class::Param).merge(node, &name, registry);
                continue;
            }
            let at = self.literal(text.as_bytes(), hash).unwrap_or_else(|| {
                self.hashes.push(hash);
                self.literals.push((Arc::clone(&text), Self::default()));
                self.literals.len() - 1
            });
            self.literals[at].1.merge(node, &format!("{name}/{text}"), registry);
        }
    }

    /// Returns whether anything is left.
    fn retain(&mut self, keep: &impl Fn(RouteId) -> bool) -> bool {
        self.route = self.route.filter(|&id| keep(id));
        self.rest = self.rest.filter(|&id| keep(id));
        self.classes.retain_mut(|(_, node)| node.retain(keep));
        let mut at = 0;
        while at < self.literals.len() {
            if self.literals[at].1.retain(keep) {
                at += 1;
            } else {
                self.literals.swap_remove(at);
                self.hashes.swap_remove(at);
            }
        }
        self.route.is_some() || self.rest.is_some() || !self.classes.is_empty() || !self.literals.is_empty()
    }

    #[cfg(test)]
    fn nodes(&self) -> usize {
        let below = self.classes.iter().map(|(_, node)| node);
        1 + below.chain(self.literals.iter().map(|(_, node)| node)).map(Self::nodes).sum::<usize>()
    }
}
