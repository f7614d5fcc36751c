use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, Parser as _};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;

use super::*;
use crate::config::Config;

fn of_kind<T: DeserializeOwned>(values: &Values, kind: &str) -> Vec<T> {
    let found = objects(values).into_iter().filter(|object| object.value["kind"] == kind);
    found.map(|object| serde_yaml::from_value(object.value).expect(kind)).collect()
}

fn ha() -> Values {
    Values { ha: true, ..Values::default() }
}

/// Everything that goes together.
fn all() -> Values {
    let wishes = json!({
        "controlPlane": { "history": { "persistentVolumeClaim": "graph" } },
        "api": { "expose": true, "publicUrl": "https://weft.example.com", "tokensSecret": "weft-api-tokens", "oidc": {
            "issuer": "https://login.example.com", "clientId": "weft", "clientSecret": "weft-oidc",
            "operatorGroups": "sre,platform", "viewerGroups": "*",
        } },
        "sidecar": { "kind": "classic", "logLevel": "debug", "resources": { "limits": { "cpu": "2", "memory": "256Mi" } } },
    });
    Values::layered([wishes]).expect("possible")
}

#[test]
fn the_file_is_what_weft_install_prints() {
    let head = "Weft, as `weft install` prints it: kubectl apply -f k8s/weft.yaml\n\
                Then label a namespace with weft.dev/inject=enabled and restart its pods. See docs/install.md.";
    let text = format!("{}{}", yaml::wrapped(head), text(&objects(&Values::default())));
    checked_in::compare(&[("weft.yaml", text)], checked_in::OURS);
}

#[test]
fn the_control_plane_understands_its_command_line() {
    for values in [Values::default(), ha(), all()] {
        let deployment = of_kind::<Deployment>(&values, "Deployment").remove(0);
        let container = deployment.spec.expect("spec").template.spec.expect("spec").containers.remove(0);
        let arguments = container.args.expect("arguments");
        let line = ["weft-control-plane".to_owned()].into_iter().chain(arguments);
        let config = Config::try_parse_from(line).expect("a command line of ours");
        config.check().expect("one with which it starts");
        let crate::config::Listen::Address(api) = config.api_listen else { panic!("an address") };
        assert!(api.ip().is_loopback() || config.auth.api_tokens.is_some(), "{api} asks nobody");
        let files = [config.auth.api_tokens, config.auth.oidc.oidc_client_secret_file];
        for file in files.into_iter().flatten() {
            let mounts = container.volume_mounts.iter().flatten();
            let mounted = mounts.filter(|mount| file.parent() == Some(Path::new(&mount.mount_path)));
            assert_eq!(mounted.count(), 1, "{}", file.display());
        }
        let command = Config::command();
        let known: HashSet<_> =
            command.get_arguments().filter_map(|one| one.get_env()?.to_str().map(str::to_owned)).collect();
        for variable in container.env.into_iter().flatten() {
            assert!(known.contains(&variable.name), "{} is no variable of ours", variable.name);
        }
    }
}

#[test]
fn ports_of_services_and_policies_are_ports_of_the_pod() {
    let deployment = of_kind::<Deployment>(&Values::default(), "Deployment").remove(0);
    let spec = deployment.spec.expect("spec");
    let (labels, container) = (spec.template.metadata.and_then(|meta| meta.labels), spec.template.spec);
    let ports = container.expect("spec").containers.remove(0).ports.expect("ports");
    let names: HashSet<String> = ports.into_iter().filter_map(|port| port.name).collect();
    let labels = labels.expect("labels");
    for service in of_kind::<Service>(&Values::default(), "Service") {
        let spec = service.spec.expect("spec");
        for (key, value) in spec.selector.expect("a selector") {
            assert!(key == "weft.dev/leader" || labels.get(&key) == Some(&value), "{key}");
        }
        for port in spec.ports.expect("ports") {
            let target = serde_json::to_value(port.target_port).expect("JSON");
            assert!(names.contains(target.as_str().expect("a name")), "{target}");
        }
    }
    for policy in of_kind::<NetworkPolicy>(&Values::default(), "NetworkPolicy") {
        for port in policy
            .spec
            .expect("spec")
            .ingress
            .into_iter()
            .flatten()
            .flat_map(|rule| rule.ports.unwrap_or_default())
        {
            let port = serde_json::to_value(port.port).expect("JSON");
            assert!(names.contains(port.as_str().expect("a name")), "{port}");
        }
    }
}

