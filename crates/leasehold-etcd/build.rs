//! Says what to do where `protoc` is missing. The driver needs it to build, and its own message comes late and is unclear;
//! this script has no dependencies, so that cargo runs it among the first.

use std::{env, path::PathBuf, process::Command};

fn main() {
    println!("cargo::rerun-if-env-changed=PROTOC");
    println!("cargo::rerun-if-env-changed=PATH");
    println!("cargo::rerun-if-changed=build.rs");
    // docs.rs and the like set this.
    if env::var_os("DOCS_RS").is_some() {
        return;
    }
    let named = env::var_os("PROTOC").map(PathBuf::from);
    let protoc = named.clone().unwrap_or_else(|| PathBuf::from("protoc"));
    let works = Command::new(&protoc).arg("--version").output().is_ok_and(|output| output.status.success());
    if works {
        return;
    }
    let found = match named {
        Some(path) => format!("PROTOC names `{}`, which cannot be run", path.display()),
        None => "`protoc` is not in PATH".into(),
    };
    println!(
        "cargo::error=leasehold-etcd needs the protobuf compiler to build, because its driver `etcd-client` does: {found}."
    );
    println!(
        "cargo::error=Install it (Debian and Ubuntu: apt install protobuf-compiler; Fedora: dnf install protobuf-compiler; \
         macOS: brew install protobuf), or set PROTOC to its path."
    );
}
