//! A restore of this cluster to a point in its past, on the leader: its data are set aside, a backup takes their place and recovers up to
//! the point on a server that nobody reaches, and the timeline that begins there is told to etcd.

use crate::config::ReplicaMethod;
use crate::duties::copy;
use crate::duties::done::Done;
use crate::duties::found_by_method;
use crate::ground::program;
use crate::node::{Node, restoring};
use crate::postgres::aside;
use crate::postgres::controldata::{self, ClusterState};
use crate::postgres::marker::Incomplete;
use crate::postgres::postmaster::{Postmaster, StopMode};
use crate::postgres::{empty_directory, read_if_there, sync_data_directory, sync_directory, timelines, write_atomically};
use anyhow::{Context, Result, bail, ensure};
use cluster::history::History;
use cluster::member::{MemberRole, MemberState};
use cluster::name::Timeline;
use cluster::replaced::Room;
use cluster::restore::{Journal, Owed, Step, Target};
use cluster::sync::SyncState;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::path::Path;
use std::time::{Duration, Instant};
use steward::Server;

/// Pause before etcd is asked again after it gave no answer.
const RETRY: Duration = Duration::from_millis(250);

/// The first major version in which a library may archive.
const ARCHIVE_LIBRARY_SINCE: u32 = 15;

/// Begins. Where it fails before etcd was told, everything is as before when this returns.
pub async fn begin(node: &Node, view: &ClusterView, to: Target) -> Result<Done> {
    demand(node).await?;
    let system = view.system_id().context("the cluster has no identity yet")?.clone();
    let from = node.sql.facts().await.context("ask the server for its timeline")?.timeline;
    let began = Instant::now();
    tracing::warn!("restoring this cluster to {to}: everything after it is lost to it; the data of now are kept here");
    go_on(node, view, Journal { to: to.clone(), step: Step::Stop, system, from, begins: None, undo: false }, Step::Stop).await?;
    tracing::info!(
        "restored to {to} within {} s; the data of before are in {}",
        began.elapsed().as_secs(),
        restoring::before(&node.config).display()
    );
    Ok(Done::LookAgain)
}

/// Brings what an interruption left to the end that it is owed.
pub async fn resume(node: &Node, view: &ClusterView, owed: Owed) -> Result<Done> {
    let Some(journal) = restoring::read(&node.config).await? else { return Ok(Done::LookAgain) };
    match owed {
        Owed::GoOn(step) => {
            tracing::info!("going on with the restore to {}: {}", journal.to, step.sentence());
            go_on(node, view, journal, step).await?;
        }
        Owed::Undo => undo(node, &journal).await?,
        Owed::Finish => finish(node).await?,
    }
    Ok(Done::LookAgain)
}

/// What has to be there before the server is stopped.
async fn demand(node: &Node) -> Result<()> {
    let config = &node.config;
    let postgres = &config.postgres;
    ensure!(config.citus.is_none(), "the groups of a Citus cluster would have to be restored together, which this does not do");
    let by_backup = |method: &ReplicaMethod| matches!(method, ReplicaMethod::Command(command) if command.no_leader);
    ensure!(
        postgres.create_replica_methods.iter().any(by_backup),
        "no method of postgresql.create_replica_methods in this node's file makes data from a backup (no_leader: true); docs/backup.md has examples"
    );
    ensure!(
        postgres.recovery_conf.contains_key("restore_command") || postgres.parameters.contains_key("restore_command"),
        "postgresql.recovery_conf in this node's file has no restore_command, so nothing after the backup could be had"
    );
    let before = restoring::before(config);
    ensure!(
        !tokio::fs::try_exists(&before).await?,
        "the data of before an earlier restore are in {}: look whether anything of them is needed, and remove or move them",
        before.display()
    );
    if let Room::None(why) = aside::room(&postgres.data_dir).await? {
        bail!("the data can't be set aside while a backup takes their place: {why}");
    }
    Ok(())
}

