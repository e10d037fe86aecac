//! pg_hba.conf and pg_ident.conf: the lines that the configuration gives, or the file as it is; and what a new cluster begins with.
//!
//! No rule that nobody asked for is wider than what was written: where the configuration says nothing, the file is its owner's. Rules of
//! our own are added once, when initdb made the file a moment ago and nobody gave any; they never say `trust`.

use crate::config::{Authentication, NodeConfig, ServerRole};
use crate::postgres::conf::ConfigFiles;
use crate::postgres::{read_if_there, write_atomically};
use anyhow::{Context, Result};
use cluster::config::DynamicConfig;
use cluster::hba::Line;
use serde_json::Value;
use std::path::{Path, PathBuf};

const HEADER: &str = "# Written by tenure: changes belong in the node's configuration file (postgresql.pg_hba, postgresql.pg_ident).";

/// Brings the file to what is wanted; true if the content changed (then reload).
pub async fn write(path: &Path, wanted: &Wanted) -> Result<bool> {
    let before = read_if_there(path).await?;
    let kept = kept(path);
    let content = match wanted {
        Wanted::Untouched => return Ok(false),
        Wanted::AsItCame => match read_if_there(&kept).await? {
            Some(text) => text,
            None => return Ok(false),
        },
        Wanted::Lines(lines) => std::iter::once(HEADER).chain(lines.iter().map(String::as_str)).flat_map(|line| [line, "\n"]).collect(),
    };
    if before.as_deref() == Some(&content) {
        return Ok(false);
    }
    if let Some(theirs) = before.filter(|text| !text.starts_with(HEADER)) {
        // Somebody's work, perhaps: it is there to be looked up, and for a role of which nothing is said.
        write_atomically(&kept, &theirs, 0o600).await?;
    }
    write_atomically(path, &content, 0o600).await?;
    Ok(true)
}

/// Where the file is kept as it was before us: `pg_hba.base.conf`.
fn kept(path: &Path) -> PathBuf {
    path.with_extension("base.conf")
}

/// What a file is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// These lines.
    Lines(Vec<String>),
    /// As it was before any lines were written: other roles only have lines.
    AsItCame,
    /// Nothing is said of it: its owner's.
    Untouched,
}

impl Wanted {
    fn of(said: impl Fn(Option<ServerRole>) -> Vec<String>, role: ServerRole) -> Wanted {
        let given = |role: Option<ServerRole>| Some(said(role)).filter(|lines| !lines.is_empty());
        match given(Some(role)).or_else(|| given(None)) {
            Some(lines) => Wanted::Lines(lines),
            None if ServerRole::ALL.into_iter().any(|role| given(Some(role)).is_some()) => Wanted::AsItCame,
            None => Wanted::Untouched,
        }
    }
}

/// Which of the two files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum File {
    /// pg_hba.conf.
    Hba,
    /// pg_ident.conf.
    Ident,
}

impl File {
    /// The key below `postgresql`, in this role if one is named.
    fn key(self, role: Option<ServerRole>) -> String {
        let key = match self {
            File::Hba => "pg_hba",
            File::Ident => "pg_ident",
        };
        role.map_or_else(|| key.to_owned(), |role| format!("{key}_{role}"))
    }

    /// The parameter that names another file.
    fn parameter(self) -> &'static str {
        match self {
            File::Hba => "hba_file",
            File::Ident => "ident_file",
        }
    }
}

/// What this file is to be in this role. The node's own file counts before the dynamic configuration, and there what is said of a role
/// before what is said of all. As with Patroni, an empty list says nothing, and where the parameters name another file, that one is its
/// owner's.
pub fn wanted(file: File, config: &NodeConfig, dynamic: &DynamicConfig, role: ServerRole) -> Wanted {
    match said(file, config, dynamic, role) {
        (Wanted::Lines(lines), From::Etcd) => match counting(file, config, &lines) {
            Ok((lines, _)) => Wanted::Lines(lines),
            Err(_) => Wanted::Untouched,
        },
        (wanted, _) => wanted,
    }
}

/// What of the dynamic configuration's lines for this file does not count on this node, in sentences.
pub fn refused(file: File, config: &NodeConfig, dynamic: &DynamicConfig, role: ServerRole) -> Vec<String> {
    match said(file, config, dynamic, role) {
        (Wanted::Lines(lines), From::Etcd) => counting(file, config, &lines).map_or_else(|why| vec![why], |(_, notes)| notes),
        _ => Vec::new(),
    }
}

