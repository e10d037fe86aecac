//! What a standby is set to: whom it streams from, and the recovery settings of the file, of the
//! dynamic configuration and of `standby_cluster`.

use crate::config::{Credentials, NodeConfig};
use crate::node::known::{Known, LeftOut};
use crate::postgres::conf::{Recovery, conninfo, parameters_of};
use crate::postgres::facts::ServerFacts;
use crate::postgres::query::member_conninfo;
use cluster::admission::{Admission, recovery_admission};
use cluster::config::DynamicConfig;
use cluster::host::{Address, POSTGRES};
use cluster::member::Tags;
use cluster::name::MemberName;
use cluster::standby_cluster::StandbyCluster;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use serde_json::Value;
use std::collections::BTreeMap;

/// How this node follows an upstream: conninfo, slot, and recovery settings.
pub fn of(config: &NodeConfig, dynamic: &DynamicConfig, view: &ClusterView, upstream: &Upstream) -> Recovery {
    let standby_cluster = dynamic.standby_cluster();
    let (primary_conninfo, primary_slot_name) = match upstream {
        Upstream::Nobody => (None, None),
        Upstream::Member(name) => {
            let conninfo = member(config, view, name);
            let slots = config.postgres.use_slots.unwrap_or_else(|| dynamic.use_slots());
            let slot = conninfo.is_some().then(|| config.name.slot_name()).filter(|_| slots);
            (conninfo, slot)
        }
        Upstream::Remote => {
            let remote = standby_cluster.as_ref();
            let conninfo = remote.and_then(|remote| {
                remote_conninfo(config, remote, &config.postgres.authentication.replication, config.name.as_str(), None)
            });
            // Over there nobody makes a slot for this cluster unasked: only one that is named is used.
            let slot = remote.and_then(|remote| remote.primary_slot_name.clone()).filter(|_| conninfo.is_some());
            (conninfo, slot)
        }
    };
    Recovery::Standby { primary_conninfo, primary_slot_name, extra: extra(config, dynamic, *upstream == Upstream::Remote).0 }
}

fn member(config: &NodeConfig, view: &ClusterView, name: &MemberName) -> Option<String> {
    let address = view.members.get(name)?.member.address()?;
    let passfile = config.postgres.pgpass.display().to_string();
    Some(member_conninfo(&address, &config.postgres.authentication.replication, &passfile, config.name.as_str(), None))
}

/// How a server of the other cluster is reached; None where only an archive is named. Of several hosts the
/// one that takes writes is meant, wherever the other side's failover has put it.
pub fn remote_conninfo(
    config: &NodeConfig,
    remote: &StandbyCluster,
    credentials: &Credentials,
    application_name: &str,
    database: Option<&str>,
) -> Option<String> {
    if !remote.streams() {
        return None;
    }
    let passfile = config.postgres.pgpass.display().to_string();
    let mut pairs = vec![
        ("host", remote.host.as_deref().unwrap_or("")),
        ("port", remote.port.as_deref().unwrap_or("")),
        ("user", credentials.username.as_str()),
        ("dbname", database.unwrap_or("")),
        ("passfile", if credentials.password.is_some() { passfile.as_str() } else { "" }),
        ("application_name", application_name),
        ("target_session_attrs", if remote.has_many_hosts() { "read-write" } else { "" }),
    ];
    pairs.extend(credentials.connection.iter().map(|(keyword, value)| (keyword.as_str(), value.as_str())));
    if !credentials.connection.iter().any(|(keyword, _)| keyword == "sslmode") {
        pairs.push(("sslmode", "prefer"));
    }
    Some(conninfo(pairs))
}

/// Whom the running standby is set to follow; None where its setting names no member and no remote cluster of ours.
pub fn in_force(config: &NodeConfig, dynamic: &DynamicConfig, view: &ClusterView, facts: &ServerFacts) -> Option<Upstream> {
    if facts.primary_conninfo.is_empty() {
        return Some(Upstream::Nobody);
    }
    if follows_remote(config, dynamic, facts) {
        return Some(Upstream::Remote);
    }
    let address = address_in(&facts.primary_conninfo)?;
    let member = view.members.iter().find(|(_, entry)| entry.member.address().as_ref() == Some(&address));
    member.map(|(name, _)| Upstream::Member(name.clone()))
}

/// The standby goes on following whom it follows.
pub fn as_it_is(config: &NodeConfig, dynamic: &DynamicConfig, facts: &ServerFacts) -> Recovery {
    Recovery::Standby {
        primary_conninfo: Some(facts.primary_conninfo.clone()),
        primary_slot_name: Some(facts.primary_slot_name.clone()),
        extra: extra(config, dynamic, false).0,
    }
}

