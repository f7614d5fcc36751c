//! What people asked for: annotations of pod and namespace, read once.
//!
//! In: metadata. Out: a [`Wish`] (a sidecar or not) and [`Wishes`] (how it should be). Invariants: the pod wins over its
//! namespace, the namespace over the injector's settings; an impossible value on a pod is a [`Refusal`], because its author
//! is there to read it; on a namespace it is a warning, because every pod of it would be refused otherwise, and so it is on a
//! pod that stays without a sidecar anyway. A request that nobody wrote is never more than the limit. Unknown keys below `weft.dev/` are warnings that name the nearest key there is.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use weft_wire::annotation::{self as keys, Sidecar};

use super::settings::exceeds;
use super::{Namespace, Refusal, Settings};

/// Whether there should be a sidecar, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wish {
    /// The pod.
    OfPod(bool),
    /// Its namespace.
    OfNamespace(bool),
    /// Nobody.
    Silent,
}

/// How the sidecar should be. Texts are checked, and `None` where nobody said anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wishes {
    pub(super) sidecar: Sidecar,
    pub(super) image: String,
    pub(super) pull_policy: Option<String>,
    pub(super) log: Option<String>,
    pub(super) cpu_request: Option<String>,
    pub(super) cpu_limit: Option<String>,
    pub(super) memory_request: Option<String>,
    pub(super) memory_limit: Option<String>,
    pub(super) workers: Option<u16>,
    pub(super) skip_inbound_ports: Vec<u16>,
    pub(super) skip_outbound_ports: Vec<u16>,
    pub(super) skip_inbound_cidrs: Vec<String>,
    pub(super) skip_outbound_cidrs: Vec<String>,
    pub(super) skip_uids: Vec<u32>,
    pub(super) only_inbound_ports: Vec<u16>,
    pub(super) only_outbound_ports: Vec<u16>,
    pub(super) only_outbound_cidrs: Vec<String>,
    pub(super) protocols: Option<String>,
    pub(super) probes: bool,
    /// As it was written, and in milliseconds.
    pub(super) drain_deadline: Option<(String, u64)>,
    pub(super) default_access: Option<String>,
    pub(super) detect_timeout: Option<String>,
}

/// Reads `weft.dev/inject`, and warns of keys that mean nothing. Beside the wish: the pod's values that are
/// impossible, which is no concern of a pod that gets no sidecar.
pub(super) fn inject(pod: &Pod, namespace: &Namespace, warnings: &mut Vec<String>) -> (Wish, Vec<Refusal>) {
    let ObjectMeta { annotations, labels, .. } = &pod.metadata;
    let mut found = Vec::new();
    let mut wrong = Vec::new();
    for (kind, map) in [("annotations", annotations), ("labels", labels)] {
        for (key, value) in map.iter().flatten() {
            let Some(row) = known(key, kind, warnings) else { continue };
            if kind == "labels" && row.place != keys::Place::BothAndLabel {
                if row.place != keys::Place::Written {
                    warnings.push(format!("label {key} does nothing; write it as an annotation"));
                }
                continue;
            }
            if let Err(fix) = row.check(value) {
                wrong.push(Refusal::new(place(kind, key), fix));
            }
            if key == keys::INJECT {
                // What cannot be read asks for something; for what, its author must say.
                found.push(keys::switch(value).unwrap_or(true));
            }
        }
    }
    if let Some(wish) = one(&found) {
        if found.contains(&!wish) {
            warnings.push(
                "weft.dev/inject says one thing as a label and another as an annotation; disabled wins"
                    .into(),
            );
        }
        return (Wish::OfPod(wish), wrong);
    }
    let of_namespace = [&namespace.annotations, &namespace.labels]
        .into_iter()
        .filter_map(|map| map.get(keys::INJECT))
        .filter_map(|value| match keys::switch(value) {
            Ok(wish) => Some(wish),
            Err(fix) => {
                warnings.push(format!("namespace {}: {}: {fix}", namespace.name, keys::INJECT));
                None
            }
        });
    let found: Vec<bool> = of_namespace.collect();
    (one(&found).map_or(Wish::Silent, Wish::OfNamespace), wrong)
}

/// `disabled` wins over `enabled`.
fn one(found: &[bool]) -> Option<bool> {
    found.iter().copied().min()
}

fn place(kind: &str, key: &str) -> String {
    format!("metadata.{kind}[{key}]")
}

