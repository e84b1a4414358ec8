//! The mapping from the driver's errors to Leasehold's.

use std::{error::Error as _, time::Duration};

use leasehold_core::{Error, ErrorKind, backend::support::BackendErrors};
use redis::{ErrorKind as Driver, RedisError, ServerErrorKind as Server};

pub(crate) use leasehold_core::backend::support::SideEffect;

/// Creates the errors of this backend.
pub(crate) const ERRORS: BackendErrors = BackendErrors::new("redis", "a Redis server");

/// The beginning of every message about a connection that broke before the answer arrived.
const BROKE: &str = "the connection broke";

/// Maps an error of a command that was queued on the connection.
pub(crate) fn from_command(
    error: RedisError,
    operation: &'static str,
    effect: SideEffect,
) -> Error {
    let lost = effect.lost_answer();
    let (kind, message) = match error.kind() {
        Driver::Io => (lost, format!("{BROKE} before the answer came ({error})")),
        // A connection that ends in the middle of an answer looks like this to the driver.
        Driver::Parse => (lost, format!("{BROKE} in the middle of the answer")),
        _ => from_answer(&error),
    };
    ERRORS.error(kind, operation, message).with_source(error)
}

/// Returns the error for an answer that did not arrive within `time_out`.
pub(crate) fn silent(
    error: RedisError,
    operation: &'static str,
    effect: SideEffect,
    time_out: Duration,
) -> Error {
    let kind = effect.lost_answer();
    let message = format!(
        "no answer within the response time-out of {time_out:?}; is the server overloaded, stopped or unreachable? The option \
         `timeout` gives it longer"
    );
    ERRORS.error(kind, operation, message).with_source(error)
}

/// Returns whether the connection broke before the answer arrived, so that the operation may be
/// repeated on a new one.
pub(crate) fn is_broken_connection(error: &Error) -> bool {
    error.message().starts_with(BROKE)
}

/// Maps an error of a connection attempt to `endpoint`. `time_out` is the name and the value of the
/// option that limits the attempt.
pub(crate) fn from_connect(error: RedisError, endpoint: &str, time_out: (&str, Duration)) -> Error {
    let (kind, message) = match error.kind() {
        _ if is_certificate(&error) => (
            ErrorKind::Denied,
            format!(
                "the certificate of {endpoint} was not accepted ({error}); name the CA that signed it with \
                 `?ca=/path/to/ca.pem`, and connect by a host name that it contains"
            ),
        ),
        _ if is_of_our_certificate(&error) => (
            ErrorKind::Denied,
            format!(
                "{endpoint} did not accept the client's certificate ({error}); name one that it trusts with \
                 `?cert=/path/to/cert.pem&key=/path/to/key.pem`"
            ),
        ),
        Driver::Io if error.is_timeout() => {
            let (option, after) = time_out;
            (
                ErrorKind::Unavailable,
                format!(
                    "{endpoint} did not answer within {after:?} (the option `{option}`); check the address, the network and the \
                     server"
                ),
            )
        }
        Driver::Io if error.is_connection_dropped() && !error.is_connection_refusal() => (
            ErrorKind::Unavailable,
            format!(
                "{endpoint} closed the connection without a reason ({error}); its log may say why; a proxy may do so that does not \
                 know RESP3, CLIENT, INFO or SCRIPT, and a server that expects TLS"
            ),
        ),
        Driver::Io => (
            ErrorKind::Unavailable,
            format!(
                "cannot connect to {endpoint} ({error}); check the address, and that a server runs there"
            ),
        ),
        _ if asks_for_credentials(&error) => denied(endpoint),
        // The driver uses this text for every refused `SELECT`.
        _ if error.to_string().contains("refused to switch database") => {
            refused_database(&error, endpoint)
        }
        _ => {
            let (kind, message) = from_answer(&error);
            (kind, format!("cannot use {endpoint}: {message}"))
        }
    };
    ERRORS.error(kind, "connect", message).with_source(error)
}

/// Returns whether the server refused the user or the password, or requires them.
pub(crate) fn asks_for_credentials(error: &RedisError) -> bool {
    match error.kind() {
        Driver::AuthenticationFailed => true,
        Driver::Extension => matches!(error.code(), Some("NOAUTH" | "WRONGPASS")),
        Driver::Io | Driver::Parse => false,
        // The driver wraps the answer of a proxy or an older server to its greeting.
        _ => {
            error.code().is_none()
                && ["WRONGPASS", "NOAUTH"]
                    .iter()
                    .any(|code| error.to_string().contains(code))
        }
    }
}

/// Returns whether a connection attempt failed because of its credentials.
pub(crate) fn is_unauthenticated(error: &Error) -> bool {
    error
        .source()
        .and_then(|source| source.downcast_ref())
        .is_some_and(asks_for_credentials)
}

