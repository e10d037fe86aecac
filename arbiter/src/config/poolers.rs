//! The section `pgbouncer`: the poolers that are paused around a planned change.

use super::tree::{At, described};
use super::{PoolerConfig, PoolerTls};
use crate::ground::tls;
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
    const KEYS: [&str; 12] = [
        "host",
        "port",
        "user",
        "password",
        "databases",
        "databases_file",
        "pause_within",
        "sslmode",
        "sslrootcert",
        "sslcert",
        "sslkey",
        "sslpassword",
    ];
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
        tls: tls(at, host.starts_with('/')),
        address: Address { host, port },
        user: at.at("user").text().unwrap_or_else(|| "pgbouncer".to_owned()),
        password: at.at("password").secret(),
        databases: at.at("databases").lines(),
        databases_file,
        pause_within: Duration::from_secs(at.at("pause_within").seconds().unwrap_or(PAUSE_WITHIN_S)),
    })
}

/// By libpq's words and rules: a socket is spoken to in plain, and an authority that is named is asked. Without a word for the mode it is `verify-full` where
/// an authority is named; else TLS is spoken where the pooler offers it.
fn tls(at: &At<'_>, socket: bool) -> Option<PoolerTls> {
    const MODES: [&str; 5] = ["disable", "prefer", "require", "verify-ca", "verify-full"];
    let authority = at.at("sslrootcert").path();
    let key = at.at("sslkey").path();
    let key_password = at.at("sslpassword").secret();
    let certificate = at.at("sslcert").path();
    let given = at.at("sslmode");
    let mode = given.text().unwrap_or_else(|| if authority.is_some() { "verify-full" } else { "prefer" }.to_owned());
    if !MODES.contains(&mode.as_str()) {
        given.note(format!("{mode} is not a known mode; known are {}", MODES.join(", ")));
    }
    if mode.starts_with("verify") && authority.is_none() {
        given.note(format!("{mode} needs sslrootcert, the authority of PgBouncer's certificate"));
    }
    if certificate.is_none() && key.is_some() {
        at.at("sslkey").note("is of no use without sslcert");
    }
    let identity = certificate.map(|certificate| tls::Identity { certificate, key, key_password });
    (mode != "disable" && !socket).then(|| PoolerTls {
        required: mode != "prefer",
        by_name: mode == "verify-full",
        files: tls::Client { authority, identity, insecure: false },
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
    fn tls_is_spoken_as_libpq_would() {
        for (given, required, by_name) in [
            ("", Some(false), false),
            (", sslmode: prefer", Some(false), false),
            (", sslmode: disable, sslrootcert: /ca.pem", None, false),
            (", sslmode: require", Some(true), false),
            (", sslmode: verify-ca, sslrootcert: /ca.pem", Some(true), false),
            (", sslmode: verify-full, sslrootcert: /ca.pem", Some(true), true),
            // A file that names an authority means it.
            (", sslrootcert: /ca.pem", Some(true), true),
        ] {
            let (found, errors) = read(&format!("pgbouncer: [{{host: a{given}}}]"));
            assert_eq!(errors, Vec::<String>::new(), "{given}");
            let tls = found[0].tls.as_ref();
            assert_eq!(tls.map(|tls| tls.required), required, "{given}");
            assert_eq!(tls.is_some_and(|tls| tls.by_name), by_name, "{given}");
        }
        assert_eq!(read("pgbouncer: [{host: /run, sslmode: require}]").0[0].tls, None, "a socket");
        let shown = read("pgbouncer: [{host: a, sslcert: /c.pem, sslkey: /k.pem, sslpassword: hunter2}]").0;
        let identity = shown[0].tls.as_ref().unwrap().files.identity.as_ref().unwrap();
        assert_eq!(identity.key.as_deref(), Some(std::path::Path::new("/k.pem")));
        assert!(!format!("{shown:?}").contains("hunter2"));
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
            ("pgbouncer: [{host: a, sslmode: allow}]", "pgbouncer[0].sslmode: allow is not a known mode; known are disable, prefer"),
            ("pgbouncer: [{host: a, sslmode: verify-ca}]", "pgbouncer[0].sslmode: verify-ca needs sslrootcert"),
            ("pgbouncer: [{host: a, sslkey: /k}]", "pgbouncer[0].sslkey: is of no use without sslcert"),
            ("pgbouncer: [{host: a}, {host: a}]", "pgbouncer: a:6432 is listed twice"),
        ] {
            let errors = read(yaml).1;
            assert!(errors.len() == 1 && errors[0].starts_with(sentence), "{yaml}: {errors:?}");
        }
    }
}
