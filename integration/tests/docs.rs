//! Statements in `docs` about the code and the tests must be true.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Adds the names of all functions in the Rust files below a folder.
fn functions(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            functions(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(path).unwrap();
            for (_, after) in text
                .match_indices("fn ")
                .map(|(at, _)| text.split_at(at + 3))
            {
                into.insert(
                    after
                        .chars()
                        .take_while(|c| c.is_alphanumeric() || *c == '_')
                        .collect(),
                );
            }
        }
    }
}

/// Returns the paragraphs and list items of a page.
fn statements(page: &str) -> Vec<String> {
    let mut statements: Vec<String> = Vec::new();
    let mut fresh = true;
    for line in page.lines() {
        if line.trim().is_empty() || line.starts_with('#') {
            fresh = true;
        } else if fresh || line.starts_with("- ") {
            statements.push(line.to_owned());
            fresh = false;
        } else if let Some(statement) = statements.last_mut() {
            statement.push(' ');
            statement.push_str(line.trim());
        }
    }
    statements
}

/// Returns the names in backticks after `Tests:`, up to the end of that sentence.
fn named_tests(statement: &str) -> Vec<String> {
    let lists = statement
        .split("Tests: ")
        .skip(1)
        .map(|list| list.split(". ").next().unwrap_or(list));
    lists
        .flat_map(|list| list.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_guarantee_names_tests_that_exist() {
    let mut known = BTreeSet::new();
    for folder in ["crates", "integration", "examples"] {
        functions(&root().join(folder), &mut known);
    }
    let page = fs::read_to_string(root().join("docs/guarantees.md")).unwrap();
    let mut guarantees = 0;
    for statement in statements(&page) {
        let claims = statement.starts_with("- ") || statement.starts_with("**");
        let tests = named_tests(&statement);
        assert!(
            !claims || !tests.is_empty(),
            "no test is named for this statement: {statement}"
        );
        for test in &tests {
            assert!(
                known.contains(test),
                "test `{test}` does not exist, but is named for: {statement}"
            );
        }
        guarantees += usize::from(claims);
    }
    assert!(
        guarantees > 40,
        "the page was not parsed correctly: {guarantees}"
    );
}

/// Returns the quoted metric names in `text`.
fn metrics(text: &str, quote: char) -> BTreeSet<String> {
    let quoted = text
        .split(quote)
        .filter(|part| part.starts_with("leasehold_") && !part.contains(char::is_whitespace));
    quoted.map(str::to_owned).collect()
}

#[test]
fn the_manual_lists_every_metric_and_no_other() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let measured = metrics(&read("crates/leasehold-core/src/telemetry.rs"), '"');
    let manual = read("crates/leasehold/src/lib.rs");
    let rows = manual
        .lines()
        .filter_map(|line| line.strip_prefix("//! | `leasehold_"));
    let listed: BTreeSet<String> = rows
        .map(|row| format!("leasehold_{}", row.split('`').next().unwrap_or_default()))
        .collect();
    assert_eq!(listed, measured);
    assert!(
        measured.len() > 8,
        "the metrics were not parsed correctly: {measured:?}"
    );
    for page in ["crates/leasehold/src/lib.rs", "docs/redlock.md"] {
        let unknown: Vec<_> = metrics(&read(page), '`')
            .into_iter()
            .filter(|name| !measured.contains(name))
            .collect();
        assert!(unknown.is_empty(), "{page} names {unknown:?}");
    }
}

/// Returns the pages in the git index.
fn pages() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "*.md"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(
        listed.status.success(),
        "{}",
        String::from_utf8_lossy(&listed.stderr)
    );
    let names = String::from_utf8(listed.stdout).unwrap();
    names
        .split_terminator('\0')
        .map(|name| root().join(name))
        .collect()
}

/// Returns the names of environment variables of the project in `text`.
fn variables(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_uppercase() || c == '_';
    let after = text.split("\"LEASEHOLD_").skip(1);
    let names = after
        .filter_map(|rest| rest.split_once('"'))
        .map(|(name, _)| name);
    names
        .filter(|name| !name.is_empty() && name.chars().all(is_part))
        .map(|name| format!("LEASEHOLD_{name}"))
        .collect()
}

/// Adds the variables in the Rust files below `folder`.
fn variables_below(folder: &Path, into: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            variables_below(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.append(&mut variables(&fs::read_to_string(path).unwrap()));
        }
    }
}

#[test]
fn every_variable_of_the_tests_is_documented() {
    let mut used = BTreeSet::new();
    for folder in ["benchmark", "crates", "integration"] {
        variables_below(&root().join(folder), &mut used);
    }
    // Variables of the command, and variables that tests set for their child processes.
    used.retain(|name| {
        ![
            "LEASEHOLD_ATTEMPT",
            "LEASEHOLD_KEY",
            "LEASEHOLD_KEYS",
            "LEASEHOLD_OCCURRENCE",
            "LEASEHOLD_TOKEN",
            "LEASEHOLD_URL",
        ]
        .contains(&name.as_str())
    });
    used.retain(|name| {
        !name.starts_with("LEASEHOLD_TEST_") && !name.starts_with("LEASEHOLD_PEER_")
    });
    assert!(used.len() > 8, "too few variables were found: {used:?}");

    let page = fs::read_to_string(root().join("integration/README.md")).unwrap();
    let listed: BTreeSet<String> = page
        .split('`')
        .skip(1)
        .step_by(2)
        .filter(|name| name.starts_with("LEASEHOLD_"))
        .map(str::to_owned)
        .collect();
    assert_eq!(listed, used);
}

/// Links to files of this repository must not be broken.
#[test]
fn links_between_pages_lead_to_files() {
    let pages = pages();
    assert!(pages.len() > 15, "too few pages were found: {pages:?}");
    for page in pages {
        let text =
            fs::read_to_string(&page).unwrap_or_else(|error| panic!("{}: {error}", page.display()));
        for link in text
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split(')').next())
        {
            // Pages that are also rustdoc link to items.
            if link.starts_with("http") || link.starts_with('#') || link.contains("::") {
                continue;
            }
            let target = page.parent().unwrap().join(link.split('#').next().unwrap());
            assert!(
                target.exists(),
                "{} links to {link}, which is not there",
                page.display()
            );
        }
    }
}
