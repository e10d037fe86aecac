//! Check: the faults of a view, by severity, each with what to do next.

use crate::config::SynchronousMode;
use crate::failover::{self, FailoverRequest};
use crate::leader::Leader;
use crate::mark;
use crate::member::{Member, MemberEntry, MemberRole, MemberState, postgres_is};
use crate::mixed::{self, Kind};
use crate::name::MemberName;
use crate::roster;
use crate::slots::{self, SlotFacts};
use crate::store;
use crate::view::ClusterView;
use crate::watchdog;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// How bad it is; the worst comes first in an ordered list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Writes are not served, or two servers believe that they may.
    Critical,
    /// Writes are served; the next failure would hurt.
    Warning,
    /// As somebody wanted it, and worth knowing.
    Notice,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Critical => "critical",
            Severity::Warning => "warning",
            Severity::Notice => "notice",
        })
    }
}

/// What a fault is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(into = "String")]
pub enum Subject {
    /// The cluster as a whole.
    Cluster,
    /// One member.
    Member(MemberName),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Subject::Cluster => f.write_str("cluster"),
            Subject::Member(name) => name.fmt(f),
        }
    }
}

impl From<Subject> for String {
    fn from(subject: Subject) -> String {
        subject.to_string()
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Fault {
    /// How bad.
    pub severity: Severity,
    /// Of whom.
    pub subject: Subject,
    /// What is wrong.
    pub sentence: String,
    /// What to do next.
    pub hint: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.severity, self.subject, self.sentence)
    }
}

/// The faults as they are found.
#[derive(Default)]
struct Found(Vec<Fault>);

impl Found {
    fn add(&mut self, severity: Severity, subject: Subject, sentence: String, hint: &str) {
        self.0.push(Fault { severity, subject, sentence, hint: hint.to_owned() });
    }

    fn cluster(&mut self, severity: Severity, sentence: String, hint: &str) {
        self.add(severity, Subject::Cluster, sentence, hint);
    }

    fn member(&mut self, severity: Severity, name: &MemberName, sentence: String, hint: &str) {
        self.add(severity, Subject::Member(name.clone()), sentence, hint);
    }
}

/// What a leader says of itself in its member key while its fence holds new transactions for longer than a planned change takes.
pub const DRAINING: &str = "new transactions wait at their commit: a planned change began and does not go on";

/// Everything that is wrong with the cluster in this view, the worst first.
pub fn faults(view: &ClusterView) -> Vec<Fault> {
    let mut found = Found::default();
    let doubted = doubts(view, &mut found);
    match &view.leader {
        // Whatever else these keys say was so once.
        _ if doubted => {}
        Some(leader) => leading(view, leader, &mut found),
        None => vacant(view, &mut found),
    }
    for (name, entry) in &view.members {
        let leads = view.leader.as_ref().is_some_and(|leader| leader.name == *name);
        if !leads && !doubted {
            standing_by(view, name, &entry.member, &mut found);
        }
        of_any(name, &entry.member, &mut found);
        if let Some(why) = entry.member.apart() {
            found.member(Severity::Warning, name, format!("seen from here: {why}"), "`tenure version` shows who runs what");
        }
        if mixed::kind(&entry.member) == Kind::Patroni && view.members.values().any(|other| mixed::kind(&other.member) == Kind::Ours) {
            let sentence = format!("Patroni {} runs it, and pg_tenure others", entry.member.version);
            found.member(
                Severity::Notice,
                name,
                sentence,
                "`tenure adopt --check FILE` there says what is next; `tenure abandon` on the others is the way back",
            );
        }
    }
    if !doubted {
        for (name, since) in roster::lost(view) {
            let Ok(name) = MemberName::new(&name) else { continue };
            let since = since.map_or_else(|| "a moment ago".to_owned(), |since| format!("until {since}"));
            found.member(
                Severity::Warning,
                &name,
                format!("it is lost: it was a member {since}, and nothing of it is in etcd now"),
                "start its arbiter; if it was taken away for good, it is missed until missed_member_ttl is over",
            );
        }
        as_a_whole(view, &mut found);
    }
    found.0.sort();
    found.0
}

/// Members that know more than etcd does.
fn doubts(view: &ClusterView, found: &mut Found) -> bool {
    let mut words: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, entry) in &view.members {
        if let Some(doubt) = entry.member.tenure.as_ref().and_then(|facts| facts.doubt.as_deref()) {
            words.entry(doubt).or_default().push(name.as_str());
        }
    }
    for (doubt, names) in &words {
        found.cluster(
            Severity::Critical,
            format!("{doubt}; so say {}, and nothing is decided by what etcd says", names.join(" and ")),
            "bring the right etcd back, or make its keys again from what the members know: `tenure rebuild-keys`",
        );
    }
    !words.is_empty()
}

