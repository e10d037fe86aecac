//! Health: what a node sees of itself, what of it makes a primary sick, and when another is to lead in its place.
//!
//! A server that has died is somebody else's business ([`crate::duty`]). This one lives, renews its lease, and is of little use: its disk
//! does not answer, its WAL is flushed in seconds, nobody can connect. Two look at it, the lease worker from inside and the arbiter
//! from outside; what they see stands in the member key, so that who judges knows who is better off.
//!
//! Nothing here may make matters worse. So a symptom counts when it has lasted; leadership goes to a member that has shown none for as
//! long, and that answered just now; and a node that came to lead a moment ago keeps the key: it can't go back and forth.

mod flushes;
pub mod vitals;

pub use flushes::{Flushes, Lateness};
pub use vitals::{Mode, Vitals};

use crate::config::DynamicConfig;
use crate::failover;
use crate::lsn::Lsn;
use crate::name::MemberName;
use crate::time::Moment;
use crate::view::ClusterView;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::mem::{Discriminant, discriminant};
use std::time::Duration;

/// A symptom that is gone for less than this is not gone: between two slow flushes there may be a moment of peace.
const GONE_AFTER: Duration = Duration::from_secs(5);

/// A disk that fills up gives no time to think about it.
const SPACE_AFTER: Duration = Duration::from_secs(2);

/// Durations below this are no news; those above are told in four steps for each power of two, so that the member key is not written
/// again for each.
const WORTH_TELLING_MS: u64 = 256;

/// The settings of this room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// `sick_primary`
    pub mode: Mode,
    /// `sick_primary_slow`: a WAL flush, a write to the disk or a new connection that takes so long is a symptom.
    pub slow: Duration,
    /// `sick_primary_after`: a symptom that has lasted so long counts.
    pub after: Duration,
    /// `sick_primary_pause`: who leads for less than this keeps the key.
    pub pause: Duration,
    /// `sick_primary_disk_free_mb`: less is almost full; 0 is never.
    pub disk_free_mb: u64,
    /// `sick_primary_reserve_mb`: so much of each disk is kept for the last clean stop, in every mode; 0 keeps none.
    pub reserve_mb: u64,
}

impl Rules {
    /// As the configuration says.
    pub fn of(config: &DynamicConfig) -> Rules {
        Rules {
            mode: config.sick_primary(),
            slow: config.sick_primary_span("sick_primary_slow", 2),
            after: config.sick_primary_span("sick_primary_after", 10),
            pause: config.sick_primary_span("sick_primary_pause", 300),
            disk_free_mb: config.sick_primary_whole("sick_primary_disk_free_mb", 256),
            reserve_mb: config.sick_primary_whole("sick_primary_reserve_mb", 64),
        }
    }

    /// It does not come back: nothing that the server is told will be done.
    fn is_hanging(&self, ms: u64) -> bool {
        Duration::from_millis(ms) >= self.slow + self.after / 2
    }
}

/// A duration as it is told.
pub fn rounded(span: Duration) -> u64 {
    let ms = u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    if ms < WORTH_TELLING_MS { 0 } else { ms & (7 << (ms.ilog2() - 2)) }
}

impl Vitals {
    /// What is not as it should be.
    pub fn symptoms(&self, rules: &Rules) -> Vec<Symptom> {
        let slow = |ms: u64| ms > 0 && Duration::from_millis(ms) >= rules.slow;
        let mut found = Vec::new();
        if slow(self.flush_ms) {
            found.push(Symptom::Flush(self.flush_ms));
        }
        if slow(self.disk_ms) {
            found.push(Symptom::Disk(self.disk_ms));
        }
        // A slow one harms nobody as much as a change of leader does: on a machine that is only busy they take seconds.
        if rules.is_hanging(self.connect_ms) {
            found.push(Symptom::Connect(self.connect_ms));
        }
        if let Some(free) = self.disk_free_mb.filter(|free| *free < rules.disk_free_mb) {
            found.push(Symptom::Space(free));
        }
        if let Some(fault) = &self.disk_fault {
            found.push(Symptom::Fault(fault.clone()));
        } else if self.disk_errors {
            found.push(Symptom::Errors);
        }
        if self.refused {
            found.push(Symptom::Slots);
        }
        // A timer that is late by a quarter of what is slow, in the middle: whatever a session does takes many such turns.
        if slow(self.late_ms * 4) {
            found.push(Symptom::Cpu(self.late_ms));
        }
        found
    }
}

