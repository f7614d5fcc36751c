//! Findings for people and for programs.
//!
//! Invariant: a glyph never stands alone: the sentence beside it, or the line below it, says what it means.

use console::style;
use serde::Serialize;

use super::catalog::{Check, Group};
use super::judge::{Finding, Outcome};

/// Pods and objects that are named at once; `-o json` names all.
const ITEMS_TOLD: usize = 10;

/// Everything, by group.
pub(super) fn table(findings: &[Finding]) -> String {
    let mut text = String::new();
    let mut group: Option<Group> = None;
    for finding in sorted(findings) {
        let of = finding.check.group();
        if group != Some(of) {
            let word = of.word();
            let gap = if group.is_some() { "\n" } else { "" };
            text.push_str(&format!("{gap}{}\n{}\n", style(word).bold(), "-".repeat(word.len())));
            group = Some(of);
        }
        text.push_str(&lines(finding));
    }
    text + "\n" + &verdict(findings)
}

/// Only what needs a look, and how many do not.
pub(super) fn short(findings: &[Finding]) -> String {
    let problems = findings
        .iter()
        .filter(|finding| matches!(finding.outcome, Outcome::Warn { .. } | Outcome::Fail { .. }));
    problems.map(lines).collect::<String>() + &verdict(findings)
}

/// Checks of one group stand together.
fn sorted(findings: &[Finding]) -> Vec<&Finding> {
    let mut order: Vec<Group> = Vec::new();
    for check in Check::ALL {
        if !order.contains(&check.group()) {
            order.push(check.group());
        }
    }
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| order.iter().position(|group| *group == finding.check.group()));
    sorted
}

fn lines(finding: &Finding) -> String {
    let Finding { check, outcome } = finding;
    let sentence = check.sentence();
    let (glyph, why, items) = match outcome {
        Outcome::Pass { remark } => {
            let remark = remark.as_ref().map(|words| format!(" ({words})")).unwrap_or_default();
            return format!("{} {sentence}{}\n", style("✓").green(), style(remark).dim());
        }
        Outcome::Skip { why } => {
            return format!("{}\n", style(format!("- {sentence} (left out: {why})")).dim());
        }
        Outcome::Note { why, items } => (style("i").cyan(), why, items),
        Outcome::Warn { why, items } => (style("!").yellow().bold(), why, items),
        Outcome::Fail { why, items } => (style("✗").red().bold(), why, items),
    };
    let mut text = format!("{glyph} {sentence}\n    {}{why}\n", word(outcome));
    for item in items.iter().take(ITEMS_TOLD) {
        text.push_str(&format!("      {item}\n"));
    }
    if let Some(more) = items.len().checked_sub(ITEMS_TOLD).filter(|more| *more > 0) {
        text.push_str(&format!("      … and {more} more\n"));
    }
    let hint = format!("docs/checks.md#{check}, or: weft check --explain {check}");
    text + &format!("    {}\n", style(format!("see {hint}")).dim())
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Note { .. } => "note: ",
        Outcome::Warn { .. } => "warning: ",
        Outcome::Fail { .. } => "failed: ",
        Outcome::Pass { .. } | Outcome::Skip { .. } => "",
    }
}

#[derive(Default, Serialize)]
struct Counts {
    passed: usize,
    notes: usize,
    warnings: usize,
    failed: usize,
    left_out: usize,
}

impl Counts {
    fn of(findings: &[Finding]) -> Self {
        let mut counts = Self::default();
        for finding in findings {
            *match finding.outcome {
                Outcome::Pass { .. } => &mut counts.passed,
                Outcome::Note { .. } => &mut counts.notes,
                Outcome::Warn { .. } => &mut counts.warnings,
                Outcome::Fail { .. } => &mut counts.failed,
                Outcome::Skip { .. } => &mut counts.left_out,
            } += 1;
        }
        counts
    }
}

/// Whether nothing failed.
pub(super) fn is_good(findings: &[Finding]) -> bool {
    Counts::of(findings).failed == 0
}

fn verdict(findings: &[Finding]) -> String {
    let Counts { passed, notes, warnings, failed, left_out } = Counts::of(findings);
    let glyph = match (failed, warnings) {
        (0, 0) => style("✓").green(),
        (0, _) => style("!").yellow().bold(),
        _ => style("✗").red().bold(),
    };
    let mut parts = vec![format!("{passed} passed")];
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    for (count, words) in [
        (notes, plural(notes, "note")),
        (warnings, plural(warnings, "warning")),
        (failed, format!("{failed} failed")),
        (left_out, format!("{left_out} left out")),
    ] {
        if count > 0 {
            parts.push(words);
        }
    }
    format!("{glyph} {}\n", parts.join(", "))
}

#[derive(Serialize)]
struct Document<'a> {
    good: bool,
    counts: Counts,
    checks: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Row<'a> {
    check: &'static str,
    group: &'static str,
    sentence: &'static str,
    #[serde(flatten)]
    outcome: &'a Outcome,
    hint: String,
}

fn row(finding: &Finding) -> Row<'_> {
    Row {
        check: finding.check.id(),
        group: finding.check.group().word(),
        sentence: finding.check.sentence(),
        outcome: &finding.outcome,
        hint: format!("docs/checks.md#{}", finding.check),
    }
}

/// For programs.
pub(super) fn json(findings: &[Finding]) -> serde_json::Value {
    let checks = sorted(findings).into_iter().map(row).collect();
    let document = Document { good: is_good(findings), counts: Counts::of(findings), checks };
    serde_json::to_value(document).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some() -> Vec<Finding> {
        let pods = (0..12).map(|number| format!("shop/web-{number}")).collect();
        [
            (Check::ApiServer, Outcome::passed("https://10.0.0.1:6443")),
            (Check::GatewayApi, Outcome::note("HTTPRoute is not there")),
            (Check::Namespace, Outcome::fail("there is no namespace weft-system")),
            (Check::Deployment, Outcome::skip("needs namespace")),
            (Check::Uninjected, Outcome::warn("restart them").about(pods)),
        ]
        .map(|(check, outcome)| Finding { check, outcome })
        .into()
    }

    #[test]
    fn people_see_groups_sentences_and_hints() {
        console::set_colors_enabled(false);
        insta::assert_snapshot!(table(&some()));
    }

    #[test]
    fn in_short_only_problems_are_shown() {
        console::set_colors_enabled(false);
        insta::assert_snapshot!(short(&some()));
    }

    #[test]
    fn programs_see_every_item() {
        let value = json(&some());
        assert_eq!(value["good"], false);
        assert_eq!(value["counts"]["failed"], 1);
        let checks = value["checks"].as_array().expect("a list");
        assert_eq!(checks.len(), 5);
        assert_eq!(checks[4]["items"].as_array().map(Vec::len), Some(12));
        assert_eq!(checks[4]["outcome"], "warn");
        assert_eq!(checks[0]["remark"], "https://10.0.0.1:6443");
    }
}
