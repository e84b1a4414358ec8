//! The output of `leader`, `status`, `revoke` and `info`.
#![cfg(target_os = "linux")]

use crate::support::{end, ended, files, leasehold, run_on, signal, started, stderr, stdout};

mod support;

#[test]
fn info_shows_the_guarantees_and_the_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let table = ended(leasehold().args(["info", "--url", &files(&dir)]));
    assert!(table.status.success(), "{}", stderr(&table));
    assert!(
        stdout(&table).contains(dir.path().to_str().unwrap()),
        "{}",
        stdout(&table)
    );
    assert!(stdout(&table).contains("to 366 days"), "{}", stdout(&table));
    let json = ended(leasehold().args(["info", "--json", "--url", &files(&dir)]));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["backend"], "file");
    assert_eq!(json["exclusive"], true);
    assert_eq!(json["expiry"], "process_death");
}

#[test]
fn info_shows_which_faults_records_survive() {
    let table = ended(leasehold().args(["info", "--url", "memory:"]));
    let row = "records beside locks";
    let shown = stdout(&table);
    let line = shown.lines().find(|line| line.contains(row));
    assert!(
        line.is_some_and(|line| line.contains("until the backend loses its data")),
        "{shown}"
    );
    let json = ended(leasehold().args(["info", "--json", "--url", "memory:"]));
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["records"], "until_data_loss");
}

#[test]
fn no_directory_is_created_to_look_at_locks() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("a/b");
    let url = format!("file:{}", dir.display());
    for (verb, code) in [
        (&["status", "k"][..], 1),
        (&["status", "--json", "k"], 1),
        (&["leader", "k"], 1),
        (&["leader", "--json", "k"], 1),
        (&["revoke", "k"], 1),
        (&["revoke", "--json", "k"], 1),
        (&["info"], 69),
    ] {
        let output = ended(leasehold().env("LEASEHOLD_URL", &url).args(verb));
        assert_eq!(output.status.code(), Some(code), "{}", stderr(&output));
        assert!(
            stderr(&output).contains(&format!("{} does not exist", dir.display())),
            "{verb:?}: {}",
            stderr(&output)
        );
        if verb.contains(&"--json") {
            serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap();
        }
        assert!(support::is_empty(parent.path()), "{verb:?}");
    }
}

#[test]
fn revocation_of_a_file_lock_is_refused_on_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let (run, _) = started(&mut run_on(
        &files(&dir),
        &["k"],
        &["sh", "-c", "echo; exec sleep 60"],
    ));
    for options in [&[][..], &["--now"]] {
        let refused = ended(
            leasehold()
                .args(["revoke", "--url", &files(&dir), "k"])
                .args(options),
        );
        assert_eq!(refused.status.code(), Some(64), "{}", stderr(&refused));
        assert_eq!(stderr(&refused).lines().count(), 1, "{}", stderr(&refused));
    }
    end(run);
}

#[test]
fn status_shows_the_holder_on_files() {
    let dir = tempfile::tempdir().unwrap();
    let status = || ended(leasehold().args(["status", "--json", "--url", &files(&dir), "k"]));
    assert_eq!(status().status.code(), Some(1));
    let (run, _) = started(&mut run_on(
        &files(&dir),
        &["--label", "till 3", "k"],
        &["sh", "-c", "echo; exec sleep 60"],
    ));
    let seen = status();
    assert_eq!(seen.status.code(), Some(0), "{}", stderr(&seen));
    let seen: serde_json::Value = serde_json::from_slice(&seen.stdout).unwrap();
    assert_eq!(seen["holders"].as_array().unwrap().len(), 1);
    assert_eq!(seen["holders"][0]["label"], "till 3");
    end(run);
}

/// A name with characters that control a terminal, reorder or hide text, or end a line.
const HOSTILE: &str = "a\u{1b}[31m\u{7}\u{7f}\u{85}\u{9b}31m\u{200b}\u{2028}\u{202e}b\u{2066}\u{feff}\u{e0041}\r\nleasehold: c";

/// Asserts that standard output and standard error contain no such character.
fn assert_prints(what: &str, output: &std::process::Output) {
    for text in [&output.stdout, &output.stderr] {
        let text = std::str::from_utf8(text).unwrap_or_else(|error| panic!("{what}: {error}"));
        for line in text.split('\n') {
            assert_eq!(
                leasehold::backend::text::Escaped(line).to_string(),
                line,
                "{what}"
            );
        }
    }
    assert!(
        !stderr(output).lines().any(|line| line == "leasehold: c"),
        "{what}: a forged line"
    );
}