fn vacant(view: &ClusterView, found: &mut Found) {
    if view.system_id().is_none() {
        let with_data: Vec<&str> = view.members.iter().filter(|(_, entry)| store::has_data(entry)).map(|(name, _)| name.as_str()).collect();
        if !with_data.is_empty() {
            return found.cluster(
                Severity::Critical,
                format!("etcd has no keys of a cluster, and there is data of one at {}", with_data.join(", ")),
                "start no empty node; who led last makes the keys again by itself, or `tenure rebuild-keys` does it",
            );
        }
        let failed = |(name, entry): (&MemberName, &MemberEntry)| {
            let why = entry.member.tenure.as_ref()?.reason.as_ref()?;
            entry
                .member
                .state
                .to_string()
                .ends_with("failed")
                .then(|| format!("the cluster has no data yet: {name} could not found it: {why}"))
        };
        let (said, hint) = match view.members.iter().find_map(failed) {
            Some(said) => (said, "correct what it names on that node; its arbiter tries again by itself"),
            None => ("the cluster has no data yet".to_owned(), "start an arbiter whose configuration has a bootstrap section"),
        };
        return found.cluster(Severity::Critical, said, hint);
    }
    let after = view.last_term();
    let refusals = view
        .announcements
        .iter()
        .filter(|(_, word)| word.value.after == after && !word.value.stands)
        .filter_map(|(name, word)| Some(format!("{name}: {}", word.value.why.as_ref()?)))
        .collect::<Vec<_>>();
    let why = if refusals.is_empty() { String::new() } else { format!(" ({})", refusals.join("; ")) };
    found.cluster(
        Severity::Critical,
        format!("nobody leads{why}"),
        "start a member that may lead, or name one: `tenure failover --candidate NAME`",
    );
}

fn leading(view: &ClusterView, leader: &Leader, found: &mut Found) {
    let (name, critical) = (&leader.name, Severity::Critical);
    let Some(entry) = view.members.get(name) else {
        return found.member(
            critical,
            name,
            "it leads, but has no member key".to_owned(),
            "look at its server log: the lease worker writes the key when the server runs",
        );
    };
    if leader.lease != entry.lease {
        found.member(
            critical,
            name,
            "the leader key is in its name, but not on its lease, so it may not lead by it".to_owned(),
            "somebody else wrote the key; it gives the key up within its TTL, or delete the key leader in etcd",
        );
    }
    let member = &entry.member;
    if !member.is_running() {
        found.member(
            critical,
            name,
            format!("it leads, but {}", postgres_is(&member.state)),
            "look at its server log; the arbiter restarts it, or gives the leadership away after primary_start_timeout",
        );
    } else if member.tenure.as_ref().and_then(|facts| facts.reason.as_deref()) == Some(DRAINING) {
        found.member(
            critical,
            name,
            format!("it leads, but {DRAINING}"),
            "it ends by itself within a minute; `SELECT tenure_internal.undrain()` on the leader ends it now",
        );
    } else if member.role == MemberRole::Primary && view.is_standby_cluster() {
        found.member(
            critical,
            name,
            "standby_cluster is set, but its Postgres is a primary still".to_owned(),
            "its fence is closed, so it acknowledges nothing; see that its arbiter runs, which demotes it",
        );
    } else if member.role == MemberRole::StandbyLeader && view.is_standby_cluster() {
        follows_remote(name, member, found);
    } else if member.role != MemberRole::Primary {
        found.member(
            critical,
            name,
            format!("it leads, but its Postgres is a {}", member.role),
            "it should be promoted within moments; if it is not, see that its arbiter runs",
        );
    }
}

fn follows_remote(name: &MemberName, member: &Member, found: &mut Found) {
    if member.replication_state.as_deref() != Some("streaming") && !member.tags.nostream() {
        found.member(
            Severity::Warning,
            name,
            "it leads a standby cluster and does not stream from the cluster in standby_cluster".to_owned(),
            "look at its arbiter's and its server's log: the addresses, authentication over there, the slot, or WAL that is gone",
        );
    }
}

