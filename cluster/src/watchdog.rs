//! The watchdog device: how long it waits for us, and what is done with it now, from what was just seen of the server.
//!
//! The fence needs no watchdog: it stops commits by a deadline of its own. The device is for a host that hangs as a whole, or
//! whose arbiter is frozen: nobody there would stop, promote or say anything.

use std::time::Duration;

/// Below this a device would fire while all is well: it counts whole seconds, and the page is read about twice in one.
pub const SHORTEST: Duration = Duration::from_secs(2);

/// What a member says of itself where it may not lead for want of its watchdog; why follows.
pub const REQUIRED: &str = "watchdog.mode is required, and the device can't be used";

/// Does a member say of itself that it may not lead for want of its watchdog?
pub fn is_reason(reason: &str) -> bool {
    reason.starts_with(REQUIRED)
}

/// `watchdog.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// No device is opened.
    Off,
    /// It is used where it can be.
    #[default]
    Automatic,
    /// Without it this node does not stand.
    Required,
}

impl Mode {
    /// The field's words; None for another one.
    pub fn parse(text: &str) -> Option<Mode> {
        match text.to_lowercase().as_str() {
            "off" | "disable" | "disabled" | "false" | "no" => Some(Mode::Off),
            "auto" | "automatic" => Some(Mode::Automatic),
            "require" | "required" => Some(Mode::Required),
            _ => None,
        }
    }
}

/// After how long without a word from us the device is to fire: `ttl - safety_margin`, or half the TTL where the margin is -1, so
/// that a host that hangs is reset before another may lead. None where too little is left to work with.
pub fn timeout(ttl: Duration, safety_margin_s: i64) -> Option<Duration> {
    let left = match u64::try_from(safety_margin_s) {
        Ok(margin) => ttl.saturating_sub(Duration::from_secs(margin)),
        Err(_) => ttl / 2,
    };
    let whole = Duration::from_secs(left.as_secs());
    (whole >= SHORTEST).then_some(whole)
}

/// The server, as the arbiter's look at its processes and at the page in its shared memory has just shown it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerSeen {
    /// There is none, and not one process is left of any.
    Gone,
    /// Its postmaster is dead, and processes of it are left.
    Left,
    /// It starts, or recovers from the crash of one of its processes.
    Starting,
    /// It is in recovery.
    Standby,
    /// It is a primary with an open page.
    Open,
    /// It answers, and no open page of a primary was seen.
    Closed,
    /// It runs and says nothing at all.
    Silent,
}

/// What is done with the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Open it where it is not open yet, and feed it.
    Arm,
    /// Feed it where it is open.
    Feed,
    /// Nothing: it may fire.
    Starve,
    /// Tell it to stop, and close it.
    Disarm,
}

/// What is done with the device now. `promoting`: this arbiter has armed it for a server that is about to be a primary.
///
/// It is fed for what was *seen*: a page that is open, or a server that answers and whose page is closed, which is a fence that holds
/// (etcd is away, and a reset would take the reads too). A server that says nothing is neither. It is disarmed only where no process
/// is left that could acknowledge anything, where the server that runs was never a primary since it started, or in maintenance mode,
/// in which no host may be reset for what an operator does by hand.
pub fn act(server: ServerSeen, promoting: bool, paused: bool) -> Act {
    match server {
        _ if paused => Act::Disarm,
        ServerSeen::Gone | ServerSeen::Standby if promoting => Act::Feed,
        ServerSeen::Gone | ServerSeen::Standby => Act::Disarm,
        ServerSeen::Open => Act::Arm,
        ServerSeen::Closed | ServerSeen::Starting => Act::Feed,
        ServerSeen::Left | ServerSeen::Silent => Act::Starve,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_device_fires_before_another_may_lead() {
        for (ttl, margin, expected) in [
            (30, 5, Some(25)),
            (10, 5, Some(5)),
            (10, -1, Some(5)),
            (5, -1, Some(2)),
            (7, 5, Some(2)),
            (6, 5, None),
            (3, 5, None),
            (3, 1, Some(2)),
        ] {
            let timeout = timeout(Duration::from_secs(ttl), margin);
            assert_eq!(timeout, expected.map(Duration::from_secs), "ttl {ttl}, margin {margin}");
            assert!(timeout.is_none_or(|timeout| timeout < Duration::from_secs(ttl)));
        }
    }

    #[test]
    fn the_fields_words() {
        use Mode::*;
        for (word, mode) in [
            ("off", Some(Off)),
            ("Required", Some(Required)),
            ("require", Some(Required)),
            ("auto", Some(Automatic)),
            ("on", None),
            ("", None),
        ] {
            assert_eq!(Mode::parse(word), mode, "{word}");
        }
    }

    #[test]
    fn fed_for_what_was_seen_and_disarmed_where_nobody_is_left() {
        use Act::*;
        use ServerSeen::*;
        for (server, as_usual, promoting) in [
            (Gone, Disarm, Feed),
            (Left, Starve, Starve),
            (Starting, Feed, Feed),
            (Standby, Disarm, Feed),
            (Open, Arm, Arm),
            (Closed, Feed, Feed),
            (Silent, Starve, Starve),
        ] {
            assert_eq!(act(server, false, false), as_usual, "{server:?}");
            assert_eq!(act(server, true, false), promoting, "{server:?}");
            assert_eq!(act(server, false, true), Disarm, "{server:?} in maintenance mode");
        }
    }
}
