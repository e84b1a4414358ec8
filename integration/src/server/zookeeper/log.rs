//! Writes a transaction log in ZooKeeper's format.

/// The first bytes of a log file.
const MAGIC: &[u8] = b"ZKLG";
const VERSION: i32 = 2;

/// The type of a transaction that creates a node.
const CREATE: i32 = 1;
const ALL: i32 = 31;

/// The last byte of every record.
const END: u8 = b'B';

/// Returns a log with one transaction, which creates an empty node and sets the number of children
/// that its parent has had.
pub(super) fn creation(zxid: i64, path: &str, children: i32) -> Vec<u8> {
    let mut record = Vec::new();
    // The session, its request number, the transaction's id, and the time.
    record.extend(0_i64.to_be_bytes());
    record.extend(0_i32.to_be_bytes());
    record.extend(zxid.to_be_bytes());
    record.extend(0_i64.to_be_bytes());
    record.extend(CREATE.to_be_bytes());
    text(&mut record, path);
    text(&mut record, "");
    record.extend(1_i32.to_be_bytes());
    record.extend(ALL.to_be_bytes());
    text(&mut record, "world");
    text(&mut record, "anyone");
    // Not ephemeral.
    record.push(0);
    record.extend(children.to_be_bytes());

    let mut log = MAGIC.to_vec();
    log.extend(VERSION.to_be_bytes());
    log.extend(0_i64.to_be_bytes());
    log.extend(i64::from(adler32(&record)).to_be_bytes());
    log.extend(
        i32::try_from(record.len())
            .expect("the length fits")
            .to_be_bytes(),
    );
    log.extend(record);
    log.push(END);
    log
}

fn text(record: &mut Vec<u8>, text: &str) {
    record.extend(
        i32::try_from(text.len())
            .expect("the length fits")
            .to_be_bytes(),
    );
    record.extend(text.as_bytes());
}

fn adler32(bytes: &[u8]) -> u32 {
    let (mut a, mut b) = (1_u32, 0_u32);
    for byte in bytes {
        a = (a + u32::from(*byte)) % 65_521;
        b = (b + a) % 65_521;
    }
    b << 16 | a
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_checksum_is_adlers() {
        assert_eq!(super::adler32(b"Wikipedia"), 0x11e6_0398);
    }
}
