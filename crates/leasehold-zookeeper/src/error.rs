//! The conversion of the driver's errors into Leasehold's.

use std::{borrow::Cow, time::Duration};

use leasehold_core::{Error, ErrorKind, backend::support::BackendErrors};
use zookeeper_client::Error as Driver;

pub(crate) use leasehold_core::backend::support::SideEffect;

/// Creates the errors of this backend.
pub(crate) const ERRORS: BackendErrors = BackendErrors::new("zookeeper", "a ZooKeeper server");

/// Returns the error for a missing answer within `patience`, which is the option `timeout` or a
/// part of the TTL.
pub(crate) fn timed_out(
    operation: &'static str,
    effect: SideEffect,
    endpoint: &str,
    patience: Duration,
    option: Duration,
) -> Error {
    let whence = match patience < option {
        true => format!("a part of the TTL; the option `timeout` is {option:?}"),
        false => "the option `timeout`".to_owned(),
    };
    let message = format!(
        "no answer from {endpoint} within {patience:?} ({whence}); \
         is the server overloaded, stopped or unreachable?"
    );
    ERRORS.error(effect.lost_answer(), operation, message)
}

/// Returns the error for a failed connection to all servers of `endpoint`. `why` is their
/// diagnosis.
pub(crate) fn unreachable(
    operation: &'static str,
    endpoint: &str,
    why: &str,
    error: Error,
) -> Error {
    if why.is_empty() {
        return error;
    }
    let message = format!("cannot connect to {endpoint}: {why}");
    restated(ErrorKind::Unavailable, operation, message, &error)
}

/// Returns an error with the cause of `error`. It takes the place of `error`, so that a report of
/// all causes does not contain the message of both.
pub(crate) fn restated(
    kind: ErrorKind,
    operation: &'static str,
    message: impl Into<Cow<'static, str>>,
    error: &Error,
) -> Error {
    let restated = ERRORS.error(kind, operation, message);
    match std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<Driver>()) {
        Some(cause) => restated.with_source(cause.clone()),
        None => restated,
    }
}

/// Returns the error for a request in a session that has ended.
pub(crate) fn over(operation: &'static str) -> Error {
    ERRORS.error(ErrorKind::Lost, operation, "the session is over")
}

/// Returns the error for a write of a holder whose node is gone.
pub(crate) fn no_longer_held(operation: &'static str) -> Error {
    ERRORS.error(
        ErrorKind::Lost,
        operation,
        "the node of the holder is gone, so the lock is no longer held; acquire it again",
    )
}

/// Returns `None` for the answer that there is no such node.
pub(crate) fn unless_gone<T>(answer: Result<T, Driver>) -> Result<Option<T>, Driver> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(Driver::NoNode) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Returns the error for a directory whose numbers are used up and that this user may not delete.
pub(crate) fn used_up(path: &str, denied: &Error) -> Error {
    let message = format!(
        "the sequence numbers of {path} are used up, and this user may not delete it; \
         delete it while nobody is in it"
    );
    restated(ErrorKind::Denied, "acquire", message, denied)
}

