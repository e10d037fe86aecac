//! The slots that the dynamic configuration asks for, and those that it leaves alone.

use super::seen::SlotSeen;
use crate::config::DynamicConfig;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a slot is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A stream of WAL.
    Physical,
    /// A stream of decoded changes.
    Logical {
        /// Of this database.
        database: String,
        /// By this output plugin.
        plugin: String,
    },
}

/// A library that is installed with the server, by its name: what has a path in it could be anybody's file.
pub fn is_plugin(plugin: &str) -> bool {
    !plugin.is_empty() && plugin.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// The permanent slots of the dynamic configuration (`slots`, `permanent_slots`, `permanent_replication_slots`), as the field reads
/// them: an entry without a type is logical where it names database and plugin. What can't be understood is left out.
pub fn permanent(config: &DynamicConfig) -> BTreeMap<String, Kind> {
    let sections = ["permanent_replication_slots", "permanent_slots", "slots"];
    let mut found = BTreeMap::new();
    let here = if config.standby_cluster().is_some() { "standby" } else { "primary" };
    for (name, entry) in sections.iter().filter_map(|key| config.get(key)?.as_object()).flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        if text("cluster_type").is_some_and(|wanted| wanted != here) || !is_slot_name(name) {
            continue;
        }
        if text("plugin").is_some_and(|plugin| !is_plugin(plugin)) {
            continue;
        }
        let logical = text("database").zip(text("plugin"));
        let kind = match (text("type"), logical) {
            (Some("logical") | None, Some((database, plugin))) => {
                Kind::Logical { database: database.to_owned(), plugin: plugin.to_owned() }
            }
            (Some("physical") | None, _) => Kind::Physical,
            _ => continue,
        };
        found.insert(name.clone(), kind);
    }
    found
}

/// True where the configuration has logical permanent slots: standbys then need feedback on, and shorter intervals.
/// Never in a standby cluster: nothing can be decoded there before release 16, and nobody could make the slot.
pub fn keeps_logical(config: &DynamicConfig) -> bool {
    config.standby_cluster().is_none() && permanent(config).values().any(|kind| *kind != Kind::Physical)
}

/// Letters, digits and underscores, at most 63, as PostgreSQL demands.
pub(super) fn is_slot_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// `ignore_slots`: one entry whose every given field matches.
pub fn ignored(config: &DynamicConfig, slot: &SlotSeen) -> bool {
    let entries = config.get("ignore_slots").and_then(Value::as_array);
    let matches = |entry: &Value| {
        let Some(entry) = entry.as_object().filter(|entry| !entry.is_empty()) else { return false };
        entry.iter().all(|(key, wanted)| {
            let have = match key.as_str() {
                "name" => Some(slot.slot_name.as_str()),
                "type" => Some(slot.slot_type.as_str()),
                "database" => slot.database.as_deref(),
                "plugin" => slot.plugin.as_deref(),
                // The field looks at these four only.
                _ => return true,
            };
            wanted.as_str().is_none_or(|wanted| have == Some(wanted))
        })
    };
    entries.is_some_and(|entries| entries.iter().any(matches))
}
