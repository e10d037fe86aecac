//! The store that forgot: what members remember of etcd's keys, and whether what etcd says now can be the truth.
//!
//! Everything here rests on etcd's keys only ever going forward. An etcd that was restored from an older backup, or emptied,
//! breaks that without a word: its old leader key would depose the leader, its old `sync` key would trust members that lack commits.
//! So a node that looks remembers what it saw, and what can't follow on that is unknown, as if etcd gave no answer.
//! Which making of the keys is meant says [`Making`]: keys that are made again have a greater generation, and only that
//! makes members forget.

pub use crate::memory::{Making, Memory, Upgraded};

use crate::config::DynamicConfig;
use crate::leader::{Leader, Term};
use crate::member::{MemberEntry, MemberRole};
use crate::name::{MemberName, SystemId, Timeline};
use crate::sync::SyncState;
use crate::view::{ClusterView, Initialize, Versioned};
use std::collections::BTreeSet;

/// Has the cluster whose keys this memory is of gone to a new major version since, as this view says? One making after the other:
/// what happened in between is not known, and is for an operator.
fn has_gone_on(memory: &Memory, view: &ClusterView) -> bool {
    let made = view.store.as_ref().map(|store| &store.value);
    let old = made.and_then(|made| made.upgraded.as_ref()).map(|upgraded| &upgraded.old);
    old.is_some() && old == memory.system_id.as_ref() && made.is_some_and(|made| made.generation > memory.making.generation)
}

/// Why a view is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Doubt {
    /// Not one key tells of the cluster.
    #[error("etcd has lost the keys of this cluster, which was led by {0} in term {1}")]
    Emptied(String, Term),
    /// Keys of an earlier making, or of another one.
    #[error("etcd went back: its keys are of making number {found}, and this node knows of number {known}")]
    Generation {
        /// As remembered.
        known: u32,
        /// In the view.
        found: u32,
    },
    /// The same generation, made by somebody else.
    #[error("etcd has keys of this cluster that were made by another node beside the members that know it")]
    AnotherMaking,
    /// Made again for other data.
    #[error("etcd has the keys of the database system {found}, this cluster is {known}")]
    AnotherSystem {
        /// As remembered.
        known: SystemId,
        /// In the view.
        found: SystemId,
    },
    /// Another etcd answers.
    #[error("another etcd answers (cluster id {found:x}; this node knows {known:x})")]
    AnotherEtcd {
        /// As remembered.
        known: u64,
        /// In the view.
        found: u64,
    },
    /// The revision is smaller than one that was seen.
    #[error("etcd went back to revision {found}; this node knows of {known}")]
    Revision {
        /// As remembered.
        known: i64,
        /// In the view.
        found: i64,
    },
    /// The last term is smaller than one that was seen.
    #[error("etcd went back to term {found}; this node knows of {known}")]
    Term {
        /// As remembered.
        known: Term,
        /// In the view.
        found: Term,
    },
    /// `sync` or `config` is older than one that was seen.
    #[error("etcd went back to the {what} key of revision {found}; this node knows of {known}")]
    Key {
        /// Which of the two.
        what: &'static str,
        /// As remembered.
        known: i64,
        /// In the view.
        found: i64,
    },
}

/// Can this view be the truth for a node that remembers this? `memory` is as it was before etcd was asked: of two questions under way
/// at once the older may be answered last.
///
/// Compared are the keys that decisions rest on, each with its revision, and the revision as a whole. A backup that is behind by nothing of the
/// former is believed again as soon as etcd's revision has passed the one that was known.
pub fn judge(memory: &Memory, view: &ClusterView) -> Result<(), Doubt> {
    let Some(known) = &memory.system_id else { return Ok(()) };
    let made = view.store.as_ref().map(|store| store.value.clone()).unwrap_or_default();
    if view.store.is_none() && view.leader.is_none() && view.last_term.is_none() && view.system_id().is_none() {
        let holder = memory.holder.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string);
        return Err(Doubt::Emptied(holder, memory.term));
    }
    let another = view.system_id().filter(|found| *found != known && !has_gone_on(memory, view));
    if made.generation > memory.making.generation {
        return another.map_or(Ok(()), |found| Err(Doubt::AnotherSystem { known: known.clone(), found: found.clone() }));
    }
    if made.generation < memory.making.generation {
        return Err(Doubt::Generation { known: memory.making.generation, found: made.generation });
    }
    if made.by != memory.making.by {
        return Err(Doubt::AnotherMaking);
    }
    judge_answer(memory, view.etcd, view.revision)?;
    let term = view.last_term();
    if term < memory.term {
        return Err(Doubt::Term { known: memory.term, found: term });
    }
    let keys = [
        ("sync", ClusterView::revision_of(&memory.sync), ClusterView::revision_of(&view.sync)),
        ("config", ClusterView::revision_of(&memory.config), ClusterView::revision_of(&view.config)),
    ];
    for (what, known, found) in keys {
        // One that is missing was deleted by hand: a sync key trusts nobody wrongly then, and config is put back.
        if found != 0 && found < known {
            return Err(Doubt::Key { what, known, found });
        }
    }
    Ok(())
}

