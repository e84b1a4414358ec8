//! Bad input: a clear line, a code, no panic, no password.

use crate::support::{ended, files, leasehold, run_on, stderr, stdout};

mod support;

#[test]
fn names_and_durations_and_urls_are_refused_with_64() {
    let dir = tempfile::tempdir().unwrap();
    let (on, long) = (files(&dir), "x".repeat(65_536));
    let table: &[(&[&str], &str)] = &[
        (&["--on", &on, ""], "empty"),
        (&["--on", &on, &long], "65536 bytes"),
        (&["--on", &on, "--ttl", "0s", "k"], "zero"),
        (&["--on", &on, "--ttl", "1us", "k"], "whole milliseconds"),
        (&["--on", &on, "--ttl", "400days", "k"], "too long"),
        (&["--on", &on, "--ttl", "30", "k"], "time unit"),
        (
            &["--on", &on, "--ttl", "soon", "k"],
            "as in 500ms, 30s or 5m",
        ),
        (
            &["--on", &on, "--within", "soon", "k"],
            "as in 500ms, 30s or 5m",
        ),
        (&["--on", &on, "--ttl", "-1s", "k"], "-1"),
        (
            &["--on", &on, "--try", "--within", "1s", "k"],
            "cannot be used with",
        ),
        (&["--on", "", "k"], "not a URL"),
        (
            &["--on", "ftp://ann:secret@host", "k"],
            "scheme that is not known",
        ),
        (&["--on", "127.0.0.1:6379", "k"], "scheme that is not known"),
        (
            &["--on", "redis-sentinel://ann:secret@host", "k"],
            "this version does not have",
        ),
        (&["--on", "file://host/x", "k"], "names a host"),
        (&["--on", "file:/dev/null", "k"], "/dev/null"),
        (&["--on", "memory:", "k"], "exclude no other"),
        (&["--on", "Memory:shop", "k"], "exclude no other"),
        (&["--on", "file:locks", "k"], "$PWD"),
        (&["--on", "file:~/locks", "k"], "$HOME"),
        (&["--on", "file:/tmp", "k"], "shared=true"),
        (&["--on", "file:/tmp?share=true", "k"], "shared=true"),
        (
            &["--on", "redis://ann:secret@host:port", "k"],
            "the port of a host",
        ),
        (&["--on", "redis:host", "k"], "no `://`"),
        (
            &["--on", "redis://127.0.0.1/?nonsense=secret", "k"],
            "one of the options is not known",
        ),
        #[cfg(not(feature = "redis-tls"))]
        (
            &["--on", "rediss://:secret@127.0.0.1", "k"],
            "cargo install leasehold-cli --features redis-tls",
        ),
        #[cfg(not(feature = "etcd"))]
        (
            &["--on", "etcd://:secret@127.0.0.1", "k"],
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
fn awkward_names_are_names() {
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
        let run = ended(&mut run_on(&files(&dir), &["--try", name], &["true"]));
        assert_eq!(run.status.code(), Some(0), "{name:?}: {}", stderr(&run));
    }
}

#[test]
fn a_name_may_begin_with_a_dash() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["-n", "--", "--try", "-"] {
        let mut run = leasehold();
        let run = ended(run.args([
            "run",
            "--on",
            &files(&dir),
            "--",
            name,
            "--",
            "printenv",
            "LEASEHOLD_KEY",
        ]));
        assert_eq!(run.status.code(), Some(0), "{name:?}: {}", stderr(&run));
        assert_eq!(stdout(&run), format!("{name}\n"));
        let who = ended(leasehold().args(["who", "--on", &files(&dir), "--", name]));
        assert_eq!(who.status.code(), Some(1), "{name:?}: {}", stderr(&who));
    }
    // What the error about an unknown option advises works.
    let run = ended(leasehold().args(["run", "--on", &files(&dir), "-n", "--", "true"]));
    assert_eq!(run.status.code(), Some(64));
    assert!(stderr(&run).contains("use '-- -n'"), "{}", stderr(&run));
}

#[test]
fn a_program_without_a_double_dash_before_it_gets_a_hint() {
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

/// A URL that stands where none belongs may have a password in it.
#[test]
fn the_password_in_a_misplaced_url_is_not_shown() {
    const URL: &str = "redis://ann:Se=cret@host/?a=b";
    for words in [
        &["who", "k", URL][..],
        &["run", "k", URL, "--", "true"],
        &[URL],
        &["run", "k", &format!("--try={URL}"), "--", "true"],
        &["run", "k", "--ttl", URL, "--", "true"],
        &["run", "k", &format!("--within={URL}"), "--", "true"],
        &["caps", URL],
    ] {
        let run = ended(leasehold().args(words));
        assert_eq!(run.status.code(), Some(64), "{words:?}: {}", stderr(&run));
        assert!(
            stderr(&run).contains("redis://***"),
            "{words:?}: {}",
            stderr(&run)
        );
        assert!(
            stderr(&run).contains("comes after `--on`"),
            "{words:?}: {}",
            stderr(&run)
        );
        assert!(
            !stderr(&run).contains("cret"),
            "{words:?}: {}",
            stderr(&run)
        );
    }
    // No advice about what is in order.
    let run = ended(leasehold().args(["who", "--on", URL, "run", "--nonsense"]));
    assert!(!stderr(&run).contains("comes after"), "{}", stderr(&run));
}

#[cfg(feature = "redlock")]
#[test]
fn what_is_no_quorum_is_not_provisioned() {
    for url in ["file:", "redis://ann:secret@127.0.0.1:1", "nonsense", ""] {
        let run = ended(leasehold().env("LEASEHOLD_URL", url).arg("provision"));
        assert_eq!(run.status.code(), Some(64), "{}", stderr(&run));
        assert!(
            stderr(&run).contains("--on redlock://HOST,HOST,HOST"),
            "{}",
            stderr(&run)
        );
        assert!(!stderr(&run).contains("secret"), "{}", stderr(&run));
    }
}

#[test]
fn memory_excludes_nobody_and_only_its_capabilities_are_shown() {
    for arguments in [
        &["run", "k", "--", "true"][..],
        &["who", "k"],
        &["break", "k"],
    ] {
        let run = ended(leasehold().env("LEASEHOLD_URL", "memory:x").args(arguments));
        assert_eq!(run.status.code(), Some(64), "{}", stderr(&run));
    }
    assert!(
        ended(leasehold().args(["caps", "--on", "memory:"]))
            .status
            .success()
    );
}

#[test]
fn the_help_lists_every_scheme_and_what_is_not_compiled_in() {
    let help = stdout(&ended(leasehold().arg("--help")));
    // The error names those that the library knows.
    let known = stderr(&ended(leasehold().args(["who", "--on", "nonsense:", "k"])));
    let (_, known) = known.split_once("known are ").unwrap();
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
        let caps = ended(leasehold().args([
            "caps",
            "--on",
            &format!("{scheme}://127.0.0.1:1,127.0.0.1:2/?no=1"),
        ]));
        assert!(
            !stderr(&caps).contains("scheme that is not known"),
            "{}",
            stderr(&caps)
        );
    }
    assert_eq!(
        help.contains("--features etcd)") || help.contains("--features etcd`"),
        !cfg!(feature = "etcd"),
        "{help}"
    );
}

#[test]
fn a_server_that_is_down_is_69_on_one_line() {
    for arguments in [
        &["run", "k", "--", "true"][..],
        &["who", "k"],
        &["break", "k"],
        &["caps"],
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
fn what_is_missing_on_the_command_line_is_64() {
    for arguments in [
        &["run", "k"][..],
        &["run"],
        &["who"],
        &["nonsense"],
        &["caps", "x"],
    ] {
        assert_eq!(ended(leasehold().args(arguments)).status.code(), Some(64));
    }
    for arguments in [&["--help"][..], &["help", "run"], &["--version"]] {
        assert_eq!(ended(leasehold().args(arguments)).status.code(), Some(0));
    }
}

/// Whatever it cannot open: an error on one line, and no panic.
#[cfg(unix)]
#[test]
fn too_few_descriptors_are_an_error_and_no_panic() {
    let dir = tempfile::tempdir().unwrap();
    let on = files(&dir);
    let tool = leasehold().get_program().to_owned();
    for limit in 5..20 {
        let mut shell = std::process::Command::new("sh");
        shell
            .args(["-c", &format!("ulimit -n {limit}; exec \"$0\" \"$@\"")])
            .arg(&tool);
        let run = ended(shell.args(["run", "--try", "--on", &on, "k", "--", "true"]));
        let (code, text) = (run.status.code(), stderr(&run));
        assert!(matches!(code, Some(0 | 69)), "{limit}: {code:?}: {text}");
        assert!(!text.contains("panicked"), "{limit}: {text}");
        assert!(
            code == Some(0) || text.contains("ulimit -n"),
            "{limit}: {text}"
        );
    }
}
