//! [`Group`]: the jobs of a batch that are sent together; and [`SharedCall`]: those that one call
//! of a script does.

use leasehold_core::text::parse_exact;
use redis::{Cmd, Pipeline, RedisError, Value};

use crate::{
    commands::Operation,
    connection::{Connection, by_hash, in_full, is_no_permission, is_no_script},
    job::{self, Job},
    keys::{Keys, LockValue},
    scripts::{self, Script},
};

/// The largest number of jobs in one call, during which the server serves no other client.
///
/// Measured with Redis 7.0.15 (medians of 300 calls by `SLOWLOG`): calls with 1, 8 and 32 votes
/// take 26, 75 and 215 µs if all are granted, and 37, 138 and 840 µs if all are refused. Up to that
/// release, each read-only command of a refusal tracks all keys of the call.
const MOST: usize = 8;

/// The jobs of a batch that one or two commands do.
pub(crate) enum Group {
    /// The job at this place, by commands of its own.
    Alone(usize, Operation),
    Shared(SharedCall),
}

/// Distributes the jobs of a batch among as few groups as possible, in the order in which these are
/// sent. `is_node` means that the server is a node of a quorum.
///
/// Votes share calls, and so do the releases at a node. Other servers may refuse to release several
/// locks at once, because their keys are in different cluster slots. No job is sent ahead of an
/// earlier one of its key.
pub(crate) fn groups(jobs: &[Job], is_node: bool) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (at, job) in jobs.iter().enumerate() {
        match job {
            Job::Single(operation, _) if !(is_node && *operation == Operation::Release) => {
                groups.push(Group::Alone(at, *operation));
            }
            _ => {
                let like = groups.iter_mut().rev().find_map(|group| match group {
                    Group::Shared(call) if go_together(&jobs[call.first()], job) => Some(call),
                    _ => None,
                });
                match like {
                    Some(call) if call.has_room_for(at, jobs) => call.0.push(at),
                    _ => groups.push(Group::Shared(SharedCall(vec![at]))),
                }
            }
        }
    }
    groups
}

/// The places of the jobs of one call in their batch, in ascending order.
pub(crate) struct SharedCall(Vec<usize>);

impl SharedCall {
    fn first(&self) -> usize {
        self.0[0]
    }

    pub(crate) fn places(&self) -> &[usize] {
        &self.0
    }

    /// Returns whether the call can do the job at `at` as well, although it is sent in the place of
    /// its first job.
    fn has_room_for(&self, at: usize, jobs: &[Job]) -> bool {
        let key = jobs[at].request().key();
        let mut between = (self.first()..at).filter(|place| !self.0.contains(place));
        self.0.len() < MOST && between.all(|place| jobs[place].request().key() != key)
    }

    /// Returns the command.
    pub(crate) fn command(&self, prefix: &[u8], jobs: &[Job]) -> Cmd {
        let jobs = self.jobs(jobs);
        by_hash(script(&jobs), &|cmd| arguments(cmd, prefix, &jobs))
    }

    /// Returns the results of the jobs, in the order of their places. They are sent again if the
    /// server did none of them because it forgot the script, or because the user may not use the
    /// keys of some of them.
    pub(crate) async fn finish(
        &self,
        conn: &Connection,
        prefix: &[u8],
        jobs: &[Job],
        reply: Value,
    ) -> Vec<Result<Value, RedisError>> {
        let jobs = self.jobs(jobs);
        let results = read(reply, jobs.len());
        let together = if failed_by(&results, is_no_script) {
            jobs.len()
        } else if jobs.len() > 1 && failed_by(&results, is_no_permission) {
            1
        } else {
            return results;
        };
        let again = |jobs: &[&Job]| in_full(script(jobs), &|cmd| arguments(cmd, prefix, jobs));
        send_again(conn, jobs.chunks(together).map(again).collect(), together).await
    }

    fn jobs<'a>(&self, jobs: &'a [Job]) -> Vec<&'a Job> {
        self.0.iter().map(|at| &jobs[*at]).collect()
    }
}

/// Sends commands of `count` jobs each, and returns the results of all jobs.
async fn send_again(
    conn: &Connection,
    commands: Vec<Cmd>,
    count: usize,
) -> Vec<Result<Value, RedisError>> {
    let all = commands.len() * count;
    let mut pipeline = Pipeline::with_capacity(commands.len());
    for command in commands {
        pipeline.add_command(command);
    }
    match conn.send_all(&pipeline).await {
        Ok(replies) => replies
            .into_iter()
            .flat_map(|reply| read(reply, count))
            .collect(),
        Err(error) => vec![Err(error); all],
    }
}

/// Returns whether every job failed with such an error.
fn failed_by(results: &[Result<Value, RedisError>], is: fn(&RedisError) -> bool) -> bool {
    results.iter().all(|result| result.as_ref().is_err_and(is))
}

/// Returns whether two jobs that can share a call can share the same one.
fn go_together(one: &Job, other: &Job) -> bool {
    match (one, other) {
        (Job::Vote(one), Job::Vote(other)) => one.goes_with(other),
        (Job::Single(one, _), Job::Single(other, _)) => one == other,
        _ => false,
    }
}

fn script(jobs: &[&Job]) -> &'static Script {
    match jobs[0] {
        Job::Vote(_) => &scripts::QUORUM_ACQUIRE,
        Job::Single(operation, _) => operation.script(),
    }
}

