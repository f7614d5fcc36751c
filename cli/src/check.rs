//! `weft check`: what is wrong with an installation, or would be, and what to do about it.
//!
//! In: the API server and the control plane's API. Out: a sentence for each check and, where it does not hold, why and where to
//! read on; the exit code says whether anything failed. `gather` asks, `judge` decides (pure), `show` writes, `catalog` lists the
//! checks, and `docs/checks.md` explains them.
//!
//! Surprise: with `--api` no cluster is looked at, even if a kubeconfig is there: the API that is named may belong to none of it.

mod catalog;
mod facts;
mod gather;
mod judge;
mod show;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;

use self::catalog::Check;
use self::gather::Wish;
use self::judge::{Finding, Outcome, Plan};
use crate::api::Api;
use crate::args::{ApiArgs, duration};
use crate::kubernetes::find::ControlPlane;
use crate::kubernetes::{self, Cluster, Trouble, chain};
use crate::{api, output};

/// How long `--wait` waits unless it says.
const WAIT: &str = "5m";
/// How long until what may have become true is looked at again.
const AGAIN: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft check --pre                          before installing: may it, and will it work
  weft install | kubectl apply -f - && weft check --wait
  weft check --proxy                        the sidecars too: versions, configuration, certificates, clocks
  weft check --proxy -n shop -o short       only what is wrong, in one namespace
  weft check --api http://127.0.0.1:8080    a control plane outside Kubernetes
  weft check --explain webhook-serves       what a check means and what to do
  weft check -o json | jq '.checks[] | select(.outcome == \"fail\")'

Exit code: 0 if nothing failed; warnings are no failure.")]
pub(crate) struct CheckArgs {
    /// Before an installation: whether it is allowed and would work
    #[arg(long, conflicts_with_all = ["proxy", "namespace"])]
    pre: bool,
    /// The data plane too
    #[arg(long)]
    proxy: bool,
    /// Only the pods and sidecars of this namespace
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// How to show it
    #[arg(short, long, value_enum, default_value = "table")]
    output: Format,
    /// Wait for what may become true, so long at most
    #[arg(long, value_name = "TIME", num_args = 0..=1, default_missing_value = WAIT, value_parser = duration)]
    wait: Option<Duration>,
    /// Say what a check means and what to do when it fails
    #[arg(long, value_name = "CHECK", value_parser = check)]
    explain: Option<Check>,
    #[command(flatten)]
    api: ApiArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    /// For people: everything
    Table,
    /// For people: what needs a look
    Short,
    /// For programs
    Json,
}

fn check(text: &str) -> Result<Check, String> {
    let named = Check::ALL.iter().find(|check| check.id() == text);
    named.copied().ok_or_else(|| {
        let ids: Vec<&str> = Check::ALL.iter().map(|check| check.id()).collect();
        format!("it is one of {}", ids.join(", "))
    })
}

