//! Slots: who keeps which, how far they move, what goes, and when a copy of a logical slot may be offered.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use cluster::config::{DynamicConfig, HoldBack};
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lsn::Lsn;
use cluster::member::{Member, MemberEntry, MemberState, Tags};
use cluster::name::{MemberName, Timeline};
use cluster::slots::{self, Copied, Doubt, Facts, LogicalSlot, Retention, SlotFacts, SlotSeen, SlotStep, WhyDrop, Xid};
use cluster::time::Moment;
use cluster::view::{ClusterView, Status, Versioned};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn name(text: &str) -> MemberName {
    MemberName::new(text).unwrap()
}

fn tags(value: Value) -> Tags {
    serde_json::from_value(value).unwrap()
}

/// Three members, `n1` leads; these dynamic settings and this status.
fn view(config: Value, status: Status) -> ClusterView {
    let member = |tags: Value| {
        let mut value = json!({"conn_url": "postgres://h:1/x", "api_url": "http://h:2/patroni", "state": "running", "role": "replica", "receive_lsn": 450});
        value["tags"] = tags;
        MemberEntry { member: serde_json::from_value::<Member>(value).unwrap(), lease: LeaseId(1), revision: 1 }
    };
    ClusterView {
        config: Some(Versioned { value: DynamicConfig(config.as_object().unwrap().clone()), revision: 1 }),
        leader: Some(Leader { name: name("n1"), lease: LeaseId(1), term: Term(7) }),
        members: [("n1", json!({})), ("n2", json!({})), ("n3", json!({}))].map(|(n, tags)| (name(n), member(tags))).into(),
        status: Some(Versioned { value: status, revision: 1 }),
        ..ClusterView::default()
    }
}

fn status(slots: &[(&str, u64)]) -> Status {
    Status { slots: slots.iter().map(|(name, lsn)| ((*name).to_owned(), Lsn(*lsn))).collect(), ..Status::default() }
}

fn saying(mut status: Status, facts: &SlotFacts) -> Status {
    status.other.insert("tenure".to_owned(), serde_json::to_value(facts).unwrap());
    status
}

fn physical(name: &str, restart: u64) -> SlotSeen {
    SlotSeen { slot_name: name.to_owned(), slot_type: "physical".to_owned(), restart_lsn: Some(Lsn(restart)), ..SlotSeen::default() }
}

fn logical(name: &str, restart: u64, confirmed: u64, xmin: u32) -> SlotSeen {
    SlotSeen {
        slot_name: name.to_owned(),
        slot_type: "logical".to_owned(),
        plugin: Some("pgoutput".to_owned()),
        database: Some("app".to_owned()),
        datoid: Some(5),
        restart_lsn: Some(Lsn(restart)),
        confirmed_flush_lsn: Some(Lsn(confirmed)),
        catalog_xmin: Some(Xid(xmin)),
        ..SlotSeen::default()
    }
}

/// What a node does, in short words.
struct Node<'a> {
    name: &'a str,
    version: u32,
    use_slots: bool,
    tags: Tags,
    copies: BTreeMap<String, Copied>,
    redo: Lsn,
}

impl Default for Node<'_> {
    fn default() -> Self {
        Node { name: "n2", version: 150_000, use_slots: true, tags: Tags::default(), copies: BTreeMap::new(), redo: Lsn(500) }
    }
}

impl Node<'_> {
    fn with<T>(&self, view: &ClusterView, slots: &[SlotSeen], ask: impl Fn(&Facts<'_>) -> T) -> T {
        ask(&Facts {
            view,
            name: &name(self.name),
            tags: &self.tags,
            primary: self.name == "n1",
            position: Lsn(500),
            redo: self.redo,
            timeline: Timeline(3),
            server_version: self.version,
            use_slots: self.use_slots,
            slots,
            copies: &self.copies,
            most_for_a_copy: 300,
        })
    }

    fn does(&self, view: &ClusterView, slots: &[SlotSeen]) -> Vec<String> {
        let word = |step: SlotStep| match step {
            SlotStep::Drop { name, why } => format!("drop {name}: {why:?}"),
            SlotStep::CreatePhysical { name } => format!("create {name}"),
            SlotStep::CreateLogical { name, database, plugin, failover } => {
                format!("create {name} {plugin} in {database} failover={failover}")
            }
            SlotStep::Advance { name, to, logical } => format!("{} {name} to {}", if logical { "decode" } else { "advance" }, to.0),
            SlotStep::Copy { name, .. } => format!("copy {name}"),
            SlotStep::Trust { name, temporary } => format!("trust {name} temporary={temporary}"),
            SlotStep::Distrust { name } => format!("distrust {name}"),
            SlotStep::Tell { name, what } => format!("tell {name}: {}", what.split([';', ':']).next().unwrap_or_default()),
        };
        self.with(view, slots, |facts| slots::decide(facts).into_iter().map(word).collect())
    }
}

