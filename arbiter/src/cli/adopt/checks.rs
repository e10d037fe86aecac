//! What is looked at before a node changes hands: what would keep the other daemon from serving it, and what would be otherwise under it.

use super::super::context::refuse_with;
use super::super::query;
use super::super::validate;
use super::place::Place;
use crate::config::{Credentials, NodeConfig};
use crate::postgres;
use anyhow::{Context, Result};
use cluster::config::{DynamicConfig, SynchronousMode};
use cluster::host::Address;
use cluster::mixed::{self, Kind};
use cluster::name::{MemberName, SystemId};
use cluster::view::ClusterView;
use std::fmt;
use std::path::Path;

/// Less room than this beside the data is said: a server that starts writes logs and recovers.
const ROOM_BYTES: u64 = 256 << 20;

/// Patroni's releases whose rules this was tried with.
const TRIED: &str = "4.1";

/// One thing that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// Nothing is done while it is so.
    Stops(String),
    /// To be known.
    Note(String),
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Stops(what) => write!(f, "stops: {what}"),
            Finding::Note(what) => write!(f, "note: {what}"),
        }
    }
}

/// Looks at everything.
pub async fn of(place: &Place<'_>, view: &ClusterView) -> Result<Vec<Finding>> {
    let config = &place.config;
    let mut found = Vec::new();
    if place.to == Kind::Ours {
        found.extend(validate::missing_programs(config).into_iter().map(Finding::Stops));
        found.extend(config.not_served.iter().cloned().map(Finding::Note));
        found.extend(of_dynamic(view.config()));
        found.extend(place.patronis_version(view).await);
    }
    found.extend(of_data(config).await);
    found.extend(of_synchronous(view, &config.name));
    match ask(config, &Address::new(config.postgres.listen.local_host(), config.postgres.listen.port), LOCAL).await {
        Ok(rows) => found.extend(of_server(&rows, view.system_id(), place.to)),
        Err(why) => found.push(Finding::Note(format!("the server here does not answer, so it was not looked at: {why:#}"))),
    }
    if place.to == Kind::Ours {
        found.extend(of_primary(config, view).await);
    }
    Ok(found)
}

impl Place<'_> {
    /// Rules that nobody compared with ours are not guessed at.
    async fn patronis_version(&self, view: &ClusterView) -> Option<Finding> {
        let entry = view.members.get(self.me()).filter(|entry| mixed::kind(&entry.member) == Kind::Patroni)?;
        let version = entry.member.version.as_str();
        if version.starts_with(TRIED) {
            return None;
        }
        Some(match version.split('.').next().and_then(|major| major.parse::<u32>().ok()) {
            Some(major) if major >= 3 => Finding::Note(format!("Patroni {version} runs here; this was tried with {TRIED}")),
            _ => Finding::Stops(format!(
                "Patroni {version} runs here, older than the keys that both sides read: upgrade it to {TRIED} first"
            )),
        })
    }
}

/// One row: system identifier, PKGLIBDIR, is the extension to be had, in recovery, logical slots.
const LOCAL: &str = "SELECT (SELECT system_identifier FROM pg_control_system()), (SELECT setting FROM pg_config() WHERE name = 'PKGLIBDIR'), \
    EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_tenure'), pg_is_in_recovery(), \
    (SELECT string_agg(slot_name, ', ') FROM pg_replication_slots WHERE slot_type = 'logical'), \
    (SELECT string_agg(slot_name, ', ') FROM pg_replication_slots WHERE slot_type = 'physical' AND temporary)";

fn of_server(row: &[Option<String>], cluster: Option<&SystemId>, to: Kind) -> Vec<Finding> {
    let cell = |at: usize| row.get(at).and_then(Option::as_deref);
    let mut found = Vec::new();
    if let (Some(mine), Some(cluster)) = (cell(0), cluster)
        && mine != cluster.0
    {
        found.push(Finding::Stops(format!("the server here is the database system {mine}, the cluster is {}", cluster.0)));
    }
    if to == Kind::Ours {
        let library = cell(1).map(|directory| Path::new(directory).join("pg_tenure.so"));
        if library.as_ref().is_some_and(|library| !library.exists()) || cell(2) == Some("f") {
            found.push(Finding::Stops(format!(
                "pg_tenure is not installed for this PostgreSQL ({}): install its package of this major version",
                cell(1).unwrap_or("unknown directory")
            )));
        }
    }
    if let Some(slots) = cell(4).filter(|slots| !slots.is_empty()) {
        found.push(Finding::Note(format!(
            "logical slots here: {slots}; those that are in `slots` of the dynamic configuration survive the change of leader, others stay where they are"
        )));
    }
    found
}

