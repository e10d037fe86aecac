//! Deposition: tables, and small worlds whole.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

#[path = "../world/mod.rs"]
mod world;
mod worlds;

use cluster::deposition;
use cluster::hearing::{self, Answer, Ears, Hearing};
use cluster::leader::Term;
use cluster::lsn::Lsn;
use cluster::member::MemberRole;
use cluster::name::Timeline;
use cluster::quorum::{Method, Setting, Trust};
use cluster::race;
use cluster::reached::{End, Reached};
use cluster::standing::{Bond, Candidate, Guarded, Judged, Knowledge, RaceStep};
use cluster::sync::SyncState;
use cluster::time::Moment;
use cluster::view::{Announcement, ClusterView, LastTerm, Status, Versioned};
use serde_json::json;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;
use world::*;

/// Just now.
const HEARD: Answer = Answer::Heard(Duration::ZERO);

const MS: Duration = Duration::from_millis(1);

/// n1 leads, n2 and n3 vote, one vote is needed besides one's own.
fn scene(config: serde_json::Value, quorum: u32, voters: &str) -> ClusterView {
    let mut view = led("n1");
    view.config = world::config(config);
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, 1, HIGH));
    for who in ["n2", "n3"] {
        view.members.insert(name(who), member(who, MemberRole::Replica, 1, HIGH));
    }
    let key = SyncState { quorum, ..sync_key("n1", voters).unwrap().value };
    view.sync = Some(Versioned { value: key, revision: 30 });
    view
}

fn led(who: &str) -> ClusterView {
    let mut view = vacancy();
    view.leader = leader(who);
    view.last_term = Some(Versioned { value: LastTerm { holder: name(who), how: "taken".to_owned() }, revision: NOW.0 });
    view
}

fn quorum_on() -> serde_json::Value {
    json!({"synchronous_mode": "quorum", "deposition": "on"})
}

fn voter(who: &str, ears: Ears, bond: bool) -> Candidate {
    let bond = bond.then(|| Bond { term: NOW, leader: name("n1"), timeline: Timeline(1) });
    Candidate { deposition: Knowledge { ears, bond, ..Knowledge::default() }, ..candidate(who, 1, HIGH) }
}

fn deposes(timeline: u32, lsn: Lsn, revision: i64) -> Versioned<Announcement> {
    Versioned { value: Announcement { after: NOW, deposes: true, ..word(timeline, lsn).value }, revision }
}

fn gist(step: &RaceStep) -> &'static str {
    match step {
        RaceStep::Rest => "rest",
        RaceStep::Wait(_) => "wait",
        RaceStep::Announce(_) => "announce",
        RaceStep::Take(_) => "take",
        RaceStep::Depose(_) => "depose",
        RaceStep::CallOff(_) => "call off",
        RaceStep::Tell(_) => "tell",
    }
}

#[track_caller]
fn check(what: &str, view: &ClusterView, me: &Candidate, expected: &str) {
    let decision = race::decide(view, me);
    assert_eq!(gist(&decision.what), expected, "{what}: {}", decision.why);
}