/// Starts a server that replies to every request with such an error, and returns its port.
#[cfg(feature = "redis")]
fn hostile_server() -> u16 {
    use std::io::{Read, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    // The server ends with the tests.
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut buffer = [0; 4096];
                let error = format!("-ERR {}\r\n", HOSTILE.replace(['\r', '\n'], " ")).repeat(8);
                while stream.read(&mut buffer).is_ok_and(|len| len > 0)
                    && stream.write_all(error.as_bytes()).is_ok()
                {}
            });
        }
    });
    port
}

#[test]
fn everything_printed_is_escaped() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join(HOSTILE);
    let on_files = format!("file:{}", dir.display());
    let mut urls = vec![on_files.clone()];
    #[cfg(feature = "redis")]
    let redis = support::Redis::start(&[]);
    #[cfg(feature = "redis")]
    urls.extend([
        redis.url.clone(),
        format!("redis://127.0.0.1:{}", hostile_server()),
    ]);
    let pidfile = parent.path().join("program");
    let hold = format!("echo; sleep 60 & echo $! >{}; wait", pidfile.display());
    for url in &urls {
        let verbs: [&[&str]; 14] = [
            &["run", "--no-wait", HOSTILE, "--", HOSTILE],
            &[
                "run",
                "--no-wait",
                "-vv",
                "--label",
                HOSTILE,
                HOSTILE,
                "--",
                "true",
            ],
            &["run", "--wait", "1ms", HOSTILE, "--", "true"],
            &["run", "-n", "--value", HOSTILE, HOSTILE, "--", "true"],
            &[
                "run", "-n", "-vv", "--value", HOSTILE, "other", "--", "true",
            ],
            &["leader", HOSTILE],
            &["leader", "--json", HOSTILE],
            &["status", HOSTILE],
            &["status", "--json", HOSTILE],
            &["status", "-vv", HOSTILE],
            &["revoke", HOSTILE],
            &["revoke", "--json", HOSTILE],
            &["info"],
            &["info", "--json"],
        ];
        let is_server = url.ends_with("timeout=2s&connect-timeout=20s");
        for held in [false, true] {
            if held && !is_server && *url != on_files {
                continue;
            }
            let holder = held.then(|| {
                let options = ["--label", HOSTILE, "--value", HOSTILE, HOSTILE];
                started(&mut run_on(url, &options, &["sh", "-c", &hold])).0
            });
            for verb in verbs {
                let output = ended(leasehold().env("LEASEHOLD_URL", url).args(verb));
                assert_prints(&format!("{url:?} {verb:?}"), &output);
                if held && (verb.contains(&"status") || verb.contains(&"leader")) {
                    assert!(output.status.success(), "{}", stderr(&output));
                    assert!(
                        stdout(&output).contains("202e") || is_server,
                        "{}",
                        stdout(&output)
                    );
                }
                if verb.contains(&"--json") && output.status.success() {
                    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
                    let label = &json["holders"][0]["label"];
                    assert!(
                        label.is_null()
                            || label.as_str().unwrap().contains('\u{202e}')
                            || is_server,
                        "{json}"
                    );
                    let value = &json["leader"]["value"];
                    assert!(value.is_null() || value == HOSTILE, "{json}");
                }
            }
            if let Some(holder) = holder {
                // The messages about a lost lock and about processes left behind.
                if *url == on_files {
                    for entry in std::fs::read_dir(&dir).unwrap() {
                        std::fs::remove_file(entry.unwrap().path()).unwrap();
                    }
                }
                signal(holder.id(), "TERM");
                assert_prints(
                    &format!("the holder on {url:?}"),
                    &holder.wait_with_output().unwrap(),
                );
            }
        }
    }
    let info = ["info", "--url"];
    for url in [
        HOSTILE,
        "file://\u{202e}\u{9b}/",
        "file:\u{202e}\u{9b}",
        "file:/\u{9b}?\u{202e}",
        "x\u{9b}:",
        "memory:\u{9b}",
    ] {
        assert_prints(&format!("{url:?}"), &ended(leasehold().args(info).arg(url)));
    }
    for words in [
        &[HOSTILE][..],
        &["run", HOSTILE, HOSTILE],
        &["run", "k", "--ttl", HOSTILE],
        &["info", &format!("--{HOSTILE}")],
    ] {
        let output = ended(leasehold().args(words));
        assert_eq!(output.status.code(), Some(64));
        assert_prints(&format!("{words:?}"), &output);
    }
    for verb in ["", "run", "leader", "status", "revoke", "info"] {
        let mut help = leasehold();
        let help = ended(help.args(verb.split_whitespace()).arg("--help"));
        assert_prints(verb, &help);
    }
}
