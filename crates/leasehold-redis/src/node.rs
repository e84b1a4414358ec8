//! A server as a node of a quorum.

use std::sync::Arc;

use leasehold_core::{
    ErrorKind, Mode, Released, Request, Result, async_trait,
    quorum::{Attestation, QuorumNode, Recollection, Watched},
};
use redis::{Cmd, Value};

use crate::{
    backend::RedisBackend,
    error::{self, Effect},
    exclusive::Operation,
    holder::Holder,
    keys::NODE_KEYS,
    lease,
    mark::Mark,
    scripts,
    sight::Sight,
    undo,
};

#[async_trait]
impl QuorumNode for RedisBackend {
    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        let link = self.link();
        // What was sent on a connection that is gone is undone as an attempt of unknown outcome.
        let Some(live) = link.live_now() else {
            return Err(link.no_connection("withdraw"));
        };
        let answer = match request.mode() {
            Mode::Exclusive => link.gather.run(link, Operation::Release, &request).await?,
            mode => {
                let arguments = |cmd: &mut Cmd| lease::release_arguments(cmd, &link.config.prefix, &request);
                link.run_on(&live, lease::release_script(mode), "withdraw", Effect::Writes, arguments).await?
            }
        };
        Ok(if answer == Value::Int(1) { Released::Freed } else { Released::AlreadyLost })
    }

    async fn stop_waiting(self: Arc<Self>, request: Request) -> Result<()> {
        let link = self.link();
        let Some(live) = link.live_now() else {
            return Err(link.no_connection("stop waiting"));
        };
        undo::stop_waiting(link, &live, &request, Holder::waiting(&request)).await
    }

    async fn recall(self: Arc<Self>, watched: Option<Watched>) -> Result<Recollection> {
        let link = self.link();
        let live = link.live_in_order("recall").await?;
        let sight = Sight::look(link, &live, watched).await?;
        Ok(Recollection {
            run: sight.run.clone(),
            version: sight.version.clone(),
            membership: sight.membership,
            durable: sight.mark.is_durable() && sight.durable,
            marked: sight.mark.run().map(str::to_owned),
            largest_ttl: sight.mark.largest_ttl,
            highest_token: sight.highest_token.max(sight.mark.least()),
            wall_clock: Some(sight.wall_clock),
        })
    }

    async fn attest(self: Arc<Self>, attestation: Attestation) -> Result<()> {
        let link = self.link();
        let live = link.live_in_order("attest").await?;
        if attestation.run.is_empty() {
            return Err(error::plain(
                ErrorKind::Unsupported,
                "attest",
                "the server does not say which run it is in; allow this user INFO (`+info`)",
            ));
        }
        if attestation.durable {
            let sight = Sight::look(link, &live, None).await?;
            if !sight.durable {
                return Err(error::plain(
                    ErrorKind::Unsupported,
                    "attest",
                    "it does not keep everything through a restart, or does not tell; set `appendonly yes` and \
                     `appendfsync always`, and allow this user INFO and CONFIG GET",
                ));
            }
        }
        let mark = Mark::new(&attestation);
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(0).arg([&*link.config.prefix, NODE_KEYS].concat()).arg(mark.as_str()).arg(attestation.above.get());
            cmd.arg(&attestation.version).arg(&attestation.run);
        };
        let answer = link.run_on(&live, &scripts::QUORUM_ATTEST, "attest", Effect::Writes, arguments).await?;
        live.set_sight(None);
        match answer {
            Value::Int(1) => Ok(()),
            Value::Int(0) => Err(error::plain(
                ErrorKind::Unavailable,
                "attest",
                "the server was attested by another, was wiped or has restarted meanwhile; try again",
            )),
            _ => Err(error::protocol("attest")),
        }
    }
}
