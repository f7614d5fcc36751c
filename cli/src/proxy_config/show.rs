//! A sidecar's configuration as tables. Pure.
//!
//! In: its `/config`. Out: text. Invariant: fields that are not there are `-`: the sidecar may be of another version.

use console::style;
use serde_json::{Map, Value, json};

use super::Section;
use crate::table;

/// The part of `config` that is asked for, as the sidecar says it.
pub(super) fn json(section: Section, config: &Value) -> Value {
    let directory = &config["directory"];
    match section {
        Section::Summary => {
            let mut summary = config.clone();
            if let Some(directory) = summary["directory"].as_object_mut() {
                let counts = counts(directory);
                directory.retain(|name, _| name == "status");
                directory.insert("counts".into(), counts);
            }
            summary
        }
        Section::Listeners => directory["listeners"].clone(),
        Section::Clusters => directory["clusters"].clone(),
        Section::Routes => {
            let routes = |listener: &Value| listener["routes"].clone();
            named(&directory["listeners"])
                .map(|(name, listener)| (name.to_owned(), routes(listener)))
                .collect()
        }
        Section::Endpoints => {
            let endpoints = |cluster: &Value| cluster["endpoints"].clone();
            named(&directory["clusters"])
                .map(|(name, cluster)| (name.to_owned(), endpoints(cluster)))
                .collect()
        }
    }
}

/// The same for people.
pub(super) fn table(section: Section, config: &Value, pod: Option<&str>) -> String {
    let directory = &config["directory"];
    let (header, rows): (&[&str], Vec<Vec<String>>) = match section {
        Section::Summary => return summary(config, pod),
        Section::Listeners => {
            (&["LISTENER", "SERVICE", "PROTOCOL", ">ROUTES", "OTHERWISE"], listeners(directory))
        }
        Section::Routes => (&["LISTENER", "ROUTE", "MATCHES", "BACKENDS"], routes(directory)),
        Section::Clusters => {
            (&["CLUSTER", "SERVICE", "PROTOCOL", "BALANCING", ">ENDPOINTS", ">HEALTHY"], clusters(directory))
        }
        Section::Endpoints => (
            &["CLUSTER", "ADDRESS", "HEALTH", "WORKLOAD", "POD", "ZONE", ">WEIGHT", ">PRIORITY"],
            endpoints(directory),
        ),
    };
    if rows.is_empty() {
        return "nothing: its app has called nobody yet that the mesh knows\n".into();
    }
    table::render(header, &rows)
}

fn summary(config: &Value, pod: Option<&str>) -> String {
    let (settings, status) = (&config["settings"], &config["directory"]["status"]);
    let mut text = format!("{}\n", style(pod.unwrap_or(&word(&settings["workload"]))).bold());
    let mut row = |name: &str, words: String| text.push_str(&format!("  {name:<15}{words}\n"));
    row("workload", word(&settings["workload"]));
    row("version", format!("{} ({})", word(&config["version"]), word(&config["phase"])));
    let since = status["connected_since"].as_i64().map(|since| format!(", connected since {}", date(since)));
    let plane = match (&since, status["configured"].as_bool()) {
        (Some(since), _) => format!("{}{since}", word(&status["control_plane"])),
        (None, Some(false)) => "none is configured".to_owned(),
        (None, _) => {
            let words = format!("{}: not connected", word(&status["control_plane"]));
            style(words).red().bold().to_string()
        }
    };
    row("control plane", plane);
    if let Some(error) = status["last_error"].as_str().filter(|_| since.is_none()) {
        row("", format!("because: {error}"));
    }
    if let Some(at) = status["updated_at"].as_i64() {
        row("updated", date(at));
    }
    row("accepted", format!("{}, refused {}", word(&status["acks"]), word(&status["nacks"])));
    if let Some(words) = status["last_nack"].as_str() {
        row("last refusal", style(words).yellow().to_string());
    }
    if let Some(directory) = config["directory"].as_object() {
        let counts = counts(directory);
        for name in ["listeners", "routes", "clusters", "endpoints", "absent"] {
            row(name, word(&counts[name]));
        }
    }
    text
}

fn counts(directory: &Map<String, Value>) -> Value {
    let of = |name: &str| directory.get(name).unwrap_or(&Value::Null);
    let inner = |of: &Value, field: &str| -> usize {
        named(of).filter_map(|(_, value)| value[field].as_array()).map(Vec::len).sum()
    };
    json!({
        "listeners": named(of("listeners")).count(),
        "routes": inner(of("listeners"), "routes"),
        "clusters": named(of("clusters")).count(),
        "endpoints": inner(of("clusters"), "endpoints"),
        "absent": of("absent").as_array().map_or(0, Vec::len),
    })
}

fn listeners(directory: &Value) -> Vec<Vec<String>> {
    let known = named(&directory["listeners"]).map(|(name, listener)| {
        let routes = listener["routes"].as_array().map_or(0, Vec::len);
        let to = word(&listener["opaque"]);
        vec![name.to_owned(), word(&listener["service"]), word(&listener["protocol"]), routes.to_string(), to]
    });
    let absent = directory["absent"].as_array().into_iter().flatten().map(|name| {
        vec![
            word(name),
            "-".into(),
            "-".into(),
            "-".into(),
            "passed through: the mesh does not know it".into(),
        ]
    });
    known.chain(absent).collect()
}

