//! Incident: what happened when the leadership last moved, told from every member's journal: who saw what and when, what was lost, why this node.

use crate::config::SynchronousMode;
use crate::lsn::Lsn;
use crate::name::{MemberName, Timeline};
use crate::reason::Reason;
use crate::standing;
use crate::view::{Announcement, ClusterView};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One decision of one member, as its arbiter keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// When, RFC 3339 in UTC with milliseconds, by the member's own clock.
    pub at: String,
    /// etcd's revision of the view it was made on.
    pub revision: i64,
    /// Who led.
    pub leader: Option<String>,
    /// In which term.
    pub term: Option<i64>,
    /// What Postgres was doing here.
    pub postgres: String,
    /// What was decided.
    pub duty: String,
    /// Why.
    pub why: String,
    /// Postgres was a primary here.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub primary: bool,
    /// Postgres was a standby here that receives.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follows: bool,
    /// What was decided takes WAL or the whole data away: a rewind or a new copy.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub winds_back: bool,
    /// The history forked: what this server had past the point where the others went on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forked: Option<Forked>,
}

/// A server that has WAL which the cluster's history does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forked {
    /// The timeline it went on with.
    pub timeline: Timeline,
    /// How far it went.
    pub mine: Lsn,
    /// Where the others left.
    pub fork: Lsn,
}

impl Forked {
    /// What a reason says of it.
    pub fn of(why: &Reason) -> Option<Forked> {
        match why {
            Reason::HistoryForked { timeline, mine, fork } => Some(Forked { timeline: *timeline, mine: *mine, fork: *fork }),
            _ => None,
        }
    }
}

/// The journals by member: oldest record first, or why there is none.
pub type Journals = BTreeMap<String, Result<Vec<Record>, String>>;

/// So many records of one member are told: one that tries again and again says the same.
const RECORDS_MOST: usize = 20;

/// So many records before the last of the old term are told.
const RECORDS_BEFORE: usize = 2;

/// What became of what had been acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "is")]
pub enum Lost {
    /// Nothing: the old leader handed over, and the new one had all of it before.
    Nothing {
        /// By what that is known.
        by: String,
    },
    /// What the old leader had and the others had not.
    Bytes {
        /// WAL past the fork.
        bytes: u64,
        /// What that means.
        means: String,
    },
    /// Nobody can say yet.
    Unknown {
        /// What would tell.
        until: String,
    },
}

impl Lost {
    /// As a sentence.
    pub fn sentence(&self) -> String {
        match self {
            Lost::Nothing { by } => format!("nothing that was acknowledged: {by}"),
            Lost::Bytes { bytes, means } => format!("{bytes} bytes of WAL: {means}"),
            Lost::Unknown { until } => format!("not known: {until}"),
        }
    }
}

/// One thing that somebody saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Seen {
    /// Who.
    pub member: String,
    /// The decision with the facts it was made on.
    #[serde(flatten)]
    pub record: Record,
}

/// The last time that the leadership moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Incident {
    /// Who led before.
    pub from: String,
    /// Who led after; None while nobody does.
    pub to: Option<String>,
    /// The term that ended.
    pub ended: Option<i64>,
    /// The term that began.
    pub began: Option<i64>,
    /// How, in the words of `tenure/term`: taken, handed over.
    pub how: Option<String>,
    /// The first and the last moment at which a member saw no leader.
    pub vacant: Option<(String, String)>,
    /// When the new leader's own journal shows it as primary.
    pub served: Option<String>,
    /// By time.
    pub seen: Vec<Seen>,
    /// What was lost.
    pub lost: Lost,
    /// Why this node: what each member had and said in the race, or why there was none.
    pub why: Vec<String>,
    /// Who did not answer, and why.
    pub unheard: Vec<(String, String)>,
}

/// Who led in which term, in order; a term that was written again for the same member (an edit of `ttl`) is no change.
fn reigns(view: &ClusterView, journals: &Journals) -> Vec<(i64, String)> {
    let told = journals.values().flatten().flatten().filter_map(|record| Some((record.term?, record.leader.clone()?)));
    let now = view.leader.as_ref().map(|leader| (leader.term.0, leader.name.to_string()));
    let mut reigns: BTreeMap<i64, String> = told.chain(now).collect();
    let mut last: Option<String> = None;
    reigns.retain(|_, leader| last.replace(leader.clone()).as_ref() != Some(leader));
    reigns.into_iter().collect()
}

