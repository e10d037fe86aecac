//! Which standbys the primary's commits wait for: one step at a time towards what the configuration wants.

use crate::node::recovery;
use crate::node::{Node, Synchronous};
use crate::postgres::conf::Recovery;
use crate::postgres::query::{Sender, ServerFacts};
use anyhow::{Context, Result};
use cluster::config::SynchronousMode;
use cluster::leader::Leader;
use cluster::lsn::Lsn;
use cluster::member::Tags;
use cluster::mixed;
use cluster::name::MemberName;
use cluster::quorum::{self, Applied, Goal, Rules, SenderSeen, Setting, StandbySeen, SyncStep, Trust};
use cluster::sync::SyncState;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::Dcs;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A setting may take this long until every process keeps it and the standbys have caught up; then the loop looks again.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(5);

/// Outside of strict mode a promotion waits this long for the checkpointer's word that commits will wait.
const PROMOTION_PATIENCE: Duration = Duration::from_millis(500);

/// How often the server is asked while a change of its own takes effect; a few milliseconds' work.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One step; the order is `cluster::quorum`'s. True if something was changed and another look is due.
pub async fn tend(node: &Node, view: &ClusterView, leader: &Leader, facts: &ServerFacts) -> Result<bool> {
    let rules = Rules::of(view.config());
    let key = view.sync.as_ref().map(|sync| sync.value.clone()).unwrap_or_default();
    let revision = ClusterView::revision_of(&view.sync);
    let Synchronous { setting, in_force_from } = applied(node, view, facts);
    if rules.mode == SynchronousMode::Off {
        if !key.is_empty() {
            node.etcd.write_sync(&SyncState { other: key.other, ..SyncState::default() }, revision, leader).await?;
            tracing::info!("synchronous_mode is off: nobody stands in the sync key any more");
            return Ok(true);
        }
        if setting.count > 0 {
            give_up_setting(node, view).await?;
        }
        return Ok(false);
    }
    let trust = Trust::of(&key);
    let mut seen = standbys(node, view, facts);
    mixed::of_one_kind(view, rules, &mut seen);
    let goal = rules.goal(&seen, &trust, &setting, &expected(node, view));
    if node.begins_without_standby(rules.strict && rules.choose(&seen, &setting).is_empty()) {
        // Watches match the first half, which is the field's.
        tracing::warn!(
            "No active replication connections from Patroni members and synchronous_mode_strict is requested: commits wait for '{}'; hint: bring a standby without the tag nosync to stream from here",
            goal.setting
        );
    }
    let outside = rules.domains > 0
        && rules.mode != SynchronousMode::Off
        && !seen.iter().any(|standby| standby.elsewhere && goal.setting.names.contains(&standby.name));
    if node.begins_without_domain(outside) {
        let then = if rules.strict { "commits wait for one" } else { "commits are confirmed in this one alone, if at all" };
        tracing::warn!(
            "no synchronous standby is in another failure domain, which synchronous_domains demands: {then}; hint: set the tag failure_domain on every member, this one's is {}",
            Tags(node.config.tags.clone()).failure_domain().unwrap_or_else(|| "not set".to_owned())
        );
    }
    let now = Applied { caught_up: in_force_from.map(|from| caught_up(facts, from)).unwrap_or_default(), setting };
    match quorum::step(&node.config.name, &key, &now, &goal) {
        SyncStep::Settled => Ok(false),
        SyncStep::WriteKey(state) => {
            let quorum = if state.quorum > 0 { format!(", quorum {}", state.quorum) } else { String::new() };
            tracing::info!("synchronous standby in etcd: {}{quorum}", state.sync_standby.as_deref().unwrap_or("none"));
            node.etcd.write_sync(&state, revision, leader).await?;
            Ok(true)
        }
        SyncStep::Apply(setting) => {
            tracing::info!("synchronous_standby_names becomes '{setting}'");
            apply_setting(node, view, setting).await?;
            Ok(true)
        }
        SyncStep::Confirm => confirm(node, &trust, &goal).await,
    }
}

/// What the server is set to; after a restart of the arbiter the server itself is asked.
pub fn applied(node: &Node, view: &ClusterView, facts: &ServerFacts) -> Synchronous {
    let known = node.synchronous();
    let users_own = view.config().synchronous_mode() == SynchronousMode::Off
        && known.setting.count == 0
        && view.sync.as_ref().is_none_or(|sync| sync.value.is_empty());
    if users_own || known.setting.to_string() == facts.synchronous_standby_names {
        return known;
    }
    node.note_synchronous(Setting::read(&facts.synchronous_standby_names).unwrap_or_default(), None);
    node.synchronous()
}