/// One thing that is wrong. The Display is a clause for logs and people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Symptom {
    /// WAL is flushed slowly, or not at all.
    Flush(u64),
    /// The disk takes nothing, or slowly.
    Disk(u64),
    /// Nobody new comes in, or slowly.
    Connect(u64),
    /// The disk is almost full.
    Space(u64),
    /// A write of the arbiter's own failed.
    Fault(String),
    /// Statements fail by the disk.
    Errors,
    /// There is no slot for another connection.
    Slots,
    /// It gets no CPU.
    Cpu(u64),
}

impl Symptom {
    /// The word for metrics, and by which it is known from one look to the next.
    pub fn word(&self) -> &'static str {
        match self {
            Symptom::Flush(_) => "wal_flush",
            Symptom::Disk(_) => "disk",
            Symptom::Connect(_) => "connect",
            Symptom::Space(_) => "space",
            Symptom::Fault(_) => "disk_fault",
            Symptom::Errors => "disk_errors",
            Symptom::Slots => "slots",
            Symptom::Cpu(_) => "cpu",
        }
    }

    /// All words, for metrics.
    pub const WORDS: [&'static str; 8] = ["wal_flush", "disk", "connect", "space", "disk_fault", "disk_errors", "slots", "cpu"];

    /// The server can't do what a planned change asks of it.
    fn is_grave(&self, rules: &Rules) -> bool {
        match self {
            Symptom::Flush(ms) | Symptom::Disk(ms) | Symptom::Connect(ms) => rules.is_hanging(*ms),
            Symptom::Fault(_) => true,
            Symptom::Space(_) | Symptom::Errors | Symptom::Slots | Symptom::Cpu(_) => false,
        }
    }

    fn counts_after(&self, rules: &Rules) -> Duration {
        if matches!(self, Symptom::Space(_)) { SPACE_AFTER.min(rules.after) } else { rules.after }
    }
}

impl fmt::Display for Symptom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = |ms: &u64| *ms as f64 / 1000.0;
        match self {
            Symptom::Flush(ms) => write!(f, "a flush of WAL takes {} s or more", seconds(ms)),
            Symptom::Disk(ms) => write!(f, "a write to the disk takes {} s or more", seconds(ms)),
            Symptom::Connect(ms) => write!(f, "a new connection takes {} s or more", seconds(ms)),
            Symptom::Space(mb) => write!(f, "only {mb} MB are free on the disk"),
            Symptom::Fault(fault) => write!(f, "the disk takes no write ({fault})"),
            Symptom::Errors => f.write_str("statements fail since the disk is full or gives errors"),
            Symptom::Slots => f.write_str("connections are refused since all slots are taken"),
            Symptom::Cpu(ms) => write!(f, "its processes wait {} s or more for a CPU", seconds(ms)),
        }
    }
}

/// Since when, and when last, something was seen.
#[derive(Debug, Clone, Copy)]
struct Span {
    first: Moment,
    last: Moment,
}

/// What one arbiter has seen of all members, from look to look.
#[derive(Debug, Clone, Default)]
pub struct Course {
    seen: BTreeMap<(MemberName, &'static str), Span>,
    well_since: BTreeMap<MemberName, Moment>,
}

impl Course {
    /// Notes a look at the cluster; `own` is newer than what the own member key says.
    pub fn look(&mut self, now: Moment, view: &ClusterView, me: &MemberName, own: &Vitals, rules: &Rules) {
        for (name, entry) in &view.members {
            let vitals = match &entry.member.tenure {
                _ if name == me => Some(own),
                facts => facts.as_ref().and_then(|facts| facts.vitals.as_ref()),
            };
            // Another program, or an older version: nobody knows.
            let Some(vitals) = vitals.filter(|_| entry.member.is_running()) else {
                self.well_since.remove(name);
                continue;
            };
            self.note(now, name, &vitals.symptoms(rules));
        }
        self.seen.retain(|(name, _), _| view.members.contains_key(name));
        self.well_since.retain(|name, _| view.members.contains_key(name));
    }