/// Adds the keys and the arguments of the script.
fn arguments(cmd: &mut Cmd, prefix: &[u8], jobs: &[&Job]) {
    if let Job::Vote(first) = jobs[0] {
        let votes = jobs.iter().filter_map(|job| match job {
            Job::Vote(vote) => Some(vote),
            Job::Single(..) => None,
        });
        job::acquire_arguments(cmd, prefix, first, votes.clone());
        return;
    }
    let requests = || jobs.iter().map(|job| job.request());
    cmd.arg(jobs.len());
    for request in requests() {
        cmd.arg(Keys::new(prefix, request.key()).lock());
    }
    for request in requests() {
        cmd.arg(LockValue::of(request).parts());
    }
}

/// Returns the results of the jobs of a call. Its reply is a number, numbers that are separated by
/// spaces, or a list with one reply for each job.
pub(crate) fn read(reply: Value, count: usize) -> Vec<Result<Value, RedisError>> {
    let unexpected = || {
        RedisError::from((
            redis::ErrorKind::UnexpectedReturnType,
            "the script did not answer each of its jobs",
        ))
    };
    let results: Option<Vec<_>> = match reply {
        number @ Value::Int(_) => Some(vec![Ok(number)]),
        Value::BulkString(text) => std::str::from_utf8(&text).ok().and_then(|text| {
            let numbers = text.split(' ').map(parse_exact);
            numbers
                .map(|number| Some(Ok(Value::Int(number?))))
                .collect()
        }),
        Value::Array(replies) => Some(replies.into_iter().map(Value::extract_error).collect()),
        Value::ServerError(error) => return vec![Err(error.into()); count],
        _ => None,
    };
    results
        .filter(|results| results.len() == count)
        .unwrap_or_else(|| vec![Err(unexpected()); count])
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use leasehold_core::{FencingToken, LockKey, backend::Request};

    use super::*;
    use crate::{job::Vote, quorum::state::CachedNodeState};

    fn request(key: &str) -> Request {
        Request::new(LockKey::new(key).unwrap())
    }

    fn vote_in(run: &str, key: &str) -> Job {
        Job::Vote(Vote {
            request: request(key),
            node_state: Arc::new(CachedNodeState::of_run(run)),
            token_floor: FencingToken::new(0),
            registered: false,
        })
    }

    fn vote(key: &str) -> Job {
        vote_in("run", key)
    }

    fn release(key: &str) -> Job {
        Job::Single(Operation::Release, request(key))
    }

    /// Returns the places of the jobs of each shared call.
    fn places(jobs: &[Job], is_node: bool) -> Vec<Vec<usize>> {
        let shared = |group| match group {
            Group::Shared(call) => Some(call.0),
            Group::Alone(..) => None,
        };
        groups(jobs, is_node)
            .into_iter()
            .filter_map(shared)
            .collect()
    }

    #[test]
    fn jobs_of_different_keys_share_calls() {
        let jobs = [vote("a"), release("b"), vote("c"), release("d"), vote("e")];
        assert_eq!(places(&jobs, true), [vec![0, 2, 4], vec![1, 3]]);
        // The keys of another server may be in different slots.
        assert_eq!(places(&jobs, false), [[0, 2, 4]]);
        let renewal = Job::Single(Operation::Renew, request("a"));
        assert!(places(&[renewal], true).is_empty());
    }

    #[test]
    fn jobs_of_one_key_keep_their_order() {
        // A withdrawal comes after the vote that it withdraws, and a vote after the release of the
        // holder before it.
        let jobs = [vote("a"), release("b"), vote("b"), release("a")];
        assert_eq!(places(&jobs, true), [vec![0], vec![1, 3], vec![2]]);
        let jobs = [release("b"), vote("a"), release("a")];
        assert_eq!(places(&jobs, true), [[0], [1], [2]]);
        let renewal = Job::Single(Operation::Renew, request("b"));
        assert_eq!(places(&[vote("a"), renewal, vote("b")], true), [[0], [2]]);
        assert_eq!(places(&[vote("a"), vote("a")], true), [[0, 1]]);
    }

    #[test]
    fn votes_in_different_runs_share_no_call() {
        let jobs = [
            vote_in("one", "a"),
            vote_in("other", "b"),
            vote_in("other", "c"),
        ];
        assert_eq!(places(&jobs, true), [vec![0], vec![1, 2]]);
    }

    #[test]
    fn a_call_has_at_most_8_jobs() {
        let jobs: Vec<_> = (0..20).map(|at| vote(&at.to_string())).collect();
        let sizes: Vec<_> = places(&jobs, true).iter().map(Vec::len).collect();
        assert_eq!(sizes, [8, 8, 4]);
    }

    #[test]
    fn each_job_has_its_own_result() {
        let read = |reply: &str, count| {
            let results = read(redis::parse_redis_value(reply.as_bytes()).unwrap(), count);
            let text = |result: Result<Value, RedisError>| match result {
                Ok(value) => format!("{value:?}"),
                Err(error) => error.code().unwrap_or("unexpected").to_owned(),
            };
            results.into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(read("$5\r\n17 18\r\n", 2), ["int(17)", "int(18)"]);
        assert_eq!(read(":1\r\n", 1), ["int(1)"]);
        assert_eq!(
            read("*2\r\n$2\r\n17\r\n-LEASETOKEN no token\r\n", 2),
            ["bulk-string('\"17\"')", "LEASETOKEN"]
        );
        assert_eq!(
            read("-LEASEMARK changed\r\n", 2),
            ["LEASEMARK", "LEASEMARK"]
        );
        for reply in [
            "$2\r\n17\r\n",
            "$5\r\n17 +8\r\n",
            "*1\r\n:1\r\n",
            ":1\r\n",
            "_\r\n",
        ] {
            assert_eq!(read(reply, 2), ["unexpected", "unexpected"], "{reply}");
        }
    }
}
