//! Which standbys the primary's commits wait for: one step at a time towards what the configuration wants.

use crate::host::{Host, within};
use crate::server::{Facts, Server};
pub use crate::standbys::{Standbys, Synchronous};
use anyhow::{Context, Result};
use cluster::config::SynchronousMode;
use cluster::leader::Leader;
use cluster::lsn::Lsn;
use cluster::mixed;
use cluster::name::MemberName;
use cluster::quorum::{self, Applied, Goal, Rules, SenderSeen, Setting, StandbySeen, SyncStep, Trust};
use cluster::sync::SyncState;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::LocalDcs;
use std::collections::BTreeSet;
use std::time::Duration;

/// A setting may take this long until every process keeps it and the standbys have caught up; then the loop looks again.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(5);

/// Outside of strict mode a promotion waits this long for the checkpointer's word that commits will wait.
const PROMOTION_PATIENCE: Duration = Duration::from_millis(500);

/// How often the server is asked while a change of its own takes effect; a few milliseconds' work.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// One step; the order is `cluster::quorum`'s. True if something was changed and another look is due.
pub async fn keep_up<S: Server>(server: &S, view: &ClusterView, leader: &Leader, facts: &Facts) -> Result<bool> {
    let rules = Rules::of(view.config());
    let key = view.sync.as_ref().map(|sync| sync.value.clone()).unwrap_or_default();
    let revision = ClusterView::revision_of(&view.sync);
    let Synchronous { setting, in_force_from } = applied(server, view, facts);
    if rules.mode == SynchronousMode::Off {
        if !key.is_empty() {
            server.store().write_sync(&SyncState { other: key.other, ..SyncState::default() }, revision, leader).await?;
            server.info(format_args!("synchronous_mode is off: nobody stands in the sync key any more"));
            return Ok(true);
        }
        if setting.count > 0 {
            give_up_setting(server, view).await?;
        }
        return Ok(false);
    }
    let trust = Trust::of(&key);
    let mut seen = standbys(server, view, facts);
    mixed::of_one_kind(view, rules, &mut seen);
    let goal = rules.goal(&seen, &trust, &setting, &expected(server, view));
    if server.standbys().begins_without_standby(rules.strict && rules.choose(&seen, &setting).is_empty()) {
        // Watches match the first half, which is the field's.
        server.warn(format_args!(
            "No active replication connections from Patroni members and synchronous_mode_strict is requested: commits wait for '{}'; hint: bring a standby without the tag nosync to stream from here",
            goal.setting
        ));
    }
    let outside = rules.domains > 0
        && rules.mode != SynchronousMode::Off
        && !seen.iter().any(|standby| standby.elsewhere && goal.setting.names.contains(&standby.name));
    if server.standbys().begins_without_domain(outside) {
        let then = if rules.strict { "commits wait for one" } else { "commits are confirmed in this one alone, if at all" };
        server.warn(format_args!(
            "no synchronous standby is in another failure domain, which synchronous_domains demands: {then}; hint: set the tag failure_domain on every member, this one's is {}",
            server.tags().failure_domain().unwrap_or_else(|| "not set".to_owned())
        ));
    }
    let now = Applied { caught_up: in_force_from.map(|from| caught_up(facts, from)).unwrap_or_default(), setting };
    match quorum::step(server.name(), &key, &now, &goal) {
        SyncStep::Settled => Ok(false),
        SyncStep::WriteKey(state) => {
            let quorum = if state.quorum > 0 { format!(", quorum {}", state.quorum) } else { String::new() };
            server.info(format_args!("synchronous standby in etcd: {}{quorum}", state.sync_standby.as_deref().unwrap_or("none")));
            server.store().write_sync(&state, revision, leader).await?;
            Ok(true)
        }
        SyncStep::Apply(setting) => {
            server.info(format_args!("synchronous_standby_names becomes '{setting}'"));
            apply_setting(server, view, setting).await?;
            Ok(true)
        }
        SyncStep::Confirm => confirm(server, &trust, &goal).await,
    }
}

