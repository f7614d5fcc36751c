//! `weft bug-report`: what somebody else needs to see to understand what is wrong, in one archive or directory.
//!
//! In: the cluster and the control plane's API, as `weft check` finds them. Out: a tar file or a directory, and a word on every file in
//! it. Invariants: nothing is sent anywhere; Secrets and ConfigMaps are never asked for; everything passes [`redact`] before it is
//! written; what could not be had is in it as the reason why.

mod collect;
mod redact;
mod tar;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use console::style;
use jiff::Timestamp;

use self::redact::Redactor;
use crate::args::ApiArgs;
use crate::{check, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft bug-report                            weft-bug-report-….tar in this directory
  weft bug-report --pod shop/web-6d4f        with the log and the configuration of a pod's sidecar
  weft bug-report --redact-ips               without addresses: each becomes ip-1, ip-2, …
  weft bug-report --directory ./report       as files, to look at before they are sent

Tokens, keys, passwords and values of headers are taken out; Secrets and ConfigMaps are never read. Read README.txt in it before
you send it: paths and messages of your apps may say things that nobody can recognise as secret. Nothing is sent by this command.")]
pub(crate) struct BugReportArgs {
    /// Pods whose sidecar's log and configuration go along; `NAMESPACE/POD`, may be given several times
    #[arg(long, value_name = "POD")]
    pod: Vec<String>,
    /// Take addresses out too
    #[arg(long)]
    redact_ips: bool,
    /// Lines of each log at most, the newest
    #[arg(long, value_name = "LINES", default_value_t = 2000)]
    lines: i64,
    /// The archive's name
    #[arg(long, value_name = "FILE", conflicts_with = "directory")]
    file: Option<PathBuf>,
    /// A directory instead of an archive; it must not exist
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    #[command(flatten)]
    api: ApiArgs,
}

/// A file of a report.
pub(super) struct Part {
    /// Its path in the report.
    pub(super) path: String,
    /// What is in it, for people.
    pub(super) about: &'static str,
    /// What is in it, or why it could not be had.
    pub(super) content: Result<Content, String>,
}

/// What is in a file.
pub(super) enum Content {
    Text(String),
    Json(serde_json::Value),
}

pub(crate) async fn run(arguments: BugReportArgs) -> anyhow::Result<ExitCode> {
    let BugReportArgs { pod, redact_ips, lines, file, directory, api } = arguments;
    anyhow::ensure!(lines > 0, "--lines must be at least 1");
    let pods = pods(&pod)?;
    let target = check::Target::find(&api, false).await?;
    let step = output::step("asking the control plane and the cluster");
    let mut parts = collect::of_target(&target, &api, &pods, lines).await?;
    drop(step);
    let now = Timestamp::now();
    let name = format!("weft-bug-report-{}", now.strftime("%Y%m%dT%H%M%SZ"));
    parts.sort_by(|one, other| one.path.cmp(&other.path));
    let mut redactor = Redactor::new(redact_ips);
    let mut files = vec![("README.txt".to_owned(), readme(&parts, now, redact_ips).into_bytes())];
    files.extend(parts.iter().map(|part| (file_name(part), redacted(part, &mut redactor).into_bytes())));
    let place = match directory {
        Some(directory) => {
            write_directory(&directory, &files)?;
            directory
        }
        None => {
            let file = file.unwrap_or_else(|| PathBuf::from(format!("{name}.tar")));
            let inner: Vec<(String, Vec<u8>)> =
                files.into_iter().map(|(path, bytes)| (format!("{name}/{path}"), bytes)).collect();
            let seconds = u64::try_from(now.as_second()).unwrap_or_default();
            write_private(&file, &tar::archive(&inner, seconds))?;
            file
        }
    };
    for part in &parts {
        let line = match &part.content {
            Ok(_) => format!("{} {:<44}{}", style("✓").green(), part.path, style(part.about).dim()),
            Err(why) => format!(
                "{} {:<44}{}",
                style("-").dim(),
                part.path,
                style(format!("could not be had: {why}")).dim()
            ),
        };
        output::line(line);
    }
    output::line(format_args!("\n{}", style(place.display()).bold()));
    let kept = if redact_ips { "" } else { " Addresses are in it (--redact-ips takes them out)." };
    output::line(format_args!(
        "Tokens, keys, passwords and header values are taken out.{kept} Look at README.txt before you send it."
    ));
    Ok(ExitCode::SUCCESS)
}

fn pods(names: &[String]) -> anyhow::Result<Vec<(String, String)>> {
    let parts = |name: &String| {
        let (namespace, pod) = name.split_once('/')?;
        (!namespace.is_empty() && !pod.is_empty() && !pod.contains('/'))
            .then(|| (namespace.to_owned(), pod.to_owned()))
    };
    names
        .iter()
        .map(|name| parts(name).with_context(|| format!("--pod {name}: write NAMESPACE/POD")))
        .collect()
}

fn file_name(part: &Part) -> String {
    match &part.content {
        Ok(_) => part.path.clone(),
        Err(_) => format!("{}.missing.txt", part.path),
    }
}

fn redacted(part: &Part, redactor: &mut Redactor) -> String {
    match &part.content {
        Ok(Content::Text(text)) => redactor.text(text),
        Ok(Content::Json(value)) => {
            let mut value = value.clone();
            redactor.json(&mut value);
            format!("{value:#}\n")
        }
        Err(why) => redactor.text(&format!("could not be had: {why}\n")),
    }
}

fn readme(parts: &[Part], now: Timestamp, without_addresses: bool) -> String {
    let mut text = format!(
        "A report about a Weft mesh, made at {} by weft {}.\n\n\
         Taken out: tokens, private keys, passwords, values of headers and of variables with such names{}.\n\
         Never asked for: Secrets, ConfigMaps, contents of requests.\n\
         Still in it: names of namespaces, pods, services and routes; paths as templates; messages of programs{}.\n\
         What your apps write into paths and names is theirs: look before you send this to anybody.\n\n",
        now.strftime("%F %TZ"),
        env!("CARGO_PKG_VERSION"),
        if without_addresses { ", addresses" } else { "" },
        if without_addresses { "" } else { "; addresses" },
    );
    for part in parts {
        text.push_str(&format!("{:<48}{}\n", file_name(part), part.about));
    }
    text
}

fn write_directory(directory: &Path, files: &[(String, Vec<u8>)]) -> anyhow::Result<()> {
    let make = |path: &Path| {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))
    };
    anyhow::ensure!(!directory.exists(), "{} is there already", directory.display());
    make(directory)?;
    for (name, bytes) in files {
        let path = directory.join(name);
        if let Some(parent) = path.parent() {
            make(parent)?;
        }
        write_private(&path, bytes)?;
    }
    Ok(())
}

