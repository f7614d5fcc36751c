//! Path templates without configuration: `/users/42/orders` becomes `/users/{id}/orders`.
//!
//! In: paths as they came. Out: a [`RouteId`] per template, a small integer that the request path can use in a
//! key, and its [`Route`] with the name. Segments that cannot be vocabulary (numbers, UUIDs, hashes, dates,
//! tokens, e-mail addresses, anything percent-encoded) become placeholders at sight; segments that turn out to
//! be data, because more than [`COLLAPSE_ABOVE`] different ones were seen in one place, become `{param}` when
//! that happens, and the routes already learned there are folded into the new one (see [`Route::current`]).
//!
//! Invariants: at most the given number of routes is alive per [`Learner`], whatever comes; a template is its
//! own template; the same paths in the same order give the same templates.
//!
//! Surprise: known paths take no lock and allocate nothing. Each worker walks its own reference to an
//! immutable tree ([`Cache`]); a path that is not in it asks the shared learner once, under a short lock, and
//! the learner publishes a new tree. When the learner is full the tree says so, and unknown paths go to
//! [`RouteId::OTHER`] without asking, so a scanner cannot make workers queue. Routes that nothing has recorded
//! for ten minutes are forgotten when the space is needed ([`Learner::forget_idle`]), so a scanner cannot use
//! up the routes for good either.
//!
//! Non-goals: queries (ignored), decoding (an encoded slash stays one segment), and learning what is *not*
//! data: a collapsed place never un-collapses.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use weft_wire::attribute;

mod segment;
mod tree;

use tree::Tree;

/// More different literal segments than this in one place are data, not vocabulary.
///
/// An API rarely has more than thirty sibling resources under one prefix, and at the default cap of 200 routes
/// six places can be on their way to this number before the cap bites.
pub const COLLAPSE_ABOVE: usize = 32;

/// Segments beyond this one become a single `{rest}`. The deepest Kubernetes API path has nine.
pub const DEPTH_MAX: usize = 12;

/// Longer segments are data: the longest segments people write by hand are method names, and gRPC's own
/// services stay below this.
pub const SEGMENT_MAX: usize = 96;

/// Most folded routes remembered per learner so that requests in flight find their successor: far more than a
/// single collapse can fold at the default cap.
const FOLDED_MAX: usize = 1024;

/// How a path is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A resource path: placeholders, learning, collapsing.
    Http,
    /// `/package.Service/Method`: vocabulary by definition; only the cap limits it.
    Grpc,
}

/// A template of one [`Learner`]. Ids are never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RouteId(pub(crate) u32);

impl RouteId {
    /// Every path beyond the cap.
    pub const OTHER: Self = Self(0);
    /// Nothing is learned when ids have reached this, so that they fit the 22 bits of a packed key. The rest of
    /// the 22 bits is for the largest collapse there can be, [`DEPTH_MAX`] times 65,535 routes. At 200 new routes
    /// every ten minutes, which takes a scanner at work all the time, ids last for 109 days.
    const END: u32 = (1 << 22) - (1 << 20);
}

/// A template and its name.
#[derive(Debug)]
pub struct Route {
    name: Arc<str>,
    successor: OnceLock<Arc<Self>>,
}

impl Route {
    fn new(name: &str) -> Arc<Self> {
        Arc::new(Self { name: name.into(), successor: OnceLock::new() })
    }

    /// The name: `/users/{id}`, or `__other__`.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The route that stands for this one now: another one after this one was folded into it.
    #[must_use]
    pub fn current(self: &Arc<Self>) -> &Arc<Self> {
        let mut route = self;
        while let Some(successor) = route.successor.get() {
            route = successor;
        }
        route
    }

    /// Whether another route stands for this one.
    #[must_use]
    pub fn is_folded(&self) -> bool {
        self.successor.get().is_some()
    }

    /// The route of everything beyond a cap.
    #[must_use]
    pub fn other() -> Arc<Self> {
        static OTHER: OnceLock<Arc<Route>> = OnceLock::new();
        Arc::clone(OTHER.get_or_init(|| Self::new(attribute::ROUTE_OVERFLOW)))
    }
}

/// The routes of one service, learned by all workers together.
#[derive(Debug)]
pub struct Learner {
    published: ArcSwap<Tree>,
    generation: AtomicU64,
    growth: Mutex<Growth>,
}

/// What the lock protects.
#[derive(Debug)]
struct Growth {
    tree: Tree,
    cap: usize,
    routes: HashMap<RouteId, Arc<Route>>,
    /// Routes that were folded, oldest first.
    folded: Vec<(RouteId, Arc<Route>)>,
    /// Routes that nobody held when [`Learner::forget_idle`] last looked.
    idle: HashSet<RouteId>,
    next: u32,
}

