//! TLS to a real server with real certificates.

use std::path::Path;

use crate::support::{Server, granted, request};
use leasehold_core::ErrorKind;
use leasehold_redis::RedisBackend;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

/// Creates a CA and a certificate that it signed for this host name, as files in `folder`.
fn certificates(folder: &Path, host: &str) {
    let ca_key = KeyPair::generate().unwrap();
    let mut ca = CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // A certificate that has its issuer's name looks self-signed to the server.
    ca.distinguished_name
        .push(DnType::CommonName, format!("CA of {}", folder.display()));
    let ca_certificate = ca.self_signed(&ca_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let issuer = Issuer::new(ca, ca_key);
    let certificate = CertificateParams::new(vec![host.to_owned()])
        .unwrap()
        .signed_by(&key, &issuer)
        .unwrap();
    for (name, pem) in [
        ("ca.pem", ca_certificate.pem()),
        ("cert.pem", certificate.pem()),
        ("key.pem", key.serialize_pem()),
    ] {
        std::fs::write(folder.join(name), pem).unwrap();
    }
}

fn tls_server(folder: &Path, port: u16) -> Server {
    tls_server_that_asks(folder, port, "no")
}

/// Starts a server with TLS. `ask` says whether clients need a certificate.
fn tls_server_that_asks(folder: &Path, port: u16, ask: &str) -> Server {
    let file = |name: &str| folder.join(name).to_string_lossy().into_owned();
    Server::with(&[
        "--tls-port",
        &port.to_string(),
        "--tls-auth-clients",
        ask,
        "--tls-cert-file",
        &file("cert.pem"),
        "--tls-key-file",
        &file("key.pem"),
        "--tls-ca-cert-file",
        &file("ca.pem"),
    ])
}

#[tokio::test]
async fn tls_works_without_own_provider_and_refuses_wrong_certificate() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path(), "localhost");
    let port = leasehold_testkit::free_port().unwrap();
    let _server = tls_server(folder.path(), port);
    let ca = folder.path().join("ca.pem");
    let backend = RedisBackend::connect(&format!("rediss://localhost:{port}/?ca={}", ca.display()))
        .await
        .unwrap();
    granted(&backend, request("k"))
        .await
        .release()
        .await
        .unwrap();
    assert_eq!(backend.to_string(), format!("rediss://localhost:{port}/0"));

    // An unknown CA, another CA than the given one, and another host name.
    let other = tempfile::tempdir().unwrap();
    certificates(other.path(), "localhost");
    let other_ca = other.path().join("ca.pem");
    for url in [
        format!("rediss://localhost:{port}/"),
        format!("rediss://localhost:{port}/?ca={}", other_ca.display()),
        format!("rediss://127.0.0.1:{port}/?ca={}", ca.display()),
    ] {
        let error = RedisBackend::connect(&url).await.expect_err(&url);
        assert_eq!(error.kind(), ErrorKind::Denied, "{url}: {error}");
        assert!(error.to_string().contains("ca="), "{error}");
    }
}

#[tokio::test]
async fn client_certificate_is_sent_and_its_refusal_is_reported() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(folder.path(), "localhost");
    certificates(other.path(), "localhost");
    let port = leasehold_testkit::free_port().unwrap();
    let _server = tls_server_that_asks(folder.path(), port, "yes");
    let ca = format!(
        "rediss://localhost:{port}/?ca={}",
        folder.path().join("ca.pem").display()
    );
    let with = |folder: &Path| {
        let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
        format!("{ca}&cert={}&key={}", cert.display(), key.display())
    };
    let backend = RedisBackend::connect(&with(folder.path())).await.unwrap();
    granted(&backend, request("k"))
        .await
        .release()
        .await
        .unwrap();
    let quorum = leasehold_redis::redlock(&with(folder.path()).replace("rediss:", "redlocks:"))
        .await
        .unwrap();
    assert!(quorum.nodes()[0].problem.is_none(), "{:?}", quorum.nodes());
    // No certificate, and one of a CA that the server does not trust.
    for (url, reason) in [(ca.clone(), "ertificate"), (with(other.path()), "CA")] {
        let error = RedisBackend::connect(&url).await.expect_err(&url);
        assert_eq!(error.kind(), ErrorKind::Denied, "{url}: {error}");
        assert!(
            error.to_string().contains("cert=") && error.to_string().contains(reason),
            "{error}"
        );
    }
    let error = RedisBackend::connect(&format!("{ca}&cert=/nowhere.pem"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("belong together"), "{error}");
}

/// Each error names what is wrong with the certificate.
#[tokio::test]
async fn a_refused_certificate_gives_its_reason() {
    let (folder, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(folder.path(), "localhost");
    certificates(other.path(), "localhost");
    let port = leasehold_testkit::free_port().unwrap();
    let _server = tls_server(folder.path(), port);
    let url = |host: &str, folder: &Path| {
        format!(
            "rediss://{host}:{port}/?ca={}",
            folder.join("ca.pem").display()
        )
    };
    for (url, reasons) in [
        (
            url("localhost", other.path()),
            ["UnknownIssuer", "BadSignature"],
        ),
        (
            url("127.0.0.1", folder.path()),
            ["not valid for name", "NotValidForName"],
        ),
    ] {
        let text = RedisBackend::connect(&url)
            .await
            .expect_err(&url)
            .to_string();
        assert!(reasons.iter().any(|reason| text.contains(reason)), "{text}");
    }
}

#[tokio::test]
async fn a_ca_file_that_is_none_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("missing.pem");
    let error = RedisBackend::connect(&format!("rediss://localhost/?ca={}", missing.display()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
    assert!(error.to_string().contains("missing.pem"), "{error}");
    let empty = folder.path().join("empty.pem");
    std::fs::write(
        &empty,
        "-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n",
    )
    .unwrap();
    let error = RedisBackend::connect(&format!("rediss://localhost/?ca={}", empty.display()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput, "{error}");
}
