//! The leader's server and its twin of the other major version change places: writers are held, the last of what they wrote is confirmed by
//! the twin, sequences are set, both stop, etcd is told in one guarded write, and the two directories are exchanged.
//!
//! Why nothing is lost: the drain lets nobody pass at a commit who began after it; who began before is ended; then the position is taken and
//! confirmed, and the server is sealed: nobody commits there before it is started again. A drain alone would not do, as it ends with its
//! session, which the stop ends like any other, perhaps a moment before one that waits. A commit that was let pass just before the seal is found in
//! the WAL once the server has stopped: with one commit past the position the change is called off. Up to the write to etcd both
//! directories are whole, so every failure before it leaves the cluster as it was; a server that may be sealed is started again.

use crate::duties::done::Done;
use crate::node::{Node, slots};
use crate::postgres::controldata::{self, ClusterState, ControlData};
use crate::postgres::postmaster::StopMode;
use crate::postgres::query::demand_ours;
use crate::postgres::{Programs, run, sync_directory};
use crate::upgrade::twin;
use crate::upgrade::twin::make::twin_sql;
use crate::upgrade::twin::sides::{self, Last};
use crate::upgrade::{carried, journal};
use anyhow::{Context, Result, bail};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::{SystemId, Timeline};
use cluster::store::Upgraded;
use cluster::upgrade::step::{Journal, Step};
use cluster::upgrade::twin::{Followed, NotYet, Twin, not_yet};
use cluster::view::ClusterView;
use dcs::Dcs;
use futures_util::future::{join_all, try_join_all};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use std::time::{Duration, Instant};
use steward::switchover::wait_for_writers;
use tokio_postgres::Client;

/// From the drain to the seal. What is not over by then is called off.
const DRAIN_MOST: Duration = Duration::from_secs(5);
/// What was written last may take the twin so long.
const CONFIRM_WITHIN: Duration = Duration::from_millis(2500);
/// Sessions that are ended may take so long to be gone.
const GONE_WITHIN: Duration = Duration::from_millis(1000);
/// The task that works on the twin at this moment may take so long.
const LOOK_WITHIN: Duration = Duration::from_secs(5);
/// Pause before etcd is asked again after it gave no answer.
const RETRY: Duration = Duration::from_millis(250);

/// Sessions that are opened while nobody waits yet.
struct Sessions {
    watch: Client,
    /// Taken when nobody else commits any more.
    last: Option<Last>,
    leader: Vec<Client>,
    twin: Vec<Client>,
    /// Of each database: the question for its sequences.
    sequences: Vec<Option<String>>,
}

/// Changes places. Where it fails before etcd was told, the cluster goes on as it was.
pub async fn change(node: &Node, view: &ClusterView) -> Result<Done> {
    // A look at the twin takes moments; its making, joining and comparing take as long as they take.
    let Ok(_at_work) = tokio::time::timeout(LOOK_WITHIN, node.twin.at_work.lock()).await else {
        bail!("not yet: {}", node.twin.told().doing);
    };
    let noted = twin::read(&node.config).await?.context("no new version follows: `tenure upgrade --to N` begins an upgrade")?;
    let watch = sides::open(&node.sql, None).await?;
    let lag = sides::lag(&watch, &noted.databases).await?;
    let differences = node.twin.told().compared.map(|compared| compared.different);
    let reasons: Vec<String> = not_yet(noted.stage, lag, differences).iter().map(ToString::to_string).collect();
    if !reasons.is_empty() {
        bail!("not yet: {}", reasons.join("; "));
    }
    let held = crate::poolers::pause(node, view).await;
    let changed = prepared(node, view, &noted, watch).await;
    drop(held);
    // Where etcd was about to be told, the step that is noted says what comes next.
    if changed.is_err() && journal::read(&node.config).await?.is_none() {
        // The sessions that wait go on; the twin follows on.
        let _ = node.sql.execute("SELECT tenure_internal.undrain()").await;
        if let Err(why) = twin::join::go_on(node, &noted).await {
            tracing::warn!("the new version does not follow on yet: {why:#}");
        }
    }
    changed.map(|()| Done::LookAgain)
}