/// The key's row; warns if it is one of ours and there is none.
fn known(key: &str, kind: &str, warnings: &mut Vec<String>) -> Option<&'static keys::Annotation> {
    key.strip_prefix(keys::PREFIX)?;
    let row = keys::find(key);
    if row.is_none() {
        let meant = keys::nearest(key).map_or_else(String::new, |key| format!("; did you mean {key}?"));
        warnings.push(format!("{} is not known and does nothing{meant}", place(kind, key)));
    }
    row
}

impl Wishes {
    pub(super) fn read(
        pod: &Pod,
        namespace: &Namespace,
        settings: &Settings,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Refusal> {
        for key in namespace.labels.keys() {
            let row = keys::find(key);
            if row.is_some_and(|row| row.place == keys::Place::Both) {
                warnings.push(format!(
                    "namespace {}: label {key} does nothing; write it as an annotation",
                    namespace.name
                ));
            }
        }
        let mut reader = Reader { pod: &pod.metadata, namespace, warnings };
        let owned = |cidrs: Vec<&str>| cidrs.into_iter().map(str::to_owned).collect::<Vec<_>>();
        let cidrs = |text: &str| keys::cidrs(text).map(owned);
        let mut wishes = Self {
            sidecar: reader.parsed(keys::SIDECAR, keys::sidecar)?.unwrap_or(settings.sidecar),
            image: reader.text(keys::IMAGE)?.unwrap_or_else(|| settings.image.clone()),
            pull_policy: reader.text(keys::IMAGE_PULL_POLICY)?.or_else(|| settings.image_pull_policy.clone()),
            log: reader.text(keys::LOG_LEVEL)?.or_else(|| settings.log_level.clone()),
            cpu_request: reader.text(keys::CPU_REQUEST)?.or_else(|| settings.cpu_request.clone()),
            cpu_limit: reader.text(keys::CPU_LIMIT)?.or_else(|| settings.cpu_limit.clone()),
            memory_request: reader.text(keys::MEMORY_REQUEST)?.or_else(|| settings.memory_request.clone()),
            memory_limit: reader.text(keys::MEMORY_LIMIT)?.or_else(|| settings.memory_limit.clone()),
            workers: reader.parsed(keys::WORKERS, keys::workers)?,
            skip_inbound_ports: reader.list(keys::SKIP_INBOUND_PORTS, keys::ports)?,
            skip_outbound_ports: reader.list(keys::SKIP_OUTBOUND_PORTS, keys::ports)?,
            skip_inbound_cidrs: reader.list(keys::SKIP_INBOUND_CIDRS, cidrs)?,
            skip_outbound_cidrs: reader.list(keys::SKIP_OUTBOUND_CIDRS, cidrs)?,
            skip_uids: reader.list(keys::SKIP_UIDS, keys::uids)?,
            only_inbound_ports: reader.list(keys::ONLY_INBOUND_PORTS, keys::ports)?,
            only_outbound_ports: reader.list(keys::ONLY_OUTBOUND_PORTS, keys::ports)?,
            only_outbound_cidrs: reader.list(keys::ONLY_OUTBOUND_CIDRS, cidrs)?,
            protocols: reader.text(keys::INBOUND_PROTOCOLS)?,
            probes: reader.parsed(keys::PROBES, keys::switch)?.unwrap_or(true),
            drain_deadline: {
                let text = |text: &str| keys::duration_ms(text).map(|ms| (text.to_owned(), ms));
                reader.parsed(keys::DRAIN_DEADLINE, text)?
            },
            default_access: reader.default_access()?,
            detect_timeout: reader.text(keys::DETECT_TIMEOUT)?,
        };
        reader.fit(&mut wishes)?;
        wishes.check_lists()?;
        Ok(wishes)
    }

    /// What only all lists together can get wrong.
    fn check_lists(&self) -> Result<(), Refusal> {
        /// As many as `weft-proxy intercept` takes.
        const VALUES_MAX: usize = 400;
        let values = self.skip_inbound_ports.len()
            + self.skip_outbound_ports.len()
            + self.skip_inbound_cidrs.len()
            + self.skip_outbound_cidrs.len()
            + self.skip_uids.len()
            + self.only_inbound_ports.len()
            + self.only_outbound_ports.len()
            + self.only_outbound_cidrs.len();
        if values > VALUES_MAX {
            let fix =
                format!("{values} ports, users and CIDRs are listed; at most {VALUES_MAX} are possible");
            return Err(Refusal::new("metadata.annotations", fix));
        }
        Ok(())
    }
}

/// Who said a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Said {
    Pod,
    Namespace,
    Nobody,
}

