//! Whom commits wait for, whom the race may let lead, and the ordered steps between the two.
//!
//! Two places say it, and only one of them can be written at a time: `synchronous_standby_names`
//! ([`Setting`]) says which standbys a commit waits for, the `sync` key ([`Trust`]) says which standbys
//! may take over. Everything rests on one sentence:
//!
//! > **An acknowledged commit is missing on at most `quorum` of the voters in the key.**
//!
//! A member that takes over has heard `quorum` other voters that have no more than itself ([`crate::race`]), which
//! makes `quorum + 1` voters; at least one of them has the commit, so the fittest of them has it.
//!
//! The sentence is kept, for what is acknowledged from now on, by the overlap: a commit that waits for
//! any `n` of the standbys `S` is missing on at most `|V ∪ S| - n` of the voters `V`; so `quorum + n >=
//! |V ∪ S|` is enough ([`overlap`]). For what was acknowledged before, under whatever setting, a new key is
//! judged by what the old one allows and by which members have caught up since ([`follows`]).
//!
//! `FIRST n` and `ANY n` are alike here: which of the standbys are first depends on which are connected.

use crate::config::{DynamicConfig, SynchronousMode};
use crate::lsn::Lsn;
use crate::name::MemberName;
use crate::sync::SyncState;
use std::collections::BTreeSet;
use std::fmt;

/// The field's own name for the standby that is waited for while there is none: no member may have it.
pub const STRICT_PLACEHOLDER: &str = "__patroni_strict_sync_replica_placeholder__";

/// How `synchronous_standby_names` counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Method {
    /// The first that are connected, in the order of the list.
    #[default]
    First,
    /// Whichever confirm.
    Any,
}

/// What `synchronous_standby_names` says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Setting {
    /// How it counts.
    pub method: Method,
    /// So many have to confirm; 0 only where nobody is named.
    pub count: usize,
    /// The standbys.
    pub names: BTreeSet<MemberName>,
}

impl Setting {
    /// Commits wait for nobody.
    pub fn nobody() -> Setting {
        Setting::default()
    }

    /// Commits wait for so many of these; for all of them where there are no more.
    pub fn of(method: Method, count: usize, names: BTreeSet<MemberName>) -> Setting {
        match count.min(names.len()) {
            0 => Setting::nobody(),
            count => Setting { method, count, names },
        }
    }

    /// Commits wait for a standby that never comes.
    pub fn placeholder(method: Method) -> Setting {
        Setting::of(method, 1, MemberName::new(STRICT_PLACEHOLDER).into_iter().collect())
    }

    /// Only the standby that never comes is named.
    pub fn is_placeholder(&self) -> bool {
        *self == Setting::placeholder(self.method)
    }

    /// Reads what [`fmt::Display`] wrote, and what else of that shape a user may have written; None where it
    /// names standbys that are no members (`*`), so that nothing can be concluded from it.
    pub fn read(text: &str) -> Option<Setting> {
        let text = text.trim();
        if text.is_empty() {
            return Some(Setting::nobody());
        }
        let (method, rest) = match text.split_once(char::is_whitespace) {
            Some((word, rest)) if word.eq_ignore_ascii_case("any") => (Method::Any, rest.trim()),
            Some((word, rest)) if word.eq_ignore_ascii_case("first") => (Method::First, rest.trim()),
            _ => (Method::First, text),
        };
        let (count, list) = match rest.split_once('(') {
            Some((count, list)) => (count.trim().parse().ok()?, list.trim_end().strip_suffix(')')?),
            None => (1, rest),
        };
        let mut names = BTreeSet::new();
        for name in list.split(',') {
            names.insert(MemberName::new(name.trim().trim_matches('"')).ok().filter(|name| name.as_str() != "*")?);
        }
        (1..=names.len()).contains(&count).then_some(Setting { method, count, names })
    }

    /// The priority by which Postgres shows that a walsender has read this setting: its place in the list
    /// under `FIRST`, 1 under `ANY`, 0 where it is not named.
    pub fn priority_of(&self, name: &str) -> i32 {
        match self.names.iter().position(|listed| listed.as_str().eq_ignore_ascii_case(name)) {
            None => 0,
            Some(_) if self.method == Method::Any => 1,
            Some(place) => i32::try_from(place).unwrap_or(i32::MAX - 1) + 1,
        }
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.count == 0 {
            return Ok(());
        }
        let list = self.names.iter().map(|name| quoted(name.as_str())).collect::<Vec<_>>().join(",");
        match self.method {
            Method::Any => write!(f, "ANY {} ({list})", self.count),
            // One name says by itself that one is waited for.
            Method::First if self.names.len() == 1 => f.write_str(&list),
            Method::First => write!(f, "{} ({list})", self.count),
        }
    }
}