/// Maps the driver's error of a request to `endpoint`. The message does not repeat the driver's
/// text, because that error is the source.
pub(crate) fn from_driver(
    error: Driver,
    operation: &'static str,
    effect: SideEffect,
    endpoint: &str,
) -> Error {
    let (kind, message) = match &error {
        // The driver reports `Custom` if the connection broke in another way than by its end.
        Driver::ConnectionLoss | Driver::Custom(_) => (
            effect.lost_answer(),
            format!("the connection to {endpoint} broke before the answer came; try again"),
        ),
        Driver::NoHosts | Driver::Timeout => (
            ErrorKind::Unavailable,
            format!(
                "cannot connect to {endpoint}; check the address, and that a server runs there"
            ),
        ),
        Driver::SessionExpired => (
            ErrorKind::Lost,
            format!("{endpoint} has ended the session; acquire the lock again"),
        ),
        // The driver reports `UnexpectedError` if its session ended before it recorded the reason.
        Driver::ClientClosed | Driver::UnexpectedError(_) => (
            ErrorKind::Lost,
            format!("the driver's connection to {endpoint} was closed; acquire the lock again"),
        ),
        Driver::AuthFailed => (
            ErrorKind::Denied,
            format!("{endpoint} refused the user; check user and password"),
        ),
        Driver::NoAuth => (
            ErrorKind::Denied,
            format!(
                "{endpoint} refused the access; \
                 the user needs read, write, create and delete permission below the root"
            ),
        ),
        Driver::InvalidAcl => (
            ErrorKind::InvalidInput,
            format!(
                "{endpoint} refuses the access list; \
                 `acl=creator` needs a user and a password in the URL"
            ),
        ),
        Driver::SessionMoved => (
            ErrorKind::Unavailable,
            format!("the session is now at another server of {endpoint}; try again"),
        ),
        Driver::NotReadOnly => (
            ErrorKind::Unavailable,
            format!(
                "the server at {endpoint} is cut off from its ensemble; \
                 are most of them up and connected?"
            ),
        ),
        Driver::Throttled => (
            ErrorKind::Unavailable,
            format!("{endpoint} is overloaded and refuses requests; try again later"),
        ),
        Driver::QuotaExceeded => (
            ErrorKind::Unavailable,
            format!("the quota of the root at {endpoint} is used up; raise it"),
        ),
        Driver::Unimplemented => (
            ErrorKind::Unsupported,
            format!("{endpoint} does not know this request; ZooKeeper 3.6 or later does"),
        ),
        Driver::NoChildrenForEphemerals => (
            ErrorKind::InvalidInput,
            format!(
                "the path of this lock at {endpoint} is an ephemeral node of another program; \
                 use another name or root"
            ),
        ),
        Driver::BadArguments(_) => (
            ErrorKind::InvalidInput,
            format!("the driver refuses this request to {endpoint}; check the name and the root"),
        ),
        Driver::UnexpectedErrorCode(_) | Driver::RuntimeInconsistent => (
            effect.lost_answer(),
            format!("{endpoint} failed while it served the request; see the server's log"),
        ),
        _ => (
            ErrorKind::UnexpectedResponse,
            format!("{endpoint} answered with an error; is it a ZooKeeper server? See its log"),
        ),
    };
    ERRORS.error(kind, operation, message).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_reply_to_write_is_indeterminate_with_driver_error() {
        let error = from_driver(
            Driver::ConnectionLoss,
            "acquire",
            SideEffect::Writes,
            "zookeeper://h:2181",
        );
        assert_eq!(error.kind(), ErrorKind::Indeterminate);
        assert_eq!(
            error.to_string().split(": ").take(2).collect::<Vec<_>>(),
            ["zookeeper", "acquire"]
        );
        let source = std::error::Error::source(&error)
            .unwrap()
            .downcast_ref::<Driver>();
        assert_eq!(source, Some(&Driver::ConnectionLoss));
        for (driver, kind) in [
            (Driver::ConnectionLoss, ErrorKind::Unavailable),
            (Driver::SessionExpired, ErrorKind::Lost),
            (Driver::NoAuth, ErrorKind::Denied),
            (Driver::SessionMoved, ErrorKind::Unavailable),
        ] {
            assert_eq!(
                from_driver(driver, "inspect", SideEffect::None, "h").kind(),
                kind
            );
        }
    }

    /// Returns what a report of an error and all its causes prints.
    fn report(error: &Error) -> Vec<String> {
        let causes = std::iter::successors(Some(error as &dyn std::error::Error), |it| it.source());
        causes.map(ToString::to_string).collect()
    }

    #[test]
    fn no_message_repeats_its_cause() {
        let drivers = [
            Driver::ConnectionLoss,
            Driver::NoHosts,
            Driver::Timeout,
            Driver::SessionExpired,
            Driver::ClientClosed,
            Driver::UnexpectedError("odd".into()),
            Driver::AuthFailed,
            Driver::NoAuth,
            Driver::InvalidAcl,
            Driver::SessionMoved,
            Driver::NotReadOnly,
            Driver::Throttled,
            Driver::QuotaExceeded,
            Driver::Unimplemented,
            Driver::NoChildrenForEphemerals,
            Driver::BadArguments(&"odd"),
            Driver::UnexpectedErrorCode(-7),
            Driver::RuntimeInconsistent,
            Driver::MarshallingError,
        ];
        for driver in drivers {
            let endpoint = "zookeeper://h:2181";
            let error = from_driver(driver.clone(), "acquire", SideEffect::Writes, endpoint);
            let restated = [
                error.clone(),
                unreachable("acquire", endpoint, "h:2181: refused", error.clone()),
                restated(
                    ErrorKind::Unavailable,
                    "acquire",
                    error.message().to_owned(),
                    &error,
                ),
                used_up("/k", &error),
            ];
            for error in restated {
                let printed = report(&error);
                assert_eq!(printed.len(), 2, "{printed:?}");
                assert_eq!(printed[1], driver.to_string());
                assert!(!printed[0].contains(&printed[1]), "{printed:?}");
            }
            assert!(error.message().contains(endpoint), "{error}");
        }
    }
}