/// Returns the error for credentials that the server accepted before. It is retryable, because the
/// provider may supply new ones.
pub(crate) fn outdated(error: Error, operation: &'static str) -> Error {
    let message =
        "the server refuses credentials that it accepted before; their provider is asked again";
    ERRORS
        .error(ErrorKind::Unavailable, operation, message)
        .with_source(error)
}

fn refused_database(error: &RedisError, endpoint: &str) -> (ErrorKind, String) {
    let answer = error.detail().unwrap_or("no reason");
    if answer.contains("permission") {
        return (
            ErrorKind::Denied,
            format!("{endpoint} does not let this user choose a database: {answer}"),
        );
    }
    (
        ErrorKind::InvalidInput,
        format!(
            "{endpoint} has no such database ({answer}); choose one from 0 to its setting `databases` less one, as in \
             redis://host/0"
        ),
    )
}

fn denied(endpoint: &str) -> (ErrorKind, String) {
    (
        ErrorKind::Denied,
        format!(
            "{endpoint} refused the user or the password; check both where they come from: the URL, the client or the provider"
        ),
    )
}

/// The error codes of a server that refuses writes for now, and what they mean. The refused request
/// had no effect.
const REFUSALS: [(&str, &str); 3] = [
    (
        "OOM",
        "the server has reached maxmemory; give it memory or delete keys",
    ),
    (
        "MISCONF",
        "the server refuses writes because its persistence fails; see its log",
    ),
    (
        "NOREPLICAS",
        "the server refuses writes because too few replicas are online",
    ),
];

/// Returns whether an error has this code. Redis 6.2 puts the code of an error in a script into the
/// text of another error.
fn is_coded(error: &RedisError, code: &str) -> bool {
    match error.kind() {
        Driver::Server(Server::ResponseError) => error
            .detail()
            .is_some_and(|detail| detail.contains(&format!("-{code} "))),
        _ => error.code() == Some(code),
    }
}

/// Maps an error that the server answered.
fn from_answer(error: &RedisError) -> (ErrorKind, String) {
    let retry = |why: &str| (ErrorKind::Unavailable, why.to_owned());
    if let Some((_, why)) = REFUSALS.iter().find(|(code, _)| is_coded(error, code)) {
        return retry(why);
    }
    match error.kind() {
        Driver::Server(kind) => match kind {
            Server::BusyLoading => retry("the server is loading its data after a start; try again"),
            Server::ReadOnly => of_read_only(),
            Server::ResponseError if is_of_replica(error) => of_read_only(),
            Server::MasterDown => retry("the replica has lost its primary; connect to the primary"),
            Server::ClusterDown | Server::TryAgain => retry("the cluster is not able to serve; try again"),
            Server::NoPerm => lacks_right(error),
            Server::ResponseError if is_within_script(error) => lacks_right(error),
            Server::Moved | Server::Ask | Server::CrossSlot => (
                ErrorKind::Unsupported,
                "the key lives on another node of a Redis Cluster, which this backend does not follow; \
                 connect to a single primary"
                    .into(),
            ),
            Server::ResponseError if detail(error).contains("max number of clients") => (
                ErrorKind::Unavailable,
                format!("the server refuses connections ({}); raise its `maxclients`, or end some", detail(error)),
            ),
            Server::ResponseError if detail(error).contains("unknown command") => (
                ErrorKind::Unsupported,
                format!(
                    "the server lacks a command ({}); it may be a Redis Sentinel, or a proxy without scripts: connect to the primary \
                     itself",
                    detail(error)
                ),
            ),
            Server::NoScript => retry("the server forgot a script twice; try again"),
            _ => (ErrorKind::UnexpectedResponse, format!("the server answered with an error: {}", detail(error))),
        },
        Driver::AuthenticationFailed => {
            (ErrorKind::Denied, "the server refused the user or the password; check both in the URL".into())
        }
        Driver::Extension => match error.code() {
            // Protected mode. The rest of the text is a page of advice.
            Some("DENIED") => {
                (ErrorKind::Denied, format!("the server refuses connections: {}", first_sentence(&detail(error))))
            }
            Some("NOAUTH" | "WRONGPASS") => {
                (ErrorKind::Denied, "the server asks for a password, or refused it; give it in the URL".into())
            }
            Some("BUSY") => retry("the server is busy with a long script; try again"),
            Some("LEASETOKEN") => (
                ErrorKind::UnexpectedResponse,
                format!("{}; another program has overwritten the key's token counter; delete it", detail(error)),
            ),
            _ => (ErrorKind::UnexpectedResponse, format!("the server answered with an error: {}", detail(error))),
        },
        Driver::InvalidClientConfig => (ErrorKind::InvalidInput, format!("the driver refuses its settings: {error}")),
        Driver::RESP3NotSupported => (ErrorKind::Unsupported, "the server does not speak RESP3".into()),
        Driver::Parse | Driver::UnexpectedReturnType => {
            (ErrorKind::UnexpectedResponse, "the server's answer is not Redis protocol; is it a Redis server?".into())
        }
        _ => (ErrorKind::UnexpectedResponse, format!("the driver failed: {error}")),
    }
}

