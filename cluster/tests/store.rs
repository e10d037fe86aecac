//! Tables of the store that forgot: what is believed, who may found again, what the keys are made again to.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::duty::{self, Duty};
use cluster::leader::Term;
use cluster::local::{DataDir, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, TenureFacts};
use cluster::name::{SystemId, Timeline};
use cluster::store::{self, Doubt, Making, Memory, NoFounding, NoRebuild};
use cluster::view::{ClusterView, Initialize, LastTerm, Versioned};
use serde_json::json;
use world::*;

/// n1 led last, in term 8; n2 was there.
fn memory() -> Memory {
    let mut memory = Memory::default();
    assert!(store::learn(&mut memory, &healthy()));
    memory
}

fn healthy() -> ClusterView {
    let mut view = vacancy();
    view.leader = leader("n1");
    view.last_term = Some(Versioned { value: LastTerm { holder: name("n1"), how: "taken".to_owned() }, revision: NOW.0 });
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, 2, HIGH));
    view.members.insert(name("n2"), member("n2", MemberRole::Replica, 2, HIGH));
    view.sync = sync_key("n1", "n2");
    view.config = config(json!({"synchronous_mode": true}));
    view.store = Some(Versioned { value: making(1, "n1"), revision: 2 });
    (view.revision, view.etcd) = (100, 7);
    view
}

fn making(generation: u32, by: &str) -> Making {
    Making { generation, by: by.to_owned(), upgraded: None }
}

/// Not one key of the cluster.
fn emptied() -> ClusterView {
    ClusterView { revision: 3, etcd: 7, ..ClusterView::default() }
}

#[test]
fn a_view_that_can_not_follow_on_what_is_known_is_not_believed() {
    type Spoil = fn(&mut ClusterView);
    let table: [(&str, Spoil, Option<&str>); 14] = [
        ("nothing changed", |_| (), None),
        ("it went on", |view| view.revision = 101, None),
        ("one revision back", |view| view.revision = 99, Some("revision 99")),
        ("a backup taken back with a greater revision", |view| (view.revision, view.last_term) = (1000, last(7)), Some("term 7")),
        (
            "the same with the same term and an older sync key",
            |view| (view.revision, view.sync) = (1000, Some(Versioned { revision: 4, ..sync_key("n1", "n3").unwrap() })),
            Some("sync key of revision 4"),
        ),
        (
            "an older configuration",
            |view| (view.revision, view.config) = (1000, Some(Versioned { revision: 4, ..Default::default() })),
            Some("config key of revision 4"),
        ),
        ("a sync key that was deleted trusts nobody", |view| view.sync = None, None),
        ("another etcd with the same keys", |view| view.etcd = 8, Some("another etcd")),
        ("an etcd that says nothing of itself", |view| view.etcd = 0, None),
        ("emptied", |view| *view = emptied(), Some("has lost the keys")),
        (
            "emptied, and claimed by an empty node",
            |view| (*view, view.initialize) = (emptied(), versioned(Initialize::Running)),
            Some("lost"),
        ),
        ("founded by an empty node", |view| view.store = Some(Versioned { value: making(1, "n3"), revision: 900 }), Some("another node")),
        ("made again", |view| (view.revision, view.last_term, view.store) = (9, last(8), made_again(2)), None),
        ("keys from before they were made again", |view| view.store = None, Some("of making number 0")),
    ];
    for (what, spoil, doubted) in table {
        let mut view = healthy();
        spoil(&mut view);
        let told = store::judge(&memory(), &view).err().map(|doubt| doubt.to_string());
        assert_eq!(told.is_some(), doubted.is_some(), "{what}: {told:?}");
        assert!(doubted.is_none_or(|words| told.as_ref().is_some_and(|told| told.contains(words))), "{what}: {told:?}");
        assert_eq!(store::judge(&Memory::default(), &view), Ok(()), "{what}: who remembers nothing has nothing to compare");
    }
    let mut foreign = healthy();
    foreign.initialize = versioned(Initialize::Done(SystemId("1".to_owned())));
    foreign.store = made_again(2);
    assert!(matches!(store::judge(&memory(), &foreign), Err(Doubt::AnotherSystem { .. })));
}