#[test]
fn who_deposes_and_who_never_does() {
    let lost = voter("n2", Ears::Lost, false);
    let view = || scene(quorum_on(), 1, "n2 n3");
    check("a voter that has lost the leader", &view(), &lost, "depose");
    check("on unless said otherwise", &scene(json!({"synchronous_mode": "quorum"}), 1, "n2 n3"), &lost, "depose");
    for ears in [Ears::Unsure, Ears::Hears] {
        check("a voter that has not", &view(), &voter("n2", ears, false), "rest");
    }
    for (what, config) in [
        ("switched off", json!({"synchronous_mode": "quorum", "deposition": "off"})),
        ("a value that can't be read", json!({"synchronous_mode": "quorum", "deposition": "perhaps"})),
        ("asynchronous, and nothing said of it", json!({})),
        ("asynchronous", json!({"deposition": true})),
        ("a standby cluster", json!({"synchronous_mode": "quorum", "deposition": true, "standby_cluster": {"host": "h"}})),
        ("maintenance", json!({"synchronous_mode": "quorum", "deposition": true, "pause": true})),
    ] {
        check(what, &scene(config, 1, "n2 n3"), &lost, "rest");
    }
    let mut changed = view();
    changed.sync = None;
    check("no sync key", &changed, &lost, "rest");
    changed.sync = sync_key("n1", "");
    check("an empty one", &changed, &lost, "rest");
    changed.sync = sync_key("n9", "n2 n3");
    check("another leader's", &changed, &lost, "rest");
    let mut inherited = sync_key("n1", "n2 n3").unwrap();
    inherited.value.until_promoted = true;
    changed.sync = Some(inherited);
    check("one by which nothing is acknowledged yet", &changed, &lost, "rest");
    check("who is no voter", &scene(quorum_on(), 0, "n3"), &lost, "rest");
    let mut patronis = view();
    patronis.members.get_mut(&name("n1")).unwrap().member.tenure = None;
    check("a leader of Patroni's, which changes the sync key without a look at the leader key", &patronis, &lost, "rest");
    let mut asked = view();
    asked.failover = request(Some("n1"), Some("n3"));
    check("a planned change is under way", &asked, &lost, "rest");
    asked.failover.as_mut().unwrap().value.scheduled_at = Some("2099-01-01T00:00:00Z".to_owned());
    check("one is scheduled for later", &asked, &lost, "depose");
    for (what, me) in [
        ("nofailover", Candidate { tags: tags(r#"{"nofailover":true}"#), ..lost.clone() }),
        ("a promise", Candidate { promised: true, ..lost.clone() }),
        ("no arbiter", Candidate { arbiter: false, ..lost.clone() }),
        ("the end is not known", Candidate { end_known: false, ..lost.clone() }),
        ("called off lately", Candidate { deposition: Knowledge { rests: true, ..lost.deposition.clone() }, ..lost.clone() }),
        ("a primary", Candidate { primary: true, ..lost.clone() }),
    ] {
        check(what, &view(), &me, "rest");
    }
    check("the leader itself", &view(), &voter("n1", Ears::Lost, false), "rest");
}

#[test]
fn who_takes_and_what_for_is_waited() {
    let me = voter("n2", Ears::Lost, true);
    let with = |words: &[(&str, Versioned<Announcement>)]| {
        let mut view = scene(quorum_on(), 1, "n2 n3");
        view.announcements.extend(words.iter().map(|(who, word)| (name(who), word.clone())));
        view
    };
    let mine = || ("n2", deposes(1, HIGH, 40));
    check("bound and not said yet", &with(&[]), &me, "depose");
    check("said with another position", &with(&[("n2", deposes(1, LOW, 40))]), &me, "depose");
    check("a vote is missing", &with(&[mine()]), &me, "wait");
    let all = with(&[mine(), ("n3", deposes(1, HIGH, 41))]);
    check("both have spoken: the first by name", &all, &me, "take");
    check("and the other waits", &all, &voter("n3", Ears::Lost, true), "wait");
    check("the other has less", &with(&[mine(), ("n3", deposes(1, LOW, 41))]), &me, "take");
    let mut behind = with(&[("n2", deposes(1, LOW, 40)), ("n3", deposes(1, HIGH, 41))]);
    let low = Candidate { lsn: LOW, ..me.clone() };
    check("the other has more", &behind, &low, "wait");
    behind.members.remove(&name("n3"));
    check("and is not there any more: its word is no vote", &behind, &low, "wait");
    // A word for a vacancy and a word of another term are no votes.
    for word in [
        Versioned { value: Announcement { deposes: false, ..deposes(1, LOW, 41).value }, revision: 41 },
        Versioned { value: Announcement { after: AFTER, ..deposes(1, LOW, 41).value }, revision: 41 },
    ] {
        check("no vote", &with(&[mine(), ("n3", word)]), &me, "wait");
    }
    let hears = Announcement { after: Term(0), stands: false, hears: Some(NOW), ..word(1, LOW).value };
    check("another voter hears it", &with(&[mine(), ("n3", Versioned { value: hears.clone(), revision: 41 })]), &me, "wait");
    let RaceStep::Take(judged) = race::decide(&all, &me).what else { panic!("it takes") };
    assert!(judged.deposes && judged.after == NOW && judged.sync == 30);
    assert_eq!(judged.announcements, [(name("n2"), 40), (name("n3"), 41)]);
    let becomes = judged.sync_becomes.unwrap();
    assert!(becomes.until_promoted && becomes.leader.as_deref() == Some("n2") && becomes.sync_standby.as_deref() == Some("n1"));

    // All must confirm: one is enough, and yet another one that is there is listened to.
    let mut on = with(&[mine()]);
    on.sync = Some(Versioned { value: SyncState { quorum: 0, ..on.sync.unwrap().value }, revision: 30 });
    check("of two that must both confirm one may speak for itself, once the other had time to answer", &on, &me, "wait");
    let waited = Candidate { deposition: Knowledge { bound_for: Duration::from_secs(2), ..me.deposition.clone() }, ..me.clone() };
    check("it had", &on, &waited, "take");
    on.announcements.insert(name("n3"), Versioned { value: hears, revision: 41 });
    check("it hears the leader", &on, &waited, "wait");

    // Called off.
    let said = with(&[mine()]);
    check("the leader is heard again", &said, &voter("n2", Ears::Hears, true), "call off");
    check("begun again: its word is no reason to lead", &all, &voter("n2", Ears::Unsure, true), "wait");
    let mut off = said.clone();
    off.sync = sync_key("n1", "n3");
    check("no voter any more", &off, &me, "call off");
    let RaceStep::CallOff(guarded) = race::decide(&off, &me).what else { panic!("it is called off") };
    assert_eq!((guarded.leader, guarded.mine, guarded.word.after, guarded.word.stands), (NOW, 40, Term(0), false));

    // A voter that hears says so, once, and only where it is asked.
    let hearing = voter("n3", Ears::Hears, false);
    check("asked", &said, &hearing, "tell");
    check("not asked", &with(&[]), &hearing, "rest");
    check("not sure", &said, &voter("n3", Ears::Unsure, false), "rest");
    let RaceStep::Tell(told) = race::decide(&said, &hearing).what else { panic!("it tells") };
    check("said", &with(&[mine(), ("n3", Versioned { value: told.word, revision: 42 })]), &hearing, "rest");
}

#[test]
fn a_voter_that_lacks_what_the_others_confirmed_votes_and_does_not_lead() {
    // The leader lost n3 first, and went on for a moment with n2 alone: it has said in `status` what n2 confirmed.
    let confirmed = Reached { confirmed: Some(End { timeline: Timeline(1), lsn: HIGH }), members: BTreeMap::new() };
    let with = |words: &[(&str, Versioned<Announcement>)]| {
        let mut view = scene(quorum_on(), 1, "n2 n3");
        let mut status = Status { optime: HIGH, ..Status::default() };
        confirmed.put_into(&mut status);
        view.status = Some(Versioned { value: status, revision: 5 });
        view.announcements.extend(words.iter().map(|(who, word)| (name(who), word.clone())));
        view
    };
    let slower = |bond| Candidate { lsn: LOW, ..voter("n3", Ears::Lost, bond) };
    let RaceStep::Depose(guarded) = race::decide(&with(&[]), &slower(false)).what else { panic!("its word is needed") };
    assert!(!guarded.word.stands && guarded.word.deposes && guarded.word.after == NOW, "{:?}", guarded.word);
    assert!(guarded.word.why.as_ref().is_some_and(|why| why.contains("confirmed commits up to")), "{:?}", guarded.word);
    let theirs = Versioned { value: Announcement { lsn: LOW, ..guarded.word }, revision: 41 };
    let said = with(&[("n2", deposes(1, HIGH, 40)), ("n3", theirs.clone())]);
    check("the one that has it all takes, by its word", &said, &voter("n2", Ears::Lost, true), "take");
    check("it waits itself", &said, &slower(true), "wait");
    check("also where it is alone", &with(&[("n3", theirs.clone())]), &slower(true), "wait");
    let RaceStep::Take(judged) = race::decide(&said, &voter("n2", Ears::Lost, true)).what else { panic!("it takes") };
    assert_eq!(judged.announcements, [(name("n2"), 40), (name("n3"), 41)]);
    // A word that was said before the leader told of it stands no more, and is said again.
    check("it stood before", &with(&[("n3", deposes(1, LOW, 41))]), &slower(true), "depose");
    // Less than this very member is known to have had: a copy of its disk says nothing of what it confirmed.
    let mut copy = with(&[]);
    let had = BTreeMap::from([("n3".to_owned(), End { timeline: Timeline(1), lsn: HIGH })]);
    Reached { members: had, ..confirmed.clone() }.put_into(&mut copy.status.as_mut().unwrap().value);
    check("a copy of a voter", &copy, &slower(false), "rest");
    let why = race::decide(&copy, &slower(false)).why.to_string();
    assert!(why.starts_with("n1 is lost to this node, and is not deposed from here: the data here end at"), "{why}");
}

#[test]
fn a_loss_is_news_whenever_the_time_makes_it_one() {
    let (term, ttl) = (Term(5), Duration::from_secs(10));
    let period = hearing::period(ttl);
    let at = |ms: u32| Moment(Duration::from_secs(1000) + MS * ms);
    let mut heard = Hearing::default();
    for ms in [0, 10_000] {
        heard = heard.noted(term, HEARD, at(ms), at(ms), period);
        assert_eq!(heard.news(at(ms), ttl), None, "that it is heard is what was to be expected");
    }
    // Somebody woke the listener, so the second try ends before three periods have passed.
    heard = heard.noted(term, Answer::Silent, at(10_100), at(10_600), period);
    assert_eq!(heard.news(at(10_600), ttl), Some(Ears::Unsure));
    heard = heard.noted(term, Answer::Silent, at(10_600), at(11_100), period);
    assert_eq!(heard.news(at(11_100), ttl), None);
    // Between this try and the one before it has come to be lost.
    heard = heard.noted(term, Answer::Silent, at(11_110), at(11_610), period);
    assert_eq!(heard.news(at(11_610), ttl), Some(Ears::Lost));
    assert_eq!(heard.news(at(11_700), ttl), None, "it was told");
    heard = heard.noted(term, HEARD, at(12_000), at(12_000), period);
    assert_eq!(heard.news(at(12_000), ttl), Some(Ears::Hears));
}

#[test]
fn a_leader_is_lost_by_two_refusals_or_three_periods_of_silence_and_never_when_it_just_came() {
    let (term, ttl) = (Term(5), Duration::from_secs(10));
    let period = hearing::period(ttl);
    assert_eq!((period, hearing::period(Duration::from_secs(3))), (500 * MS, 200 * MS));
    let at = |ms: u32| Moment(Duration::from_secs(1000) + MS * ms);
    let heard = |ms: u32| Hearing::default().noted(term, HEARD, at(0), at(0), period).noted(term, HEARD, at(ms), at(ms), period);
    let known = heard(10_000);
    assert_eq!(known.ears(term, at(10_000), ttl), Ears::Hears);
    assert_eq!(known.ears(Term(6), at(10_000), ttl), Ears::Unsure, "another term's leader was never heard");
    let refused = known.noted(term, Answer::Refused, at(10_500), at(10_500), period);
    assert_eq!((refused.ears(term, at(10_500), ttl), refused.again(ttl)), (Ears::Unsure, hearing::REFUSED_AGAIN));
    assert_eq!(refused.noted(term, Answer::Refused, at(10_550), at(10_550), period).ears(term, at(10_550), ttl), Ears::Lost);
    let silent =
        known.noted(term, Answer::Silent, at(10_500), at(11_000), period).noted(term, Answer::Silent, at(11_000), at(11_499), period);
    assert_eq!(silent.ears(term, at(11_499), ttl), Ears::Unsure);
    assert_eq!(silent.ears(term, at(11_500), ttl), Ears::Lost);
    // This node hung itself: what it did not hear meanwhile says nothing.
    let hung =
        known.noted(term, Answer::Silent, at(10_500), at(20_000), period).noted(term, Answer::Silent, at(20_000), at(20_500), period);
    assert_eq!(hung.ears(term, at(20_500), ttl), Ears::Unsure);
    let hung = hung.noted(term, Answer::Silent, at(20_500), at(21_000), period);
    assert_eq!(hung.ears(term, at(21_000), ttl), Ears::Unsure, "asked twice, and only a second of it awake");
    assert_eq!(hung.ears(term, at(21_500), ttl), Ears::Lost);
    // It hung between two tries.
    let slept =
        known.noted(term, Answer::Silent, at(20_000), at(20_500), period).noted(term, Answer::Silent, at(20_500), at(21_000), period);
    assert_eq!((slept.ears(term, at(21_499), ttl), slept.ears(term, at(21_500), ttl)), (Ears::Unsure, Ears::Lost));
    // WAL that came before the try, or while it lasted, is a sign of the moment at which it came, and an older one than is known takes nothing back.
    let before = known.noted(term, Answer::Heard(300 * MS), at(10_500), at(11_000), period);
    let silent =
        before.noted(term, Answer::Silent, at(11_200), at(11_700), period).noted(term, Answer::Silent, at(11_700), at(12_199), period);
    assert_eq!((silent.ears(term, at(12_199), ttl), silent.ears(term, at(12_200), ttl)), (Ears::Unsure, Ears::Lost));
    assert_eq!(before.noted(term, Answer::Heard(3000 * MS), at(11_100), at(11_100), period).ears(term, at(11_100), ttl), Ears::Hears);
    // A leader that this node has heard for less than a TTL.
    let fresh = heard(9_999).noted(term, Answer::Refused, at(10_500), at(10_500), period);
    assert_eq!(fresh.noted(term, Answer::Refused, at(10_550), at(10_550), period).ears(term, at(10_550), ttl), Ears::Unsure);
    let never = Hearing::default().noted(term, Answer::Refused, at(0), at(0), period);
    assert_eq!(never.noted(term, Answer::Refused, at(50), at(50), period).ears(term, at(50), ttl), Ears::Unsure);
}

#[test]
fn a_bond_outlives_its_term_until_the_deposed_leader_can_not_be_met_any_more() {
    let bond = Bond { term: NOW, leader: name("n1"), timeline: Timeline(3) };
    let mut view = scene(quorum_on(), 1, "n2 n3");
    let leads =
        |view: &mut ClusterView, who: &str, term| view.leader = Some(cluster::leader::Leader { term: Term(term), ..leader(who).unwrap() });
    assert!(deposition::binds(&bond, &view, Timeline(3)));
    leads(&mut view, "n3", NOW.0 + 5);
    assert!(deposition::binds(&bond, &view, Timeline(3)), "n1 may not know it yet");
    assert!(!deposition::binds(&bond, &view, Timeline(4)), "this server has followed n3");
    leads(&mut view, "n1", NOW.0 + 9);
    assert!(!deposition::binds(&bond, &view, Timeline(3)), "n1 leads in a term of its own");
    view.leader = None;
    assert!(deposition::binds(&bond, &view, Timeline(3)));
    assert!(!deposition::may_receive(&bond, Timeline(3)) && deposition::may_receive(&bond, Timeline(4)));
    view.claimed_timeline = Some(Versioned { value: Timeline(7), revision: 9 });
    leads(&mut view, "n1", NOW.0);
    assert_eq!(deposition::bond(&view, NOW, Timeline(1), None).unwrap().timeline, Timeline(7));
    assert_eq!(deposition::bond(&view, NOW, Timeline(1), Some(&Bond { timeline: Timeline(9), ..bond })).unwrap().timeline, Timeline(9));
    assert_eq!(deposition::bond(&view, Term(1), Timeline(1), None), None, "that is not the term that was judged");
}