#[test]
fn member_slots_are_kept_on_the_primary_and_moved_along_on_standbys() {
    let at = view(json!({}), status(&[("n1", 400), ("n2", 390), ("n3", 380)]));
    let primary = Node { name: "n1", ..Node::default() };
    let standby = Node::default();
    assert_eq!(primary.does(&at, &[]), ["create n2", "create n3"]);
    assert_eq!(standby.does(&at, &[]), ["create n1", "create n3"]);
    assert_eq!(standby.does(&at, &[physical("n1", 100), physical("n3", 380)]), ["advance n1 to 400"]);
    // The leader's is held where its rewind would begin.
    let early = Node { redo: Lsn(300), ..Node::default() };
    assert_eq!(early.does(&at, &[physical("n1", 100), physical("n3", 100)]), ["advance n1 to 300", "advance n3 to 380"]);
    assert_eq!(early.does(&at, &[physical("n1", 300), physical("n3", 380)]), Vec::<String>::new());
    // Never past what is here, never back, never one in use.
    let far = view(json!({}), status(&[("n1", 900), ("n3", 900)]));
    let active = SlotSeen { active: true, ..physical("n3", 1) };
    assert_eq!(standby.does(&far, &[physical("n1", 100), active]), ["advance n1 to 500"]);
    // What the leader has not published is not made: nobody would move it.
    assert_eq!(standby.does(&view(json!({}), status(&[("n1", 400)])), &[]), ["create n1"]);
    assert_eq!(Node { use_slots: false, name: "n1", ..Node::default() }.does(&at, &[physical("n2", 1)]), ["drop n2: NotWanted"]);
    let never = Node { tags: tags(json!({"nofailover": true})), ..Node::default() };
    assert_eq!(never.does(&at, &[]), Vec::<String>::new());
}

/// n1 led term 6, and n2 and n3 had its slot where its rewind would begin; n2 took term 7, and what n1 said of itself is in etcd still.
#[test]
fn what_the_leader_before_needs_to_be_rewound_is_kept_until_the_present_one_has_spoken() {
    let said_in = |term: i64, positions: &[(&str, u64)]| saying(status(positions), &SlotFacts { term, ..SlotFacts::default() });
    let before = said_in(6, &[("n1", 490), ("n2", 390), ("n3", 380)]);
    let third = Node { name: "n3", redo: Lsn(480), ..Node::default() };
    let here = [physical("n1", 200), physical("n2", 300)];
    let mut at = view(json!({}), before.clone());
    at.leader = Some(Leader { name: name("n2"), lease: LeaseId(1), term: Term(7) });
    assert_eq!(third.does(&at, &here), Vec::<String>::new(), "it would be moved to 490, or to 480");
    assert_eq!(third.does(&at, &[]), ["create n1", "create n2"]);
    // Nor while nobody leads after a term whose leader said nothing.
    let held = cluster::view::LastTerm { holder: name("n2"), how: "taken".to_owned() };
    (at.leader, at.last_term) = (None, Some(Versioned { value: held, revision: 7 }));
    assert_eq!(third.does(&at, &here), Vec::<String>::new());
    // Where all keys were lost too: what is here is not dropped, and nothing is made that nobody spoke of.
    at.status = None;
    assert_eq!(third.does(&at, &here), Vec::<String>::new());
    assert_eq!(third.does(&at, &[]), Vec::<String>::new());
    // The present leader holds it where it has it; from then on that counts.
    at.leader = Some(Leader { name: name("n2"), lease: LeaseId(1), term: Term(7) });
    at.status = Some(Versioned { value: said_in(7, &[("n1", 250), ("n2", 490), ("n3", 380)]), revision: 2 });
    assert_eq!(third.does(&at, &here), ["advance n1 to 250", "advance n2 to 480"]);
    at.status = Some(Versioned { value: said_in(7, &[("n2", 490)]), revision: 2 });
    assert_eq!(third.does(&at, &[physical("n1", 200), physical("n2", 480)]), ["drop n1: NotWanted"]);
    // Patroni's leaders name no term.
    at.status = Some(Versioned { value: status(&[("n1", 250), ("n2", 490)]), revision: 2 });
    assert_eq!(third.does(&at, &here), ["advance n1 to 250", "advance n2 to 480"]);
}

