//! Finds out why no server can be connected to. The driver reports only that none can.

use std::{io, time::Duration};

use futures_util::future::join_all;
use leasehold_core::text::Escaped;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// A command that ZooKeeper answers by default. Redis and HTTP servers answer an empty line with an
/// error.
const WORD: &[u8] = b"srvr\r\n\r\n";
/// The start of a ZooKeeper server's answer if it serves, if it does not serve, and if it does not
/// allow the command.
const SERVES: &str = "Zookeeper version";
const NOT_SERVING: &str = "This ZooKeeper instance is not currently serving requests";
const NOT_ALLOWED: &str = "srvr is not executed";
/// The most bytes of an answer that are read.
const LONGEST_ANSWER: usize = 256;
/// The most characters of another server's answer that are shown.
const SHOWN: usize = 80;

/// The protocol in which the servers are asked.
#[derive(Clone, Default)]
pub(crate) struct Speech {
    /// The TLS that a URL asks for.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<std::sync::Arc<rustls::ClientConfig>>,
}

/// Returns the fault of each of these servers (`h1:2181,h2:2181`), as far as it shows within
/// `patience`. Returns an empty text if no fault shows.
pub(crate) async fn of(hosts: &str, speech: &Speech, patience: Duration) -> String {
    let hosts = hosts.split('/').next().unwrap_or_default();
    let looks = hosts.split(',').map(|host| async move {
        let seen = timeout(patience, look(host, speech, patience)).await;
        let what = seen.unwrap_or_else(|_elapsed| Some("no answer".to_owned()));
        what.map(|what| format!("{}: {what}", Escaped(host)))
    });
    join_all(looks)
        .await
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join("; ")
}

async fn look(host: &str, speech: &Speech, patience: Duration) -> Option<String> {
    let stream = match TcpStream::connect(host).await {
        Ok(stream) => stream,
        // An address that only the driver can parse.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => return None,
        Err(error) => return Some(error.to_string()),
    };
    #[cfg(feature = "tls")]
    if let Some(tls) = &speech.tls {
        return match ask_secretly(host, stream, tls.clone(), patience).await {
            Ok(answer) => read(&answer),
            Err(error) => Some(format!("TLS: {error}")),
        };
    }
    let _ = (speech, patience);
    match ask(stream).await {
        Ok(answer) => read(&answer),
        Err(error) => Some(error.to_string()),
    }
}

async fn ask(mut stream: TcpStream) -> io::Result<Vec<u8>> {
    stream.write_all(WORD).await?;
    let mut answer = vec![0; LONGEST_ANSWER];
    let length = stream.read(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

/// Returns the fault that an answer shows. `None` if the server serves.
pub(crate) fn read(answer: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(answer);
    if text.starts_with(SERVES) || text.starts_with(NOT_ALLOWED) {
        return None;
    }
    if text.starts_with(NOT_SERVING) {
        return Some(
            "it does not serve now; are most servers of its ensemble up and connected?".into(),
        );
    }
    let shown: String = text
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .take(SHOWN)
        .collect();
    let shown = Escaped(&shown);
    Some(match answer {
        [] => "it closed the connection; is it a ZooKeeper server, and does it speak TLS (`zookeepers:`)?".into(),
        // The records of TLS: an alert, or a handshake.
        [0x15 | 0x16, 3, ..] => "it speaks TLS; write `zookeepers:`".into(),
        [b'+' | b'-', ..] => format!("a Redis server answers there, no ZooKeeper (`{shown}`)"),
        _ if text.starts_with("HTTP/") => format!("an HTTP server answers there, no ZooKeeper (`{shown}`)"),
        _ => format!("another server answers there, no ZooKeeper (`{shown}`)"),
    })
}

/// Asks over TLS, as [`ask`] does. A server may refuse a client only after the handshake.
#[cfg(feature = "tls")]
async fn ask_secretly(
    host: &str,
    stream: TcpStream,
    tls: std::sync::Arc<rustls::ClientConfig>,
    patience: Duration,
) -> io::Result<Vec<u8>> {
    use std::io::{Read, Write};
    let name = host
        .rsplit_once(':')
        .map_or(host, |(name, _)| name)
        .trim_matches(['[', ']'])
        .to_owned();
    let name = rustls::pki_types::ServerName::try_from(name).map_err(io::Error::other)?;
    let mut stream = stream.into_std()?;
    let asking = move || {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut connection = rustls::ClientConnection::new(tls, name).map_err(io::Error::other)?;
        let mut secret = rustls::Stream::new(&mut connection, &mut stream);
        secret.write_all(WORD)?;
        let mut answer = vec![0; LONGEST_ANSWER];
        let length = secret.read(&mut answer)?;
        answer.truncate(length);
        Ok(answer)
    };
    tokio::task::spawn_blocking(asking)
        .await
        .map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_answers_instead_of_zookeeper_is_named() {
        for (answer, named) in [
            (&b"-ERR unknown command 'srvr'\r\n"[..], "a Redis server"),
            (
                b"-DENIED Redis is running in protected mode",
                "protected mode",
            ),
            (b"HTTP/1.1 400 Bad Request\r\n", "an HTTP server"),
            (b"\x15\x03\x03\x00\x02\x02\x46", "it speaks TLS"),
            (b"", "closed the connection"),
            (
                b"This ZooKeeper instance is not currently serving requests\n",
                "does not serve now",
            ),
            (b"\x1b[2Jhello", r"\u{1b}[2Jhello"),
        ] {
            let said = read(answer).unwrap();
            assert!(said.contains(named), "{said}");
        }
        for answer in [
            "Zookeeper version: 3.8.0-",
            "srvr is not executed because it is not in the whitelist.\n",
        ] {
            assert_eq!(read(answer.as_bytes()), None);
        }
    }
}
