//! Whether what is configured runs: on how many of the sidecars that asked for it.
//!
//! In: the world, and which version of each resource every connected proxy acknowledged. Out: a count per object.
//! A sidecar counts as having an object when it acknowledged the *current* version of every resource it asked for
//! that the object has a part in.
//! Invariant: a resource is compiled once per namespace of askers, however many objects have a part in it.

use std::collections::{BTreeMap, HashMap};

use crate::compile;
use crate::world::World;
use crate::xds::{Kind, ProxyStatus, Running};

use super::namespace_of;

/// How much of the mesh runs an object.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Programmed {
    /// Connected proxies that asked for a resource that the object has a part in.
    pub asked: usize,
    /// Those that acknowledged its current version.
    pub running: usize,
    /// Those that refused it, with their words; some of them.
    pub refused: Vec<String>,
}

/// Refusals that are told in full.
const REFUSALS_TOLD: usize = 3;

/// Who runs what, for looking up.
pub struct Runs<'a> {
    world: &'a World,
    proxies: &'a [ProxyStatus],
    by_name: HashMap<(Kind, &'a str), Vec<(usize, &'a Running)>>,
    /// Current versions by kind, name and asker's namespace.
    versions: HashMap<(Kind, String, &'a str), Option<Box<str>>>,
}

impl<'a> Runs<'a> {
    /// Sorts `proxies` for looking up.
    #[must_use]
    pub fn new(world: &'a World, proxies: &'a [ProxyStatus]) -> Self {
        let mut by_name: HashMap<(Kind, &str), Vec<(usize, &Running)>> = HashMap::new();
        for (place, proxy) in proxies.iter().enumerate() {
            for (kind, status) in &proxy.kinds {
                for running in status.subscriptions.iter() {
                    by_name.entry((*kind, &*running.name)).or_default().push((place, running));
                }
            }
        }
        Self { world, proxies, by_name, versions: HashMap::new() }
    }

    /// How many of those who asked for one of `resources` run what they should.
    pub fn programmed(&mut self, resources: &[(Kind, String)]) -> Programmed {
        let mut askers: BTreeMap<usize, (bool, Option<&'a Running>)> = BTreeMap::new();
        for (kind, name) in resources {
            let Some(running) = self.by_name.get(&(*kind, name.as_str())).cloned() else { continue };
            for (place, running) in running {
                // What is not there cannot run anywhere.
                let Some(current) = self.current(*kind, name, namespace_of(&self.proxies[place])) else {
                    continue;
                };
                let asker = askers.entry(place).or_insert((true, None));
                asker.0 &= running.acked.as_deref() == Some(&*current);
                let refuses = running.refused.as_ref().is_some_and(|refusal| *refusal.version == *current);
                asker.1 = asker.1.or(refuses.then_some(running));
            }
        }
        let refused = askers.iter().filter_map(|(place, (_, refused))| {
            let refusal = (*refused)?.refused.as_ref()?;
            Some(format!("{} says: {}", name_of(&self.proxies[*place]), refusal.message))
        });
        Programmed {
            asked: askers.len(),
            running: askers.values().filter(|(runs, _)| *runs).count(),
            refused: refused.take(REFUSALS_TOLD).collect(),
        }
    }

    fn current(&mut self, kind: Kind, name: &str, namespace: &'a str) -> Option<Box<str>> {
        let compiled =
            || compile::resource(self.world, kind, name, namespace).map(|resource| resource.version);
        self.versions.entry((kind, name.to_owned(), namespace)).or_insert_with(compiled).clone()
    }
}

fn name_of(proxy: &ProxyStatus) -> String {
    match &proxy.workload {
        Some(workload) => format!("{workload} ({})", proxy.instance),
        None => proxy.instance.to_string(),
    }
}
