//! The mapping from the driver's errors to Leasehold's.

use std::{error::Error as StdError, fmt, io, time::Duration};

use leasehold_core::{Error, ErrorKind, backend::support::BackendErrors, text::Escaped};
use sqlx::{
    Error as Driver,
    error::DatabaseError,
    postgres::{PgDatabaseError, PgSeverity},
};

/// Creates the errors of this backend.
pub(crate) const ERRORS: BackendErrors = BackendErrors::new("postgres", "a PostgreSQL server");

/// Adds the address of the server to the error of a driver thread that was given up.
pub(crate) fn name_endpoint(error: Error, operation: &'static str, endpoint: &str) -> Error {
    if error.backend().is_some() {
        return error;
    }
    ERRORS
        .error(
            error.kind(),
            operation,
            format!("{endpoint}: {}", error.message()),
        )
        .with_source(error)
}

/// Returns the error of a session whose connection is gone, and with it all its locks.
pub(crate) fn over(operation: &'static str) -> Error {
    ERRORS.error(
        ErrorKind::Lost,
        operation,
        "the connection that holds the locks is gone",
    )
}

/// Returns whether the connection can no longer be used.
pub(crate) fn is_over(error: &Driver) -> bool {
    match error {
        Driver::Io(_) | Driver::Tls(_) | Driver::Protocol(_) | Driver::WorkerCrashed => true,
        Driver::Database(error) => {
            error
                .try_downcast_ref::<PgDatabaseError>()
                .is_some_and(|error| {
                    matches!(error.severity(), PgSeverity::Fatal | PgSeverity::Panic)
                        || error.code() == NO_SUCH_STATEMENT
                })
        }
        _ => false,
    }
}

/// Returns whether the error has this SQLSTATE.
pub(crate) fn has_code(error: &Driver, code: &str) -> bool {
    matches!(error, Driver::Database(error) if error.code().as_deref() == Some(code))
}

/// Returns the SQLSTATE of an error that the server reported.
pub(crate) fn code_of(error: &Driver) -> Option<String> {
    match error {
        Driver::Database(error) => error.code().map(String::from),
        _ => None,
    }
}

/// Returns whether the server refuses the user or the password.
pub(crate) fn is_refused_login(error: &Driver) -> bool {
    REFUSED_LOGIN.iter().any(|code| has_code(error, code))
}

// See appendix A of PostgreSQL's manual, "PostgreSQL Error Codes".
pub(crate) const DUPLICATE_OBJECT: [&str; 3] = ["42710", "42P07", "23505"];
pub(crate) const INSUFFICIENT_PRIVILEGE: &str = "42501";
const REFUSED_LOGIN: [&str; 2] = ["28P01", "28000"];
pub(crate) const LOCK_NOT_AVAILABLE: &str = "55P03";
pub(crate) const NO_SUCH_SCHEMA: &str = "3F000";
/// The sequence of the tokens or the table of the records does not exist.
pub(crate) const NO_SUCH_RELATION: &str = "42P01";
/// The server executes no statement that writes. The sessions that hold locks ask for no read-only
/// transactions, so the server has become a standby.
pub(crate) const READ_ONLY: &str = "25006";
/// Another backend than the current one prepared the statement.
const NO_SUCH_STATEMENT: &str = "26000";

/// Maps the driver's error of a request to `endpoint`. The request had no effect, or was undone.
///
/// The source is the error whose text the message contains. So a program that prints the causes
/// that a message lacks prints no text twice.
pub(crate) fn from_driver(error: Driver, operation: &'static str, endpoint: &str) -> Error {
    let (kind, message, source) = match error {
        Driver::Database(cause) => {
            let code = cause.code().unwrap_or_default();
            let (kind, message) = from_server(&code, cause.message(), endpoint);
            (kind, message, ServerError(cause).into())
        }
        Driver::Io(cause) => {
            let (kind, message) = from_io(&cause, endpoint);
            (kind, message, cause.into())
        }
        Driver::Tls(cause) => {
            let (kind, message) = from_tls(&cause.to_string(), endpoint);
            (kind, message, cause)
        }
        Driver::Configuration(cause) => (
            ErrorKind::InvalidInput,
            format!("the driver refuses its settings for {endpoint}: {cause}"),
            cause,
        ),
        // The driver reports a connection in this way that ended when the answer about TLS was due.
        Driver::Protocol(ref text) if text.contains("SSLRequest: 0x00") => (
            ErrorKind::Unavailable,
            format!("{endpoint} closed the connection at once; does a server run behind it?"),
            error.into(),
        ),
        Driver::PoolTimedOut => (
            ErrorKind::Unavailable,
            format!("no connection to {endpoint} in time"),
            error.into(),
        ),
        error => (
            ErrorKind::UnexpectedResponse,
            format!("the driver failed at {endpoint}: {error}"),
            error.into(),
        ),
    };
    ERRORS.error(kind, operation, message).with_source(source)
}

