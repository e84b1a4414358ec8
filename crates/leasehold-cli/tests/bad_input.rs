//! Errors for bad input: one clear line, an exit code, no panic and no password.

use crate::support::{ended, files, leasehold, run_on, stderr, stdout};

mod support;

#[test]
fn bad_names_durations_and_urls_exit_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let (on, long) = (files(&dir), "x".repeat(65_536));
    let table: &[(&[&str], &str)] = &[
        (&["--url", &on, ""], "empty"),
        (&["--url", &on, &long], "65536 bytes"),
        (&["--url", &on, "--ttl", "0s", "k"], "zero"),
        (&["--url", &on, "--ttl", "1us", "k"], "whole milliseconds"),
        (&["--url", &on, "--ttl", "400days", "k"], "too long"),
        (&["--url", &on, "--ttl", "30", "k"], "time unit"),
        (
            &["--url", &on, "--ttl", "soon", "k"],
            "as in 500ms, 30s or 5m",
        ),
        (
            &["--url", &on, "--wait", "soon", "k"],
            "as in 500ms, 30s or 5m",
        ),
        (&["--url", &on, "--ttl", "-1s", "k"], "-1"),
        (
            &["--url", &on, "--no-wait", "--wait", "1s", "k"],
            "cannot be used with",
        ),
        (&["--url", "", "k"], "the URL after `--url` is empty"),
        (&["--url", "redis", "k"], "not a URL"),
        (&["--url", "ftp://ann:secret@host", "k"], "unknown scheme"),
        (&["--url", "127.0.0.1:6379", "k"], "unknown scheme"),
        (
            &["--url", "redis-sentinel://ann:secret@host", "k"],
            "this program knows file:, redis:",
        ),
        (&["--url", "file://host/x", "k"], "has a host"),
        (&["--url", "file:/dev/null", "k"], "/dev/null"),
        (&["--url", "memory:", "k"], "exclude no other"),
        (&["--url", "Memory:shop", "k"], "exclude no other"),
        (&["--url", "file:locks", "k"], "$PWD"),
        (&["--url", "file:~/locks", "k"], "$HOME"),
        (&["--url", "file:/tmp", "k"], "shared=true"),
        (&["--url", "file:/tmp?share=true", "k"], "shared=true"),
        (
            &["--url", "redis://ann:secret@host:port", "k"],
            "the port of a host",
        ),
        (&["--url", "redis:host", "k"], "no `://`"),
        (
            &["--url", "redis://127.0.0.1/?nonsense=secret", "k"],
            "one of the options is unknown",
        ),
        #[cfg(not(feature = "redis-tls"))]
        (
            &["--url", "rediss://:secret@127.0.0.1", "k"],
            "cargo install leasehold-cli --features redis-tls",
        ),
        #[cfg(not(feature = "etcd"))]
        (
            &["--url", "etcd://:secret@127.0.0.1", "k"],
            "cargo install leasehold-cli --features etcd",
        ),
    ];
    for (arguments, says) in table {
        let run = ended(leasehold().arg("run").args(*arguments).args(["--", "true"]));
        let text = stderr(&run);
        let code = if text.contains("can be written by") {
            77
        } else {
            64
        };
        assert_eq!(run.status.code(), Some(code), "{text}");
        assert!(text.contains(says), "{says}: {text}");
        assert!(!text.contains("Cargo.toml"), "{text}");
        assert!(!text.contains("secret"), "{text}");
        assert!(text.len() < 1_000, "{text}");
    }
}

#[test]
fn unusual_names_are_accepted() {
    let dir = tempfile::tempdir().unwrap();
    for name in [
        "/",
        "..",
        "{}",
        "a}b",
        "a\nb",
        "\u{1f512}",
        "x -- y",
        "%00",
        &"x".repeat(1024),
    ] {
        let run = ended(&mut run_on(&files(&dir), &["--no-wait", name], &["true"]));
        assert_eq!(run.status.code(), Some(0), "{name:?}: {}", stderr(&run));
    }
}

#[test]
fn name_may_begin_with_a_dash() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["-n", "--", "--no-wait", "-"] {
        let mut run = leasehold();
        let run = ended(run.args([
            "run",
            "--url",
            &files(&dir),
            "--",
            name,
            "--",
            "printenv",
            "LEASEHOLD_KEY",
        ]));
        assert_eq!(run.status.code(), Some(0), "{name:?}: {}", stderr(&run));
        assert_eq!(stdout(&run), format!("{name}\n"));
        let status = ended(leasehold().args(["status", "--url", &files(&dir), "--", name]));
        assert_eq!(
            status.status.code(),
            Some(1),
            "{name:?}: {}",
            stderr(&status)
        );
    }
    // The error about an unknown option gives the same advice.
    let run = ended(leasehold().args(["run", "--url", &files(&dir), "-x", "--", "true"]));
    assert_eq!(run.status.code(), Some(64));
    assert!(stderr(&run).contains("use '-- -x'"), "{}", stderr(&run));
}

