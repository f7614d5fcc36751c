//! `weft inject` and `weft uninject`: sidecars into manifests, and out again.
//!
//! In: YAML from a file or standard input. Out: the same YAML on standard output, pods and templates of pods with (or
//! without) a sidecar; what became of each on standard error, and why. Invariant: it is what the control plane's webhook does,
//! by the same function. Surprise: what is named on the command line is asked for, so no namespace needs a label; but whoever
//! says `weft.dev/inject: disabled` is heard.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;
use weft_control_plane::inject::manifest::{self, Note, Outcome, Work};
use weft_control_plane::inject::{Options, Settings, Verdict};
use weft_wire::tls::TRUST_DOMAIN_DEFAULT;

use crate::output;

/// The largest input: no hand-written manifest comes near it.
const INPUT_MAX: u64 = 64 << 20;

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft inject -f orders.yaml | kubectl apply -f -         a Deployment with a sidecar
  kubectl get deploy -n shop -o yaml | weft inject -f -   what runs already
  weft inject -f pod.yaml --sidecar classic               for Kubernetes before 1.29
  weft inject -f orders.yaml > /dev/null                  only say what would become of it

Exit code: 0, or 1 if something asks for the impossible; then nothing is written.")]
pub(crate) struct InjectArgs {
    #[command(flatten)]
    input: Input,
    /// The mesh's name in every identity
    #[arg(long, env = "WEFT_TRUST_DOMAIN", value_name = "NAME", default_value = TRUST_DOMAIN_DEFAULT)]
    trust_domain: String,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  kubectl get deploy -n shop -o yaml | weft uninject -f - | kubectl apply -f -")]
pub(crate) struct UninjectArgs {
    #[command(flatten)]
    input: Input,
}

#[derive(Debug, clap::Args)]
struct Input {
    /// YAML of any objects; - for standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE")]
    file: PathBuf,
    /// Namespace of objects that name none
    #[arg(short, long, value_name = "NAMESPACE")]
    namespace: Option<String>,
}

/// `weft inject`.
pub(crate) fn inject(arguments: InjectArgs) -> anyhow::Result<ExitCode> {
    let InjectArgs { input, trust_domain, options } = arguments;
    options.check()?;
    work(&input, Work::Inject(&Settings::new(&options, &trust_domain)))
}

/// `weft uninject`.
pub(crate) fn uninject(arguments: UninjectArgs) -> anyhow::Result<ExitCode> {
    work(&arguments.input, Work::Strip)
}

fn work(input: &Input, work: Work<'_>) -> anyhow::Result<ExitCode> {
    let text = input.read()?;
    let name = input.file.display();
    let (out, notes) = manifest::transform(&text, input.namespace.as_deref(), work)
        .with_context(|| format!("{name} is no manifest"))?;
    if notes.is_empty() {
        output::note("there is no pod and nothing that makes pods in there");
    }
    for note in &notes {
        for line in lines(note) {
            output::note(line);
        }
    }
    if notes.iter().any(|note| note.outcome.is_refusal()) {
        return Ok(ExitCode::FAILURE);
    }
    output::text(&out);
    Ok(ExitCode::SUCCESS)
}

impl Input {
    fn read(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        let (read, name) = if self.file == Path::new("-") {
            (std::io::stdin().take(INPUT_MAX + 1).read_to_string(&mut text), "standard input".to_owned())
        } else {
            let name = self.file.display().to_string();
            let file = std::fs::File::open(&self.file).with_context(|| format!("cannot read {name}"))?;
            (file.take(INPUT_MAX + 1).read_to_string(&mut text), name)
        };
        let length = read.with_context(|| format!("cannot read {name}"))?;
        anyhow::ensure!(length as u64 <= INPUT_MAX, "{name} is more than {} MiB", INPUT_MAX >> 20);
        Ok(text)
    }
}

/// What became of an object, for people.
fn lines(note: &Note) -> Vec<String> {
    let object = &note.object;
    let outcome = match &note.outcome {
        Outcome::Stripped(true) => "the sidecar is out".to_owned(),
        Outcome::Stripped(false) => "there was no sidecar".to_owned(),
        Outcome::Answered(Ok(Verdict::Injected { replaced: None, .. })) => "injected".to_owned(),
        Outcome::Answered(Ok(Verdict::Injected { replaced: Some(version), .. })) => {
            format!("injected anew; it had {version}")
        }
        Outcome::Answered(Ok(Verdict::Unchanged)) => "injected already".to_owned(),
        Outcome::Answered(Ok(Verdict::LeftAlone(reason))) => format!("left alone: {reason}"),
        Outcome::Answered(Err(refusal)) => format!("cannot be injected: {refusal}"),
    };
    // Why it was left alone is said once.
    let warnings = note.warnings.iter().filter(|warning| !warning.starts_with("no sidecar: "));
    std::iter::once(format!("{object}: {outcome}"))
        .chain(warnings.map(|warning| format!("{object}: warning: {warning}")))
        .collect()
}
