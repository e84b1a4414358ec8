//! [`Spec`]: what a lock asks of the client.

use std::sync::Arc;

use crate::{
    backend::request::RequestContext, error::Result, key::LockKey, lease::renewal_mode::Renewal,
    mode::Mode, ttl::Ttl,
};

/// What one primitive asks for.
#[derive(Clone, Debug)]
pub(crate) struct Spec {
    /// An invalid name is told when it is used: `client.mutex(name)` stays a plain value.
    pub(crate) key: Result<LockKey>,
    pub(crate) mode: Mode,
    /// `None` is the default, which adapts to the backend. An invalid one is told when it is used,
    /// as an invalid name is.
    pub(crate) ttl: Option<Result<Ttl>>,
    pub(crate) renewal: Renewal,
    pub(crate) context: Arc<RequestContext>,
}
