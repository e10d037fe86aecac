//! A restart that somebody asked for: under which conditions it is done, and when one that was planned is due.

use serde::{Deserialize, Serialize};

/// The conditions that a request for a restart may name; all have to hold.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Conditions {
    /// `primary`, `standby_leader` or `replica`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Only where the server is older than this version (`15.3`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<String>,
    /// Only where a setting waits for a restart.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub restart_pending: bool,
}

/// What the conditions are held against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToRestart<'a> {
    /// `primary`, `standby_leader` or `replica`; another word while it does not serve.
    pub role: &'a str,
    /// As in `server_version_num`; None while it does not answer.
    pub version: Option<u32>,
    /// A setting waits for a restart.
    pub pending: bool,
    /// When its postmaster started, as PostgreSQL prints it.
    pub started: &'a str,
}

/// A request that can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Odd {
    /// Unknown role.
    #[error("PostgreSQL role should be either primary, standby_leader, or replica")]
    Role,
    /// Unreadable version.
    #[error("PostgreSQL version should be in the first.major.minor format")]
    Version,
}

/// `15.3` is 150003; before 10 there were three parts.
pub fn version_number(text: &str) -> Option<u32> {
    let parts = text.trim().split('.').map(str::parse).collect::<Result<Vec<u32>, _>>().ok()?;
    match parts[..] {
        [major, minor] if (10..1000).contains(&major) && minor < 10_000 => Some(major * 10_000 + minor),
        [major] if (10..1000).contains(&major) => Some(major * 10_000),
        [first, major, minor] if first < 10 && major < 100 && minor < 100 => Some(first * 10_000 + major * 100 + minor),
        _ => None,
    }
}

impl Conditions {
    /// Can they be understood at all?
    pub fn check(&self) -> Result<(), Odd> {
        match self.role.as_deref() {
            None | Some("primary" | "master" | "standby_leader" | "replica") => {}
            Some(_) => return Err(Odd::Role),
        }
        match self.postgres_version.as_deref().map(version_number) {
            Some(None) => Err(Odd::Version),
            _ => Ok(()),
        }
    }

    /// Are all of them met?
    pub fn are_met(&self, server: &ToRestart<'_>) -> bool {
        let role = self.role.as_deref().map(|role| if role == "master" { "primary" } else { role });
        let wished = self.postgres_version.as_deref().and_then(version_number);
        role.is_none_or(|role| role == server.role)
            && wished.is_none_or(|wished| server.version.is_none_or(|version| version < wished))
            && (!self.restart_pending || server.pending)
    }
}

/// A restart that waits for its time, as it stands in the member key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// When, ISO 8601 with a time zone.
    pub schedule: String,
    /// Under which conditions.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// Which start of the server is meant: a restart in between makes this one void.
    #[serde(default)]
    pub postmaster_start_time: String,
}

/// What is to be done about a restart that was planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Due {
    /// Its time has not come.
    Wait,
    /// Restart now.
    Restart,
    /// Forget it, for this reason.
    Drop(&'static str),
}

/// A plan that is more than this late is void, in multiples of `loop_wait`, as in the field.
const LATE_LOOPS: f64 = 1.5;

/// Judges a plan. `late_s`: seconds since its time, negative before it; None where the time can't be read.
pub fn judge(scheduled: &Scheduled, server: &ToRestart<'_>, late_s: Option<f64>, loop_wait_s: f64, paused: bool) -> Due {
    let Some(late) = late_s else { return Due::Drop("its time can't be read") };
    if !scheduled.postmaster_start_time.is_empty() && !server.started.is_empty() && scheduled.postmaster_start_time != server.started {
        return Due::Drop("the server was restarted meanwhile");
    }
    if late < 0.0 {
        return Due::Wait;
    }
    if paused {
        return Due::Drop("the cluster is in maintenance mode");
    }
    if late > LATE_LOOPS * loop_wait_s {
        return Due::Drop("its time has passed while this node could not act");
    }
    if !scheduled.conditions.are_met(server) {
        return Due::Drop("its conditions are not met");
    }
    Due::Restart
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPLICA: ToRestart<'_> = ToRestart { role: "replica", version: Some(150_003), pending: false, started: "monday" };

    #[test]
    fn conditions_hold_all_or_not() {
        for (json, holds) in [
            ("{}", true),
            (r#"{"role":"replica"}"#, true),
            (r#"{"role":"primary"}"#, false),
            (r#"{"role":"master"}"#, false),
            (r#"{"postgres_version":"15.4"}"#, true),
            (r#"{"postgres_version":"15.3"}"#, false),
            (r#"{"postgres_version":"16"}"#, true),
            (r#"{"restart_pending":true}"#, false),
        ] {
            let conditions: Conditions = serde_json::from_str(json).unwrap();
            assert_eq!(conditions.check(), Ok(()), "{json}");
            assert_eq!(conditions.are_met(&REPLICA), holds, "{json}");
        }
        assert!(Conditions { restart_pending: true, ..Default::default() }.are_met(&ToRestart { pending: true, ..REPLICA }));
        assert_eq!(Conditions { role: Some("boss".into()), ..Default::default() }.check(), Err(Odd::Role));
        assert_eq!(Conditions { postgres_version: Some("15.3.1".into()), ..Default::default() }.check(), Err(Odd::Version));
    }

    #[test]
    fn versions_are_numbers() {
        for (text, number) in [("15.3", Some(150_003)), ("9.6.23", Some(90_623)), ("16", Some(160_000)), ("x", None), ("15.3.1", None)] {
            assert_eq!(version_number(text), number, "{text}");
        }
    }

    #[test]
    fn a_plan_is_kept_done_or_dropped() {
        let plan = Scheduled { schedule: "t".into(), conditions: Conditions::default(), postmaster_start_time: "monday".into() };
        let judged = |late: Option<f64>, server: &ToRestart<'_>, paused| judge(&plan, server, late, 2.0, paused);
        assert_eq!(judged(Some(-1.0), &REPLICA, false), Due::Wait);
        assert_eq!(judged(Some(0.0), &REPLICA, false), Due::Restart);
        assert_eq!(judged(Some(2.9), &REPLICA, false), Due::Restart);
        assert!(matches!(judged(Some(3.1), &REPLICA, false), Due::Drop(_)), "too late");
        assert!(matches!(judged(Some(0.0), &REPLICA, true), Due::Drop(_)), "paused");
        assert!(matches!(judged(Some(-1.0), &ToRestart { started: "tuesday", ..REPLICA }, false), Due::Drop(_)), "restarted");
        assert!(matches!(judged(None, &REPLICA, false), Due::Drop(_)), "unreadable");
        let picky = Scheduled { conditions: Conditions { role: Some("primary".into()), ..Default::default() }, ..plan.clone() };
        assert!(matches!(judge(&picky, &REPLICA, Some(0.0), 2.0, false), Due::Drop(_)), "conditions");
    }

    #[test]
    fn a_plan_stands_in_the_key_as_the_field_writes_it() {
        let text =
            r#"{"schedule":"2027-01-01T00:00:00+00:00","role":"replica","postmaster_start_time":"2026-11-20 16:18:03.161436+00:00"}"#;
        let plan: Scheduled = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&plan).unwrap(), text);
    }
}