#[test]
fn an_answer_without_keys_is_judged_by_its_etcd_and_its_revision() {
    let table = [
        ("as it was", 7, 100, None),
        ("it went on", 7, 101, None),
        ("one revision back", 7, 99, Some(Doubt::Revision { known: 100, found: 99 })),
        ("another etcd", 8, 1000, Some(Doubt::AnotherEtcd { known: 7, found: 8 })),
        ("it does not say which", 0, 100, None),
        ("it does not say which, one revision back", 0, 99, Some(Doubt::Revision { known: 100, found: 99 })),
    ];
    for (what, etcd, revision, doubt) in table {
        assert_eq!(store::judge_answer(&memory(), etcd, revision).err(), doubt, "{what}");
        assert_eq!(store::judge_answer(&Memory::default(), etcd, revision), Ok(()), "{what}: who remembers nothing has nothing to compare");
    }
}

fn last(term: i64) -> Option<Versioned<LastTerm>> {
    Some(Versioned { value: LastTerm { holder: name("n1"), how: "taken".to_owned() }, revision: term })
}

fn made_again(generation: u32) -> Option<Versioned<Making>> {
    Some(Versioned { value: making(generation, "n2"), revision: 8 })
}

#[test]
fn a_spoiled_key_is_completed_and_weakens_nothing() {
    let mut view = healthy();
    (view.config, view.spoiled_config) = (None, 90);
    view.initialize = Some(Versioned { value: Initialize::Done(SystemId("rubbish".to_owned())), revision: 91 });
    let known = memory();
    assert_eq!(store::judge(&known, &view), Ok(()));
    store::complete(&known, &mut view);
    assert!(view.kept.config && view.kept.initialize);
    assert_eq!(view.config().0.get("synchronous_mode"), Some(&json!(true)));
    assert_eq!(
        (ClusterView::revision_of(&view.config), ClusterView::revision_of(&view.initialize)),
        (90, 91),
        "put back against what was read"
    );
    assert_eq!(view.system_id(), Some(&system()));
    let mut whole = healthy();
    store::complete(&known, &mut whole);
    assert_eq!(whole, healthy());
    // While keys are made again the claim is no spoiled identity.
    let mut founding = healthy();
    (founding.initialize, founding.store) = (versioned(Initialize::Running), made_again(2));
    store::complete(&known, &mut founding);
    assert!(!founding.kept.initialize);
}

#[test]
fn what_is_remembered_only_goes_forward_until_the_keys_are_made_anew() {
    let mut known = memory();
    assert!(!store::learn(&mut known, &healthy()), "nothing new");
    let mut later = healthy();
    later.revision = 200;
    assert!(!store::learn(&mut known, &later), "a revision alone is not written down");
    assert_eq!(known.revision, 200);
    assert!(!store::learn(&mut known, &healthy()));
    assert_eq!(known.revision, 200, "an answer that comes late takes nothing back");
    assert_eq!((known.term, known.holder.clone(), known.timeline), (Term(8), Some(name("n1")), Timeline(2)));
    let mut made = healthy();
    (made.revision, made.last_term, made.store) = (9, last(8), made_again(2));
    assert!(store::learn(&mut known, &made));
    assert_eq!((known.revision, known.making.generation), (9, 2));
    assert!(!store::learn(&mut known, &healthy()), "asked for before that");
    assert_eq!(known.making.generation, 2);
}

/// Members that say what they know in an emptied store.
fn say(view: &mut ClusterView, who: &str, role: MemberRole, memory: Memory) {
    let mut entry = member(who, role, memory.timeline.0, HIGH);
    entry.member.tenure =
        Some(TenureFacts { arbiter: true, doubt: Some("lost".to_owned()), memory: Some(Box::new(memory)), ..TenureFacts::default() });
    view.members.insert(name(who), entry);
}

fn later() -> Memory {
    Memory { term: Term(9), holder: Some(name("n2")), timeline: Timeline(3), ..memory() }
}