/// In quotes where PostgreSQL's grammar for the list asks for them, as the field does it: scripts and watches compare this text.
fn quoted(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
    let begins = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let keyword = ["first", "any"].iter().any(|word| name.eq_ignore_ascii_case(word));
    if begins && name.chars().all(plain) && !keyword { name.to_owned() } else { format!("\"{name}\"") }
}

/// What the key says besides its leader: which members may take over, having heard how many others.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Trust {
    /// Votes needed besides one's own.
    pub quorum: usize,
    /// Those that may vote and stand.
    pub voters: BTreeSet<MemberName>,
}

impl Trust {
    /// Nobody but the leader of the key may lead.
    pub fn none() -> Trust {
        Trust::default()
    }

    /// As the key has it.
    pub fn of(key: &SyncState) -> Trust {
        let voters: BTreeSet<MemberName> = key.standbys().filter_map(|name| MemberName::new(name).ok()).collect();
        // A name that can't be one still counts: a vote that is never cast.
        Trust { quorum: if voters.is_empty() { 0 } else { key.quorum as usize }, voters }
    }

    /// The most that may be trusted once this setting is kept by everybody.
    pub fn under(setting: &Setting) -> Trust {
        let voters: BTreeSet<MemberName> = setting.names.iter().filter(|name| name.as_str() != STRICT_PLACEHOLDER).cloned().collect();
        Trust { quorum: if voters.is_empty() { 0 } else { setting.names.len() - setting.count }, voters }
    }

    /// The key in which `leader` says this; what else stood in it is kept.
    pub fn key(&self, leader: &MemberName, before: &SyncState) -> SyncState {
        let quorum = u32::try_from(self.quorum).unwrap_or(u32::MAX);
        SyncState { other: before.other.clone(), quorum, ..SyncState::of(leader, &self.voters) }
    }

    /// As the key has it where `me` wrote it; nobody is trusted by me otherwise.
    pub fn own(me: &MemberName, key: &SyncState) -> Trust {
        if key.leader.as_deref() == Some(me.as_str()) { Trust::of(key) } else { Trust::none() }
    }

    /// What commits have to wait for at least, so that this trust is deserved: for a server that starts.
    pub fn demands(&self, method: Method) -> Setting {
        Setting::of(method, self.voters.len().saturating_sub(self.quorum), self.voters.clone())
    }

    /// With so many votes to be had nobody can be elected: better said plainly.
    fn or_none(self) -> Trust {
        if self.quorum < self.voters.len() { self } else { Trust::none() }
    }
}

/// Is what is acknowledged under `setting` missing on at most `quorum` of the voters?
pub fn overlap(trust: &Trust, setting: &Setting) -> bool {
    trust.voters.is_empty() || trust.quorum + setting.count >= trust.voters.union(&setting.names).count()
}

/// May `next` replace `now`, as far as what has been acknowledged until now goes? Of the voters of
/// `now`, at most `quorum` lack such a commit; a voter that is new may lack it; one of `caught_up` lacks none.
pub fn follows(now: &Trust, next: &Trust, caught_up: &BTreeSet<MemberName>) -> bool {
    let open = next.voters.difference(caught_up);
    let (known, new): (Vec<_>, Vec<_>) = open.partition(|name| now.voters.contains(*name));
    next.voters.is_empty() || known.len().min(now.quorum) + new.len() <= next.quorum
}

/// Where the two shall come to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Goal {
    /// What commits wait for.
    pub setting: Setting,
    /// Those that the race trusts.
    pub trust: Trust,
}

/// What the primary's Postgres does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Applied {
    /// Its setting.
    pub setting: Setting,
    /// Those that are seen to have flushed everything that was acknowledged before every process of the
    /// server kept the setting. Empty as long as that moment is not known to have come.
    pub caught_up: BTreeSet<MemberName>,
}

/// The next single write; each leaves a state in which a crash loses nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncStep {
    /// Key and setting are where they should be.
    Settled,
    /// Write the key.
    WriteKey(SyncState),
    /// Change `synchronous_standby_names`.
    Apply(Setting),
    /// See that every process keeps the setting, and that those who shall be trusted have caught up.
    Confirm,
}

