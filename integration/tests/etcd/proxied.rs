//! etcd's own gRPC proxy answers keep-alives itself, so no deadline can be based on them.

use std::{net::TcpStream, path::PathBuf, time::Duration};

use leasehold_core::ErrorKind;
use leasehold_etcd::EtcdBackend;
use leasehold_integration::server::{EtcdCluster, Process, later_etcd};

const PATIENCE: Duration = Duration::from_secs(60);

/// Starts `etcd grpc-proxy` in front of the cluster. Returns its process and address.
fn proxy_before(cluster: &EtcdCluster, program: PathBuf, advertised: &str) -> (Process, String) {
    let addr = format!("127.0.0.1:{}", leasehold_testkit::free_port().unwrap());
    let mut proxy = Process::new("etcd-proxy", program).unwrap();
    let server = cluster.at(0).addr().to_string();
    let options = [
        "grpc-proxy",
        "start",
        "--endpoints",
        &server,
        "--listen-addr",
        &addr,
        "--advertise-client-url",
        advertised,
        "--data-dir",
        "proxy",
    ];
    proxy.set_arguments(options);
    proxy
        .start(PATIENCE, || {
            TcpStream::connect(&addr)
                .map(drop)
                .map_err(|error| error.to_string())
        })
        .unwrap();
    (proxy, addr)
}

#[tokio::test(flavor = "multi_thread")]
async fn behind_the_grpc_proxy_nothing_is_promised() {
    let cluster = EtcdCluster::start().unwrap();
    for program in [PathBuf::from("etcd"), later_etcd().unwrap()] {
        // The proxy lists the members itself, or forwards the request to the server.
        for advertised in ["127.0.0.1:23790", ""] {
            let (_proxy, addr) = proxy_before(&cluster, program.clone(), advertised);
            let error = EtcdBackend::connect(&format!("etcd://{addr}/"))
                .await
                .unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported, "{error:?}");
            assert!(error.to_string().contains("gRPC proxy"), "{error}");
        }
    }
}
