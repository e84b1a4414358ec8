//! TLS with certificates of a private authority.

use leasehold_core::ErrorKind;
use leasehold_etcd::EtcdBackend;
use leasehold_integration::{certificates::Certificates, server::EtcdCluster};
use tempfile::TempDir;

use crate::support::{client, free};

#[tokio::test(flavor = "multi_thread")]
async fn only_the_right_certificates_on_both_sides_connect() {
    let folders = [(); 3].map(|()| TempDir::new().unwrap());
    let right = Certificates::generate(folders[0].path()).unwrap();
    let other = Certificates::generate(folders[1].path()).unwrap();
    let cluster = EtcdCluster::builder().tls(&right).start().unwrap();
    let port = cluster.at(0).addr().port();
    let url = |host: &str, ca: &Certificates, own: Option<&Certificates>| {
        let own = own.map_or_else(String::new, |own| {
            format!(
                "&cert={}&key={}",
                own.certificate().display(),
                own.key().display()
            )
        });
        format!("etcds://{host}:{port}/?ca={}{own}", ca.ca().display())
    };
    for host in ["127.0.0.1", "localhost"] {
        let client = client(&url(host, &right, Some(&right))).await;
        let waiting = client.clone();
        let guard = client.mutex("k").lock().await.unwrap();
        let waiter = tokio::spawn(async move { waiting.mutex("k").lock().await.unwrap() });
        free(guard).await;
        free(waiter.await.unwrap()).await;
        client.close().await.unwrap();
    }

    // An authority that did not sign the server's certificate; no client certificate; a client
    // certificate of another authority.
    for (url, says) in [
        (url("127.0.0.1", &other, Some(&right)), "?ca="),
        (url("127.0.0.1", &right, None), "?cert="),
        (url("127.0.0.1", &right, Some(&other)), "?cert="),
    ] {
        // The server's alert may be lost when the connection ends, but not in every attempt.
        let mut told = None;
        for _ in 0..50 {
            let error = EtcdBackend::connect(&url).await.unwrap_err();
            if error.kind() == ErrorKind::Denied {
                told = Some(error.to_string());
                break;
            }
            assert!(error.is_retryable(), "{url}: {error:?}");
        }
        assert!(
            told.as_ref().is_some_and(|told| told.contains(says)),
            "{url}: {told:?}"
        );
    }
    // A valid certificate for another host.
    let elsewhere = Certificates::generate_for(folders[2].path(), &["elsewhere.example"]).unwrap();
    let stranger = EtcdCluster::builder().tls(&elsewhere).start().unwrap();
    let (ca, own) = (elsewhere.ca(), (elsewhere.certificate(), elsewhere.key()));
    let options = format!(
        "ca={}&cert={}&key={}",
        ca.display(),
        own.0.display(),
        own.1.display()
    );
    let error = EtcdBackend::connect(&format!("etcds://{}/?{options}", stranger.at(0).addr()))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied, "{error}");

    // A client without TLS gets an error and does not hang.
    let plain = EtcdBackend::connect(&format!("etcd://127.0.0.1:{port}/"))
        .await
        .unwrap_err();
    assert!(
        plain.is_retryable() || plain.kind() == ErrorKind::UnexpectedResponse,
        "{plain:?}"
    );
}
