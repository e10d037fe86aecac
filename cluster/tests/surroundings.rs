//! Surroundings and incidents: what is said of etcd, certificates and backups, and of the last change of leader.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::backup::Backup;
use cluster::incident::{Forked, Incident, Journals, Lost, Record, last};
use cluster::lsn::Lsn;
use cluster::name::Timeline;
use cluster::surroundings::{Certificate, EtcdMember, EtcdState, Other, Surroundings, faults, twins};
use cluster::view::{ClusterView, LastTerm, Versioned};
use serde_json::json;
use std::collections::BTreeMap;
use std::time::Duration;
use world::*;

fn told(view: &ClusterView, around: &Surroundings) -> Vec<String> {
    let found = faults(view, around);
    assert!(found.iter().all(|fault| !fault.hint.is_empty()) && found.is_sorted_by_key(|fault| fault.severity));
    found.iter().map(ToString::to_string).collect()
}

fn etcd(used: u64, fsync_ms: u64, full: bool) -> Surroundings {
    let state =
        EtcdState { endpoint: "e1".to_owned(), fsync: Some(Duration::from_millis(fsync_ms)), used: Some(used), quota: Some(1000), full };
    Surroundings { etcd: vec![state], ..Surroundings::default() }
}

fn hosts(hosts: &[&[&str]]) -> Surroundings {
    let member = |(number, hosts): (usize, &&[&str])| EtcdMember {
        name: format!("etcd{number}"),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
    };
    Surroundings { members: hosts.iter().enumerate().map(member).collect(), ..Surroundings::default() }
}

fn certificate(days: i64) -> Surroundings {
    let certificate = Certificate { member: Some(name("n1")), whose: "the certificate of its REST".to_owned(), ends_in_s: days * 86400 };
    Surroundings { certificates: vec![certificate], ..Surroundings::default() }
}

#[test]
fn what_is_wrong_around_a_cluster_is_said() {
    let view = ClusterView::default();
    for (case, around, expected) in [
        ("nothing was looked at", Surroundings::default(), None),
        ("a good disk and space", etcd(700, 8, false), None),
        ("a slow disk", etcd(1, 256, false), Some("warning: cluster: etcd at e1 waits up to 256 ms")),
        ("it fills", etcd(850, 8, false), Some("warning: cluster: etcd at e1 has filled 85 %")),
        ("it is almost full", etcd(960, 8, false), Some("critical: cluster: etcd at e1 has filled 96 %")),
        ("it is full", etcd(960, 8, true), Some("critical: cluster: etcd at e1 is full")),
        ("three hosts", hosts(&[&["10.0.0.1"], &["10.0.0.2"], &["10.0.0.3"]]), None),
        ("one member", hosts(&[&["127.0.0.1"]]), None),
        ("two on one host", hosts(&[&["10.0.0.1"], &["10.0.0.2", "10.0.0.1"], &["10.0.0.3"]]), Some("on one host, 10.0.0.1: etcd0, etcd1")),
        ("a certificate for a year", certificate(365), None),
        ("one for 29 days", certificate(29), Some("warning: n1: the certificate of its REST runs out in 29 day(s)")),
        ("one for 2 days", certificate(2), Some("critical: n1: the certificate of its REST runs out in 48 hour(s)")),
        ("one of before", certificate(-3), Some("critical: n1: the certificate of its REST has run out 3 day(s) ago")),
        (
            "another server",
            Surroundings { others: vec![Other { place: "db9".to_owned(), what: "it leads dev".to_owned() }], ..Surroundings::default() },
            Some("critical: cluster: there is another writable server of this database system at db9"),
        ),
    ] {
        let told = told(&view, &around);
        assert_eq!(told.len(), usize::from(expected.is_some()), "{case}: {told:?}");
        assert!(expected.is_none_or(|part| told[0].contains(part)), "{case}: {told:?}");
    }
}

#[test]
fn a_backup_that_nobody_told_of_is_missed_where_that_is_wanted() {
    let around =
        |hours: Option<u64>| Surroundings { backup_age: hours.map(|hours| Duration::from_secs(hours * 3600)), ..Surroundings::default() };
    for (within, key, hours, expected) in [
        (json!(null), None, None, None),
        (json!(0), None, None, None),
        (json!("26h"), None, None, Some("no backup was ever told of, and backup_within is 26 h")),
        (json!("26h"), Some("2026-11-22T03:00:00Z"), Some(26), None),
        (json!(93600), Some("2026-11-22T03:00:00Z"), Some(27), Some("the last backup is 27 h old")),
        (json!("26h"), Some("noon"), None, Some("can't be read: noon")),
    ] {
        let mut view = vacancy();
        view.config = config(json!({"backup_within": within}));
        view.backup = key.and_then(|at| versioned(Backup { at: at.to_owned(), label: String::new() }));
        let told = told(&view, &around(hours));
        assert_eq!(told.len(), usize::from(expected.is_some()), "{within} {key:?} {hours:?}: {told:?}");
        assert!(expected.is_none_or(|part| told[0].contains(part)), "{told:?}");
    }
}

#[test]
fn two_clusters_with_one_identity_are_named_only_where_both_take_writes() {
    let writing = || {
        let mut view = vacancy();
        view.leader = leader("n1");
        view.members.insert(name("n1"), member("n1", cluster::member::MemberRole::Primary, 1, LOW));
        view
    };
    let mut following = writing();
    following.members.insert(name("n1"), member("n1", cluster::member::MemberRole::StandbyLeader, 1, LOW));
    let clusters: BTreeMap<&str, ClusterView> = [("a", writing()), ("b", writing()), ("dr", following), ("empty", vacancy())].into();
    assert_eq!(twins(&clusters), [(&"a", vec![&"b"]), (&"b", vec![&"a"])]);
}

