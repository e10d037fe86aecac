//! The two clocks of this host that the page is judged by: one that goes on while the host sleeps and that nobody sets, and the wall clock beside it.

use cluster::time::Moment;
use std::time::Duration;

/// CLOCK_BOOTTIME now: it goes on while the host sleeps, and nobody can set it.
pub fn boottime() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Moment(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
}

/// The wall clock less CLOCK_BOOTTIME, in nanoseconds. The wall clock is read first: whatever comes in between makes less of it.
pub fn wall_ahead_ns() -> i64 {
    let wall_ns = wall_ns();
    wall_ns.saturating_sub(boottime_ns(boottime()))
}

/// The same, for a moment that was read just now: whatever came in between makes more of it.
pub(super) fn wall_ahead_of_ns(now: Moment) -> i64 {
    wall_ns().saturating_sub(boottime_ns(now))
}

fn boottime_ns(moment: Moment) -> i64 {
    i64::try_from(moment.as_nanos()).unwrap_or(i64::MAX)
}

/// The wall clock, by libc's function, as Postgres reads its own.
fn wall_ns() -> i64 {
    let mut wall = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes the structure that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &raw mut wall) };
    wall.tv_sec.saturating_mul(1_000_000_000).saturating_add(wall.tv_nsec)
}
