//! The pauses between the turns of [`Once::serve`].

use std::time::Duration;

use tokio::time::sleep;

use crate::{
    error::{Error, ErrorKind, Result},
    once::{handle::Once, runner::Turned, turn::Turn, unix_millis::UnixMillis},
    panics::contain,
};

/// The longest sleep. Then the record is read again, because the server's clock may have been set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// The pause after an error.
const AFTER_ERROR: Duration = Duration::from_secs(1);

impl Once {
    /// Returns an error if a turn would follow the last one at once, for ever.
    pub(super) fn check_pauses(&self) -> Result<()> {
        if self.schedule.is_none() && self.policies.at_least.is_zero() {
            return Err(Error::new(
                ErrorKind::InvalidInput,
                "work without a schedule is always due; set a schedule, or the least time from one begin to the next",
            ));
        }
        Ok(())
    }

    /// Waits until it is time for the next turn.
    ///
    /// # Errors
    /// The error of the turn if no retry can mend it.
    pub(super) async fn until_next_turn<E>(&self, turned: Result<Turned<(), E>>) -> Result<()> {
        let pause = match turned {
            Ok(Turned { turn, now }) => match turn {
                Turn::Ran(()) | Turn::Failed(_) | Turn::Overtime => return Ok(()),
                Turn::NotDue(Some(next)) => {
                    // The turn itself waits for what is near.
                    let wait = UnixMillis::of(next).since(now);
                    wait.saturating_sub(self.policies.early)
                }
                Turn::NotDue(None) => LONGEST_SLEEP,
                Turn::NotYet(wait) => wait,
                Turn::Busy | Turn::Decided(_) => AFTER_ERROR,
            },
            Err(error) if error.may_pass() => {
                let key = self.spec.key.clone()?;
                contain(|| {
                    tracing::warn!(
                        target: "leasehold",
                        backend = self.client.capabilities().backend,
                        %key,
                        %error,
                        "a run was not completed; the next turn follows"
                    );
                });
                AFTER_ERROR
            }
            Err(error) => return Err(error),
        };
        sleep(pause.min(LONGEST_SLEEP)).await;
        Ok(())
    }
}
