//! Candidates on standby, which campaign only while nobody leads.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};

use crate::{
    client::{
        acquire::{Wait, acquire_with, unanswered},
        engine::Spec,
    },
    election::{handle::Election, leader::Leaders},
    error::Result,
    lease::release::OwnedLease,
};

/// The time for which a candidate on standby still waits for its grant once it sees a leader. The
/// leader may be itself: its value can be read before the answer of its grant arrives.
const GRANT_IS_ON_ITS_WAY: Duration = Duration::from_secs(1);
/// The least time for which a candidate on standby lets its observer read before it asks again
/// itself. Its delay may be shorter than the round trip of a read.
const OBSERVER_CATCHES_UP: Duration = Duration::from_secs(1);

impl Election {
    /// Campaigns only while there is no leader.
    pub(super) async fn stand_by(
        &self,
        spec: &Spec,
        delay: Duration,
        wait: Wait,
    ) -> Result<Option<OwnedLease>> {
        let (client, key) = (&self.client.0, spec.key.clone()?);
        client.check(spec)?;
        let begun = Instant::now();
        let mut leaders = self.observe();
        loop {
            let vacant = self.until_vacant(&mut leaders, delay);
            match wait.less(begun.elapsed()) {
                Wait::AtMost(left) => match timeout(left, vacant).await {
                    Ok(vacant) => vacant?,
                    Err(_elapsed) if leaders.reported.is_some() => return Ok(None),
                    Err(_elapsed) => {
                        let waited = begun.elapsed();
                        return Err(unanswered(client, &key, waited, None));
                    }
                },
                Wait::Not | Wait::Forever => vacant.await?,
            }
            tokio::select! {
                biased;
                lease = acquire_with(client, spec, wait.less(begun.elapsed())) => return lease,
                taken = until_taken(&mut leaders) => taken?,
            }
        }
    }

    /// Waits until there has been no leader for `delay`.
    async fn until_vacant(&self, leaders: &mut Leaders, delay: Duration) -> Result<()> {
        let mut patience = delay;
        loop {
            if leaders.reported != Some(None) {
                leaders.next().await?;
                patience = delay;
            } else if let Ok(next) = timeout(patience, leaders.next()).await {
                next?;
            } else {
                // The observer also waits while the backend fails. Only an answer shows a vacancy.
                match self.leader().await {
                    Ok(None) => return Ok(()),
                    Ok(Some(_)) => {}
                    Err(error) if error.is_retryable() => {}
                    Err(error) => return Err(error),
                }
                patience = delay.max(OBSERVER_CATCHES_UP);
            }
        }
    }
}

/// Waits until there is a leader, and a little longer.
async fn until_taken(leaders: &mut Leaders) -> Result<()> {
    while leaders.next().await?.is_none() {}
    sleep(GRANT_IS_ON_ITS_WAY).await;
    Ok(())
}
