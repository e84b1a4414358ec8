//! The options of libpq that the driver does not support.

use leasehold_core::{Result, url::BackendUrl};

use crate::config::invalid;

/// The options of libpq that the driver does not support, with the values that are accepted because
/// they have no effect, and the reason why others are refused.
const UNSUPPORTED_OPTIONS: [(&str, &[&str], &str); 34] = [
    (
        "channel_binding",
        &["disable", "prefer"],
        "the driver has no channel binding; use sslmode=verify-full",
    ),
    (
        "client_encoding",
        &["UTF8", "utf8", "auto"],
        "the driver speaks UTF-8",
    ),
    ("gssdelegation", &["0"], NO_GSSAPI),
    ("gssencmode", &["disable", "prefer"], NO_GSSAPI),
    ("gsslib", &[], NO_GSSAPI),
    ("keepalives", &[], SILENCE),
    ("keepalives_count", &[], SILENCE),
    ("keepalives_idle", &[], SILENCE),
    ("keepalives_interval", &[], SILENCE),
    ("krbsrvname", &[], NO_GSSAPI),
    ("load_balance_hosts", &["disable"], ONE_HOST),
    (
        "max_protocol_version",
        &["3.0", "latest"],
        "the driver speaks version 3.0",
    ),
    (
        "min_protocol_version",
        &["3.0"],
        "the driver speaks version 3.0",
    ),
    (
        "passfile",
        &[],
        "the driver reads the file that PGPASSFILE names",
    ),
    (
        "replication",
        &["false", "no", "off", "0"],
        "locks need an ordinary connection",
    ),
    ("require_auth", &[], NOT_THE_DRIVERS),
    ("requirepeer", &[], NOT_THE_DRIVERS),
    ("requiressl", &["0"], "write sslmode"),
    ("scram_client_key", &[], NOT_THE_DRIVERS),
    ("scram_server_key", &[], NOT_THE_DRIVERS),
    (
        "service",
        &[],
        "the driver reads no service file; write its settings into the URL",
    ),
    (
        "servicefile",
        &[],
        "the driver reads no service file; write its settings into the URL",
    ),
    ("ssl_max_protocol_version", &[], NOT_THE_DRIVERS),
    (
        "ssl_min_protocol_version",
        &["TLSv1", "TLSv1.1", "TLSv1.2"],
        "the driver's least version is TLSv1.2",
    ),
    (
        "sslcertmode",
        &["allow"],
        "the driver sends the certificate that `sslcert` names, if the server asks for one",
    ),
    ("sslcompression", &["0"], NOT_THE_DRIVERS),
    ("sslcrl", &[], NOT_THE_DRIVERS),
    ("sslcrldir", &[], NOT_THE_DRIVERS),
    ("sslkeylogfile", &[], NOT_THE_DRIVERS),
    ("sslnegotiation", &["postgres"], NOT_THE_DRIVERS),
    (
        "sslpassword",
        &[],
        "the driver reads keys without a passphrase alone",
    ),
    ("sslsni", &["1"], NOT_THE_DRIVERS),
    (
        "target_session_attrs",
        &["any", "primary", "read-write"],
        "locks live on the primary",
    ),
    ("tcp_user_timeout", &[], SILENCE),
];
const NO_GSSAPI: &str = "the driver has no GSSAPI";
const NOT_THE_DRIVERS: &str = "the driver has nothing like it";
const SILENCE: &str = "the backend notices silent connections by itself; see `timeout`";
pub(super) const ONE_HOST: &str =
    "locks live on one server; name an address that always leads to the primary";

/// Removes the options that the driver does not support, and refuses those that would have an
/// effect.
pub(super) fn check_unsupported_options(url: &mut BackendUrl) -> Result<()> {
    // The connections have names of their own, by which sessions are recognized.
    for option in ["application_name", "fallback_application_name"] {
        url.take(option)?;
    }
    for (option, nothing, why) in UNSUPPORTED_OPTIONS {
        // From a copy, so that the error about an unknown option does not list these options.
        if url.clone().take(option)?.is_none() {
            continue;
        }
        if url
            .take(option)?
            .is_some_and(|value| !nothing.contains(&&*value))
        {
            let only = match nothing {
                [] => String::new(),
                values => format!(" (only {})", values.join(", ")),
            };
            return Err(invalid(format!(
                "the option `{option}` of libpq is not supported{only}: {why}"
            )));
        }
    }
    Ok(())
}
