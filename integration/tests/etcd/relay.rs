//! A relay in front of the server that reads the client's requests.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use leasehold_etcd::etcd_client::{Client, LeaseGrantOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
    time::sleep,
};

pub(crate) const STRANGERS_TTL_S: i64 = 2;

/// The treatment of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Another client grants a lease with the first requested id, before the request arrives.
    Taken,
    /// The first lease is granted, and the answer is lost.
    AnswerLost,
    /// The first delete of a key of the lock `k` is executed, and the answer is lost.
    DeleteLost,
    /// Watches on locks never reach the server.
    Unwatched,
    /// Requests can be [held up](Relay::hold), and arrive although the client has given them up.
    Late,
}

/// The type of the frame with which a client gives up a request.
const RST_STREAM: u8 = 3;

/// A relay in front of the server. It parses HTTP/2 only as far as it must.
#[derive(Clone)]
pub(crate) struct Relay {
    server: SocketAddr,
    stranger: Client,
    fate: Fate,
    done: Arc<AtomicBool>,
    held: Arc<AtomicBool>,
}

impl Relay {
    /// Starts a relay and returns its address.
    pub(crate) async fn start(server: SocketAddr, fate: Fate) -> (Self, SocketAddr) {
        let stranger = Client::connect([server.to_string()], None).await.unwrap();
        let relay = Self {
            server,
            stranger,
            fate,
            done: Arc::default(),
            held: Arc::default(),
        };
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let accepting = relay.clone();
        drop(tokio::spawn(async move {
            loop {
                let (from_client, _) = listener.accept().await.unwrap();
                let relay = accepting.clone();
                drop(tokio::spawn(
                    async move { relay.pass_on(from_client).await },
                ));
            }
        }));
        (relay, addr)
    }

    /// Returns whether the expected request was sent.
    pub(crate) fn is_done(&self) -> bool {
        self.done.load(Ordering::Relaxed)
    }

    /// Holds up all requests from now on.
    pub(crate) fn hold(&self) {
        self.held.store(true, Ordering::Relaxed);
    }

    /// Delivers the requests that were held up.
    pub(crate) fn deliver(&self) {
        self.held.store(false, Ordering::Relaxed);
    }

    async fn pass_on(self, from_client: TcpStream) -> io::Result<()> {
        let (client_says, to_client) = from_client.into_split();
        let (server_says, to_server) = TcpStream::connect(self.server).await?.into_split();
        if self.fate == Fate::Late {
            let (frames, late) = mpsc::unbounded_channel();
            let (read, written, ()) = tokio::join!(
                queue(client_says, frames),
                self.write_late(late, to_server),
                answers_or_drain(server_says, to_client),
            );
            return read.and(written);
        }
        let mute = AtomicBool::new(false);
        tokio::select! {
            ended = self.frames(client_says, to_server, &mute) => ended,
            ended = answers(server_says, to_client, &mute) => ended,
        }
    }

    /// Forwards what was queued, unless it is held up.
    async fn write_late(
        &self,
        mut late: mpsc::UnboundedReceiver<Vec<u8>>,
        mut to: OwnedWriteHalf,
    ) -> io::Result<()> {
        while let Some(bytes) = late.recv().await {
            while self.held.load(Ordering::Relaxed) {
                sleep(Duration::from_millis(5)).await;
            }
            to.write_all(&bytes).await?;
        }
        // The end of the client's connection would end its requests.
        std::future::pending().await
    }