/// Where lines come from.
enum From {
    OwnFile,
    Etcd,
}

fn said(file: File, config: &NodeConfig, dynamic: &DynamicConfig, role: ServerRole) -> (Wanted, From) {
    let postgres = &config.postgres;
    if postgres.parameters.contains_key(file.parameter()) || parameter(dynamic, file.parameter()) {
        return (Wanted::Untouched, From::OwnFile);
    }
    match Wanted::of(|role| own(file, config, role), role) {
        Wanted::Untouched => (Wanted::of(|role| listed(dynamic, &file.key(role)), role), From::Etcd),
        said => (said, From::OwnFile),
    }
}

/// What the node's own file says of this role, or of all.
fn own(file: File, config: &NodeConfig, role: Option<ServerRole>) -> Vec<String> {
    let postgres = &config.postgres;
    let (by_role, all) = match file {
        File::Hba => (&postgres.pg_hba_by_role, &postgres.pg_hba),
        File::Ident => (&postgres.pg_ident_by_role, &postgres.pg_ident),
    };
    role.map_or(all, |role| by_role.of(role)).clone().unwrap_or_default()
}

/// The lines from etcd as they count here: who may write there must not become the superuser of every node by that (`cluster::hba`). A line
/// that does not count rejects those whom it is about; they would come in by a later, wider one otherwise. Where a line can't even be
/// read that far, none of them is used.
fn counting(file: File, config: &NodeConfig, lines: &[String]) -> Result<(Vec<String>, Vec<String>), String> {
    let bootstrap = DynamicConfig(config.bootstrap.dcs.clone());
    let plain = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let roles = || std::iter::once(None).chain(ServerRole::ALL.into_iter().map(Some));
    let ours: Vec<String> = roles()
        .flat_map(|role| own(file, config, role).into_iter().chain(listed(&bootstrap, &file.key(role))))
        .map(|line| plain(&line))
        .collect();
    let (mut used, mut notes) = (Vec::new(), Vec::new());
    for line in lines {
        let verdict = match file {
            File::Hba => cluster::hba::hba(line),
            File::Ident => cluster::hba::ident(line),
        };
        let key = file.key(None);
        match verdict {
            Line::Counts => used.push(line.clone()),
            Line::OwnFile(_) | Line::Never(_) if ours.contains(&plain(line)) => used.push(line.clone()),
            Line::OwnFile(_) if file == File::Hba => {
                used.push(cluster::hba::rejecting(line));
                notes.push(format!("postgresql.{key} in the dynamic configuration: \"{line}\" rejects here instead: {verdict}"));
            }
            Line::OwnFile(_) => notes.push(format!("postgresql.{key} in the dynamic configuration: \"{line}\" is left out: {verdict}")),
            Line::Never(_) => {
                return Err(format!(
                    "postgresql.{key} in the dynamic configuration is not used, and the file stays as it is, because of the line \"{line}\": {verdict}"
                ));
            }
        }
    }
    Ok((used, notes))
}

fn parameter(dynamic: &DynamicConfig, name: &str) -> bool {
    let parameters = dynamic.postgresql().and_then(|section| section.get("parameters")).and_then(Value::as_object);
    parameters.is_some_and(|parameters| parameters.get(name).is_some_and(|value| !value.is_null()))
}

fn listed(dynamic: &DynamicConfig, key: &str) -> Vec<String> {
    let list = dynamic.postgresql().and_then(|section| section.get(key)).and_then(Value::as_array);
    list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

/// Whose work the files of a data directory that was just made are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MadeBy {
    /// initdb's, with our options or the user's.
    Initdb,
    /// A method's of the user: a backup that was restored.
    Method,
}

/// At the founding, once: `bootstrap.pg_hba` is added to what is there; where nobody said anything of rules at all, what a cluster
/// needs is added instead.
pub async fn found(config: &NodeConfig, made_by: MadeBy) -> Result<()> {
    let dynamic = DynamicConfig(config.bootstrap.dcs.clone());
    let (postgres, files) = (&config.postgres, config.postgres.files());
    adopt(&files).await?;
    let theirs = postgres.parameters.contains_key("hba_file") || parameter(&dynamic, "hba_file");
    if theirs || wanted(File::Hba, config, &dynamic, ServerRole::Primary) != Wanted::Untouched {
        return Ok(());
    }
    let added = match config.bootstrap.pg_hba.as_ref().filter(|lines| !lines.is_empty()) {
        Some(lines) => lines.clone(),
        None if made_by == MadeBy::Initdb => default_lines(&postgres.authentication),
        None => return Ok(()),
    };
    let before = read_if_there(&files.hba()).await?.unwrap_or_default();
    let content = format!("{before}\n{}\n", added.join("\n"));
    write_atomically(&files.hba(), &content, 0o600).await.context("add to pg_hba.conf what the cluster begins with")
}