/// It led before, went on alone, and is tagged to stream from n3: where it wrote last is not where its rewind begins.
#[test]
fn the_slot_of_a_member_on_another_timeline_is_not_moved_along() {
    let mut at = view(json!({}), status(&[]));
    let n2 = at.members.get_mut(&name("n2")).unwrap();
    n2.member.tags = tags(json!({"replicatefrom": "n3"}));
    let primary = Node { name: "n1", ..Node::default() };
    let here = [physical("n2", 100), physical("n3", 100)];
    for (timeline, steps) in [(Some(2), vec![]), (Some(3), vec!["advance n2 to 450"]), (None, vec!["advance n2 to 450"])] {
        at.members.get_mut(&name("n2")).unwrap().member.timeline = timeline.map(Timeline);
        assert_eq!(primary.does(&at, &here), steps, "{timeline:?}");
    }
}

#[test]
fn a_member_key_that_no_lease_keeps_gets_no_slot() {
    let mut at = view(json!({}), status(&[]));
    at.members.get_mut(&name("n3")).unwrap().lease = LeaseId::NONE;
    assert_eq!(Node { name: "n1", ..Node::default() }.does(&at, &[]), ["create n2"]);
}

#[test]
fn a_member_that_streams_from_another_has_its_slot_there_and_is_moved_along_on_the_leader() {
    let mut at = view(json!({}), status(&[("n1", 400), ("n2", 390), ("n3", 380)]));
    at.members.get_mut(&name("n3")).unwrap().member.tags = tags(json!({"replicatefrom": "n2"}));
    assert_eq!(Node { name: "n1", ..Node::default() }.does(&at, &[physical("n2", 1), physical("n3", 1)]), ["advance n3 to 450"]);
    // On its upstream it is the member's own to move.
    assert_eq!(Node::default().does(&at, &[physical("n1", 400), physical("n3", 1)]), Vec::<String>::new());
    let never = Node { tags: tags(json!({"nofailover": true})), ..Node::default() };
    assert_eq!(never.does(&at, &[]), ["create n3"]);
    let nostream = view(json!({}), status(&[]));
    let mut nostream = nostream;
    nostream.members.get_mut(&name("n3")).unwrap().member.tags = tags(json!({"nostream": true}));
    assert_eq!(Node { name: "n1", ..Node::default() }.does(&nostream, &[]), ["create n2"]);
}

#[test]
fn unusable_slots_of_ours_are_made_anew() {
    let at = view(json!({}), status(&[("n1", 400), ("n3", 380)]));
    let lost = SlotSeen { wal_status: Some("lost".to_owned()), ..physical("n2", 1) };
    let nothing = SlotSeen { restart_lsn: None, ..physical("n3", 0) };
    assert_eq!(
        Node { name: "n1", ..Node::default() }.does(&at, &[lost, nothing]),
        ["drop n2: Lost", "create n2", "drop n3: ReservesNothing", "create n3"]
    );
    let horizon = SlotSeen { xmin: Some(Xid(9)), ..physical("n3", 380) };
    assert_eq!(Node::default().does(&at, &[physical("n1", 400), horizon]), ["drop n3: HoldsRowsBack", "create n3"]);
}

