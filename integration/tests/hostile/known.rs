//! The scenarios in which a guarantee does not hold, with reasons.

/// A fault that one scenario may show. All other properties are still asserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// The process aborts.
    Abort,
    /// A call blocks its thread.
    Hang,
    /// The memory exceeds the limit.
    Memory,
}

const SQLX_KEEPS: &str = "sqlx keeps every setting that a server reports, and a message of up to 4 GiB as a whole. It has no limit, \
     and no place for a stream of ours. The call ends; the thread that was left behind reads on until the server stops";
const SQLX_READS: &str = "sqlx reads in one poll for as long as bytes come. What opens a connection has a thread of its own; \
     statements on an open connection do not, because two changes of the thread cost more than a tenth of a statement";
const ZOOKEEPER_KEEPS: &str = "the driver queues a request for each event that nobody waits for, and keeps a frame of up to 2 GiB \
     as a whole. It has no limit, and no place for a stream of ours. The call ends; the session's thread reads on until the server \
     stops";
const ZOOKEEPER_ALLOCATES: &str = "the driver allocates a list by its announced length (`Vec::with_capacity` in `record.rs`), \
     before it looks how many bytes there are";
const PROST_GROWS: &str = "an empty part of a message is two bytes on the wire and a hundred in memory; the driver limits the \
     bytes on the wire alone";

/// The protocol, the scenario, the allowed faults, and the reason why they cannot be fixed here.
const KNOWN: &[(&str, &str, &[Allowed], &str)] = &[
    (
        "postgres",
        "endless settings",
        &[Allowed::Memory],
        SQLX_KEEPS,
    ),
    (
        "postgres",
        "settings once connected",
        &[Allowed::Memory],
        SQLX_KEEPS,
    ),
    ("postgres", "huge notice", &[Allowed::Memory], SQLX_KEEPS),
    ("postgres", "huge row", &[Allowed::Memory], SQLX_KEEPS),
    (
        "postgres",
        "notices on an open connection",
        &[Allowed::Hang, Allowed::Memory],
        SQLX_READS,
    ),
    (
        "zookeeper",
        "endless events",
        &[Allowed::Memory],
        ZOOKEEPER_KEEPS,
    ),
    (
        "zookeeper",
        "huge frame",
        &[Allowed::Memory],
        ZOOKEEPER_KEEPS,
    ),
    (
        "zookeeper",
        "huge frame in the session",
        &[Allowed::Memory],
        ZOOKEEPER_KEEPS,
    ),
    (
        "zookeeper",
        "list of 2147483647",
        &[Allowed::Abort],
        ZOOKEEPER_ALLOCATES,
    ),
    (
        "zookeeper",
        "each byte of the server changed",
        &[Allowed::Abort, Allowed::Memory],
        ZOOKEEPER_ALLOCATES,
    ),
    (
        "etcd",
        "message of many parts",
        &[Allowed::Memory],
        PROST_GROWS,
    ),
];

/// Returns the faults that this scenario may show.
pub(crate) fn allowed(protocol: &str, name: &str) -> &'static [Allowed] {
    let known = KNOWN
        .iter()
        .find(|known| (known.0, known.1) == (protocol, name));
    if let Some((_, _, allowed, why)) = known {
        eprintln!("{protocol}, {name}: {allowed:?}, because {why}");
    }
    known.map_or(&[], |known| known.2)
}
