//! Slots: which replication slots a node keeps, how far it moves them, which it drops, and when a copy of a logical slot may be offered.
//!
//! The leader publishes the positions of its slots in `status`; the others keep slots of the same names at these positions, so
//! that whoever takes over has the WAL that members and consumers still need.

mod logical;
mod publication;

pub use logical::{Copied, Doubt, doubt, doubtful, remembered};
pub use publication::{LogicalSlot, Publication, Retention, SlotFacts, holding_back, lost, of_members, publication, said, warning_bytes};

use crate::config::DynamicConfig;
use crate::lsn::Lsn;
use crate::member::{Member, MemberEntry, MemberState, Tags};
use crate::name::{MemberName, Timeline};
use crate::view::ClusterView;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// From this `server_version_num` on PostgreSQL keeps logical slots on standbys by itself (slots with `failover`).
pub const NATIVE_SYNC: u32 = 170_000;
/// From this `server_version_num` on logical slots may be in use on a standby.
const LOGICAL_ON_STANDBY: u32 = 160_000;

/// A transaction id; they wrap around.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Xid(pub u32);

impl Xid {
    /// True where `self` is `other` or older.
    pub fn at_or_before(self, other: Xid) -> bool {
        self.0.wrapping_sub(other.0).cast_signed() <= 0
    }
}

/// One row of `pg_replication_slots`, as `to_json` prints it; columns that a version lacks are absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
pub struct SlotSeen {
    /// Its name.
    pub slot_name: String,
    /// `physical` or `logical`.
    pub slot_type: String,
    /// Output plugin of a logical slot.
    #[serde(default)]
    pub plugin: Option<String>,
    /// Database of a logical slot.
    #[serde(default)]
    pub database: Option<String>,
    /// The same by number, which physical standbys share.
    #[serde(default, deserialize_with = "number")]
    pub datoid: Option<u32>,
    /// It ends with its session.
    #[serde(default)]
    pub temporary: bool,
    /// Somebody uses it at this moment.
    #[serde(default)]
    pub active: bool,
    /// The oldest transaction whose rows it keeps.
    #[serde(default, deserialize_with = "xid")]
    pub xmin: Option<Xid>,
    /// The oldest transaction whose catalog rows it keeps.
    #[serde(default, deserialize_with = "xid")]
    pub catalog_xmin: Option<Xid>,
    /// The oldest WAL it keeps.
    #[serde(default, deserialize_with = "lsn")]
    pub restart_lsn: Option<Lsn>,
    /// What a logical slot's consumer has confirmed.
    #[serde(default, deserialize_with = "lsn")]
    pub confirmed_flush_lsn: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    #[serde(default)]
    pub wal_status: Option<String>,
    /// It decodes prepared transactions.
    #[serde(default)]
    pub two_phase: bool,
    /// PostgreSQL 17: to be kept on standbys by the server itself.
    #[serde(default)]
    pub failover: bool,
    /// PostgreSQL 17: it was made by the server's own synchronisation.
    #[serde(default)]
    pub synced: bool,
}

fn number<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    Ok(match Value::deserialize(from)? {
        Value::Number(number) => number.as_u64().and_then(|number| u32::try_from(number).ok()),
        Value::String(text) => text.parse().ok(),
        _ => None,
    })
}

fn xid<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Xid>, D::Error> {
    Ok(number(from)?.map(Xid))
}

fn lsn<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Lsn>, D::Error> {
    Ok(Option::<String>::deserialize(from)?.and_then(|text| text.parse().ok()))
}

impl SlotSeen {
    /// A physical slot.
    pub fn is_physical(&self) -> bool {
        self.slot_type == "physical"
    }
    /// Its WAL is gone: it can't be used any more.
    pub fn is_lost(&self) -> bool {
        self.wal_status.as_deref() == Some("lost")
    }
}

/// What a slot is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A stream of WAL.
    Physical,
    /// A stream of decoded changes.
    Logical {
        /// Of this database.
        database: String,
        /// By this output plugin.
        plugin: String,
    },
}

/// A library that is installed with the server, by its name: what has a path in it could be anybody's file.
pub fn is_plugin(plugin: &str) -> bool {
    !plugin.is_empty() && plugin.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'))
}

