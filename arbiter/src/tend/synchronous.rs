//! Which standbys the primary's commits wait for: one step at a time towards what the configuration wants.

use crate::hands::Hands;
use crate::postgres::conf::Recovery;
use crate::postgres::query::ServerFacts;
use crate::settings;
use anyhow::{Context, Result};
use cluster::config::SynchronousMode;
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

/// One step towards the wanted synchronous standby; the order is `cluster::sync`'s.
pub async fn tend(hands: &Hands, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<bool> {
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
pub fn applied(hands: &Hands, facts: &ServerFacts) -> (BTreeSet<MemberName>, bool) {
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