struct Reader<'a> {
    pod: &'a ObjectMeta,
    namespace: &'a Namespace,
    warnings: &'a mut Vec<String>,
}

impl<'a> Reader<'a> {
    fn parsed<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&'a str) -> Result<T, String>,
    ) -> Result<Option<T>, Refusal> {
        if let Some(value) = self.pod.annotations.as_ref().and_then(|all| all.get(key)) {
            let parsed = parse(value);
            return parsed.map(Some).map_err(|fix| Refusal::new(place("annotations", key), fix));
        }
        let Some(value) = self.namespace.annotations.get(key) else { return Ok(None) };
        match parse(value) {
            Ok(value) => Ok(Some(value)),
            Err(fix) => {
                self.warnings
                    .push(format!("namespace {}: annotation {key} is ignored: {fix}", self.namespace.name));
                Ok(None)
            }
        }
    }

    fn list<T>(
        &mut self,
        key: &str,
        parse: impl Fn(&'a str) -> Result<Vec<T>, String>,
    ) -> Result<Vec<T>, Refusal> {
        Ok(self.parsed(key, parse)?.unwrap_or_default())
    }

    /// Brings requests below their limits where nobody wrote the request, and refuses what somebody wrote.
    fn fit(&mut self, wishes: &mut Wishes) -> Result<(), Refusal> {
        for (request, limit, keys) in [
            (&mut wishes.cpu_request, &wishes.cpu_limit, [keys::CPU_REQUEST, keys::CPU_LIMIT]),
            (&mut wishes.memory_request, &wishes.memory_limit, [keys::MEMORY_REQUEST, keys::MEMORY_LIMIT]),
        ] {
            let (Some(least), Some(most)) = (request.as_deref(), limit.as_deref()) else { continue };
            if !exceeds(least, most) {
                continue;
            }
            let said = keys.map(|key| self.said(key));
            let [of_request, of_limit] = [0, 1].map(|at| self.words(said[at], keys[at]));
            if said[0] == Said::Nobody {
                self.warnings.push(format!(
                    "{} is {most}, like the limit ({of_limit}), because the request {least} ({of_request}) is more",
                    keys[0]
                ));
                *request = limit.clone();
                continue;
            }
            let fix = format!(
                "the request {least} ({of_request}) is more than the limit {most} ({of_limit}); write a lower {} or a higher {}",
                keys[0], keys[1]
            );
            // Where its author finds it.
            let at = match said {
                [_, Said::Pod] => place("annotations", keys[1]),
                [Said::Pod, _] => place("annotations", keys[0]),
                _ => format!("namespace {}: {}", self.namespace.name, place("annotations", keys[0])),
            };
            return Err(Refusal::new(at, fix));
        }
        Ok(())
    }

    /// Who said the value that counts.
    fn said(&self, key: &str) -> Said {
        let is_possible = |text: &String| keys::find(key).is_some_and(|row| row.check(text).is_ok());
        if self.pod.annotations.as_ref().is_some_and(|all| all.contains_key(key)) {
            Said::Pod
        } else if self.namespace.annotations.get(key).is_some_and(is_possible) {
            Said::Namespace
        } else {
            Said::Nobody
        }
    }

    fn words(&self, said: Said, key: &str) -> String {
        match said {
            Said::Pod => format!("annotation {key} of the pod"),
            Said::Namespace => format!("annotation {key} of namespace {}", self.namespace.name),
            Said::Nobody => "the control plane's default".to_owned(),
        }
    }

    /// Who may call while the control plane has said nothing: as the pod says; nobody where policies close the namespace,
    /// which says only what holds without any; as the namespace says.
    fn default_access(&mut self) -> Result<Option<String>, Refusal> {
        let is_said = self.pod.annotations.as_ref().is_some_and(|all| all.contains_key(keys::DEFAULT_ACCESS));
        let access = self.text(keys::DEFAULT_ACCESS)?;
        Ok(if self.namespace.closed && !is_said { Some(keys::DENY.to_owned()) } else { access })
    }

    /// The text of a key, judged by its row.
    fn text(&mut self, key: &'static str) -> Result<Option<String>, Refusal> {
        self.parsed(key, |text| {
            let row = keys::find(key).ok_or_else(|| format!("{key} is not in the table"))?;
            row.check(text).map(|()| text.to_owned())
        })
    }
}
