//! What a node keeps in order while nothing else is to do: on the primary synchronous standbys, slots,
//! history and the first checkpoint; on a standby the slots that its own standbys would need.

use crate::hands::Hands;
use crate::postgres::conf::Recovery;
use crate::postgres::query::ServerFacts;
use crate::{bootstrap, failsafe, settings, slots};
use anyhow::{Context, Result};
use cluster::config::SynchronousMode;
use cluster::history::History;
use cluster::leader::Leader;
use cluster::name::MemberName;
use cluster::sync::{self, Applied, StandbySeen, SyncState, SyncStep};
use cluster::view::ClusterView;
use dcs::Dcs;
use std::collections::BTreeSet;
use std::time::Duration;

/// A marker commit waits this long for the standby before the step is tried again.
const MARKER_PATIENCE: Duration = Duration::from_secs(5);

/// The field's own name for the standby that is waited for while there is none.
const STRICT_PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// One round on the primary. True if something was changed and another look is due.
pub async fn primary(hands: &Hands, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<bool> {
    // Before any file is written: after a restart of the arbiter only the server knows what it is set to.
    applied(hands, facts);
    history(hands, view, leader, facts).await?;
    if view.members.get(&hands.config.name).is_some_and(|entry| entry.member.checkpoint_after_promote == Some(false)) {
        // An arbiter that died after the promotion left its checkpoint undone, and rewinds wait for it.
        first_checkpoint(hands);
    }
    failsafe::publish(hands, view, leader).await?;
    slots::keep(hands, view, true).await?;
    configuration(hands, view, &Recovery::None).await?;
    synchronous(hands, view, leader, facts).await
}

/// One round on a standby.
pub async fn standby(hands: &Hands, view: &ClusterView, facts: &ServerFacts) -> Result<()> {
    hands.note_synchronous(BTreeSet::new(), false);
    slots::keep(hands, view, false).await?;
    let upstream = settings::address_in(&facts.primary_conninfo);
    let member = view.members.iter().find(|(_, entry)| upstream.is_some() && entry.member.host_port() == upstream);
    if let Some((name, entry)) = member {
        configuration(hands, view, &settings::recovery(&hands.config, view.config(), Some((name, &entry.member)))).await?;
    }
    Ok(())
}

/// Puts a changed dynamic configuration into the files and reloads.
async fn configuration(hands: &Hands, view: &ClusterView, recovery: &Recovery) -> Result<()> {
    if hands.write_configuration(view, recovery).await? {
        tracing::info!("the configuration changed: reloading Postgres");
        hands.sql.reload().await?;
    }
    Ok(())
}

/// After a promotion: `history` gets the lines of the server's own history file.
async fn history(hands: &Hands, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<()> {
    if facts.timeline == view.history().current() {
        return Ok(());
    }
    let file = hands.config.postgres.data_dir.join("pg_wal").join(format!("{:08X}.history", facts.timeline.0));
    let text = tokio::fs::read_to_string(&file).await.with_context(|| format!("read {}", file.display()))?;
    let now = jiff::Timestamp::now().to_string();
    let merged = view.history().merged(&History::from_file(&text).up_to(facts.timeline), &now, hands.config.name.as_str());
    hands.etcd.write_history(&merged, ClusterView::revision_of(&view.history), leader).await.context("write the history")?;
    tracing::info!("timeline {} is in the history", facts.timeline);
    Ok(())
}

/// One step towards the wanted synchronous standby; the order is `cluster::sync`'s.
async fn synchronous(hands: &Hands, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<bool> {
    let mode = view.config().synchronous_mode();
    let key = view.sync.as_ref().map(|sync| sync.value.clone()).unwrap_or_default();
    let revision = ClusterView::revision_of(&view.sync);
    let (names, confirmed) = applied(hands, facts);
    if mode == SynchronousMode::Off {
        if !key.is_empty() {
            hands.etcd.write_sync(&SyncState { other: key.other, ..SyncState::default() }, revision, leader).await?;
            return Ok(true);
        }
        if !names.is_empty() {
            apply_names(hands, view, BTreeSet::new()).await?;
        }
        return Ok(false);
    }
    let seen = standbys(view, facts);
    let trusted: BTreeSet<MemberName> = key.standbys().filter_map(|name| MemberName::new(name).ok()).collect();
    let present = if trusted.is_empty() { &names } else { &trusted };
    let mut wanted = sync::choose(&seen, present);
    if wanted.is_empty() && view.config().synchronous_mode_strict() {
        // Rather no writes than writes on one node. What was confirmed stays true while nothing is
        // acknowledged; where nobody was named yet, a name that no member may have holds the commits.
        wanted = if names.is_empty() { MemberName::new(STRICT_PLACEHOLDER).into_iter().collect() } else { names.clone() };
        if trusted.is_subset(&names) && key.leader.as_deref() == Some(hands.config.name.as_str()) {
            if names.is_empty() {
                tracing::warn!("synchronous_mode_strict: no synchronous standby, commits wait for one");
                apply_names(hands, view, wanted).await?;
            }
            return Ok(false);
        }
    }
    match sync::step(&hands.config.name, &key, &Applied { names: names.clone(), confirmed }, &wanted) {
        SyncStep::Settled => Ok(false),
        SyncStep::WriteKey(state) => {
            tracing::info!("synchronous standby in etcd: {}", state.sync_standby.as_deref().unwrap_or("none"));
            hands.etcd.write_sync(&state, revision, leader).await?;
            Ok(true)
        }
        SyncStep::Apply(names) => {
            tracing::info!("synchronous_standby_names becomes '{}'", settings::standby_names(&names));
            apply_names(hands, view, names).await?;
            Ok(true)
        }
        SyncStep::Confirm => confirm(hands, names).await,
    }
}

/// What the server is set to; after a restart of the arbiter the server itself is asked.
fn applied(hands: &Hands, facts: &ServerFacts) -> (BTreeSet<MemberName>, bool) {
    let (names, confirmed) = hands.synchronous();
    if settings::standby_names(&names) == facts.synchronous_standby_names {
        return (names, confirmed);
    }
    let found: BTreeSet<MemberName> =
        facts.synchronous_standby_names.split('"').skip(1).step_by(2).filter_map(|name| MemberName::new(name).ok()).collect();
    hands.note_synchronous(found.clone(), false);
    (found, false)
}

async fn apply_names(hands: &Hands, view: &ClusterView, names: BTreeSet<MemberName>) -> Result<()> {
    let wanted = settings::standby_names(&names);
    hands.note_synchronous(names, false);
    hands.write_configuration(view, &Recovery::None).await?;
    hands.sql.reload().await?;
    // The reload reaches our own session with its next statement, not before the postmaster has read the file.
    let effective = async {
        while hands.sql.facts().await?.synchronous_standby_names != wanted {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::time::timeout(Duration::from_secs(5), effective).await.context("the server does not take the new synchronous_standby_names")?
}

/// Proves that commits wait for the new set. Whether they wait is told by a flag that only the
/// checkpointer sets when it reads the configuration, and it does so before it serves a checkpoint that
/// was asked for after the reload; so: checkpoint, then a commit that must be confirmed.
async fn confirm(hands: &Hands, names: BTreeSet<MemberName>) -> Result<bool> {
    hands.sql.checkpoint().await?;
    let marker = "SET synchronous_commit = on; SELECT pg_logical_emit_message(true, 'tenure', 'synchronous standby confirmed'); RESET synchronous_commit";
    match tokio::time::timeout(MARKER_PATIENCE, hands.sql.execute(marker)).await {
        Ok(done) => done.context("commit under the new synchronous standby")?,
        Err(_) => {
            tracing::warn!("the new synchronous standby has not confirmed a commit within {} s", MARKER_PATIENCE.as_secs());
            return Ok(false);
        }
    }
    hands.note_synchronous(names, true);
    Ok(true)
}

fn standbys(view: &ClusterView, facts: &ServerFacts) -> Vec<StandbySeen> {
    let flushed = facts.flush_lsn.unwrap_or_default();
    let seen = facts.replication.iter().filter_map(|sender| {
        let name = MemberName::new(&sender.application_name).ok()?;
        let entry = view.members.get(&name)?;
        Some(StandbySeen {
            streaming: sender.state.as_deref() == Some("streaming"),
            eligible: !entry.member.tags.nosync(),
            priority: entry.member.tags.sync_priority(),
            lag_bytes: sender.flush_lsn.map_or(u64::MAX, |lsn| lsn.lag_bytes_behind(flushed)),
            name,
        })
    });
    seen.collect()
}

/// Begins the first checkpoint of a new primary in the background, unless it is under way.
pub fn first_checkpoint(hands: &Hands) {
    if let Some(begun) = hands.begin_checkpoint() {
        let hands = hands.clone();
        tokio::spawn(async move {
            after_promotion(&hands).await;
            drop(begun);
        });
    }
}

/// After a promotion: the checkpoint that rewinds wait for, and what only a primary can make.
async fn after_promotion(hands: &Hands) {
    if let Err(why) = bootstrap::ensure_extension(hands).await {
        tracing::warn!("{why:#}");
    }
    match hands.sql.checkpoint().await {
        Ok(()) => {
            // The lease worker publishes that rewinds may begin when it is woken.
            if let Err(why) = hands.sql.execute("SELECT tenure.attach_arbiter()").await {
                tracing::warn!("attach to the lease worker: {why:#}");
            }
        }
        Err(why) => tracing::warn!("checkpoint after the promotion: {why:#}"),
    }
    hands.wake.notify_one();
}
