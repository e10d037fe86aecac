//! Makes the twin: a copy of the leader's data that ends at an exact position, carried over to the other version.
//!
//! The slots are made first. The copy replays up to, and without, a position past them, is promoted there and stopped; each slot is read
//! from that position on. So every transaction whose commit begins before it is in the copy, and every other comes by a slot: none is
//! missing, none comes twice.

use super::{Like, data, place, prepare_place, programs, sides, sql, start, stop_server, write};
use crate::config::NodeConfig;
use crate::ground::program::WORKS_ON;
use crate::node::Node;
use crate::postgres::basebackup::basebackup;
use crate::postgres::controldata::{self, ClusterState};
use crate::postgres::pgpass;
use crate::postgres::postmaster::StopMode;
use crate::postgres::query::member_conninfo;
use crate::postgres::{Programs, read_if_there, remove_if_there, run, sync_data_directory, write_atomically};
use crate::upgrade::{carried, trial};
use anyhow::{Context, Result, bail};
use cluster::lsn::Lsn;
use cluster::upgrade::twin::{Followed, Stage, Twin, slot};
use cluster::view::ClusterView;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The copy replays what was written while it was made.
const REPLAY_PATIENCE: Duration = Duration::from_secs(6 * 3600);

/// Files of the arbiter in a data directory, and what says that a server is a standby.
const NOT_COPIED: [&str; 3] = ["postgresql.auto.conf", "standby.signal", "recovery.signal"];

/// How a server of ours, and a copy, reach the leader's: as any member would.
pub fn conninfo(node: &Node, view: &ClusterView, database: Option<&str>) -> Result<String> {
    let config = &node.config;
    let me = &view.members.get(&config.name).context("this node has no member key")?.member;
    let address = me.address().with_context(|| format!("this node has no usable address: {}", me.conn_url))?;
    let authentication = &config.postgres.authentication;
    let credentials = if database.is_some() { &authentication.superuser } else { &authentication.replication };
    let passfile = password_file(config).display().to_string();
    Ok(member_conninfo(&address, credentials, &passfile, &format!("twin/{}", config.name), database))
}

/// A password file of our own: the node's is written by the loop.
fn password_file(config: &NodeConfig) -> PathBuf {
    place(config).join("passwords")
}

/// What servers of ours and a copy need to come in.
pub async fn write_passwords(node: &Node) -> Result<()> {
    let authentication = &node.config.postgres.authentication;
    let entries = [&authentication.replication, &authentication.superuser].map(|credentials| pgpass::Entry { address: None, credentials });
    pgpass::write(&password_file(&node.config), &entries).await
}

/// Makes it, from the beginning; what an earlier try left goes first. Gives the note of a twin that is to be joined.
pub async fn make(node: &Node, view: &ClusterView, noted: &Twin) -> Result<Twin> {
    let config = &node.config;
    let (place, copy) = (place(config), place(config).join("copy"));
    let say = |doing: String| {
        tracing::info!("upgrade: {doing}");
        node.twin.tell(|told| (told.doing, told.percent) = (doing, None));
    };
    super::stop(config, StopMode::Immediate).await?;
    crate::ground::program::end_leftovers(&place).await?;
    trial::remove(&place).await?;
    tokio::fs::DirBuilder::new().mode(0o700).create(&place).await.with_context(|| format!("create {}", place.display()))?;
    prepare_place(&place).await?;
    write_passwords(node).await?;
    let like = Like::ask(&node.sql).await?;
    write_atomically(&place.join("like.json"), &serde_json::to_string(&like)?, 0o600).await?;
    let (old, new) = (programs(config, noted.from)?, programs(config, noted.to)?);

    say("definitions are refused from now on, and slots are made".to_owned());
    let names = sides::databases(&node.sql).await?;
    let databases: Vec<Followed> =
        names.into_iter().enumerate().map(|(number, database)| Followed { database, slot: slot(noted.to, number) }).collect();
    sides::prepare(&node.sql, &databases).await?;

    say(format!("the data is copied into {}", copy.display()));
    let progress = |percent: u8| node.twin.tell(|told| told.percent = Some(percent));
    basebackup(&old, &copy, &conninfo(node, view, None)?, &config.postgres.basebackup, "twin of a major upgrade", progress).await?;
    let from = end_copy_at(node, view, &old, &copy, &like).await?;

    say(format!("pg_upgrade carries the copy, which ends at {from}, to PostgreSQL {}", noted.to));
    let control = controldata::read(&old, &copy).await?;
    let data = data(config);
    trial::make_empty(config, &new, control.data_checksums, noted.from, &data).await?;
    carried::files(config, &new, &data, noted.to).await?;
    carry(node, &old, &new, &copy, &like).await?;
    trial::remove(&copy).await?;

    start(config, &new, &data, &like, &[]).await?;
    say("statistics are made".to_owned());
    statistics(node, &new, &place).await?;
    let twin = controldata::read(&new, &data).await?.system_id;
    let made = Twin { stage: Stage::Joining { from }, twin: Some(twin), databases, ..noted.clone() };
    write(config, &made).await?;
    Ok(made)
}