/// What the server is set to; after a restart of the arbiter the server itself is asked.
pub fn applied<S: Server>(server: &S, view: &ClusterView, facts: &Facts) -> Synchronous {
    let known = server.standbys().now();
    let users_own = view.config().synchronous_mode() == SynchronousMode::Off
        && known.setting.count == 0
        && view.sync.as_ref().is_none_or(|sync| sync.value.is_empty());
    if users_own || known.setting.to_string() == facts.synchronous_standby_names {
        return known;
    }
    server.standbys().note(Setting::read(&facts.synchronous_standby_names).unwrap_or_default(), None);
    server.standbys().now()
}

/// Standbys that the server began with and that are alive: they are on their way.
fn expected<S: Server>(server: &S, view: &ClusterView) -> BTreeSet<MemberName> {
    let alive = |name: &MemberName| view.members.get(name).is_some_and(|entry| entry.member.is_running() && !entry.member.tags.nosync());
    server.standbys().expected(server.clock(), view.config().timing().ttl).into_iter().filter(alive).collect()
}

async fn apply_setting<S: Server>(server: &S, view: &ClusterView, setting: Setting) -> Result<()> {
    let wanted = setting.to_string();
    server.standbys().note(setting, None);
    server.configure_primary(view).await?;
    server.reload().await?;
    // The reload reaches our own session with its next statement, not before the postmaster has read the file.
    let effective = async {
        while server.facts().await?.synchronous_standby_names != wanted {
            server.sleep(LOOK_EVERY).await;
        }
        Ok::<(), anyhow::Error>(())
    };
    within(server, CONFIRM_PATIENCE, effective).await.context("the server does not take the new synchronous_standby_names")?
}

/// The mode is off: what the user wrote into `synchronous_standby_names` stands, if anything.
async fn give_up_setting<S: Server>(server: &S, view: &ClusterView) -> Result<()> {
    server.standbys().note(Setting::nobody(), None);
    if server.configure_primary(view).await? {
        server.info(format_args!("synchronous_mode is off: synchronous_standby_names is left to the configuration"));
        server.reload().await?;
    }
    Ok(())
}