/// The next step from what the key says and what Postgres does towards the goal.
///
/// A key is written only if it [`follows`] from the one before, and, where that needs somebody to have caught
/// up, only under a setting it has an [`overlap`] with. (Where it needs nobody, what the old key overlaps with
/// the new one does too.) The setting is changed only to one that the key overlaps with. So the sentence at
/// the top of this file is true after each write, also while some processes of Postgres still keep an older setting.
pub fn step(me: &MemberName, key: &SyncState, applied: &Applied, goal: &Goal) -> SyncStep {
    let write = |trust: &Trust| SyncStep::WriteKey(trust.key(me, key));
    if key.leader.as_deref() != Some(me.as_str()) || key.until_promoted {
        return write(&Trust::none());
    }
    let (now, setting) = (Trust::of(key), &applied.setting);
    if !overlap(&now, setting) {
        return write(&Trust::none()); // somebody meddled
    }
    let nobody = BTreeSet::new();
    if now != goal.trust && follows(&now, &goal.trust, &nobody) {
        return write(&goal.trust);
    }
    if *setting != goal.setting {
        if overlap(&now, &goal.setting) {
            return SyncStep::Apply(goal.setting.clone());
        }
        return write(&between(&now, goal));
    }
    if now == goal.trust {
        return SyncStep::Settled;
    }
    if overlap(&goal.trust, setting) && follows(&now, &goal.trust, &applied.caught_up) {
        return write(&goal.trust);
    }
    SyncStep::Confirm
}

/// Less than the key trusts now, and little enough for the setting that is to come.
fn between(now: &Trust, goal: &Goal) -> Trust {
    let voters: BTreeSet<MemberName> = now.voters.intersection(&goal.trust.voters).cloned().collect();
    let least = voters.union(&goal.setting.names).count().saturating_sub(goal.setting.count);
    Trust { quorum: now.quorum.max(least), voters }.or_none()
}

/// One walsender, as `pg_stat_replication` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderSeen<'a> {
    /// The leader that it serves.
    pub application_name: &'a str,
    /// Its standby's place in the list that the walsender has read; 0 where that does not name it.
    pub priority: i32,
    /// What it has sent.
    pub sent: Lsn,
}

/// Has every walsender that can let a commit go read this setting, and sent everything up to here?
pub fn kept_by(setting: &Setting, senders: &[SenderSeen<'_>], sent: Lsn) -> bool {
    senders
        .iter()
        .all(|sender| sender.priority == setting.priority_of(sender.application_name) && (sender.priority == 0 || sender.sent >= sent))
}

/// One standby as the primary sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StandbySeen {
    /// Its `application_name`, which is its member name.
    pub name: MemberName,
    /// It streams and has caught up to the walsender's tail.
    pub streaming: bool,
    /// It replays what it receives. A copy that is being made (`pg_basebackup`) streams as well, perhaps under the name
    /// of the member that it will be, and confirms a segment at a time, of which nothing can be promoted.
    pub replays: bool,
    /// It may be chosen: no `nosync`, not on its way out.
    pub eligible: bool,
    /// It may never lead: named only where it has to be.
    pub nofailover: bool,
    /// Its tag `failure_domain` and the primary's are both set and differ.
    pub elsewhere: bool,
    /// Preference, higher first.
    pub priority: i64,
    /// Bytes it is behind what the primary has flushed.
    pub lag_bytes: u64,
}

/// What the dynamic configuration says about synchronous replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// `synchronous_mode`.
    pub mode: SynchronousMode,
    /// `synchronous_mode_strict`.
    pub strict: bool,
    /// `synchronous_node_count`: so many standbys confirm each commit, where there are so many.
    pub count: usize,
    /// `synchronous_domains`: each commit is confirmed in another failure domain than the primary's; 1 or 0.
    pub domains: usize,
    /// `maximum_lag_on_syncnode`, in bytes; None where it is off.
    pub maximum_lag_bytes: Option<u64>,
}

impl Rules {
    /// As configured.
    pub fn of(config: &DynamicConfig) -> Rules {
        Rules {
            mode: config.synchronous_mode(),
            strict: config.synchronous_mode_strict(),
            count: config.synchronous_node_count(),
            domains: config.synchronous_domains(),
            maximum_lag_bytes: config.maximum_lag_on_syncnode(),
        }
    }

    fn method(self) -> Method {
        if self.mode == SynchronousMode::Quorum { Method::Any } else { Method::First }
    }

    /// The goal, from the standbys seen and from where things are now.
    ///
    /// `expected`: standbys named at a promotion that were just alive and have not come yet; while any is
    /// expected and none has come, the setting stays, so that commits wait for one of them.
    pub fn goal(self, seen: &[StandbySeen], now: &Trust, setting: &Setting, expected: &BTreeSet<MemberName>) -> Goal {
        if self.mode == SynchronousMode::Off {
            return Goal::default();
        }
        let chosen = self.choose(seen, setting);
        let wanted = Setting::of(self.method(), self.count, chosen);
        if wanted.count > 0 {
            return Goal { trust: Trust::under(&wanted), setting: wanted };
        }
        let keeps = overlap(now, setting) && setting.count > 0;
        if keeps && (self.strict || setting.names.iter().any(|name| expected.contains(name))) {
            // What is true of the key stays true while nobody confirms anything. Nobody stands under either form of the placeholder.
            let setting = if setting.is_placeholder() { Setting::placeholder(self.method()) } else { setting.clone() };
            return Goal { setting, trust: now.clone() };
        }
        let setting = if self.strict { Setting::placeholder(self.method()) } else { Setting::nobody() };
        Goal { setting, trust: Trust::none() }
    }

