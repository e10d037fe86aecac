//! Surroundings: faults that stand in no key of the cluster: etcd's own state, certificates that run out, other servers with this identity,
//! backups that nobody has seen.

use crate::check::{Fault, Severity, Subject};
use crate::member::MemberRole;
use crate::name::MemberName;
use crate::view::ClusterView;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// A certificate that ends within this time is to be renewed now.
pub const CERTIFICATE_SOON: Duration = Duration::from_secs(30 * DAY_S);
/// One that ends within this time may end over a weekend.
const CERTIFICATE_NOW: Duration = Duration::from_secs(3 * DAY_S);
/// Each renewal waits for etcd's disk on more than one member: slower than this, and a TTL of a few seconds has no air left.
pub const FSYNC_SLOW: Duration = Duration::from_millis(128);
/// At its quota etcd takes no write and grants no lease; compaction and defragmentation take their time.
const QUOTA_WARNS: u64 = 80;
const QUOTA_CRITICAL: u64 = 95;
const DAY_S: u64 = 24 * 60 * 60;

/// A member of etcd.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdMember {
    /// Its name.
    pub name: String,
    /// The addresses of the hosts in its URLs.
    pub hosts: BTreeSet<String>,
}

/// What one endpoint of etcd says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EtcdState {
    /// Its address.
    pub endpoint: String,
    /// Of the writes of its log, 99 of 100 took no longer; since it started.
    pub fsync: Option<Duration>,
    /// Bytes of its database.
    pub used: Option<u64>,
    /// Bytes that it may have.
    pub quota: Option<u64>,
    /// It has raised the alarm that there is no space.
    pub full: bool,
}

/// A certificate that somebody shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The member that shows it; None for etcd's and the tool's own.
    pub member: Option<MemberName>,
    /// Whose it is, as the sentence begins.
    pub whose: String,
    /// Seconds until it ends; negative once it has.
    pub ends_in_s: i64,
}

/// A server that answers as a primary of this database system and is not this cluster's leader.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Other {
    /// Where.
    pub place: String,
    /// What it is, as the sentence goes on.
    pub what: String,
}

/// All of it. What could not be looked at is not there.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Surroundings {
    /// Every member of etcd.
    pub members: Vec<EtcdMember>,
    /// The endpoints that answered.
    pub etcd: Vec<EtcdState>,
    /// Certificates.
    pub certificates: Vec<Certificate>,
    /// Other writable servers.
    pub others: Vec<Other>,
    /// How old the last backup is that was told of; None where none was, or its time can't be read.
    pub backup_age: Option<Duration>,
}

/// What is wrong around the cluster of this view, the worst first.
pub fn faults(view: &ClusterView, around: &Surroundings) -> Vec<Fault> {
    let mut found = Vec::new();
    of_hosts(&around.members, &mut found);
    around.etcd.iter().for_each(|state| of_state(state, &mut found));
    around.certificates.iter().for_each(|certificate| of_certificate(certificate, &mut found));
    for Other { place, what } in &around.others {
        let sentence = format!("there is another writable server of this database system at {place}: {what}");
        found.push(fault(Severity::Critical, Subject::Cluster, sentence, TWO_LIVES));
    }
    of_backups(view, around.backup_age, &mut found);
    found.sort();
    found
}

/// The clusters that share their identity with others whose leader is a primary too: each with those others.
pub fn twins<W: Ord>(clusters: &BTreeMap<W, ClusterView>) -> Vec<(&W, Vec<&W>)> {
    let mut by_system: BTreeMap<&str, Vec<&W>> = BTreeMap::new();
    for (which, view) in clusters {
        if let Some(id) = view.system_id().filter(|_| takes_writes(view)) {
            by_system.entry(&id.0).or_default().push(which);
        }
    }
    let shared = by_system.into_values().filter(|which| which.len() > 1);
    let each = shared.flat_map(|all| {
        let all = all.clone();
        (0..all.len()).map(move |at| (all[at], all.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, which)| *which).collect()))
    });
    each.collect()
}

/// Its leader's own key says that it is a primary.
pub fn takes_writes(view: &ClusterView) -> bool {
    let leader = view.leader.as_ref().and_then(|leader| view.members.get(&leader.name));
    leader.is_some_and(|entry| entry.member.is_running() && entry.member.role == MemberRole::Primary)
}

/// What is said of a cluster that shares its identity with those named.
pub fn twin_fault(others: &str) -> Fault {
    fault(Severity::Critical, Subject::Cluster, format!("it has the same database system as {others}, and both take writes"), TWO_LIVES)
}

