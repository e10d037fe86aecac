//! The clock that this host's extension counts by.

use cluster::time::Moment;
use std::time::Duration;

/// CLOCK_BOOTTIME: the clock that the extension's page counts by, on the same host.
pub fn boottime() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Moment(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
}
