//! Which control plane is meant when nobody says: the one in the cluster of the kubeconfig, else the one on this machine.
//!
//! In: perhaps a context. Out: an API, or an error that lists everything that was tried and why it was not it. Surprise: where a
//! kubeconfig exists but its cluster has no Weft, the one on this machine is asked, and that is said: somebody may have meant
//! the other.

use std::time::Duration;

use tokio::net::TcpStream;

use super::{Api, DEFAULT};
use crate::kubernetes::find::ControlPlane;
use crate::kubernetes::{self, Cluster, chain};
use crate::output;

/// How long a connection to this very machine may take.
const HERE: Duration = Duration::from_secs(1);

/// Looks for it.
pub(crate) async fn locate(context: Option<&str>) -> anyhow::Result<Api> {
    let why_not = match Cluster::open(context).await {
        Ok(cluster) => {
            let words = cluster.words();
            match ControlPlane::find(cluster).await {
                Ok(plane) => return Ok(Api::of(plane)),
                Err(error) => format!("{words}: {error}"),
            }
        }
        // The usual case on a laptop: only this machine can be meant.
        Err(kubernetes::Error::None) => return Ok(Api::new(DEFAULT)?),
        Err(error) => chain(&error),
    };
    // Whoever names a cluster means no other.
    anyhow::ensure!(context.is_none(), nobody(&[why_not]));
    let address = DEFAULT.trim_start_matches("http://");
    let here = match tokio::time::timeout(HERE, TcpStream::connect(address)).await {
        Ok(Ok(_)) => {
            output::note(format_args!("{why_not}; asking {DEFAULT}"));
            return Ok(Api::new(DEFAULT)?);
        }
        Ok(Err(error)) => format!("{DEFAULT}: {error}"),
        Err(_) => format!("{DEFAULT}: no answer within {} s", HERE.as_secs()),
    };
    anyhow::bail!(nobody(&[why_not, here]))
}

fn nobody(tried: &[String]) -> String {
    let mut text = "no control plane was found. Tried:".to_owned();
    for words in tried {
        text.push_str(&format!("\n  - {words}"));
    }
    text.push_str("\n  install one with `weft install | kubectl apply -f -`, start one with `weft demo`, or say where it is: --api URL or WEFT_API=URL");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_was_tried_is_said() {
        let text = nobody(&["context a: gone".into(), "http://127.0.0.1:8080: refused".into()]);
        assert!(text.contains("\n  - context a: gone\n  - http://127.0.0.1:8080: refused\n"), "{text}");
        assert!(text.contains("--api URL"), "{text}");
    }
}
