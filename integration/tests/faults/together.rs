//! Several keys under one guard, whose holder or waiter is killed or cut off.

use leasehold_core::{AllInfo, LeaseInfo, LockClient, Released};
use leasehold_integration::{
    proxy::{Direction, Proxy},
    steps::{is_a_fault, millis},
    worker::{Command, Worker},
};

use crate::{
    fixture::Fixture,
    support::{SOON, granted, locked, nothing_left, soon},
};

const KEYS: [&str; 3] = ["a", "b", "c"];

fn lock_all() -> Command {
    Command::LockAll {
        keys: KEYS.map(str::to_owned).to_vec(),
    }
}

/// Acquires all keys, named in the opposite order, and retries after each fault.
async fn all_locked(client: &LockClient) -> leasehold_core::AllGuard {
    let locking = async {
        loop {
            match client.all(KEYS.into_iter().rev()).lock().await {
                Ok(guard) => return guard,
                Err(error) => assert!(is_a_fault(error.kind()), "{error:?}"),
            }
            tokio::time::sleep(millis(20)).await;
        }
    };
    soon("all keys are granted", locking).await
}

fn any_held(info: &AllInfo) -> bool {
    info.leases().iter().any(LeaseInfo::is_held)
}

/// Checks that a guard has every key, and releases it.
async fn release(guard: leasehold_core::AllGuard) {
    assert!(guard.is_held() && guard.leases().len() == KEYS.len());
    let released = guard.release().await.unwrap();
    assert!(released.iter().all(|(_, how)| *how == Released::Freed));
}

/// Waits until a worker has acquired a key.
async fn until_held(client: &LockClient, key: &str) {
    let held = async {
        while client.mutex(key).try_lock().await.unwrap().is_some() {
            tokio::time::sleep(millis(10)).await;
        }
    };
    soon(&format!("`{key}` is held"), held).await;
}

pub(crate) async fn keys_of_a_killed_holder_pass_on_together(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let clients = [fixture.client().await, fixture.client().await];
    let mut holder = stage.worker("holder");
    let (old, _) = granted(holder.ask(lock_all()).unwrap());
    let waiting = clients.map(|client| {
        tokio::spawn(async move {
            let guard = all_locked(&client).await;
            let token = guard.fencing_token("c");
            assert!(
                token.is_none_or(|new| new.get() > old),
                "{token:?} after {old}"
            );
            // Every key is held here, and by nobody else.
            for key in KEYS {
                let again = client.mutex(key).try_lock().await.unwrap();
                assert!(again.is_none(), "`{key}` is not held");
            }
            release(guard).await;
        })
    });
    holder.kill().unwrap();
    for waiter in waiting {
        soon("a waiter behind a killed holder ends", waiter)
            .await
            .unwrap();
    }
    nothing_left(fixture);
}

pub(crate) async fn a_killed_waiter_for_several_keys_keeps_no_part(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let client = fixture.client().await;
    let held = client.mutex("b").lock().await.unwrap();
    let mut doomed = stage.worker("doomed");
    let asked = doomed.send(lock_all()).unwrap();
    until_held(&client, "a").await;
    // The larger key is released.
    locked(&client, "c").await.release().await.unwrap();
    assert!(
        doomed.answer(asked, millis(0)).is_err(),
        "granted while one of the keys is held"
    );
    doomed.kill().unwrap();
    held.release().await.unwrap();
    release(all_locked(&client).await).await;
    nothing_left(fixture);
}

pub(crate) async fn a_stopped_holder_of_several_keys_knows_its_loss(fixture: &mut dyn Fixture) {
    let stage = fixture.stage();
    let client = fixture.client().await;
    let mut holder = stage.worker("holder");
    granted(holder.ask(lock_all()).unwrap());
    holder.pause().unwrap();
    let guard = all_locked(&client).await;
    holder.resume().unwrap();
    assert_eq!(held_keys(&mut holder), Some(0));
    release(guard).await;
    nothing_left(fixture);
}

/// Returns how many keys a worker reports as held.
fn held_keys(worker: &mut Worker) -> Option<u64> {
    use leasehold_integration::worker::Answer;
    let asked = worker.send(Command::CheckAll).unwrap();
    match worker.answer(asked, SOON).unwrap() {
        Answer::HeldKeys(count) => Some(count),
        _ => None,
    }
}

pub(crate) async fn cut_off_holder_of_several_keys_loses_them_before_a_rival(
    fixture: &mut dyn Fixture,
) {
    let route = fixture.route();
    let (far, near) = (fixture.client_at(&route.url).await, fixture.client().await);
    let guard = far.all(KEYS).lock().await.unwrap();
    // The leases are renewed at least once before the cut.
    tokio::time::sleep(fixture.ttl().as_duration() / 2).await;
    assert!(guard.is_held());
    route.each(|proxy| proxy.blackhole(Direction::Both));
    let info = guard.info();
    let seizing = tokio::spawn(async move {
        let seized = all_locked(&near).await;
        (any_held(&info), seized)
    });
    let (key, _) = soon("the holder learns of its loss", guard.lost()).await;
    assert!(KEYS.contains(&key.as_str().unwrap()) && !guard.is_held());
    let (both, seized) = soon("the rival is granted", seizing).await.unwrap();
    assert!(!both, "two holders");
    for key in KEYS {
        assert!(
            seized.fencing_token(key) > guard.fencing_token(key),
            "{key}"
        );
    }
    route.each(Proxy::heal);
    drop(guard);
    release(seized).await;
    release(all_locked(&far).await).await;
    nothing_left(fixture);
}
