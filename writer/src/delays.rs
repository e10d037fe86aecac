//! What a ledger says of delays and errors: how long a commit took from the moment it was due, and what clients were told in place of one.

use crate::open_loop::NEVER_SENT;
use crate::workload::{Ledger, Outcome};
use std::collections::BTreeMap;
use std::time::Duration;

/// Of all commits that were acknowledged, from when each was due.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Delays {
    /// Half of them took at most so long.
    pub p50: Duration,
    /// 99 of 100.
    pub p99: Duration,
    /// All of them.
    pub max: Duration,
}

impl Delays {
    /// Of this ledger; zero where nothing was acknowledged.
    pub fn of(ledger: &Ledger) -> Delays {
        let mut took: Vec<Duration> = ledger.acknowledged().map(|one| one.known.saturating_duration_since(one.due)).collect();
        took.sort();
        let at = |percent: usize| took.get((took.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default();
        Delays { p50: at(50), p99: at(99), max: at(100) }
    }
}

/// How often a client was told what in place of an acknowledgement: an SQLSTATE, or in words where no server said one.
pub fn errors(ledger: &Ledger) -> BTreeMap<String, usize> {
    let mut told = BTreeMap::new();
    for attempt in &ledger.attempts {
        if let Outcome::Refused(words) | Outcome::Unknown(words) = &attempt.outcome {
            *told.entry(kind(words).to_owned()).or_default() += 1;
        }
    }
    told
}

fn kind(words: &str) -> &str {
    match words.split_once(": ") {
        Some((code, _)) if code.len() == 5 && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase()) => code,
        _ if words == NEVER_SENT => NEVER_SENT,
        _ if words.starts_with("no answer") => "no answer",
        _ => "connection lost",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Attempt;
    use std::time::Instant;

    fn ledger(of: Vec<(u64, Outcome)>) -> Ledger {
        let due = Instant::now();
        let attempt = |(id, (took, outcome))| Attempt { id, due, sent: due, known: due + Duration::from_millis(took), outcome };
        Ledger { attempts: (1..).zip(of).map(attempt).collect(), ended: due }
    }

    #[test]
    fn a_percentile_is_a_delay_that_was_seen() {
        let of = |took: Vec<u64>| {
            let delays = Delays::of(&ledger(took.into_iter().map(|took| (took, Outcome::Acknowledged)).collect()));
            [delays.p50, delays.p99, delays.max].map(|delay| delay.as_millis())
        };
        assert_eq!(of(vec![]), [0, 0, 0]);
        assert_eq!(of(vec![7]), [7, 7, 7]);
        assert_eq!(of(vec![3, 1, 2]), [2, 3, 3]);
        assert_eq!(of((1..=100).collect()), [50, 99, 100]);
        assert_eq!(of((1..=1000).rev().collect()), [500, 990, 1000]);
    }

    #[test]
    fn what_was_not_acknowledged_has_no_delay_and_is_counted_by_what_was_said() {
        let said = ledger(vec![
            (1, Outcome::Acknowledged),
            (900, Outcome::Refused("25006: cannot write".to_owned())),
            (900, Outcome::Refused("25006: cannot write now".to_owned())),
            (900, Outcome::Unknown("57P01: terminating connection".to_owned())),
            (900, Outcome::Unknown("connection closed".to_owned())),
            (900, Outcome::Unknown("error communicating with the server: broken pipe".to_owned())),
            (900, Outcome::Unknown("no answer within 1s".to_owned())),
            (900, Outcome::Refused(NEVER_SENT.to_owned())),
        ]);
        assert_eq!(Delays::of(&said).max, Duration::from_millis(1));
        let told: Vec<String> = errors(&said).into_iter().map(|(what, count)| format!("{what} {count}")).collect();
        assert_eq!(told, ["25006 2", "57P01 1", "connection lost 2", "never sent 1", "no answer 1"]);
    }
}
