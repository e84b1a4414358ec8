//! The ZooKeeper backend when servers, sessions and connections fail.

mod access;
mod crowd;
mod ensemble;
mod follower;
mod hint;
mod killed;
mod lost_replies;
mod numbers;
mod parent;
mod session;
mod support;
