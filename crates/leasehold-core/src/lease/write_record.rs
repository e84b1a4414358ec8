//! Writing the record beside a held lock.

use std::sync::Arc;

use crate::{
    error::{Error, ErrorKind, Result},
    lease::{grant::CompleteOnDrop, held_lease::HeldLease},
    mode::Mode,
    panics::{Call, catch},
    telemetry::{self, TracedOp},
};

impl HeldLease {
    /// Replaces the record beside the lock, or clears it. Returns its version.
    pub(crate) async fn write_record(self: &Arc<Self>, value: Option<&[u8]>) -> Result<u64> {
        self.check_may_write(value)
            .map_err(|error| error.with_operation("write_record"))?;
        // The write may complete in the background, so it owns its turn.
        let mut writes = Arc::clone(self.record_writes()).lock_owned().await;
        self.check_held()?;
        let write = writes.next(value)?;
        let held = Arc::clone(self);
        let writing = Call::of(|| {
            Box::pin(async move {
                let written = held.lease.write_record(write).await;
                telemetry::record_written(&held.context, &written);
                if !written.as_ref().is_err_and(Error::is_retryable) {
                    writes.answered();
                }
                if written
                    .as_ref()
                    .is_err_and(|error| error.kind() == ErrorKind::Lost)
                {
                    held.lose_to_backend();
                }
                written
            })
        });
        let traced = TracedOp::of(telemetry::write_record_span(
            &self.span,
            &self.context,
            &self.request,
            self.token(),
        ));
        let writing = CompleteOnDrop::short(&self.context, writing);
        let written = traced.span.around(writing).await;
        traced.end(&written, "written");
        written.map_err(|error| match error.operation() {
            Some(_) => error,
            None => error.with_operation("write_record"),
        })
    }

    /// Checks that a lease of this mode, on this backend, can write this value of the record.
    fn check_may_write(&self, value: Option<&[u8]>) -> Result<()> {
        let context = &self.context;
        // A lazy backend is connected, because it has granted this lease.
        let capabilities = if context.capabilities.provisional {
            &catch(|| context.backend.capabilities())?
        } else {
            &context.capabilities
        };
        capabilities.check_records()?;
        if value.is_none() && self.request.proposal().is_some() {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!(
                    "the value of the leader of `{}` cannot be cleared, because others see by it who leads; proclaim an empty value",
                    self.request.key()
                ),
            )
            .with_backend(context.capabilities.backend));
        }
        let mode = self.request.mode();
        if mode == Mode::Exclusive {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::Unsupported,
            format!(
                "the record of `{}` cannot be written under a {mode} lock, because others hold it at the same time; use a mutex or \
                 a write lock",
                self.request.key()
            ),
        )
        .with_backend(context.capabilities.backend))
    }
}