async fn go_on(node: &Node, view: &ClusterView, mut journal: Journal, first: Step) -> Result<()> {
    for step in [Step::Stop, Step::Fetch, Step::Recover, Step::Announce].into_iter().filter(|step| *step >= first) {
        let began = Instant::now();
        journal.step = step;
        restoring::write(&node.config, &journal).await?;
        say(node, &journal);
        let done = match step {
            Step::Stop => stop(node, view).await,
            Step::Fetch => fetch(node, view, &journal).await,
            Step::Recover => recover(node, view, &mut journal).await,
            Step::Announce => announce(node, &journal).await,
        };
        if let Err(why) = done {
            let why = why.context(format!("restore to {}, while {}", journal.to, step.sentence()));
            // Whether etcd was told is to be found out first; the loop does.
            if step != Step::Announce {
                tracing::error!("{why:#}; the data of before are put back");
                undo(node, &journal).await.context("put the data of before the restore back")?;
            }
            return Err(why);
        }
        tracing::info!("restore: {} ({} ms)", step.sentence(), began.elapsed().as_millis());
    }
    finish(node).await
}

fn say(node: &Node, journal: &Journal) {
    let what = format!("to {}: {}", journal.to, journal.step.sentence());
    node.speak_reason(MemberState::from("restoring".to_owned()), MemberRole::Primary, what);
}

async fn stop(node: &Node, view: &ClusterView) -> Result<()> {
    if node.postmaster().is_some() {
        // What is in the last segment may be wanted, and only whole segments are archived.
        if let Err(why) = node.sql.execute("SELECT pg_switch_wal()").await {
            tracing::warn!("end the last segment before the restore: {why:#}");
        }
        node.stop_within(StopMode::Fast, steward::stop::patience(view)).await?;
    }
    node.clear_orphans().await?;
    node.sql.hang_up().await;
    Ok(())
}

/// Nothing of an earlier try works on the data directory any more.
async fn quiet(node: &Node) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    program::end_leftovers(data_dir).await?;
    if let Some(left) = Postmaster::adopt(data_dir).await? {
        left.stop(StopMode::Immediate)?;
        left.exited().await;
    }
    crate::postgres::postmaster::kill_orphans(data_dir).await.map(|_| ())
}

async fn fetch(node: &Node, view: &ClusterView, journal: &Journal) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    let before = restoring::before(&node.config);
    quiet(node).await?;
    if !tokio::fs::try_exists(&before).await? {
        aside::move_to(data_dir, &before).await?;
        tracing::info!("the data of before the restore are in {}", before.display());
    }
    let mark = Incomplete::of(data_dir);
    let what = format!("restore to {}", journal.to);
    mark.set(&what).await?;
    empty_directory(data_dir).await?;
    let (setting, value) = journal.to.setting();
    copy::from_backup(node, view, &[("TENURE_TARGET_SETTING", setting.to_owned()), ("TENURE_TARGET", value)]).await?;
    mark.set(&what).await
}

async fn recover(node: &Node, view: &ClusterView, journal: &mut Journal) -> Result<()> {
    let config = &node.config;
    let data_dir = &config.postgres.data_dir;
    bring_histories(&restoring::before(config).join("pg_wal"), &data_dir.join("pg_wal")).await?;
    let claimed = claim(node, journal.from).await.context("claim a timeline")?;
    node.pass_over_timelines(journal.from, claimed).await?;
    let mut settings = config.postgres.recovery_conf.clone();
    let (name, value) = journal.to.setting();
    settings.insert(name.to_owned(), value);
    settings.insert("recovery_target_action".to_owned(), "promote".to_owned());
    // This cluster's own past, not that of an earlier restore which the archive has as well.
    settings.insert("recovery_target_timeline".to_owned(), journal.from.to_string());
    // What it writes goes into the archive once etcd knows of it: a restore that is called off leaves nothing there, and its history is to be
    // put right first.
    settings.insert("archive_command".to_owned(), String::new());
    if major(data_dir).await?.is_some_and(|major| major >= ARCHIVE_LIBRARY_SINCE) {
        settings.insert("archive_library".to_owned(), String::new());
    }
    found_by_method::recover(node, &node.dynamic(view), Some(&settings), false).await?;
    let control = controldata::read(&node.programs, data_dir).await?;
    ensure!(control.state == ClusterState::ShutDown, "the recovered server did not shut down cleanly ({:?})", control.state);
    ensure!(control.timeline > journal.from, "the recovered server is on timeline {} still", control.timeline);
    ensure!(control.system_id == journal.system, "the backup is of another database system, {}", control.system_id);
    journal.begins = Some(control.timeline);
    put_history_right(data_dir, control.timeline).await?;
    sync_data_directory(data_dir).await
}

