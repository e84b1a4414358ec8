//! What is traced: waits, holds, renewals and releases at debug, losses and misuse at warn.

mod support;

use std::{
    io::Write,
    sync::{Arc, Mutex},
    time::Duration,
};

use leasehold_core::Renewal;
use support::{secs, settle, simulated};
use tracing_subscriber::fmt::{MakeWriter, format::FmtSpan};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Records everything that this thread traces until the guard is dropped.
    fn record(&self) -> tracing::subscriber::DefaultGuard {
        tracing::subscriber::set_default(
            tracing_subscriber::fmt()
                .with_max_level(tracing::Level::DEBUG)
                .with_span_events(FmtSpan::CLOSE)
                .with_ansi(false)
                .with_writer(self.clone())
                .finish(),
        )
    }
}

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test(start_paused = true)]
async fn waits_holds_renewals_and_releases_are_traced_with_key_backend_token_and_outcome() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    let guard = client.mutex("item/42").with_ttl(secs(3)).lock().await.unwrap();
    let token = guard.fencing_token().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    guard.release().await.unwrap();
    settle().await;
    let text = log.text();
    let line = |needles: &[&str]| {
        assert!(
            text.lines().any(|line| needles.iter().all(|needle| line.contains(needle))),
            "no line with {needles:?} in:\n{text}"
        );
    };
    let token = format!("token={token}");
    line(&["DEBUG wait{", "backend=\"memory\"", "key=item/42", "outcome=\"granted\"", &token, "close"]);
    line(&["DEBUG hold{", "backend=\"memory\"", "key=item/42", &token, "renewed"]);
    line(&["DEBUG hold{", &token, "release", "Freed"]);
    assert!(!text.contains("WARN"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_loss_is_a_warning() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    let guard = client.mutex("a").with_ttl(secs(3)).with_renewal(Renewal::Manual).lock().await.unwrap();
    guard.lost().await;
    settle().await;
    let text = log.text();
    let warnings: Vec<_> = text.lines().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{text}");
    assert!(warnings[0].contains("lock lost") && warnings[0].contains("key=a"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn a_task_that_waits_for_itself_is_told_so() {
    let log = Log::default();
    let _recording = log.record();
    let (client, _) = simulated();
    tokio::spawn(async move {
        let _guard = client.mutex("a").with_ttl(secs(5)).lock().await.unwrap();
        let again = client.mutex("a").with_ttl(secs(5));
        assert!(again.lock_within(Duration::from_secs(4)).await.is_err());
        assert!(again.lock_within(Duration::from_secs(6)).await.is_err());
    })
    .await
    .unwrap();
    let text = log.text();
    assert_eq!(text.matches("LockClient::owner").count(), 1, "{text}");
}
