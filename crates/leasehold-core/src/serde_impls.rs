//! The parts of the feature `serde` that are not derived.
//!
//! Names are in snake case. A duration is a number of milliseconds, and its name ends with `_ms`.
//! Names are stable: a release of the same major version adds names but does not change them.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use crate::{key::LockKey, ttl::Ttl};

/// The number of milliseconds.
impl Serialize for Ttl {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.as_millis())
    }
}

/// A number of milliseconds, checked as [`Ttl::new`] checks it.
impl<'de> Deserialize<'de> for Ttl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_millis(u64::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// The key as text. A key that is not UTF-8 has escapes, as [`Display`](std::fmt::Display) has
/// them.
impl Serialize for LockKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.as_str() {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_str(self),
        }
    }
}

/// A duration as a number of milliseconds.
pub(crate) mod millis {
    use std::time::Duration;

    use super::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(deserializer).map(Duration::from_millis)
    }
}

/// Serializes a duration as a number of milliseconds, or nothing.
pub(crate) fn optional_millis<S: Serializer>(
    duration: &Option<std::time::Duration>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match duration {
        Some(duration) => millis::serialize(duration, serializer),
        None => serializer.serialize_none(),
    }
}

/// Serializes a time in UTC by RFC 3339, to the second.
pub(crate) fn rfc3339<S: Serializer>(
    time: &Option<std::time::SystemTime>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => serializer.collect_str(&humantime::format_rfc3339_seconds(*time)),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fmt::Debug,
        num::NonZeroU32,
        time::{Duration, SystemTime},
    };

    use serde::de::DeserializeOwned;
    use serde_json::{Value, from_value, json, to_value};

    use super::*;
    use crate::{
        backend::{
            capability::{
                Capabilities, Expiry, Fairness, Fencing, LossDetection, Records, Restart,
                WaiterNotification,
            },
            inspection::{HolderConnection, HolderRef, Inspection, NodeStatus, Pong, WaiterRef},
        },
        error::ErrorKind,
        fencing::FencingToken,
        mode::Mode,
        signal::LossReason,
    };

    /// Asserts the JSON of `value`, and that it is read back as the same value.
    #[expect(clippy::needless_pass_by_value, reason = "the callers pass literals")]
    fn is<T: Debug + DeserializeOwned + PartialEq + Serialize>(value: T, expected: Value) {
        assert_eq!(to_value(&value).unwrap(), expected);
        assert_eq!(from_value::<T>(expected).unwrap(), value);
    }

    #[test]
    fn json_names_of_values_are_stable() {
        is(Ttl::DEFAULT, json!(30_000));
        is(FencingToken::new(41), json!(41));
        is(Mode::Exclusive, json!("exclusive"));
        is(Mode::Shared, json!("shared"));
        is(
            Mode::Permit {
                of: NonZeroU32::MIN,
            },
            json!({ "permit": { "of": 1 } }),
        );
        is(Expiry::Server, json!("server"));
        is(Expiry::Session, json!("session"));
        is(Expiry::ProcessDeath, json!("process_death"));
        is(Fencing::None, json!("none"));
        is(Fencing::BestEffort, json!("best_effort"));
        is(Fencing::UntilDataLoss, json!("until_data_loss"));
        is(Fencing::Clocked, json!("clocked"));
        is(Fencing::Durable, json!("durable"));
        is(Fairness::None, json!("none"));
        is(Fairness::BestEffort, json!("best_effort"));
        is(Fairness::Fifo, json!("fifo"));
        is(WaiterNotification::Pushed, json!("pushed"));
        is(
            WaiterNotification::Polled(Duration::from_millis(100)),
            json!({ "polled_every_ms": 100 }),
        );
        is(LossDetection::Deadline, json!("deadline"));
        is(LossDetection::Renewal, json!("renewal"));
        is(LossDetection::Pushed, json!("pushed"));
        is(Records::None, json!("none"));
        is(Records::UntilDataLoss, json!("until_data_loss"));
        is(Records::Durable, json!("durable"));
        is(Restart::Keeps, json!("keeps"));
        is(Restart::FailOverMayFree, json!("fail_over_may_free"));
        is(Restart::AsPersisted, json!("as_persisted"));
        is(Restart::FreesAtOnce, json!("frees_at_once"));
        is(Restart::EndsHolders, json!("ends_holders"));
    }

    #[test]
    fn json_names_of_failures_are_stable() {
        is(ErrorKind::InvalidInput, json!("invalid_input"));
        is(ErrorKind::Unsupported, json!("unsupported"));
        is(ErrorKind::Unavailable, json!("unavailable"));
        is(ErrorKind::Indeterminate, json!("indeterminate"));
        is(ErrorKind::Denied, json!("denied"));
        is(ErrorKind::Lost, json!("lost"));
        is(ErrorKind::Revoked, json!("revoked"));
        is(ErrorKind::Closed, json!("closed"));
        is(ErrorKind::Cancelled, json!("cancelled"));
        is(ErrorKind::WrongRuntime, json!("wrong_runtime"));
        is(ErrorKind::Conflict, json!("conflict"));
        is(ErrorKind::UnexpectedResponse, json!("unexpected_response"));
        is(LossReason::Expired, json!("expired"));
        is(LossReason::Replaced, json!("replaced"));
        is(LossReason::SessionEnded, json!("session_ended"));
        is(LossReason::BackendReset, json!("backend_reset"));
        is(LossReason::ClientClosed, json!("client_closed"));
    }

    #[test]
    fn json_names_of_capabilities_are_stable() {
        let expected = json!({
            "backend": "sled",
            "endpoint": "sled",
            "exclusive": true,
            "shared": false,
            "permits": false,
            "min_ttl_ms": 1,
            "max_ttl_ms": 31_622_400_000_u64,
            "expiry": "server",
            "drift": { "rate_ppm": 10_000, "constant_ms": 2 },
            "fencing": "none",
            "fairness": "none",
            "waiter_notification": { "polled_every_ms": 100 },
            "loss_detection": "deadline",
            "restart": "frees_at_once",
            "pipelined_release": false,
            "inspect": false,
            "revoke": false,
            "records": "none",
            "proposals": false,
            "provisional": false,
        });
        assert_eq!(to_value(Capabilities::new("sled")).unwrap(), expected);
    }

    #[test]
    fn json_names_of_inspections_are_stable() {
        let mut holder = HolderRef::new(LockKey::new("k").unwrap(), "opaque");
        holder.mode = Some(Mode::Exclusive);
        holder.label = String::from("till 3");
        holder.token = Some(FencingToken::new(7));
        holder.expires_in = Some(Duration::from_millis(1_500));
        let mut connection = HolderConnection::new("812", "till");
        connection.address = Some([10, 0, 0, 7].into());
        connection.since = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(86_400));
        holder.connection = Some(connection);
        let other = HolderRef::new(LockKey::new(b"\xff".as_slice()).unwrap(), "other");
        let mut inspection = Inspection::new(
            vec![holder, other],
            vec![WaiterRef::new(Some(Mode::Shared), "till 4")],
        );
        inspection.nodes = vec![NodeStatus::new("redis://a", Some(String::from("down")))];
        let nodes = json!([{ "endpoint": "redis://a", "problem": "down" }]);
        let expected = json!({
            "holders": [
                {
                    "key": "k",
                    "mode": "exclusive",
                    "label": "till 3",
                    "token": 7,
                    "expires_in_ms": 1_500,
                    "connection": {
                        "id": "812",
                        "name": "till",
                        "address": "10.0.0.7",
                        "since": "1970-01-02T00:00:00Z",
                    },
                },
                {
                    "key": "\\xff",
                    "mode": null,
                    "label": "",
                    "token": null,
                    "expires_in_ms": null,
                },
            ],
            "waiters": [{ "mode": "shared", "label": "till 4" }],
            "nodes": nodes,
        });
        let pong = Pong::new().with_nodes(inspection.nodes.clone());
        assert_eq!(to_value(inspection).unwrap(), expected);
        assert_eq!(to_value(pong).unwrap(), json!({ "nodes": nodes }));
        let nobody = to_value(Inspection::default()).unwrap();
        assert_eq!(nobody, json!({ "holders": [], "waiters": [] }));
    }

    #[test]
    fn bad_ttl_is_refused_when_it_is_read() {
        for bad in [json!(0), json!(u64::MAX), json!("30s"), json!(-1)] {
            assert!(from_value::<Ttl>(bad.clone()).is_err(), "{bad}");
        }
    }
}
