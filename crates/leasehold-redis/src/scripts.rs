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
    ($($name:ident = $($file:literal)+;)*) => {
        $(pub(crate) static $name: Script = {
            const SOURCE: &str = concat!($(include_str!(concat!("scripts/", $file, ".lua"))),+);
            Script::new(SOURCE, || redis::Script::new(SOURCE).get_hash().to_owned())
        };)*
        /// All of them.
        pub(crate) static ALL: &[&Script] = &[$(&$name),*];
    };
}

scripts! {
    ACQUIRE = "waiters" "acquire";
    ACQUIRE_YIELDING = "acquire_yielding";
    ACQUIRE_SHARED = "waiters" "acquire_shared";
    ACQUIRE_PERMIT = "waiters" "acquire_permit";
    RELEASE = "release";
    RELEASE_SHARED = "release_shared";
    RELEASE_PERMIT = "release_permit";
    RENEW = "renew";
    RENEW_SHARED = "renew_shared";
    RENEW_PERMIT = "renew_permit";
    REVOKE = "revoke";
    REVOKE_MEMBER = "revoke_member";
    INSPECT = "inspect";
    QUORUM_ACQUIRE = "quorum_run" "waiters" "quorum_acquire";
    QUORUM_ACQUIRE_SHARED = "quorum_run" "waiters" "quorum_acquire_shared";
    QUORUM_RAISE = "quorum_run" "quorum_raise";
    QUORUM_STATE = "quorum_run" "quorum_state";
    QUORUM_MARK = "quorum_run" "quorum_mark";
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