/// Readable by nobody else: it is somebody's cluster. Replaces nothing.
fn write_private(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = std::fs::OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    opened
        .and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use serde_json::json;

    use super::*;

    fn part(path: &str, content: Result<Content, String>) -> Part {
        Part { path: path.into(), about: "something", content }
    }

    #[test]
    fn a_report_says_what_is_in_it_and_what_could_not_be_had() {
        let parts = [
            part("api/overview.json", Ok(Content::Json(json!({ "token": "abc" })))),
            part("logs/a.log", Err("no answer from eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln".into())),
        ];
        let text = readme(&parts, Timestamp::UNIX_EPOCH, true);
        assert!(text.contains("api/overview.json") && text.contains("logs/a.log.missing.txt"), "{text}");
        let mut redactor = Redactor::new(true);
        assert!(!redacted(&parts[0], &mut redactor).contains("abc"));
        assert!(!redacted(&parts[1], &mut redactor).contains("eyJ"));
    }

    #[test]
    fn files_are_for_nobody_else_and_replace_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("report");
        let files = [("logs/a.log".to_owned(), b"a".to_vec())];
        write_directory(&place, &files).expect("written");
        let mode = std::fs::metadata(place.join("logs/a.log")).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(write_directory(&place, &files).is_err());
        assert!(write_private(&place.join("logs/a.log"), b"b").is_err());
    }

    #[test]
    fn a_pod_is_named_with_its_namespace() {
        assert_eq!(pods(&["shop/web-1".into()]).expect("fine"), [("shop".to_owned(), "web-1".to_owned())]);
        for name in ["web-1", "/web", "shop/", "a/b/c"] {
            assert!(pods(&[name.into()]).is_err(), "{name}");
        }
    }
}
