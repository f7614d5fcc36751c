//! `weft install`, `weft upgrade`, `weft uninstall`: what a cluster is given, and what is taken from it again.
//!
//! In: wishes on the command line and in files; of a cluster, what is there. Out: YAML for `kubectl` on standard output, words for
//! people on standard error. Invariant: nothing is ever changed from here. Who installs sees what they install, and their own
//! `kubectl`, with their own rights, does it.

mod cluster;
mod uninstall;
mod upgrade;

use std::path::PathBuf;

use anyhow::Context as _;
use serde_json::{Value, json};
use weft_control_plane::install::values::{Values, assignment};
use weft_control_plane::install::{objects, text};

pub(crate) use uninstall::{UninstallArgs, uninstall};
pub(crate) use upgrade::{UpgradeArgs, upgrade};

use crate::output;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft install | kubectl apply -f -                       one control plane in namespace weft-system
  weft install --ha | kubectl apply -f -                  three, on different nodes
  weft install --image-registry registry.example/mesh     images from there
  weft install -f values.yaml --set log=debug             the chart's values (k8s/chart/values.yaml) and one more
  kubectl label namespace shop weft.dev/inject=enabled    then: new pods there get a sidecar
  kubectl -n shop rollout restart deployment              and those that run")]
pub(crate) struct InstallArgs {
    #[command(flatten)]
    wishes: Wishes,
}

/// What an installation should be like.
#[derive(Debug, clap::Args)]
struct Wishes {
    /// Three control planes on different nodes instead of one
    #[arg(long)]
    ha: bool,
    /// Registry and path before the images' names
    #[arg(long, value_name = "REGISTRY")]
    image_registry: Option<String>,
    /// Tag of the images; by default this program's version
    #[arg(long, value_name = "TAG")]
    image_tag: Option<String>,
    /// The mesh's name in every identity
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<String>,
    /// File with values, as for the chart; a later one counts more
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// One value, for instance injector.failurePolicy=Fail; counts more than files
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

impl Wishes {
    /// As layers of values, the one that counts most last.
    fn layers(self) -> anyhow::Result<Vec<Value>> {
        let Self { ha, image_registry, image_tag, trust_domain, files, set } = self;
        let mut layers = Vec::new();
        for file in files {
            let text =
                std::fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let layer: Value =
                serde_yaml::from_str(&text).with_context(|| format!("{} is not YAML", file.display()))?;
            // An empty file wishes nothing.
            layers.push(if layer.is_null() { json!({}) } else { layer });
        }
        layers.extend(ha.then(|| json!({ "ha": true })));
        layers.extend(image_registry.map(|registry| json!({ "image": { "registry": registry } })));
        layers.extend(image_tag.map(|tag| json!({ "image": { "tag": tag } })));
        layers.extend(trust_domain.map(|domain| json!({ "trustDomain": domain })));
        for one in set {
            layers.push(assignment(&one).with_context(|| format!("cannot use --set {one}"))?);
        }
        Ok(layers)
    }
}

/// `weft install`.
pub(crate) fn install(arguments: InstallArgs) -> anyhow::Result<()> {
    let values = Values::layered(arguments.wishes.layers()?)?;
    output::text(&text(&objects(&values)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_count_more_than_files_and_set_most() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("values.yaml");
        std::fs::write(&file, "image: {tag: file, registry: file.example}\nlog: debug\n").expect("written");
        let wishes = Wishes {
            ha: true,
            image_registry: None,
            image_tag: Some("option".into()),
            trust_domain: Some("example.org".into()),
            files: vec![file],
            set: vec!["trustDomain=set.example".into()],
        };
        let values = Values::layered(wishes.layers().expect("readable")).expect("possible");
        assert_eq!((values.ha, values.image.tag.as_str(), values.log.as_str()), (true, "option", "debug"));
        assert_eq!(
            (values.image.registry.as_str(), values.trust_domain.as_str()),
            ("file.example", "set.example")
        );
    }
}