async fn prepared(node: &Node, view: &ClusterView, noted: &Twin, watch: Client) -> Result<()> {
    let twin_sql = twin_sql(node);
    // Both while still serving: the stops have little left to write.
    let (ours, theirs) = tokio::join!(node.sql.checkpoint(), twin_sql.checkpoint());
    for why in [ours.err(), theirs.err()].into_iter().flatten() {
        tracing::warn!("checkpoint before the change of places: {why:#}");
    }
    // What ALTER SYSTEM and the rules say by now.
    let waits = twin::programs(&node.config, noted.waits())?;
    carried::files(&node.config, &waits, &twin::data(&node.config), noted.waits()).await?;
    let leader = sides::open_all(&node.sql, &noted.databases).await?;
    let twin = sides::open_all(&twin_sql, &noted.databases).await?;
    // By these the server that serves now follows afterwards. They are read from a position that is taken when everything is quiet.
    let after = noted.changed_places(noted.twin.as_ref().context("the twin's system was not noted")?, Lsn(0));
    for (client, one) in twin.iter().zip(&after.databases) {
        sides::make_slot(client, &one.slot).await?;
    }
    let sequences = try_join_all(leader.iter().map(sides::sequences)).await?;
    let last = Last::begin(&node.sql).await?;
    let mut sessions = Sessions { watch, last: Some(last), leader, twin, sequences };

    let began = Instant::now();
    // On this session, as others of ours may be ended below with a question under way, and the drain would end with them.
    demand_ours(&sessions.watch).await?;
    let drain = format!("SELECT tenure_internal.drain({})", DRAIN_MOST.as_millis());
    sessions.watch.batch_execute(&drain).await.context("drain")?;
    wait_for_writers(node).await;
    let (last, from) = quieten(&mut sessions, &noted.databases).await?;
    let quiet = began.elapsed();
    // Before the seal: an arbiter that finds this note starts the server again, which alone lifts it.
    let hold = Journal {
        from: noted.serves(),
        to: noted.waits(),
        step: Step::Hold,
        old: noted.main.clone(),
        new: noted.twin.clone(),
        twin: Some(from),
    };
    journal::write(&node.config, &hold).await?;
    if sides::text(&sessions.watch, "SELECT tenure_internal.seal()::text").await.context("seal the server")? != "true" {
        bail!(
            "writers were not held until the server was sealed, as it took longer than {} ms: it is started again",
            DRAIN_MOST.as_millis()
        );
    }
    // The lease worker ends with the stop's first moment: from here on the lease is ours to keep.
    node.speak(MemberState::Stopping, MemberRole::Primary);
    let data = twin::data(&node.config);
    let (clean, stopped) =
        tokio::join!(node.stop_within(StopMode::Fast, steward::stop::patience(view)), twin::stop_server(&data, StopMode::Fast));
    stopped?;
    drop(sessions);
    if !clean? {
        bail!("the server did not stop within its time: it is started again as it was");
    }
    let (old, new) = (twin::programs(&node.config, noted.serves())?, twin::programs(&node.config, noted.waits())?);
    let (before, now) = tokio::try_join!(controldata::read(&old, &node.config.postgres.data_dir), controldata::read(&new, &data))?;
    if before.state != ClusterState::ShutDown || now.state != ClusterState::ShutDown {
        bail!("the servers did not shut down cleanly ({} and {})", before.state, now.state);
    }
    if before.system_id != noted.main || noted.twin.as_ref() != Some(&now.system_id) {
        bail!("the data of the two servers is not what was noted of it");
    }
    if has_committed_since(node, &old, last, &before).await? {
        bail!(
            "something was committed after {last}, the last position that the new version confirmed: the server is started again as it was"
        );
    }
    let stop = began.elapsed();
    let noted_switch = Journal { step: Step::Announce, ..hold };
    journal::write(&node.config, &noted_switch).await?;
    finish(node, &noted_switch, from).await?;
    let all = began.elapsed();
    tracing::info!(
        "upgrade: PostgreSQL {} takes the place of {}: quiet after {} ms, both stopped after {} ms, exchanged after {} ms",
        noted.waits(),
        noted.serves(),
        quiet.as_millis(),
        stop.as_millis(),
        all.as_millis()
    );
    node.twin.tell(|told| {
        told.held_ms = u64::try_from(all.as_millis()).ok();
        told.compared = None;
        (told.serves, told.beside, told.switched) = (Some(noted.waits()), Some(noted.serves()), !noted.switched);
        told.not_yet = vec![NotYet::NotFollowing.to_string()];
    });
    Ok(())
}

