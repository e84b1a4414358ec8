//! The list of cases is complete, and the runner reports skipped and hanging cases.

use std::{collections::BTreeSet, fs, path::Path};

use leasehold_testkit::{FixtureFn, Outcome, cases, mutants::ModelFixture, run_all};

#[test]
fn every_case_is_listed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cases");
    let mut written = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        let concept = path.file_stem().unwrap().to_str().unwrap().to_owned();
        for line in fs::read_to_string(&path).unwrap().lines() {
            if let Some(rest) = line.strip_prefix("pub async fn ") {
                written.insert((concept.clone(), rest.split('(').next().unwrap().to_owned()));
            }
        }
    }
    let listed: BTreeSet<_> = cases::all()
        .into_iter()
        .map(|case| (case.concept.to_owned(), case.name.to_owned()))
        .collect();
    assert_eq!(written, listed);
}

#[test]
fn every_case_is_in_the_readme() {
    let readme =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    for case in cases::all() {
        assert!(
            readme.contains(&format!("`{}`", case.name)),
            "the README does not list {}",
            case.name
        );
    }
}

#[tokio::test(start_paused = true)]
async fn skipped_case_is_reported_with_its_reason() {
    use leasehold_testkit::BackendFixture;
    let model = std::sync::Arc::new(ModelFixture::healthy());
    let fixture = FixtureFn::new(move || {
        let model = std::sync::Arc::clone(&model);
        async move { model.open().await }
    })
    .without("readers_share", "on purpose");
    let report = run_all(&fixture, |case| case.name == "readers_share").await;
    assert_eq!(
        report.cases[0].outcome,
        Outcome::NotRun("on purpose".into())
    );
    assert_eq!(report.to_string(), "not run: readers_share: on purpose\n");
}

#[tokio::test(start_paused = true)]
async fn hanging_case_fails() {
    struct Hangs(ModelFixture);
    #[async_trait::async_trait]
    impl leasehold_testkit::BackendFixture for Hangs {
        async fn open(&self) -> std::sync::Arc<dyn leasehold_core::backend::LockBackend> {
            self.0.open().await
        }
        fn limit(&self) -> std::time::Duration {
            std::time::Duration::from_micros(1)
        }
    }
    let report = run_all(&Hangs(ModelFixture::healthy()), |case| {
        case.name == "renewal_extends"
    })
    .await;
    assert_eq!(report.failed(), ["renewal_extends"]);
}