/// The running standby is set to follow the remote cluster, as `standby_cluster` asks.
pub fn follows_remote(config: &NodeConfig, dynamic: &DynamicConfig, facts: &ServerFacts) -> bool {
    let Recovery::Standby { primary_conninfo, primary_slot_name, .. } = of(config, dynamic, &ClusterView::default(), &Upstream::Remote)
    else {
        return false;
    };
    dynamic.standby_cluster().is_some()
        && is_written(&facts.primary_conninfo, &primary_conninfo.unwrap_or_default())
        && primary_slot_name.unwrap_or_default() == facts.primary_slot_name
}

/// What is in force is what was asked for, with what writing it adds to its end: what this major version needs besides.
fn is_written(in_force: &str, asked: &str) -> bool {
    in_force.strip_prefix(asked).is_some_and(|added| added.is_empty() || added.starts_with(' ') && !asked.is_empty())
}

/// With these settings a `restore_command` is in force: a rewind may fetch what this node lacks.
pub fn restores(config: &NodeConfig, recovery: &Recovery) -> bool {
    let asked = matches!(recovery, Recovery::Standby { extra, .. } if extra.contains_key("restore_command"));
    asked || config.postgres.parameters.contains_key("restore_command")
}

/// The recovery settings that are left out here, and why.
pub fn left_out(config: &NodeConfig, dynamic: &DynamicConfig, known: &Known) -> LeftOut {
    let (settled, mut left_out) = extra(config, dynamic, true);
    for (name, value) in settled {
        if let Some(said) = known.refused.get(&(name.clone(), value)) {
            left_out.insert(format!("postgresql.recovery_conf.{name}"), format!("the server would refuse it: {said}"));
        }
    }
    left_out
}

/// Recovery settings beside our own, and those that are left out. The file's win over the dynamic ones, and
/// `standby_cluster` over both while there is one; its delay is the leader's alone: the others would add theirs to it.
fn extra(config: &NodeConfig, dynamic: &DynamicConfig, leads_standby_cluster: bool) -> (BTreeMap<String, String>, LeftOut) {
    let (mut settled, mut left_out) = (BTreeMap::new(), LeftOut::new());
    let mut judge = |key: &str, name: &str, value: String, settled: &mut BTreeMap<String, String>| match why_not(config, name, &value) {
        None => drop(settled.insert(name.to_owned(), value)),
        Some(why) => drop(left_out.insert(format!("{key}.{}", name.escape_default()), why)),
    };
    for (name, value) in recovery_conf(dynamic) {
        judge("postgresql.recovery_conf", &name, value, &mut settled);
    }
    settled.extend(config.postgres.recovery_conf.clone());
    if let Some(seconds) = Tags(config.tags.clone()).delay() {
        settled.insert("recovery_min_apply_delay".to_owned(), format!("{seconds}s"));
    }
    let Some(remote) = dynamic.standby_cluster() else { return (settled, left_out) };
    for (name, value) in [("restore_command", remote.restore_command), ("archive_cleanup_command", remote.archive_cleanup_command)] {
        if let Some(value) = value {
            judge("standby_cluster", name, value, &mut settled);
        }
    }
    if let Some(delay) = remote.recovery_min_apply_delay.filter(|_| leads_standby_cluster) {
        judge("standby_cluster", "recovery_min_apply_delay", delay, &mut settled);
    }
    (settled, left_out)
}

fn recovery_conf(dynamic: &DynamicConfig) -> BTreeMap<String, String> {
    let section = dynamic.postgresql().and_then(|section| section.get("recovery_conf")).and_then(Value::as_object);
    section.map(parameters_of).unwrap_or_default()
}

/// Why a recovery setting of the dynamic configuration does not count here: it could be more than a value, and this node's own file does not
/// say the same, in `postgresql.recovery_conf`, in `postgresql.parameters`, or in its `bootstrap.dcs`.
fn why_not(config: &NodeConfig, name: &str, value: &str) -> Option<String> {
    let verdict = recovery_admission(name, value);
    let own = DynamicConfig(config.bootstrap.dcs.clone());
    let said = || {
        let remote = own.standby_cluster().unwrap_or_default();
        let in_standby_cluster = match name {
            "restore_command" => remote.restore_command,
            "archive_cleanup_command" => remote.archive_cleanup_command,
            _ => None,
        };
        let said = [
            config.postgres.recovery_conf.get(name).cloned(),
            config.postgres.parameters.get(name).cloned(),
            recovery_conf(&own).get(name).cloned(),
            in_standby_cluster,
        ];
        said.into_iter().flatten().any(|said| said == value)
    };
    match verdict {
        Admission::Counts => None,
        Admission::OwnFile(_) if said() => None,
        other => Some(other.to_string()),
    }
}

