//! Candidates of an election. The data of a candidate's node is its proposal, as in Curator's
//! `LeaderLatch` and `LeaderSelector`, and the candidate whose node is first is the leader.

use leasehold_core::{
    AcquisitionId, ErrorKind, FencingToken, Mode, Record, Result, backend::Request,
};
use zookeeper_client::Stat;

use crate::{
    config::ElectionNodes,
    connection::time_of,
    error::ERRORS,
    keys::{Member, Part},
    node_data::{Data, REVOKE},
};

/// Checks that the servers can take the proposal of a request, if it has one.
pub(crate) fn check_request(request: &Request) -> Result<()> {
    let Some(proposal) = request.proposal() else {
        return Ok(());
    };
    if request.mode() != Mode::Exclusive {
        return Err(ERRORS.error(
            ErrorKind::InvalidInput,
            "acquire",
            "a candidate of an election acquires an exclusive lock; \
             leave the proposal out, or ask for a mutex",
        ));
    }
    check_proposal(proposal, "acquire")
}

/// Checks that the servers can take this proposal.
pub(crate) fn check_proposal(proposal: &[u8], operation: &'static str) -> Result<()> {
    if proposal.starts_with(REVOKE) {
        return Err(ERRORS.error(
            ErrorKind::InvalidInput,
            operation,
            "a proposal cannot begin with `__REVOKE__`, which asks the leader to give up; \
             choose another value",
        ));
    }
    if proposal.len() > Record::MAX_LEN {
        return Err(ERRORS.error(
            ErrorKind::InvalidInput,
            operation,
            format!(
                "the proposal has {} bytes and the limit is {}; store it elsewhere, and propose a \
                 reference to it",
                proposal.len(),
                Record::MAX_LEN
            ),
        ));
    }
    Ok(())
}

/// Returns whether the node may be that of a candidate, as far as its name says.
pub(crate) fn may_be_candidate(member: &Member) -> bool {
    matches!(member.part, Part::Latch | Part::Mutex)
}

/// Returns the proposal in the data of the node `member`, if it is that of a candidate.
pub(crate) fn proposal<'a>(
    member: &Member,
    data: &'a [u8],
    election: ElectionNodes,
) -> Option<&'a [u8]> {
    let is_candidate = match member.part {
        Part::Latch => true,
        // Curator's `Revoker` replaces the data of a mutex.
        Part::Mutex if member.is_ours() => Data::of(member, data).is_none() && data != REVOKE,
        // The names of Curator's mutexes and of its `LeaderSelector` are the same.
        Part::Mutex => election == ElectionNodes::Selector,
        _ => false,
    };
    is_candidate.then(|| data.strip_prefix(REVOKE).unwrap_or(data))
}

/// Returns the proposal of a candidate as a record.
pub(crate) fn record(member: &Member, proposal: &[u8], stat: &Stat) -> Record {
    let owner = match member.uuid {
        Some(uuid) => uuid.owner(),
        // Another program has made up the name.
        None => AcquisitionId::from(u128::from(stat.czxid.unsigned_abs())),
    };
    let mut record = Record::new(owner, proposal);
    record.version = version(stat);
    record.sequence = u64::from(stat.version.unsigned_abs()) + 1;
    record.token = Some(FencingToken::new(stat.czxid.unsigned_abs()));
    record.written = time_of(stat.mtime);
    record
}

/// Returns the version of a proposal: the transaction that wrote it. It grows with each proposal of
/// one candidate.
pub(crate) fn version(stat: &Stat) -> u64 {
    stat.mzxid.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use leasehold_core::LockKey;

    use super::*;
    use crate::keys::Uuid;
    use crate::node_data::{Says, data_of};

    fn request() -> Request {
        Request::new(LockKey::new("k").unwrap())
    }

    fn member(request: &Request, mark: &str) -> Member {
        let uuid = Uuid::new(7, request.owner());
        Member::read(&format!("_c_{uuid}-{mark}0000000003")).unwrap()
    }

    fn foreign(mark: &str) -> Member {
        let name = format!("_c_0f8fad5b-d9cb-469f-a165-70867728950e-{mark}0000000003");
        Member::read(&name).unwrap()
    }

    #[test]
    fn proposals_that_mean_a_revocation_or_are_long_are_refused() {
        for (proposal, named) in [
            (b"__REVOKE__".to_vec(), "__REVOKE__"),
            (b"__REVOKE__web-3".to_vec(), "another value"),
            (vec![b'x'; Record::MAX_LEN + 1], "16385 bytes"),
        ] {
            let refused = check_request(&request().with_proposal(proposal)).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidInput);
            assert!(refused.to_string().contains(named), "{refused}");
        }
        for proposal in [vec![], b"__REVOKE_".to_vec(), vec![0xff; Record::MAX_LEN]] {
            check_request(&request().with_proposal(proposal)).unwrap();
        }
        let shared = request().with_mode(Mode::Shared).with_proposal(*b"web-3");
        let refused = check_request(&shared).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidInput);
        check_request(&request().with_mode(Mode::Shared)).unwrap();
    }

    #[test]
    fn a_candidate_is_known_by_its_name_or_by_its_data() {
        use ElectionNodes::{Latch, Selector};
        let request = request().with_label("host");
        let held = data_of(&request, Says::Holds { since: None });
        let revoked = [REVOKE, &held].concat();
        let (latch, lock) = (member(&request, "latch-"), member(&request, "lock-"));
        for election in [Latch, Selector] {
            let shown = |member: &Member, data: &'static [u8]| proposal(member, data, election);
            assert_eq!(shown(&latch, b"web-3"), Some(&b"web-3"[..]));
            assert_eq!(shown(&latch, b"__REVOKE__web-3"), Some(&b"web-3"[..]));
            assert_eq!(shown(&lock, b"web-3"), Some(&b"web-3"[..]));
            assert_eq!(shown(&lock, b"__REVOKE__web-3"), Some(&b"web-3"[..]));
            assert_eq!(shown(&lock, b""), Some(&b""[..]));
            assert_eq!(shown(&foreign("latch-"), b"theirs"), Some(&b"theirs"[..]));
            assert_eq!(shown(&foreign("__WRIT__"), b"theirs"), None);
            // A mutex.
            assert_eq!(proposal(&lock, &held, election), None);
            assert_eq!(proposal(&lock, &revoked, election), None);
            assert_eq!(shown(&lock, b"__REVOKE__"), None);
        }
        let theirs = foreign("lock-");
        assert_eq!(proposal(&theirs, b"10.0.0.1", Latch), None);
        assert_eq!(proposal(&theirs, b"id", Selector), Some(&b"id"[..]));
    }

    /// A proposal may look like the data of another acquisition's mutex.
    #[test]
    fn a_proposal_that_resembles_our_data_is_one() {
        let request = request();
        let lock = member(&request, "lock-");
        let data = data_of(&request.as_new_owner(), Says::Waits);
        assert!(Data::read(&data).is_some());
        assert_eq!(proposal(&lock, &data, ElectionNodes::Latch), Some(&*data));
    }
}
