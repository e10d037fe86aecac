//! Whatever stands in etcd, in the node's file or in a request: nothing panics, nothing hangs.
//!
//! Values are drawn around what the parsers know (their own keys, the ends of the number ranges, words of YAML and
//! libpq), as blind bytes seldom get past the first brace. `PROPTEST_CASES=100000` makes a long run of it.

use crate::config::NodeConfig;
use crate::ground::present;
use crate::rest::health::tests::{primary, snapshot, standby};
use crate::rest::{cluster as status, health, metrics, tests as rest};
use axum::http::Method;
use cluster::config::DynamicConfig;
use cluster::local::Postgres;
use cluster::name::{MemberName, Scope};
use cluster::{check, duty};
use dcs::codec::{self, Raw};
use dcs::key::Keys;
use proptest::prelude::*;
use serde_json::{Map, Value, json};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Words that parsers look for, and some that they trip over.
const WORDS: [&str; 57] = [
    "ttl",
    "loop_wait",
    "retry_timeout",
    "maximum_lag_on_failover",
    "synchronous_mode",
    "synchronous_node_count",
    "maximum_lag_on_syncnode",
    "quorum",
    "pause",
    "failsafe_mode",
    "postgresql",
    "parameters",
    "use_slots",
    "slots",
    "ignore_slots",
    "standby_cluster",
    "host",
    "port",
    "member_slots_ttl",
    "missed_member_ttl",
    "primary_start_timeout",
    "check_timeline",
    "leader",
    "member",
    "sync_standby",
    "scheduled_at",
    "optime",
    "state",
    "role",
    "conn_url",
    "api_url",
    "tags",
    "nofailover",
    "failover_priority",
    "replicatefrom",
    "nosync",
    "timeline",
    "xlog_location",
    "receive_lsn",
    "tenure",
    "term",
    "position",
    "running",
    "replica",
    "primary",
    "n0",
    "n1",
    "on",
    "off",
    "true",
    "30s",
    "1h",
    "postgres://127.0.0.1:5432/postgres",
    "http://[::1]:8008/patroni",
    "9999-12-31T23:59:59+14:00",
    "-1",
    "\u{1F418}\u{0}'\"\\",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![8 => proptest::sample::select(&WORDS[..]).prop_map(str::to_owned), 1 => ".{0,12}", 1 => "[0-9.:/,-]{0,24}"]
}

fn number() -> impl Strategy<Value = Value> {
    prop_oneof![
        proptest::sample::select(vec![
            json!(0),
            json!(1),
            json!(-1),
            json!(3),
            json!(30),
            json!(u64::MAX),
            json!(i64::MIN),
            json!(i64::MAX),
            json!(u32::MAX),
            json!(u64::from(u32::MAX) + 1),
            json!(1e308),
            json!(0.5),
            json!(-0.0),
        ]),
        any::<i32>().prop_map(|number| json!(number)),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), number(), word().prop_map(Value::from)];
    leaf.prop_recursive(3, 24, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec((word(), inner), 0..6).prop_map(|pairs| Value::Object(Map::from_iter(pairs))),
        ]
    })
}

fn stored() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![8 => value().prop_map(|value| value.to_string().into_bytes()), 1 => word().prop_map(String::into_bytes), 1 => proptest::collection::vec(any::<u8>(), 0..40)]
}

