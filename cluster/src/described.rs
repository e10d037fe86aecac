//! What only a node's arbiter knows and the member key is to say: the arbiter hands it to the lease worker, which has no SQL.

use crate::address::facts::AddressFacts;
use crate::health::Vitals;
use crate::lsn::Lsn;
use crate::member::Member;
use crate::pending::Pending;
use crate::restart::Scheduled;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// The arbiter's part of the member key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Described {
    /// Settings that wait for a restart.
    #[serde(skip_serializing_if = "Pending::is_empty")]
    pub pending_restart: Pending,
    /// A restart that waits for its time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduled_restart: Option<Scheduled>,
    /// The arbiter's own release.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub arbiter_version: Option<String>,
    /// The release of the extension's SQL objects.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extension_version: Option<String>,
    /// The arbiter has seen maintenance mode, and does nothing.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub paused: bool,
    /// Where the oldest segment of its log begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_wal: Option<Lsn>,
    /// Why its Postgres, which runs, can't go on as a standby.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Virtual addresses, where its file names any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub addresses: Option<AddressFacts>,
    /// Settings that do not count here, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub left_out: BTreeMap<String, String>,
    /// What is wrong with the rules of who may come in, in sentences.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<String>,
    /// How the node is, seen from outside of the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vitals: Option<Vitals>,
    /// It is sick: what is wrong, and, where it leads, what is done about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sick: Option<String>,
}

impl Described {
    /// Puts it into the key under the field's names; what is not so is absent there.
    pub fn put_into(&self, member: &mut Member) {
        if let Some(facts) = &mut member.tenure {
            facts.oldest_wal = self.oldest_wal;
            facts.arbiter_version = self.arbiter_version.clone();
            facts.extension_version = self.extension_version.clone();
            facts.left_out = self.left_out.clone();
            facts.rules = self.rules.clone();
            facts.addresses = self.addresses.clone();
            facts.sick = self.sick.clone();
            // Known only where both look: half of it would be taken for health.
            facts.vitals = facts.vitals.take().zip(self.vitals.as_ref()).map(|(inside, outside)| inside.with_outside(outside));
            // Where it does not run, the process that speaks for it has said why already.
            facts.reason = self.reason.clone().or_else(|| facts.reason.take());
        }
        member.pending_restart = !self.pending_restart.is_empty();
        let fields = [
            ("pending_restart_reason", member.pending_restart.then(|| json!(self.pending_restart))),
            ("scheduled_restart", self.scheduled_restart.as_ref().map(|scheduled| json!(scheduled))),
            ("pause", self.paused.then_some(Value::Bool(true))),
        ];
        for (name, value) in fields {
            match value {
                Some(value) => member.other.insert(name.to_owned(), value),
                None => member.other.remove(name),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::TenureFacts;

    #[test]
    fn what_is_not_so_is_absent_in_the_key() {
        let bare = r#"{"conn_url":"c","api_url":"a","state":"running","role":"replica","version":"4.1.5"}"#;
        let mut member: Member = serde_json::from_str(bare).unwrap();
        let mut described = Described { paused: true, ..Described::default() };
        crate::pending::note(&mut described.pending_restart, "max_connections", "50", "60");
        described.put_into(&mut member);
        let expected = r#"{"conn_url":"c","api_url":"a","state":"running","role":"replica","version":"4.1.5","pending_restart":true,"pause":true,"pending_restart_reason":{"max_connections":{"new_value":"60","old_value":"50","order":"standbys first"}}}"#;
        assert_eq!(serde_json::to_string(&member).unwrap(), expected);
        Described::default().put_into(&mut member);
        assert_eq!(serde_json::to_string(&member).unwrap(), bare);

        let why = |reason: &str| Some(reason.to_owned());
        for (said, here, expected) in
            [(None, None, None), (why("disk full"), None, why("disk full")), (None, why("log gone"), why("log gone"))]
        {
            member.tenure = Some(TenureFacts { reason: said, ..TenureFacts::default() });
            Described { reason: here, ..Described::default() }.put_into(&mut member);
            assert_eq!(member.tenure.as_ref().and_then(|facts| facts.reason.clone()), expected);
        }
    }
}
