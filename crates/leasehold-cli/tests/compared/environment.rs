//! Descriptors and environment.

use std::path::Path;

use crate::{
    case::{Case, different, same},
    support::{ended, stderr, stdout},
};

#[test]
fn program_inherits_the_lock_descriptor() {
    let seen = |case: &Case| {
        let said = ended(&mut case.run(&["sh", "-c", "readlink /proc/$$/fd/*"]));
        stdout(&said)
            .lines()
            .filter(|line| line.ends_with("/k.lock"))
            .count()
    };
    same(seen, 1);
}

#[test]
fn other_descriptors_pass_through() {
    let seen = |case: &Case| {
        let said = case.script("exec 9>nine; $TOOL sh -c 'echo nine >&9'; cat nine");
        stdout(&said)
    };
    same(seen, String::from("nine\n"));
}

#[test]
fn closed_standard_input_becomes_dev_null() {
    let seen = |case: &Case| {
        let said = case.script("$TOOL sh -c 'readlink /proc/$$/fd/0' <&-");
        Path::new(stdout(&said).trim())
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .to_owned()
    };
    different(seen, String::from("k.lock"), String::from("null"));
}

#[test]
fn standard_streams_pass_through() {
    let seen = |case: &Case| {
        let said = case.script("echo in | $TOOL sh -c 'cat; echo err >&2'");
        (stdout(&said), stderr(&said))
    };
    same(seen, (String::from("in\n"), String::from("err\n")));
}

#[test]
fn broken_pipe_ends_the_program() {
    let seen = |case: &Case| {
        let said = case.script("{ $TOOL yes; echo $? >&2; } | head -n 1");
        (stdout(&said), stderr(&said))
    };
    same(seen, (String::from("y\n"), String::from("141\n")));
}

#[test]
fn limits_directory_and_environment_pass_through() {
    let seen = |case: &Case| {
        let show = "sh -c 'umask; nice; ulimit -n; pwd; echo $A'";
        let said = case.script(&format!(
            "umask 027; ulimit -n 99; export A=b; {show} >bare; nice -n 3 $TOOL {show} >under; nice -n 3 {show} | \
             diff - under"
        ));
        (said.status.code(), stdout(&said))
    };
    same(seen, (Some(0), String::new()));
}
