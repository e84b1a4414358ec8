//! Connections by URL.

use leasehold::{ErrorKind, connect};

#[cfg(feature = "local")]
mod local {
    use super::*;

    #[tokio::test]
    async fn two_memory_clients_know_nothing_of_each_other() {
        let (a, b) = (
            connect("memory:").await.unwrap(),
            connect("memory:").await.unwrap(),
        );
        let _a = a.mutex("k").try_lock().await.unwrap().unwrap();
        let _b = b.mutex("k").try_lock().await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn memory_clients_share_locks_by_name_only() {
        let (a, b) = (
            connect("memory:one").await.unwrap(),
            connect("memory:one").await.unwrap(),
        );
        let held = a.mutex("k").try_lock().await.unwrap().unwrap();
        assert!(b.mutex("k").try_lock().await.unwrap().is_none());
        let _other = connect("memory:two")
            .await
            .unwrap()
            .mutex("k")
            .try_lock()
            .await
            .unwrap()
            .unwrap();
        let first = held.fencing_token();
        held.release().await.unwrap();
        a.close().await.unwrap();
        let later = b.mutex("k").try_lock().await.unwrap().unwrap();
        assert!(later.fencing_token() > first);
    }

    #[tokio::test]
    async fn clients_of_one_directory_share_their_locks() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("file:{}", dir.path().join("new").display());
        let (a, b) = (connect(&url).await.unwrap(), connect(&url).await.unwrap());
        let _held = a.mutex("k").try_lock().await.unwrap().unwrap();
        assert!(b.mutex("k").try_lock().await.unwrap().is_none());
        assert!(dir.path().join("new").is_dir());
    }

    #[tokio::test]
    async fn a_file_is_no_directory() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = connect(&format!("file:{}", file.path().display()))
            .await
            .unwrap_err();
        assert!(!error.is_retryable(), "{error}");
        assert!(
            error.to_string().contains(&*file.path().to_string_lossy()),
            "{error}"
        );
    }
}

#[cfg(not(feature = "local"))]
#[tokio::test]
async fn local_schemes_name_their_feature() {
    for url in ["memory:", "memory:x", "file:", "file:/tmp"] {
        let error = connect(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `local`"), "{error}");
    }
}

#[cfg(not(feature = "redis"))]
#[tokio::test]
async fn redis_schemes_name_their_feature_and_no_password() {
    for url in [
        "redis://:secret@127.0.0.1",
        "redis+unix:///run/redis.sock?pass=secret",
    ] {
        let error = connect(url).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("feature `redis`"), "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}

#[cfg(not(feature = "redis-tls"))]
#[tokio::test]
async fn tls_names_its_feature() {
    let error = connect("rediss://127.0.0.1").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unsupported);
    assert!(error.to_string().contains("feature `redis-tls`"), "{error}");
}

#[cfg(feature = "redis")]
mod redis {
    use super::*;

    #[tokio::test]
    async fn a_malformed_url_is_named_without_its_password() {
        for url in [
            "redis://",
            "redis://ann:secret@",
            "redis://:secret@host:port",
            "redis://:secret@127.0.0.1/x",
            "redis://127.0.0.1/?pass=secret",
            "redis+unix://",
        ] {
            let error = connect(url).await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{url}: {error}");
            let text = format!("{error} {error:?}");
            assert!(
                text.contains("`redis") && !text.contains("secret"),
                "{text}"
            );
        }
    }

    #[tokio::test]
    async fn a_server_that_is_down_is_unavailable() {
        // Nothing listens on port 1, and no test runs there.
        let error = connect("redis://:secret@127.0.0.1:1").await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(!format!("{error} {error:?}").contains("secret"));
    }
}

#[tokio::test]
async fn planned_and_unknown_schemes_are_told_apart() {
    assert_eq!(
        connect("redis-sentinel://h1,h2").await.unwrap_err().kind(),
        ErrorKind::Unsupported
    );
    assert_eq!(
        connect("http://h").await.unwrap_err().kind(),
        ErrorKind::InvalidInput
    );
}