#[test]
fn hygiene_never_touches_what_is_in_use_ignored_or_nobodys() {
    let facts = SlotFacts { known: ["old", "gone"].map(str::to_owned).into(), ..SlotFacts::default() };
    let config = json!({"ignore_slots": [{"name": "gone", "type": "physical"}, {}]});
    let at = view(config, saying(status(&[]), &facts));
    let primary = Node { name: "n1", ..Node::default() };
    let here = [physical("n2", 1), physical("n3", 1)];
    let with = |slot: SlotSeen| [here.to_vec(), vec![slot]].concat();
    for (slot, expected) in [
        (physical("old", 1), Some("drop old: NotWanted")),
        (SlotSeen { active: true, ..physical("old", 1) }, None),
        (physical("gone", 1), None),
        (physical("theirs", 1), None),
        (logical("their_subscription", 1, 1, 1), None),
        (SlotSeen { temporary: true, ..physical("old", 1) }, None),
    ] {
        assert_eq!(primary.does(&at, &with(slot.clone())), expected.into_iter().map(str::to_owned).collect::<Vec<_>>(), "{slot:?}");
    }
    // In maintenance mode nothing is dropped.
    let mut paused = at.clone();
    paused.config.as_mut().unwrap().value.0.insert("pause".to_owned(), json!(true));
    assert_eq!(primary.does(&paused, &with(physical("old", 1))), Vec::<String>::new());
    // What a standby can't use is left from when it was primary; from 16 on it may be in use there.
    let left = [logical("their_subscription", 1, 1, 1)];
    assert_eq!(Node::default().does(&at, &left), ["drop their_subscription: LeftOver"]);
    assert_eq!(Node { version: 160_000, ..Node::default() }.does(&at, &left), Vec::<String>::new());
    let native = |synced| SlotSeen { failover: true, synced, ..logical("native", 1, 1, 1) };
    let new = Node { version: 170_000, ..Node::default() };
    assert_eq!(new.does(&at, &[native(true)]), Vec::<String>::new());
    assert_eq!(new.does(&at, &[native(false)]), ["drop native: LeftOver"]);
}

#[test]
fn permanent_slots_read_as_the_field_reads_them() {
    let config = json!({
        "slots": {"a": null, "b": {"type": "physical"}, "c": {"database": "d", "plugin": "p"}, "e": {"type": "logical"}, "Not-a-name": {}, "s": {"cluster_type": "standby"}},
        "permanent_slots": {"f": {}},
    });
    let found = slots::permanent(&DynamicConfig(config.as_object().unwrap().clone()));
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a", "b", "c", "f"]);
    assert_eq!(found["c"], slots::Kind::Logical { database: "d".to_owned(), plugin: "p".to_owned() });
    let at = view(config, status(&[("n1", 1), ("n2", 1), ("n3", 1), ("a", 300)]));
    let has = [physical("n1", 1), physical("n3", 1)];
    assert_eq!(Node::default().does(&at, &has), ["create a"]);
}

const SLOT: &str = "sub";

fn one_logical() -> Value {
    json!({"slots": {"sub": {"type": "logical", "database": "app", "plugin": "pgoutput"}}})
}

fn leader_says(confirmed: u64, catalog_xmin: u32, kept_for_n2: Option<u32>) -> SlotFacts {
    let slot = LogicalSlot {
        database_oid: 5,
        plugin: "pgoutput".to_owned(),
        two_phase: false,
        restart_lsn: Lsn(100),
        confirmed_flush_lsn: Lsn(confirmed),
        catalog_xmin: Xid(catalog_xmin),
    };
    SlotFacts {
        term: 7,
        round: 4,
        logical: BTreeMap::from([(SLOT.to_owned(), slot)]),
        kept_for: kept_for_n2.map(|xid| ("n2".to_owned(), Xid(xid))).into_iter().collect(),
        ..SlotFacts::default()
    }
}

#[test]
fn a_logical_slot_is_made_once_and_never_anew_behind_its_consumers_back() {
    let primary = Node { name: "n1", ..Node::default() };
    let members = [physical("n2", 1), physical("n3", 1)];
    let new = view(one_logical(), status(&[]));
    assert_eq!(primary.does(&new, &members), ["create sub pgoutput in app failover=false"]);
    let seventeen = Node { version: 170_000, name: "n1", ..Node::default() };
    assert_eq!(seventeen.does(&new, &members), ["create sub pgoutput in app failover=true"]);
    let known = view(one_logical(), status(&[(SLOT, 300)]));
    assert_eq!(primary.does(&known, &members), ["tell sub: the logical slot did not survive"]);
    let other = SlotSeen { plugin: Some("wal2json".to_owned()), ..logical(SLOT, 1, 1, 1) };
    let told = primary.does(&known, &[members.to_vec(), vec![other]].concat());
    assert!(told.len() == 1 && told[0].starts_with("tell sub: the slot is logical by wal2json"), "{told:?}");
    // It stays known while it is configured, although it is gone.
    let said = primary.with(&known, &members, |facts| slots::publication(facts, Term(7), 1, 1000));
    assert_eq!(said.slots.get(SLOT), Some(&Lsn(300)));
    assert!(said.facts.logical.is_empty());
    // And an operator is told.
    let (lost, has) = (SlotFacts { term: 7, round: 1, ..SlotFacts::default() }, leader_says(300, 20, None));
    assert_eq!(slots::lost(&view(one_logical(), saying(status(&[]), &lost))), [SLOT]);
    assert!(slots::lost(&view(one_logical(), saying(status(&[]), &has))).is_empty());
}