async fn of_data(config: &NodeConfig) -> Vec<Finding> {
    let mut found = Vec::new();
    let data = &config.postgres.data_dir;
    let major = tokio::fs::read_to_string(data.join("PG_VERSION")).await.unwrap_or_default().trim().to_owned();
    let mut asked = config.postgres.programs().command("postgres");
    asked.arg("--version");
    let said = postgres::run(asked).await.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let program = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit())).unwrap_or_default();
    if major.is_empty() {
        found.push(Finding::Stops(format!("there is no data in {}", data.display())));
    } else if program.split('.').next() != Some(major.as_str()) {
        found.push(Finding::Stops(format!("the data is of PostgreSQL {major}, {} is {}", config.postgres.bin_dir.display(), said.trim())));
    }
    match rustix::fs::statvfs(data) {
        Ok(room) if room.f_bavail.saturating_mul(room.f_frsize) < ROOM_BYTES => {
            let left = room.f_bavail.saturating_mul(room.f_frsize) >> 20;
            found.push(Finding::Stops(format!("{left} MiB are left beside {}: make room first", data.display())));
        }
        _ => {}
    }
    found
}

fn of_dynamic(dynamic: &DynamicConfig) -> Vec<Finding> {
    let mut found: Vec<Finding> = dynamic.faults().iter().map(|fault| Finding::Note(format!("config: {fault}"))).collect();
    found.extend(dynamic.notes().into_iter().map(|note| Finding::Note(format!("config: {note}"))));
    if dynamic.failsafe_mode() {
        found.push(Finding::Note(
            "failsafe_mode: what Patroni answers is no promise, so a leader of ours without etcd goes on only once every member is ours"
                .to_owned(),
        ));
    }
    found
}

fn of_synchronous(view: &ClusterView, me: &MemberName) -> Option<Finding> {
    let mode = view.config().synchronous_mode();
    let sync = view.sync.as_ref().map(|sync| &sync.value)?;
    let alone = mode != SynchronousMode::Off && sync.has_standby(me) && sync.standbys().count() == 1;
    let others = view.members.len() > 2;
    alone.then(|| {
        Finding::Note(match others {
            true => format!("{me} is the synchronous standby: before it stops another one takes its place"),
            false => format!("{me} is the only standby: commits wait, or are confirmed by nobody, while its server restarts"),
        })
    })
}

/// The primary's own copy of the extension, which standbys can't make.
async fn of_primary(config: &NodeConfig, view: &ClusterView) -> Option<Finding> {
    let (name, address) = primary(view)?;
    let question = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_tenure')";
    match ask(config, &address, question).await {
        Ok(row) if row.first().and_then(Option::as_deref) == Some("f") => {
            Some(Finding::Stops(format!("pg_tenure is not installed on {name}: install its package on every node first")))
        }
        Ok(_) => None,
        Err(why) => Some(Finding::Note(format!(
            "the primary {name} can't be asked from here ({why:#}); `CREATE EXTENSION IF NOT EXISTS pg_tenure` there, in {}, is for you then",
            config.postgres.database
        ))),
    }
}

fn primary(view: &ClusterView) -> Option<(MemberName, Address)> {
    let leader = view.leader.as_ref()?;
    Some((leader.name.clone(), view.members.get(&leader.name)?.member.address()?))
}

/// Makes the extension on the primary: arbiters of standbys speak to their lease workers through it.
pub async fn make_extension(config: &NodeConfig, view: &ClusterView) -> Result<()> {
    let Some((name, address)) = primary(view) else { return Ok(()) };
    let there = ask(config, &address, "SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'pg_tenure')").await;
    if there.as_ref().is_ok_and(|row| row.first().and_then(Option::as_deref) == Some("t")) {
        return Ok(());
    }
    ask(config, &address, "CREATE EXTENSION IF NOT EXISTS pg_tenure").await.map(drop).map_err(|why| {
        refuse_with(
            format!("the extension could not be made on {name}: {why:#}"),
            format!("run CREATE EXTENSION pg_tenure in the database {} there, as a superuser, then this again", config.postgres.database),
        )
    })
}

/// The first row of an answer.
async fn ask(config: &NodeConfig, address: &Address, sql: &str) -> Result<Vec<Option<String>>> {
    let Credentials { username, password, .. } = &config.postgres.authentication.superuser;
    let mut target = tokio_postgres::Config::new();
    target.host(&address.host).port(address.port).user(username).dbname(&config.postgres.database).application_name("tenure adopt");
    if let Some(password) = password {
        target.password(password.reveal());
    }
    let results = query::ask(&target, sql).await.with_context(|| format!("ask {address}"))?;
    Ok(results.into_iter().flat_map(|(_, rows)| rows).next().unwrap_or_default())
}
