//! A process that can be waited for.

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::os::fd::OwnedFd;
use tokio::io::unix::AsyncFd;

/// A descriptor of a process that becomes readable when it ends.
pub fn watchable(pid: Pid) -> std::io::Result<AsyncFd<OwnedFd>> {
    when_readable(pidfd_open(pid, PidfdFlags::NONBLOCK)?)
}

/// A descriptor that tasks can wait on.
#[expect(
    deprecated,
    reason = "its successor is an unsafe fn, and unsafe is kept to `extension` and `watchdog.rs`; an OwnedFd moved in here stays open and the same until the AsyncFd is dropped, which is all that the successor asks"
)]
pub fn when_readable(descriptor: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(descriptor, tokio::io::Interest::READABLE)
}