fn routes(directory: &Value) -> Vec<Vec<String>> {
    let of = |(name, listener): (&str, &Value)| -> Vec<Vec<String>> {
        let routes = listener["routes"].as_array().into_iter().flatten();
        let row = |route: &Value| {
            let backends = named(&route["backends"]);
            let backends: Vec<String> =
                backends.map(|(name, weight)| format!("{name}={}", word(weight))).collect();
            vec![name.to_owned(), word(&route["name"]), word(&route["matches"]), backends.join(" ")]
        };
        routes.map(row).collect()
    };
    named(&directory["listeners"]).flat_map(of).collect()
}

fn clusters(directory: &Value) -> Vec<Vec<String>> {
    let row = |(name, cluster): (&str, &Value)| {
        let endpoints = cluster["endpoints"].as_array().map(Vec::as_slice).unwrap_or_default();
        let healthy = endpoints.iter().filter(|endpoint| endpoint["health"] == "healthy").count();
        // `LeastRequest { choices: 2 }` is a word and its settings.
        let balancing = word(&cluster["balancing"]);
        vec![
            name.to_owned(),
            word(&cluster["service"]),
            word(&cluster["protocol"]),
            balancing.split([' ', '(']).next().unwrap_or_default().to_owned(),
            endpoints.len().to_string(),
            healthy.to_string(),
        ]
    };
    named(&directory["clusters"]).map(row).collect()
}

fn endpoints(directory: &Value) -> Vec<Vec<String>> {
    let of = |(name, cluster): (&str, &Value)| -> Vec<Vec<String>> {
        let endpoints = cluster["endpoints"].as_array().into_iter().flatten();
        let row = |endpoint: &Value| {
            let health = match endpoint["health"].as_str() {
                Some("healthy") => "healthy".to_owned(),
                Some(other) => style(other).yellow().to_string(),
                None => "-".to_owned(),
            };
            vec![
                name.to_owned(),
                word(&endpoint["address"]),
                health,
                word(&endpoint["workload"]),
                word(&endpoint["pod"]),
                word(&endpoint["zone"]),
                word(&endpoint["weight"]),
                word(&endpoint["priority"]),
            ]
        };
        endpoints.map(row).collect()
    };
    named(&directory["clusters"]).flat_map(of).collect()
}

fn named(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.as_str(), value))
}

fn word(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::String(text) if text.is_empty() => "-".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn date(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds)
        .map_or_else(|_| "?".to_owned(), |at| at.strftime("%F %TZ").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Value {
        json!({
            "version": "0.1.0", "phase": "serving",
            "settings": { "workload": "shop/web" },
            "directory": {
                "status": { "configured": true, "control_plane": "https://weft-control-plane.weft-system.svc:15012",
                    "connected_since": 1_800_000_000, "updated_at": 1_800_000_060, "acks": 12, "nacks": 1,
                    "last_nack": "Cluster a: no such field", "last_error": null },
                "listeners": { "outbound/10.96.0.12:8080": { "service": "orders.shop", "protocol": "http", "opaque": null,
                    "routes": [{ "name": "HTTPRoute/shop/orders/0", "matches": "GET /orders/*", "backends": { "orders-v1.shop:8080": 90, "orders-v2.shop:8080": 10 } }] } },
                "clusters": { "orders-v1.shop:8080": { "service": "orders.shop", "protocol": "http", "balancing": "PeakEwma { choices: 2 }",
                    "endpoints": [
                        { "address": "10.1.0.5:8080", "workload": "shop/orders", "pod": "orders-1", "weight": 1, "health": "healthy", "priority": 0, "zone": null },
                        { "address": "10.1.0.6:8080", "workload": "shop/orders", "pod": "orders-2", "weight": 1, "health": "unhealthy", "priority": 0, "zone": "a" }] } },
                "absent": ["outbound/93.184.216.34:443"],
            },
        })
    }

    #[test]
    fn every_section_has_its_table() {
        console::set_colors_enabled(false);
        let text: Vec<String> =
            [Section::Summary, Section::Listeners, Section::Routes, Section::Clusters, Section::Endpoints]
                .map(|section| table(section, &config(), Some("shop/web-1")))
                .into();
        insta::assert_snapshot!(text.join("\n"));
    }

    #[test]
    fn a_sidecar_of_another_version_breaks_nothing() {
        let bare = json!({ "directory": { "listeners": { "a": 1 }, "clusters": [] } });
        for section in
            [Section::Summary, Section::Listeners, Section::Routes, Section::Clusters, Section::Endpoints]
        {
            table(section, &bare, None);
            json(section, &bare);
        }
    }

    #[test]
    fn a_summary_counts_and_a_section_is_as_the_sidecar_says_it() {
        let summary = json(Section::Summary, &config());
        assert_eq!(summary["directory"]["counts"]["endpoints"], 2);
        assert!(summary["directory"]["clusters"].is_null());
        let endpoints = json(Section::Endpoints, &config());
        assert_eq!(endpoints["orders-v1.shop:8080"][1]["pod"], "orders-2");
    }
}
