//! The process of Citus that keeps a stopping server waiting (`citus/daemon.rs` says why).

use crate::postgres::postmaster::Postmaster;
use rustix::process::Signal;
use std::time::Duration;

/// In the title of its process; the database's and the owner's number follow.
pub const TITLE: &str = "Citus Maintenance Daemon";

/// While the server stops: one that was started again meanwhile, and then fell asleep, is woken up. Goes on until it is dropped.
pub async fn hurry(postmaster: &Postmaster) {
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        postmaster.signal_processes(TITLE, Signal::TERM).await;
    }
}
