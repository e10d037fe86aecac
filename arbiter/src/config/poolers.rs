//! The section `pgbouncer`: the poolers that are paused around a planned change.

use super::PoolerConfig;
use super::tree::{At, described};
use cluster::host::Address;
use serde_json::Value;
use std::time::Duration;

/// PgBouncer's own port.
const PORT: u16 = 6432;

/// Waits for transactions (or, where sessions are pooled, for sessions) no longer than this, unless the file says otherwise.
const PAUSE_WITHIN_S: u64 = 2;

/// None where the section is absent. In the environment the list is one text, as it would stand in the file.
pub fn poolers(at: &At<'_>) -> Vec<PoolerConfig> {
    let read;
    let list = match at.value {
        None => return Vec::new(),
        Some(Value::Array(list)) => list,
        Some(Value::String(text)) => match serde_saphyr::from_str::<Vec<Value>>(text) {
            Ok(list) => {
                read = list;
                &read
            }
            Err(_) => {
                at.note("this text is no list: expected one like `[{host: 10.0.0.5, user: tenure, password: ...}]`");
                return Vec::new();
            }
        },
        Some(other) => {
            at.note(format!("found {}, expected a list of poolers, each with host, port, user and password", described(other)));
            return Vec::new();
        }
    };
    let items = list.iter().enumerate().map(|(place, value)| pooler(&at.item(place, value)));
    let poolers: Vec<PoolerConfig> = items.collect::<Option<_>>().unwrap_or_default();
    for (place, pooler) in poolers.iter().enumerate() {
        if poolers[..place].iter().any(|other| other.address == pooler.address) {
            at.note(format!("{} is listed twice", pooler.address));
        }
    }
    poolers
}

fn pooler(at: &At<'_>) -> Option<PoolerConfig> {
    const KEYS: [&str; 7] = ["host", "port", "user", "password", "databases", "databases_file", "pause_within"];
    for key in at.map()?.keys().filter(|key| !KEYS.contains(&key.as_str())) {
        at.at(key).note(format!("is not a known setting; known are {}", KEYS.join(", ")));
    }
    let host = at.at("host").required(at.at("host").text())?;
    let port = at.at("port");
    let port = match port.value {
        None => Some(PORT),
        Some(value) => {
            let number = value.as_u64().or_else(|| value.as_str()?.trim().parse().ok()).and_then(|number| u16::try_from(number).ok());
            number.filter(|number| *number > 0).or_else(|| {
                port.note("expected a port, 1 to 65535");
                None
            })
        }
    }?;
    let databases_file = at.at("databases_file").path();
    if databases_file.as_ref().is_some_and(|path| !path.is_absolute()) {
        at.at("databases_file").note("expected an absolute path");
    }
    Some(PoolerConfig {
        address: Address { host, port },
        user: at.at("user").text().unwrap_or_else(|| "pgbouncer".to_owned()),
        password: at.at("password").secret(),
        databases: at.at("databases").lines(),
        databases_file,
        pause_within: Duration::from_secs(at.at("pause_within").seconds().unwrap_or(PAUSE_WITHIN_S)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn read(yaml: &str) -> (Vec<PoolerConfig>, Vec<String>) {
        let root = super::super::tree::parse(yaml).unwrap();
        let errors = RefCell::default();
        let config = poolers(&At::root(&root, "pgbouncer", &errors));
        (config, errors.into_inner())
    }

    #[test]
    fn a_list_of_poolers_in_the_file_or_as_a_text() {
        for yaml in [
            "pgbouncer: [{host: 10.0.0.5, user: t, password: x, databases: [app], pause_within: 3}, {host: /run/postgresql, port: 6433}]",
            "pgbouncer: '[{host: 10.0.0.5, user: t, password: x, databases: [app], pause_within: 3}, {host: /run/postgresql, port: \"6433\"}]'",
        ] {
            let (found, errors) = read(yaml);
            assert_eq!(errors, Vec::<String>::new(), "{yaml}");
            let told: Vec<String> = found.iter().map(|pooler| format!("{} {}", pooler.address, pooler.user)).collect();
            assert_eq!(told, ["10.0.0.5:6432 t", "/run/postgresql:6433 pgbouncer"], "{yaml}");
            assert_eq!((found[0].pause_within.as_secs(), found[1].pause_within.as_secs()), (3, PAUSE_WITHIN_S));
        }
        assert_eq!(read("scope: x"), (vec![], vec![]));
    }

    #[test]
    fn what_is_wrong_is_said() {
        for (yaml, sentence) in [
            ("pgbouncer: {host: a}", "pgbouncer: found a map, expected a list of poolers"),
            ("pgbouncer: 'host a'", "pgbouncer: this text is no list"),
            ("pgbouncer: [{port: 1}]", "pgbouncer[0].host: is missing"),
            ("pgbouncer: [{host: a, port: 70000}]", "pgbouncer[0].port: expected a port"),
            ("pgbouncer: [{host: a, database: x}]", "pgbouncer[0].database: is not a known setting"),
            ("pgbouncer: [{host: a, databases_file: x}]", "pgbouncer[0].databases_file: expected an absolute path"),
            ("pgbouncer: [{host: a}, {host: a}]", "pgbouncer: a:6432 is listed twice"),
        ] {
            let errors = read(yaml).1;
            assert!(errors.len() == 1 && errors[0].starts_with(sentence), "{yaml}: {errors:?}");
        }
    }
}