/// A backup from before n2 led: to n1, which was away since, it looks like the truth.
#[test]
fn what_others_say_that_they_know_counts_as_seen_and_stays_known() {
    let mut view = healthy();
    let mut n1 = memory();
    assert!(!store::hear(&mut n1, &view), "nobody doubts anything");
    say(&mut view, "n2", MemberRole::Primary, later());
    assert_eq!(store::judge(&n1, &view), Ok(()), "by itself it would believe");
    assert!(store::hear(&mut n1, &view));
    assert_eq!((n1.term, n1.holder.clone(), n1.timeline), (Term(9), Some(name("n2")), Timeline(3)));
    assert!(matches!(store::judge(&n1, &view), Err(Doubt::Term { .. })));
    assert!(!store::hear(&mut n1, &view), "heard already");
    view.members.remove(&name("n2"));
    assert!(store::judge(&n1, &view).is_err(), "also when who said so is gone");
    type Spoil = fn(&mut ClusterView, &mut Memory);
    let table: [(&str, Spoil, bool); 6] = [
        ("it says less", |_, word| *word = Memory { term: Term(7), ..word.clone() }, false),
        ("of another cluster", |_, word| word.system_id = Some(SystemId("1".to_owned())), false),
        ("the keys were made again since", |view, _| view.store = made_again(2), false),
        ("it knows of keys that were made again", |_, word| word.making = making(2, "n2"), true),
        (
            "the same term and a later sync key",
            |_, word| *word = Memory { term: Term(8), timeline: Timeline(2), revision: 150, ..word.clone() },
            true,
        ),
        (
            "nothing is remembered here, and etcd speaks of another cluster",
            |view, word| {
                word.system_id = Some(SystemId("1".to_owned()));
                view.initialize = versioned(Initialize::Done(system()));
            },
            false,
        ),
    ];
    for (what, spoil, heard) in table {
        let (mut view, mut word) = (healthy(), later());
        spoil(&mut view, &mut word);
        say(&mut view, "n2", MemberRole::Primary, word);
        assert_eq!(store::hear(&mut memory(), &view), heard, "{what}");
    }
    // A copy that begins without a memory hears, too, and keeps what is its own.
    let mut view = healthy();
    say(&mut view, "n2", MemberRole::Primary, Memory { etcd: 8, attempted: 7, ..later() });
    let mut nothing = Memory::default();
    assert!(store::hear(&mut nothing, &view));
    assert_eq!((nothing.term, nothing.etcd, nothing.attempted), (Term(9), 0, 0));
}

#[test]
fn the_number_of_a_making_that_was_begun_is_not_used_again() {
    let mut begun = Memory { attempted: 2, ..memory() };
    assert_eq!((memory().next_generation(), begun.next_generation()), (2, 3));
    let mut view = emptied();
    say(&mut view, "n1", MemberRole::Primary, begun.clone());
    assert_eq!(store::rebuild(&view, None).unwrap().generation, 3);
    let mut made = healthy();
    (made.revision, made.last_term, made.store) = (9, last(8), made_again(2));
    assert!(store::learn(&mut begun, &made));
    assert_eq!(begun.next_generation(), 3);
    let text = serde_json::to_string(&memory()).unwrap();
    assert!(!text.contains("attempted"), "{text}");
}

#[test]
fn only_who_led_last_founds_again_and_only_after_everybody_spoke() {
    let n1 = name("n1");
    let may = |view: &ClusterView, lease: bool| store::may_found(view, &n1, Some(&memory()), true, lease);
    let mut view = emptied();
    assert_eq!(may(&view, false), Err(NoFounding::Unheard("n2".to_owned())));
    assert_eq!(may(&view, true), Ok(()), "nobody can have taken the key from a lease that runs");
    assert!(may(&ClusterView { etcd: 8, ..view.clone() }, true).is_err(), "in another etcd that says nothing: the first may live on");
    say(&mut view, "n2", MemberRole::Replica, memory());
    assert_eq!(may(&view, false), Ok(()));
    // An old primary that was frozen.
    say(&mut view, "n2", MemberRole::Primary, later());
    for lease in [false, true] {
        assert_eq!(may(&view, lease), Err(NoFounding::KnowsMore(name("n2"))));
    }
    // A standby.
    assert!(matches!(store::may_found(&view, &name("n2"), Some(&memory()), true, true), Err(NoFounding::AnotherLedLast(_))));
    // A node without data beside these; and one without anybody, as ever.
    assert_eq!(store::may_found(&view, &name("n3"), None, false, false), Err(NoFounding::OthersHaveData("n2".to_owned())));
    assert_eq!(store::may_found(&emptied(), &name("n3"), None, false, false), Ok(()));
    // Data from before the cluster, beside nobody.
    assert_eq!(store::may_found(&emptied(), &n1, None, true, false), Ok(()));
    // A member that lost its data founds nothing with the memory that its process kept.
    assert!(store::may_found(&view, &n1, Some(&memory()), false, true).is_err());
}

