//! Tables of the coordinator's metadata: rows found, rows wanted, and the steps between; and every small world of them.

use cluster::citus::{
    self, COORDINATOR, CoordinatorWord, GateWord, GatedWord, Groups, HeldWord, HoldRequest, NodeRole, Prefer, Release, Row, Step, Wanted,
    order,
};
use cluster::config::DynamicConfig;
use cluster::host::Address;
use cluster::leader::{Leader, LeaseId, Term};
use cluster::member::{Member, MemberEntry};
use cluster::name::{MemberName, SystemId};
use cluster::view::{ClusterView, Initialize, Versioned};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn at(text: &str) -> Address {
    Address::parse(text, 5432).expect("an address")
}

/// `id group address role`, role being `p` or `s`.
fn found(lines: &[&str]) -> Vec<Row> {
    let row = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        let role = if words[3] == "p" { NodeRole::Primary } else { NodeRole::Secondary };
        Row { id: words[0].parse().expect("a number"), group: words[1].parse().expect("a number"), at: at(words[2]), role }
    };
    lines.iter().map(row).collect()
}

/// `group primary standby...`
fn wanted(lines: &[&str]) -> BTreeMap<u32, Wanted> {
    let group = |line: &&str| {
        let words: Vec<&str> = line.split(' ').collect();
        let standbys = words[2..].iter().map(|word| at(word)).collect();
        (words[0].parse().expect("a number"), Wanted { primary: at(words[1]), standbys })
    };
    lines.iter().map(group).collect()
}

