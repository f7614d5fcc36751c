//! The command line: parsed once, then handed to the module that does the work.
//!
//! Surprise: the hidden subcommands are this program's other lives (see the crate's documentation). They are
//! dispatched before any thread is started, because a process with threads cannot enter a user namespace.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{CommandFactory as _, Parser, Subcommand};
use clap_complete::Shell;
use weft_control_plane::graph::Window;

use crate::fabric::{holder, launch, launcher};
use crate::{
    api, apply, auth, authz, bug_report, ca, check, circuits, dashboard, demo, get, graph, identity, inject,
    inner, install, output, proxy_config, routes, run, stat, status, token, version,
};

#[derive(Debug, Parser)]
#[command(
    name = "weft",
    version,
    about = "A service mesh that shows its work",
    arg_required_else_help = true,
    after_help = "Examples:
  weft demo                                        a mesh with a shop in it
  weft run --name orders --port 8080 -- ./orders   put a program into the mesh
  weft graph                                       who calls whom
  weft stat web --routes                           how well, route by route
  weft circuits -w                                 which circuits are open, and why"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a whole mesh on this machine: control plane, a shop of services with sidecars, and load
    Demo(demo::DemoArgs),
    /// Run a program in the mesh, with a sidecar of its own
    Run(run::RunArgs),
    /// Run a control plane: configuration for sidecars, the graph, the dashboard
    ControlPlane(Box<weft_control_plane::config::Config>),
    /// Show the live call graph
    Graph(graph::GraphArgs),
    /// Show rate, success and latency of every call
    Stat(stat::StatArgs),
    /// Say what is wrong with an installation, or would be, and what to do about it
    Check(check::CheckArgs),
    /// Show which sidecars run the configuration that they should
    Status(status::StatusArgs),
    /// Show what the sidecar of a pod runs, as it says itself
    ProxyConfig(proxy_config::ProxyConfigArgs),
    /// Pack what somebody else needs to see to understand what is wrong
    BugReport(bug_report::BugReportArgs),
    /// Open the control plane's web page, also of one in a cluster
    Dashboard(dashboard::DashboardArgs),
    /// Show circuits: which are open, why, since when, and when they probe
    Circuits(circuits::CircuitsArgs),
    /// Show services with their routes and backends: shares, signals, timeouts, retries, breakers
    Routes(routes::RoutesArgs),
    /// Show the mesh's objects and what became of them
    Get(get::GetArgs),
    /// Say what objects would change, and on which sidecars
    Apply(apply::ApplyArgs),
    /// Put sidecars into manifests: pods, and everything that makes pods
    Inject(Box<inject::InjectArgs>),
    /// Take sidecars out of manifests
    Uninject(inject::UninjectArgs),
    /// Print what to give a cluster: control plane, kinds, rights, webhook
    Install(install::InstallArgs),
    /// Print the same for a cluster that has it, and say what differs
    Upgrade(install::UpgradeArgs),
    /// Print what to take from a cluster
    Uninstall(install::UninstallArgs),
    /// Show who may call what and what rules said, or what would become of one call
    Authz(authz::AuthzArgs),
    /// Make tokens for people and programs that use the API; show who did what
    Auth(auth::AuthArgs),
    /// Show who a sidecar is: its certificate, whom it trusts, how renewals go
    Identity(identity::IdentityArgs),
    /// Make, show and take back join tokens, by which programs join the mesh
    Token(token::TokenArgs),
    /// Show the certificate authority, and replace its root
    Ca(ca::CaArgs),
    /// Show the version of this program and of the control plane
    Version(version::VersionArgs),
    /// Write shell completions to standard output
    #[command(after_help = "Examples:
  weft completions bash > /etc/bash_completion.d/weft
  weft completions zsh > \"${fpath[1]}/_weft\"
  weft completions fish > ~/.config/fish/completions/weft.fish")]
    Completions {
        /// For which shell
        shell: Shell,
    },

    /// The sidecar
    #[command(hide = true)]
    Proxy(Box<inner::Proxy>),
    /// A program of the demo's shop
    #[command(hide = true)]
    DemoApp {
        /// Which one
        name: String,
    },
    /// Become a program in a pod's namespaces
    #[command(hide = true)]
    FabricExec(launch::LaunchArgs),
    /// Hold a pod's namespaces
    #[command(hide = true)]
    FabricHold(holder::HoldArgs),
    /// Remove a directory when the parent is gone
    #[command(hide = true)]
    FabricSweep(launcher::SweepArgs),
}

