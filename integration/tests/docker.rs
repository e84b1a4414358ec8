//! `docker/compose.yaml` must match its documentation. The test reads both and needs no Docker.

use std::{collections::BTreeSet, fs, path::Path};

use serde_yaml_ng::Value;

const PROFILES: [(&str, usize); 5] = [
    ("redis", 1),
    ("redlock", 5),
    ("etcd", 3),
    ("zookeeper", 3),
    ("postgres", 1),
];

fn file(name: &str) -> String {
    fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../docker")
            .join(name),
    )
    .unwrap()
}

/// Returns the services, with shared parts merged into them.
fn services() -> Vec<(String, Value)> {
    let mut compose: Value = serde_yaml_ng::from_str(&file("compose.yaml")).unwrap();
    compose.apply_merge().unwrap();
    let services = compose["services"].as_mapping().unwrap();
    services
        .iter()
        .map(|(name, service)| (name.as_str().unwrap().to_owned(), service.clone()))
        .collect()
}

fn strings(value: &Value) -> BTreeSet<String> {
    value
        .as_sequence()
        .unwrap()
        .iter()
        .map(|text| text.as_str().unwrap().to_owned())
        .collect()
}

/// Returns the local ports of a profile.
fn ports_of(profile: &str) -> BTreeSet<u16> {
    let services = services();
    let chosen = services
        .iter()
        .filter(|(_, service)| strings(&service["profiles"]).contains(profile));
    let ports = chosen.flat_map(|(_, service)| strings(&service["ports"]));
    ports
        .map(|port| port.split(':').nth(1).unwrap().parse().unwrap())
        .collect()
}

/// Returns the ports in a text's URLs of this scheme, one set per URL.
fn ports_in(text: &str, scheme: &str) -> Vec<BTreeSet<u16>> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(&format!("{scheme}://")) {
        let url: String = text[at + scheme.len() + 3..]
            .chars()
            .take_while(|c| !" `\n".contains(*c))
            .collect();
        let hosts = url.split('/').next().unwrap();
        found.push(
            hosts
                .split(',')
                .map(|host| host.rsplit_once(':').unwrap().1.parse().unwrap())
                .collect(),
        );
    }
    found
}

#[test]
fn services_are_pinned_checked_and_on_loopback() {
    let services = services();
    assert_eq!(services.len(), 12);
    for (name, service) in services {
        let image = service["image"].as_str().unwrap();
        let tag = image
            .rsplit_once(':')
            .unwrap_or_else(|| panic!("{name}: {image} has no tag"))
            .1;
        assert!(
            tag.matches('.').count() >= 2,
            "{name}: {image} is not pinned to a version"
        );
        assert!(
            service["healthcheck"]["test"].is_sequence(),
            "{name} has no health check"
        );
        assert!(
            strings(&service["profiles"]).contains("all"),
            "{name} is not in `all`"
        );
        for port in strings(&service["ports"]) {
            assert!(port.starts_with("127.0.0.1:"), "{name} listens on {port}");
        }
    }
}

#[test]
fn every_profile_has_its_servers_on_ports_of_their_own() {
    for (profile, servers) in PROFILES {
        assert_eq!(ports_of(profile).len(), servers, "{profile}");
    }
    let all = services()
        .iter()
        .flat_map(|(_, service)| strings(&service["ports"]))
        .count();
    assert_eq!(ports_of("all").len(), all, "two services share a port");
}

#[test]
fn the_urls_in_the_page_reach_the_servers() {
    let page = file("README.md");
    for (profile, _) in PROFILES {
        let named = ports_in(&page, profile);
        assert!(
            named.len() >= 2,
            "the page does not show the URL and the test command of {profile}"
        );
        for ports in named {
            assert_eq!(ports, ports_of(profile), "{profile}");
        }
    }
}

#[test]
fn members_of_a_cluster_know_each_other() {
    for (name, service) in services() {
        let environment = &service["environment"];
        let listed = if name.starts_with("etcd") {
            &environment["ETCD_INITIAL_CLUSTER"]
        } else if name.starts_with("zookeeper") {
            &environment["ZOO_SERVERS"]
        } else {
            continue;
        };
        assert!(
            listed.as_str().unwrap().contains(&format!("{name}:2")),
            "{name} is not a member of {listed:?}"
        );
    }
}