impl Learner {
    /// Knows nothing; will know `cap` routes at most.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        let growth = Growth {
            tree: Tree::new(cap == 0),
            cap,
            routes: HashMap::new(),
            folded: Vec::new(),
            idle: HashSet::new(),
            next: 1,
        };
        Self {
            published: ArcSwap::from_pointee(growth.tree.clone()),
            generation: AtomicU64::new(0),
            growth: Mutex::new(growth),
        }
    }

    /// The route with this id, or its successor; [`Route::other`] when it has been forgotten.
    #[must_use]
    pub fn route(&self, id: RouteId) -> Arc<Route> {
        let growth = self.growth();
        if let Some(route) = growth.routes.get(&id) {
            return Arc::clone(route);
        }
        let folded = growth.folded.iter().find(|(folded, _)| *folded == id);
        folded.map_or_else(Route::other, |(_, route)| Arc::clone(route.current()))
    }

    /// Number of routes alive.
    #[must_use]
    pub fn len(&self) -> usize {
        self.growth().routes.len()
    }

    /// Whether nothing has been learned.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether unknown paths go to [`RouteId::OTHER`].
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.published.load().full
    }

    /// When full, forgets the routes that nobody else held now and the last time this was called: whoever
    /// records for a route holds its `Arc`, and twice, so that a first request still in flight keeps its route.
    pub fn forget_idle(&self) {
        if !self.is_full() {
            return;
        }
        let mut growth = self.growth();
        let Growth { tree, cap, routes, idle, .. } = &mut *growth;
        let before = routes.len();
        let mut idle_now = HashSet::new();
        routes.retain(|id, route| {
            let held = Arc::strong_count(route) > 1;
            if !held {
                idle_now.insert(*id);
            }
            held || !idle.contains(id)
        });
        *idle = idle_now;
        if routes.len() == before {
            return;
        }
        tree.retain(&|id| routes.contains_key(&id));
        tree.full = routes.len() >= *cap;
        self.publish(&growth);
    }

    /// The miss path: learns the path, or says that there is no space for it.
    fn learn(&self, path: &str, kind: Kind) -> RouteId {
        let mut growth = self.growth();
        let Growth { tree, cap, routes, folded, next, .. } = &mut *growth;
        // Another worker may have been faster.
        if let Some(id) = tree.find(path, kind) {
            return id;
        }
        if routes.len() >= *cap || *next >= RouteId::END {
            tree.full = true;
        } else {
            tree.insert(path, kind, &mut Registry { routes, folded, next });
            tree.full = routes.len() >= *cap;
            if folded.len() > FOLDED_MAX {
                folded.drain(..folded.len() - FOLDED_MAX);
            }
        }
        self.publish(&growth);
        growth.tree.find(path, kind).unwrap_or(RouteId::OTHER)
    }

    fn publish(&self, growth: &Growth) {
        self.published.store(Arc::new(growth.tree.clone()));
        self.generation.fetch_add(1, Ordering::Release);
    }

    fn growth(&self) -> MutexGuard<'_, Growth> {
        // Nothing in here panics halfway, and a telemetry lock must not take a worker down if it ever does.
        self.growth.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes and folds routes while the tree changes.
struct Registry<'a> {
    routes: &'a mut HashMap<RouteId, Arc<Route>>,
    folded: &'a mut Vec<(RouteId, Arc<Route>)>,
    next: &'a mut u32,
}

impl Registry<'_> {
    fn create(&mut self, name: &str) -> RouteId {
        let id = RouteId(*self.next);
        *self.next += 1;
        self.routes.insert(id, Route::new(name));
        id
    }

    fn fold(&mut self, old: RouteId, into: RouteId) {
        let (Some(route), Some(successor)) = (self.routes.remove(&old), self.routes.get(&into)) else {
            return;
        };
        // Set once: a folded route is out of `routes` and cannot be folded again.
        let _first = route.successor.set(Arc::clone(successor));
        self.folded.push((old, route));
    }
}

/// One worker's view of a [`Learner`].
#[derive(Debug)]
pub struct Cache {
    learner: Arc<Learner>,
    tree: Arc<Tree>,
    generation: u64,
}

impl Cache {
    /// Sees what the learner knows.
    #[must_use]
    pub fn new(learner: Arc<Learner>) -> Self {
        let generation = learner.generation.load(Ordering::Acquire);
        let tree = learner.published.load_full();
        Self { learner, tree, generation }
    }

    /// The route of `path` (without its query).
    pub fn find(&mut self, path: &str, kind: Kind) -> RouteId {
        let generation = self.learner.generation.load(Ordering::Acquire);
        if generation != self.generation {
            self.generation = generation;
            self.tree = self.learner.published.load_full();
        }
        match self.tree.find(path, kind) {
            Some(id) => id,
            None if self.tree.full => RouteId::OTHER,
            None => self.learner.learn(path, kind),
        }
    }

    /// The shared side.
    #[must_use]
    pub fn learner(&self) -> &Arc<Learner> {
        &self.learner
    }
}

#[cfg(test)]
mod tests;
