//! [`Spec`]: the options with which a lock is acquired.

use std::sync::Arc;

use crate::{
    backend::request::RequestContext, error::Result, key::LockKey, lease::renewal_mode::Renewal,
    mode::Mode, ttl::Ttl,
};

/// The key, the mode and the options of a lock.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// An invalid key is reported by the first acquisition, so that `client.mutex(key)` returns a
    /// plain value.
    pub(crate) key: Result<LockKey>,
    pub(crate) mode: Mode,
    /// `None` for the default, which adapts to the backend. An invalid TTL is reported by the first
    /// acquisition.
    pub(crate) ttl: Option<Result<Ttl>>,
    pub(crate) renewal: Renewal,
    pub(crate) context: Arc<RequestContext>,
}
