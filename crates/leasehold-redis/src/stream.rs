//! [`Metered`]: a stream that fails if the server sends too much for one answer.
//!
//! The driver keeps an answer in memory until it is complete, whatever its length. The stream
//! therefore counts the received bytes, and each answer that is taken resets the count.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use futures_util::future::select_ok;
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, RedisError,
    aio::MultiplexedConnection,
    io::tcp::{TcpSettings, socket2::SockRef},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, lookup_host},
    task::AbortHandle,
    time::timeout,
};

/// The largest answer, in bytes. It has room for about 12 000 waiters of one lock.
const LARGEST: usize = 8 << 20;
/// The bytes that are added to the count for each line. The driver needs this much memory for the
/// smallest part of an answer.
const LINE: usize = 64;

/// A counter of the bytes that were received since an answer was last taken.
#[derive(Debug, Default)]
pub(crate) struct Meter(AtomicUsize);

impl Meter {
    /// Resets the counter after an answer was taken.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    fn add(&self, bytes: &[u8]) -> io::Result<()> {
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let more = bytes.len() + lines * LINE;
        if self.0.fetch_add(more, Ordering::Relaxed) + more > LARGEST {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "the server sends more than {} MiB for one answer",
                    LARGEST >> 20
                ),
            ));
        }
        Ok(())
    }
}

/// The driver's task. Dropping this value aborts it.
#[derive(Debug)]
pub(crate) struct Task(AbortHandle);

impl Task {
    /// Returns whether the connection was closed or broke.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Connects over a metered stream. Over TLS the driver makes the stream itself, so there is neither
/// a meter nor a task.
pub(crate) async fn connect(
    client: &Client,
    settings: AsyncConnectionConfig,
    meter: &Arc<Meter>,
    patience: Duration,
) -> Result<(MultiplexedConnection, Option<Task>), RedisError> {
    let info = client.get_connection_info();
    let connecting = async {
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => {
                let stream = connect_tcp(host, *port, info.tcp_settings()).await?;
                start(
                    client,
                    settings,
                    Metered {
                        stream,
                        meter: Arc::clone(meter),
                    },
                )
                .await
            }
            #[cfg(unix)]
            ConnectionAddr::Unix(path) => {
                let stream = tokio::net::UnixStream::connect(path).await?;
                start(
                    client,
                    settings,
                    Metered {
                        stream,
                        meter: Arc::clone(meter),
                    },
                )
                .await
            }
            _ => Ok((
                client
                    .get_multiplexed_async_connection_with_config(&settings)
                    .await?,
                None,
            )),
        }
    };
    timeout(patience, connecting)
        .await
        .unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
}

async fn connect_tcp(host: &str, port: u16, settings: &TcpSettings) -> io::Result<TcpStream> {
    let stream = connect_to_any(lookup_host((host.trim_matches(['[', ']']), port)).await?).await?;
    stream.set_nodelay(settings.nodelay())?;
    let socket = SockRef::from(&stream);
    if let Some(keepalive) = settings.keepalive() {
        socket.set_tcp_keepalive(keepalive)?;
    }
    #[cfg(any(target_os = "android", target_os = "fuchsia", target_os = "linux"))]
    socket.set_tcp_user_timeout(settings.user_timeout())?;
    Ok(stream)
}

/// Connects to all addresses of a host at once and returns the first connection. A silent address
/// causes no delay.
async fn connect_to_any(addresses: impl Iterator<Item = SocketAddr>) -> io::Result<TcpStream> {
    let mut connecting = addresses
        .map(|address| Box::pin(TcpStream::connect(address)))
        .peekable();
    if connecting.peek().is_none() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the host has no address",
        ));
    }
    Ok(select_ok(connecting).await?.0)
}

async fn start<S>(
    client: &Client,
    settings: AsyncConnectionConfig,
    stream: S,
) -> Result<(MultiplexedConnection, Option<Task>), RedisError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let settings_of_server = client.get_connection_info().redis_settings();
    let (connection, driver) =
        MultiplexedConnection::new_with_config(settings_of_server, stream, settings).await?;
    Ok((connection, Some(Task(tokio::spawn(driver).abort_handle()))))
}

/// A stream that counts the bytes it receives.
struct Metered<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(cx, buffer))?;
        Poll::Ready(self.meter.add(&buffer.filled()[before..]))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_end_is_refused_and_many_answers_are_not() {
        let meter = Meter::default();
        let answer = vec![b'x'; LARGEST / 4];
        for _ in 0..100 {
            meter.add(&answer).unwrap();
            meter.reset();
        }
        let refused = (0..5).find_map(|_| meter.add(&answer).err()).unwrap();
        assert!(refused.to_string().contains("8 MiB"), "{refused}");
    }

    #[tokio::test]
    async fn an_address_that_is_silent_delays_no_other() {
        // The listener's queue is full, so it accepts no further connection.
        let silent = tokio::net::TcpSocket::new_v4().unwrap();
        silent.bind(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let silent = silent.listen(1).unwrap();
        let address = silent.local_addr().unwrap();
        let mut queued = Vec::new();
        while let Ok(stream) =
            timeout(Duration::from_millis(500), TcpStream::connect(address)).await
        {
            queued.push(stream.unwrap());
        }
        let well = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let wanted = well.local_addr().unwrap();
        let stream = timeout(
            Duration::from_secs(60),
            connect_to_any([address, wanted].into_iter()),
        )
        .await;
        assert_eq!(
            stream
                .expect("it waits for the silent one")
                .unwrap()
                .peer_addr()
                .unwrap(),
            wanted
        );
        let none = connect_to_any(std::iter::empty()).await.unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn small_parts_count_as_much_as_they_cost() {
        let parts = b"_\r\n".repeat(LARGEST / 32);
        assert!(Meter::default().add(&parts).is_err());
        assert!(Meter::default().add(&vec![b'_'; parts.len()]).is_ok());
    }
}