/// Lets the copy replay up to a position past all slots, and stops it there as a primary of its own.
async fn end_copy_at(node: &Node, view: &ClusterView, old: &Programs, copy: &Path, like: &Like) -> Result<Lsn> {
    for name in NOT_COPIED.into_iter().chain([cluster::mark::FILE, dcs::remember::FILE]) {
        remove_if_there(&copy.join(name)).await?;
    }
    write_atomically(&copy.join("postgresql.conf"), "", 0o600).await?;
    write_atomically(&copy.join("standby.signal"), "", 0o600).await?;
    let leader = sides::open(&node.sql, None).await?;
    let from = sides::lsn(&leader, "SELECT pg_current_wal_insert_lsn()::text").await?;
    // A commit past it, flushed: without a record there the copy would wait for one.
    leader.batch_execute("SELECT pg_logical_emit_message(true, 'tenure', 'twin')").await.context("write a record past the position")?;
    let more = [
        format!("primary_conninfo={}", conninfo(node, view, None)?),
        "primary_slot_name=".to_owned(),
        "restore_command=".to_owned(),
        "hot_standby=off".to_owned(),
        "recovery_target=".to_owned(),
        "recovery_target_name=".to_owned(),
        "recovery_target_time=".to_owned(),
        "recovery_target_xid=".to_owned(),
        format!("recovery_target_lsn={from}"),
        "recovery_target_inclusive=off".to_owned(),
        "recovery_target_action=promote".to_owned(),
        "recovery_target_timeline=current".to_owned(),
    ];
    let more: Vec<String> = more.into_iter().flat_map(|setting| ["-c".to_owned(), setting]).collect();
    node.twin.tell(|told| (told.doing, told.percent) = (format!("the copy replays up to {from}"), None));
    start(&node.config, old, copy, like, &more).await?;
    let deadline = Instant::now() + REPLAY_PATIENCE;
    while controldata::read(old, copy).await?.state != ClusterState::InProduction {
        if crate::postgres::postmaster::Postmaster::adopt(copy).await?.is_none() {
            let log = place(&node.config).join("server.log");
            bail!("the copy ended before {from}: {}", crate::postgres::postmaster::last_words(&log).await);
        }
        if Instant::now() > deadline {
            bail!("the copy did not come to {from} within {} hours", REPLAY_PATIENCE.as_secs() / 3600);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    stop_server(copy, StopMode::Fast).await?;
    let control = controldata::read(old, copy).await?;
    if control.state != ClusterState::ShutDown {
        bail!("the copy did not shut down cleanly ({})", control.state);
    }
    Ok(from)
}

async fn carry(node: &Node, old: &Programs, new: &Programs, copy: &Path, like: &Like) -> Result<()> {
    let config = &node.config;
    let (place, data) = (place(config), data(config));
    let mut command = trial::pg_upgrade(config, new, old, copy, &data, &place).await?;
    command.env(WORKS_ON, &place);
    let rules = format!("-c hba_file={}", trial::quoted(&place.join("hba.conf")));
    let wanted = read_if_there(&place.join("preloaded")).await?;
    let preloading = match wanted {
        Some(preloaded) => trial::preloading(&preloaded),
        None => trial::preloading(&with_ours(&like.preloaded)),
    };
    command.args(["--link", "--no-sync", "--jobs", &carried::jobs()]).arg("--old-options").arg(&rules);
    command.arg("--new-options").arg(format!("{rules} {preloading}"));
    let output = command.kill_on_drop(true).output().await.context("start pg_upgrade")?;
    if !output.status.success() {
        bail!("pg_upgrade: {}", trial::words(&output, &data));
    }
    sync_data_directory(&data).await
}

/// Our library is loaded at the start or not at all, and `pg_upgrade` loads all that functions are in.
fn with_ours(preloaded: &str) -> String {
    if preloaded.is_empty() { "pg_tenure".to_owned() } else { format!("{preloaded},pg_tenure") }
}

async fn statistics(node: &Node, new: &Programs, place: &Path) -> Result<()> {
    let mut analyze = new.command("vacuumdb");
    analyze.env(WORKS_ON, place).args(["--all", "--analyze-only", "--quiet", "--jobs", &carried::jobs()]);
    analyze.args(["--port", &super::PORT.to_string()]).arg("--host").arg(place);
    analyze.arg("--username").arg(&node.config.postgres.authentication.superuser.username);
    run(analyze).await.context("make the statistics").map(drop)
}

/// What its servers were like when it was made.
pub async fn like(node: &Node) -> Result<Like> {
    let path = place(&node.config).join("like.json");
    let text = read_if_there(&path).await?.with_context(|| format!("{} is gone", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("understand {}", path.display()))
}

/// The way to the twin's server.
pub fn twin_sql(node: &Node) -> crate::postgres::query::LocalSql {
    sql(&node.config, &data(&node.config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_loaded_beside_the_users_own() {
        for (given, expected) in [("", "pg_tenure"), ("pg_stat_statements,auto_explain", "pg_stat_statements,auto_explain,pg_tenure")] {
            assert_eq!(with_ours(given), expected);
        }
    }
}