#[test]
fn program_without_a_double_dash_gets_a_hint() {
    for words in [
        &["nightly", "sleep", "1"][..],
        &["nightly", "ls", "-la"],
        &["nightly", "ls", "--color=no"],
        &["nightly"],
        &["--", "nightly", "sleep", "1"],
        &["--", "true"],
        &["--", "nightly", "--"],
        &[],
    ] {
        let run = ended(leasehold().arg("run").args(words));
        assert_eq!(run.status.code(), Some(64), "{words:?}: {}", stderr(&run));
        assert!(
            stderr(&run).contains("leasehold run NAME -- COMMAND"),
            "{words:?}: {}",
            stderr(&run)
        );
    }
}

#[test]
fn wrong_variable_is_named_in_the_error() {
    for (url, says) in [
        ("", "is empty"),
        ("cache", "is not a URL"),
        ("ftp://ann:secret@h", "unknown scheme `ftp:`"),
    ] {
        for verb in [
            &["status", "k"][..],
            &["leader", "k"],
            &["leader", "--watch", "k"],
        ] {
            let run = ended(leasehold().env("LEASEHOLD_URL", url).args(verb));
            let text = stderr(&run);
            assert_eq!(run.status.code(), Some(64), "{text}");
            assert!(
                text.contains("LEASEHOLD_URL") && text.contains(says),
                "{text}"
            );
            assert!(!text.contains("secret"), "{text}");
        }
    }
}

/// A URL in the wrong place may contain a password.
#[test]
fn password_in_a_misplaced_url_is_not_shown() {
    const URL: &str = "redis://ann:Se=cret@host/?a=b";
    for words in [
        &["status", "k", URL][..],
        &["run", "k", URL, "--", "true"],
        &[URL],
        &["run", "k", &format!("--no-wait={URL}"), "--", "true"],
        &["run", "k", "--ttl", URL, "--", "true"],
        &["run", "k", &format!("--wait={URL}"), "--", "true"],
        &["info", URL],
        &["status", URL, "k"],
        &["run", URL, "k", "--", "true"],
    ] {
        let run = ended(leasehold().args(words));
        assert_eq!(run.status.code(), Some(64), "{words:?}: {}", stderr(&run));
        let is_name = words[1..].first() == Some(&URL) && words.len() > 2;
        assert!(
            is_name || stderr(&run).contains("redis://***"),
            "{words:?}: {}",
            stderr(&run)
        );
        assert!(
            stderr(&run).contains("comes after `--url`"),
            "{words:?}: {}",
            stderr(&run)
        );
        assert!(
            !stderr(&run).contains("cret"),
            "{words:?}: {}",
            stderr(&run)
        );
    }
    // A name may be anything, but a URL is likely to be a mistake.
    let dir = tempfile::tempdir().unwrap();
    let run = ended(leasehold().args(["status", "--url", &files(&dir), URL]));
    assert_eq!(run.status.code(), Some(1), "{}", stderr(&run));
    assert!(
        stderr(&run).contains("comes after `--url`") && !stderr(&run).contains("cret"),
        "{}",
        stderr(&run)
    );
    // A URL in the right place gets no advice.
    let run = ended(leasehold().args(["status", "--url", URL, "run", "--nonsense"]));
    assert!(!stderr(&run).contains("comes after"), "{}", stderr(&run));
}

#[test]
fn old_spelling_is_refused_and_the_new_one_is_named() {
    for (words, says) in [
        (
            &["run", "--try", "k", "--", "true"][..],
            "`--try` is called `--no-wait` now",
        ),
        (
            &["run", "--within=1s", "k", "--", "true"],
            "`--within` is called `--wait` now",
        ),
        (
            &["run", "--on", "file:", "k", "--", "true"],
            "`--on` is called `--url` now",
        ),
        (&["who", "k"], "`who` is called `status` now"),
        (&["break", "k"], "`break` is called `revoke` now"),
        (&["caps"], "`caps` is called `info` now"),
    ] {
        let run = ended(leasehold().args(words));
        assert_eq!(run.status.code(), Some(64), "{words:?}: {}", stderr(&run));
        assert!(stderr(&run).contains(says), "{words:?}: {}", stderr(&run));
    }
}