/// Where the configuration files lie elsewhere than the data: what came with the data (from initdb, from a copy) is used where there is
/// nothing yet. PostgreSQL does not start without.
pub async fn adopt(files: &ConfigFiles) -> Result<()> {
    for (path, name) in [(files.hba(), "pg_hba.conf"), (files.ident(), "pg_ident.conf")] {
        if read_if_there(&path).await?.is_none() {
            let came = read_if_there(&files.data_dir.join(name)).await?.unwrap_or_default();
            write_atomically(&path, &came, 0o600).await.with_context(|| format!("make {}", path.display()))?;
        }
    }
    Ok(())
}

/// What is added to initdb's rules (which let in by the local socket and from this host) where nobody gave any: everybody with a password
/// over TCP, and the replication role for replication. Passwords are asked for as SCRAM, never let be.
pub fn default_lines(authentication: &Authentication) -> Vec<String> {
    vec![
        format!("host replication {} all scram-sha-256", quoted(&authentication.replication.username)),
        "host all all all scram-sha-256".to_owned(),
    ]
}

/// A role's name as a word of pg_hba.conf; quotes also take away the meaning of words like `all`.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::secret::Secret;
    use crate::postgres::credentials::Credentials;
    use serde_json::json;

    #[test]
    fn what_we_add_ourselves_asks_everybody_for_a_password() {
        let role = |username: &str| Credentials { username: username.to_owned(), password: Some(Secret::new("x")), connection: Vec::new() };
        let roles = Authentication { superuser: role("postgres"), replication: role("replicator"), rewind: Some(role("rew")) };
        assert_eq!(default_lines(&roles), ["host replication \"replicator\" all scram-sha-256", "host all all all scram-sha-256"]);
    }

    fn node(room: &Path, postgresql: Value, bootstrap: Value) -> NodeConfig {
        std::fs::write(room.join("postgres"), "").unwrap();
        let mut file = json!({
            "scope": "s", "name": "n1", "restapi": {"listen": "127.0.0.1:1"}, "etcd3": {"host": "127.0.0.1:2"}, "bootstrap": bootstrap,
            "postgresql": {"listen": "127.0.0.1:3", "data_dir": room.join("data"), "bin_dir": room},
        });
        file["postgresql"].as_object_mut().unwrap().extend(postgresql.as_object().unwrap().clone());
        let path = room.join("node.yml");
        std::fs::write(&path, file.to_string()).unwrap();
        NodeConfig::load(&path, std::iter::empty()).unwrap()
    }

    #[test]
    fn the_nodes_own_lines_count_before_the_dynamic_ones_and_nothing_is_made_up() {
        let room = tempfile::tempdir().unwrap();
        let (all, replica) = ("host all all all md5", "local all all peer");
        let dynamic = json!({"pg_hba": [all], "pg_hba_replica": [replica], "pg_ident_primary": ["# map"]});
        let given = |lines: &[&str]| Wanted::Lines(lines.iter().map(|line| (*line).to_owned()).collect());
        for (own, dynamic, role, file, expected) in [
            (json!({}), json!({}), ServerRole::Primary, File::Hba, Wanted::Untouched),
            (json!({"pg_hba": []}), json!({}), ServerRole::Primary, File::Hba, Wanted::Untouched),
            (json!({}), dynamic.clone(), ServerRole::Primary, File::Hba, given(&[all])),
            (json!({}), dynamic.clone(), ServerRole::Replica, File::Hba, given(&[replica])),
            (json!({"pg_hba": ["own"]}), dynamic.clone(), ServerRole::Replica, File::Hba, given(&["own"])),
            (json!({"pg_hba": []}), dynamic.clone(), ServerRole::Primary, File::Hba, given(&[all])),
            (json!({}), dynamic.clone(), ServerRole::Primary, File::Ident, given(&["# map"])),
            (json!({}), dynamic.clone(), ServerRole::Replica, File::Ident, Wanted::AsItCame),
            (json!({"parameters": {"hba_file": "/etc/mine"}}), dynamic.clone(), ServerRole::Primary, File::Hba, Wanted::Untouched),
            (
                json!({}),
                json!({"parameters": {"hba_file": "/etc/mine"}, "pg_hba": [all]}),
                ServerRole::Primary,
                File::Hba,
                Wanted::Untouched,
            ),
        ] {
            let config = node(room.path(), own.clone(), json!({}));
            let dynamic = DynamicConfig(json!({"postgresql": dynamic}).as_object().unwrap().clone());
            assert_eq!(wanted(file, &config, &dynamic, role), expected, "{own} {dynamic:?} {role}");
        }
    }

    #[test]
    fn who_may_write_into_etcd_does_not_become_the_superuser_by_it() {
        let room = tempfile::tempdir().unwrap();
        let (open, closed) = ("local  all all trust", "host all all all md5");
        let dynamic = json!({"postgresql": {"pg_hba": [open, closed]}});
        let (document, dynamic) = (dynamic.clone(), DynamicConfig(dynamic.as_object().unwrap().clone()));
        let stranger = node(room.path(), json!({}), json!({}));
        let rejected = Wanted::Lines(vec!["local all all reject".to_owned(), closed.to_owned()]);
        assert_eq!(wanted(File::Hba, &stranger, &dynamic, ServerRole::Primary), rejected);
        assert_eq!(refused(File::Hba, &stranger, &dynamic, ServerRole::Primary).len(), 1);
        let founder = node(room.path(), json!({}), json!({"dcs": document}));
        let said = Wanted::Lines(vec![open.to_owned(), closed.to_owned()]);
        assert_eq!(wanted(File::Hba, &founder, &dynamic, ServerRole::Primary), said);
        assert_eq!(refused(File::Hba, &founder, &dynamic, ServerRole::Primary), Vec::<String>::new());
        let reads = json!({"postgresql": {"pg_hba": ["host all @/etc/passwd all md5"]}});
        let reads = DynamicConfig(reads.as_object().unwrap().clone());
        assert_eq!(wanted(File::Hba, &stranger, &reads, ServerRole::Primary), Wanted::Untouched);
        assert!(refused(File::Hba, &stranger, &reads, ServerRole::Primary)[0].contains("is not used"));
    }

    #[tokio::test]
    async fn what_was_there_is_kept_and_comes_back_for_a_role_of_which_nothing_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pg_ident.conf");
        std::fs::write(&path, "by hand\n").unwrap();
        let ours = Wanted::Lines(vec!["local all all peer".to_owned()]);
        assert!(!write(&path, &Wanted::AsItCame).await.unwrap());
        assert!(!write(&path, &Wanted::Untouched).await.unwrap());
        assert!(write(&path, &ours).await.unwrap());
        assert!(!write(&path, &ours).await.unwrap(), "the same lines again change nothing");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{HEADER}\nlocal all all peer\n"));
        assert!(write(&path, &Wanted::AsItCame).await.unwrap());
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "by hand\n");
    }

    #[tokio::test]
    async fn a_founding_adds_to_what_is_there_and_only_what_was_asked_for() {
        let initdb = "local all all peer\n";
        for (bootstrap, made_by, expected) in [
            (json!({"pg_hba": ["hostssl all all all cert"]}), MadeBy::Initdb, "local all all peer\n\nhostssl all all all cert\n"),
            (json!({"pg_hba": ["hostssl all all all cert"]}), MadeBy::Method, "local all all peer\n\nhostssl all all all cert\n"),
            (json!({}), MadeBy::Method, initdb),
            (json!({"dcs": {"postgresql": {"pg_hba": ["local all all peer"]}}}), MadeBy::Initdb, initdb),
            (
                json!({}),
                MadeBy::Initdb,
                "local all all peer\n\nhost replication \"replicator\" all scram-sha-256\nhost all all all scram-sha-256\n",
            ),
        ] {
            let room = tempfile::tempdir().unwrap();
            let config = node(room.path(), json!({"config_dir": room.path().join("etc")}), bootstrap.clone());
            for directory in ["data", "etc"] {
                std::fs::create_dir(room.path().join(directory)).unwrap();
            }
            std::fs::write(room.path().join("data/pg_hba.conf"), initdb).unwrap();
            found(&config, made_by).await.unwrap();
            assert_eq!(std::fs::read_to_string(room.path().join("etc/pg_hba.conf")).unwrap(), expected, "{bootstrap}");
        }
    }
}
