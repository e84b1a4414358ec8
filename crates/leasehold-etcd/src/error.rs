//! Conversion of the driver's errors.

use std::{fmt, time::Duration};

use etcd_client::Error as Driver;
use leasehold_core::{Error, ErrorKind, backend::support::BackendErrors};

pub(crate) use leasehold_core::backend::support::SideEffect;

/// Creates the errors of this backend.
pub(crate) const ERRORS: BackendErrors = BackendErrors::new("etcd", "an etcd server");

/// The failure of a request to one member.
#[derive(Clone, Debug)]
pub(crate) struct MemberError {
    pub(crate) error: Error,
    /// Whether the request may succeed at the next member.
    pub(crate) try_next: bool,
}

impl MemberError {
    /// Converts the driver's error of a request without side effects.
    pub(crate) fn from_driver(error: Driver, operation: &'static str, address: &str) -> Self {
        let try_next = may_succeed_elsewhere(&error);
        Self {
            error: from_driver(error, operation, SideEffect::None, address),
            try_next,
        }
    }

    /// Creates an error that every other member would return too.
    pub(crate) fn fatal(error: Error) -> Self {
        Self {
            error,
            try_next: false,
        }
    }
}

/// Creates the error of a time-out.
pub(crate) fn timed_out(
    operation: &'static str,
    effect: SideEffect,
    endpoint: &str,
    timeout: Duration,
) -> Error {
    let message = format!(
        "no answer from {endpoint} within {timeout:?} (the option `timeout`, and at most a quarter of the TTL); is the \
         server overloaded, stopped or unreachable?{}",
        hint(operation, endpoint)
    );
    ERRORS.error(effect.lost_answer(), operation, message)
}

/// Returns another possible cause if no reply has arrived yet.
fn hint(operation: &str, endpoint: &str) -> &'static str {
    match operation {
        "connect" if endpoint.starts_with("etcds:") => {
            " Is it an etcd server with TLS, and does it accept the client's certificate (`?cert=` and `&key=`)?"
        }
        "connect" => " Is it an etcd server, and one without TLS? With TLS, write `etcds:`.",
        _ => "",
    }
}

/// Returns whether the request may succeed at another member of the cluster.
pub(crate) fn may_succeed_elsewhere(error: &Driver) -> bool {
    match error {
        Driver::GRpcStatus(status) => {
            matches!(
                i32::from(status.code()),
                CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE
            )
        }
        Driver::TransportError(_)
        | Driver::IoError(_)
        | Driver::WatchError(_)
        | Driver::LeaseKeepAliveError(_) => true,
        _ => false,
    }
}

/// Returns whether the server reports that a lease with this id exists.
pub(crate) fn is_lease_taken(error: &Driver) -> bool {
    matches!(error, Driver::GRpcStatus(status) if status.message().contains("lease already exists"))
}

/// Returns whether a request has more operations than the server's `--max-txn-ops`, or more bytes
/// than its `--max-request-bytes`.
pub(crate) fn is_too_large(error: &Driver) -> bool {
    const MESSAGES: [&str; 3] = [
        "too many operations in txn",
        "request is too large",
        "received message larger than max",
    ];
    matches!(error, Driver::GRpcStatus(status) if MESSAGES.iter().any(|text| status.message().contains(text)))
}

/// Returns whether the server rejects the token of a request, or requires one. A new token may
/// remedy that.
pub(crate) fn is_token_refused(error: &Driver) -> bool {
    let Driver::GRpcStatus(status) = error else {
        return false;
    };
    i32::from(status.code()) == UNAUTHENTICATED || is_about_token(status.message())
}

/// Returns whether a message of the server, or the reason of a refused watch, concerns the token.
pub(crate) fn is_about_token(message: &str) -> bool {
    // The token is expired or unknown; is older than a change of users and roles (3.5 and 3.4); or
    // is missing.
    const MESSAGES: [&str; 4] = [
        "invalid auth token",
        "revision of auth store is old",
        "revision in header is old",
        "user name is empty",
    ];
    MESSAGES.iter().any(|text| message.contains(text))
}

/// Returns whether authentication is disabled on the server.
pub(crate) fn is_without_users(error: &Driver) -> bool {
    matches!(error, Driver::GRpcStatus(status) if status.message().contains("authentication is not enabled"))
}