    fn note(&mut self, now: Moment, name: &MemberName, symptoms: &[Symptom]) {
        for symptom in symptoms {
            let span = self.seen.entry((name.clone(), symptom.word())).or_insert(Span { first: now, last: now });
            span.last = now;
        }
        self.seen.retain(|(of, _), span| of != name || now.since(span.last) < GONE_AFTER);
        if self.seen.keys().any(|(of, _)| of == name) {
            self.well_since.remove(name);
        } else {
            self.well_since.entry(name.clone()).or_insert(now);
        }
    }

    /// Those of the member's present symptoms that have lasted.
    pub fn lasting(&self, now: Moment, name: &MemberName, vitals: &Vitals, rules: &Rules) -> Vec<Symptom> {
        let has_lasted = |symptom: &Symptom| {
            let span = self.seen.get(&(name.clone(), symptom.word()));
            span.is_some_and(|span| now.since(span.first) >= symptom.counts_after(rules))
        };
        vitals.symptoms(rules).into_iter().filter(has_lasted).collect()
    }

    /// It has shown nothing for as long as a symptom takes to count.
    fn is_well(&self, now: Moment, name: &MemberName, rules: &Rules) -> bool {
        self.well_since.get(name).is_some_and(|since| now.since(*since) >= rules.after)
    }
}

/// What a leader knows of itself besides.
#[derive(Debug, Clone)]
pub struct Leading<'a> {
    /// Its name.
    pub name: &'a MemberName,
    /// For how long it has led, as far as its arbiter knows.
    pub for_long: Duration,
    /// How far its WAL is on disk, where it says so.
    pub flushed: Option<Lsn>,
    /// Who answered just now.
    pub answered: &'a BTreeSet<MemberName>,
    /// How long ago the last try to give way began, where there was one and it leads still.
    pub tried: Option<Duration>,
    /// Its server said just now that none of those who hold its connections has got anything done for as long as a symptom takes to count.
    pub holders_idle: bool,
}

/// By which way leadership goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Way {
    /// By a switchover: the server still does what it is told.
    Planned(Vec<MemberName>),
    /// The server is ended, and this member goes on.
    ByForce(MemberName),
}

/// A sick leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sick {
    /// What is wrong.
    pub symptoms: Vec<Symptom>,
    /// What is wrong, in a clause.
    pub what: String,
    /// To whom leadership should go, or why it stays.
    pub way: Result<Way, Stays>,
}

impl Sick {
    /// The sentence for logs, the member key and people.
    pub fn sentence(&self, mode: Mode) -> String {
        let then = match (&self.way, mode) {
            (Err(why), _) => format!("it keeps the leader key: {why}"),
            (Ok(way), Mode::Act) => format!("it gives way to {way}"),
            (Ok(way), _) => format!("it would give way to {way}, and does not, by the setting sick_primary"),
        };
        format!("{}; {then}", self.what)
    }
}

/// What a sentence about a sick node is about, without its figures and names: it is news where this changes, and not where another MB is
/// gone or another standby is a few bytes ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cause {
    symptoms: BTreeSet<&'static str>,
    /// Whether it is acted upon, and how it gives way or why it stays.
    then: Option<(bool, Then)>,
}

type Then = Result<Discriminant<Way>, Discriminant<Stays>>;

impl Cause {
    /// Of what has lasted, and of what a leader makes of it. None where all is well.
    pub fn of(lasting: &[Symptom], sick: Option<&Sick>, mode: Mode) -> Option<Cause> {
        let symptoms = sick.map_or(lasting, |sick| &sick.symptoms).iter().map(Symptom::word).collect::<BTreeSet<_>>();
        let then = sick.map(|sick| (mode == Mode::Act, sick.way.as_ref().map(discriminant).map_err(discriminant)));
        (!symptoms.is_empty()).then_some(Cause { symptoms, then })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Way::Planned(to) => write!(f, "{} by a switchover", to.first().map_or("nobody", MemberName::as_str)),
            Way::ByForce(to) => write!(f, "{to} by force"),
        }
    }
}

