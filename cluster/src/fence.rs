//! The fence's rule: may this commit pass at this moment?

use crate::time::Moment;
use std::time::Duration;

/// The page's mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Mode {
    /// No scope is configured, or the server runs alone in single-user mode: nothing is fenced.
    Unmanaged = 0,
    /// This node may not write: it holds no lease.
    Closed = 1,
    /// This node may write until the deadline.
    Open = 2,
    /// A switchover is under way: transactions that began before it may end, others wait.
    Draining = 3,
}

impl Mode {
    /// From the number kept in shared memory; anything unknown is closed.
    pub fn from_number(number: u32) -> Mode {
        match number {
            0 => Mode::Unmanaged,
            2 => Mode::Open,
            3 => Mode::Draining,
            _ => Mode::Closed,
        }
    }

    /// The word shown to people.
    pub fn word(self) -> &'static str {
        match self {
            Mode::Unmanaged => "unmanaged",
            Mode::Closed => "closed",
            Mode::Open => "open",
            Mode::Draining => "draining",
        }
    }
}

/// What a backend reads from shared memory before it commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Page {
    /// The page's mode.
    pub mode: Mode,
    /// Open and draining: until when.
    pub deadline: Moment,
    /// Draining: since when.
    pub draining_since: Moment,
    /// Draining: until when at most. The session that begins a drain may die or freeze, and then nobody would end it.
    pub draining_until: Moment,
}

impl Page {
    /// A drain holds new transactions at this moment.
    pub fn drains(&self, now: Moment) -> bool {
        self.mode == Mode::Draining && now < self.draining_until
    }
}

/// The answer to "may this commit pass?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    /// Yes.
    Pass,
    /// Not now; it may be yes shortly (a renewal is late, a switchover runs).
    Wait,
}

/// A wall clock is set right by less than this at a time where it is well; a slew moves it far less within a lease.
const WALL_TOLERANCE: Duration = Duration::from_millis(100);

/// The moment to judge by, where the wall clock has gained on CLOCK_BOOTTIME since before the lease was last renewed: later by so much.
///
/// A hypervisor that pauses a machine stops the machine's clocks. What tells, if anything does, is the wall clock, which somebody sets
/// right afterwards. It is a second opinion that may only close: a clock that falls behind says nothing, and one that was set ahead for
/// another reason costs a wait until the next renewal. Both differences are the wall clock less CLOCK_BOOTTIME, in nanoseconds.
pub fn by_wall_clock(now: Moment, at_renewal_ns: i64, present_ns: i64) -> Moment {
    let gained = Duration::from_nanos(u64::try_from(present_ns.saturating_sub(at_renewal_ns)).unwrap_or(0));
    if gained > WALL_TOLERANCE { now + gained } else { now }
}

/// Judges a commit of a transaction that began at `began`.
///
/// A closed page is `Wait` and no refusal: a node that was just promoted, or whose worker was just
/// restarted, opens within milliseconds; the caller bounds the wait and then refuses.
pub fn judge(page: Page, began: Moment, now: Moment) -> Ruling {
    match page.mode {
        Mode::Unmanaged => Ruling::Pass,
        Mode::Closed => Ruling::Wait,
        Mode::Open if now < page.deadline => Ruling::Pass,
        Mode::Open => Ruling::Wait,
        Mode::Draining if now >= page.deadline => Ruling::Wait,
        Mode::Draining if !page.drains(now) => Ruling::Pass,
        Mode::Draining if began < page.draining_since => Ruling::Pass,
        Mode::Draining => Ruling::Wait,
    }
}

/// May a commit that is already durable be acknowledged now? `deadline` must be ahead: a commit that
/// began in time but came back late may already be missing from the next leader's history.
pub fn may_acknowledge(page: Page, now: Moment) -> bool {
    match page.mode {
        Mode::Unmanaged => true,
        Mode::Closed => false,
        Mode::Open | Mode::Draining => now < page.deadline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> Moment {
        Moment::from_nanos(nanos)
    }

    #[test]
    fn rulings() {
        use Mode::*;
        use Ruling::*;
        for (mode, began, now, ruling, acknowledge) in [
            (Unmanaged, 0, 999, Pass, true),
            (Closed, 0, 0, Wait, false),
            (Open, 0, 99, Pass, true),
            (Open, 0, 100, Wait, false),
            (Draining, 49, 99, Pass, true),
            (Draining, 50, 99, Wait, true),
            (Draining, 49, 100, Wait, false),
            (Draining, 85, 89, Wait, true),
            (Draining, 85, 90, Pass, true),
            (Draining, 85, 100, Wait, false),
        ] {
            let until = if began == 85 { at(90) } else { at(200) };
            let page = Page { mode, deadline: at(100), draining_since: at(50), draining_until: until };
            assert_eq!(judge(page, at(began), at(now)), ruling, "{mode:?} began {began} at {now}");
            assert_eq!(may_acknowledge(page, at(now)), acknowledge, "{mode:?} at {now}");
        }
    }

    #[test]
    fn the_wall_clock_only_closes() {
        let second = 1_000_000_000;
        for (at_renewal, present, wanted) in [
            (5 * second, 5 * second, 100),
            (5 * second, 5 * second + 99_000_000, 100),
            (5 * second, 6 * second, 100 + 1_000_000_000),
            (5 * second, 4 * second, 100),
            (-5 * second, 5 * second, 100 + 10_000_000_000),
            (i64::MAX, i64::MIN, 100),
        ] {
            assert_eq!(by_wall_clock(at(100), at_renewal, present), at(wanted), "{at_renewal} to {present}");
        }
    }

    #[test]
    fn numbers_that_are_no_mode_are_closed() {
        for number in [1, 4, u32::MAX] {
            assert_eq!(Mode::from_number(number), Mode::Closed);
        }
    }
}