/// The permanent slots of the dynamic configuration (`slots`, `permanent_slots`, `permanent_replication_slots`), as the field reads
/// them: an entry without a type is logical where it names database and plugin. What can't be understood is left out.
pub fn permanent(config: &DynamicConfig) -> BTreeMap<String, Kind> {
    let sections = ["permanent_replication_slots", "permanent_slots", "slots"];
    let mut found = BTreeMap::new();
    let here = if config.standby_cluster().is_some() { "standby" } else { "primary" };
    for (name, entry) in sections.iter().filter_map(|key| config.get(key)?.as_object()).flatten() {
        let text = |key: &str| entry.get(key).and_then(Value::as_str);
        if text("cluster_type").is_some_and(|wanted| wanted != here) || !is_slot_name(name) {
            continue;
        }
        if text("plugin").is_some_and(|plugin| !is_plugin(plugin)) {
            continue;
        }
        let logical = text("database").zip(text("plugin"));
        let kind = match (text("type"), logical) {
            (Some("logical") | None, Some((database, plugin))) => {
                Kind::Logical { database: database.to_owned(), plugin: plugin.to_owned() }
            }
            (Some("physical") | None, _) => Kind::Physical,
            _ => continue,
        };
        found.insert(name.clone(), kind);
    }
    found
}

/// True where the configuration has logical permanent slots: standbys then need feedback on, and shorter intervals.
/// Never in a standby cluster: nothing can be decoded there before release 16, and nobody could make the slot.
pub fn keeps_logical(config: &DynamicConfig) -> bool {
    config.standby_cluster().is_none() && permanent(config).values().any(|kind| *kind != Kind::Physical)
}

/// Letters, digits and underscores, at most 63, as PostgreSQL demands.
fn is_slot_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= 63 && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

/// `ignore_slots`: one entry whose every given field matches.
pub fn ignored(config: &DynamicConfig, slot: &SlotSeen) -> bool {
    let entries = config.get("ignore_slots").and_then(Value::as_array);
    let matches = |entry: &Value| {
        let Some(entry) = entry.as_object().filter(|entry| !entry.is_empty()) else { return false };
        entry.iter().all(|(key, wanted)| {
            let have = match key.as_str() {
                "name" => Some(slot.slot_name.as_str()),
                "type" => Some(slot.slot_type.as_str()),
                "database" => slot.database.as_deref(),
                "plugin" => slot.plugin.as_deref(),
                // The field looks at these four only.
                _ => return true,
            };
            wanted.as_str().is_none_or(|wanted| have == Some(wanted))
        })
    };
    entries.is_some_and(|entries| entries.iter().any(matches))
}

/// Everything that a node's slots are judged by.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// The cluster.
    pub view: &'a ClusterView,
    /// This node.
    pub name: &'a MemberName,
    /// Its tags.
    pub tags: &'a Tags,
    /// It leads: as primary, or as the leader of a standby cluster.
    pub primary: bool,
    /// What a primary has flushed, what a standby has replayed.
    pub position: Lsn,
    /// Where recovery would begin here: the WAL from there on is kept anyway.
    pub redo: Lsn,
    /// The newest timeline of the log that is here.
    pub timeline: Timeline,
    /// As in `server_version_num`.
    pub server_version: u32,
    /// `postgresql.use_slots`.
    pub use_slots: bool,
    /// Its slots.
    pub slots: &'a [SlotSeen],
    /// The copies of logical slots here, as far as this arbiter knows them.
    pub copies: &'a BTreeMap<String, Copied>,
    /// So much WAL may be kept for a member whose data are being copied.
    pub most_for_a_copy: u64,
}

/// Why a slot is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyDrop {
    /// It was the cluster's own and is wanted no more.
    NotWanted,
    /// Its WAL is gone.
    Lost,
    /// It reserves nothing.
    ReservesNothing,
    /// It was left from when this node was primary and holds rows back for nobody.
    HoldsRowsBack,
    /// A logical slot that a standby can't use: left from when this node was primary.
    LeftOver,
    /// It is not what the leader's slot of this name is.
    NotTheSame,
    /// The copy that it kept WAL for takes too long for the room that is left here.
    CopyTooLong,
}

impl fmt::Display for WhyDrop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WhyDrop::NotWanted => "it is wanted no more",
            WhyDrop::Lost => "its WAL is gone",
            WhyDrop::ReservesNothing => "it reserved no WAL",
            WhyDrop::HoldsRowsBack => "it was left from when this node was primary, and held rows back",
            WhyDrop::LeftOver => "it was left from when this node was primary",
            WhyDrop::NotTheSame => "the leader's slot of this name is another one",
            WhyDrop::CopyTooLong => "it held back more WAL for a copy that is being made than there is room for",
        })
    }
}