#[test]
fn the_duty_in_an_emptied_store_is_to_found_or_to_rest() {
    let mut view = emptied();
    view.config = config(json!({"pause": true}));
    let serves = Postgres::Primary { timeline: Timeline(2), flushed: HIGH };
    let of = |postgres: Postgres, fence_open| LocalState {
        memory: Some(Box::new(memory())),
        fence_open,
        ..local("n1", DataDir::Present(control(2, HIGH, cluster::local::Ended::Standby)), postgres)
    };
    assert_eq!(duty::decide(&view, &of(serves.clone(), true)).what, Duty::Bootstrap, "also in maintenance mode: nothing is stopped by it");
    assert_eq!(duty::decide(&view, &of(serves, false)).what, Duty::Rest);
    view.config = None;
    assert_eq!(duty::decide(&view, &of(Postgres::Stopped, false)).what, Duty::Rest, "a standby's arbiter does not end for it");
}

#[test]
fn keys_are_made_anew_from_the_newest_memory() {
    let mut view = healthy();
    view.members.clear();
    assert_eq!(store::rebuild(&view, None), Err(NoRebuild::NobodyDoubts));
    say(&mut view, "n1", MemberRole::Replica, memory());
    say(&mut view, "n2", MemberRole::Primary, Memory { sync: sync_key("n2", "n3"), ..later() });
    let plan = store::rebuild(&view, None).unwrap();
    assert_eq!((plan.leader.as_str(), plan.generation, plan.timeline), ("n2", 2, Timeline(3)));
    assert_eq!(plan.sync, sync_key("n2", "n3").unwrap().value, "who leads on still awaits those");
    assert_eq!(plan.risk, None);
    assert_eq!(plan.replaces.as_ref().map(|leader| leader.name.as_str()), Some("n1"));
    // Its server is down, so how far it is stands nowhere: what it acknowledged it has, and the others are not further for that.
    let mut down = view.clone();
    say(&mut down, "n2", MemberRole::Replica, Memory { sync: sync_key("n2", "n3"), ..later() });
    for entry in [name("n1"), name("n2")].iter().zip([Some(Timeline(3)), None]) {
        down.members.get_mut(entry.0).unwrap().member.timeline = entry.1;
    }
    assert_eq!(store::rebuild(&down, None).unwrap().risk, None);
    // By name: n1 is not trusted by the last sync key.
    let plan = store::rebuild(&view, Some(&name("n1"))).unwrap();
    assert!(plan.risk.is_some_and(|risk| risk.contains("sync key")));
    assert_eq!(plan.sync, sync_key("n1", "").unwrap().value);
    assert_eq!(store::rebuild(&view, Some(&name("n9"))), Err(NoRebuild::NotAMember(name("n9"))));
    // The last leader is gone.
    view.members.remove(&name("n2"));
    say(&mut view, "n3", MemberRole::Replica, Memory { sync: sync_key("n2", "n3"), ..later() });
    assert!(matches!(store::rebuild(&view, None), Err(NoRebuild::HolderSilent { .. })));
    let plan = store::rebuild(&view, Some(&name("n3"))).unwrap();
    assert_eq!((plan.risk, plan.unheard), (None, vec!["n2".to_owned()]));
    // Without synchronous standbys nobody knows what the last leader acknowledged; and the furthest is named.
    say(&mut view, "n3", MemberRole::Replica, Memory { sync: None, ..later() });
    assert!(store::rebuild(&view, Some(&name("n3"))).unwrap().risk.is_some());
    view.members.get_mut(&name("n3")).unwrap().member.receive_lsn = Some(Lsn(HIGH.0 + 1));
    assert!(store::rebuild(&view, Some(&name("n1"))).unwrap().risk.is_some_and(|risk| risk.contains("n3 ")));
}

#[test]
fn check_names_the_doubt_and_what_mends_it_and_no_empty_node() {
    let mut view = emptied();
    say(&mut view, "n2", MemberRole::Replica, memory());
    let faults = cluster::check::faults(&view);
    assert!(faults.iter().any(|fault| fault.hint.contains("tenure rebuild-keys")), "{faults:?}");
    assert!(!faults.iter().any(|fault| fault.hint.contains("bootstrap section")), "{faults:?}");
}
