//! The Lua scripts. Each is sent once per connection and named by its hash from then on.

use std::sync::LazyLock;

/// A script and its hash.
pub(crate) struct Script {
    pub(crate) source: &'static str,
    hash: LazyLock<String>,
}

impl Script {
    const fn new(source: &'static str, hash: fn() -> String) -> Self {
        Self {
            source,
            hash: LazyLock::new(hash),
        }
    }

    /// Returns the SHA-1 of the source, by which the server names the script.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }
}

macro_rules! scripts {
    ($($name:ident = $($fragment:ident +)* [$file:literal];)*) => {
        $(pub(crate) static $name: Script = {
            const SOURCE: &str = concat!(
                $(include_str!(concat!("scripts/shared/", stringify!($fragment), ".lua")),)*
                include_str!(concat!("scripts/", $file, ".lua"))
            );
            Script::new(SOURCE, || redis::Script::new(SOURCE).get_hash().to_owned())
        };)*
        /// All of them.
        pub(crate) static ALL: &[&Script] = &[$(&$name),*];
    };
}

// Each script comes after the fragments of `scripts/shared` that it uses.
scripts! {
    ACQUIRE = time + tokens + acquisition + waiters + writers + ["acquire"];
    ACQUIRE_YIELDING = ["acquire_yielding"];
    ACQUIRE_SHARED = time + values + members + tokens + acquisition + waiters + readers + ["acquire_shared"];
    ACQUIRE_PERMIT = time + values + members + acquisition + waiters + ["acquire_permit"];
    RELEASE = values + ["release"];
    RELEASE_SHARED = time + values + members + ["release_shared"];
    RELEASE_PERMIT = time + values + members + ["release_permit"];
    RENEW = values + ["renew"];
    RENEW_SHARED = time + values + members + ["renew_shared"];
    RENEW_PERMIT = time + values + members + ["renew_permit"];
    REVOKE = values + revocation + ["revoke"];
    REVOKE_MEMBER = time + values + revocation + ["revoke_member"];
    INSPECT = time + tokens + ["inspect"];
    READ_RECORD = time + values + ["read_record"];
    WRITE_RECORD = time + values + tokens + ["write_record"];
    QUORUM_ACQUIRE = time + values + tokens + acquisition + waiters + writers + node + ["quorum_acquire"];
    QUORUM_ACQUIRE_SHARED = time + values + members + tokens + acquisition + waiters + readers + node
        + ["quorum_acquire_shared"];
    QUORUM_RAISE = time + values + members + tokens + node + ["quorum_raise"];
    QUORUM_STATE = time + tokens + node + ["quorum_state"];
    QUORUM_MARK = time + tokens + node + ["quorum_mark"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rights_in_the_readme_are_enough_for_every_script() {
        let rights = include_str!("../README.md")
            .lines()
            .find(|line| line.starts_with("ACL SETUSER"))
            .unwrap();
        let rights: Vec<_> = rights.split(' ').collect();
        for script in ALL {
            for call in script.source.split("call('").skip(1) {
                let command = call.split('\'').next().unwrap().to_lowercase();
                assert!(
                    rights.contains(&&*format!("+{command}")),
                    "no right to {command}"
                );
            }
        }
    }
}