/// One thing to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SlotStep {
    /// Drop an unused slot.
    Drop {
        /// Which.
        name: String,
        /// Why.
        why: WhyDrop,
    },
    /// Make a physical slot that reserves WAL from now on.
    CreatePhysical {
        /// Its name.
        name: String,
    },
    /// Make a logical slot on the primary.
    CreateLogical {
        /// Its name.
        name: String,
        /// In this database.
        database: String,
        /// With this plugin.
        plugin: String,
        /// As a failover slot (PostgreSQL 17).
        failover: bool,
    },
    /// Move an unused slot forward.
    Advance {
        /// Which.
        name: String,
        /// To here.
        to: Lsn,
        /// A logical one: decoding may take its time.
        logical: bool,
    },
    /// Copy a logical slot of the leader, as a temporary one.
    Copy {
        /// Its name.
        name: String,
        /// What the leader says of it.
        from: LogicalSlot,
    },
    /// The copy is safe: make it permanent (where it is temporary) and remember that.
    Trust {
        /// Which.
        name: String,
        /// It is still temporary.
        temporary: bool,
    },
    /// The leader has stopped to keep what the copy needs: it counts as new.
    Distrust {
        /// Which.
        name: String,
    },
    /// A permanent slot is not as it should be, and only a person can put that right.
    Tell {
        /// Which.
        name: String,
        /// What is wrong and what to do.
        what: String,
    },
}

/// Who streams from whom: the member's upstream, where it names one that exists; else the leader.
fn upstream<'a>(view: &'a ClusterView, member: &'a Member) -> Option<&'a str> {
    let named = member.tags.replicatefrom()?;
    view.members.keys().any(|name| name.as_str() == named).then_some(named)
}

/// The slots of the members whose data are being copied: each is to have one before its copy begins, and keeps it until the copy streams.
fn of_copies(view: &ClusterView) -> impl Iterator<Item = String> {
    let copied = |entry: &MemberEntry| entry.is_kept() && entry.member.state == MemberState::CreatingReplica;
    view.members.iter().filter(move |(_, entry)| copied(entry)).map(|(name, _)| name.slot_name())
}

/// The physical slots wanted here, with where an unused one belongs.
fn wanted_physical(facts: &Facts<'_>) -> BTreeMap<String, Option<Lsn>> {
    let view = facts.view;
    let status = view.status.as_ref().map(|status| &status.value);
    let published = |slot: &str| status.and_then(|status| status.slots.get(slot)).copied();
    let mine = facts.name.slot_name();
    let may_lead = facts.primary || !facts.tags.nofailover();
    let mut wanted = BTreeMap::new();
    if facts.use_slots {
        for (name, entry) in
            view.members.iter().filter(|(name, entry)| *name != facts.name && entry.is_kept() && !entry.member.tags.nostream())
        {
            let slot = name.slot_name();
            let from = upstream(view, &entry.member);
            if from == Some(facts.name.as_str()) {
                // It streams from here: the slot is its own to move.
                wanted.insert(slot, None);
            } else if facts.primary {
                // One that streams from another member is moved along, so that it finds its WAL here if that member goes.
                wanted.insert(slot, from.and(entry.member.position()));
            } else if may_lead && let Some(to) = published(&slot) {
                wanted.insert(slot, Some(to));
            }
        }
        for slot in status.into_iter().flat_map(|status| &status.retain_slots).filter(|slot| may_lead && is_slot_name(slot)) {
            // Away for a moment: on the primary its slot stays where it is.
            let to = if facts.primary { Some(None) } else { published(slot).map(Some) };
            if let Some(to) = to {
                wanted.entry(slot.clone()).or_insert(to);
            }
        }
    }
    for (slot, _) in permanent(view.config()).into_iter().filter(|(_, kind)| *kind == Kind::Physical) {
        let to = if facts.primary { Some(None) } else { published(&slot).filter(|_| may_lead).map(Some) };
        if let Some(to) = to {
            wanted.entry(slot).or_insert(to);
        }
    }
    wanted.remove(&mine);
    // A leader that crashes is rewound to a checkpoint before the fork, and needs the WAL from there, not from where it wrote last. Every
    // checkpoint of its that this node knows is at or behind the one that recovery would begin with here.
    let led = view.leader.as_ref().map(|leader| &leader.name).or(view.last_term.as_ref().map(|last| &last.value.holder));
    if !facts.primary
        && let Some(Some(to)) = led.and_then(|led| wanted.get_mut(&led.slot_name()))
    {
        *to = facts.redo.min(*to);
    }
    wanted
}

