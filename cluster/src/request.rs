//! What somebody on another node asks of a member: `tenure/request/<name>`, the way by which SQL, which has no credentials of the
//! members' REST, reaches them. It hangs on a lease of its own, so that one that nobody takes up is gone before it surprises.

use crate::replay::Ask;
use crate::restart::Conditions;
use crate::speech::{OURS, Speech};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A request that is not taken up within this time is gone.
pub const REQUEST_TTL: Duration = Duration::from_secs(30);

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// Restart Postgres in place.
    Restart,
    /// Read the node's file again and reload Postgres.
    Reload,
    /// Make a new copy of a standby's data.
    Reinit,
    /// Replay a standby up to a time, stop there, or go on.
    Replay(Ask),
    /// A wish of a build that can say more than this one: it is refused.
    #[serde(skip)]
    Unknown,
}

impl std::fmt::Display for Wish {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Wish::Restart => "restart",
            Wish::Reload => "reload",
            Wish::Reinit => "reinit",
            Wish::Replay(_) => "replay",
            Wish::Unknown => "something that this build does not know",
        })
    }
}

/// The value of the key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRequest {
    /// What.
    pub wish: Wish,
    /// Under which conditions a restart is done.
    #[serde(flatten)]
    pub conditions: Conditions,
    /// Through which member it was asked for.
    #[serde(default)]
    pub by: String,
    /// What who asks speaks.
    #[serde(default)]
    pub speech: Speech,
}

impl MemberRequest {
    /// In place of one that can't be read.
    pub fn unreadable() -> MemberRequest {
        MemberRequest { wish: Wish::Unknown, conditions: Conditions::default(), by: "another member".to_owned(), speech: Speech::default() }
    }

    /// Why it is not served, whatever it asks for.
    pub fn refused(&self) -> Option<String> {
        match OURS.apart_from(self.speech) {
            Some(why) => Some(format!("seen from here, {why}")),
            None if self.wish == Wish::Unknown => Some("it was asked for by a later version of pg_tenure; upgrade this one".to_owned()),
            None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_reads_as_it_is_written_and_an_unknown_wish_is_refused() {
        let text = r#"{"wish":"restart","restart_pending":true,"by":"n1","speech":{"speaks":1,"serves_from":1}}"#;
        let request: MemberRequest = serde_json::from_str(text).unwrap();
        assert!(request.conditions.restart_pending);
        assert_eq!(request.refused(), None);
        let later = MemberRequest { speech: Speech { speaks: 9, serves_from: 8 }, ..request.clone() };
        assert!(later.refused().is_some_and(|why| why.contains("upgrade this one")));
        assert!(MemberRequest::unreadable().refused().is_some());
        let first: MemberRequest = serde_json::from_str(r#"{"wish":"restart"}"#).unwrap();
        assert_eq!((first.speech, first.refused()), (Speech::default(), None));
        assert_eq!(serde_json::to_string(&request).unwrap(), text);
        assert!(serde_json::from_str::<MemberRequest>(r#"{"wish":"destroy"}"#).is_err());
        for (wish, text) in [
            (Wish::Reinit, r#""reinit""#),
            (Wish::Replay(Ask::Until(1_800_000_000_000)), r#"{"replay":{"until":1800000000000}}"#),
            (Wish::Replay(Ask::Pause), r#"{"replay":"pause"}"#),
        ] {
            assert_eq!(serde_json::to_string(&wish).unwrap(), text);
            assert_eq!(serde_json::from_str::<Wish>(text).unwrap(), wish);
        }
    }
}