/// Returns whether the server reports that the lease does not exist.
pub(crate) fn is_lease_gone(error: &Driver) -> bool {
    match error {
        Driver::GRpcStatus(status) => status.message().contains("lease not found"),
        Driver::LeaseKeepAliveError(message) => message.contains("lease not found"),
        _ => false,
    }
}

// The status codes of gRPC.
const CANCELLED: i32 = 1;
const UNKNOWN: i32 = 2;
const INVALID_ARGUMENT: i32 = 3;
const DEADLINE_EXCEEDED: i32 = 4;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const UNIMPLEMENTED: i32 = 12;
const INTERNAL: i32 = 13;
const UNAVAILABLE: i32 = 14;
const UNAUTHENTICATED: i32 = 16;

/// Converts the driver's error of a request to `endpoint`.
pub(crate) fn from_driver(
    error: Driver,
    operation: &'static str,
    effect: SideEffect,
    endpoint: &str,
) -> Error {
    let cause = cause(&error);
    let (kind, message) = match &error {
        _ if is_lease_gone(&error) => {
            (ErrorKind::Lost, "the server knows no such lease: it expired or was revoked".into())
        }
        _ if is_lease_taken(&error) => (
            ErrorKind::Unavailable,
            "leases with the ids that were drawn exist already; does another program grant them first?".into(),
        ),
        _ if is_too_large(&error) => (
            ErrorKind::Unsupported,
            format!(
                "the server refuses a request of one lock ({cause}); raise its `--max-txn-ops` to 3 or more, or its \
                 `--max-request-bytes`"
            ),
        ),
        _ if is_certificate(&cause) => certificate(endpoint, &cause),
        Driver::GRpcStatus(status) => match status.message().split_once(FROM_HTTP) {
            Some((_, answered)) => of_web_server(answered, effect, endpoint),
            None => of_status(i32::from(status.code()), status.message(), &cause, operation, effect, endpoint),
        },
        Driver::TransportError(_) | Driver::IoError(_) => connection_error(&cause, operation, effect, endpoint),
        Driver::WatchError(_) | Driver::LeaseKeepAliveError(_) => {
            (effect.lost_answer(), format!("the stream with {endpoint} ended: {cause}"))
        }
        Driver::InvalidArgs(_)
        | Driver::InvalidUri(_)
        | Driver::EndpointError(_)
        | Driver::EndpointsNotManaged
        | Driver::InvalidMetadataValue(_) => {
            (ErrorKind::InvalidInput, format!("the driver refuses its settings for {endpoint}: {cause}"))
        }
        _ => (ErrorKind::UnexpectedResponse, format!("the driver failed: {cause}")),
    };
    ERRORS.error(kind, operation, message).with_source(Cause {
        cause,
        driver: error,
    })
}

fn of_status(
    code: i32,
    message: &str,
    cause: &str,
    operation: &str,
    effect: SideEffect,
    endpoint: &str,
) -> (ErrorKind, String) {
    let denied = |what: &str| {
        (
            ErrorKind::Denied,
            format!("{endpoint} refused {what} ({message})"),
        )
    };
    match code {
        PERMISSION_DENIED => {
            denied("the access; the user needs read and write permission on the prefix")
        }
        UNAUTHENTICATED => denied("the user; check user and password"),
        _ if is_about_token(message) => denied("the user; connect with a user and a password"),
        INVALID_ARGUMENT if message.contains("auth") || message.contains("user name is empty") => {
            denied("the user or the password; check both")
        }
        // The request was refused before it was proposed.
        RESOURCE_EXHAUSTED if message.contains("database space") => (
            ErrorKind::Unavailable,
            "the server has reached its space quota; compact, defragment and disarm the alarm"
                .into(),
        ),
        RESOURCE_EXHAUSTED => (
            ErrorKind::Unavailable,
            format!("the server refuses for now: {message}"),
        ),
        UNAVAILABLE if message.contains("no leader") => (
            ErrorKind::Unavailable,
            "the cluster has no leader; are most of its members up and connected?".into(),
        ),
        UNAVAILABLE if message.contains("for learner") => (
            ErrorKind::Unavailable,
            format!("{endpoint} is a learner, which serves no locks; name voting members"),
        ),
        UNAVAILABLE if message.contains("etcdserver") => (
            effect.lost_answer(),
            format!("the server gave up: {message}"),
        ),
        CANCELLED | UNKNOWN | DEADLINE_EXCEEDED | INTERNAL | UNAVAILABLE => {
            connection_error(cause, operation, effect, endpoint)
        }
        UNIMPLEMENTED => (
            ErrorKind::Unsupported,
            "the server does not know this request; etcd 3.4 or later does".into(),
        ),
        _ => (
            ErrorKind::UnexpectedResponse,
            format!("the server answered with an error: {message}"),
        ),
    }
}

