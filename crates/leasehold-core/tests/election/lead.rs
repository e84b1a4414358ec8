//! Tasks that lead, and campaign again after a loss.

use std::{
    future::pending,
    ops::ControlFlow,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use leasehold_core::{ErrorKind, Revocation};
use tokio::time::timeout;

use crate::{
    SOON, leader, next,
    scripted::{Script, Scripted},
    some,
    support::{secs, settle, simulated, two_processes},
};

#[tokio::test(start_paused = true)]
async fn lead_campaigns_again_until_break() {
    let (client, _) = simulated();
    let mut tokens = Vec::new();
    let election = client.election("e");
    let led = election.lead("value", async |term| {
        tokens.push(term.fencing_token().unwrap());
        assert_eq!(leader(&client).await, some("value"));
        if tokens.len() < 3 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break("done")
        }
    });
    assert_eq!(timeout(SOON, led).await.unwrap().unwrap(), "done");
    assert!(tokens.is_sorted() && tokens[0] < tokens[2]);
    assert_eq!(leader(&client).await, None, "it resigned");
}

#[tokio::test(start_paused = true)]
async fn lead_drops_the_work_before_another_leads_and_returns() {
    let (one, other) = two_processes();
    let election = one.election("e").with_ttl(secs(10));
    let terms = Arc::new(AtomicUsize::new(0));
    let leading = tokio::spawn({
        let terms = Arc::clone(&terms);
        async move {
            election
                .lead_with("one", move |term| {
                    let terms = Arc::clone(&terms);
                    async move {
                        if terms.fetch_add(1, SeqCst) == 0 {
                            // Dropped by the loss.
                            let _held = term;
                            pending::<()>().await;
                        }
                        ControlFlow::Break(())
                    }
                })
                .await
        }
    });
    settle().await;
    let mut leaders = other.election("e").observe();
    assert_eq!(next(&mut leaders).await, some("one"));
    let holder = other.inspect("e").await.unwrap().holders.remove(0);
    other.revoke(&holder, Revocation::Immediate).await.unwrap();
    let rival = other.election("e").campaign("other").await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        terms.load(SeqCst),
        1,
        "it leads no second term beside the rival"
    );
    rival.resign().await.unwrap();
    timeout(SOON, leading).await.unwrap().unwrap().unwrap();
    assert_eq!(terms.load(SeqCst), 2);
}

#[tokio::test(start_paused = true)]
async fn lead_retries_faults_and_ends_with_final_errors() {
    let script = Script {
        failing_writes: Mutex::new(Some((1, ErrorKind::Lost))),
        ..Script::default()
    };
    let (client, script) = Scripted::client(script);
    let election = client.election("e");
    let led = election.lead("value", async |_| ControlFlow::Break(7));
    assert_eq!(timeout(SOON, led).await.unwrap().unwrap(), 7);
    *script.failing_writes.lock().unwrap() = Some((usize::MAX, ErrorKind::Denied));
    let led = election.lead("value", async |_| ControlFlow::Break(7));
    assert_eq!(led.await.unwrap_err().kind(), ErrorKind::Denied);
    client.close().await.unwrap();
    let led = election.lead("value", async |_| ControlFlow::Break(7));
    assert_eq!(led.await.unwrap_err().kind(), ErrorKind::Closed);
}
