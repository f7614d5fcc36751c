//! What is configured, what of it runs, and what a change would do: the answers that need several parts at once.
//!
//! In: the world, who runs what (the xDS status), where objects are written (the sources), how rules and circuits
//! do (ingest). Out: values for the API. Each answer is made when somebody asks; nothing is kept.
//! Invariants: everything below this file is a pure function of what it is given; nothing here changes anything.

pub mod access;
pub mod objects;
pub mod plan;
pub mod print;
pub mod programmed;
pub mod routes;

use std::time::Instant;

use crate::graph::{Timestamp, Window};
use crate::ingest::Ingest;
use crate::sources::{Problems, Report};
use crate::world::{Live, World};
use crate::xds::{ProxyStatus, Status};

/// Read handles on all of it. Cheap to clone.
#[derive(Clone)]
pub struct Configuration {
    world: Live,
    status: Status,
    sources: Problems,
}

impl Default for Configuration {
    /// Nothing is configured and nobody is connected.
    fn default() -> Self {
        let (_, sources) = tokio::sync::watch::channel(Report::default());
        Self { world: Live::default(), status: Status::default(), sources }
    }
}

/// The methods compile resources: call them where it is no matter that this takes some milliseconds.
impl Configuration {
    /// Joins the handles.
    #[must_use]
    pub const fn new(world: Live, status: Status, sources: Problems) -> Self {
        Self { world, status, sources }
    }

    /// What applying `text` would change.
    #[must_use]
    pub fn plan(&self, text: &str, now: Instant) -> plan::Plan {
        // A copy, so that nobody waits for what is being tried.
        let world: World = self.world.read().clone();
        plan::plan(&world, &self.status.proxies(), text, now)
    }

    /// Objects and how they fare.
    #[must_use]
    pub fn objects(&self, filter: &objects::Filter) -> objects::Objects {
        let (proxies, files) = (self.status.proxies(), self.sources.borrow().files.clone());
        objects::objects(&self.world.read(), &proxies, &files, filter)
    }

    /// The policies on access, and what their rules said.
    #[must_use]
    pub fn access(&self, ingest: &Ingest, window: Window, now: Timestamp) -> access::Overview {
        let (figures, covered) =
            ingest.access().with(|rules| (rules.figures(window, now), rules.covered(window, now)));
        access::overview(&self.world.read(), &figures, covered, window)
    }

    /// What would become of a call.
    ///
    /// # Errors
    /// When it is not clear who calls or who is called.
    pub fn check(&self, question: &access::Question) -> Result<access::Checked, access::Unclear> {
        access::check(&self.world.read(), question)
    }

    /// What callers go by and how that does.
    #[must_use]
    pub fn routes(
        &self,
        ingest: &Ingest,
        window: Window,
        now: Timestamp,
        filter: &routes::Filter,
    ) -> routes::Routes {
        let (figures, covered) =
            ingest.rules().with(|rules| (rules.figures(window, now), rules.covered(window, now)));
        let observed = ingest.circuits().with(|circuits| routes::Observed::take(figures, covered, circuits));
        routes::routes(&self.world.read(), &observed, window, now, filter)
    }
}

/// The namespace in which a proxy's short names are read.
fn namespace_of(proxy: &ProxyStatus) -> &str {
    proxy.workload.as_ref().map_or("default", |workload| workload.namespace())
}

#[cfg(test)]
mod tests;
