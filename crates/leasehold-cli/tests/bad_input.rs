//! Bad input: a clear line, a code, no panic, no password.

use crate::support::{ended, files, leasehold, run_on, stderr};

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
        (&["--on", &on, "--ttl", "-1s", "k"], "-1"),
        (&["--on", &on, "--try", "--within", "1s", "k"], "cannot be used with"),
        (&["--on", "", "k"], "not a URL"),
        (&["--on", "ftp://ann:secret@host", "k"], "scheme that is not known"),
        (&["--on", "127.0.0.1:6379", "k"], "scheme that is not known"),
        (&["--on", "redis-sentinel://ann:secret@host", "k"], "this version does not have"),
        (&["--on", "file://host/x", "k"], "names a host"),
        (&["--on", "file:/dev/null", "k"], "/dev/null"),
        (&["--on", "redis://ann:secret@host:port", "k"], "the port of a host"),
        (&["--on", "redis://127.0.0.1/?nonsense=secret", "k"], "one of the options is not known"),
        #[cfg(not(feature = "redis-tls"))]
        (&["--on", "rediss://:secret@127.0.0.1", "k"], "feature `redis-tls`"),
    ];
    for (arguments, says) in table {
        let run = ended(leasehold().arg("run").args(*arguments).args(["--", "true"]));
        let text = stderr(&run);
        assert_eq!(run.status.code(), Some(64), "{text}");
        assert!(text.contains(says), "{says}: {text}");
        assert!(!text.contains("secret"), "{text}");
        assert!(text.len() < 1_000, "{text}");
    }
}

#[test]
fn awkward_names_are_names() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["/", "..", "{}", "a}b", "a\nb", "\u{1f512}", "x -- y", "%00", &"x".repeat(1024)] {
        let run = ended(&mut run_on(&files(&dir), &["--try", name], &["true"]));
        assert_eq!(run.status.code(), Some(0), "{name:?}: {}", stderr(&run));
    }
}

#[test]
fn a_server_that_is_down_is_69_on_one_line() {
    for arguments in [&["run", "k", "--", "true"][..], &["who", "k"], &["break", "k"], &["caps"]] {
        let run = ended(leasehold().env("LEASEHOLD_URL", "redis://:secret@127.0.0.1:1").args(arguments));
        let text = stderr(&run);
        assert_eq!(run.status.code(), Some(69), "{text}");
        assert!(text.starts_with("leasehold: ") && text.lines().count() == 1, "{text}");
        assert!(text.contains("127.0.0.1:1") && !text.contains("secret"), "{text}");
    }
}

#[test]
fn what_is_missing_on_the_command_line_is_64() {
    for arguments in [&["run", "k"][..], &["run"], &["who"], &["nonsense"], &["caps", "x"]] {
        assert_eq!(ended(leasehold().args(arguments)).status.code(), Some(64));
    }
    for arguments in [&["--help"][..], &["help", "run"], &["--version"]] {
        assert_eq!(ended(leasehold().args(arguments)).status.code(), Some(0));
    }
}
