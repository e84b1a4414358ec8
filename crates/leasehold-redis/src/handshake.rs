//! The checks of a new connection before it is used.

use std::time::Duration;

use leasehold_core::{Credentials, ErrorKind, Restart, Result};
use redis::{
    Client, ConnectionAddr, IntoConnectionInfo, Pipeline, ProtocolVersion, RedisConnectionInfo,
    RedisError, Value, aio::MultiplexedConnection,
};

use tokio::{io::AsyncReadExt, net::TcpStream};

use crate::{
    config::RedisConfig,
    error::{self, ERRORS},
    scripts,
};

/// The time and the number of bytes for which to read the reason of a refused connection.
const REFUSAL_TIMEOUT: Duration = Duration::from_millis(500);
const MAX_REFUSAL: usize = 4096;
/// The first version that has `SET … GET` and `GETEX`.
const OLDEST: (u32, u32) = (6, 2);

/// The properties of a server and of one connection to it.
pub(crate) struct ServerInfo {
    /// The connection's id, or `None` if the user lacks the right to read it.
    pub(crate) id: Option<i64>,
    /// The name of this run of the server. Connection ids are valid only within a run, because they
    /// are reused after a restart. Empty if the user lacks the right to read the name.
    pub(crate) run: String,
    /// Whether invalidations are pushed.
    pub(crate) pushes: bool,
    /// The effect of a restart on held locks, by the server's settings.
    pub(crate) restart: Restart,
}