#[test]
fn a_copy_is_made_moved_and_trusted_in_this_order() {
    let says = |facts: &SlotFacts| view(one_logical(), saying(status(&[]), facts));
    let standby =
        |copied: Option<Copied>| Node { copies: copied.map(|copied| (SLOT.to_owned(), copied)).into_iter().collect(), ..Node::default() };
    let temporary = |restart, confirmed, xmin| SlotSeen { temporary: true, ..logical(SLOT, restart, confirmed, xmin) };
    let made = |rounds| Copied { made_at: Some(Lsn(100)), round: 4, rounds, trusted: None };
    let trusted = |timeline| Copied { trusted: Some(Timeline(timeline)), ..made(2) };
    for (why, said, copied, slot, expected) in [
        ("the WAL is here", leader_says(300, 20, None), None, None, vec!["copy sub"]),
        ("its WAL is not here yet", leader_says(501, 20, None), None, None, vec![]),
        ("a predecessor's words", SlotFacts { term: 6, ..leader_says(300, 20, None) }, None, None, vec![]),
        ("rows not kept", leader_says(300, 20, None), Some(made(2)), Some(temporary(150, 300, 20)), vec!["decode sub to 300"]),
        ("not consistent", leader_says(300, 20, Some(20)), Some(made(2)), Some(temporary(100, 300, 20)), vec!["decode sub to 300"]),
        ("too new", leader_says(300, 20, Some(20)), Some(made(1)), Some(temporary(150, 300, 20)), vec!["decode sub to 300"]),
        ("catalog vacuumed", leader_says(300, 21, Some(20)), Some(made(2)), Some(temporary(150, 300, 20)), vec!["decode sub to 300"]),
        (
            "all is shown",
            leader_says(300, 20, Some(20)),
            Some(made(2)),
            Some(temporary(150, 300, 20)),
            vec!["trust sub temporary=true", "decode sub to 300"],
        ),
        ("trusted, behind", leader_says(300, 30, Some(20)), Some(trusted(3)), Some(logical(SLOT, 150, 290, 20)), vec!["decode sub to 300"]),
        ("trusted, level", leader_says(300, 30, Some(20)), Some(trusted(3)), Some(logical(SLOT, 150, 300, 20)), vec![]),
        (
            "kept no more",
            leader_says(300, 20, None),
            Some(trusted(3)),
            Some(logical(SLOT, 150, 300, 20)),
            vec!["distrust sub", "decode sub to 300"],
        ),
        (
            "another leader since",
            leader_says(300, 30, Some(20)),
            Some(trusted(2)),
            Some(logical(SLOT, 150, 300, 20)),
            vec!["decode sub to 300"],
        ),
        ("ahead of the leader's", leader_says(300, 20, Some(20)), Some(made(2)), Some(logical(SLOT, 100, 400, 20)), vec![]),
        (
            "of another database",
            leader_says(300, 20, Some(20)),
            Some(made(2)),
            Some(SlotSeen { datoid: Some(6), ..logical(SLOT, 150, 300, 20) }),
            vec!["drop sub: NotTheSame"],
        ),
    ] {
        assert_eq!(standby(copied).does(&says(&said), &slot.into_iter().collect::<Vec<_>>()), expected, "{why}");
    }
    // PostgreSQL 17 does it all by itself; who may not lead needs none.
    let said = says(&leader_says(300, 20, None));
    assert_eq!(Node { version: 170_000, ..Node::default() }.does(&said, &[]), Vec::<String>::new());
    let never = Node { tags: tags(json!({"nofailover": true})), ..Node::default() };
    assert_eq!(never.does(&said, &[logical(SLOT, 1, 1, 1)]), ["drop sub: LeftOver"]);
}

