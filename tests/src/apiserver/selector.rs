//! Label and field selectors, as requests write them.

use std::collections::BTreeMap;

/// Which objects are meant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Selector {
    labels: Vec<Term>,
    fields: Vec<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Term {
    key: String,
    wanted: Wanted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wanted {
    Absent,
    Among(Vec<String>),
    NotAmong(Vec<String>),
    Present,
}

impl Selector {
    pub(super) fn parse(labels: Option<&str>, fields: Option<&str>) -> Self {
        Self { labels: terms(labels.unwrap_or_default()), fields: terms(fields.unwrap_or_default()) }
    }

    pub(super) fn matches(
        &self,
        labels: &BTreeMap<String, String>,
        fields: &BTreeMap<&'static str, String>,
    ) -> bool {
        self.labels.iter().all(|term| term.holds(labels.get(&term.key)))
            && self.fields.iter().all(|term| term.holds(fields.get(term.key.as_str())))
    }
}

impl Term {
    fn holds(&self, value: Option<&String>) -> bool {
        match &self.wanted {
            Wanted::Absent => value.is_none(),
            Wanted::Present => value.is_some(),
            Wanted::Among(values) => value.is_some_and(|value| values.contains(value)),
            Wanted::NotAmong(values) => value.is_none_or(|value| !values.contains(value)),
        }
    }
}

/// Terms are divided by commas, but not by those within parentheses.
fn terms(text: &str) -> Vec<Term> {
    let mut depth = 0_i32;
    let parts = text.split(|c: char| {
        depth += i32::from(c == '(') - i32::from(c == ')');
        c == ',' && depth == 0
    });
    parts.map(str::trim).filter(|part| !part.is_empty()).map(term).collect()
}

fn term(text: &str) -> Term {
    let among = |list: &str| {
        list.trim().trim_matches(['(', ')']).split(',').map(|value| value.trim().to_owned()).collect()
    };
    let (key, wanted) = if let Some((key, value)) = text.split_once("!=") {
        (key, Wanted::NotAmong(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = text.split_once('=') {
        (key, Wanted::Among(vec![value.trim_start_matches('=').trim().to_owned()]))
    } else if let Some((key, list)) = text.split_once(" notin ") {
        (key, Wanted::NotAmong(among(list)))
    } else if let Some((key, list)) = text.split_once(" in ") {
        (key, Wanted::Among(among(list)))
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Wanted::Absent)
    } else {
        (text, Wanted::Present)
    };
    Term { key: key.trim().to_owned(), wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_mean_what_kubernetes_means() {
        let labels: BTreeMap<String, String> =
            [("app", "web"), ("tier", "front")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let fields = BTreeMap::from([("status.phase", "Running".to_owned())]);
        for (selector, field, expected) in [
            ("", "", true),
            ("app=web", "", true),
            ("app==web,tier!=back", "", true),
            ("app in (api, web),tier", "", true),
            ("app notin (api,web)", "", false),
            ("!app", "", false),
            ("!other", "", true),
            ("", "status.phase!=Succeeded,status.phase!=Failed", true),
            ("", "status.phase!=Running", false),
        ] {
            let selector = Selector::parse(Some(selector), Some(field));
            assert_eq!(selector.matches(&labels, &fields), expected, "{selector:?}");
        }
    }
}