pub(crate) async fn run(arguments: CheckArgs) -> anyhow::Result<ExitCode> {
    let CheckArgs { pre, proxy, namespace, output: format, wait, explain, api } = arguments;
    if let Some(check) = explain {
        // A test sees to it that every check is explained.
        output::line(catalog::explain(check).unwrap_or_default());
        return Ok(ExitCode::SUCCESS);
    }
    let target = Target::find(&api, pre).await?;
    let plan = Plan { before: pre, proxy, cluster: target.cluster.is_some() };
    let begin = Instant::now();
    let mut step = None;
    let findings = loop {
        let findings = target.check(plan, namespace.as_deref(), &api).await?;
        let left = wait.map(|wait| wait.saturating_sub(begin.elapsed())).filter(|left| !left.is_zero());
        let (Some(left), Some(open)) = (left, hopeful(&findings)) else { break findings };
        drop(step.replace(output::step(format!("waiting until {}", open.sentence()))));
        tokio::time::sleep(AGAIN.min(left)).await;
    };
    drop(step);
    match format {
        Format::Table => {
            output::text(&show::table(&findings));
            if !plan.cluster {
                let left_out = Check::ALL.iter().filter(|check| check.asks().needs_cluster()).count();
                output::line(format_args!(
                    "  without a cluster: {left_out} checks of Kubernetes are not made"
                ));
            }
        }
        Format::Short => output::text(&show::short(&findings)),
        Format::Json => output::line(format_args!("{:#}", show::json(&findings))),
    }
    Ok(if show::is_good(&findings) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The first check that failed and may yet hold.
fn hopeful(findings: &[Finding]) -> Option<Check> {
    let failed = |finding: &&Finding| matches!(finding.outcome, Outcome::Fail { .. });
    let hopeless = findings.iter().filter(failed).any(|finding| !finding.check.is_patient());
    // What fails for good makes waiting for the rest idle.
    let open = || findings.iter().find(|finding| failed(finding) && finding.check.is_patient());
    if hopeless { None } else { open().map(|finding| finding.check) }
}

/// What is checked.
pub(crate) struct Target {
    pub(crate) cluster: Option<Cluster>,
    /// Where the API is; `None`: in the cluster, wherever it is found each time.
    address: Option<String>,
}

impl Target {
    /// What the arguments mean.
    pub(crate) async fn find(api: &ApiArgs, before: bool) -> anyhow::Result<Self> {
        let address = api.address().map(str::to_owned);
        if address.is_some() && api.context.is_none() && !before {
            return Ok(Self { cluster: None, address });
        }
        match Cluster::open(api.context.as_deref()).await {
            Ok(cluster) => Ok(Self { cluster: Some(cluster), address }),
            Err(kubernetes::Error::None) if !before => {
                Ok(Self { cluster: None, address: Some(address.unwrap_or_else(|| api::DEFAULT.into())) })
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn check(
        &self,
        plan: Plan,
        namespace: Option<&str>,
        arguments: &ApiArgs,
    ) -> anyhow::Result<Vec<Finding>> {
        let api = if plan.before { None } else { Some(self.api(arguments).await?) };
        let api = api.as_ref().map(|api| api.as_ref().map_err(Clone::clone));
        let wish = Wish { plan, cluster: self.cluster.as_ref(), api, namespace };
        Ok(judge::judge(plan, &gather::gather(wish).await))
    }

    /// What every check of an installation finds, for programs.
    pub(crate) async fn report(&self, arguments: &ApiArgs) -> anyhow::Result<serde_json::Value> {
        let plan = Plan { before: false, proxy: true, cluster: self.cluster.is_some() };
        Ok(show::json(&self.check(plan, None, arguments).await?))
    }

    /// The control plane's API, or why it is not found.
    pub(crate) async fn api(&self, arguments: &ApiArgs) -> anyhow::Result<Result<Api, Trouble>> {
        let found = match &self.address {
            Some(address) => Api::new(address)?,
            None => match self.within().await {
                Ok(api) => api,
                Err(trouble) => return Ok(Err(trouble)),
            },
        };
        Ok(Ok(found.asking_as(arguments.token()?.as_deref())?))
    }

    /// The API in the cluster.
    async fn within(&self) -> Result<Api, Trouble> {
        let Some(cluster) = &self.cluster else { return Err(Trouble::Missing) };
        let found = ControlPlane::find(cluster.clone()).await;
        found.map(Api::of).map_err(|error| Trouble::Unreachable(chain(&error)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(check: Check, outcome: Outcome) -> Finding {
        Finding { check, outcome }
    }

    #[test]
    fn waiting_ends_when_nothing_can_become_true() {
        let open = finding(Check::Pods, Outcome::fail("0 of 1"));
        assert_eq!(hopeful(std::slice::from_ref(&open)), Some(Check::Pods));
        let hopeless = finding(Check::Version, Outcome::fail("it is v1.20"));
        assert_eq!(hopeful(&[hopeless, open]), None);
        let skipped = finding(Check::Lease, Outcome::skip("later"));
        assert_eq!(hopeful(&[skipped, finding(Check::Stale, Outcome::pass())]), None);
    }

    #[test]
    fn checks_are_named_by_their_anchors() {
        assert_eq!(check("webhook-serves"), Ok(Check::Injects));
        assert!(check("nothing").is_err_and(|words| words.contains("api-server")));
    }
}