/// The part of [`judge`] that needs no keys: can an answer of this cluster of etcd (0: it does not say) at this revision be of the etcd that is remembered?
///
/// The answer has to be a linearizable one, and `memory` as it was before it was asked for. Where the keys were made again since, this doubts what
/// is true until a view was read, and nothing is lost by that: a caller looks at a view then.
pub fn judge_answer(memory: &Memory, etcd: u64, revision: i64) -> Result<(), Doubt> {
    if memory.system_id.is_none() {
        return Ok(());
    }
    if memory.etcd != 0 && etcd != 0 && etcd != memory.etcd {
        return Err(Doubt::AnotherEtcd { known: memory.etcd, found: etcd });
    }
    if revision < memory.revision {
        return Err(Doubt::Revision { known: memory.revision, found: revision });
    }
    Ok(())
}

/// Puts into a view that is believed what is spoiled in it: `config` and `initialize` that can't be read or were deleted. Nothing is ever
/// weakened by a key that is lost.
pub fn complete(memory: &Memory, view: &mut ClusterView) {
    let Some(known) = &memory.system_id else { return };
    if view.config.is_none()
        && let Some(config) = &memory.config
    {
        view.config = Some(Versioned { value: config.value.clone(), revision: view.spoiled_config });
        view.kept.config = true;
    }
    let founding = matches!(view.initialize.as_ref().map(|key| &key.value), Some(Initialize::Running));
    if view.system_id() != Some(known) && !has_gone_on(memory, view) && !(founding && view.store_generation() > memory.making.generation) {
        let revision = ClusterView::revision_of(&view.initialize);
        view.initialize = Some(Versioned { value: Initialize::Done(known.clone()), revision });
        view.kept.initialize = true;
    }
}

/// Takes note of a view that is believed. True where more than the revision changed: then it is to be written down.
pub fn learn(memory: &mut Memory, view: &ClusterView) -> bool {
    let Some(system_id) = view.system_id() else { return false };
    let before = memory.clone();
    let made = view.store.as_ref().map(|store| store.value.clone()).unwrap_or_default();
    if memory.system_id.is_some() && made.generation < memory.making.generation {
        return false; // asked for before the keys were made again
    }
    if made != memory.making || memory.system_id.as_ref() != Some(system_id) {
        // Revisions of another making say nothing in this one.
        let config = memory.config.take().map(|config| Versioned { revision: 0, ..config });
        *memory = Memory { config, attempted: memory.attempted, ..Memory::default() };
        memory.making = made;
    }
    memory.system_id = Some(system_id.clone());
    memory.etcd = if view.etcd == 0 { memory.etcd } else { view.etcd };
    memory.revision = memory.revision.max(view.revision);
    if view.last_term() >= memory.term
        && let Some(last) = &view.last_term
    {
        memory.term = view.last_term();
        memory.holder = Some(last.value.holder.clone());
    }
    let of_leader = view.leader.as_ref().and_then(|leader| view.members.get(&leader.name)?.member.timeline);
    let claimed = view.claimed_timeline.as_ref().map(|claimed| claimed.value);
    let seen = [Some(memory.timeline), Some(view.history().current()), of_leader, claimed];
    memory.timeline = seen.into_iter().flatten().max().unwrap_or_default();
    if let Some(sync) = view.sync.as_ref().filter(|sync| memory.sync.as_ref().is_none_or(|known| known.revision <= sync.revision)) {
        memory.sync = Some(sync.clone());
    }
    if let Some(config) = view.config.as_ref().filter(|_| !view.kept.config) {
        memory.config = Some(config.clone());
    }
    memory.members.extend(view.members.iter().filter(|(_, entry)| entry.is_kept() && has_data(entry)).map(|(name, _)| name.clone()));
    Memory { revision: memory.revision, ..before } != *memory
}

