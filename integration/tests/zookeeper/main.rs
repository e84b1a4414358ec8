//! The ZooKeeper backend when servers, sessions and connections fail.

mod access;
mod crowd;
mod ensemble;
mod follower;
mod lost_replies;
mod parent;
mod session;
mod support;
