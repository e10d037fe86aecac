//! The race, rule by rule.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod fittest;
mod standing;
#[path = "../world/mod.rs"]
mod world;

use cluster::failover::FailoverRequest;
use cluster::leader::Term;
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::Timeline;
use cluster::race::{HEAD_START, PATIENCE, decide, misplaced};
use cluster::reached::{End, Reached};
use cluster::standing::{Candidate, RaceStep, fitness, may_stand};
use cluster::view::{ClusterView, Status, Versioned};
use serde_json::json;
use std::time::Duration;
use world::*;

/// n1 to n3 as running standbys at LOW, nobody leads.
fn three() -> ClusterView {
    let mut view = vacancy();
    view.status = status(LOW);
    for who in ["n1", "n2", "n3"] {
        view.members.insert(name(who), member(who, MemberRole::Replica, 1, LOW));
    }
    view
}

type Twist = fn(&mut ClusterView, &mut Candidate);

/// n1's step, as `take`, `wait N ms`, `rest`, `announce` or `refuse`, and a part of its reason.
fn check(case: &str, twist: Twist, step: &str, why: &str) {
    let mut view = three();
    let mut me = candidate("n1", 1, LOW);
    twist(&mut view, &mut me);
    let decision = decide(&view, &me);
    let told = match &decision.what {
        RaceStep::Rest => "rest".to_owned(),
        RaceStep::Wait(wait) => format!("wait {} ms", wait.as_millis()),
        RaceStep::Announce(word) if word.stands => "announce".to_owned(),
        RaceStep::Announce(word) => {
            assert_eq!(word.why.as_deref(), Some(decision.why.to_string().as_str()), "{case}");
            "refuse".to_owned()
        }
        RaceStep::Take(_) => "take".to_owned(),
        RaceStep::Depose(_) | RaceStep::CallOff(_) | RaceStep::Tell(_) => "depose".to_owned(),
    };
    assert_eq!(told, step, "{case}: {}", decision.why);
    let said = decision.why.to_string();
    assert!(said.contains(why), "{case}: {said}");
}

fn says(view: &mut ClusterView, who: &str, timeline: u32, lsn: Lsn) {
    view.announcements.insert(name(who), word(timeline, lsn));
}

fn all_say(view: &mut ClusterView) {
    for who in ["n1", "n2", "n3"] {
        says(view, who, 1, LOW);
    }
}

#[test]
fn the_word_of_who_promised_says_that_it_goes_on_receiving_and_is_said_again_once_that_is_over() {
    let mut view = three();
    let mut me = candidate("n1", 1, LOW);
    me.promised = true;
    let RaceStep::Announce(word) = decide(&view, &me).what else { panic!("it says that it stands aside") };
    assert!(!word.stands && word.receives, "{word:?}");
    view.announcements.insert(name("n1"), Versioned { value: word, revision: 7 });
    assert!(matches!(decide(&view, &me).what, RaceStep::Wait(_)), "said once");
    (me.promised, me.lsn) = (false, HIGH);
    let RaceStep::Announce(word) = decide(&view, &me).what else { panic!("its position is another one by now") };
    assert!(word.stands && !word.receives && word.lsn == HIGH, "{word:?}");
    // Promised after it had spoken: the word is taken back.
    view.announcements.insert(name("n1"), Versioned { value: word, revision: 8 });
    me.promised = true;
    assert!(matches!(decide(&view, &me).what, RaceStep::Announce(word) if word.receives));
}

#[test]
fn what_was_judged_is_what_the_write_compares() {
    let mut view = three();
    all_say(&mut view);
    (view.config, view.sync) = (sync_mode(), sync_key("n9", "n1"));
    view.announcements.insert(name("n4"), Versioned { revision: 33, ..word(1, LOW) });
    view.announcements.get_mut(&name("n3")).unwrap().value.after = Term(3);
    let RaceStep::Take(judged) = decide(&view, &candidate("n1", 1, LOW)).what else {
        panic!("n1 takes");
    };
    assert_eq!((judged.after, judged.sync, judged.config, judged.failover), (AFTER, 5, 5, 0));
    let weighed = [("n1", 6), ("n2", 6), ("n4", 33)].map(|(who, revision)| (name(who), revision));
    assert_eq!(judged.announcements, weighed, "every word of this vacancy, and no other");
    let trusts = |key: &cluster::sync::SyncState| (key.leader.clone().unwrap_or_default(), key.standbys().collect::<Vec<_>>().join(" "));
    let of = |leader: &str, standbys: &str| Some((leader.to_owned(), standbys.to_owned()));
    let said = "the key of another leader is made this one's in the same write; the other has everything until this one is promoted";
    assert_eq!(judged.sync_becomes.as_ref().map(trusts), of("n1", "n9"), "{said}");
    let becomes = |view: &ClusterView, primary| match decide(view, &Candidate { primary, ..candidate("n1", 1, LOW) }).what {
        RaceStep::Take(judged) => judged.sync_becomes.as_ref().map(trusts),
        other => panic!("n1 takes, not {other:?}"),
    };
    view.sync = sync_key("n1", "n2");
    assert_eq!(becomes(&view, false), of("n1", "n2"), "promoted it awaits nobody: it may not serve before it trusts nobody");
    view.sync = sync_key("n1", "");
    assert_eq!(becomes(&view, false), None, "nobody is trusted in it");
    view.sync = sync_key("n1", "n2");
    let mine = view.announcements.get_mut(&name("n1")).unwrap();
    mine.value.primary = true;
    assert_eq!(becomes(&view, true), None, "a primary still awaits those of its key");
    view.sync = sync_key("n2", "n1");
    assert_eq!(becomes(&view, true), of("n1", ""), "a primary serves at once, so nobody else is trusted");
}

#[test]
fn a_primary_takes_up_its_leadership_before_any_standby() {
    let mut view = three();
    all_say(&mut view);
    let mut me = candidate("n3", 1, LOW);
    me.primary = true;
    view.announcements.get_mut(&name("n3")).unwrap().value.primary = true;
    assert!(may_stand(&view, &me).is_ok());
    assert!(matches!(decide(&view, &me).what, RaceStep::Take(_)));
    assert!(matches!(decide(&view, &candidate("n1", 1, LOW)).what, RaceStep::Wait(_)));
}

#[test]
fn a_leader_key_that_its_holder_does_not_keep_is_to_be_given_up() {
    use cluster::leader::LeaseId;
    // holder, its lease, who asks, its own lease: given up?
    for (holder, hangs_on, me, mine, gone) in [
        ("n1", 1, "n1", 1, false),
        ("n1", 2, "n1", 1, true),
        ("n1", 0, "n1", 1, true),
        ("n1", 2, "n2", 2, false), // n1 is there and does it itself
        ("n9", 2, "n2", 2, true),
        ("n9", 3, "n2", 2, false), // it runs out by itself
        ("n9", 0, "n2", 2, true),  // it never would
    ] {
        let mut view = vacancy();
        view.members.insert(name("n1"), member("n1", MemberRole::Primary, 1, LOW));
        view.leader = Some(cluster::leader::Leader { name: name(holder), lease: LeaseId(hangs_on), term: NOW });
        assert_eq!(misplaced(&view, &name(me), LeaseId(mine)), gone, "{holder} on {hangs_on}, {me} on {mine}");
    }
}
