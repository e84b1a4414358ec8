//! The connection of the subjects that use the bare driver.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use leasehold_integration::{HarnessError, Result};
use redis::{
    AsyncConnectionConfig, Client, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind,
    RedisError, Value, aio::MultiplexedConnection, io::tcp::TcpSettings,
};
use tokio::sync::Notify;

/// The waiters to notify of a changed key.
#[derive(Clone, Debug, Default)]
pub(in super::super) struct Wakes(Arc<Mutex<HashMap<Vec<u8>, Arc<Notify>>>>);

impl Wakes {
    pub(in super::super) fn of(&self, key: &str) -> Arc<Notify> {
        let mut wakes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(wakes.entry(key.into()).or_default())
    }

    fn wake(&self, key: &[u8]) {
        if let Some(notify) = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(key)
        {
            notify.notify_one();
        }
    }
}

/// Opens one multiplexed connection with RESP3, `TCP_NODELAY` and client tracking, as Leasehold
/// does, so that subjects differ only in what they build on it.
pub(in super::super) async fn open(url: &str, wakes: &Wakes) -> Result<MultiplexedConnection> {
    let wakes = wakes.clone();
    let told = move |push: PushInfo| {
        if let (PushKind::Invalidate, [Value::Array(keys)]) = (push.kind, push.data.as_slice()) {
            for key in keys {
                if let Value::BulkString(key) = key {
                    wakes.wake(key);
                }
            }
        }
        Ok::<(), ()>(())
    };
    let connect = async {
        let info = url.into_connection_info()?;
        let settings = info
            .redis_settings()
            .clone()
            .set_protocol(ProtocolVersion::RESP3);
        let info = info
            .set_redis_settings(settings)
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        let config = AsyncConnectionConfig::new().set_push_sender(told);
        let mut connection = Client::open(info)?
            .get_multiplexed_async_connection_with_config(&config)
            .await?;
        redis::cmd("CLIENT")
            .arg("TRACKING")
            .arg("ON")
            .exec_async(&mut connection)
            .await?;
        Ok::<_, RedisError>(connection)
    };
    connect.await.map_err(failed)
}

/// Opens the same connection without RESP3 and tracking.
pub(super) async fn open_untracked(url: &str) -> Result<MultiplexedConnection> {
    let connect = async {
        let info = url
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true));
        Client::open(info)?.get_multiplexed_async_connection().await
    };
    connect.await.map_err(failed)
}

/// Loads a script and returns its hash.
pub(in super::super) async fn load(
    connection: &mut MultiplexedConnection,
    source: &str,
) -> Result<Arc<str>> {
    let hash: String = redis::cmd("SCRIPT")
        .arg("LOAD")
        .arg(source)
        .query_async(connection)
        .await
        .map_err(failed)?;
    Ok(hash.into())
}

pub(in super::super) fn failed(error: RedisError) -> HarnessError {
    HarnessError::caused_by("the bare driver failed", error)
}