/// Why a sick leader keeps the key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Stays {
    /// It may come from the change itself, or go back and forth.
    #[error("it came to lead less than sick_primary_pause ({0} s) ago")]
    TooSoon(u64),
    /// The last try failed.
    #[error("it could not give way less than sick_primary_pause ({0} s) ago")]
    TriedBefore(u64),
    /// An operator has the word.
    #[error("the cluster is in maintenance mode")]
    Paused,
    /// A change of leader would end the work of those who are in, and those who are not would take the next leader's slots.
    #[error("those who hold its connections get their work done")]
    HoldersWork,
    /// The others are no better.
    #[error("nobody is better off{0}")]
    NobodyBetter(String),
}

/// Is this leader sick, and who is better off? None where nothing has lasted.
pub fn judge(view: &ClusterView, course: &Course, now: Moment, own: &Vitals, leading: &Leading<'_>, rules: &Rules) -> Option<Sick> {
    let lasting = course.lasting(now, leading.name, own, rules);
    if lasting.is_empty() || rules.mode == Mode::Off {
        return None;
    }
    let what = lasting.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
    let way = way(view, course, now, &lasting, leading, rules);
    Some(Sick { symptoms: lasting, what, way })
}

fn way(view: &ClusterView, course: &Course, now: Moment, lasting: &[Symptom], leading: &Leading<'_>, rules: &Rules) -> Result<Way, Stays> {
    if view.config().paused() {
        return Err(Stays::Paused);
    }
    if lasting.iter().all(|symptom| *symptom == Symptom::Slots) && !leading.holders_idle {
        return Err(Stays::HoldersWork);
    }
    if leading.for_long < rules.pause {
        return Err(Stays::TooSoon(rules.pause.as_secs()));
    }
    if leading.tried.is_some_and(|since| since < rules.pause) {
        return Err(Stays::TriedBefore(rules.pause.as_secs()));
    }
    let grave = lasting.iter().any(|symptom| symptom.is_grave(rules));
    let mut why_not = String::new();
    let mut better = Vec::new();
    for name in view.members.keys().filter(|name| *name != leading.name) {
        match unfit(view, course, now, name, grave, leading, rules) {
            None => better.push(name.clone()),
            Some(why) => why_not.push_str(&format!("; {name}: {why}")),
        }
    }
    // By priority and position, as for any switchover.
    better.sort_by_key(|name| {
        let member = &view.members[name].member;
        (std::cmp::Reverse(member.tags.failover_priority()), std::cmp::Reverse(member.position()), name.clone())
    });
    match better.first().cloned() {
        None => Err(Stays::NobodyBetter(why_not)),
        Some(first) if grave => Ok(Way::ByForce(first)),
        Some(_) => Ok(Way::Planned(better)),
    }
}

/// Why this member is not the one to lead in place of a sick leader.
fn unfit(
    view: &ClusterView,
    course: &Course,
    now: Moment,
    name: &MemberName,
    grave: bool,
    leading: &Leading<'_>,
    rules: &Rules,
) -> Option<String> {
    if let Some(why) = failover::unfit(view, name, true) {
        return Some(why);
    }
    if !leading.answered.contains(name) {
        return Some("it does not answer".to_owned());
    }
    if !course.is_well(now, name, rules) {
        let vitals = view.members.get(name).and_then(|entry| entry.member.tenure.as_ref()?.vitals.as_ref());
        let symptoms = vitals.map(|vitals| vitals.symptoms(rules)).unwrap_or_default();
        return Some(match (vitals, symptoms.first()) {
            (None, _) => "it does not say how it is".to_owned(),
            (_, Some(symptom)) => symptom.to_string(),
            (_, None) => format!("it has not been well for {} s yet", rules.after.as_secs()),
        });
    }
    // Its own WAL comes to the disk no more: a member that goes on must have what clients were told of.
    let position = view.members.get(name).and_then(|entry| entry.member.position());
    let confirms = view.sync.as_ref().is_some_and(|sync| sync.value.has_standby(name));
    match (leading.flushed, position) {
        (Some(flushed), position) if grave && !confirms && position.is_none_or(|position| position < flushed) => {
            Some("it has not received all WAL of the leader yet".to_owned())
        }
        _ => None,
    }
}