fn record(at: u32, leads: Option<(&str, i64)>, duty: &str) -> Record {
    Record {
        at: format!("2026-11-22T03:00:{at:02}.000Z"),
        revision: 1,
        leader: leads.map(|(leader, _)| leader.to_owned()),
        term: leads.map(|(_, term)| term),
        postgres: "as it was".to_owned(),
        duty: duty.to_owned(),
        why: "so".to_owned(),
        primary: false,
        follows: false,
        winds_back: false,
        forked: None,
    }
}

/// n1 led in term 7; n2 took the key in term 9.
fn taken(how: &str, synchronous: bool) -> (ClusterView, Journals) {
    let mut view = vacancy();
    view.config = config(json!({"synchronous_mode": synchronous}));
    view.leader = leader("n2");
    if let Some(leader) = &mut view.leader {
        leader.term.0 = 9;
    }
    view.last_term = Some(Versioned { value: LastTerm { holder: name("n2"), how: how.to_owned() }, revision: 9 });
    let n2 = vec![
        record(0, Some(("n1", 7)), "no action"),
        record(9, None, "no action"),
        record(10, Some(("n2", 9)), "promote (term 9)"),
        Record { primary: true, ..record(11, Some(("n2", 9)), "no action") },
    ];
    (view, [("n1".to_owned(), Err("connection refused".to_owned())), ("n2".to_owned(), Ok(n2))].into())
}

fn lost(how: &str, synchronous: bool, returned: Option<Record>) -> Incident {
    let (view, mut journals) = taken(how, synchronous);
    if let Some(record) = returned {
        journals.insert("n1".to_owned(), Ok(vec![record]));
    }
    last(&view, &journals).unwrap()
}

#[test]
fn an_incident_says_who_led_who_leads_and_what_was_lost() {
    let back = || record(40, Some(("n2", 9)), "follow n2");
    let forked = Some(Forked { timeline: Timeline(1), mine: Lsn(0x3000), fork: Lsn(0x1000) });
    for (case, how, synchronous, returned, expected) in [
        ("handed over", "handed over", false, None, "nothing that was acknowledged: n1 handed over"),
        ("asynchronous, away", "taken", false, None, "not known: synchronous_mode is off, and n1 has not said"),
        ("asynchronous, follows", "taken", false, Some(Record { follows: true, ..back() }), "nothing that was acknowledged: n1 is back"),
        (
            "asynchronous, forked",
            "taken",
            false,
            Some(Record { forked, winds_back: true, ..back() }),
            "8192 bytes of WAL: n1 had written them and nobody",
        ),
        (
            "asynchronous, crashed",
            "taken",
            false,
            Some(Record { winds_back: true, ..back() }),
            "not known: synchronous_mode is off, and n1 was wound back",
        ),
        ("synchronous, away", "taken", true, None, "nothing that was acknowledged: synchronous_mode is on"),
        ("synchronous, forked", "taken", true, Some(Record { forked, ..back() }), "no client was told"),
    ] {
        let incident = lost(how, synchronous, returned);
        assert!(incident.lost.sentence().contains(expected), "{case}: {}", incident.lost.sentence());
        assert_eq!(
            (incident.from.as_str(), incident.to.as_deref(), incident.ended, incident.began),
            ("n1", Some("n2"), Some(7), Some(9)),
            "{case}"
        );
        assert_eq!(incident.served.as_deref(), Some("2026-11-22T03:00:11.000Z"), "{case}");
    }
}

#[test]
fn an_incident_tells_the_race_and_what_a_journal_does_not_reach() {
    let (mut view, journals) = taken("taken", false);
    let mut n3 = word(1, LOW);
    n3.value.stands = false;
    n3.value.why = Some("this node is tagged nofailover".to_owned());
    for (who, word) in [("n2", word(1, HIGH)), ("n3", n3)] {
        view.announcements.insert(name(who), word);
    }
    let incident = last(&view, &journals).unwrap();
    assert!(incident.why[0].starts_with("n2 stood with timeline 1") && incident.why[0].contains("took the key"), "{:?}", incident.why);
    assert_eq!(incident.why[1], "n3 did not stand: this node is tagged nofailover");
    assert_eq!(incident.unheard, [("n1".to_owned(), "connection refused".to_owned())]);
    assert_eq!(incident.vacant, Some(("2026-11-22T03:00:09.000Z".to_owned(), "2026-11-22T03:00:09.000Z".to_owned())));

    // Nobody leads yet: the incident goes on.
    view.leader = None;
    view.last_term = None;
    let n2 = vec![record(0, Some(("n1", 7)), "no action"), record(9, None, "no action")];
    let incident = last(&view, &[("n2".to_owned(), Ok(n2))].into()).unwrap();
    assert_eq!((incident.from.as_str(), incident.to, matches!(incident.lost, Lost::Unknown { .. })), ("n1", None, true));

    // All arbiters began after it.
    let (view, _) = taken("taken", false);
    assert_eq!(last(&view, &[("n2".to_owned(), Ok(vec![record(60, Some(("n2", 9)), "no action")]))].into()), None);
    // An edit of `ttl` writes the key again, for the same member.
    let (view, _) = taken("taken", false);
    assert_eq!(last(&view, &[("n2".to_owned(), Ok(vec![record(0, Some(("n2", 7)), "no action")]))].into()), None);
}