#[test]
fn what_is_not_shown_to_be_safe_does_not_survive_a_promotion() {
    let at = view(one_logical(), status(&[]));
    let here = [logical(SLOT, 1, 1, 1), logical("others", 1, 1, 1), physical("n3", 1)];
    for (trusted, doubtful) in [(None, vec![SLOT]), (Some(2), vec![SLOT]), (Some(3), vec![]), (Some(4), vec![])] {
        let copied = Copied { trusted: trusted.map(Timeline), ..Copied::default() };
        let node = Node { copies: BTreeMap::from([(SLOT.to_owned(), copied)]), ..Node::default() };
        assert_eq!(node.with(&at, &here, slots::doubtful), doubtful, "{trusted:?}");
    }
    assert_eq!(Node::default().with(&at, &here, slots::doubtful), [SLOT]);
    assert!(Node { version: 170_000, ..Node::default() }.with(&at, &here, slots::doubtful).is_empty());
}

#[test]
fn a_slot_that_was_found_has_to_show_that_it_is_consistent() {
    let at = view(one_logical(), saying(status(&[]), &leader_says(300, 20, Some(20))));
    let found = slots::remembered(BTreeMap::new(), &at, &[logical(SLOT, 150, 300, 20), physical("n1", 1)]);
    assert_eq!(found, BTreeMap::from([(SLOT.to_owned(), Copied { made_at: Some(Lsn(150)), round: 4, rounds: 1, trusted: None })]));
    let again = slots::remembered(found, &at, &[logical(SLOT, 150, 300, 20)]);
    assert_eq!(again[SLOT].rounds, 1, "the same publication counts once");
    let said = slots::said(&at);
    assert_eq!(slots::doubt(&logical(SLOT, 150, 300, 20), &said, &again[SLOT], &name("n2")), Some(Doubt::NotConsistent));
    assert!(slots::remembered(again, &at, &[]).is_empty(), "what is gone is forgotten");
}

#[test]
fn what_the_leader_says_of_its_slots() {
    let known = SlotFacts { known: ["gone", "n9"].map(str::to_owned).into(), ..SlotFacts::default() };
    let at = view(one_logical(), saying(status(&[]), &known));
    let n2 = SlotSeen { catalog_xmin: Some(Xid(20)), ..physical("n2", 480) };
    let here = [n2, physical("n3", 90), physical("n9", 1), logical(SLOT, 100, 300, 20)];
    let said = Node { name: "n1", ..Node::default() }.with(&at, &here, |facts| slots::publication(facts, Term(7), 4, 400));
    assert_eq!(said.slots, status(&[("n1", 500), ("n2", 480), ("n3", 90), (SLOT, 300)]).slots);
    let expected = SlotFacts {
        known: ["n2", "n3", "n9", SLOT].map(str::to_owned).into(),
        holding_back: BTreeMap::from([("n3".to_owned(), 410), ("n9".to_owned(), 499)]),
        ..leader_says(300, 20, Some(20))
    };
    assert_eq!(said.facts, expected);
    assert_eq!(said.successors, BTreeSet::from(["n2".to_owned(), "n3".to_owned()]));
}