/// The last time that the leadership moved, or that it ended and nobody leads since; None where no journal goes back so far.
pub fn last(view: &ClusterView, journals: &Journals) -> Option<Incident> {
    let reigns = reigns(view, journals);
    let (before, after) = match (&view.leader, reigns.as_slice()) {
        (None, [.., last]) => (last, None),
        (Some(_), [.., before, after]) => (before, Some(after)),
        _ => return None,
    };
    let (ended, began) = (before.0, after.map(|after| after.0));
    let to = after.map(|after| after.1.clone());
    let seen = seen(journals, ended, began);
    let vacant: Vec<&str> = seen.iter().filter(|seen| seen.record.leader.is_none()).map(|seen| seen.record.at.as_str()).collect();
    let vacant = vacant.first().zip(vacant.last()).map(|(first, last)| ((*first).to_owned(), (*last).to_owned()));
    let served =
        seen.iter().find(|seen| to.as_deref() == Some(&seen.member) && seen.record.term == began && began.is_some() && seen.record.primary);
    let served = served.map(|seen| seen.record.at.clone());
    let how = view.last_term.as_ref().filter(|_| began.is_some_and(|began| began == view.last_term().0)).map(|term| term.value.how.clone());
    let handed_over = how.as_deref() == Some("handed over");
    let lost = lost(view, &before.1, to.as_deref(), handed_over, &seen);
    let why = why(view, &before.1, to.as_deref(), handed_over, began);
    let unheard = journals.iter().filter_map(|(name, told)| Some((name.clone(), told.as_ref().err()?.clone()))).collect();
    Some(Incident { from: before.1.clone(), to, ended: Some(ended), began, how, vacant, served, seen, lost, why, unheard })
}

/// Of each member: the last it decided before, what it saw without a leader, and what it did in the term that began.
fn seen(journals: &Journals, ended: i64, began: Option<i64>) -> Vec<Seen> {
    let mut all = Vec::new();
    for (member, records) in journals {
        let Ok(records) = records else { continue };
        // Its last look at the term that ended, and what led to it, is where its story begins.
        let first = records.iter().rposition(|record| record.term.is_some_and(|term| term <= ended));
        let first = first.unwrap_or(0).saturating_sub(RECORDS_BEFORE);
        let told = records[first..].iter().filter(|record| record.term.is_none_or(|term| Some(term) == began || term <= ended));
        all.extend(told.take(RECORDS_MOST).map(|record| Seen { member: member.clone(), record: record.clone() }));
    }
    all.sort_by(|one, other| one.record.at.cmp(&other.record.at).then(one.member.cmp(&other.member)));
    all
}

fn lost(view: &ClusterView, from: &str, to: Option<&str>, handed_over: bool, seen: &[Seen]) -> Lost {
    if handed_over {
        let by = format!("{from} handed over, to a member that had received all it had");
        return Lost::Nothing { by };
    }
    let synchronous = view.config().synchronous_mode() != SynchronousMode::Off;
    let theirs: Vec<&Record> = seen.iter().filter(|seen| seen.member == from).map(|seen| &seen.record).collect();
    if let Some(forked) = theirs.iter().find_map(|record| record.forked) {
        let bytes = forked.mine.0.saturating_sub(forked.fork.0);
        let means = if synchronous {
            format!("{from} had written them, and no synchronous standby had confirmed them, so no client was told that they are done")
        } else {
            format!(
                "{from} had written them and nobody had received them; commits among them that were acknowledged are lost (synchronous_mode is off)"
            )
        };
        return Lost::Bytes { bytes, means };
    }
    let Some(to) = to else { return Lost::Unknown { until: "nobody leads yet".to_owned() } };
    if synchronous {
        let by = "synchronous_mode is on, so only a member that has every acknowledged commit could take the key".to_owned();
        return Lost::Nothing { by };
    }
    if theirs.iter().any(|record| record.winds_back) {
        let until = format!(
            "synchronous_mode is off, and {from} was wound back after a crash without its end having been read: what it had past the fork is gone"
        );
        return Lost::Unknown { until };
    }
    if theirs.iter().any(|record| record.leader.as_deref() == Some(to) && record.follows) {
        let by = format!("{from} is back and follows without having been wound back, so {to} had all it had");
        return Lost::Nothing { by };
    }
    let until = format!("synchronous_mode is off, and {from} has not said since how far it was; its journal tells once it is back");
    Lost::Unknown { until }
}

/// What each said in the race for this vacancy, the fittest first.
fn why(view: &ClusterView, from: &str, to: Option<&str>, handed_over: bool, began: Option<i64>) -> Vec<String> {
    if handed_over {
        let to = to.unwrap_or("the next leader");
        return vec![format!(
            "there was no race: {from} gave the key to {to}, which was asked for, or was the best of those that could take over"
        )];
    }
    let after = view.announcements.values().map(|word| word.value.after).filter(|after| began.is_none_or(|began| after.0 < began)).max();
    let mut words: Vec<(&MemberName, &Announcement)> =
        view.announcements.iter().filter(|(_, word)| Some(word.value.after) == after).map(|(name, word)| (name, &word.value)).collect();
    if words.is_empty() {
        return vec!["nobody's word of the race is in etcd any more: it goes with each member's lease".to_owned()];
    }
    words.sort_by(|(name, word), (other, than)| {
        than.stands.cmp(&word.stands).then_with(|| standing::fitness(other, than).cmp(&standing::fitness(name, word)))
    });
    let line = |(name, word): &(&MemberName, &Announcement)| {
        let at = format!("timeline {}, position {}, priority {}", word.timeline, word.lsn, word.priority);
        let took = if to == Some(name.as_str()) { ": took the key, as the fittest of those that stood" } else { "" };
        match (&word.why, word.stands) {
            (_, true) => format!("{name} stood with {at}{took}"),
            (Some(why), false) => format!("{name} did not stand: {why}"),
            (None, false) => format!("{name} did not stand"),
        }
    };
    words.iter().map(line).collect()
}
