//! The ZooKeeper backend when servers, sessions and connections fail.

mod access;
mod elections;
mod ensemble;
mod follower;
mod hint;
mod lost_replies;
mod numbers;
mod parent;
mod records;
mod session;
mod support;
mod waiters_session;
