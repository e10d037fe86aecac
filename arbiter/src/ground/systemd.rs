//! Our word to systemd, where it started us: ready, reading the configuration again, about to end, and that the loop still turns.

use sd_notify::NotifyState;
use std::time::{Duration, Instant};

/// What systemd tells us by the environment is for this process alone. Debian's Postgres speaks to systemd too, and a server is no part of
/// what systemd waits for here.
pub const OURS: [&str; 4] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM"];

/// Tells systemd, where it asked to be told (`Type=notify`, `Type=notify-reload`).
pub fn tell(states: &[NotifyState<'_>]) {
    if let Err(why) = sd_notify::notify(states) {
        tracing::warn!("could not notify systemd: {why}");
    }
}

/// A reload begins.
pub fn reloading() -> Vec<NotifyState<'static>> {
    let mut states = vec![NotifyState::Reloading];
    states.extend(NotifyState::monotonic_usec_now());
    states
}

/// The sign of life that `WatchdogSec=` asks for. It belongs to the daemon's loop, which gives it between two turns and nowhere else: a turn
/// that never ends, and a thread that stands still, both end it.
#[derive(Debug)]
pub struct Pulse {
    /// A third of systemd's patience: one sign may be late.
    every: Option<Duration>,
    due: Instant,
}

impl Pulse {
    /// As systemd asked for it, if it did.
    pub fn asked_for(now: Instant) -> Pulse {
        Pulse::every(sd_notify::watchdog_enabled(), now)
    }

    fn every(patience: Option<Duration>, now: Instant) -> Pulse {
        Pulse { every: patience.map(|patience| patience / 3), due: now }
    }

    /// Waits until the next sign is due; forever where nobody asked for one.
    pub async fn due(&self) {
        match self.every {
            Some(_) => tokio::time::sleep_until(self.due.into()).await,
            None => std::future::pending().await,
        }
    }

    /// The loop turns: says so where a sign is due.
    pub fn beat(&mut self, now: Instant) {
        if self.is_due(now) {
            tell(&[NotifyState::Watchdog]);
        }
    }

    fn is_due(&mut self, now: Instant) -> bool {
        let Some(every) = self.every.filter(|_| now >= self.due) else { return false };
        self.due = now + every;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_given_three_times_within_the_patience_and_never_unasked() {
        let began = Instant::now();
        let at = |second| began + Duration::from_secs(second);
        let mut pulse = Pulse::every(Some(Duration::from_secs(30)), began);
        let given: Vec<u64> = (0..=40).filter(|second| pulse.is_due(at(*second))).collect();
        assert_eq!(given, [0, 10, 20, 30, 40]);
        let mut unasked = Pulse::every(None, began);
        assert!((0..=40).all(|second| !unasked.is_due(at(second))));
    }
}