async fn major(data_dir: &Path) -> Result<Option<u32>> {
    let version = read_if_there(&data_dir.join("PG_VERSION")).await?;
    Ok(version.and_then(|text| text.trim().parse().ok()))
}

/// The history of the timeline that begins, where the point is older than the timeline that was left ([`History::cut_at_its_point`]).
async fn put_history_right(data_dir: &Path, begins: Timeline) -> Result<()> {
    let path = data_dir.join("pg_wal").join(timelines::file_name(begins));
    let text = read_if_there(&path).await?.with_context(|| format!("{} is not there", path.display()))?;
    let told = History::from_file(&text);
    let cut = told.clone().cut_at_its_point();
    if cut != told {
        tracing::info!("the point is older than the timeline that is left: {} says so now", path.display());
        write_atomically(&path, &cut.to_file(), 0o600).await?;
    }
    Ok(())
}

/// The number of the timeline that begins is claimed as for any promotion: no other server begins one of this number, and no file in the
/// archive has its name.
async fn claim(node: &Node, from: Timeline) -> Result<Timeline> {
    let view = node.etcd.load_view().await?;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    let claimed = view.timeline_to_claim(from);
    node.etcd.claim_timeline(claimed, ClusterView::revision_of(&view.claimed_timeline), leader).await?;
    Ok(claimed)
}

/// The histories that the server of before had: its present timeline may not be in the archive.
async fn bring_histories(from: &Path, to: &Path) -> Result<()> {
    let mut entries = tokio::fs::read_dir(from).await.with_context(|| format!("read {}", from.display()))?;
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name();
        let path = to.join(&name);
        if name.to_string_lossy().ends_with(".history")
            && read_if_there(&path).await?.is_none()
            && let Some(text) = read_if_there(&entry.path()).await?.filter(|text| !History::is_placeholder(text))
        {
            write_atomically(&path, &text, 0o600).await?;
        }
    }
    sync_directory(to).await
}

/// Until etcd has said that it is so, or that it can't be: a write whose answer was lost may have been done.
async fn announce(node: &Node, journal: &Journal) -> Result<()> {
    let begins = journal.begins.context("the new timeline was not noted")?;
    let file = node.config.postgres.data_dir.join("pg_wal").join(timelines::file_name(begins));
    let text = read_if_there(&file).await?.with_context(|| format!("{} is not there", file.display()))?;
    let fresh = History::from_file(&text).up_to(begins);
    loop {
        let written = async {
            let view = node.etcd.load_view().await?;
            if view.history().current() == begins {
                return Ok(true);
            }
            let Some(leader) = view.leader_if(&node.config.name) else { return Ok(false) };
            if let Some(sync) = view.sync.as_ref().filter(|sync| !sync.value.is_empty()) {
                // A standby that was synchronous has what is lost now, and is to vote on nothing.
                let nobody = SyncState { other: sync.value.other.clone(), ..SyncState::default() };
                node.etcd.write_sync(&nobody, sync.revision, leader).await?;
            }
            let merged = view.history().merged(&fresh, &jiff::Timestamp::now().to_string(), node.config.name.as_str());
            node.etcd.write_history(&merged, ClusterView::revision_of(&view.history), leader).await.map(|()| true)
        };
        match written.await {
            Ok(true) => return Ok(()),
            Ok(false) => bail!("this node leads no more"),
            Err(dcs::Error::Lost(what)) => tracing::info!("{what} has changed meanwhile: once more"),
            Err(why) => tracing::warn!("etcd was not told yet: {why}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn finish(node: &Node) -> Result<()> {
    Incomplete::of(&node.config.postgres.data_dir).clear().await?;
    restoring::clear(&node.config).await?;
    node.speak(MemberState::Stopped, MemberRole::Primary);
    Ok(())
}

/// The data of before are put back, where they were set aside. May be run again after it was cut short anywhere.
async fn undo(node: &Node, journal: &Journal) -> Result<()> {
    let data_dir = &node.config.postgres.data_dir;
    let before = restoring::before(&node.config);
    quiet(node).await?;
    if tokio::fs::try_exists(&before).await? {
        aside::put_back_from(&before, data_dir).await?;
    }
    restoring::clear(&node.config).await?;
    node.speak(MemberState::Stopped, MemberRole::Primary);
    tracing::warn!("the restore to {} is undone: the data of before are where they were", journal.to);
    Ok(())
}
