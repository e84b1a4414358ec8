//! The implementation of [`QuorumNode`].

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
    commands::{self, Operation},
    error::{ERRORS, SideEffect},
    job::Job,
    keys::{self, LockValue},
    quorum::{marker::NodeMarker, read_state, vote},
    scripts,
};

#[async_trait]
impl QuorumNode for RedisBackend {
    async fn request_vote(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
    ) -> Result<Attempt> {
        // An earlier attempt may have registered the waiter, which is not known here.
        let registered = request.waiting().keeps_waiting;
        self.attempt(request, Some(&requirements), registered).await
    }

    async fn raise_token(
        self: Arc<Self>,
        request: Request,
        requirements: VoteRequirements,
        token: FencingToken,
    ) -> Result<TokenVote> {
        vote::raise(&self.manager, &request, &requirements, token).await
    }

    async fn withdraw(self: Arc<Self>, request: Request) -> Result<Released> {
        let manager = &self.manager;
        // An attempt on a connection that broke is undone by the cleanup queue, as one of unknown
        // outcome.
        let Some(conn) = manager.current_connection() else {
            return Err(manager.no_connection("withdraw"));
        };
        let answer = match request.mode() {
            Mode::Exclusive => {
                manager
                    .operate(Job::Single(Operation::Release, request))
                    .await?
            }
            mode => {
                let arguments = |cmd: &mut Cmd| {
                    commands::release_arguments(cmd, &manager.config.prefix, &request);
                };
                manager
                    .run_on(
                        &conn,
                        commands::release_script(mode),
                        "withdraw",
                        SideEffect::Writes,
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
        let manager = &self.manager;
        let Some(conn) = manager.current_connection() else {
            return Err(manager.no_connection("stop waiting"));
        };
        // A vote that is not sent yet would register the waiter again.
        manager.flush();
        cleanup::stop_waiting(manager, &conn, &request, LockValue::waiting(&request)).await
    }

    async fn read_state(self: Arc<Self>, watched: Option<Watched>) -> Result<NodeState> {
        let manager = &self.manager;
        let conn = manager.connection_flushed("read_state").await?;
        let node_state = read_state::read(manager, &conn, watched).await?;
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
        let manager = &self.manager;
        let conn = manager.connection_flushed("record_epoch").await?;
        if record.incarnation.is_empty() {
            return Err(ERRORS.error(
                ErrorKind::Unsupported,
                "record_epoch",
                "the server does not say which run it is in; allow this user INFO (`+info`)",
            ));
        }
        if record.durable {
            let node_state = read_state::read(manager, &conn, None).await?;
            if !node_state.durable {
                return Err(ERRORS.error(
                    ErrorKind::Unsupported,
                    "record_epoch",
                    "it does not keep everything through a restart, or does not tell; set `appendonly yes` and \
                     `appendfsync always`, and allow this user INFO and CONFIG GET",
                ));
            }
        }
        let mark = NodeMarker::new(&record);
        let arguments = |cmd: &mut Cmd| {
            commands::add_keys(cmd, keys::of_node(&manager.config.prefix))
                .arg(mark.as_str())
                .arg(record.above.get())
                .arg(&record.version)
                .arg(&record.incarnation);
        };
        let answer = manager
            .run_on(
                &conn,
                &scripts::QUORUM_MARK,
                "record_epoch",
                SideEffect::Writes,
                arguments,
            )
            .await?;
        conn.set_node_state(None);
        match answer {
            Value::Int(1) => Ok(()),
            Value::Int(0) => Err(ERRORS.error(
                ErrorKind::Unavailable,
                "record_epoch",
                "the server was attested by another, was wiped or has restarted meanwhile; try again",
            )),
            _ => Err(ERRORS.unexpected("record_epoch")),
        }
    }
}
