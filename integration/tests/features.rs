//! The sets of features that `.ci/run` builds are enough: no other set can differ from them.
//!
//! It builds every package with none of its features, with each alone, and with all. An error of
//! another set needs a place that depends on two features at once: one `cfg` with both of them, or
//! one inside of the other.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use serde_json::Value;

type Features = BTreeSet<String>;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the output of a cargo command.
fn cargo(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO"))
        .args(arguments)
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the features of each published package, each with the features that it enables.
fn packages() -> BTreeMap<String, BTreeMap<String, Features>> {
    let metadata = cargo(&["metadata", "--no-deps", "--format-version=1", "--locked"]);
    let metadata: Value = serde_json::from_str(&metadata).unwrap();
    let packages = metadata["packages"].as_array().unwrap().iter();
    packages
        .filter(|package| package["publish"].is_null())
        .map(|package| {
            let name = package["name"].as_str().unwrap().to_owned();
            let features = serde_json::from_value(package["features"].clone()).unwrap();
            (name, features)
        })
        .collect()
}

/// Returns the lines of `.ci/run`, trimmed, that begin with `start`.
fn ci_lines(start: &str) -> Vec<String> {
    let script = fs::read_to_string(root().join(".ci/run")).unwrap();
    let lines = script.lines().map(str::trim);
    lines
        .filter(|line| line.starts_with(start))
        .map(str::to_owned)
        .collect()
}

/// Collects the sets of features of which a place in the code depends on all.
#[derive(Default)]
struct Together(BTreeSet<Features>);

impl Together {
    /// Reads a file of a module that is compiled if `around` says so, and the modules below it.
    fn file(&mut self, file: &Path, around: &Features) {
        let text =
            fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        let tokens: TokenStream = text.parse().unwrap();
        let named = ["lib.rs", "main.rs", "mod.rs"]
            .iter()
            .any(|name| file.ends_with(name));
        let folder = if named {
            file.parent().unwrap().to_owned()
        } else {
            file.with_extension("")
        };
        self.tokens(tokens, &folder, around);
    }

    /// Reads the items, statements, arms or fields of one pair of brackets.
    fn tokens(&mut self, tokens: TokenStream, folder: &Path, around: &Features) {
        let mut around = around.clone();
        // The features of what is being read. A comma ends it, unless it is an item.
        let mut own = around.clone();
        let mut item = false;
        let (mut before, mut last) = (String::new(), String::new());
        for token in tokens {
            let text = token.to_string();
            match token {
                TokenTree::Group(group) if group.delimiter() == Delimiter::Bracket => {
                    let mut named = condition(&group.stream());
                    if before == "#" && last == "!" {
                        around.append(&mut named);
                        own.clone_from(&around);
                    } else if last == "#" {
                        own.append(&mut named);
                    }
                    self.0.insert(own.clone());
                    self.tokens(group.stream(), folder, &own);
                }
                TokenTree::Group(group) if before == "cfg" && last == "!" => {
                    let mut within = features(&group.stream());
                    within.extend(own.iter().cloned());
                    self.0.insert(within);
                }
                TokenTree::Group(group) => {
                    self.tokens(group.stream(), folder, &own);
                    if group.delimiter() == Delimiter::Brace {
                        own.clone_from(&around);
                        item = false;
                    }
                }
                TokenTree::Punct(punct) => {
                    let end = punct.as_char();
                    if end == ';' && before == "mod" {
                        let nested = folder.join(&last).join("mod.rs");
                        let file = if nested.exists() {
                            nested
                        } else {
                            folder.join(&last).with_extension("rs")
                        };
                        self.file(&file, &own);
                    }
                    if end == ';' || (end == ',' && !item) {
                        own.clone_from(&around);
                        item = false;
                    }
                }
                TokenTree::Ident(_) => {
                    item |= matches!(text.as_str(), "enum" | "fn" | "impl" | "struct" | "trait");
                }
                TokenTree::Literal(_) => {}
            }
            before = std::mem::replace(&mut last, text);
        }
    }
}

/// Returns the features in an attribute, if it is a `cfg` or a `cfg_attr`.
fn condition(attribute: &TokenStream) -> Features {
    match attribute.clone().into_iter().next() {
        Some(name) if name.to_string().starts_with("cfg") => features(attribute),
        _ => Features::new(),
    }
}

/// Returns the features in a condition.
fn features(tokens: &TokenStream) -> Features {
    let text = tokens.to_string();
    let after = text.split("feature").skip(1);
    let names = after.filter_map(|rest| rest.trim_start().strip_prefix('='));
    names
        .filter_map(|rest| rest.split('"').nth(1))
        .map(str::to_owned)
        .collect()
}

/// Adds to `enabled` what `feature` enables in its own package.
fn enable(feature: &str, all: &BTreeMap<String, Features>, enabled: &mut Features) {
    for implied in all.get(feature).into_iter().flatten() {
        if all.contains_key(implied) && enabled.insert(implied.clone()) {
            enable(implied, all, enabled);
        }
    }
}

#[test]
fn ci_builds_every_set_of_features_that_can_differ() {
    let mut found = BTreeSet::new();
    let mut conditions = 0;
    for (package, declared) in packages() {
        let mut together = Together::default();
        for start in ["lib.rs", "main.rs"] {
            let file = root().join("crates").join(&package).join("src").join(start);
            if file.exists() {
                together.file(&file, &Features::new());
            }
        }
        together.0.retain(|set| !set.is_empty());
        conditions += together.0.len();
        for set in together.0 {
            let mut implied = Features::new();
            for feature in &set {
                enable(feature, &declared, &mut implied);
            }
            let set: Vec<String> = set.difference(&implied).cloned().collect();
            if set.len() > 1 {
                found.insert(format!("\"{package} {}\"", set.join(",")));
            }
        }
    }
    assert!(conditions > 10, "only {conditions} conditions were found");
    let script = fs::read_to_string(root().join(".ci/run")).unwrap();
    let (_, listed) = script.split_once("FEATURES_TOGETHER=(\n").unwrap();
    let (listed, _) = listed.split_once("\n)").unwrap();
    let listed: BTreeSet<String> = listed.lines().map(|line| line.trim().to_owned()).collect();
    assert_eq!(listed, found);
}

#[test]
fn features_inside_of_others_are_found_together() {
    let folder = tempfile::tempdir().unwrap();
    let code = r#"
        #[cfg(feature = "a")] const ALONE: () = ();
        #[cfg(all(feature = "b", not(feature = "c")))] const BESIDE: () = ();
        #[cfg(feature = "d")] fn around() { if cfg!(feature = "e") {} }
        #[cfg(feature = "f")] mod file;
        fn arms() { match 1 { #[cfg(feature = "g")] 1 => {} #[cfg(feature = "h")] _ => (), } }
    "#;
    let below = r#"#![cfg(feature = "i")]"#;
    fs::write(folder.path().join("lib.rs"), code).unwrap();
    fs::write(folder.path().join("file.rs"), below).unwrap();
    let mut together = Together::default();
    together.file(&folder.path().join("lib.rs"), &Features::new());
    let found: Vec<String> = together
        .0
        .into_iter()
        .filter(|set| set.len() > 1)
        .map(|set| set.into_iter().collect())
        .collect();
    assert_eq!(found, ["bc", "de", "fi"]);
}

/// The features of TLS that bring the same crypto provider are tested in one build.
#[test]
fn ci_tests_tls_with_each_crypto_provider_alone() {
    let mut brought: BTreeMap<Features, Features> = BTreeMap::new();
    for feature in packages()["leasehold"].keys() {
        if !feature.ends_with("-tls") {
            continue;
        }
        let tree = cargo(&[
            "tree",
            "--package=leasehold",
            "--no-default-features",
            &format!("--features={feature}"),
            "--edges=normal,features",
            "--invert=rustls",
            "--depth=1",
            "--prefix=none",
            "--locked",
        ]);
        let providers: Features = ["ring", "aws_lc_rs"]
            .into_iter()
            .filter(|provider| tree.contains(&format!("rustls feature \"{provider}\"")))
            .map(str::to_owned)
            .collect();
        assert_eq!(providers.len(), 1, "{feature}: {tree}");
        brought
            .entry(providers)
            .or_default()
            .insert(feature.clone());
    }
    assert_eq!(brought.len(), 2, "{brought:?}");
    let tested: BTreeSet<Features> = ci_lines("cargo test --package leasehold --test tls")
        .iter()
        .map(|line| {
            let (_, features) = line.split_once("--features ").unwrap();
            features.split(',').map(str::to_owned).collect()
        })
        .collect();
    assert_eq!(tested, brought.into_values().collect());
}
