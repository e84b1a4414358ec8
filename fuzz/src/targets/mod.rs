//! The table of targets, and the entry point that libFuzzer calls.

mod duration;
mod history;
mod record;
mod scheme;
mod url;
mod values;

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

/// A property of a parser. It panics for an input that breaks it.
type Property = fn(&[u8]);

/// The targets. Each has a folder of inputs in `fuzz/corpus`.
///
/// A parser that is private has its property in the module `fuzzing` of its crate.
const TARGETS: [(&str, Property); 19] = [
    ("cli_duration", duration::check),
    ("core_record", record::check),
    ("core_url", url::core),
    ("core_values", values::check),
    ("etcd_key", leasehold_etcd::fuzzing::key),
    ("etcd_url", url::etcd),
    ("facade_scheme", scheme::check),
    ("file_beside", leasehold_local::fuzzing::beside),
    ("file_proc_locks", leasehold_local::fuzzing::proc_locks),
    ("history", history::check),
    ("postgres_name", leasehold_postgres::fuzzing::name),
    ("postgres_url", url::postgres),
    ("redis_key", leasehold_redis::fuzzing::key),
    ("redis_record", leasehold_redis::fuzzing::record),
    ("redis_reply", leasehold_redis::fuzzing::reply),
    ("redis_url", url::redis),
    ("redis_value", leasehold_redis::fuzzing::value),
    ("zookeeper_node", leasehold_zookeeper::fuzzing::node),
    ("zookeeper_url", url::zookeeper),
];

/// The property of the target that the environment variable `LEASEHOLD_FUZZ_TARGET` names. The name
/// `list` prints all names.
static PROPERTY: LazyLock<Property> = LazyLock::new(|| {
    let name = std::env::var("LEASEHOLD_FUZZ_TARGET").unwrap_or_default();
    if name == "list" {
        for (name, _) in TARGETS {
            println!("{name}");
        }
        return |_| {};
    }
    let target = TARGETS.into_iter().find(|(known, _)| *known == name);
    let (_, property) = target.unwrap_or_else(|| panic!("there is no target `{name}`"));
    property
});

fuzz_target!(|data: &[u8]| PROPERTY(data));
