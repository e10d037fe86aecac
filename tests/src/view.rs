//! The cluster as etcd has it: read from outside, in the field's own keys.

use crate::node::SCOPE;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// Every key of the scope, at one revision.
#[derive(Debug, Clone, Default)]
pub struct View {
    keys: BTreeMap<String, String>,
}

/// Where the keys of a story are.
pub fn prefix() -> String {
    format!("/service/{SCOPE}/")
}

impl View {
    /// From keys relative to the scope.
    pub fn new(keys: BTreeMap<String, String>) -> View {
        View { keys }
    }

    /// A key as text.
    pub fn key(&self, name: &str) -> Option<&str> {
        self.keys.get(name).map(String::as_str)
    }

    /// A key as JSON; null where it does not exist or is none.
    pub fn json(&self, name: &str) -> Value {
        self.key(name).and_then(|text| serde_json::from_str(text).ok()).unwrap_or(Value::Null)
    }

    /// Who holds the leader key.
    pub fn leader(&self) -> Option<&str> {
        self.key("leader")
    }

    /// Somebody leads, and it is not this one.
    pub fn leads_other_than(&self, name: &str) -> bool {
        self.leader().is_some_and(|leader| leader != name)
    }

    /// Names of all members with a living key.
    pub fn members(&self) -> Vec<&str> {
        self.keys.keys().filter_map(|key| key.strip_prefix("members/")).collect()
    }

    /// A member's key; null where it is gone.
    pub fn member(&self, name: &str) -> Value {
        self.json(&format!("members/{name}"))
    }

    /// A member's timeline.
    pub fn timeline(&self, name: &str) -> Option<u64> {
        self.member(name)["timeline"].as_u64()
    }

    /// The leader's timeline.
    pub fn leader_timeline(&self) -> Option<u64> {
        self.timeline(self.leader()?)
    }

    /// The leader and the synchronous standbys in the `sync` key.
    pub fn synchronous(&self) -> Option<(String, Vec<String>)> {
        let sync = self.json("sync");
        let standbys = sync["sync_standby"].as_str().unwrap_or_default();
        let standbys: Vec<String> = standbys.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect();
        Some((sync["leader"].as_str()?.to_owned(), standbys))
    }

    /// What keeps this from being a healthy cluster of `count` members; None if it is one.
    pub fn fault(&self, count: usize, synchronous: bool) -> Option<String> {
        let Some(leader) = self.leader() else {
            return Some("nobody leads".to_owned());
        };
        let members = self.members();
        if members.len() != count {
            return Some(format!("{} of {count} members", members.len()));
        }
        let timeline = self.timeline(leader);
        for name in &members {
            let member = self.member(name);
            let word = |key: &str| member[key].as_str().unwrap_or("nothing").to_owned();
            let role = word("role");
            if member["tenure"]["arbiter"] == false {
                return Some(format!("no arbiter is attached to {name}"));
            }
            if word("state") != "running" {
                return Some(format!("{name} is {}", word("state")));
            }
            if *name == leader && !matches!(role.as_str(), "primary" | "master") {
                return Some(format!("the leader {name} is {role}"));
            }
            if *name != leader {
                if role != "replica" {
                    return Some(format!("{name} is {role}"));
                }
                if word("replication_state") != "streaming" {
                    return Some(format!("{name} receives by {}", word("replication_state")));
                }
                if self.timeline(name) != timeline {
                    return Some(format!("{name} is on timeline {:?}, the leader on {timeline:?}", self.timeline(name)));
                }
            }
        }
        if synchronous {
            match self.synchronous() {
                Some((holder, standbys)) if holder == leader && !standbys.is_empty() => {}
                seen => return Some(format!("the sync key says {seen:?}")),
            }
        }
        None
    }
}

impl fmt::Display for View {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "leader {}", self.leader().unwrap_or("none"))?;
        for name in self.members() {
            let member = self.member(name);
            let word = |key: &str| member[key].as_str().unwrap_or("-").to_owned();
            write!(f, "; {name}: {} {} {} tl {}", word("role"), word("state"), word("replication_state"), member["timeline"])?;
        }
        for key in ["sync", "failover", "initialize"] {
            if let Some(text) = self.key(key) {
                write!(f, "; {key} {text}")?;
            }
        }
        Ok(())
    }
}