/// Where the control plane's API is, and who asks it; also behind a command's own subcommand, `weft ca status --api …`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ApiArgs {
    /// The control plane's API. Without it: the one in the cluster of the kubeconfig, through its API server; without that,
    /// the one on this machine, at `http://127.0.0.1:8080`
    #[arg(long, global = true, env = "WEFT_API", value_name = "URL")]
    pub(crate) api: Option<String>,
    /// Which cluster of the kubeconfig, where it has several
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// Who asks, where the API wants to know: a token of `weft auth token`. Others on this machine can see a command line;
    /// prefer the variable, or a file
    #[arg(long, global = true, env = "WEFT_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// File with the token
    #[arg(long, global = true, env = "WEFT_TOKEN_FILE", value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
}

impl ApiArgs {
    /// The API that is meant.
    pub(crate) async fn open(self) -> anyhow::Result<api::Api> {
        let found = match self.address() {
            Some(url) => api::Api::new(url)?,
            None => api::locate::locate(self.context.as_deref()).await?,
        };
        Ok(found.asking_as(self.token()?.as_deref())?)
    }

    /// The same for programs on this machine: no cluster is looked at.
    pub(crate) fn open_here(self) -> anyhow::Result<api::Api> {
        let found = api::Api::new(self.address().unwrap_or(api::DEFAULT))?;
        Ok(found.asking_as(self.token()?.as_deref())?)
    }

    /// Where somebody said the API is. An empty variable says nothing: that is how shells and pods take one away.
    pub(crate) fn address(&self) -> Option<&str> {
        self.api.as_deref().map(str::trim).filter(|url| !url.is_empty())
    }

    /// Who asks.
    pub(crate) fn token(&self) -> anyhow::Result<Option<String>> {
        let token = match (&self.token, &self.token_file) {
            (Some(token), _) => Some(token.clone()),
            (None, Some(file)) => Some(
                std::fs::read_to_string(file)
                    .with_context(|| format!("cannot read the token in {}", file.display()))?,
            ),
            (None, None) => None,
        };
        Ok(token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty()))
    }
}

/// Which part of the past is shown.
#[derive(Debug, clap::Args)]
pub(crate) struct WindowArgs {
    /// How far back
    #[arg(long, value_parser = Window::ALL.map(Window::word), default_value = "1m")]
    pub(crate) window: String,
}