/// Takes over what another member says that it knows, where that is more. True where it was.
///
/// A member that was away does not know what it missed, and a backup from before that looks to it like the truth. A member that was there doubts it
/// and says so in its member key, with all that it remembers: that is as good as having seen it, and it stays known when that member is gone.
pub fn hear(memory: &mut Memory, view: &ClusterView) -> bool {
    // What was said of keys that were made again since is over.
    let of_today = |theirs: &&Memory| theirs.making.generation >= view.store_generation();
    let ours = |theirs: &&Memory| match &memory.system_id {
        Some(known) => theirs.system_id.as_ref() == Some(known),
        None => theirs.system_id.is_some() && theirs.system_id.as_ref() == view.system_id(),
    };
    let words = view.members.values().filter_map(published).filter(of_today).filter(ours);
    let Some(newest) = words.max_by_key(|theirs| newness(theirs)).filter(|theirs| newness(theirs) > newness(memory)) else { return false };
    let mut heard = newest.clone();
    heard.members.extend(std::mem::take(&mut memory.members));
    // How another node reaches etcd, and what it began, is not this node's.
    (heard.etcd, heard.attempted) = (memory.etcd, memory.attempted);
    *memory = heard;
    true
}

/// Does this member have data, as its key says?
pub fn has_data(entry: &MemberEntry) -> bool {
    // An arbiter says "replica" of an empty directory, too.
    let serves = entry.member.is_running() && entry.member.role != MemberRole::Uninitialized;
    published(entry).is_some() || entry.member.timeline.is_some() || serves
}

/// The memory that a member published because it doubts what etcd says.
pub fn published(entry: &MemberEntry) -> Option<&Memory> {
    entry.member.tenure.as_ref()?.memory.as_deref()
}

/// The order of memories: the greatest knows the most.
fn newness(memory: &Memory) -> (u32, Term, Timeline, i64) {
    (memory.making.generation, memory.term, memory.timeline, memory.revision)
}

/// Why this node does not found the cluster.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoFounding {
    /// It is empty, and others are not.
    #[error("{0} has data of the cluster and this node has none: nothing is founded beside it")]
    OthersHaveData(String),
    /// Another member led later, or at the same time knows of a later term.
    #[error("{0} knows of a later leader than this node")]
    KnowsMore(MemberName),
    /// It did not lead last.
    #[error("etcd has lost the keys of this cluster: {0} led last and is to make them again")]
    AnotherLedLast(String),
    /// Members that are remembered have not said what they know.
    #[error("etcd has lost the keys of this cluster, and {0} may have led since: waiting for its word")]
    Unheard(String),
}

/// May this node found the cluster in the empty store that `view` shows?
///
/// Where the cluster was there before, only the last leader may: it knows of no later term, and either its own lease can't have run out
/// in this same etcd yet (`lease_runs`), so that nobody could take the key from it; or every member that was ever seen says that it
/// knows of no later one. Anything else is for an operator to say (`tenure rebuild-keys`).
pub fn may_found(view: &ClusterView, me: &MemberName, memory: Option<&Memory>, data: bool, lease_runs: bool) -> Result<(), NoFounding> {
    let others = || view.members.iter().filter(|(name, _)| *name != me);
    let Some(memory) = memory.filter(|memory| memory.system_id.is_some()).filter(|_| data) else {
        let with_data: Vec<&str> =
            others().filter(|(_, entry)| published(entry).is_some() || !data && has_data(entry)).map(|(name, _)| name.as_str()).collect();
        return if with_data.is_empty() { Ok(()) } else { Err(NoFounding::OthersHaveData(with_data.join(", "))) };
    };
    let key = |memory: &Memory| (memory.making.generation, memory.term);
    let more = others().find(|(_, entry)| published(entry).is_some_and(|theirs| key(theirs) > key(memory)));
    if let Some((name, _)) = more {
        return Err(NoFounding::KnowsMore(name.clone()));
    }
    if memory.holder.as_ref() != Some(me) {
        return Err(NoFounding::AnotherLedLast(memory.holder.as_ref().map_or_else(|| "nobody".to_owned(), ToString::to_string)));
    }
    if lease_runs && view.etcd != 0 && view.etcd == memory.etcd {
        return Ok(());
    }
    let heard = |name: &&MemberName| view.members.get(*name).is_some_and(|entry| published(entry).is_some());
    let unheard: Vec<&str> = memory.members.iter().filter(|name| *name != me && !heard(name)).map(MemberName::as_str).collect();
    if unheard.is_empty() { Ok(()) } else { Err(NoFounding::Unheard(unheard.join(", "))) }
}

