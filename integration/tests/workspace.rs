//! Properties of the workspace's manifests.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use serde_json::Value;

/// The crates of the backends.
const BACKENDS: [&str; 5] = [
    "leasehold-etcd",
    "leasehold-local",
    "leasehold-postgres",
    "leasehold-redis",
    "leasehold-zookeeper",
];

/// Returns the output of a cargo command.
fn cargo(arguments: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the workspace crates that each workspace crate depends on, without those for tests.
fn ours() -> BTreeMap<String, BTreeSet<String>> {
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--locked",
    ]))
    .unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let name_of = |package: &Value| package["name"].as_str().unwrap().to_owned();
    let names: BTreeSet<String> = packages.iter().map(name_of).collect();
    let of = |package: &Value| {
        let dependencies = package["dependencies"].as_array().unwrap().iter();
        let normal = dependencies.filter(|dependency| dependency["kind"].as_str() != Some("dev"));
        normal
            .map(name_of)
            .filter(|name| names.contains(name))
            .collect()
    };
    packages
        .iter()
        .map(|package| (name_of(package), of(package)))
        .collect()
}

#[test]
fn no_backend_depends_on_a_sibling() {
    let ours = ours();
    for backend in BACKENDS {
        let expected = BTreeSet::from(["leasehold-core".to_owned()]);
        assert_eq!(ours[backend], expected, "{backend}");
    }
}

#[test]
fn core_knows_no_backend() {
    assert_eq!(ours()["leasehold-core"], BTreeSet::new());
}

#[test]
fn every_backend_is_listed_here() {
    let not_backends = [
        "benchmark",
        "cli",
        "core",
        "examples",
        "fuzz",
        "integration",
        "sqlite-example",
        "testkit",
    ]
    .map(|name| format!("leasehold-{name}"));
    let backends: BTreeSet<String> = ours()
        .into_keys()
        .filter(|name| name.starts_with("leasehold-") && !not_backends.contains(name))
        .collect();
    assert_eq!(backends, BACKENDS.map(String::from).into());
}

/// Counts workspace crates and their dependencies, because a lock should add little to its driver.
#[test]
fn the_facade_with_redis_adds_few_crates_to_the_driver() {
    let tree = cargo(&[
        "tree",
        "--package=leasehold",
        "--no-default-features",
        "--features=redis",
        "--edges=normal,build",
        "--prefix=depth",
        "--no-dedupe",
        "--locked",
    ]);
    let (mut all, mut driver) = (BTreeSet::new(), BTreeSet::new());
    // The depth of the driver, while the lines are its dependencies.
    let mut within: Option<usize> = None;
    for line in tree.lines() {
        let digits = line.chars().take_while(char::is_ascii_digit).count();
        let (depth, rest) = line.split_at(digits);
        let depth: usize = depth.parse().unwrap();
        let package: String = rest.split(' ').take(2).collect::<Vec<_>>().join(" ");
        if within.is_some_and(|driver| depth <= driver) {
            within = None;
        }
        if within.is_none() && package.starts_with("redis ") {
            within = Some(depth);
        }
        if within.is_some() {
            driver.insert(package.clone());
        }
        all.insert(package);
    }
    assert!(driver.len() > 10, "the driver was not found in {tree}");
    let added: Vec<_> = all.difference(&driver).collect();
    assert!(added.len() <= 15, "{} crates: {added:?}", added.len());
}

/// In the workspace's root, cargo unifies the features of all default members. An example that is
/// built without `-p` would therefore have the drivers that the command needs.
#[test]
fn the_readmes_first_example_builds_no_driver_of_a_server() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let command = readme
        .lines()
        .find(|line| line.starts_with("$ cargo run"))
        .unwrap();
    let words: Vec<_> = command.split(' ').collect();
    let at = words.iter().position(|word| *word == "-p").unwrap();

    let tree = cargo(&[
        "tree",
        "--package",
        words[at + 1],
        "--prefix=none",
        "--locked",
    ]);
    let built: BTreeSet<&str> = tree
        .lines()
        .filter_map(|line| line.split(' ').next())
        .collect();
    assert!(built.contains("leasehold-local"), "{built:?}");
    for driver in [
        "redis",
        "etcd-client",
        "zookeeper-client",
        "sqlx",
        "rusqlite",
    ] {
        assert!(!built.contains(driver), "{driver} is built: {command}");
    }
    assert!(built.len() < 80, "{} crates: {built:?}", built.len());
}

#[test]
fn a_release_leaves_out_exactly_the_unpublished_crates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--locked",
    ]))
    .unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let unpublished: BTreeSet<&str> = packages
        .filter(|package| package["publish"].is_array())
        .map(|package| package["name"].as_str().unwrap())
        .collect();
    for file in [".ci/release", "RELEASING.md"] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        let excluded: BTreeSet<&str> = text
            .split("--exclude ")
            .skip(1)
            .map(|rest| rest.split([' ', ')', '\n']).next().unwrap())
            .collect();
        assert_eq!(excluded, unpublished, "{file}");
    }
}

/// Published crates need this metadata for the registry, its readers and docs.rs.
#[test]
fn published_crates_have_complete_metadata() {
    let metadata: Value = serde_json::from_str(&cargo(&[
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--locked",
    ]))
    .unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    let published: Vec<_> = packages
        .filter(|package| package["publish"].is_null())
        .collect();
    assert!(published.len() > BACKENDS.len());
    for package in published {
        let name = package["name"].as_str().unwrap();
        for field in [
            "description",
            "license",
            "repository",
            "readme",
            "rust_version",
        ] {
            assert!(package[field].is_string(), "{name} has no {field}");
        }
        for field in ["keywords", "categories"] {
            let listed = package[field].as_array().unwrap();
            assert!(
                (1..=5).contains(&listed.len()),
                "{name} has {field} {listed:?}"
            );
        }
        assert_eq!(
            package["metadata"]["docs"]["rs"]["all-features"], true,
            "{name}"
        );
        let folder = Path::new(package["manifest_path"].as_str().unwrap())
            .parent()
            .unwrap();
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(folder.join(licence).is_file(), "{name} has no {licence}");
        }
    }
}
