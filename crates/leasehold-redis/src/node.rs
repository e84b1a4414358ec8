//! A server as a node of a quorum.

use std::sync::Arc;

use leasehold_core::{
    ErrorKind, FencingToken, Mode, Released, Result,
    backend::{Attempt, Request, async_trait},
    quorum::{EpochRecord, NodeState, QuorumNode, TokenVote, VoteRequirements, Watched},
};
use redis::{Cmd, Value};

use crate::{
    backend::RedisBackend,
    cleanup,
    commands::Operation,
    error::{self, Effect},
    keys::NODE_KEYS,
    lease,
    marker::NodeMarker,
    node_state::CachedNodeState,
    scripts,
    value::Holder,
    vote,
};

#[async_trait]
impl QuorumNode for RedisBackend {
    async fn request_vote(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
    ) -> Result<Attempt> {
        // Whether an earlier attempt has registered is not known here.
        let registered = request.is_waiting();
        self.attempt(request, Some(&requirements), registered).await
    }

    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
        token: FencingToken,
    ) -> Result<TokenVote> {
        vote::raise(self.link(), &request, &requirements, token).await
    }

    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        let link = self.link();
        // What was sent on a connection that is gone is undone as an attempt of unknown outcome.
        let Some(live) = link.live_now() else {
            return Err(link.no_connection("withdraw"));
        };
        let answer = match request.mode() {
            Mode::Exclusive => link.operate(Operation::Release, &request).await?,
            mode => {
                let arguments =
                    |cmd: &mut Cmd| lease::release_arguments(cmd, &link.config.prefix, &request);
                link.run_on(
                    &live,
                    lease::release_script(mode),
                    "withdraw",
                    Effect::Writes,
                    arguments,
                )
                .await?
            }
        };
        Ok(if answer == Value::Int(1) {
            Released::Freed
        } else {
            Released::AlreadyLost
        })
    }

    async fn stop_waiting(self: Arc<Self>, request: Request) -> Result<()> {
        let link = self.link();
        let Some(live) = link.live_now() else {
            return Err(link.no_connection("stop waiting"));
        };
        cleanup::stop_waiting(link, &live, &request, Holder::waiting(&request)).await
    }

    async fn read_state(self: Arc<Self>, watched: Option<Watched>) -> Result<NodeState> {
        let link = self.link();
        let live = link.live_in_order("recall").await?;
        let node_state = CachedNodeState::look(link, &live, watched).await?;
        Ok(NodeState {
            incarnation: node_state.run.clone(),
            version: node_state.version.clone(),
            eligibility: node_state.eligibility,
            durable: node_state.mark.is_durable() && node_state.durable,
            recorded: node_state.mark.run().map(str::to_owned),
            largest_ttl: node_state.mark.largest_ttl,
            highest_token: node_state.highest_token.max(node_state.mark.least()),
            wall_clock: Some(node_state.wall_clock),
        })
    }

    async fn record_epoch(self: Arc<Self>, record: EpochRecord) -> Result<()> {
        let link = self.link();
        let live = link.live_in_order("attest").await?;
        if record.incarnation.is_empty() {
            return Err(error::plain(
                ErrorKind::Unsupported,
                "attest",
                "the server does not say which run it is in; allow this user INFO (`+info`)",
            ));
        }
        if record.durable {
            let node_state = CachedNodeState::look(link, &live, None).await?;
            if !node_state.durable {
                return Err(error::plain(
                    ErrorKind::Unsupported,
                    "attest",
                    "it does not keep everything through a restart, or does not tell; set `appendonly yes` and \
                     `appendfsync always`, and allow this user INFO and CONFIG GET",
                ));
            }
        }
        let mark = NodeMarker::new(&record);
        let arguments = |cmd: &mut Cmd| {
            cmd.arg(0)
                .arg([&*link.config.prefix, NODE_KEYS].concat())
                .arg(mark.as_str())
                .arg(record.above.get());
            cmd.arg(&record.version).arg(&record.incarnation);
        };
        let answer = link
            .run_on(
                &live,
                &scripts::QUORUM_ATTEST,
                "attest",
                Effect::Writes,
                arguments,
            )
            .await?;
        live.set_node_state(None);
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