    /// Of these standbys, in their order, those that may be named where a commit has to be confirmed in another failure domain: all from
    /// there, and so few of the others that any `count` of the named have one from there among them. Where none is there, nobody in
    /// strict mode, so that commits wait for one, and else everybody: a standby next door is better than none.
    pub fn within_domains(self, fit: Vec<(MemberName, bool)>) -> Vec<MemberName> {
        let demanded = self.domains > 0 && fit.iter().any(|(_, elsewhere)| *elsewhere);
        let mut beside = match (self.domains > 0, demanded) {
            (true, true) => self.count.max(1) - 1,
            (true, false) if self.strict => 0,
            _ => usize::MAX,
        };
        let mut may = |elsewhere: bool| {
            let room = elsewhere || beside > 0;
            if !elsewhere {
                beside = beside.saturating_sub(1);
            }
            room
        };
        fit.into_iter().filter(|(_, elsewhere)| may(*elsewhere)).map(|(name, _)| name).collect()
    }

    /// The standbys to name: all that are fit in quorum mode, else the best ones. Those that may lead come before those that may not, then
    /// the higher priority, those of another failure domain, those that are named already, the least behind, the first by name.
    pub fn choose(self, seen: &[StandbySeen], setting: &Setting) -> BTreeSet<MemberName> {
        let streaming = || seen.iter().filter(|standby| standby.streaming && standby.replays && standby.eligible);
        // The lag is that behind the furthest standby: what the primary has just written is nobody's lag yet.
        let least = if streaming().count() > 1 { streaming().map(|standby| standby.lag_bytes).min().unwrap_or(0) } else { 0 };
        let close = |standby: &&StandbySeen| self.maximum_lag_bytes.is_none_or(|most| standby.lag_bytes - least <= most);
        let mut fit: Vec<&StandbySeen> = streaming().filter(close).collect();
        fit.sort_by_key(|standby| {
            let named = setting.names.contains(&standby.name);
            (standby.nofailover, -standby.priority, !standby.elsewhere, !named, standby.lag_bytes, standby.name.clone())
        });
        let may = self.within_domains(fit.iter().map(|standby| (standby.name.clone(), standby.elsewhere)).collect());
        fit.retain(|standby| may.contains(&standby.name));
        let count = match self.mode {
            SynchronousMode::Off => 0,
            SynchronousMode::On => self.count,
            // A member that can't lead only makes it harder to have enough votes.
            SynchronousMode::Quorum => fit.iter().filter(|standby| !standby.nofailover).count().max(self.count),
        };
        fit.into_iter().take(count).map(|standby| standby.name.clone()).collect()
    }

    /// What a server that is about to be promoted begins with. `members`: the other members that run and may be
    /// synchronous. In quorum mode and in strict mode the first commit already waits for one of them; else
    /// nobody is waited for until the first standby has come.
    ///
    /// `own`: what the key trusts where it is this node's own already. A node that went down before its first
    /// checkpoint as primary recovers as a standby and is promoted a second time in the same term (simulation, seed
    /// 216272929): those that its key trusts may lead at any moment, so commits wait for them from the first on.
    pub fn at_promotion(self, members: BTreeSet<MemberName>, own: &Trust) -> Setting {
        if !own.voters.is_empty() {
            return self.at_start(own);
        }
        match (self.mode, self.strict) {
            (SynchronousMode::Off, _) | (SynchronousMode::On, false) => Setting::nobody(),
            (_, true) if members.is_empty() => Setting::placeholder(self.method()),
            (SynchronousMode::On, true) => Setting::of(Method::First, self.count, members),
            (SynchronousMode::Quorum, _) => Setting::of(Method::Any, self.count, members),
        }
    }

    /// What a primary begins with that starts under its own key: all that the key trusts in.
    pub fn at_start(self, trust: &Trust) -> Setting {
        let demanded = trust.demands(self.method());
        if demanded.count == 0 && self.strict && self.mode != SynchronousMode::Off { Setting::placeholder(self.method()) } else { demanded }
    }
}

#[cfg(test)]
mod tests;