/// Checks the server, names the connection, loads the scripts and enables tracking, in one round
/// trip. `first` means that this is the first connection.
pub(crate) async fn check(
    mut connection: MultiplexedConnection,
    can_push: bool,
    first: bool,
    endpoint: &str,
    config: &RedisConfig,
) -> Result<ServerInfo> {
    let name = config.name()?;
    let from_connect = |error| error::from_connect(error, endpoint, ("timeout", config.timeout));
    let mut pipeline = Pipeline::new();
    const SECTIONS: [&str; 4] = ["server", "replication", "memory", "persistence"];
    for section in SECTIONS {
        pipeline.cmd("INFO").arg(section);
    }
    pipeline.cmd("CONFIG").arg("GET").arg("save");
    pipeline.cmd("CLIENT").arg("ID");
    if !name.is_empty() {
        pipeline.cmd("CLIENT").arg("SETNAME").arg(&name);
    }
    for script in scripts::ALL {
        pipeline.cmd("SCRIPT").arg("LOAD").arg(script.source);
    }
    if can_push {
        pipeline.cmd("CLIENT").arg("TRACKING").arg("ON");
    }
    let answers = connection
        .send_packed_commands(&pipeline, 0, pipeline.len())
        .await
        .map_err(from_connect)?;
    let mut answers = answers.into_iter().map(Value::extract_error);
    let mut next = || answers.next().unwrap_or(Ok(Value::Nil));

    let mut info = String::new();
    for _ in SECTIONS {
        match next().map(redis::from_redis_value::<String>) {
            Ok(Ok(section)) => info.push_str(&section),
            // Without the right to `INFO`, the server is not checked.
            Ok(Err(_)) | Err(_) if first => {
                tracing::warn!(%endpoint, "INFO is not allowed here: version, role and settings are not checked");
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
    let save = next()
        .ok()
        .and_then(|save| redis::from_redis_value::<(String, String)>(save).ok());
    judge(&info, first, endpoint)?;
    let run = field(&info, "run_id").to_owned();

    let id = next().ok().and_then(|id| redis::from_redis_value(id).ok());
    if !name.is_empty()
        && let Err(error) = next()
    {
        tracing::debug!(%endpoint, %error, "the connection has no name here");
    }
    for _ in scripts::ALL {
        next().map_err(from_connect)?;
    }
    let pushes = can_push
        && match next() {
            Ok(_) => true,
            Err(error) => {
                tracing::warn!(%endpoint, %error, "no client tracking here: waiters poll");
                false
            }
        };
    let restart = restart(&info, save.as_ref().map(|(_, save)| save.as_str()));
    Ok(ServerInfo {
        id,
        run,
        pushes,
        restart,
    })
}

/// Returns what happens to held locks in a restart, by the settings of the server. `save` is its
/// option of that name, if the user may read it.
pub(crate) fn restart(info: &str, save: Option<&str>) -> Restart {
    let forgets = field(info, "aof_enabled") == "0" && save == Some("");
    if forgets || evicts(info) {
        Restart::FreesAtOnce
    } else {
        Restart::AsPersisted
    }
}

/// Returns whether the server may evict held locks when its memory is full.
fn evicts(info: &str) -> bool {
    !matches!(field(info, "maxmemory"), "" | "0")
        && !matches!(field(info, "maxmemory_policy"), "" | "noeviction")
}

pub(crate) fn judge(info: &str, first: bool, endpoint: &str) -> Result<()> {
    let field = |name| field(info, name);
    // On the first connection, the address is wrong. Later, a fail-over or an upgrade may be in
    // progress, after which the server can be used.
    let kind = if first {
        ErrorKind::Unsupported
    } else {
        ErrorKind::Unavailable
    };
    if field("redis_mode") == "sentinel" {
        return Err(ERRORS.error(
            kind,
            "connect",
            format!(
                "{endpoint} is a Redis Sentinel, which keeps no locks; connect to the primary that it watches"
            ),
        ));
    }
    let version = field("redis_version");
    let mut numbers = version.split('.').map(|number| number.parse::<u32>().ok());
    if let (Some(Some(major)), Some(Some(minor))) = (numbers.next(), numbers.next())
        && (major, minor) < OLDEST
    {
        return Err(ERRORS.error(
            kind,
            "connect",
            format!(
                "{endpoint} is Redis {version}; use version {}.{} or later",
                OLDEST.0, OLDEST.1
            ),
        ));
    }
    if field("role") == "slave" && field("slave_read_only") == "1" {
        return Err(ERRORS.error(
            kind,
            "connect",
            format!("{endpoint} is a read-only replica; connect to its primary"),
        ));
    }
    if evicts(info) {
        tracing::warn!(
            %endpoint,
            policy = field("maxmemory_policy"),
            "this server may evict held locks when its memory is full; set maxmemory-policy to noeviction"
        );
    }
    Ok(())
}

/// Returns a field of INFO, or an empty string if it is missing.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> &'a str {
    info.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .map(str::trim)
        .unwrap_or_default()
}

/// Returns the error that the server sends to a new connection before it closes it, because it has
/// too many clients or is in protected mode. The driver drops that error.
pub(crate) async fn connection_refusal(client: &Client) -> Option<RedisError> {
    let told = async {
        let (mut told, mut buffer) = (Vec::new(), [0; 512]);
        match client.get_connection_info().addr() {
            ConnectionAddr::Tcp(host, port) => {
                let mut stream = TcpStream::connect((&**host, *port)).await.ok()?;
                while told.len() < MAX_REFUSAL
                    && let Ok(count @ 1..) = stream.read(&mut buffer).await
                {
                    told.extend_from_slice(&buffer[..count]);
                }
            }
            // No such answer was seen over TLS or a Unix socket.
            _ => return None,
        }
        Some(told)
    };
    let told = tokio::time::timeout(REFUSAL_TIMEOUT, told).await.ok()??;
    let line = told
        .split(|byte| *byte == b'\r')
        .next()
        .filter(|line| line.starts_with(b"-"))?;
    redis::parse_redis_value(&[line, b"\r\n"].concat())
        .ok()?
        .extract_error()
        .err()
}

/// Returns whether the server, or a proxy or the user's rights, refused `HELLO 3` itself.
pub(crate) fn lacks_resp3(error: &RedisError) -> bool {
    let text = error.to_string();
    if text.contains("NOAUTH") {
        return false;
    }
    error.kind() == redis::ErrorKind::RESP3NotSupported
        || text.contains("NOPROTO")
        || (text.to_lowercase().contains("hello") && !error.is_io_error())
}

/// Returns the client with the older protocol.
pub(crate) fn with_resp2(client: &Client) -> Result<Client> {
    with_protocol(client, ProtocolVersion::RESP2)
}

/// Returns the client with the protocol that has pushes.
pub(crate) fn with_resp3(client: &Client) -> Result<Client> {
    with_protocol(client, ProtocolVersion::RESP3)
}

/// Returns the client as another user, or with another password.
pub(crate) fn with_credentials(client: &Client, credentials: &Credentials) -> Result<Client> {
    // The default user is named explicitly, so that the URL's user is not combined with another
    // user's password.
    let username = credentials.username().unwrap_or("default");
    with_settings(client, |settings| {
        settings
            .set_username(username)
            .set_password(credentials.password())
    })
}

fn with_protocol(client: &Client, protocol: ProtocolVersion) -> Result<Client> {
    with_settings(client, |settings| settings.set_protocol(protocol))
}

fn with_settings(
    client: &Client,
    change: impl FnOnce(RedisConnectionInfo) -> RedisConnectionInfo,
) -> Result<Client> {
    let info = client.get_connection_info().clone();
    let settings = change(info.redis_settings().clone());
    info.set_redis_settings(settings)
        .into_connection_info()
        .and_then(Client::open)
        .map_err(|error| error::from_command(error, "connect", error::SideEffect::None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_forgets_or_evicts_promises_less() {
        let memory = |max, policy| {
            format!("aof_enabled:0\r\nmaxmemory:{max}\r\nmaxmemory_policy:{policy}\r\n")
        };
        let plain = memory(0, "allkeys-lru");
        assert_eq!(restart(&plain, Some("")), Restart::FreesAtOnce);
        assert_eq!(restart(&plain, Some("3600 1")), Restart::AsPersisted);
        assert_eq!(restart("aof_enabled:1\r\n", Some("")), Restart::AsPersisted);
        assert_eq!(
            restart(&memory(1 << 20, "noeviction"), Some("3600 1")),
            Restart::AsPersisted
        );
        assert_eq!(
            restart(&memory(1 << 20, "volatile-lru"), Some("3600 1")),
            Restart::FreesAtOnce
        );
        // Neither answer shows that locks may be lost.
        assert!(
            restart(&plain, None) == Restart::AsPersisted
                && restart("", Some("")) == Restart::AsPersisted
        );
    }

    #[test]
    fn old_servers_and_replicas_are_refused_by_name() {
        let old = judge("redis_version:6.0.16\r\nrole:master\r\n", true, "h:1").unwrap_err();
        assert_eq!(old.kind(), ErrorKind::Unsupported);
        assert!(
            old.to_string().contains("6.0.16") && old.to_string().contains("6.2"),
            "{old}"
        );
        for (first, kind) in [
            (true, ErrorKind::Unsupported),
            (false, ErrorKind::Unavailable),
        ] {
            let replica = judge(
                "redis_version:7.2.4\r\nrole:slave\r\nslave_read_only:1\r\n",
                first,
                "h:1",
            )
            .unwrap_err();
            assert_eq!(replica.kind(), kind);
        }
        let sentinel = judge(
            "redis_version:7.0.15\r\nredis_mode:sentinel\r\n",
            true,
            "h:1",
        )
        .unwrap_err();
        assert!(
            sentinel.kind() == ErrorKind::Unsupported && sentinel.to_string().contains("Sentinel"),
            "{sentinel}"
        );
        assert!(judge("redis_version:7.0.15\r\nrole:master\r\n", true, "h:1").is_ok());
        assert!(
            judge("redis_version:10.0\r\n", true, "h:1").is_ok() && judge("", true, "h:1").is_ok()
        );
    }
}