/// An error that the server reported, as a source. It prints the message alone, as the error does
/// whose source it is. The driver would print a line number of the server's source code as well.
struct ServerError(Box<dyn DatabaseError>);

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Escaped(self.0.message()))
    }
}

impl fmt::Debug for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl StdError for ServerError {}

fn from_io(cause: &io::Error, endpoint: &str) -> (ErrorKind, String) {
    match cause.kind() {
        // The driver reports problems with certificates in this way.
        io::ErrorKind::InvalidData => from_tls(&cause.to_string(), endpoint),
        io::ErrorKind::TimedOut => (
            ErrorKind::Unavailable,
            format!("no answer from {endpoint} in time ({cause})"),
        ),
        _ => (
            ErrorKind::Unavailable,
            format!(
                "cannot reach {endpoint} ({cause}); check the address, and that a server runs there"
            ),
        ),
    }
}

fn from_tls(cause: &str, endpoint: &str) -> (ErrorKind, String) {
    if cause.contains("without TLS support") {
        let message = "TLS needs the feature `tls` of leasehold-postgres; enable it in Cargo.toml";
        return (ErrorKind::Unsupported, message.into());
    }
    if cause.contains("server does not support TLS") {
        let remedy =
            "enable it there (`ssl = on`), or write sslmode=disable if the network is trusted";
        return (
            ErrorKind::Unsupported,
            format!("{endpoint} offers no TLS; {remedy}"),
        );
    }
    let remedy = if cause.contains("received fatal alert") {
        "the server refuses the connection; does it require a client certificate (`sslcert`, `sslkey`)?"
    } else {
        "name the CA that signed its certificate with `sslrootcert`, and connect by a host name that it contains"
    };
    (
        ErrorKind::Denied,
        format!("TLS with {endpoint} failed ({cause}); {remedy}"),
    )
}

fn from_server(code: &str, message: &str, endpoint: &str) -> (ErrorKind, String) {
    let unavailable = |remedy: &str| {
        (
            ErrorKind::Unavailable,
            format!("{endpoint}: {message}; {remedy}"),
        )
    };
    match code {
        "53200" => unavailable(
            "its lock table is full: raise max_locks_per_transaction or max_connections, or hold fewer locks",
        ),
        "53300" => unavailable("raise max_connections, or let fewer programs connect"),
        "40001" => unavailable("roll the transaction back and run it again"),
        "40P01" => unavailable(
            "roll the transaction back and run it again; programs that lock in the same order have no deadlocks",
        ),
        "57014" => unavailable(
            "the statement was cancelled; is the server overloaded, or the TTL very short?",
        ),
        NO_SUCH_RELATION => (
            ErrorKind::Unsupported,
            format!(
                "{endpoint}: {message}; if the sequence of the fencing tokens was dropped, create it again, with a START \
                 above the last token"
            ),
        ),
        LOCK_NOT_AVAILABLE => unavailable(
            "another session has locked the sequence of the fencing tokens, for example by DDL",
        ),
        NO_SUCH_STATEMENT => (
            ErrorKind::Unsupported,
            format!(
                "{endpoint}: {message}; another backend answered: is there a pooler in transaction mode?"
            ),
        ),
        "57P01" | "57P02" | "57P03" | "57P04" | "57P05" => {
            unavailable("the server ended the connection, or is starting")
        }
        READ_ONLY => (
            ErrorKind::Unsupported,
            format!("{endpoint}: {message}; connect to the primary, with a role that may write"),
        ),
        "28P01" | "28000" => (
            ErrorKind::Denied,
            format!("{endpoint}: {message}; check user, password and pg_hba.conf"),
        ),
        INSUFFICIENT_PRIVILEGE => (ErrorKind::Denied, format!("{endpoint}: {message}")),
        "3D000" => (
            ErrorKind::InvalidInput,
            format!("{endpoint}: {message}; name another database"),
        ),
        code if code.starts_with("08") || code.starts_with("53") || code.starts_with("57") => {
            unavailable("try again later")
        }
        _ => (
            ErrorKind::UnexpectedResponse,
            format!("{endpoint} answered with an error: {message} (SQLSTATE {code})"),
        ),
    }
}