/// A part of the driver's message about a response without a gRPC status.
const FROM_HTTP: &str = "mapped from HTTP status code ";

fn of_web_server(status: &str, effect: SideEffect, endpoint: &str) -> (ErrorKind, String) {
    // Too many requests, and gateways whose server is down, are temporary errors.
    let passes = ["429", "502", "503", "504"].contains(&status);
    let kind = if passes {
        effect.lost_answer()
    } else {
        ErrorKind::UnexpectedResponse
    };
    let message = format!(
        "{endpoint} answered with HTTP status {status} and not as etcd does; is it an etcd server, or a proxy that does not \
         pass gRPC on?"
    );
    (kind, message)
}

fn connection_error(
    cause: &str,
    operation: &str,
    effect: SideEffect,
    endpoint: &str,
) -> (ErrorKind, String) {
    // Without a connection, nothing was sent.
    let connecting = [
        "tcp connect error",
        "Connection refused",
        "dns error",
        "failed to lookup",
    ];
    if connecting.iter().any(|text| cause.contains(text)) {
        let remedy = if cause.contains("deadline has elapsed") {
            "no member answered within the option `connect-timeout`, 1 s unless set; check the address, and firewalls"
        } else {
            "check the address, and that a server runs there"
        };
        return (
            ErrorKind::Unavailable,
            format!("cannot connect to {endpoint} ({cause}); {remedy}"),
        );
    }
    let hint = hint(operation, endpoint);
    if cause == NOT_HTTP_2 {
        return (
            effect.lost_answer(),
            format!("what {endpoint} answered is {NOT_HTTP_2}, which etcd speaks.{hint}"),
        );
    }
    let ended = if hint.is_empty() { "" } else { "." };
    let message =
        format!("the connection to {endpoint} broke before the answer came ({cause}){ended}{hint}");
    (effect.lost_answer(), message)
}

fn certificate(endpoint: &str, cause: &str) -> (ErrorKind, String) {
    if cause.contains(ALERT) {
        let remedy = "name one that its authority signed with `?cert=/path/to/cert.pem&key=/path/to/key.pem`";
        return (
            ErrorKind::Denied,
            format!("{endpoint} did not accept our certificate ({cause}); {remedy}"),
        );
    }
    let remedy = "name the CA that signed it with `?ca=/path/to/ca.pem`, and connect by a host name that it contains";
    (
        ErrorKind::Denied,
        format!("the certificate of {endpoint} was not accepted ({cause}); {remedy}"),
    )
}

/// The driver's message about an error that the other side reports.
const ALERT: &str = "received fatal alert";

fn is_certificate(cause: &str) -> bool {
    ["certificate", "Certificate", "UnknownIssuer", "UnknownCA"]
        .iter()
        .any(|text| cause.contains(text))
}

/// Returns the messages of an error and its causes. The driver's own message shows the causes with
/// `Debug`.
fn cause(error: &Driver) -> String {
    let (message, mut next) = match error {
        Driver::GRpcStatus(status) => (
            status.message().to_owned(),
            std::error::Error::source(status),
        ),
        Driver::TransportError(error) => (error.to_string(), std::error::Error::source(error)),
        Driver::IoError(error) => (error.to_string(), None),
        Driver::WatchError(message) | Driver::LeaseKeepAliveError(message) => {
            (message.clone(), None)
        }
        other => (other.to_string(), None),
    };
    let mut parts = vec![message];
    while let Some(cause) = next {
        let message = cause.to_string();
        if !parts.iter().any(|part| part.contains(&message)) {
            parts.push(message);
        }
        next = cause.source();
    }
    // The driver uses this text for every error.
    if parts.len() > 1 {
        parts.retain(|part| part != "transport error");
    }
    let cause = parts.join(": ");
    // The driver found this error in the response. Which frame is invalid does not help the user.
    if cause.contains("http2 error") && cause.contains("detected") {
        NOT_HTTP_2.to_owned()
    } else {
        cause
    }
}

