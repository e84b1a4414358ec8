//! TLS of every feature, beside that of all others that are compiled in.
//!
//! Two drivers may bring two crypto providers of rustls, and a driver that takes that of the
//! process then panics unless one was chosen. The first to connect chooses for all, so each URL has
//! a process of its own.
#![cfg(any(
    feature = "redis-tls",
    feature = "etcd-tls",
    feature = "postgres-tls",
    feature = "zookeeper-tls"
))]

use std::{env, fs, process::Command};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// Names the URL that this process connects to. `HOST` in it is replaced.
const URL: &str = "LEASEHOLD_TEST_TLS_URL";

/// Of an authority that has signed nothing.
const CA: &str = "-----BEGIN CERTIFICATE-----
MIIBeTCCAR+gAwIBAgIUZ2O7AsrKuIpn3Cvq7g0iNMb5X0swCgYIKoZIzj0EAwIw
ETEPMA0GA1UEAwwGbm9ib2R5MCAXDTI2MTEyOTEyMzQ0MVoYDzIxMjYxMTA1MTIz
NDQxWjARMQ8wDQYDVQQDDAZub2JvZHkwWTATBgcqhkjOPQIBBggqhkjOPQMBBwNC
AAQeZ1wEL+tLQ9TnFJVfXEzrP4FPkf9Kb+p2BL3h89dMA5+NHm8gOigZKcCT4aX2
Zj3Egv5QB0jU/qXCkzn75608o1MwUTAdBgNVHQ4EFgQUx5DQBcrm7fDrv3t2r+MS
reTMLjkwHwYDVR0jBBgwFoAUx5DQBcrm7fDrv3t2r+MSreTMLjkwDwYDVR0TAQH/
BAUwAwEB/zAKBggqhkjOPQQDAgNIADBFAiA8GpqskvKfKEcWVWdYUInkIuGypi7E
nsB7iqlsL3HcbwIhAJIsEjDuEcqdMGZY07RRGfPGcqxZaWBn5d0zNn+rW6um
-----END CERTIFICATE-----
";

fn urls(ca: &str) -> Vec<String> {
    let mut urls = Vec::new();
    if cfg!(feature = "redis-tls") {
        urls.extend([
            String::from("rediss://HOST/"),
            format!("rediss://HOST/?ca={ca}"),
        ]);
    }
    if cfg!(feature = "etcd-tls") {
        urls.extend([
            String::from("etcds://HOST/"),
            format!("etcds://HOST/?ca={ca}"),
        ]);
    }
    if cfg!(feature = "postgres-tls") {
        let modes = ["prefer", "require", "verify-ca", "verify-full"];
        urls.extend(modes.map(|mode| format!("postgres://u@HOST/d?sslmode={mode}")));
        urls.extend(
            modes.map(|mode| format!("postgres://u@HOST/d?sslmode={mode}&sslrootcert={ca}")),
        );
    }
    if cfg!(feature = "zookeeper-tls") {
        urls.push(format!("zookeepers://HOST/?ca={ca}"));
    }
    urls
}

/// The driver comes as far as the handshake, and fails there because nobody answers it: an error,
/// and no panic.
#[test]
fn no_combination_of_tls_features_panics() {
    if let Ok(url) = env::var(URL) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        return runtime.block_on(fails_to_connect(&url));
    }
    let folder = tempfile::tempdir().unwrap();
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, CA).unwrap();
    for url in urls(&ca.display().to_string()) {
        let mut itself = Command::new(env::current_exe().unwrap());
        itself
            .args([
                "no_combination_of_tls_features_panics",
                "--exact",
                "--nocapture",
            ])
            .env(URL, &url);
        let output = itself.output().unwrap();
        let text =
            String::from_utf8_lossy(&output.stderr) + String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && !text.contains("panicked"),
            "{url}: {text}"
        );
    }
}

async fn fails_to_connect(url: &str) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = url.replace("HOST", &server.local_addr().unwrap().to_string());
    let answers = async {
        loop {
            let (mut client, _) = server.accept().await.unwrap();
            // Its bytes are read first, so that it sees an end and no reset.
            let mut sent = [0; 1024];
            // `S` is how PostgreSQL accepts TLS.
            if client.read(&mut sent).await.is_ok() && client.write_all(b"S").await.is_ok() {
                drop(client.read(&mut sent).await);
            }
        }
    };
    tokio::select! {
        connected = leasehold::connect(&url) => drop(connected.expect_err("nobody speaks TLS there")),
        () = answers => {}
    }
}