fn standing_by(view: &ClusterView, name: &MemberName, member: &Member, found: &mut Found) {
    let warning = Severity::Warning;
    if view.members.get(name).is_some_and(|entry| !entry.is_kept()) {
        return found.member(
            warning,
            name,
            "its member key is on no lease, so no node keeps it".to_owned(),
            "somebody else wrote the key: delete it in etcd",
        );
    }
    if !member.is_running() {
        let why = member.tenure.as_ref().and_then(|facts| facts.reason.as_ref());
        let state = match member.state {
            MemberState::CreatingReplica => copied(view, name, member),
            _ => postgres_is(&member.state),
        };
        let said = why.map_or_else(|| state.clone(), |why| format!("{state}: {why}"));
        return found.member(warning, name, said, "look at its arbiter's log");
    }
    let Some(leader) = &view.leader else { return };
    if member.role == MemberRole::Primary {
        return found.member(
            Severity::Critical,
            name,
            format!("its Postgres is a primary, but {} leads", leader.name),
            "its fence is closed, so it acknowledges nothing; see that its arbiter runs, which will demote it",
        );
    }
    let theirs = view.members.get(&leader.name).and_then(|entry| entry.member.timeline);
    if let (Some(mine), Some(theirs)) = (member.timeline, theirs)
        && mine != theirs
    {
        found.member(
            warning,
            name,
            format!("it is on timeline {mine}, {} is on {theirs}", leader.name),
            "it should follow or be rewound by itself; `tenure reinit` makes a new copy",
        );
    }
    let stuck = member.tenure.as_ref().and_then(|facts| facts.reason.as_ref()).filter(|why| !watchdog::is_reason(why));
    match member.replication_state.as_deref() {
        Some("streaming") if stuck.is_none() => {}
        _ if member.tags.nostream() => {}
        other => found.member(
            warning,
            name,
            match (stuck, other) {
                (Some(why), _) => format!("it can't go on: {why}"),
                (None, Some(state)) => format!("it does not stream: it is {state}"),
                (None, None) => "it does not stream".to_owned(),
            },
            "look at its server log: authentication, the slot, or WAL that is gone; `tenure reinit` makes a new copy",
        ),
    }
    let most = view.config().maximum_lag_on_failover();
    if let (Some(mine), Some(ahead)) = (member.position(), view.leader_position()) {
        let lag = mine.lag_bytes_behind(ahead);
        // One that replays late on purpose receives like any other, and may not take over anyway.
        if lag > most && member.tags.delay().is_none() {
            found.member(
                warning,
                name,
                format!("it is {lag} bytes behind {}, more than maximum_lag_on_failover ({most}): it may not take over", leader.name),
                "see what slows it down, or raise maximum_lag_on_failover",
            );
        }
    }
}

/// How far a copy is, and what is kept for it meanwhile.
fn copied(view: &ClusterView, name: &MemberName, member: &Member) -> String {
    let progress = member.tenure.as_ref().and_then(|facts| facts.progress_percent).map(|percent| format!(" ({percent} %)"));
    let slot = name.slot_name();
    let from = view.status.as_ref().and_then(|status| status.value.slots.get(&slot)).copied();
    let kept = match (slots::said(view).reserved.contains(&slot), from.zip(view.leader_position())) {
        (true, Some((from, to))) => format!("the slot {slot} keeps {} bytes of WAL for it", from.lag_bytes_behind(to)),
        (true, None) => format!("the slot {slot} keeps WAL for it"),
        (false, _) if view.leader.is_none() || member.tags.nostream() => {
            return format!("its Postgres is being copied{}", progress.unwrap_or_default());
        }
        (false, _) => "no slot is known to keep WAL for it".to_owned(),
    };
    format!("its Postgres is being copied{}; {kept}", progress.unwrap_or_default())
}

fn of_any(name: &MemberName, member: &Member, found: &mut Found) {
    // Without our own facts the key is another program's, which has its daemon inside.
    let barred = member.tenure.as_ref().and_then(|facts| facts.reason.as_deref()).filter(|why| watchdog::is_reason(why));
    if let Some(why) = barred {
        found.member(
            Severity::Warning,
            name,
            format!("it does not stand: {why}"),
            "load the device's driver and let the arbiter's user write to it, or set watchdog.mode to automatic in the node's file",
        );
    } else if member.tenure.as_ref().is_some_and(|facts| !facts.arbiter) {
        found.member(
            Severity::Warning,
            name,
            "no arbiter runs beside it, so nothing could promote, restart or demote it".to_owned(),
            "start its arbiter",
        );
    }
    if let Some(facts) = member.tenure.as_ref().filter(|_| member.is_running())
        && let Some(arbiter) = facts.arbiter_version.as_ref().filter(|arbiter| **arbiter != facts.version)
    {
        found.member(
            Severity::Notice,
            name,
            format!("its arbiter is of release {arbiter}, the library in its server of {}", facts.version),
            "a restart loads the library that is installed: `tenure restart --rolling`; an arbiter is ended with SIGUSR1 and started again",
        );
    }
    if let Some(sick) = member.tenure.as_ref().and_then(|facts| facts.sick.as_ref()) {
        found.member(
            Severity::Warning,
            name,
            format!("it is sick: {sick}"),
            "look at its disk, its connections and its load (docs/sick-primary.md)",
        );
    }
    if let Some(why) = member.tenure.as_ref().and_then(|facts| facts.addresses.as_ref()?.fault.as_ref()) {
        found.member(
            Severity::Warning,
            name,
            format!("it does not hold a virtual address that it should: {why}"),
            "see who has the address, or give the arbiter CAP_NET_ADMIN and CAP_NET_RAW (docs/routing.md)",
        );
    }
    for (key, why) in member.tenure.iter().flat_map(|facts| &facts.left_out) {
        found.member(
            Severity::Warning,
            name,
            format!("{key} is left out there: {why}"),
            "put it right or take it out with `tenure edit-config`, or write it into the node's own file too (docs/security.md)",
        );
    }
    for rule in member.tenure.iter().flat_map(|facts| &facts.rules) {
        found.member(
            Severity::Warning,
            name,
            rule.clone(),
            "correct the rules where they are given: postgresql.pg_hba and pg_ident in the node's file or by `tenure edit-config`, or the server's own file (docs/security.md)",
        );
    }
    if member.state == MemberState::from(mark::STATE.to_owned()) {
        let why = member.tenure.as_ref().and_then(|facts| facts.reason.as_deref()).unwrap_or("its arbiter found it");
        found.member(
            Severity::Critical,
            name,
            format!("a server runs on its data that is not its own, so nothing fences its commits: {why}"),
            "its arbiter stops it unless the cluster is in maintenance mode; stop it by hand there, or resume",
        );
    }
    if member.pending_restart {
        let waiting = member.other.get("pending_restart_reason").and_then(|reason| reason.as_object());
        let names = waiting.into_iter().flatten().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ");
        let names = if names.is_empty() { names } else { format!(": {names}") };
        found.member(Severity::Notice, name, format!("a setting waits for a restart{names}"), "`tenure restart` when it suits");
    }
}

