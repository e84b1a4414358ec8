//! Readers, writers and permits.

use std::{num::NonZeroU32, sync::Arc};

use leasehold_core::{ErrorKind, Mode, backend::Lease};

use crate::{
    backend_fixture::BackendFixture,
    fixtures::{attempt, client, granted, key, must, queued, refused, release, request},
};

/// Checks that several readers hold a lock at the same time.
pub async fn readers_share(fixture: &dyn BackendFixture) {
    let key = key(fixture, "readers");
    let mut readers = Vec::new();
    for _ in 0..3 {
        let backend = fixture.open().await;
        let request = request(fixture, &backend, &key).with_mode(Mode::Shared);
        readers.push(granted(&backend, request, "a reader joins readers").await);
    }
    for reader in &readers {
        release(reader).await;
    }
}

/// Checks that a writer excludes readers, and that each reader excludes a writer.
pub async fn writer_excludes_readers(fixture: &dyn BackendFixture) {
    let key = key(fixture, "writer");
    let (one, two, three) = (
        fixture.open().await,
        fixture.open().await,
        fixture.open().await,
    );
    let shared = |backend| request(fixture, backend, &key).with_mode(Mode::Shared);
    let writer = granted(&one, request(fixture, &one, &key), "a free lock is granted").await;
    refused(
        &two,
        shared(&two),
        "a reader is refused while a writer holds",
    )
    .await;
    release(&writer).await;
    let first = granted(&one, shared(&one), "a reader is granted after the writer").await;
    let second = granted(&two, shared(&two), "a reader joins readers").await;
    refused(
        &three,
        request(fixture, &three, &key),
        "a writer is refused while readers hold",
    )
    .await;
    release(&first).await;
    refused(
        &three,
        request(fixture, &three, &key),
        "a writer is refused while one reader holds",
    )
    .await;
    release(&second).await;
    let writer = granted(
        &three,
        request(fixture, &three, &key),
        "a writer is granted after the last reader",
    )
    .await;
    release(&writer).await;
}

/// Checks that a waiting writer precedes all readers that arrive later, and is granted.
pub async fn no_reader_overtakes_a_waiting_writer(fixture: &dyn BackendFixture) {
    let key = key(fixture, "overtakes");
    let (reader, writer, late) = (
        client(fixture).await,
        client(fixture).await,
        client(fixture).await,
    );
    let guard = must(
        reader.rwlock(&key).read().await,
        "a free lock is read-locked",
    );
    let rwlock = writer.rwlock(&key);
    let writing = tokio::spawn(async move { rwlock.write().await });
    queued(&late, &key).await;
    assert!(
        !writing.is_finished(),
        "a writer waits while a reader holds"
    );
    let overtaking = must(late.rwlock(&key).try_read().await, "an attempt is answered");
    assert!(
        overtaking.is_none(),
        "a reader that comes later waits behind the writer"
    );
    must(guard.release().await, "a release is answered");
    let Ok(written) = writing.await else {
        panic!("the writer panicked")
    };
    must(
        must(written, "the writer is granted").release().await,
        "a release is answered",
    );
    let guard = must(
        late.rwlock(&key).read().await,
        "the reader is granted after the writer",
    );
    must(guard.release().await, "a release is answered");
}

/// Checks that there are never more holders than permits, and that a released permit can be
/// acquired again.
pub async fn permits_bound_holders(fixture: &dyn BackendFixture) {
    let key = key(fixture, "permits");
    let of = number(3);
    let mut held: Vec<Arc<dyn Lease>> = Vec::new();
    for _ in 0..of.get() {
        let backend = fixture.open().await;
        held.push(
            granted(
                &backend,
                request(fixture, &backend, &key).with_permit_of(of),
                "a permit is free",
            )
            .await,
        );
    }
    let backend = fixture.open().await;
    let mut refills = Vec::new();
    for permit in &held {
        let full = attempt(
            &backend,
            request(fixture, &backend, &key).with_permit_of(of),
        )
        .await;
        assert!(full.is_none(), "one more than the permits was granted");
        release(permit).await;
        let again = granted(
            &backend,
            request(fixture, &backend, &key).with_permit_of(of),
            "a permit was returned",
        )
        .await;
        let other = fixture.open().await;
        refused(
            &other,
            request(fixture, &other, &key).with_permit_of(of),
            "all permits are taken again",
        )
        .await;
        release(&again).await;
        let refill = granted(
            &other,
            request(fixture, &other, &key).with_permit_of(of),
            "a permit was returned",
        )
        .await;
        refills.push(refill);
    }
    for permit in &refills {
        release(permit).await;
    }
}

/// Checks that a request with another number of permits than the current holders' is refused as a
/// conflict.
pub async fn permit_counts_must_match(fixture: &dyn BackendFixture) {
    let key = key(fixture, "counts");
    let (one, other) = (client(fixture).await, client(fixture).await);
    let guard = must(one.semaphore(&key, 2).acquire().await, "a permit is free");
    let mismatched = other
        .semaphore(&key, 3)
        .try_acquire()
        .await
        .map(drop)
        .map_err(|error| error.kind());
    assert_eq!(
        mismatched,
        Err(ErrorKind::Conflict),
        "another number of permits is a conflict"
    );
    must(guard.release().await, "a release is answered");
    let zero = other
        .semaphore(&key, 0)
        .try_acquire()
        .await
        .map(drop)
        .map_err(|error| error.kind());
    assert_eq!(
        zero,
        Err(ErrorKind::InvalidInput),
        "a semaphore needs at least one permit"
    );
}

/// Checks that a client refuses a mode that the backend's capabilities do not have.
pub async fn unsupported_modes_are_refused_typed(fixture: &dyn BackendFixture) {
    let (client, able) = (client(fixture).await, fixture.open().await.capabilities());
    let key = key(fixture, "unsupported");
    let modes = [
        (able.exclusive, Mode::Exclusive),
        (able.shared, Mode::Shared),
        (able.permits, Mode::Permit { of: number(2) }),
    ];
    for (_, mode) in modes.into_iter().filter(|(able, _)| !able) {
        let asked = match mode {
            Mode::Shared => client.rwlock(&key).try_read().await.map(drop),
            Mode::Permit { .. } => client.semaphore(&key, 2).try_acquire().await.map(drop),
            _ => client.mutex(&key).try_lock().await.map(drop),
        };
        assert_eq!(
            asked.map_err(|error| error.kind()),
            Err(ErrorKind::Unsupported),
            "{mode}"
        );
    }
}

pub(crate) fn number(of: u32) -> NonZeroU32 {
    NonZeroU32::new(of).unwrap_or(NonZeroU32::MIN)
}
