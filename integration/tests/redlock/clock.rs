//! Servers whose wall clocks are changed.

use std::{fs, path::Path, process::Command};

use leasehold_integration::{
    proxy::Proxy,
    server::{RedisServer, RedlockServers},
};
use tokio::task::block_in_place;

use crate::support::{
    PATIENT, TTL, client, client_at, millis, not_granted, ttl, url_through, ways,
};

/// A preload library that moves a program's wall clock ahead by the number of seconds in a file.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long ahead(void) {
    char text[32] = "";
    int file = open(AHEAD, O_RDONLY);
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) < 0) text[0] = 0;
    close(file);
    return atol(text);
}
int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int outcome = real(now, zone);
    now->tv_sec += ahead();
    return outcome;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int outcome = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += ahead();
    return outcome;
}
time_t time(time_t *place) {
    struct timeval now;
    gettimeofday(&now, 0);
    if (place) *place = now.tv_sec;
    return now.tv_sec;
}
"#;

/// Starts a server whose wall clock follows `folder`/ahead.
fn with_clock_of(folder: &Path) -> RedisServer {
    let (source, library, program) = (
        folder.join("shim.c"),
        folder.join("shim.so"),
        folder.join("redis-server"),
    );
    fs::write(&source, SHIM).unwrap();
    let ahead = format!("-DAHEAD=\"{}\"", folder.join("ahead").display());
    let built = Command::new("cc")
        .args(["-shared", "-fPIC", &ahead, "-o"])
        .arg(&library)
        .arg(&source)
        .arg("-ldl")
        .status();
    assert!(built.expect("the tests require a C compiler").success());
    let library = library.display();
    fs::write(
        &program,
        format!("#!/bin/sh\nLD_PRELOAD={library} exec redis-server \"$@\"\n"),
    )
    .unwrap();
    let mut executable = fs::metadata(&program).unwrap().permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut executable, 0o755);
    fs::set_permissions(&program, executable).unwrap();
    RedisServer::builder().program(program).start().unwrap()
}

fn set_ahead(folder: &Path, seconds: u64) {
    // Renamed, so that the file is never read half-written.
    fs::write(folder.join("next"), seconds.to_string()).unwrap();
    fs::rename(folder.join("next"), folder.join("ahead")).unwrap();
}

/// A holds at 1, 2 and 3. Server 3 loses its data, and its clock is set ahead by an hour during its
/// start or soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_that_is_set_shortens_no_grace() {
    let folder = tempfile::tempdir().unwrap();
    let mut servers =
        RedlockServers::start(4, leasehold_integration::server::Persistence::None).unwrap();
    servers.servers.insert(2, with_clock_of(folder.path()));
    servers.provision(ttl(TTL)).await.unwrap();
    let ways = ways(&servers);
    ways[3..].iter().for_each(Proxy::cut);
    let one = client_at(&url_through(&ways, PATIENT)).await;
    let held = one.mutex("k").lock().await.unwrap();
    let other = client(&servers, PATIENT).await;
    block_in_place(|| servers.servers[2].restart().unwrap());
    for ahead in [0, 3_600, 7_200] {
        set_ahead(folder.path(), ahead);
        // The quorum checks its servers every second.
        for _ in 0..12 {
            not_granted(&other, "k").await;
            assert!(held.is_held());
            tokio::time::sleep(millis(250)).await;
        }
    }
    // The clock shows the intended time.
    let mut connection = servers.servers[2].connection().unwrap();
    let (shown, _): (u64, u64) = redis::cmd("TIME").query(&mut connection).unwrap();
    let (right, _): (u64, u64) = redis::cmd("TIME")
        .query(&mut servers.servers[0].connection().unwrap())
        .unwrap();
    assert!(
        shown > right + 7_000,
        "the clock shows {shown}, the time is {right}"
    );
}
