//! Properties of the parsers, for any input. The package `leasehold-fuzz` searches for an input
//! that breaks one.

use leasehold_core::{LockKey, Mode};

use crate::{
    config::{ElectionNodes, ExclusiveNodes},
    diagnosis,
    keys::{Member, Names, Part},
    node_data::{Data, REVOKE, Says},
    queue::{Standing, find, in_order, refusal, standing},
    revoke,
};

/// Checks the names of nodes, which are the lines of the input, and their data.
pub fn node(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let children: Vec<String> = text.lines().map(str::to_owned).collect();
    for name in &children {
        check_member(name);
    }
    check_queue(&children);
    check_data(data);
    if let Some((czxid, name)) = revoke::read_id(data) {
        assert_eq!(format!("{czxid}:{name}").as_bytes(), data);
    }
    if let Some(said) = diagnosis::read(data) {
        assert!(
            said.len() < 2048 && !said.contains(char::is_control),
            "{said:?}"
        );
    }
    if let Ok(key) = LockKey::new(data) {
        check_path(&key);
    }
}

/// Checks the data of a node.
fn check_data(data: &[u8]) {
    let Some(read) = Data::read(data) else {
        return;
    };
    let data = data.strip_prefix(REVOKE).unwrap_or(data);
    let (owner, _) = data.split_at(32);
    let is_digit = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    assert!(
        owner.iter().all(is_digit),
        "another program's data is taken for ours"
    );
    let said = match (read.says, read.ttl) {
        (Says::Waits, None) => String::from("waits"),
        (Says::Holds { since: None }, Some(ttl)) => ttl.to_string(),
        (Says::Holds { since: Some(since) }, Some(ttl)) => format!("{ttl}@{since}"),
        _ => panic!("{read:?}"),
    };
    let start = [owner, format!(":{said}:").as_bytes()].concat();
    assert!(
        data.starts_with(&start),
        "another program's data is taken for ours"
    );
    let label = String::from_utf8_lossy(&data[start.len()..]);
    assert_eq!(label, read.label);
}

fn check_member(name: &str) {
    let Some(member) = Member::read(name) else {
        return;
    };
    assert_eq!(member.of.is_some(), member.part == Part::Permit, "{name}");
    if !member.is_ours() {
        return;
    }
    let uuid = member.uuid.expect("our nodes have one");
    let mode = match member.part {
        Part::Reader => Mode::Shared,
        Part::Mutex | Part::Latch | Part::Writer => Mode::Exclusive,
        Part::Permit => {
            let of = member
                .of
                .unwrap_or_default()
                .try_into()
                .expect("a semaphore has permits");
            Mode::Permit { of }
        }
    };
    let names = Names {
        root: "".into(),
        exclusive: ExclusiveNodes::Mutex,
        election: ElectionNodes::Latch,
    };
    let directory = names.directory(&LockKey::new("k").expect("a valid name"), false);
    let number = member.sequence.0.cast_signed();
    let written = format!(
        "{}{number:010}",
        directory.node(mode, member.part, uuid).path
    );
    assert_eq!(
        written,
        directory.child(name),
        "another program's node is taken for ours"
    );
}

fn check_queue(children: &[String]) {
    let ordered = in_order(children);
    assert!(ordered.is_sorted_by_key(|(_, member)| member.sequence));
    let key = LockKey::new("k").expect("a valid name");
    let permit = Mode::Permit {
        of: 2.try_into().expect("not zero"),
    };
    for mode in [Mode::Exclusive, Mode::Shared, permit] {
        let refused = refusal(&key, mode, children);
        for (name, member) in &ordered {
            let Some(uuid) = member.uuid else { continue };
            assert!(find(children, uuid).is_some(), "{name}");
            match standing(&key, mode, uuid, children) {
                // A holder refuses a writer.
                Ok(Standing::Holds) if member.part != Part::Permit => {
                    let refused = refusal(&key, Mode::Exclusive, children).expect("no semaphore");
                    assert!(refused.is_some(), "{children:?}");
                }
                Ok(_) => {}
                Err(error) => {
                    assert!(mode.is_permit() && refused.is_err(), "{error}");
                    assert!(error.to_string().contains("`k`"), "{error}");
                }
            }
        }
    }
}

fn check_path(key: &LockKey) {
    for root in ["", "/shop"] {
        let names = Names {
            root: root.into(),
            exclusive: ExclusiveNodes::Mutex,
            election: ElectionNodes::Latch,
        };
        let directory = names.directory(key, false);
        let segment = directory
            .path()
            .strip_prefix(root)
            .and_then(|rest| rest.strip_prefix('/'));
        let segment = segment.expect("it is below the root");
        assert!(
            !segment.is_empty() && !segment.contains('/') && !segment.contains(char::is_control)
        );
        assert!(
            ![".", "..", "%sessions", "%permits"].contains(&segment),
            "{segment}"
        );
        assert!(!root.is_empty() || segment != "zookeeper");
        let decoded: Vec<u8> = percent_decode(segment);
        assert_eq!(decoded, key.as_bytes(), "{segment}");
        assert_ne!(names.directory(key, true), directory);
    }
}

fn percent_decode(segment: &str) -> Vec<u8> {
    let mut parts = segment.split('%');
    let mut decoded = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (digits, rest) = part.split_at(2);
        decoded.push(u8::from_str_radix(digits, 16).expect("two digits"));
        decoded.extend(rest.bytes());
    }
    decoded
}