/// The setting that limits the time for an answer.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// [`PostgresConfig::timeout`](crate::PostgresConfig::timeout).
    Timeout(Duration),
    /// [`PostgresConfig::connect_timeout`](crate::PostgresConfig::connect_timeout).
    ConnectTimeout(Duration),
    /// A quarter of the TTL.
    Quarter(Duration),
    /// The TTL.
    Ttl(Duration),
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout(limit) => write!(f, "{limit:?}, the option `timeout`"),
            Self::ConnectTimeout(limit) => write!(f, "{limit:?}, the option `connect-timeout`"),
            Self::Quarter(limit) => write!(f, "{limit:?}, a quarter of the TTL"),
            Self::Ttl(limit) => write!(f, "{limit:?}, the TTL"),
        }
    }
}

/// Returns the error of an answer that did not come in time. Its effect is undone as soon as the
/// answer comes, or with the session.
pub(crate) fn timed_out(
    kind: ErrorKind,
    operation: &'static str,
    endpoint: &str,
    limit: Limit,
) -> Error {
    let message = format!(
        "no answer from {endpoint} within {limit}; is the server overloaded, stopped or unreachable?"
    );
    ERRORS.error(kind, operation, message)
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::PostgresBackend;

    /// A message of a server may contain control sequences of a terminal.
    #[tokio::test]
    async fn control_characters_of_server_messages_are_escaped() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addr().unwrap();
        let refuses = async {
            loop {
                let (mut client, _) = server.accept().await.unwrap();
                drop(client.read(&mut [0; 1024]).await);
                let fields = "SFATAL\0VFATAL\0C28000\0Mgo \u{1b}[2Jaway\u{202e}\0\0".as_bytes();
                let len = u32::try_from(fields.len() + 4).unwrap().to_be_bytes();
                client
                    .write_all(&[b"E", &len[..], fields].concat())
                    .await
                    .unwrap();
            }
        };
        let url = format!("postgres://u@{addr}/d?sslmode=disable&connect-timeout=60s");
        let error = tokio::select! {
            connected = PostgresBackend::connect(&url) => connected.expect_err("it refuses"),
            () = refuses => unreachable!(),
        };
        assert_eq!(error.kind(), ErrorKind::Denied, "{error:?}");
        let text = with_causes(&error);
        assert_eq!(text.matches("go ").count(), 1, "printed twice: {text}");
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(text.contains(r"go \u{1b}[2Jaway\u{202e}"), "{text}");
            assert!(!text.contains(['\u{1b}', '\u{202e}']), "{text}");
        }
    }

    /// Returns the message and its causes, without the causes that the text has already. The
    /// command prints errors in this way.
    fn with_causes(error: &dyn StdError) -> String {
        let mut text = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            if !text.contains(&error.to_string()) {
                text.push_str(&format!(": {error}"));
            }
            cause = error.source();
        }
        text
    }

    #[test]
    fn no_cause_is_printed_twice() {
        for error in [
            Driver::Io(io::Error::new(io::ErrorKind::ConnectionRefused, "a fault")),
            Driver::Io(io::Error::new(io::ErrorKind::TimedOut, "a fault")),
            Driver::Io(io::Error::new(io::ErrorKind::InvalidData, "a fault")),
            Driver::Tls("a fault".into()),
            Driver::Configuration("a fault".into()),
            Driver::Protocol("a fault".into()),
            Driver::Protocol("a fault (SSLRequest: 0x00)".into()),
            Driver::Decode("a fault".into()),
        ] {
            let text = with_causes(&from_driver(error, "acquire", "the server"));
            assert_eq!(text.matches("a fault").count(), 1, "{text}");
        }
    }

    #[test]
    fn serialization_failures_and_deadlocks_are_retryable() {
        for code in ["40001", "40P01"] {
            let (kind, message) = from_server(code, "it failed", "the server");
            assert_eq!(kind, ErrorKind::Unavailable, "{code}");
            assert!(
                message.contains("it failed") && message.contains("again"),
                "{message}"
            );
        }
    }
}