const TWO_LIVES: &str = "see which of them clients reach and stop the other; what one archives spoils the other's archive, so a copy that is to live on needs an archive and an identity of its own";

fn fault(severity: Severity, subject: Subject, sentence: String, hint: &str) -> Fault {
    Fault { severity, subject, sentence, hint: hint.to_owned() }
}

/// Two members on one host are lost together.
fn of_hosts(members: &[EtcdMember], found: &mut Vec<Fault>) {
    let mut by_host: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for member in members {
        for host in &member.hosts {
            by_host.entry(host).or_default().insert(&member.name);
        }
    }
    let mut told = BTreeSet::new();
    for (host, names) in by_host.into_iter().filter(|(_, names)| names.len() > 1) {
        if told.insert(names.clone()) {
            let names = names.into_iter().collect::<Vec<_>>().join(", ");
            found.push(fault(
                Severity::Warning,
                Subject::Cluster,
                format!("members of etcd are on one host, {host}: {names}"),
                "put each member of etcd on a host of its own: with that host most of them may be lost, and etcd with them",
            ));
        }
    }
}

fn of_state(state: &EtcdState, found: &mut Vec<Fault>) {
    let endpoint = &state.endpoint;
    if let Some(fsync) = state.fsync.filter(|fsync| *fsync > FSYNC_SLOW) {
        found.push(fault(
            Severity::Warning,
            Subject::Cluster,
            format!("etcd at {endpoint} waits up to {} ms for its disk (99 of 100 writes, since it started)", fsync.as_millis()),
            "give etcd a disk of its own: a renewal of the lease waits for it",
        ));
    }
    let space = "compact and defragment it (docs/runbook.md), or raise its quota (--quota-backend-bytes)";
    if state.full {
        found.push(fault(
            Severity::Critical,
            Subject::Cluster,
            format!("etcd at {endpoint} is full: it takes no write and grants no lease"),
            "compact and defragment it, then `etcdctl alarm disarm` (docs/runbook.md)",
        ));
    } else if let (Some(used), Some(quota)) = (state.used, state.quota.filter(|quota| *quota > 0)) {
        let percent = used.saturating_mul(100) / quota;
        let severity = match percent {
            QUOTA_CRITICAL.. => Severity::Critical,
            QUOTA_WARNS.. => Severity::Warning,
            _ => return,
        };
        found.push(fault(
            severity,
            Subject::Cluster,
            format!("etcd at {endpoint} has filled {percent} % of its quota ({used} of {quota} bytes)"),
            space,
        ));
    }
}

fn of_certificate(certificate: &Certificate, found: &mut Vec<Fault>) {
    let subject = certificate.member.clone().map_or(Subject::Cluster, Subject::Member);
    let left = u64::try_from(certificate.ends_in_s).ok();
    let (severity, when) = match left.map(Duration::from_secs) {
        None => (Severity::Critical, format!("has run out {} day(s) ago", certificate.ends_in_s.unsigned_abs() / DAY_S)),
        Some(left) if left < CERTIFICATE_NOW => (Severity::Critical, format!("runs out in {} hour(s)", left.as_secs() / 3600)),
        Some(left) if left < CERTIFICATE_SOON => (Severity::Warning, format!("runs out in {} day(s)", left.as_secs() / DAY_S)),
        Some(_) => return,
    };
    let hint = "put a new one in its place; REST and Postgres take it at a reload, etcd and its clients at their next start";
    found.push(fault(severity, subject, format!("{} {when}", certificate.whose), hint));
}

fn of_backups(view: &ClusterView, age: Option<Duration>, found: &mut Vec<Fault>) {
    let Some(within) = view.config().backup_within().filter(|within| !within.is_zero()) else { return };
    let hours = |span: Duration| format!("{} h", span.as_secs() / 3600);
    let sentence = match (age, &view.backup) {
        (Some(age), _) if age <= within => return,
        (Some(age), _) => format!("the last backup is {} old, and backup_within is {}", hours(age), hours(within)),
        (None, Some(told)) => format!("the time of the last backup can't be read: {}", told.value.at),
        (None, None) => format!("no backup was ever told of, and backup_within is {}", hours(within)),
    };
    let hint = "see that the backup runs, and that its job ends with `&& tenure backup-done` (docs/backup.md)";
    found.push(fault(Severity::Warning, Subject::Cluster, sentence, hint));
}