/// What is to be done with this node's slots, in this order.
pub fn decide(facts: &Facts<'_>) -> Vec<SlotStep> {
    let mut steps = Vec::new();
    let physical = wanted_physical(facts);
    let permanent = permanent(facts.view.config());
    let logical: BTreeMap<&String, (&String, &String)> = permanent
        .iter()
        .filter_map(|(name, kind)| match kind {
            Kind::Logical { database, plugin } if !physical.contains_key(name) => Some((name, (database, plugin))),
            _ => None,
        })
        .collect();
    hygiene(facts, |name| physical.contains_key(name) || logical.contains_key(&name.to_owned()), &mut steps);
    for (name, to) in &physical {
        one_physical(facts, name, *to, &mut steps);
    }
    for (name, (database, plugin)) in logical {
        let seen = facts.slots.iter().find(|slot| slot.slot_name == *name);
        if !keeps_logical(facts.view.config()) {
            continue;
        } else if facts.primary {
            logical::on_primary(facts, name, database, plugin, seen, &mut steps);
        } else if facts.server_version < NATIVE_SYNC {
            logical::on_standby(facts, name, seen, &mut steps);
        }
    }
    if facts.view.config().paused() {
        steps.retain(|step| !matches!(step, SlotStep::Drop { .. }));
    }
    steps
}

/// Slots that nobody wants. Never one in use, never an ignored one, and on a primary none that was not the cluster's own.
fn hygiene(facts: &Facts<'_>, wanted: impl Fn(&str) -> bool, steps: &mut Vec<SlotStep>) {
    let mut known = SlotFacts::of(facts.view.status.as_ref().map(|status| &status.value)).known;
    known.extend(facts.view.members.keys().map(MemberName::slot_name));
    for slot in facts.slots.iter().filter(|slot| !slot.active && !slot.temporary && !ignored(facts.view.config(), slot)) {
        let name = &slot.slot_name;
        let why = if !facts.primary && slot.failover {
            // Left from when this node was primary; it keeps the server's own synchronisation from making it anew.
            (!slot.synced).then_some(WhyDrop::LeftOver)
        } else if wanted(name) {
            None
        } else if !facts.primary && !slot.is_physical() && facts.server_version < LOGICAL_ON_STANDBY {
            Some(WhyDrop::LeftOver)
        } else {
            (known.contains(name) && !slot.failover).then_some(WhyDrop::NotWanted)
        };
        if let Some(why) = why {
            steps.push(SlotStep::Drop { name: name.clone(), why });
        }
    }
}

fn one_physical(facts: &Facts<'_>, name: &str, to: Option<Lsn>, steps: &mut Vec<SlotStep>) {
    let Some(slot) = facts.slots.iter().find(|slot| slot.slot_name == name) else {
        return steps.push(SlotStep::CreatePhysical { name: name.to_owned() });
    };
    if !slot.is_physical() {
        let what = "a logical slot has the name that a member's or a physical permanent slot needs: rename one of them".to_owned();
        return steps.push(SlotStep::Tell { name: name.to_owned(), what });
    }
    if slot.active || ignored(facts.view.config(), slot) {
        return;
    }
    // Where nobody is expected to connect, nobody would ever move a transaction horizon on.
    let horizon = slot.xmin.is_some() || slot.catalog_xmin.is_some();
    let why = match slot.restart_lsn {
        _ if slot.is_lost() => Some(WhyDrop::Lost),
        None => Some(WhyDrop::ReservesNothing),
        Some(_) if to.is_some() && horizon => Some(WhyDrop::HoldsRowsBack),
        Some(from) if from.lag_bytes_behind(facts.position) > facts.most_for_a_copy && of_copies(facts.view).any(|slot| slot == name) => {
            Some(WhyDrop::CopyTooLong)
        }
        Some(_) => None,
    };
    if let Some(why) = why {
        steps.push(SlotStep::Drop { name: name.to_owned(), why });
        if !facts.view.config().paused() {
            steps.push(SlotStep::CreatePhysical { name: name.to_owned() });
        }
    } else if let Some(to) = to.map(|to| to.min(facts.position)).filter(|to| Some(*to) > slot.restart_lsn) {
        steps.push(SlotStep::Advance { name: name.to_owned(), to, logical: false });
    }
}
