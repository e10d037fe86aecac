//! Replay of a delayed standby up to a time: which delay to set, for how long, and when to stop.
//!
//! PostgreSQL replays a commit as soon as it is `recovery_min_apply_delay` old. So with a delay of "how long ago the time was, and
//! a little more" everything up to that time is replayed within that little, and what comes after it is not. Before the little is
//! over replay is paused. Where much is to be replayed this is done in strides; each begins with a pause, so that a server that reads its settings
//! late never goes by a delay that has become too short.

use serde::{Deserialize, Serialize};
use std::time::Duration;

/// While much is left: for so long one delay holds.
pub const LONG: Duration = Duration::from_secs(60);

/// The last stride.
pub const SHORT: Duration = Duration::from_secs(3);

/// Replay pauses so long before the first commit after the time could be replayed.
pub const BEFORE: Duration = Duration::from_millis(20);

/// What is asked of a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Replay all that was committed up to this moment, in milliseconds since 1970, and stop there.
    Until(i64),
    /// Stop where it is.
    Pause,
    /// Go on, by the configured delay.
    Resume,
}

/// Why it can't be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// What is not there yet can't be replayed.
    #[error("that time is yet to come")]
    Future,
    /// It can't be undone.
    #[error("this member has replayed a commit of {0} s after that time already")]
    Passed(u64),
}

/// The delay for a stride that begins now and is to end after `stride`: when that is over, a commit of the wanted time has just been replayed.
pub fn delay(until_ms: i64, now_ms: i64, stride: Duration) -> Result<Duration, Refused> {
    let ago = u64::try_from(now_ms - until_ms).map_err(|_| Refused::Future)?;
    Ok(Duration::from_millis(ago) + stride)
}

/// May it still be reached? By the time of the last commit that was replayed.
pub fn reachable(until_ms: i64, replayed_ms: Option<i64>) -> Result<(), Refused> {
    match replayed_ms.and_then(|replayed| u64::try_from(replayed - until_ms).ok()).filter(|past| *past > 0) {
        Some(past) => Err(Refused::Passed(past.div_ceil(1000))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_after_the_time_is_not_old_enough_while_the_stride_lasts() {
        let (until, now) = (1_000_000, 1_060_000);
        let delay = delay(until, now, SHORT).unwrap();
        let replays_at = |commit_ms: i64| commit_ms + i64::try_from(delay.as_millis()).unwrap();
        assert_eq!(replays_at(until), now + 3000);
        for (commit, within) in [(until, true), (until - 1, true), (until - 50_000, true), (until + 1, false), (until + 3000, false)] {
            assert_eq!(replays_at(commit) <= now + 3000, within, "{commit}");
        }
        assert_eq!(super::delay(2, 1, SHORT), Err(Refused::Future));
    }

    #[test]
    fn what_was_replayed_can_t_be_undone() {
        for (replayed, expected) in [(None, Ok(())), (Some(10_000), Ok(())), (Some(9_000), Ok(())), (Some(10_001), Err(Refused::Passed(1)))]
        {
            assert_eq!(reachable(10_000, replayed), expected, "{replayed:?}");
        }
    }
}