fn as_a_whole(view: &ClusterView, found: &mut Found) {
    let primaries = view
        .members
        .iter()
        .filter(|(_, entry)| entry.member.is_running() && entry.member.role == MemberRole::Primary)
        .map(|(name, _)| name.as_str())
        .collect::<Vec<_>>();
    if primaries.len() > 1 {
        found.cluster(
            Severity::Critical,
            format!("{} say that they are primary", primaries.join(" and ")),
            "only the leader acknowledges commits; stop the others if their arbiters do not",
        );
    }
    if let Some(leader) = &view.leader {
        synchronous(view, leader, found);
        successor(view, leader, found);
    }
    if view.config().paused() {
        found.cluster(Severity::Notice, "maintenance mode is on: nobody takes over by itself".to_owned(), "`tenure resume` ends it");
    }
    for (slot, bytes) in SlotFacts::of(view.status.as_ref().map(|status| &status.value)).holding_back {
        found.cluster(
            Severity::Warning,
            format!("the replication slot {slot} holds back {bytes} bytes of WAL, or is about to lose what it needs"),
            "see that its consumer runs, drop the slot, or bound it by max_slot_wal_keep_size",
        );
    }
    for slot in slots::lost(view) {
        found.cluster(
            Severity::Critical,
            format!("the permanent logical slot {slot} is missing: it did not survive a failover, or could not be made"),
            "the leader's log says why and what to do; its consumer must be put right before the slot is made by hand",
        );
    }
    for key in &view.unreadable {
        found.cluster(Severity::Warning, format!("a key can't be read and is left out: {key}"), "put it right or delete it in etcd");
    }
}

fn synchronous(view: &ClusterView, leader: &Leader, found: &mut Found) {
    if view.config().synchronous_mode() == SynchronousMode::Off {
        return;
    }
    let standbys = |name: &&MemberName| {
        let key = view.sync.as_ref();
        key.is_some_and(|key| key.value.leader.as_deref() == Some(leader.name.as_str()) && key.value.has_standby(name))
    };
    if view.members.keys().any(|name| standbys(&name)) {
        return;
    }
    let (severity, consequence) = if view.config().synchronous_mode_strict() {
        (Severity::Critical, "commits wait")
    } else {
        (Severity::Warning, "commits are on one node only")
    };
    found.cluster(
        severity,
        format!("synchronous_mode is on, but there is no synchronous standby: {consequence}"),
        "bring a standby without the tag nosync to stream from the leader",
    );
}

/// Could anybody take over in a planned way? Maintenance mode is a wish of its own, not a reason.
fn successor(view: &ClusterView, leader: &Leader, found: &mut Found) {
    let mut awake = view.clone();
    if let Some(config) = &mut awake.config {
        config.value.0.remove("pause");
    }
    let request = FailoverRequest { leader: Some(leader.name.to_string()), ..FailoverRequest::default() };
    if let Err(why) = failover::candidates(&awake, &request) {
        found.cluster(
            Severity::Warning,
            format!("no member could take over: {}", why.plainly()),
            "a failure of the leader now would end the service: bring a standby to stream",
        );
    }
}