/// Parses the command line and does what it says.
pub(crate) fn run() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Demo(arguments) => demo::run(arguments).map(|()| ExitCode::SUCCESS),
        Command::Run(arguments) => run::run(arguments),
        Command::Graph(arguments) => answer(graph::run(arguments)),
        Command::Stat(arguments) => answer(stat::run(arguments)),
        Command::Check(arguments) => wait_for(check::run(arguments)),
        Command::Status(arguments) => wait_for(status::run(arguments)),
        Command::ProxyConfig(arguments) => wait_for(proxy_config::run(arguments)),
        Command::BugReport(arguments) => wait_for(bug_report::run(arguments)),
        Command::Dashboard(arguments) => wait_for(dashboard::run(arguments)),
        Command::Circuits(arguments) => wait_for(circuits::run(arguments)),
        Command::Routes(arguments) => answer(routes::run(arguments)),
        Command::Get(arguments) => answer(get::run(arguments)),
        Command::Apply(arguments) => wait_for(apply::run(arguments)),
        Command::Inject(arguments) => inject::inject(*arguments),
        Command::Uninject(arguments) => inject::uninject(arguments),
        Command::Install(arguments) => install::install(arguments).map(|()| ExitCode::SUCCESS),
        Command::Upgrade(arguments) => answer(install::upgrade(arguments)),
        Command::Uninstall(arguments) => answer(install::uninstall(arguments)),
        Command::Auth(arguments) => answer(auth::run(arguments)),
        Command::Authz(arguments) => wait_for(authz::run(arguments)),
        Command::Identity(arguments) => wait_for(identity::run(arguments)),
        Command::Token(arguments) => wait_for(token::run(arguments)),
        Command::Ca(arguments) => wait_for(ca::run(arguments)),
        Command::Version(arguments) => answer(version::run(arguments)),
        Command::Completions { shell } => {
            completions(shell);
            Ok(ExitCode::SUCCESS)
        }
        Command::Proxy(arguments) => inner::proxy(*arguments).map(|()| ExitCode::SUCCESS),
        Command::ControlPlane(config) => inner::control_plane(*config).map(|()| ExitCode::SUCCESS),
        Command::DemoApp { name } => demo::app::run(&name).map(|()| ExitCode::SUCCESS),
        Command::FabricExec(arguments) => {
            let (what, error) = launch::run(arguments);
            output::error(&anyhow::Error::new(error).context(format!("cannot start {what}")));
            // As shells do it.
            Ok(ExitCode::from(127))
        }
        Command::FabricHold(arguments) => finished(holder::run(&arguments)),
        Command::FabricSweep(arguments) => finished(launcher::sweep(&arguments)),
    };
    result.unwrap_or_else(|error| {
        output::error(&error);
        ExitCode::FAILURE
    })
}

/// A question whose answer is success.
fn answer(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<ExitCode> {
    wait_for(async { work.await.map(|()| ExitCode::SUCCESS) })
}

fn wait_for(work: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(work)
}

fn finished(result: io::Result<()>) -> anyhow::Result<ExitCode> {
    result.map(|()| ExitCode::SUCCESS).map_err(Into::into)
}

fn completions(shell: Shell) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "weft", &mut script);
    output::text(&String::from_utf8_lossy(&script));
}

/// How objects or sidecars are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For people with wide screens: more columns, or a row for each
    Wide,
    /// For programs
    Json,
}

/// Reads `500ms`, `30s`, `5m`, `1h`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 = number.parse().map_err(|_| "it should look like 30s, 5m or 1h".to_owned())?;
    let factor = match unit {
        "ms" => return Ok(Duration::from_millis(number)),
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => return Err("it should look like 30s, 5m or 1h".into()),
    };
    number.checked_mul(factor).map(Duration::from_secs).ok_or_else(|| "that is too long".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_api_may_be_named_last() {
        for words in [
            "ca status",
            "ca rotate --force",
            "token create --name web",
            "authz check web orders:80",
            "graph",
        ] {
            let line = format!("weft {words} --api http://mesh:8080");
            let matches = Cli::command().try_get_matches_from(line.split(' ')).expect(words);
            let (_, mut found) = matches.subcommand().expect("a command");
            while let Some((_, inner)) = found.subcommand() {
                found = inner;
            }
            assert_eq!(
                found.get_one::<String>("api").map(String::as_str),
                Some("http://mesh:8080"),
                "{words}"
            );
            Cli::try_parse_from(line.split(' ')).expect(words);
        }
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        for text in ["", "30", "s", "1d", "-1s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn help_teaches_by_examples() {
        for name in [
            "demo",
            "run",
            "graph",
            "stat",
            "status",
            "check",
            "proxy-config",
            "dashboard",
            "bug-report",
            "circuits",
            "routes",
            "get",
            "apply",
            "auth",
            "identity",
            "inject",
            "uninject",
            "install",
            "upgrade",
            "uninstall",
            "token",
            "ca",
            "version",
            "completions",
        ] {
            let mut command = Cli::command();
            let help = command.find_subcommand_mut(name).expect("there").render_long_help().to_string();
            assert!(help.contains("Examples:"), "{name}");
        }
    }
}