/// Host and port in a conninfo of ours.
pub fn address_in(conninfo: &str) -> Option<Address> {
    let value = |keyword: &str| {
        conninfo
            .split_whitespace()
            .find_map(|pair| pair.strip_prefix(keyword)?.strip_prefix('='))
            .map(|value| value.trim_matches('\'').to_owned())
    };
    Some(Address::new(value("host")?, value("port").and_then(|port| port.parse().ok()).unwrap_or(POSTGRES)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn config(more: &str) -> NodeConfig {
        let room = tempfile::tempdir().unwrap();
        let file = room.path().join("node.yml");
        std::fs::write(room.path().join("postgres"), "").unwrap();
        let text = format!(
            "scope: s\nname: n1\nrestapi: {{listen: 127.0.0.1:1, connect_address: 127.0.0.1:1}}\netcd3: {{host: 127.0.0.1:2}}\n\
            postgresql:\n  {{listen: 127.0.0.1:3, connect_address: 127.0.0.1:3, data_dir: /nowhere/data, bin_dir: {}, pgpass: /p,\n\
            \x20  authentication: {{superuser: {{username: p}}, replication: {{username: r, password: x}}}}{more}}}\n",
            room.path().display()
        );
        std::fs::write(&file, text).unwrap();
        NodeConfig::load(&file, std::iter::empty()).unwrap()
    }

    fn dynamic(document: Value) -> DynamicConfig {
        DynamicConfig(document.as_object().unwrap().clone())
    }

    fn settled(config: &NodeConfig, dynamic: &DynamicConfig, upstream: &Upstream) -> (String, String, BTreeMap<String, String>) {
        match of(config, dynamic, &ClusterView::default(), upstream) {
            Recovery::Standby { primary_conninfo, primary_slot_name, extra } => {
                (primary_conninfo.unwrap_or_default(), primary_slot_name.unwrap_or_default(), extra)
            }
            Recovery::None => panic!("a standby"),
        }
    }

    #[test]
    fn the_primary_among_several_hosts_is_followed_through_the_slot_that_is_named() {
        let one = dynamic(json!({"standby_cluster": {"host": "a", "port": 5433}}));
        let (conninfo, slot, _) = settled(&config(""), &one, &Upstream::Remote);
        assert_eq!(conninfo, "host=a port=5433 user=r passfile=/p application_name=n1 sslmode=prefer");
        assert_eq!(slot, "");
        let many = dynamic(json!({"standby_cluster": {"host": "a,b", "port": "1,2", "primary_slot_name": "dc2"}}));
        let (conninfo, slot, _) = settled(&config(""), &many, &Upstream::Remote);
        assert!(conninfo.starts_with("host=a,b port=1,2 ") && conninfo.contains(" target_session_attrs=read-write "), "{conninfo}");
        assert_eq!(slot, "dc2");
        let archive = dynamic(json!({"standby_cluster": {"restore_command": "x", "primary_slot_name": "dc2"}}));
        let (conninfo, slot, extra) = settled(&config(""), &archive, &Upstream::Remote);
        assert_eq!((conninfo.as_str(), slot.as_str(), extra.len()), ("", "", 0));
    }

    #[test]
    fn what_writing_adds_does_not_make_it_another_upstream() {
        for (in_force, asked, same) in [
            ("host=a port=1", "host=a port=1", true),
            ("host=a port=1 require_auth=!password", "host=a port=1", true),
            ("host=a port=12", "host=a port=1", false),
            ("host=b", "host=a", false),
            ("", "", true),
            (" host=a", "", false),
        ] {
            assert_eq!(is_written(in_force, asked), same, "{in_force:?} for {asked:?}");
        }
    }

    #[test]
    fn what_fetches_log_counts_only_where_the_nodes_own_file_says_the_same() {
        let asked = dynamic(json!({
            "standby_cluster": {"host": "a", "restore_command": "theirs", "recovery_min_apply_delay": "5min"},
            "postgresql": {"recovery_conf": {"archive_cleanup_command": "foreign", "recovery_min_apply_delay": "1min"}},
        }));
        let silent = config("");
        let refused = |config: &NodeConfig| left_out(config, &asked, &Known::default()).into_keys().collect::<Vec<_>>();
        assert_eq!(refused(&silent), ["postgresql.recovery_conf.archive_cleanup_command", "standby_cluster.restore_command"]);
        let (_, _, extra) = settled(&silent, &asked, &Upstream::Remote);
        assert_eq!(extra, BTreeMap::from([("recovery_min_apply_delay".to_owned(), "5min".to_owned())]));
        let saying = config(", recovery_conf: {restore_command: theirs}");
        assert_eq!(refused(&saying), ["postgresql.recovery_conf.archive_cleanup_command"]);
        let (_, _, extra) = settled(&saying, &asked, &Upstream::Member(MemberName::new("n2").unwrap()));
        assert_eq!(extra["restore_command"], "theirs");
        assert_eq!(extra["recovery_min_apply_delay"], "1min", "the leader's delay is the leader's alone");
    }

    #[test]
    fn an_upstream_is_found_in_a_conninfo_of_ours() {
        assert_eq!(address_in("host='10.0.0.1' port='5433' user='r'"), Some(Address::new("10.0.0.1", 5433)));
        assert_eq!(address_in("host=h user=r"), Some(Address::new("h", 5432)));
        assert_eq!(address_in(""), None);
    }
}