    /// Forwards HTTP/2 frames. Ends when an answer must be lost, after setting `mute`.
    async fn frames(
        &self,
        mut from: OwnedReadHalf,
        mut to: OwnedWriteHalf,
        mute: &AtomicBool,
    ) -> io::Result<()> {
        let mut preface = [0; 24];
        from.read_exact(&mut preface).await?;
        to.write_all(&preface).await?;
        loop {
            let (head, payload) = read_frame(&mut from).await?;
            let frame = [&head[..], &payload].concat();
            let is_data = head[3] == 0 && !self.is_done();
            match (self.fate, asked_id(&payload), only_field(&payload)) {
                (Fate::Taken, Some(id), _) if is_data => {
                    let taken = LeaseGrantOptions::new().with_id(id);
                    self.stranger
                        .lease_client()
                        .grant(STRANGERS_TTL_S, Some(taken))
                        .await
                        .unwrap();
                    self.done.store(true, Ordering::Relaxed);
                }
                (Fate::AnswerLost, Some(id), _) if is_data => {
                    mute.store(true, Ordering::Relaxed);
                    to.write_all(&frame).await?;
                    while self
                        .stranger
                        .lease_client()
                        .time_to_live(id, None)
                        .await
                        .unwrap()
                        .ttl()
                        < 0
                    {
                        sleep(Duration::from_millis(5)).await;
                    }
                    self.done.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                // A key of the lock `k`. Only ranges and transactions read such keys.
                (Fate::DeleteLost, _, Some(key)) if is_data && key.starts_with(b"k/") => {
                    mute.store(true, Ordering::Relaxed);
                    to.write_all(&frame).await?;
                    while !self
                        .stranger
                        .kv_client()
                        .get(key, None)
                        .await
                        .unwrap()
                        .kvs()
                        .is_empty()
                    {
                        sleep(Duration::from_millis(5)).await;
                    }
                    self.done.store(true, Ordering::Relaxed);
                    return Ok(());
                }
                // The request begins with a key. The watch by which the backend detects a proxy has
                // a large id.
                (Fate::Unwatched, _, Some(watch))
                    if head[3] == 0
                        && watch.starts_with(&[0x0a])
                        && !watch.windows(8).any(|id| id == [0xff; 8]) =>
                {
                    self.done.store(true, Ordering::Relaxed);
                    continue;
                }
                _ => {}
            }
            to.write_all(&frame).await?;
        }
    }
}

/// Reads the head and the payload of one frame.
async fn read_frame(from: &mut OwnedReadHalf) -> io::Result<([u8; 9], Vec<u8>)> {
    let mut head = [0; 9];
    from.read_exact(&mut head).await?;
    let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
    from.read_exact(&mut payload).await?;
    Ok((head, payload))
}

/// Queues what the client sends, except that it gives up a request.
async fn queue(mut from: OwnedReadHalf, to: mpsc::UnboundedSender<Vec<u8>>) -> io::Result<()> {
    let mut preface = vec![0; 24];
    from.read_exact(&mut preface).await?;
    drop(to.send(preface));
    loop {
        let (head, payload) = read_frame(&mut from).await?;
        if head[3] != RST_STREAM {
            drop(to.send([&head[..], &payload].concat()));
        }
    }
}

/// Forwards the server's data, also when nobody reads it any more.
async fn answers_or_drain(mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(read) = from.read(&mut buffer).await
        && read > 0
    {
        drop(to.write_all(&buffer[..read]).await);
    }
}

/// Forwards the server's data until `mute` is set.
async fn answers(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mute: &AtomicBool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = from.read(&mut buffer).await?;
        if mute.load(Ordering::Relaxed) {
            return std::future::pending().await;
        }
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
    }
}

/// Returns the id in a lease request: a TTL, and a number larger than any other second field.
fn asked_id(frame: &[u8]) -> Option<i64> {
    let (_ttl, rest) = number(frame.get(5..)?.strip_prefix(&[0x08])?)?;
    let (id, rest) = number(rest.strip_prefix(&[0x10])?)?;
    (rest.is_empty() && id > u32::MAX.into()).then_some(id as i64)
}

/// Returns the content of a message whose only field is a text or a message.
fn only_field(frame: &[u8]) -> Option<&[u8]> {
    let (length, field) = number(frame.get(5..)?.strip_prefix(&[0x0a])?)?;
    (length == field.len() as u64).then_some(field)
}

/// Parses a protobuf number. Returns it and the remaining bytes.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let last = bytes.iter().position(|byte| byte & 0x80 == 0)?;
    let value = bytes[..=last]
        .iter()
        .rev()
        .fold(0_u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, &bytes[last + 1..]))
}