/// Nobody commits any more, and the twin has everything: its sequences are set, its subscriptions stopped. Gives the last position
/// on the leader's server, and that on the twin from which on the other direction begins.
async fn quieten(sessions: &mut Sessions, followed: &[Followed]) -> Result<(Lsn, Lsn)> {
    let ours = sessions.last.take().context("the last transaction was not begun")?;
    end_who_began_before(&sessions.watch, ours.pid).await?;
    let prepared = sides::text(&sessions.watch, "SELECT count(*)::text FROM pg_prepared_xacts").await?;
    if prepared != "0" {
        bail!("{prepared} prepared transactions wait: commit or roll them back (pg_prepared_xacts), then ask again");
    }
    let last = ours.commit().await?;
    if !sides::confirmed(&sessions.watch, followed, last, CONFIRM_WITHIN).await? {
        bail!("the new version did not confirm {last} within {} ms", CONFIRM_WITHIN.as_millis());
    }
    let pairs = sessions.leader.iter().zip(&sessions.twin).zip(&sessions.sequences);
    let told = pairs.map(|((leader, twin), question)| async move {
        // First the subscription: it must not begin again when this server takes the other's address.
        twin.batch_execute(&format!("ALTER SUBSCRIPTION {} DISABLE", sides::NAME)).await.context("end the subscription")?;
        if let Some(question) = question {
            let values = sides::text(leader, question).await.context("read the sequences")?;
            twin.batch_execute(&values).await.context("set the sequences")?;
        }
        Ok::<(), anyhow::Error>(())
    });
    join_all(told).await.into_iter().collect::<Result<Vec<()>>>()?;
    let twin = sessions.twin.first().context("there is no database")?;
    Ok((last, sides::lsn(twin, "SELECT pg_current_wal_insert_lsn()::text").await?))
}

/// Does the WAL of this server, which has stopped, have a commit past this position? One of autovacuum counts too: nobody is harmed by a
/// change that is called off.
async fn has_committed_since(node: &Node, programs: &Programs, position: Lsn, control: &ControlData) -> Result<bool> {
    if position >= control.checkpoint {
        return Ok(false);
    }
    let mut command = programs.command("pg_waldump");
    command.arg("--path").arg(node.config.postgres.data_dir.join("pg_wal")).arg(format!("--timeline={}", control.timeline.0));
    command.arg(format!("--start={position}")).arg(format!("--end={}", control.checkpoint)).arg("--rmgr=Transaction");
    let said = run(command).await.context("look for commits past the last position")?;
    Ok(commits(&String::from_utf8_lossy(&said.stdout)))
}

fn commits(records: &str) -> bool {
    records.lines().any(|line| ["desc: COMMIT", "desc: PREPARE"].iter().any(|what| line.contains(what)))
}

