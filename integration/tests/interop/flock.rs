//! `flock(1)`.

use leasehold_core::{LockClient, LockKey};
use leasehold_integration::foreign::Foreign;
use leasehold_local::FileBackend;

use crate::rounds;

#[tokio::test(flavor = "multi_thread")]
async fn flock_and_leasehold_exclude_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let backend = FileBackend::open(folder.path()).unwrap();
    let file = backend.path_of(&LockKey::new("item").unwrap());
    let client = LockClient::new(backend);
    // The file exists once the name was locked.
    client
        .mutex("item")
        .lock()
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let mut foreign = Foreign::flock(&file).await.unwrap();
    rounds::exclude_each_other(&client, "item", &mut foreign).await;
}