fn check(rows: &[&str], groups: &[&str], moves: &[&str], others: &[&str]) {
    let plan = citus::plan(&found(rows), &wanted(groups));
    let words = |steps: &[Step]| steps.iter().map(Step::to_string).collect::<Vec<_>>();
    assert_eq!((words(&plan.moves), words(&plan.others)), (owned(moves), owned(others)), "{rows:?} to {groups:?}");
    assert_eq!(plan.conflicts, Vec::<String>::new());
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn nodes_come() {
    check(&[], &["0 c1"], &[], &["the coordinator is at c1:5432"]);
    check(
        &["1 0 c1 p"],
        &["0 c1 c2", "1 a b"],
        &[],
        &["a:5432 is a primary of group 1", "c2:5432 is a secondary of group 0", "b:5432 is a secondary of group 1"],
    );
    check(&["1 0 c1 p", "2 1 a p"], &["0 c1", "1 a"], &[], &[]);
}

#[test]
fn a_group_of_which_nothing_is_known_stays_as_it_is() {
    check(&["1 0 c1 p", "2 1 a p", "3 1 b s"], &["0 c1"], &[], &[]);
}

#[test]
fn a_promoted_standby_changes_places_with_the_old_primary() {
    for (standbys, place) in [("", "a"), (" a", "a"), (" a c", "a"), (" c", "c")] {
        let group = format!("1 b{standbys}");
        let place = format!("node 3 is at {place}:5432");
        let mut others = vec![];
        if standbys.is_empty() {
            others.push("a:5432 is gone");
        }
        if standbys == " a c" {
            others.push("c:5432 is a secondary of group 1");
        }
        let moves = ["node 3 is at b-moving-3:5432", "node 2 is at b:5432", &place];
        check(&["1 0 c1 p", "2 1 a p", "3 1 b s"], &["0 c1", &group], &moves, &others);
    }
}

#[test]
fn a_primary_that_was_set_aside_comes_back_or_is_followed_by_the_promoted_one() {
    let rows = ["1 0 c1 p", "2 1 a-demoted p", "3 1 b s"];
    check(&rows, &["0 c1", "1 a b"], &["node 2 is at a:5432"], &[]);
    let moves = ["node 3 is at b-moving-3:5432", "node 2 is at b:5432", "node 3 is at a:5432"];
    check(&rows, &["0 c1", "1 b a"], &moves, &[]);
    // The old primary is not back yet: its place is kept for it, to be removed if it does not come.
    check(&rows, &["0 c1", "1 b"], &moves, &["a:5432 is gone"]);
}

#[test]
fn a_primary_without_a_row_yet_is_put_where_the_old_one_was() {
    check(&["1 0 c1 p", "2 1 a p"], &["0 c1", "1 c"], &["node 2 is at c:5432"], &[]);
    check(&["1 0 c1 p", "2 1 a p"], &["0 c2"], &["node 1 is at c2:5432"], &[]);
}

#[test]
fn rows_of_standbys_that_went_are_used_for_those_that_came() {
    check(&["1 0 c1 p", "2 0 c2 s", "3 0 c3 s"], &["0 c1 c3 c4"], &["node 2 is at c4:5432"], &[]);
    check(&["1 0 c1 p", "2 0 c2 s"], &["0 c1"], &[], &["c2:5432 is gone"]);
}

#[test]
fn two_groups_that_changed_machines() {
    let moves = ["node 3 is at b-moving-3:5432", "node 2 is at b:5432", "node 3 is at a:5432"];
    check(&["1 0 c p", "2 1 a p", "3 2 b p"], &["0 c", "1 b", "2 a"], &moves, &[]);
}

#[test]
fn an_address_that_two_groups_claim_is_a_conflict_and_changes_nothing() {
    let plan = citus::plan(&found(&["1 0 c p", "2 1 a p", "3 2 b p"]), &wanted(&["0 c", "1 b", "2 b"]));
    assert!(plan.is_empty(), "{plan:?}");
    assert_eq!(plan.conflicts.len(), 2, "{plan:?}");
}

/// Does the steps as Citus does: an address is at one row at a time, or the step fails.
fn apply(rows: &mut Vec<Row>, step: &Step) {
    let free = |rows: &[Row], at: &Address| assert!(rows.iter().all(|row| row.at != *at), "{step}: taken in {rows:?}");
    let next = rows.iter().map(|row| row.id).max().unwrap_or(0) + 1;
    match step {
        Step::Move { id, to } => {
            if rows.iter().any(|row| row.id == *id && row.at == *to) {
                return;
            }
            free(rows, to);
            rows.iter_mut().find(|row| row.id == *id).expect("the row").at = to.clone();
        }
        Step::SetCoordinator { at } => {
            free(rows, at);
            rows.push(Row { id: next, group: COORDINATOR, at: at.clone(), role: NodeRole::Primary });
        }
        Step::Add { group, at, role } => {
            free(rows, at);
            assert!(*role == NodeRole::Secondary || rows.iter().all(|row| row.group != *group || row.role != NodeRole::Primary));
            rows.push(Row { id: next, group: *group, at: at.clone(), role: *role });
        }
        Step::Remove { at } => {
            let removed = rows.iter().position(|row| row.at == *at).expect("the row");
            assert_eq!(rows.remove(removed).role, NodeRole::Secondary);
        }
    }
}

/// Every assignment of four machines to the roles of two groups, from every other: the steps are possible in their order, the rows
/// come out as wanted, each primary's row keeps its id, and a second look finds nothing to do.
#[test]
fn every_small_world_comes_out_right() {
    let machines = ["a", "b", "c", "d"];
    // Each machine: absent, or primary or standby of group 0 or 1.
    let mut worlds = Vec::new();
    for code in 0..5_usize.pow(4) {
        let role = |machine: usize| code / 5_usize.pow(machine as u32) % 5;
        let mut groups: BTreeMap<u32, (Vec<&str>, BTreeSet<Address>)> = BTreeMap::new();
        for (index, machine) in machines.iter().enumerate() {
            match role(index) {
                0 => {}
                role => {
                    let group = groups.entry(if role <= 2 { 0 } else { 1 }).or_default();
                    if role % 2 == 1 { group.0.push(machine) } else { group.1.extend([at(machine)]) }
                }
            }
        }
        if groups.values().all(|(primaries, _)| primaries.len() == 1) {
            let wanted = groups.into_iter().map(|(group, (primary, standbys))| (group, Wanted { primary: at(primary[0]), standbys }));
            worlds.push(wanted.collect::<BTreeMap<u32, Wanted>>());
        }
    }
    assert!(worlds.len() > 50, "{}", worlds.len());
    for before in &worlds {
        let mut rows = Vec::new();
        for step in &citus::plan(&[], before).others {
            apply(&mut rows, step);
        }
        for after in &worlds {
            let mut rows = rows.clone();
            let ids = |rows: &[Row]| {
                rows.iter().filter(|row| row.role == NodeRole::Primary).map(|row| (row.group, row.id)).collect::<BTreeMap<_, _>>()
            };
            let kept = ids(&rows);
            // Groups of which nothing is known keep their rows, which may be in the way of others: those rounds are conflicts.
            let mut plan = citus::plan(&rows, after);
            let conflict = !plan.conflicts.is_empty();
            for _ in 0..3 {
                plan.moves.iter().chain(&plan.others).for_each(|step| apply(&mut rows, step));
                plan = citus::plan(&rows, after);
            }
            let unknown = before.keys().any(|group| !after.contains_key(group));
            assert!(!conflict || unknown, "{before:?} to {after:?}: {:?}", plan.conflicts);
            for (group, id) in ids(&rows) {
                assert!(kept.get(&group).is_none_or(|before| *before == id), "{before:?} to {after:?}: {rows:?}");
            }
            if unknown {
                continue;
            }
            assert!(plan.is_empty(), "{before:?} to {after:?}: left {plan:?}");
            let got: BTreeSet<_> = rows.iter().map(|row| (row.group, row.role, row.at.clone())).collect();
            let all = after.iter().flat_map(|(group, want)| {
                let standbys = want.standbys.iter().map(|at| (*group, NodeRole::Secondary, at.clone()));
                standbys.chain([(*group, NodeRole::Primary, want.primary.clone())])
            });
            assert_eq!(got, all.collect(), "{before:?} to {after:?}");
        }
    }
}

fn name(text: &str) -> MemberName {
    MemberName::new(text).expect("a name")
}

/// A group that exists, led by `a` in this term, its members given as JSON.
fn group(term: i64, members: &[(&str, &str, &str, &str)]) -> ClusterView {
    let entry = |(member, role, state, tags): &(&str, &str, &str, &str)| {
        let json = format!(r#"{{"conn_url":"postgres://{member}:1/x","api_url":"","role":"{role}","state":"{state}","tags":{tags}}}"#);
        let member_of: Member = serde_json::from_str(&json).expect("a member");
        (name(member), MemberEntry { member: member_of, lease: LeaseId(1), revision: 1 })
    };
    ClusterView {
        initialize: Some(Versioned { value: Initialize::Done(SystemId("1".to_owned())), revision: 1 }),
        leader: Some(Leader { name: name("a"), lease: LeaseId(1), term: Term(term) }),
        members: members.iter().map(entry).collect(),
        ..ClusterView::default()
    }
}

#[test]
fn a_group_is_known_by_its_leader_that_runs_as_primary() {
    let standbys =
        [("b", "replica", "running", "{}"), ("c", "replica", "starting", "{}"), ("d", "replica", "running", r#"{"noloadbalance":true}"#)];
    for (role, state, known) in [("primary", "running", true), ("replica", "running", false), ("primary", "stopping", false)] {
        let mut view = group(5, &[&standbys[..], &[("a", role, state, "{}")]].concat());
        let expected = Wanted { primary: at("a:1"), standbys: BTreeSet::from([at("b:1")]) };
        assert_eq!(citus::wanted(&view), known.then_some(expected), "{role} {state}");
        view.initialize = None;
        assert_eq!(citus::wanted(&view), None, "it does not exist yet");
    }
}

#[test]
fn only_the_present_leaders_request_is_served() {
    let asking = |leader: &str, term: i64| ClusterView {
        hold: Some(Versioned { value: HoldRequest { leader: name(leader), term, prefers_statements: false }, revision: 9 }),
        ..group(5, &[])
    };
    assert_eq!(citus::hold_wanted(&asking("a", 5)).map(|(revision, _)| revision), Some(9));
    assert_eq!(citus::hold_wanted(&asking("a", 4)), None);
    assert_eq!(citus::hold_wanted(&asking("b", 5)), None);
    let groups = Groups::from([(1, asking("a", 5)), (2, asking("a", 4)), (3, group(5, &[]))]);
    for (requests, expected) in [
        (&[(1, 9)][..], true),
        (&[(2, 9), (1, 9)], true),
        // Asked again, of a leader before, never, in no group; and nobody.
        (&[(1, 8), (2, 9), (3, 9), (4, 9)], false),
        (&[], false),
    ] {
        assert_eq!(citus::are_wanted(&groups, requests), expected, "{requests:?}");
    }
    let answered = ClusterView {
        held: Some(Versioned { value: HeldWord { request: 9, coordinator: name("c"), term: 1, refused: None }, revision: 10 }),
        ..asking("a", 5)
    };
    assert!(citus::answer(&answered, 9).is_some() && citus::answer(&answered, 8).is_none() && citus::answer(&asking("a", 5), 9).is_none());
}

#[test]
fn a_coordinator_of_keys_that_were_made_anew_comes_after_every_one_before() {
    let in_order =
        [order(0, 0), order(0, 5), order(1, 3), order(1, 900_000), order(2, 1), order(2, i64::MAX), order(3, 1), order(u32::MAX, 7)];
    assert!(in_order.windows(2).all(|pair| pair[0] < pair[1]), "{in_order:?}");
    assert!(in_order.iter().all(|order| *order >= 0));
    assert_eq!(order(0, 77), 77, "as words of a version before it have it");
}

#[test]
fn a_gate_is_kept_for_the_newest_coordinator_and_awaited_of_who_serves() {
    let serving = |term| group(term, &[("a", "primary", "running", "{}")]);
    let gate =
        |term| Some(Versioned { value: GateWord { coordinator: name("c"), term, reads: true, grace_ms: 500, beside_ms: 0 }, revision: 20 });
    let coordinator = |term| Some(Versioned { value: CoordinatorWord { leader: name("c"), term }, revision: 3 });
    for (newest, asks, kept) in [(None, 3, true), (Some(3), 3, true), (Some(3), 4, true), (Some(3), 2, false)] {
        let view = ClusterView { gate: gate(asks), coordinator: newest.and_then(coordinator), ..serving(5) };
        assert_eq!(citus::gate_wanted(&view).map(|(revision, _)| revision), kept.then_some(20), "{newest:?} {asks}");
    }
    assert_eq!(citus::gate_wanted(&ClusterView { gate: gate(3), leader: None, ..serving(5) }), None, "nobody there leads");

    let says = |gate, term, closed| Some(Versioned { value: GatedWord { gate, leader: name("a"), term, closed, left: 0 }, revision: 21 });
    let answered = |gate, term| says(gate, term, true);
    let asking = Some(Versioned { value: HoldRequest { leader: name("a"), term: 5, prefers_statements: false }, revision: 9 });
    for (view, missing) in [
        (serving(5), true),
        (ClusterView { gated: answered(20, 5), ..serving(5) }, false),
        (ClusterView { gated: says(20, 5, false), ..serving(5) }, true), // it waits for statements under way
        (ClusterView { gated: answered(19, 5), ..serving(5) }, true),    // of an earlier word
        (ClusterView { gated: answered(20, 4), ..serving(5) }, true),    // of a leader before this one
        (ClusterView { hold: asking, ..serving(5) }, false),             // about to stop itself
        (group(5, &[("a", "primary", "stopping", "{}")]), false),
        (ClusterView::default(), false),
    ] {
        let groups = Groups::from([(COORDINATOR, serving(1)), (2, view)]);
        assert_eq!(citus::not_gated(&groups, 20).contains(&2), missing, "{groups:?}");
        assert!(!citus::not_gated(&groups, 20).contains(&COORDINATOR));
    }
}

#[test]
fn a_hold_ends_when_somebody_serves_or_it_took_too_long() {
    let (short, long, limit) = (Duration::from_secs(1), Duration::from_secs(20), Duration::from_secs(20));
    let serving = |term| group(term, &[("a", "primary", "running", "{}")]);
    let stopped = |term| group(term, &[("a", "primary", "stopping", "{}")]);
    for (view, asks, waited, released) in [
        (serving(5), true, short, None), // has asked, and has not stopped yet
        (stopped(5), true, short, None),
        (stopped(5), true, long, Some(Release::TimedOut)),
        (serving(5), true, long, Some(Release::TimedOut)),
        (stopped(7), true, short, None), // the next one is being promoted
        (serving(7), true, short, Some(Release::Served)),
        (serving(7), false, short, Some(Release::Served)),
        (serving(5), false, short, Some(Release::CalledOff)),
        (stopped(5), false, short, None), // its node died, or it starts again: somebody will serve
        (ClusterView::default(), false, short, None),
        (ClusterView::default(), false, long, Some(Release::TimedOut)),
    ] {
        let request = Versioned { value: HoldRequest { leader: name("a"), term: 5, prefers_statements: false }, revision: 9 };
        let view = ClusterView { hold: asks.then_some(request), ..view };
        assert_eq!(citus::release(&view, 9, 5, waited, limit), released, "{view:?} after {waited:?}");
    }
}

#[test]
fn what_a_planned_change_prefers_and_for_how_long_it_waits() {
    let of = |coordinator: &str, worker: &str| {
        Groups::from([(COORDINATOR, configured(group(1, &[]), coordinator)), (2, configured(group(5, &[]), worker))])
    };
    let (change, statements) = (Prefer::Change, Prefer::Statements);
    for (coordinator, worker, file, expected) in [
        ("{}", "{}", None, change),
        ("{}", "{}", Some(statements), statements),
        (r#"{"prefer":"statements"}"#, "{}", Some(change), statements),
        (r#"{"prefer":"statements"}"#, r#"{"prefer":"change"}"#, None, change),
        (r#"{"prefer":"neither"}"#, "{}", None, change),
    ] {
        assert_eq!(citus::prefer(&of(coordinator, worker), 2, file), expected, "{coordinator} {worker} {file:?}");
    }
    for (coordinator, file, seconds) in [("{}", None, 5), ("{}", Some(0), 0), (r#"{"grace":30}"#, Some(1), 30)] {
        assert_eq!(citus::grace(&of(coordinator, "{}"), file), Duration::from_secs(seconds), "{coordinator} {file:?}");
    }
}

#[test]
fn words_of_a_version_before_are_read() {
    let gate: GateWord = serde_json::from_str(r#"{"coordinator":"c","term":1,"reads":true}"#).expect("a gate");
    assert_eq!((gate.grace_ms, gate.beside_ms), (500, 0));
    let gated: GatedWord = serde_json::from_str(r#"{"gate":1,"leader":"a","term":1}"#).expect("an answer");
    assert!(gated.closed && gated.left == 0);
    let held: HeldWord = serde_json::from_str(r#"{"request":1,"coordinator":"c","term":1}"#).expect("an answer");
    assert_eq!(held.refused, None);
}

/// The configuration of a group, its section `citus` being this.
fn configured(view: ClusterView, citus: &str) -> ClusterView {
    let json = format!(r#"{{"citus":{citus}}}"#);
    let value = DynamicConfig(serde_json::from_str(&json).expect("a configuration"));
    ClusterView { config: Some(Versioned { value, revision: 1 }), ..view }
}

#[test]
fn an_address_is_a_host_and_perhaps_a_port() {
    for (text, expected) in [
        ("rw.example", Some("rw.example:5432")),
        (" 10.0.0.9:6000 ", Some("10.0.0.9:6000")),
        ("[::1]:6000", Some("[::1]:6000")),
        ("[::1]", Some("[::1]:5432")),
        ("", None),
        (":5432", None),
        ("a:", None),
        ("a:0", None),
        ("a:70000", None),
        ("[::1", None),
        ("a b", None),
        ("postgres://a", None),
    ] {
        let found = citus::address_of(&serde_json::json!(text)).map(|at| at.to_string());
        assert_eq!(found.as_deref(), expected, "{text}");
    }
    assert_eq!(citus::address_of(&serde_json::json!(5432)), None);
}

#[test]
fn names_stand_in_for_members() {
    let up = [("a", "primary", "running", "{}"), ("b", "replica", "running", "{}"), ("c", "replica", "running", "{}")];
    let alone = [up[0], ("b", "replica", "starting", "{}"), ("c", "replica", "running", r#"{"noloadbalance":true}"#)];
    for (members, section, primary, standbys) in [
        (&up, r#"{}"#, "a:1", &["b:1", "c:1"][..]),
        (&up, r#"{"primary_address":"rw"}"#, "rw", &["b:1", "c:1"]),
        (&up, r#"{"standby_address":"ro:6000"}"#, "a:1", &["ro:6000"]),
        (&up, r#"{"primary_address":"rw","standby_address":"ro"}"#, "rw", &["ro"]),
        (&alone, r#"{"primary_address":"rw","standby_address":"ro"}"#, "rw", &[]),
        // Host and port are unique over all rows.
        (&up, r#"{"primary_address":"rw","standby_address":"rw"}"#, "rw", &[]),
        (&up, r#"{"primary_address":7}"#, "a:1", &["b:1", "c:1"]),
    ] {
        let expected = Wanted { primary: at(primary), standbys: standbys.iter().map(|text| at(text)).collect() };
        assert_eq!(citus::wanted(&configured(group(5, members), section)), Some(expected), "{section}");
    }
}

#[test]
fn where_the_name_stays_a_hold_still_ends_and_nothing_else_moves() {
    // Another member leads: no step.
    check(&["1 0 c1 p", "2 1 rw p", "3 1 ro s"], &["0 c1", "1 rw ro"], &[], &[]);
    // A hold put the row aside.
    check(&["1 0 c1 p", "2 1 rw-demoted p", "3 1 ro s"], &["0 c1", "1 rw ro"], &["node 2 is at rw:5432"], &[]);
    // From addresses to names and back, on the same rows.
    check(&["1 0 c1 p", "2 1 a p", "3 1 b s"], &["0 c1", "1 rw ro"], &["node 2 is at rw:5432", "node 3 is at ro:5432"], &[]);
    check(&["1 0 c1 p", "2 1 rw p", "3 1 ro s"], &["0 c1", "1 a b"], &["node 2 is at a:5432", "node 3 is at b:5432"], &[]);
    // The last healthy standby went.
    check(&["1 0 c1 p", "2 1 rw p", "3 1 ro s"], &["0 c1", "1 rw"], &[], &["ro:5432 is gone"]);
}

#[test]
fn poolers_follow_the_rows_of_their_groups() {
    let with_pooler = |mut view: ClusterView| {
        for (name, entry) in &mut view.members {
            entry.member.other.insert("proxy_url".to_owned(), serde_json::json!(format!("postgres://{name}:6432/x")));
        }
        view
    };
    let members = [("a", "primary", "running", "{}"), ("b", "replica", "running", "{}"), ("c", "replica", "starting", "{}")];
    let pooled = configured(with_pooler(group(5, &members)), r#"{"use_proxy":true}"#);
    let rows = found(&["1 0 c1 p", "2 1 a:1 p", "3 1 b:1 s", "4 2 x p"]);
    let [a, b] = ["host=a port=6432", "host=b port=6432"];
    let stands = |rows: &[(i32, &str)]| rows.iter().map(|(id, text)| (*id, (*text).to_owned())).collect::<BTreeMap<_, _>>();
    let changes = |view: &ClusterView, rows: &[Row], now: &[(i32, &str)]| {
        citus::pooler_changes(rows, &stands(now), &citus::poolers(&Groups::from([(1, view.clone())])))
    };
    let to = |rows: &[(i32, Option<&str>)]| rows.iter().map(|(id, text)| (*id, text.map(str::to_owned))).collect::<BTreeMap<_, _>>();

    assert_eq!(changes(&pooled, &rows, &[]), to(&[(2, Some(a)), (3, Some(b))]));
    // Nodes of other groups are left alone, nodes that are gone are not.
    assert_eq!(changes(&pooled, &rows, &[(2, a), (3, b), (4, "host=mine"), (9, "host=gone")]), to(&[(9, None)]));
    // The primary's goes with its row, which elsewhere has its old address yet.
    let late = found(&["2 1 old p", "3 1 b:1 s"]);
    assert_eq!(changes(&pooled, &late, &[(2, "host=old port=6432"), (3, b)]), to(&[(2, Some(a))]));
    // A name for the primary changes nothing; the shared row of the standbys has no pooler of its own.
    let names = configured(pooled.clone(), r#"{"use_proxy":true,"primary_address":"rw","standby_address":"ro"}"#);
    assert_eq!(changes(&names, &found(&["2 1 rw p", "3 1 ro s"]), &[(3, b)]), to(&[(2, Some(a)), (3, None)]));
    // Not used any more; and never mentioned.
    let off = configured(pooled.clone(), r#"{"use_proxy":false}"#);
    assert_eq!(changes(&off, &rows, &[(2, a), (4, "host=mine")]), to(&[(2, None)]));
    assert_eq!(changes(&configured(pooled.clone(), "{}"), &rows, &[(2, "host=mine"), (9, "host=mine")]), to(&[]));
    // While nobody serves there, nothing changes.
    assert_eq!(changes(&ClusterView { leader: None, ..pooled }, &rows, &[(2, "host=x")]), to(&[]));
}