/// Waits until the setting is kept by all, and until those that the goal trusts have everything from before that.
async fn confirm<S: Server>(server: &S, trust: &Trust, goal: &Goal) -> Result<bool> {
    let Synchronous { setting, in_force_from } = server.standbys().now();
    let deadline = server.clock() + CONFIRM_PATIENCE;
    let from = match in_force_from {
        Some(from) => from,
        None => {
            let Some(from) = in_force(server, &setting, deadline).await? else {
                server.warn(format_args!(
                    "not every process of the server has applied synchronous_standby_names '{setting}' after {} s",
                    CONFIRM_PATIENCE.as_secs()
                ));
                return Ok(false);
            };
            server.standbys().note(setting, Some(from));
            from
        }
    };
    let enough = until(server, deadline, |facts| quorum::follows(trust, &goal.trust, &caught_up(facts, from))).await?;
    if !enough {
        server.warn(format_args!("the new synchronous standbys have not caught up to {from} within {} s", CONFIRM_PATIENCE.as_secs()));
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
async fn in_force<S: Server>(server: &S, setting: &Setting, deadline: Moment) -> Result<Option<Lsn>> {
    server.reload_and_see().await?;
    while server.standbys_awaited().await? != (setting.count > 0) {
        if server.clock() > deadline {
            return Ok(None);
        }
        server.sleep(LOOK_EVERY).await;
    }
    let mut from = Lsn::default();
    for _ in 0..2 {
        from = marker(server).await?;
        if !until(server, deadline, |facts| quorum::kept_by(setting, &senders(facts), from)).await? {
            return Ok(None);
        }
    }
    Ok(Some(from))
}

/// A commit of our own that waits for nobody; gives a position after it that is on disk.
async fn marker<S: Server>(server: &S) -> Result<Lsn> {
    server.commit_marker().await.context("commit a marker under the new synchronous_standby_names")?;
    server.facts().await?.flushed.context("this server is no primary any more")
}

/// Looks until it is so (true) or the deadline has passed (false).
async fn until<S: Server>(server: &S, deadline: Moment, so: impl Fn(&Facts) -> bool) -> Result<bool> {
    loop {
        if so(&server.facts().await?) {
            return Ok(true);
        }
        if server.clock() > deadline {
            return Ok(false);
        }
        server.sleep(LOOK_EVERY).await;
    }
}

/// Before a promotion: those that had everything before this leader may lead no more, as it is about to acknowledge what they lack;
/// and where nothing was ever recorded, nobody else may from here on. Gives the cluster as it is then.
pub async fn trust_nobody_else(host: &impl Host, view: ClusterView) -> Result<ClusterView> {
    let me = host.name();
    let synchronous = view.config().synchronous_mode() != SynchronousMode::Off;
    let Some(own) = SyncState::before_promotion(view.sync.as_ref().map(|sync| &sync.value), me, synchronous) else { return Ok(view) };
    let leader = view.leader_if(me).context("this node leads no more")?;
    host.store().write_sync(&own, ClusterView::revision_of(&view.sync), leader).await?;
    Ok(host.store().load_view().await?)
}

/// Before a promotion in quorum mode or strict mode, and before one under this node's own key: the first commit is to
/// wait for a standby already. Gives what was set.
pub async fn before_promotion<S: Server>(server: &S, view: &ClusterView) -> Result<Setting> {
    let rules = Rules::of(view.config());
    // In strict mode also one that is down: the commits of this primary wait until it is back, as they would under the placeholder.
    let may_confirm = |name: &MemberName| {
        let entry = view.members.get(name).map(|entry| &entry.member);
        name != server.name() && entry.is_some_and(|member| (rules.strict || member.is_running()) && !member.tags.nosync())
    };
    let own = view.sync.as_ref().map(|sync| Trust::own(server.name(), &sync.value)).unwrap_or_default();
    let tags = server.tags();
    let elsewhere = |name: &MemberName| view.members.get(name).is_some_and(|entry| entry.member.tags.is_elsewhere_than(&tags));
    let members = view.members.keys().filter(|name| may_confirm(name)).map(|name| (name.clone(), elsewhere(name))).collect();
    let setting = rules.at_promotion(rules.within_domains(members).into_iter().collect(), &own);
    if setting.count == 0 {
        return Ok(setting);
    }
    // It follows nobody from here on: it was elected, or it was handed the key.
    server.configure_for_promotion(view, &setting).await?;
    server.reload().await?;
    // Somebody is promised that commits wait: not one may pass before they do.
    let must = rules.strict || !own.voters.is_empty();
    let patience = if must { CONFIRM_PATIENCE } else { PROMOTION_PATIENCE };
    let deadline = server.clock() + patience;
    while !server.standbys_awaited().await? {
        if server.clock() > deadline {
            anyhow::ensure!(!must, "the server does not take synchronous_standby_names '{setting}'");
            server.warn(format_args!("the checkpointer is busy: the first commits may not wait for a standby"));
            break;
        }
        server.sleep(LOOK_EVERY).await;
    }
    Ok(setting)
}

/// Those that have flushed what lies before this position, and stream.
fn caught_up(facts: &Facts, from: Lsn) -> BTreeSet<MemberName> {
    let has = facts.senders.iter().filter(|sender| sender.is_standby() && sender.flushed.is_some_and(|lsn| lsn >= from));
    has.filter_map(|sender| MemberName::new(&sender.application_name).ok()).collect()
}

fn senders(facts: &Facts) -> Vec<SenderSeen<'_>> {
    let seen = facts.senders.iter().map(|sender| SenderSeen {
        application_name: &sender.application_name,
        priority: sender.priority,
        sent: sender.sent.unwrap_or_default(),
    });
    seen.collect()
}

fn standbys<S: Server>(server: &S, view: &ClusterView, facts: &Facts) -> Vec<StandbySeen> {
    let own = server.tags();
    let flushed = facts.flushed.unwrap_or_default();
    let seen = facts.senders.iter().filter_map(|sender| {
        let name = MemberName::new(&sender.application_name).ok()?;
        let tags = &view.members.get(&name)?.member.tags;
        // As far as commits wait for it.
        let reached = match facts.synchronous_commit.as_str() {
            "remote_apply" => sender.replayed,
            "remote_write" => sender.written,
            _ => sender.flushed,
        };
        Some(StandbySeen {
            streaming: sender.streaming,
            replays: sender.replayed.is_some(),
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