#[test]
fn three_replicas_come_with_what_keeps_them_apart() {
    let kinds = |values: &Values| {
        objects(values).iter().map(|one| format!("{:?}", one.value["kind"])).collect::<Vec<_>>()
    };
    assert!(!kinds(&Values::default()).iter().any(|kind| kind.contains("PodDisruptionBudget")));
    assert!(kinds(&ha()).iter().any(|kind| kind.contains("PodDisruptionBudget")));
    let deployment = of_kind::<Deployment>(&ha(), "Deployment").remove(0).spec.expect("spec");
    assert_eq!(deployment.replicas, Some(3));
    assert!(deployment.template.spec.expect("spec").affinity.is_some());
}

#[test]
fn two_programs_never_write_one_history() {
    let spec = of_kind::<Deployment>(&all(), "Deployment").remove(0).spec.expect("spec");
    assert_eq!(
        (spec.replicas, spec.strategy.and_then(|how| how.type_).as_deref()),
        (Some(1), Some("Recreate"))
    );
}

#[test]
fn every_object_is_one_of_weft() {
    for object in objects(&ha()) {
        assert_eq!(
            object.value["metadata"]["labels"][PART_OF.0], PART_OF.1,
            "{:?}",
            object.value["metadata"]["name"]
        );
    }
}

#[test]
fn the_control_plane_passes_the_restricted_standard() {
    for values in [Values::default(), ha(), all()] {
        let deployment = of_kind::<Deployment>(&values, "Deployment").remove(0);
        let pod = deployment.spec.expect("spec").template.spec.expect("spec");
        assert_eq!(crate::pod_security::restricted(&pod), [""; 0]);
    }
}

/// Every YAML file below a directory, but templates of the chart and its own files.
fn manifests(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("chart") {
            manifests(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            found.push(path);
        }
    }
}

/// kubectl reads YAML 1.1, in which `yes` and `1_000` are no texts.
#[test]
fn what_yaml_1_1_would_not_take_for_a_text_is_written_so_that_it_does() {
    let words =
        ["y", "no", "On", "off", "~", "0o17", "1_000", "12:30:45", "2026-01-01", "<<", "true", "0644"];
    let data = words.map(|word| (word.to_owned(), word.to_owned()));
    let map = ConfigMap { data: Some(data.clone().into_iter().collect()), ..ConfigMap::default() };
    let text = yaml::document(&map);
    let read: ConfigMap = serde_yaml::from_str(&text).expect("YAML");
    assert_eq!(read.data.map(|data| data.into_iter().collect()), Some(HashMap::from(data)));
    for word in words {
        assert!(text.contains(&format!("\n  '{word}': '{word}'\n")), "{word}: {text}");
    }
    let mut files = Vec::new();
    manifests(&checked_in::directory(), &mut files);
    for file in files {
        let text = std::fs::read_to_string(&file).expect("text");
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = serde_yaml::Value::deserialize(document).expect("YAML");
            let written = crate::yaml::text(&object).expect("YAML");
            // As it stands there, but for comments.
            for line in written.lines() {
                assert!(text.contains(line), "{}: {line}", file.display());
            }
            assert_eq!(serde_yaml::from_str::<serde_yaml::Value>(&written).expect("YAML"), object);
        }
    }
}

#[test]
fn everything_in_k8s_is_objects_of_the_api() {
    let mut files = Vec::new();
    manifests(&checked_in::directory(), &mut files);
    assert!(files.len() >= 7, "{files:?}");
    for file in files {
        let text = std::fs::read_to_string(&file).expect("text");
        for document in serde_yaml::Deserializer::from_str(&text) {
            let object = serde_yaml::Value::deserialize(document).expect("YAML");
            let version = object["apiVersion"].as_str().unwrap_or_default();
            let read =
                if ["weft.dev/", "gateway.networking.k8s.io/"].iter().any(|group| version.starts_with(group))
                {
                    let text = serde_yaml::to_string(&object).expect("YAML");
                    match crate::resources::parse(&text).remove(0).content {
                        crate::resources::Content::Object(_) => Ok(()),
                        other => Err(format!("{other:?}")),
                    }
                } else {
                    yaml::typed(&object).map(drop).map_err(|error| error.to_string())
                };
            assert_eq!(read, Ok(()), "{}: {object:?}", file.display());
            if object["kind"] == "Deployment" {
                let pod = serde_yaml::from_value(object["spec"]["template"]["spec"].clone()).expect("a pod");
                assert_eq!(crate::pod_security::restricted(&pod), [""; 0], "{}", file.display());
            }
        }
    }
}
