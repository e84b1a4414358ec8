//! The data of the node of a holder or waiter.

use leasehold_core::{AcquisitionId, backend::Request, text::parse_exact};

use crate::keys::Member;

/// The mark in the data of a node that only waits.
const WAITS: &str = "waits";
/// The longest label in a node's data, in bytes.
pub(crate) const MAX_LABEL: usize = 1024;

/// The prefix of a node's data that asks its holder for a revocation, as Curator's `Revoker` writes
/// it.
pub(crate) const REVOKE: &[u8] = b"__REVOKE__";

/// The state of an acquisition, in the data of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Says {
    /// It holds the lock once no other node is ahead.
    Holds {
        /// The transaction that created the node with which it waited, if that was another node.
        since: Option<i64>,
    },
    /// It only waits. Another node takes its place before it holds.
    Waits,
}

/// Returns the data of the node of an acquisition: `<owner>:<TTL in ms>:<label>` or
/// `<owner>:<TTL in ms>@<czxid>:<label>` if it may hold, `<owner>:waits:<label>` if it only waits.
/// The data of a candidate of an election is its proposal.
pub(crate) fn data_of(request: &Request, says: Says) -> Vec<u8> {
    if let Some(proposal) = request.proposal() {
        return proposal.to_vec();
    }
    let ttl = request.ttl().as_millis();
    let said = match says {
        Says::Holds { since: None } => format!(":{ttl}:"),
        Says::Holds { since: Some(czxid) } => format!(":{ttl}@{czxid}:"),
        Says::Waits => format!(":{WAITS}:"),
    };
    [
        &request.owner().to_hex(),
        said.as_bytes(),
        shown(request.label()).as_bytes(),
    ]
    .concat()
}

/// Returns the part of a label that fits into a node. Many nodes are created in one request, and a
/// server closes the connection on a request of more than 1 MiB (`jute.maxbuffer`).
pub(crate) fn shown(label: &str) -> &str {
    let end = (0..=MAX_LABEL.min(label.len()))
        .rev()
        .find(|at| label.is_char_boundary(*at));
    &label[..end.unwrap_or_default()]
}

/// The parsed data of a node, as [`data_of`] wrote it without a proposal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Data {
    pub(crate) owner: AcquisitionId,
    pub(crate) says: Says,
    /// The TTL in milliseconds, if the node may hold.
    pub(crate) ttl: Option<u64>,
    pub(crate) label: String,
}

impl Data {
    /// Parses the data of the node `member`. Returns `None` if another program wrote it, or if it
    /// is the proposal of a candidate: a proposal cannot contain the random id of its acquisition.
    pub(crate) fn of(member: &Member, data: &[u8]) -> Option<Self> {
        let read = Self::read(data)?;
        member.uuid?.is_of(read.owner).then_some(read)
    }

    /// Parses data. Returns `None` if another program wrote it.
    pub(crate) fn read(data: &[u8]) -> Option<Self> {
        let data = data.strip_prefix(REVOKE).unwrap_or(data);
        let (owner, rest) = data.split_at_checked(32)?;
        let owner = parse_exact::<AcquisitionId>(std::str::from_utf8(owner).ok()?)?;
        let rest = rest.strip_prefix(b":")?;
        let colon = rest.iter().position(|byte| *byte == b':')?;
        let label = String::from_utf8_lossy(&rest[colon + 1..]).into_owned();
        let said = std::str::from_utf8(&rest[..colon]).ok()?;
        if said == WAITS {
            return Some(Self {
                owner,
                says: Says::Waits,
                ttl: None,
                label,
            });
        }
        let (ttl, since) = match said.split_once('@') {
            Some((ttl, czxid)) => (ttl, Some(parse_exact(czxid)?)),
            None => (said, None),
        };
        Some(Self {
            owner,
            says: Says::Holds { since },
            ttl: Some(parse_exact(ttl)?),
            label,
        })
    }
}

#[cfg(test)]
mod tests {
    use leasehold_core::LockKey;

    use super::*;

    #[test]
    fn data_is_read_again_also_after_a_revocation() {
        let request = Request::new(LockKey::new("a").unwrap()).with_label("host:1");
        let label = String::from("host:1");
        for (says, ttl) in [
            (Says::Holds { since: None }, Some(30_000)),
            (
                Says::Holds {
                    since: Some(0x1_0000_0007),
                },
                Some(30_000),
            ),
            (Says::Waits, None),
        ] {
            let (data, read) = (
                data_of(&request, says),
                Some(Data {
                    owner: request.owner(),
                    says,
                    ttl,
                    label: label.clone(),
                }),
            );
            assert_eq!(Data::read(&data), read);
            assert_eq!(Data::read(&[REVOKE, &data].concat()), read);
        }
        assert_eq!(Data::read(b"127.0.0.1"), None);
        let hex = format!("{:032x}", 0xab);
        for data in [
            format!("{}:30000:x", "z".repeat(32)),
            format!("{}:30000:x", hex.to_uppercase()),
            format!("{hex}:+30000:x"),
            format!("{hex}:030000:x"),
            format!("{hex}:30000@+7:x"),
        ] {
            assert_eq!(Data::read(data.as_bytes()), None, "{data}");
        }
        assert_eq!(shown(&"ä".repeat(600)).chars().count(), 512);
    }

    #[test]
    fn the_data_of_a_candidate_is_its_proposal() {
        let mutex = Request::new(LockKey::new("item").unwrap());
        let candidate = mutex.with_proposal(*b"node-3");
        assert_eq!(data_of(&candidate, Says::Holds { since: None }), b"node-3");
    }
}
