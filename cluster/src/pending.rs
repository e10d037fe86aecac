//! Settings whose new value waits for a restart, and in which order the members are to be restarted for them.

use crate::name::MemberName;
use crate::view::ClusterView;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;

/// Settings that a standby may not have lower than its primary: a hot standby that replays the primary's higher value pauses its
/// replay (PostgreSQL's documentation, "Hot Standby", "Administrator's Overview").
pub const NOT_LOWER_ON_STANDBY: [&str; 5] =
    ["max_connections", "max_prepared_transactions", "max_locks_per_transaction", "max_worker_processes", "max_wal_senders"];

/// Which members a restart begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// A value was raised.
    #[serde(rename = "standbys first")]
    StandbysFirst,
    /// A value was lowered: a standby that restarts before the primary has to keep the old one.
    #[serde(rename = "primary first")]
    PrimaryFirst,
}

/// One setting that waits. The field's names; `order` is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// In force.
    pub old_value: String,
    /// After the restart.
    pub new_value: String,
    /// For the settings of [`NOT_LOWER_ON_STANDBY`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<Order>,
}

/// Settings that wait, by name: the value of `pending_restart_reason`.
pub type Pending = BTreeMap<String, Change>;

/// A value as it is compared: without blanks, the many words of a boolean as one.
fn plain(value: &str) -> String {
    match value.trim().to_ascii_lowercase().as_str() {
        "true" | "yes" => "on".to_owned(),
        "false" | "no" => "off".to_owned(),
        _ => value.trim().to_owned(),
    }
}

/// Notes `name` where the two values differ.
pub fn note(pending: &mut Pending, name: &str, running: &str, wanted: &str) {
    if plain(running) == plain(wanted) {
        return;
    }
    let order = match (NOT_LOWER_ON_STANDBY.contains(&name), running.trim().parse::<i64>(), wanted.trim().parse::<i64>()) {
        (true, Ok(running), Ok(wanted)) if wanted > running => Some(Order::StandbysFirst),
        (true, Ok(_), Ok(_)) => Some(Order::PrimaryFirst),
        _ => None,
    };
    pending.insert(name.to_owned(), Change { old_value: running.to_owned(), new_value: wanted.to_owned(), order });
}

/// What a member says of its settings that wait; empty where it says nothing that can be read.
pub fn of_member(view: &ClusterView, name: &MemberName) -> Pending {
    let reason = view.members.get(name).and_then(|entry| entry.member.other.get("pending_restart_reason"));
    let settings = reason.and_then(Value::as_object).into_iter().flatten();
    let read = |(name, change): (&String, &Value)| Some((name.clone(), serde_json::from_value(change.clone()).ok()?));
    settings.filter_map(read).collect()
}

/// The order for these members: the leader first only where something that waits was lowered and nothing was raised.
pub fn order(view: &ClusterView, members: &[MemberName]) -> Order {
    let mut lowered = false;
    for (name, change) in members.iter().flat_map(|name| of_member(view, name)) {
        // A member of another program says no order: the values tell.
        let mut again = Pending::new();
        note(&mut again, &name, &change.old_value, &change.new_value);
        match again.get(&name).and_then(|change| change.order) {
            Some(Order::StandbysFirst) => return Order::StandbysFirst,
            Some(Order::PrimaryFirst) => lowered = true,
            None => {}
        }
    }
    if lowered { Order::PrimaryFirst } else { Order::StandbysFirst }
}

/// Puts the members into that order; standbys stay in the order given.
pub fn in_order(view: &ClusterView, mut members: Vec<MemberName>) -> Vec<MemberName> {
    let first = order(view, &members) == Order::PrimaryFirst;
    members.sort_by_key(|name| view.leader_if(name).is_some() != first);
    members
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leader::{Leader, LeaseId, Term};
    use crate::member::MemberEntry;

    fn noted(name: &str, running: &str, wanted: &str) -> Option<Option<Order>> {
        let mut pending = Pending::new();
        note(&mut pending, name, running, wanted);
        pending.remove(name).map(|change| change.order)
    }

    #[test]
    fn only_a_different_value_waits_and_it_says_who_goes_first() {
        use Order::*;
        for (name, running, wanted, expected) in [
            ("max_connections", "100", "100", None),
            ("max_connections", "100", "150", Some(Some(StandbysFirst))),
            ("max_connections", "100", "50", Some(Some(PrimaryFirst))),
            ("wal_log_hints", "on", "true", None),
            ("wal_log_hints", "on", "no", Some(None)),
            ("shared_buffers", "2048", "4096", Some(None)),
            ("max_worker_processes", "8", " 8 ", None),
        ] {
            assert_eq!(noted(name, running, wanted), expected, "{name} {running} {wanted}");
        }
    }

    fn cluster(reasons: &[(&str, &str)]) -> (ClusterView, Vec<MemberName>) {
        let mut view = ClusterView::default();
        for (name, reason) in reasons {
            let key = format!(r#"{{"conn_url":"","api_url":"","state":"running","role":"replica","pending_restart_reason":{reason}}}"#);
            let entry = MemberEntry { member: serde_json::from_str(&key).unwrap(), lease: LeaseId(1), revision: 1 };
            view.members.insert(MemberName::new(name).unwrap(), entry);
        }
        view.leader = Some(Leader { name: MemberName::new("n2").unwrap(), lease: LeaseId(1), term: Term(1) });
        let names = view.members.keys().cloned().collect();
        (view, names)
    }

    #[test]
    fn the_leader_restarts_last_unless_something_was_only_lowered() {
        let (raised, lowered) =
            (r#"{"max_connections":{"old_value":"100","new_value":"150"}}"#, r#"{"max_wal_senders":{"old_value":"10","new_value":"5"}}"#);
        for (reasons, expected) in [
            ([raised, raised, raised], "n1 n3 n2"),
            ([lowered, lowered, lowered], "n2 n1 n3"),
            ([raised, lowered, "{}"], "n1 n3 n2"),
            (["{}", "{}", "3"], "n1 n3 n2"),
        ] {
            let (view, names) = cluster(&[("n1", reasons[0]), ("n2", reasons[1]), ("n3", reasons[2])]);
            let ordered = in_order(&view, names);
            assert_eq!(ordered.iter().map(MemberName::as_str).collect::<Vec<_>>().join(" "), expected, "{reasons:?}");
        }
    }

    #[test]
    fn the_key_holds_the_fields_names() {
        let mut pending = Pending::new();
        note(&mut pending, "max_connections", "100", "150");
        note(&mut pending, "shared_buffers", "16MB", "32MB");
        let expected = r#"{"max_connections":{"old_value":"100","new_value":"150","order":"standbys first"},"shared_buffers":{"old_value":"16MB","new_value":"32MB"}}"#;
        assert_eq!(serde_json::to_string(&pending).unwrap(), expected);
    }
}