/// A transaction that began before the drain passes it, and may write at any moment: it is ended, as the stop would do a moment later. Twice
/// nobody found, as a session may have begun one and not shown it yet.
async fn end_who_began_before(watch: &Client, ours: i32) -> Result<()> {
    const END: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE xact_start < $1::text::timestamptz AND pid NOT IN (pg_backend_pid(), $2) AND backend_type NOT IN ('walsender', 'autovacuum worker', 'autovacuum launcher')";
    let drained = sides::text(watch, "SELECT clock_timestamp()::text").await?;
    let deadline = Instant::now() + GONE_WITHIN;
    let mut nobody = 0;
    while nobody < 2 {
        let ended: i64 = watch.query_one(END, &[&drained, &ours]).await.context("end transactions of before the drain")?.try_get(0)?;
        nobody = if ended == 0 { nobody + 1 } else { 0 };
        if Instant::now() > deadline {
            bail!("transactions that began before the drain do not end within {} ms", GONE_WITHIN.as_millis());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// From the write to etcd to the end; also where an interruption left it in the middle.
pub async fn finish(node: &Node, switch: &Journal, from: Lsn) -> Result<()> {
    let config = &node.config;
    let (data_dir, beside) = (&config.postgres.data_dir, twin::data(config));
    let new = switch.new.as_ref().context("the new system was not noted")?;
    node.speak_reason(MemberState::from("upgrading".to_owned()), MemberRole::Primary, format!("to PostgreSQL {}", switch.to));
    if switch.step == Step::Announce {
        let programs = twin::programs(config, switch.to)?;
        let timeline = controldata::read(&programs, &beside).await?.timeline;
        announce(node, switch, new, timeline).await?;
        journal::write(config, &Journal { step: Step::Exchange, ..switch.clone() }).await?;
    }
    if slots::major(config).await == Some(switch.from) {
        renameat_with(CWD, &beside, CWD, data_dir, RenameFlags::EXCHANGE).context("exchange the directories")?;
    }
    for directory in [beside.parent(), data_dir.parent()].into_iter().flatten() {
        sync_directory(directory).await?;
    }
    let noted = twin::read(config).await?.context("the note of the upgrade is gone")?;
    twin::write(config, &noted.changed_places(new, from)).await?;
    node.run_major(switch.to)?;
    node.sql.hang_up().await;
    node.speak(MemberState::Stopped, MemberRole::Primary);
    journal::clear(config).await
}

/// Until etcd has said that it is so, or that it can't be: a write whose answer was lost may have been done.
async fn announce(node: &Node, switch: &Journal, new: &SystemId, timeline: Timeline) -> Result<()> {
    loop {
        let written = async {
            let view = node.etcd.load_view().await?;
            if view.system_id() == Some(new) {
                return Ok(true);
            }
            let leader = view.leader_if(&node.config.name).filter(|_| view.system_id() == Some(&switch.old));
            let Some(leader) = leader else { return Ok(false) };
            let upgraded = Upgraded { old: switch.old.clone(), from: switch.from, to: switch.to };
            node.etcd.upgraded(leader, &view, new, timeline, upgraded).await.map(|()| true)
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

/// The other data is whole, so nothing has to be put back: the twin follows on, once this server serves again.
pub async fn call_off(node: &Node, view: &ClusterView, switch: &Journal) -> Result<()> {
    if switch.step == Step::Hold {
        // It may be sealed, and then it lets nobody write before it is started again. The loop does so.
        let role = if view.leader_if(&node.config.name).is_some() { MemberRole::Primary } else { MemberRole::Replica };
        node.speak(MemberState::Stopping, role);
        node.stop_within(StopMode::Fast, steward::stop::patience(view)).await?;
    }
    journal::clear(&node.config).await?;
    node.note_upgrade(false);
    tracing::warn!(
        "the change to PostgreSQL {} is called off: version {} goes on, with everything that was written",
        switch.to,
        switch.from
    );
    // Its subscriptions were stopped: the care for the twin lets them go on, or takes it away where another leads.
    node.twin.bell.notify_one();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_is_seen_among_the_records_and_an_abort_is_none() {
        let line =
            |what: &str| format!("rmgr: Transaction len (rec/tot): 34/34, tx: 734, lsn: 0/01525A48, prev 0/01525A10, desc: {what}\n");
        for (what, expected) in
            [("COMMIT 2026-11-22 06:00:00 UTC", true), ("COMMIT_PREPARED 1", true), ("PREPARE gid x", true), ("ABORT 2026", false)]
        {
            assert_eq!(commits(&line(what)), expected, "{what}");
        }
        assert!(!commits(""));
    }
}