/// Standbys that the server began with and that are alive: they are on their way.
fn expected(node: &Node, view: &ClusterView) -> BTreeSet<MemberName> {
    let alive = |name: &MemberName| view.members.get(name).is_some_and(|entry| entry.member.is_running() && !entry.member.tags.nosync());
    node.expected_standbys(view.config().timing().ttl).into_iter().filter(alive).collect()
}

async fn apply_setting(node: &Node, view: &ClusterView, setting: Setting) -> Result<()> {
    let wanted = setting.to_string();
    node.note_synchronous(setting, None);
    node.write_configuration(view, &Recovery::None).await?;
    node.reload().await?;
    // The reload reaches our own session with its next statement, not before the postmaster has read the file.
    let effective = async {
        while node.sql.facts().await?.synchronous_standby_names != wanted {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok::<(), anyhow::Error>(())
    };
    tokio::time::timeout(CONFIRM_PATIENCE, effective).await.context("the server does not take the new synchronous_standby_names")?
}

/// The mode is off: what the user wrote into `synchronous_standby_names` stands, if anything.
async fn give_up_setting(node: &Node, view: &ClusterView) -> Result<()> {
    node.note_synchronous(Setting::nobody(), None);
    if node.write_configuration(view, &Recovery::None).await? {
        tracing::info!("synchronous_mode is off: synchronous_standby_names is left to the configuration");
        node.reload().await?;
    }
    Ok(())
}

/// Waits until the setting is kept by all, and until those that the goal trusts have everything from before that.
async fn confirm(node: &Node, trust: &Trust, goal: &Goal) -> Result<bool> {
    let Synchronous { setting, in_force_from } = node.synchronous();
    let deadline = Instant::now() + CONFIRM_PATIENCE;
    let from = match in_force_from {
        Some(from) => from,
        None => {
            let Some(from) = in_force(node, &setting, deadline).await? else {
                tracing::warn!(
                    "not every process of the server has applied synchronous_standby_names '{setting}' after {} s",
                    CONFIRM_PATIENCE.as_secs()
                );
                return Ok(false);
            };
            node.note_synchronous(setting, Some(from));
            from
        }
    };
    let enough = until(node, deadline, |facts| quorum::follows(trust, &goal.trust, &caught_up(facts, from))).await?;
    if !enough {
        tracing::warn!("the new synchronous standbys have not caught up to {from} within {} s", CONFIRM_PATIENCE.as_secs());
    }
    Ok(enough)
}

/// The position from which on no commit is acknowledged by an older setting; None where that can't be said yet.
///
/// Three kinds of process go by the setting, each with a copy of its own. Backends wait at all as the
/// checkpointer has told them in shared memory: that is asked. Walsenders let the waiting go, each by what
/// itself has read: where the list places the standby differently than before, `sync_priority` shows which
/// list that was. Where it does not, it is shown by what it sends: a walsender looks whether to read the
/// configuration again before each round of sending. The first record may still have gone out in the
/// round that was under way; the second is written after that was seen, so it goes out in a later one. That
/// the postmaster has told all of its children is known once a second reload is seen to have begun.
async fn in_force(node: &Node, setting: &Setting, deadline: Instant) -> Result<Option<Lsn>> {
    node.sql.reload_and_see().await?;
    while node.sql.ask("SELECT tenure_internal.standbys_awaited()").await? != (setting.count > 0) {
        if Instant::now() > deadline {
            return Ok(None);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let mut from = Lsn::default();
    for _ in 0..2 {
        from = marker(node).await?;
        if !until(node, deadline, |facts| quorum::kept_by(setting, &senders(&facts.replication), from)).await? {
            return Ok(None);
        }
    }
    Ok(Some(from))
}

/// A commit of our own that waits for nobody; gives a position after it that is on disk.
async fn marker(node: &Node) -> Result<Lsn> {
    let statements = "BEGIN; SET LOCAL tenure.minimum_synchronous_commit = local; SET LOCAL synchronous_commit = local; \
        SELECT pg_logical_emit_message(true, 'tenure', 'synchronous_standby_names'); COMMIT";
    node.sql.execute(statements).await.context("commit a marker under the new synchronous_standby_names")?;
    node.sql.facts().await?.flush_lsn.context("this server is no primary any more")
}

/// Looks until it is so (true) or the deadline has passed (false).
async fn until(node: &Node, deadline: Instant, so: impl Fn(&ServerFacts) -> bool) -> Result<bool> {
    loop {
        if so(&node.sql.facts().await?) {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Before a promotion: those that had everything before this leader may lead no more, as it is about to acknowledge what they lack;
/// and where nothing was ever recorded, nobody else may from here on. Gives the cluster as it is then.
pub async fn trust_nobody_else(node: &Node, view: ClusterView) -> Result<ClusterView> {
    let me = &node.config.name;
    let synchronous = view.config().synchronous_mode() != SynchronousMode::Off;
    let Some(own) = SyncState::before_promotion(view.sync.as_ref().map(|sync| &sync.value), me, synchronous) else { return Ok(view) };
    let leader = view.leader_if(me).context("this node leads no more")?;
    node.etcd.write_sync(&own, ClusterView::revision_of(&view.sync), leader).await?;
    Ok(node.etcd.load_view().await?)
}

/// Before a promotion in quorum mode or strict mode, and before one under this node's own key: the first commit is to
/// wait for a standby already. Gives what was set.
pub async fn before_promotion(node: &Node, view: &ClusterView) -> Result<Setting> {
    let rules = Rules::of(view.config());
    // In strict mode also one that is down: the commits of this primary wait until it is back, as they would under the placeholder.
    let may_confirm = |name: &MemberName| {
        let entry = view.members.get(name).map(|entry| &entry.member);
        *name != node.config.name && entry.is_some_and(|member| (rules.strict || member.is_running()) && !member.tags.nosync())
    };
    let own = view.sync.as_ref().map(|sync| Trust::own(&node.config.name, &sync.value)).unwrap_or_default();
    let tags = Tags(node.config.tags.clone());
    let elsewhere = |name: &MemberName| view.members.get(name).is_some_and(|entry| entry.member.tags.is_elsewhere_than(&tags));
    let members = view.members.keys().filter(|name| may_confirm(name)).map(|name| (name.clone(), elsewhere(name))).collect();
    let setting = rules.at_promotion(rules.within_domains(members).into_iter().collect(), &own);
    if setting.count == 0 {
        return Ok(setting);
    }
    // It follows nobody from here on: it was elected, or it was handed the key.
    let recovery = recovery::of(&node.config, &node.dynamic(view), view, &Upstream::Nobody);
    node.write_configuration_with(view, &recovery, &setting).await?;
    node.reload().await?;
    // Somebody is promised that commits wait: not one may pass before they do.
    let must = rules.strict || !own.voters.is_empty();
    let patience = if must { CONFIRM_PATIENCE } else { PROMOTION_PATIENCE };
    let deadline = Instant::now() + patience;
    while !node.sql.ask("SELECT tenure_internal.standbys_awaited()").await? {
        if Instant::now() > deadline {
            anyhow::ensure!(!must, "the server does not take synchronous_standby_names '{setting}'");
            tracing::warn!("the checkpointer is busy: the first commits may not wait for a standby");
            break;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(setting)
}

/// Those that have flushed what lies before this position, and stream.
fn caught_up(facts: &ServerFacts, from: Lsn) -> BTreeSet<MemberName> {
    let streams = |sender: &&Sender| {
        let standby = sender.state.as_deref() == Some("streaming") && sender.replay_lsn.is_some();
        standby && sender.flush_lsn.is_some_and(|lsn| lsn >= from)
    };
    facts.replication.iter().filter(streams).filter_map(|sender| MemberName::new(&sender.application_name).ok()).collect()
}

fn senders(replication: &[Sender]) -> Vec<SenderSeen<'_>> {
    let seen = replication.iter().map(|sender| SenderSeen {
        application_name: &sender.application_name,
        priority: sender.sync_priority.unwrap_or(0),
        sent: sender.sent_lsn.unwrap_or_default(),
    });
    seen.collect()
}

fn standbys(node: &Node, view: &ClusterView, facts: &ServerFacts) -> Vec<StandbySeen> {
    let own = Tags(node.config.tags.clone());
    let flushed = facts.flush_lsn.unwrap_or_default();
    let seen = facts.replication.iter().filter_map(|sender| {
        let name = MemberName::new(&sender.application_name).ok()?;
        let tags = &view.members.get(&name)?.member.tags;
        // As far as commits wait for it.
        let reached = match facts.synchronous_commit.as_str() {
            "remote_apply" => sender.replay_lsn,
            "remote_write" => sender.write_lsn,
            _ => sender.flush_lsn,
        };
        Some(StandbySeen {
            streaming: sender.state.as_deref() == Some("streaming"),
            replays: sender.replay_lsn.is_some(),
            eligible: !tags.nosync(),
            nofailover: tags.nofailover(),
            elsewhere: tags.is_elsewhere_than(&own),
            priority: tags.sync_priority(),
            lag_bytes: reached.map_or(u64::MAX, |lsn| lsn.lag_bytes_behind(flushed)),
            name,
        })
    });
    seen.collect()
}