#[cfg(feature = "redlock")]
#[test]
fn only_a_quorum_is_initialized() {
    for url in ["file:", "redis://ann:secret@127.0.0.1:1", "nonsense", ""] {
        let run = ended(leasehold().env("LEASEHOLD_URL", url).arg("init"));
        assert_eq!(run.status.code(), Some(64), "{}", stderr(&run));
        assert!(
            stderr(&run).contains("--url redlock://HOST,HOST,HOST"),
            "{}",
            stderr(&run)
        );
        assert!(!stderr(&run).contains("secret"), "{}", stderr(&run));
    }
}

#[test]
fn memory_url_is_accepted_by_info_only() {
    for arguments in [
        &["run", "k", "--", "true"][..],
        &["run", "--value", "v", "k", "--", "true"],
        &["leader", "k"],
        &["leader", "--watch", "k"],
        &["status", "k"],
        &["revoke", "k"],
    ] {
        let run = ended(leasehold().env("LEASEHOLD_URL", "memory:x").args(arguments));
        assert_eq!(run.status.code(), Some(64), "{}", stderr(&run));
    }
    assert!(
        ended(leasehold().args(["info", "--url", "memory:"]))
            .status
            .success()
    );
}

#[test]
fn help_lists_every_scheme_and_missing_features() {
    let help = stdout(&ended(leasehold().arg("--help")));
    // The error lists the schemes that the library knows.
    let known = leasehold::file_options("nonsense:")
        .unwrap_err()
        .to_string();
    let (_, known) = known.split_once("supported URLs are ").unwrap();
    let schemes = known
        .split(", ")
        .filter_map(|url| url.trim().split_once(':'))
        .map(|(scheme, _)| scheme);
    let schemes: std::collections::BTreeSet<_> = schemes
        .chain(["valkey", "valkeys", "redlocks", "postgresql", "zk", "zks"])
        .collect();
    assert!(schemes.len() > 15, "{schemes:?}");
    for scheme in schemes {
        assert!(help.contains(&format!(" {scheme}:")), "{scheme}: {help}");
        let info = ended(leasehold().args([
            "info",
            "--url",
            &format!("{scheme}://127.0.0.1:1,127.0.0.1:2/?no=1"),
        ]));
        assert!(
            !stderr(&info).contains("unknown scheme"),
            "{}",
            stderr(&info)
        );
    }
    assert_eq!(
        help.contains("--features etcd)") || help.contains("--features etcd`"),
        !cfg!(feature = "etcd"),
        "{help}"
    );
}

#[test]
fn unreachable_server_exits_with_69_and_one_line() {
    for arguments in [
        &["run", "k", "--", "true"][..],
        &["run", "--value", "v", "k", "--", "true"],
        &["leader", "k"],
        &["leader", "--watch", "k"],
        &["status", "k"],
        &["revoke", "k"],
        &["info"],
    ] {
        let run = ended(
            leasehold()
                .env("LEASEHOLD_URL", "redis://:secret@127.0.0.1:1")
                .args(arguments),
        );
        let text = stderr(&run);
        assert_eq!(run.status.code(), Some(69), "{text}");
        assert!(
            text.starts_with("leasehold: ") && text.lines().count() == 1,
            "{text}"
        );
        assert!(
            text.contains("127.0.0.1:1") && !text.contains("secret"),
            "{text}"
        );
    }
}

#[test]
fn incomplete_command_line_exits_with_64() {
    for arguments in [
        &["run", "k"][..],
        &["run"],
        &["status"],
        &["leader"],
        &["leader", "--watch"],
        &["nonsense"],
        &["info", "x"],
    ] {
        assert_eq!(ended(leasehold().args(arguments)).status.code(), Some(64));
    }
    for arguments in [&["--help"][..], &["help", "run"], &["--version"]] {
        assert_eq!(ended(leasehold().args(arguments)).status.code(), Some(0));
    }
}

/// Each missing descriptor is an error on one line.
#[cfg(unix)]
#[test]
fn too_few_descriptors_are_an_error_without_panic() {
    let dir = tempfile::tempdir().unwrap();
    let on = files(&dir);
    let tool = leasehold().get_program().to_owned();
    for limit in 5..20 {
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(&tool);
        let run = ended(shell.args(["run", "--no-wait", "--url", &on, "k", "--", "true"]));
        let (code, text) = (run.status.code(), stderr(&run));
        assert!(matches!(code, Some(0 | 69)), "{limit}: {code:?}: {text}");
        assert!(!text.contains("panicked"), "{limit}: {text}");
        assert!(
            code == Some(0) || text.contains("ulimit -n"),
            "{limit}: {text}"
        );
    }
}
