//! The section `citus`: which group this node belongs to, and which databases are distributed.

use super::CitusConfig;
use super::tree::At;
use cluster::citus::Prefer;
use cluster::schema::GRACE_MAX_S;
use serde_json::{Map, Value};

/// None where the section is absent.
pub fn citus(at: &At<'_>) -> Option<CitusConfig> {
    at.map()?;
    let (group, database, databases) = (at.at("group"), at.at("database"), at.at("databases"));
    let number = group.value.and_then(number);
    if number.is_none() {
        group.note("give the group's number: 0 for the coordinator, 1 and up for the workers");
    }
    let named: Vec<String> = database.text().into_iter().chain(databases.lines().unwrap_or_default()).collect();
    if named.is_empty() {
        database.note("give the name of the distributed database, or several as `databases: [a, b]`");
    }
    let mut distinct: Vec<String> = Vec::new();
    for name in named {
        if !distinct.contains(&name) {
            distinct.push(name);
        }
    }
    let grace = at.at("grace");
    let grace_s = grace.seconds();
    if grace_s.is_some_and(|seconds| seconds > GRACE_MAX_S.unsigned_abs()) {
        grace.note(format!("found {}, expected at most {GRACE_MAX_S} seconds", grace_s.unwrap_or_default()));
    }
    let preferred = at.at("prefer");
    let prefer = preferred.text().and_then(|word| {
        let prefer = Prefer::of(&word);
        if prefer.is_none() {
            preferred.note(format!("found `{word}`, expected `change` or `statements`"));
        }
        prefer
    });
    Some(CitusConfig {
        group: number?,
        databases: distinct,
        lock_cooldown_s: at.at("lock_cooldown").seconds(),
        end_sessions_at_promotion: at.at("end_sessions_at_promotion").flag().unwrap_or(true),
        hold_reads: at.at("hold_reads").flag().unwrap_or(true),
        grace_s,
        prefer,
    })
}

/// A group's number; the environment gives it as a text.
fn number(value: &Value) -> Option<u32> {
    let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())?;
    // `pg_dist_node.groupid` is an int4.
    u32::try_from(number).ok().filter(|number| i32::try_from(*number).is_ok())
}

/// As with Patroni, the groups of a Citus cluster begin with `quorum` unless something else is asked for: a transaction
/// over several groups is only as durable as the least of them.
pub fn default_mode(dcs: &mut Map<String, Value>) {
    dcs.entry("synchronous_mode").or_insert_with(|| Value::from("quorum"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn read(yaml: &str) -> (Option<CitusConfig>, Vec<String>) {
        let root = super::super::tree::parse(yaml).unwrap();
        let errors = RefCell::default();
        let config = citus(&At::root(&root, "citus", &errors));
        (config, errors.into_inner())
    }

    #[test]
    fn group_and_databases() {
        for (yaml, group, databases) in [
            ("citus: {group: 0, database: app}", 0, vec!["app"]),
            ("citus: {group: '2', databases: [app, other]}", 2, vec!["app", "other"]),
            ("citus: {group: 1, database: app, databases: [other, app]}", 1, vec!["app", "other"]),
        ] {
            let (config, errors) = read(yaml);
            assert_eq!(errors, Vec::<String>::new(), "{yaml}");
            let config = config.unwrap();
            assert_eq!((config.group, config.databases), (group, databases.into_iter().map(str::to_owned).collect()), "{yaml}");
        }
        assert_eq!(read("scope: x"), (None, vec![]));
    }

    #[test]
    fn what_is_missing_is_said() {
        for (yaml, key) in [
            ("citus: {database: app}", "citus.group"),
            ("citus: {group: -1, database: app}", "citus.group"),
            ("citus: {group: 4000000000, database: app}", "citus.group"),
            ("citus: {group: 1}", "citus.database"),
            ("citus: 5", "citus"),
            ("citus: {group: 1, database: app, prefer: both}", "citus.prefer"),
            ("citus: {group: 1, database: app, grace: long}", "citus.grace"),
            ("citus: {group: 1, database: app, grace: 301}", "citus.grace"),
        ] {
            let errors = read(yaml).1;
            assert!(errors.len() == 1 && errors[0].starts_with(key), "{yaml}: {errors:?}");
        }
    }

    #[test]
    fn groups_begin_with_quorum_unless_something_is_said() {
        for (given, mode) in [("{}", "\"quorum\""), ("{synchronous_mode: false}", "false"), ("{synchronous_mode: true}", "true")] {
            let mut dcs = super::super::tree::parse(given).unwrap();
            default_mode(&mut dcs);
            assert_eq!(dcs["synchronous_mode"].to_string(), mode, "{given}");
        }
    }
}