/// The keys as they are to be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rebuild {
    /// The leader.
    pub leader: MemberName,
    /// The lease of its member key, which the leader key is to hang on.
    pub entry: MemberEntry,
    /// The generation of the new keys.
    pub generation: u32,
    /// The cluster's identity.
    pub system_id: SystemId,
    /// `config`, as last known.
    pub config: Option<DynamicConfig>,
    /// `sync`.
    pub sync: SyncState,
    /// The greatest timeline that anybody knows of.
    pub timeline: Timeline,
    /// The leader key that is to be replaced, where one stands.
    pub replaces: Option<Leader>,
    /// Members that are remembered and did not say what they know.
    pub unheard: Vec<String>,
    /// What may be lost by this choice of a leader.
    pub risk: Option<String>,
}

/// Why the keys are not made again.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoRebuild {
    /// There is nothing to mend.
    #[error("no member doubts what etcd says: there is nothing to be made again")]
    NobodyDoubts,
    /// The last leader has not spoken.
    #[error("{holder} led last, and it does not say what it knows ({members} do)")]
    HolderSilent {
        /// The last leader.
        holder: String,
        /// The member that spoke.
        members: String,
    },
    /// The member named has nothing to lead with.
    #[error("{0} is not a member that has data of this cluster and says what it knows")]
    NotAMember(MemberName),
}

/// What the keys are to be, from what the members know; led by `leader`, or by the last leader.
pub fn rebuild(view: &ClusterView, leader: Option<&MemberName>) -> Result<Rebuild, NoRebuild> {
    let words: Vec<(&MemberName, &MemberEntry, &Memory)> =
        view.members.iter().filter_map(|(name, entry)| Some((name, entry, published(entry)?))).collect();
    let Some((_, _, newest)) = words.iter().max_by_key(|(_, _, memory)| newness(memory)) else { return Err(NoRebuild::NobodyDoubts) };
    let holder = newest.holder.as_ref();
    let Some(name) = leader.or(holder) else { return Err(NoRebuild::NobodyDoubts) };
    let Some((name, entry, memory)) = words.iter().find(|(member, ..)| *member == name) else {
        if let Some(named) = leader {
            return Err(NoRebuild::NotAMember(named.clone()));
        }
        let members: Vec<&str> = words.iter().map(|(name, ..)| name.as_str()).collect();
        return Err(NoRebuild::HolderSilent { holder: name.to_string(), members: members.join(", ") });
    };
    let Some(system_id) = newest.system_id.clone() else { return Err(NoRebuild::NobodyDoubts) };
    let sync = newest.sync.as_ref().map(|sync| sync.value.clone()).unwrap_or_default();
    let leads_on = holder == Some(*name) && entry.member.role == MemberRole::Primary;
    // Its server is down: how far it is cannot be compared, and what it acknowledged as the last leader it has.
    let led_last =
        holder == Some(*name) && (entry.member.timeline.is_none() || sync.leader.as_deref() == Some(name.as_str()) && !sync.until_promoted);
    let trusted = sync.is_empty() || sync.may_lead(name);
    let mine = entry.member.position();
    let further = words.iter().find(|(_, other, theirs)| {
        (other.member.timeline, other.member.position()) > (entry.member.timeline, mine) && theirs.term >= memory.term
    });
    let risk = if leads_on || led_last {
        None
    } else if !trusted {
        Some(format!("{name} is not in the sync key as last known: it may lack acknowledged commits"))
    } else if let Some((other, ..)) = further.filter(|(other, ..)| other != name) {
        Some(format!("{other} has more WAL than {name}"))
    } else if sync.is_empty() && holder != Some(*name) {
        Some(format!(
            "{} led last: {name} may lack what it acknowledged",
            newest.holder.as_ref().map_or("somebody else", MemberName::as_str)
        ))
    } else {
        None
    };
    let generations = words.iter().map(|(_, _, memory)| memory.next_generation()).chain([view.store_generation().saturating_add(1)]);
    let unheard = newest.members.iter().filter(|name| !words.iter().any(|(member, ..)| member == name)).map(ToString::to_string).collect();
    let timelines = words.iter().flat_map(|(_, entry, memory)| [entry.member.timeline.unwrap_or_default(), memory.timeline]);
    let keeps_sync = leads_on && sync.leader.as_deref() == Some(name.as_str());
    Ok(Rebuild {
        leader: (*name).clone(),
        entry: (*entry).clone(),
        generation: generations.max().unwrap_or_default(),
        system_id,
        config: newest.config.as_ref().map(|config| config.value.clone()),
        // A leader that goes on still awaits those that the key names. A server that is promoted awaits nobody yet.
        sync: match (sync.is_empty(), keeps_sync) {
            (true, _) | (_, true) => sync,
            _ => SyncState::of(name, &BTreeSet::default()),
        },
        timeline: timelines.max().unwrap_or_default(),
        replaces: view.leader.clone(),
        unheard,
        risk,
    })
}
