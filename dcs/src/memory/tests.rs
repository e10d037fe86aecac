//! The twin does as etcd does, and what a node remembers is judged alike.

use super::*;
use crate::verbs::{Dcs, Grant, HandOver};
use cluster::name::Scope;
use cluster::standing::Judged;

fn memory() -> InMemory {
    InMemory::new(Keys::new("service", &Scope::new("demo").unwrap()))
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn vacancy() -> Judged {
    Judged { after: Term(0), deposes: false, sync: 0, config: 0, failover: 0, announcements: vec![], sync_becomes: None, position: None }
}

fn take(memory: &InMemory, who: &str, lease: LeaseId) -> Result<Term> {
    at_once(memory.take_leader(&name(who), lease, &vacancy())).unwrap()
}

fn grant(memory: &InMemory, seconds: u64) -> Grant {
    at_once(memory.grant(Duration::from_secs(seconds))).unwrap().unwrap()
}

#[test]
fn one_vacancy_has_one_winner_and_an_answer_may_be_lost() {
    let memory = memory();
    let (a, b) = (grant(&memory, 10), grant(&memory, 10));
    memory.next_fate(Fate::AnswerLost);
    assert!(matches!(take(&memory, "a", a.lease), Err(Error::Unreachable(_))));
    assert!(matches!(take(&memory, "b", b.lease), Err(Error::Lost(_))));
    let view = at_once(memory.load_view()).unwrap().unwrap();
    let leader = view.leader.clone().unwrap();
    assert_eq!((leader.name.as_str(), leader.term), ("a", view.last_term()));
    // A client that tries again hears of its own write as of another's.
    at_once(memory.release_leader(&leader)).unwrap().unwrap();
    memory.next_fate(Fate::RequestLost);
    assert!(matches!(at_once(memory.load_view()).unwrap(), Err(Error::Unreachable(_))));
    assert!(at_once(memory.load_view()).unwrap().unwrap().leader.is_none());
}

#[test]
fn a_cluster_goes_on_as_another_system_once_and_as_judged() {
    let keys = Keys::new("service", &Scope::new("demo").unwrap());
    let (old, new) = (SystemId("7000000000000000015".to_owned()), SystemId("7000000000000000017".to_owned()));
    let upgraded = Upgraded { old: old.clone(), from: 15, to: 17 };
    let looked = |memory: &InMemory| at_once(memory.load_view()).unwrap().unwrap();
    let change =
        |memory: &InMemory, judged: &ClusterView| memory.upgraded(judged.leader.as_ref().unwrap(), judged, &new, Timeline(3), &upgraded);
    let cluster = || {
        let memory = memory();
        let lease = grant(&memory, 10).lease;
        memory.put_by_hand(keys.initialize(), old.0.as_bytes());
        memory.put_by_hand(keys.sync(), br#"{"leader":"a","sync_standby":"b","quorum":0,"other":1}"#);
        memory.put_by_hand(keys.status(), br#"{"optime":77}"#);
        let judged = Judged { sync: looked(&memory).sync.unwrap().revision, ..vacancy() };
        at_once(memory.take_leader(&name("a"), lease, &judged)).unwrap().unwrap();
        memory
    };
    let memory = cluster();
    let judged = looked(&memory);
    memory.next_fate(Fate::AnswerLost);
    assert!(matches!(change(&memory, &judged), Err(Error::Unreachable(_))), "it is not known whether it was done");
    let now = looked(&memory);
    assert_eq!((now.system_id(), now.upgraded_from(&old)), (Some(&new), Some(&upgraded)), "it was");
    assert_eq!(now.store_generation(), judged.store_generation() + 1);
    assert!(now.status.is_none() && now.history.is_none());
    assert!(now.sync.as_ref().is_some_and(|sync| sync.value.leader.as_deref() == Some("a") && sync.value.standbys().next().is_none()));
    assert_eq!(now.leader, judged.leader, "leader and term stay");
    assert!(matches!(change(&memory, &judged), Err(Error::Lost(_))), "and not twice");
    // Whatever of it changed since it was judged: nothing is written.
    for key in [keys.initialize(), keys.sync(), keys.store()] {
        let memory = cluster();
        let judged = looked(&memory);
        memory.put_by_hand(key.clone(), b"{}");
        assert!(matches!(change(&memory, &judged), Err(Error::Lost(_))), "{key}");
    }
    let memory = cluster();
    let judged = looked(&memory);
    at_once(memory.release_leader(judged.leader.as_ref().unwrap())).unwrap().unwrap();
    assert!(matches!(change(&memory, &judged), Err(Error::Lost(_))), "who leads no more");
}

#[test]
fn leases_have_whole_seconds_and_end_at_a_scan() {
    let memory = memory();
    assert_eq!(at_once(memory.grant(Duration::from_millis(3999))).unwrap().unwrap().ttl, Duration::from_secs(3));
    assert_eq!(grant(&memory, 1).ttl, LEAST_TTL);
    let memory = self::memory();
    memory.set_now(Duration::from_millis(300));
    let lease = grant(&memory, 3).lease;
    take(&memory, "a", lease).unwrap();
    assert_eq!(memory.set_now(Duration::from_millis(3400)), []);
    assert!(at_once(memory.load_view()).unwrap().unwrap().leader.is_some(), "its time is up, but nobody has looked");
    assert_eq!(at_once(memory.keep_alive(lease)).unwrap(), Err(Error::LeaseGone));
    assert_eq!(memory.set_now(Duration::from_millis(3500)), [lease]);
    assert!(at_once(memory.load_view()).unwrap().unwrap().leader.is_none());
}

#[test]
fn a_new_leader_of_etcd_gives_every_lease_its_full_time() {
    let memory = memory();
    let lease = grant(&memory, 10).lease;
    memory.set_now(Duration::from_secs(9));
    memory.change_leader(Duration::from_secs(12));
    assert_eq!(memory.set_now(Duration::from_millis(21_900)), []);
    assert_eq!(memory.set_now(Duration::from_secs(22)), [lease]);
}

#[test]
fn a_deposed_leader_answers_a_keep_alive_and_that_alone_renews_nothing() {
    let memory = memory();
    let lease = grant(&memory, 10).lease;
    take(&memory, "a", lease).unwrap();
    let clock = || cluster::time::Moment::default();
    memory.change_leader(Duration::from_secs(1));
    let kept = memory.asked_of_deposed(|etcd| at_once(etcd.keep_alive(lease)).unwrap()).unwrap();
    let look = at_once(memory.look_at_leader()).unwrap().unwrap();
    assert!(!cluster::lease::counts(kept.at, look.at));
    assert_eq!(memory.lease_until(lease), Some(Duration::from_secs(11)), "it was asked, and nothing came of it");
    assert!(memory.asked_of_deposed(|etcd| at_once(etcd.look_at_leader()).unwrap()).is_err());
    // What is granted now the deposed one does not know: its no is no fact.
    let later = grant(&memory, 10).lease;
    let refused = memory.asked_of_deposed(|etcd| at_once(etcd.keep_alive(later)).unwrap());
    assert_eq!(refused.unwrap_err(), Error::LeaseGone);
    let renewed = at_once(crate::lease::renew(&memory, clock, lease)).unwrap().unwrap();
    assert_eq!(renewed.leader.map(|leader| leader.lease), Some(lease));
}

#[test]
fn a_restored_store_in_the_same_raft_term_proves_no_keep_alive_of_a_member_of_before() {
    let memory = memory();
    let lease = grant(&memory, 10).lease;
    take(&memory, "a", lease).unwrap();
    let saved = memory.save();
    memory.put_by_hand("/x".to_owned(), b"");
    memory.restore(&saved, Duration::from_secs(1));
    let kept = memory.asked_of_deposed(|etcd| at_once(etcd.keep_alive(lease)).unwrap()).unwrap();
    // It counts its terms again, and happens to be in the one in which that member believes that it leads.
    memory.state().raft_term = kept.at.raft_term;
    let look = at_once(memory.look_at_leader()).unwrap().unwrap();
    assert_eq!((look.leader.map(|leader| leader.lease), look.at.raft_term), (Some(lease), kept.at.raft_term));
    assert!(!cluster::lease::counts(kept.at, look.at), "{:?} {:?}", kept.at, look.at);
}

#[test]
fn what_a_restored_or_an_emptied_store_says_is_not_believed_by_who_remembers() {
    use cluster::store::Doubt;
    let memory = memory();
    let remembered = Remembered::default();
    let look = |memory: &InMemory| {
        let asked = remembered.memory();
        remembered.believe(&asked, at_once(memory.load_view()).unwrap().unwrap())
    };
    memory.put_by_hand(memory.keys().initialize(), b"7");
    let first = grant(&memory, 10).lease;
    let term = take(&memory, "a", first).unwrap();
    assert_eq!(look(&memory).unwrap().leader.unwrap().term, term);
    let saved = memory.save();
    let leader = Leader { name: name("a"), lease: first, term };
    let second = grant(&memory, 10).lease;
    let to = HandOver { from: leader, to: name("b"), to_lease: second, sync: None, failover: None, status: None };
    at_once(memory.hand_over(&to)).unwrap().unwrap();
    assert_eq!(look(&memory).unwrap().leader.unwrap().name, name("b"));
    memory.restore(&saved, Duration::ZERO);
    assert!(matches!(look(&memory), Err(Error::Doubted { doubt: Doubt::Revision { .. }, .. })));
    memory.put_by_hand("/x".to_owned(), b"");
    assert!(matches!(look(&memory), Err(Error::Doubted { doubt: Doubt::Term { .. }, .. })), "its revision has passed what was known");
    let (why, word) = remembered.word();
    assert!(why.is_some() && word.is_some_and(|word| word.holder == Some(name("b"))));
    memory.lose();
    assert!(matches!(look(&memory), Err(Error::Doubted { doubt: Doubt::Emptied(..), .. })));
    assert_eq!(memory.revision(), 1);
}

#[test]
fn a_key_that_is_taken_in_an_etcd_that_went_back_meanwhile_makes_no_leader() {
    let memory = memory().remembering(Arc::default());
    memory.put_by_hand(memory.keys().initialize(), b"7");
    let lease = grant(&memory, 10).lease;
    let saved = memory.save();
    for key in ["/x", "/y", "/z"] {
        memory.put_by_hand(key.to_owned(), b"");
    }
    assert!(at_once(memory.load_view()).unwrap().is_ok());
    // Between that view and the write: each key that the write compares has the revision that it compares.
    memory.restore(&saved, Duration::ZERO);
    assert!(matches!(take(&memory, "a", lease), Err(why @ Error::WentBack(_)) if why.is_unknown()));
    let leader = Leader { name: name("a"), lease, term: Term(memory.revision()) };
    let member = serde_json::from_value(serde_json::json!({"conn_url": "", "api_url": "", "state": "running", "role": "primary"}));
    let moved = at_once(memory.move_leader(&leader, &member.unwrap(), lease)).unwrap();
    assert!(matches!(moved, Err(Error::WentBack(_))), "{moved:?}");
}

#[test]
fn a_write_on_a_lease_that_is_gone_writes_nothing() {
    let memory = memory();
    let lease = grant(&memory, 10).lease;
    at_once(memory.revoke(lease)).unwrap().unwrap();
    let revision = memory.revision();
    assert_eq!(take(&memory, "a", lease), Err(Error::LeaseGone));
    assert_eq!(memory.revision(), revision);
    assert!(at_once(memory.load_view()).unwrap().unwrap().last_term.is_none());
}