/// The sample with one of its keys changed in one place, so that most of it stays understood.
const SAMPLE: [(&str, &str); 9] = [
    (
        "config",
        r#"{"ttl":10,"loop_wait":4,"retry_timeout":3,"synchronous_mode":true,"failsafe_mode":true,"postgresql":{"parameters":{"max_connections":100}},"slots":{"a":{"type":"physical"}}}"#,
    ),
    (
        "members/n0",
        r#"{"conn_url":"postgres://127.0.0.1:15430/postgres","api_url":"http://127.0.0.1:18000/patroni","state":"running","role":"primary","version":"4.1.5","xlog_location":84197032,"timeline":1,"tags":{"failover_priority":2},"tenure":{"version":"0.1.0","term":5}}"#,
    ),
    (
        "members/n1",
        r#"{"conn_url":"postgres://127.0.0.1:15431/postgres","api_url":"http://127.0.0.1:18001/patroni","state":"running","role":"replica","version":"4.1.5","replay_lsn":84197032,"receive_lsn":84197032,"replication_state":"streaming","timeline":1}"#,
    ),
    ("sync", r#"{"leader":"n0","quorum":0,"sync_standby":"n1"}"#),
    ("status", r#"{"optime":84197032,"slots":{"n1":84197032},"retain_slots":["n1"]}"#),
    ("history", r#"[[1,52151216,"no recovery target specified","2026-11-20T16:13:01.449058+00:00","n0"]]"#),
    ("failover", r#"{"leader":"n0","member":"n1","scheduled_at":"2027-01-01T00:00:00+00:00"}"#),
    ("failsafe", r#"{"n0":"http://127.0.0.1:18000/patroni","n1":"http://127.0.0.1:18001/patroni"}"#),
    ("initialize", "7710284044615527583"),
];

/// Puts `put` somewhere into `into`; `way` says where.
fn changed(into: &mut Value, way: &[usize], put: Value) {
    let (Some((first, rest)), false) =
        (way.split_first(), matches!(into, Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_)))
    else {
        *into = put;
        return;
    };
    match into {
        Value::Array(list) if !list.is_empty() => {
            let at = first % list.len();
            changed(&mut list[at], rest, put);
        }
        Value::Object(map) if !map.is_empty() => {
            let at = first % map.len();
            if let Some(value) = map.values_mut().nth(at) {
                changed(value, rest, put);
            }
        }
        _ => *into = put,
    }
}

fn keys_of_etcd() -> impl Strategy<Value = Vec<(String, Vec<u8>)>> {
    let mutations = proptest::collection::vec((0..SAMPLE.len(), proptest::collection::vec(0..8_usize, 1..4), value()), 0..4);
    let more = proptest::collection::vec(
        (
            proptest::sample::select(vec![
                "config",
                "leader",
                "members/n2",
                "sync",
                "status",
                "history",
                "failover",
                "failsafe",
                "initialize",
                "tenure/term",
                "tenure/timeline",
                "tenure/race/n1",
                "tenure/request/n1",
                "tenure/hold",
                "tenure/held",
                "tenure/gate",
                "tenure/gated",
                "tenure/coordinator",
                "members/",
                "members/../n1",
                "tenure/",
                "x",
            ]),
            stored(),
        ),
        0..4,
    );
    (mutations, more).prop_map(|(mutations, more)| {
        let mut texts: Vec<(String, Vec<u8>)> = SAMPLE.iter().map(|(key, text)| ((*key).to_owned(), text.as_bytes().to_vec())).collect();
        texts.push(("leader".to_owned(), b"n0".to_vec()));
        for (at, way, put) in mutations {
            if let Ok(mut value) = serde_json::from_slice::<Value>(&texts[at].1) {
                changed(&mut value, &way, put);
                texts[at].1 = value.to_string().into_bytes();
            }
        }
        texts.extend(more.into_iter().map(|(key, text)| (key.to_owned(), text)));
        texts
    })
}

/// Everything that reads a view: the rules, the table, REST.
fn look_at_everything(texts: &[(String, Vec<u8>)]) {
    let scope = Scope::new("demo").unwrap();
    let keys = Keys::new("service", &scope);
    let prefix = keys.prefix().to_owned();
    let full: Vec<(String, &[u8])> = texts.iter().map(|(key, text)| (format!("{prefix}{key}"), text.as_slice())).collect();
    let raws = full.iter().map(|(key, value)| Raw { key, value, revision: 7, lease: 3 });
    let view = codec::view(&keys, 9, raws);
    let _ = check::faults(&view);
    let _ = serde_json::to_string(&present::cluster_json(&view, "demo")).unwrap();
    let view = Arc::new(view);
    for postgres in
        [Postgres::Stopped, Postgres::Starting { since: Duration::from_secs(1) }, primary(), standby(84197032), Postgres::Silent]
    {
        for name in ["n0", "n1", "n2"] {
            let mut snapshot = snapshot(name, postgres.clone());
            snapshot.view = view.clone();
            snapshot.decision = Some(duty::decide(&view, &snapshot.local));
            let now = Instant::now();
            let _ = status::status(&snapshot, None, &scope, now);
            let _ = metrics::page(&snapshot, None, &scope, now);
            for path in ["/", "/replica", "/sync", "/async", "/quorum", "/readiness", "/liveness", "/standby-leader"] {
                let code = health::status(&snapshot, path, &health::Query(vec![("lag".to_owned(), "1MB".to_owned())]), now);
                assert!(code == 200 || code == 503);
            }
        }
    }
    let config: &DynamicConfig = view.config();
    let _ = (config.faults(), config.timing(), MemberName::new("n0"));
}

/// A node's file that is whole; one place in it is changed.
const FILE: &str = r#"{"scope":"s","name":"n1","namespace":"/db","restapi":{"listen":"127.0.0.1:8008","allowlist":["10.0.0.0/8"],"authentication":{"username":"u","password":"p"},"http_extra_headers":{"X-A":"b"}},"ctl":{"insecure":true},"etcd3":{"hosts":["e:2379"],"protocol":"http","username":"u","password":"p"},"bootstrap":{"dcs":{"ttl":10},"initdb":["data-checksums",{"encoding":"UTF8"}],"pg_hba":["host all all all md5"],"users":{"a":{"password":"x","options":["createdb"]}}},"postgresql":{"listen":"127.0.0.1:5432","connect_address":"127.0.0.1:5432","data_dir":"/data","parameters":{"max_connections":10},"authentication":{"superuser":{"username":"postgres","password":"x"},"replication":{"sslmode":"require"}},"basebackup":[{"max-rate":"1M"}],"recovery_conf":{"restore_command":"cp"},"callbacks":{"on_start":"/x"},"use_unix_socket":true,"pg_ctl_timeout":60},"tags":{"nofailover":true},"watchdog":{"mode":"off"},"log":{"level":"INFO","type":"json"}}"#;

fn load(text: &[u8]) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("postgres"), "").unwrap();
    let file = directory.path().join("node.yml");
    std::fs::write(&file, text).unwrap();
    if let Err(errors) = NodeConfig::load(&file, [("PATH".to_owned(), directory.path().display().to_string())]) {
        assert!(!errors.unknown.is_empty() || !errors.wrong.is_empty(), "an error that says nothing");
        let _ = errors.to_string();
    }
}

/// `PROPTEST_CASES=20000 cargo test fuzz` tries longer.
fn cases() -> u32 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn whatever_stands_in_etcd(texts in keys_of_etcd()) {
        look_at_everything(&texts);
    }

    #[test]
    fn whatever_stands_in_the_nodes_file(way in proptest::collection::vec(0..20_usize, 1..5), put in value(), blind in proptest::option::weighted(0.1, ".{0,200}")) {
        let mut file: Value = serde_json::from_str(FILE).unwrap();
        changed(&mut file, &way, put);
        load(blind.unwrap_or_else(|| file.to_string()).as_bytes());
    }

    #[test]
    fn whatever_is_asked_of_rest(
        method in proptest::sample::select(vec!["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "FOO"]),
        path in proptest::sample::select(vec!["/", "/patroni", "/cluster", "/config", "/switchover", "/failover", "/restart", "/reload", "/reinitialize", "/upgrade", "/failsafe", "/metrics", "/journal", "/parameters", "/history", "/replica", "/readiness", "/citus", "/mpp", "/%2e%2e", "//", "/history/x"]),
        query in "[a-z_]{0,12}(=[ -~&&[^#<>\"\\\\^`{|}]]{0,20})?",
        body in stored(),
        authorization in proptest::option::of("[ -~]{0,40}"),
    ) {
        let mut world = rest::world("");
        // The daemon's loop answers or refuses whatever it is asked; nobody answering at all is no case of REST's.
        let mut commands = std::mem::replace(&mut world.commands, tokio::sync::mpsc::channel(1).1);
        let query = query.replace(' ', "+");
        let headers: Vec<(&str, &str)> = authorization.iter().map(|text| ("authorization", text.as_str())).collect();
        let (method, path) = (Method::from_bytes(method.as_bytes()).unwrap(), format!("{path}?{query}"));
        let asking = rest::ask(&world, &method, &path, &headers, body);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let refusing = async {
            while let Some(command) = commands.recv().await {
                command.refuse("not now");
            }
            std::future::pending().await
        };
        let answered = async {
            tokio::select! {
                answer = tokio::time::timeout(Duration::from_secs(60), asking) => answer,
                () = refusing => unreachable!("it is pending for ever"),
            }
        };
        let (status, _) = runtime.block_on(answered).unwrap_or_else(|_| panic!("no answer to {method} {path}"));
        prop_assert!([200, 202, 400, 404, 409, 412, 413, 422, 500, 501, 502, 503].contains(&status), "{status}");
    }

    /// Over a real socket: a request of which any part may be anything, in pieces, and cut anywhere.
    #[test]
    fn whatever_comes_over_the_socket(
        start in proptest::sample::select(vec!["GET / HTTP/1.1", "GET /patroni HTTP/1.0", "POST /failsafe HTTP/1.1", "PATCH /config HTTP/1.1", "PRI * HTTP/2.0", "DELETE /restart HTTP/1.1"]),
        headers in proptest::collection::vec(("(Host|Content-Length|Transfer-Encoding|Connection|Expect|Upgrade|Authorization|[A-Za-z-]{1,8})", "(0|5|65536|18446744073709551616|-1|chunked|close|keep-alive|100-continue|h2c|Basic x|[ -~]{0,12})"), 0..6),
        body in proptest::collection::vec(any::<u8>(), 0..64),
        blind in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
    ) {
        let mut bytes = format!("{start}\r\n").into_bytes();
        for (name, value) in headers {
            bytes.extend(format!("{name}: {value}\r\n").into_bytes());
        }
        bytes.extend(b"\r\n");
        bytes.extend(body);
        for (at, byte) in blind {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len()));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answered = runtime.block_on(rest::over_a_socket(&bytes));
        prop_assert!(answered, "no answer to a good request after {:?}", String::from_utf8_lossy(&bytes));
    }
}