/// The cause if the server uses another protocol.
const NOT_HTTP_2: &str = "not HTTP/2";

/// The driver's error, with a readable message.
#[derive(Debug)]
struct Cause {
    cause: String,
    #[expect(dead_code, reason = "shown by `Debug`")]
    driver: Driver,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl std::error::Error for Cause {}

#[cfg(test)]
mod tests {
    use etcd_client::Error as Driver;
    use tonic::{Code, Status};

    use super::*;

    fn mapped(code: Code, message: &str, effect: SideEffect) -> Error {
        from_driver(
            Driver::GRpcStatus(Status::new(code, message)),
            "acquire",
            effect,
            "etcd://h:2379",
        )
    }

    /// The messages of the server are from `api/v3rpc/rpctypes/error.go`.
    #[test]
    fn messages_of_the_server_are_mapped_to_kinds() {
        for (code, message, kind, expected) in [
            // Refused before it was proposed: the request had no effect and may be repeated.
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                ErrorKind::Unavailable,
                "too many requests",
            ),
            (
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded",
                ErrorKind::Unavailable,
                "disarm",
            ),
            (
                Code::Unavailable,
                "etcdserver: no leader",
                ErrorKind::Unavailable,
                "no leader",
            ),
            (
                Code::Unavailable,
                "etcdserver: rpc not supported for learner",
                ErrorKind::Unavailable,
                "voting members",
            ),
            (
                Code::InvalidArgument,
                "etcdserver: request is too large",
                ErrorKind::Unsupported,
                "--max-request-bytes",
            ),
            (
                Code::Unavailable,
                "etcdserver: request timed out",
                ErrorKind::Indeterminate,
                "gave up",
            ),
            (
                Code::Unavailable,
                "etcdserver: leader changed",
                ErrorKind::Indeterminate,
                "gave up",
            ),
            (
                Code::NotFound,
                "etcdserver: requested lease not found",
                ErrorKind::Lost,
                "expired",
            ),
            (
                Code::PermissionDenied,
                "etcdserver: permission denied",
                ErrorKind::Denied,
                "permission",
            ),
            (
                Code::Unauthenticated,
                "etcdserver: invalid auth token",
                ErrorKind::Denied,
                "password",
            ),
            (
                Code::InvalidArgument,
                "etcdserver: authentication failed, invalid user ID or password",
                ErrorKind::Denied,
                "password",
            ),
            (
                Code::Unimplemented,
                "unknown service",
                ErrorKind::Unsupported,
                "3.4",
            ),
            (
                Code::FailedPrecondition,
                "etcdserver: lease already exists",
                ErrorKind::Unavailable,
                "exist already",
            ),
            (
                Code::InvalidArgument,
                "etcdserver: too many operations in txn request",
                ErrorKind::Unsupported,
                "--max-txn-ops",
            ),
            (
                Code::Unimplemented,
                "grpc-status header missing, mapped from HTTP status code 404",
                ErrorKind::UnexpectedResponse,
                "HTTP status 404",
            ),
            (
                Code::Unavailable,
                "grpc-status header missing, mapped from HTTP status code 502",
                ErrorKind::Indeterminate,
                "HTTP status 502",
            ),
            (
                Code::Aborted,
                "something new",
                ErrorKind::UnexpectedResponse,
                "something new",
            ),
        ] {
            let error = mapped(code, message, SideEffect::Writes);
            assert_eq!(error.kind(), kind, "{message}: {error}");
            assert!(error.to_string().contains(expected), "{message}: {error}");
            assert!(
                std::error::Error::source(&error).is_some(),
                "{message}: the driver's error is kept"
            );
        }
    }

    /// A Redis server, whose response may arrive before it closes the connection.
    #[test]
    fn other_protocols_are_named_in_the_error() {
        let message =
            "h2 protocol error: http2 error: connection error detected: frame with invalid size";
        let error = mapped(Code::Internal, message, SideEffect::None);
        assert_eq!(
            error.message(),
            "what etcd://h:2379 answered is not HTTP/2, which etcd speaks."
        );
    }

    #[test]
    fn requests_without_effect_are_retryable() {
        assert!(
            mapped(
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                SideEffect::Writes
            )
            .is_retryable()
        );
        let lost = mapped(
            Code::Unavailable,
            "etcdserver: request timed out",
            SideEffect::None,
        );
        assert_eq!(lost.kind(), ErrorKind::Unavailable);
    }
}