fn of_read_only() -> (ErrorKind, String) {
    (
        ErrorKind::Unavailable,
        "the server is a read-only replica; connect to the primary".to_owned(),
    )
}

/// Returns whether the error is that of a server that is not the primary.
pub(crate) fn is_of_replica(error: &RedisError) -> bool {
    matches!(
        error.kind(),
        Driver::Server(Server::ReadOnly | Server::MasterDown)
    ) || is_coded(error, "READONLY")
}

/// Returns whether an acquisition with this error may have acquired the lock.
pub(crate) fn may_have_taken(error: &Error) -> bool {
    let driver = error.source().and_then(|source| source.downcast_ref());
    matches!(
        error.kind(),
        ErrorKind::Indeterminate | ErrorKind::UnexpectedResponse
    ) || driver.is_some_and(is_within_script)
}

/// Returns whether a script failed in the middle because the user lacks a permission. Its earlier
/// writes stay. Redis 7.2 changed the text of this error.
fn is_within_script(error: &RedisError) -> bool {
    let detail = detail(error);
    detail.contains("The user executing the script can't")
        || detail.contains("ACL failure in script")
}

fn lacks_right(error: &RedisError) -> (ErrorKind, String) {
    (
        ErrorKind::Denied,
        format!(
            "the user lacks a permission ({}); see the ACL in this crate's README",
            detail(error)
        ),
    )
}

fn first_sentence(text: &str) -> &str {
    text.split_once(". ").map_or(text, |(first, _)| first)
}

fn detail(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        (Some(code), None) => code.to_owned(),
        _ => error.to_string(),
    }
}

/// Returns whether TLS refused the server's certificate. The driver has no error kind for this: it
/// returns an I/O error with the text of rustls.
fn is_certificate(error: &RedisError) -> bool {
    error.is_io_error()
        && error.to_string().contains("certificate")
        && !is_of_our_certificate(error)
}

/// Returns whether the server refused the client's certificate, or requires one. It then sends one
/// of the TLS alerts below.
fn is_of_our_certificate(error: &RedisError) -> bool {
    const ALERTS: [&str; 4] = ["ertificate", "UnknownCA", "DecryptError", "AccessDenied"];
    let text = error.to_string();
    error.is_io_error()
        && text.contains("fatal alert")
        && ALERTS.iter().any(|alert| text.contains(alert))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_known_by_its_answers_and_retryable() {
        let of = |line: &str| {
            redis::parse_redis_value(format!("-{line}\r\n").as_bytes())
                .unwrap()
                .extract_error()
        };
        for line in [
            "READONLY You can't write against a read only replica.",
            "READONLY You can't write against a read only replica. script: 0, on @user_script:1.",
            "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -READONLY You can't write against \
             a read only replica.",
            "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
        ] {
            let error = of(line).unwrap_err();
            assert!(is_of_replica(&error), "{line}");
            let error = from_command(error, "renew", SideEffect::Writes);
            assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
            assert!(error.is_retryable() && !may_have_taken(&error));
        }
        for line in [
            "OOM command not allowed when used memory > 'maxmemory'.",
            "ERR READONLY",
            "LOADING Redis is loading",
        ] {
            assert!(!is_of_replica(&of(line).unwrap_err()), "{line}");
        }
    }

    #[test]
    fn read_only_server_is_a_retryable_error_without_effect() {
        for code in ["OOM", "MISCONF", "NOREPLICAS"] {
            for line in [
                format!("{code} so it is."),
                format!("{code} so it is. script: 0, on @user_script:1."),
                format!(
                    "ERR Error running script (call to f_0): @user_script:1: @user_script: 1: -{code} so it is."
                ),
            ] {
                let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
                let error = from_command(
                    value.extract_error().unwrap_err(),
                    "acquire",
                    SideEffect::Writes,
                );
                assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                assert!(
                    error.is_retryable()
                        && !may_have_taken(&error)
                        && !error.to_string().contains("so it is")
                );
            }
        }
    }

    #[test]
    fn missing_right_is_denied_and_in_a_script_indeterminate() {
        let answered = |line: &str| {
            let value = redis::parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
            from_command(
                value.extract_error().unwrap_err(),
                "acquire",
                SideEffect::Writes,
            )
        };
        for (line, taken) in [
            (
                "NOPERM this user has no permissions to run the 'evalsha' command",
                false,
            ),
            (
                "ERR The user executing the script can't run this command or subcommand script: 0, on @user_script:1.",
                true,
            ),
            (
                "ERR ACL failure in script: User shop has no permissions to run the 'time' command script: 0",
                true,
            ),
        ] {
            let error = answered(line);
            assert_eq!(
                (error.kind(), may_have_taken(&error)),
                (ErrorKind::Denied, taken),
                "{error}"
            );
        }
        assert!(!may_have_taken(&answered(
            "OOM command not allowed when used memory > 'maxmemory'."
        )));
        assert!(may_have_taken(&answered("ERR something else script: 0")));
    }
}
