//! [`Grant`]: a lease that was granted and has no guard yet.

use std::sync::Arc;

use crate::{
    backend::{
        contained::ContainedLease,
        lease::{KeepAlive, Lease},
        request::Request,
    },
    context::ClientContext,
    error::Result,
    fencing::FencingToken,
    lease::detached_release::give_back_grant,
    local_queue::Place,
};

/// The owner of a lease until its guard exists. Dropping it releases the lease.
pub(crate) struct Grant<'a> {
    pub(crate) context: &'a Arc<ClientContext>,
    pub(crate) request: Request,
    pub(crate) token: Option<FencingToken>,
    pub(crate) keep_alive: KeepAlive,
    lease: ContainedLease,
    place: Option<Place>,
    owned: bool,
}

impl<'a> Grant<'a> {
    pub(crate) fn of(
        context: &'a Arc<ClientContext>,
        request: Request,
        lease: Arc<dyn Lease>,
        place: Option<Place>,
    ) -> Result<Self> {
        let lease = ContainedLease::new(lease);
        let mut grant = Self {
            context,
            request,
            token: None,
            keep_alive: KeepAlive::PerLease,
            lease,
            place,
            owned: true,
        };
        if let Some(place) = &mut grant.place {
            place.granted();
        }
        let facts = grant
            .lease
            .facts()
            .map_err(|error| error.with_backend(context.capabilities.backend));
        (grant.token, grant.keep_alive) = facts?;
        Ok(grant)
    }

    /// Moves the lease to a new owner.
    pub(crate) fn hand_over(&mut self) -> (ContainedLease, Option<Place>) {
        self.owned = false;
        (self.lease.clone(), self.place.take())
    }
}

impl Drop for Grant<'_> {
    fn drop(&mut self) {
        if self.owned {
            let (context, lease, request) = (
                Arc::clone(self.context),
                self.lease.clone(),
                self.request.clone(),
            );
            self.context
                .in_background(async move { give_back_grant(&context, lease, &request).await });
        }
    }
}