#[test]
fn a_copy_has_a_slot_from_its_beginning_and_it_never_fills_the_leaders_disk() {
    let mut at = view(json!({}), status(&[]));
    at.members.get_mut(&name("n2")).unwrap().member.state = MemberState::CreatingReplica;
    let primary = Node { name: "n1", ..Node::default() };
    let reserved = |slots: &[SlotSeen]| {
        let said = primary.with(&at, slots, |facts| slots::publication(facts, Term(7), 1, 1000));
        said.facts.reserved.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(primary.does(&at, &[physical("n3", 1)]), ["create n2"]);
    assert_eq!(reserved(&[physical("n3", 1)]), Vec::<String>::new());
    // Nobody waits for that of a member that runs.
    assert_eq!(reserved(&[physical("n2", 201), physical("n3", 1)]), ["n2"]);
    assert_eq!(primary.does(&at, &[physical("n2", 200), physical("n3", 1)]), Vec::<String>::new());
    // 500 - 199 bytes are more than the 300 that there is room for; the slot of n3, which runs, holds back as much and stays.
    assert_eq!(primary.does(&at, &[physical("n2", 199), physical("n3", 1)]), ["drop n2: CopyTooLong", "create n2"]);
    for useless in
        [SlotSeen { wal_status: Some("lost".to_owned()), ..physical("n2", 201) }, SlotSeen { restart_lsn: None, ..physical("n2", 0) }]
    {
        assert_eq!(reserved(&[useless]), Vec::<String>::new());
    }
}

#[test]
fn whom_logical_consumers_wait_for_is_handed_over() {
    for (config, expected) in [
        (json!({}), HoldBack::WhereCommitsWait),
        (json!({"hold_back_logical": null}), HoldBack::WhereCommitsWait),
        (json!({"hold_back_logical": true}), HoldBack::Always),
        (json!({"hold_back_logical": "on"}), HoldBack::Always),
        (json!({"hold_back_logical": false}), HoldBack::Never),
        (json!({"hold_back_logical": "off"}), HoldBack::Never),
    ] {
        let at = view(config.clone(), status(&[]));
        let said = Node { name: "n1", ..Node::default() }.with(&at, &[], |facts| slots::publication(facts, Term(7), 1, 1000));
        assert_eq!(said.hold_back, expected, "{config}");
        let text = serde_json::to_string(&said).unwrap();
        assert_eq!(serde_json::from_str::<slots::Publication>(&text).unwrap(), said);
    }
    assert_eq!(serde_json::from_str::<slots::Publication>("{}").unwrap().hold_back, HoldBack::WhereCommitsWait);
}

#[test]
fn a_standby_cluster_has_members_slots_and_no_logical_ones() {
    let mut config = one_logical();
    config["standby_cluster"] = json!({"host": "a"});
    config["slots"]["sub"]["cluster_type"] = json!("standby");
    let at = view(config.clone(), status(&[("n1", 400), ("n3", 380)]));
    assert!(!slots::keeps_logical(&DynamicConfig(config.as_object().unwrap().clone())));
    assert_eq!(Node { name: "n1", ..Node::default() }.does(&at, &[]), ["create n2", "create n3"]);
    assert_eq!(Node::default().does(&at, &[]), ["create n1", "create n3"]);
}

#[test]
fn a_slot_is_retained_for_its_time() {
    let at = |seconds| Moment(Duration::from_secs(seconds));
    let (ttl, mut retention) = (Duration::from_secs(60), Retention::default());
    let members = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    assert_eq!(retention.kept(members(&["n2", "n3"]), &[], ttl, at(0)), ["n2", "n3"]);
    assert_eq!(retention.kept(members(&["n2"]), &members(&["n2", "n3"]), ttl, at(59)), ["n2", "n3"]);
    assert_eq!(retention.kept(members(&["n2"]), &members(&["n2", "n3"]), ttl, at(60)), ["n2"]);
    // A new leader takes its predecessor's word, and counts again.
    let mut successor = Retention::default();
    assert_eq!(successor.kept(members(&["n2"]), &members(&["n3"]), ttl, at(1000)), ["n2", "n3"]);
    assert_eq!(successor.kept(members(&["n2"]), &members(&["n3"]), ttl, at(1060)), ["n2"]);
    // Zero: with the key.
    assert_eq!(Retention::default().kept(members(&["n2"]), &members(&["n3"]), Duration::ZERO, at(0)), Vec::<String>::new());
}

#[test]
fn a_row_of_the_view_is_understood_and_transaction_ids_wrap() {
    let row = r#"{"slot_name":"sub","plugin":"pgoutput","slot_type":"logical","datoid":"5","database":"app","temporary":false,"active":true,"active_pid":9,
        "xmin":null,"catalog_xmin":"735","restart_lsn":"0/1000","confirmed_flush_lsn":"1/0","wal_status":"reserved","safe_wal_size":null,"two_phase":false}"#;
    let slot: SlotSeen = serde_json::from_str(row).unwrap();
    assert_eq!((slot.datoid, slot.catalog_xmin, slot.xmin), (Some(5), Some(Xid(735)), None));
    assert_eq!((slot.restart_lsn, slot.confirmed_flush_lsn), (Some(Lsn(0x1000)), Some(Lsn(1 << 32))));
    assert!(Xid(u32::MAX).at_or_before(Xid(3)) && !Xid(3).at_or_before(Xid(u32::MAX)) && Xid(3).at_or_before(Xid(3)));
    assert_eq!(WhyDrop::Lost.to_string(), "its WAL is gone");
    assert_eq!(slots::warning_bytes(Some(100), 1000), 50);
    assert_eq!(slots::warning_bytes(None, 1000), 500);
}
