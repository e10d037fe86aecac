//! The race, rule by rule.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::failover::FailoverRequest;
use cluster::leader::Term;
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::Timeline;
use cluster::race::{Candidate, HEAD_START, PATIENCE, RaceStep, decide, fitness, may_stand, misplaced};
use cluster::reached::{End, Reached};
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

/// The vacancy was left by a leader of Patroni's.
fn by_patroni(view: &mut ClusterView) {
    view.last_term.as_mut().unwrap().value.how = cluster::mixed::BY_PATRONI.to_owned();
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

/// `n1` was heard to refuse, with this reason.
fn refuses(view: &mut ClusterView, why: &str) {
    let said = &mut view.announcements.get_mut(&name("n1")).unwrap().value;
    (said.stands, said.why) = (false, Some(why.to_owned()));
}

#[test]
fn after_a_leader_of_patronis() {
    let cases: &[(&str, Twist, &str, &str)] = &[
        ("it is gone", |view, _| by_patroni(view), "announce", "nobody holds"),
        (
            "it streams yet: for a loop_wait it goes first, as nothing fences it",
            |view, me| {
                by_patroni(view);
                (me.streaming, me.vacant_for) = (true, Duration::from_secs(1));
            },
            "wait 3000 ms",
            "it goes first",
        ),
        (
            "it streams for longer than that",
            |view, me| {
                by_patroni(view);
                (me.streaming, me.vacant_for) = (true, Duration::from_secs(4));
            },
            "announce",
            "nobody holds",
        ),
        (
            "it gave its key up for another",
            |view, _| {
                by_patroni(view);
                view.failover = request(Some("n9"), Some("n2"));
            },
            "refuse",
            "n2 is to take over",
        ),
        (
            "a leader of ours did: whoever is fittest takes over",
            |view, _| view.failover = request(Some("n9"), Some("n2")),
            "announce",
            "nobody holds",
        ),
        (
            "it gave its key up for this one, which the sync key does not trust",
            |view, _| {
                by_patroni(view);
                view.failover = request(Some("n9"), Some("n1"));
                view.sync = sync_key("n9", "n2");
            },
            "refuse",
            "not in the sync key",
        ),
    ];
    for (case, twist, step, why) in cases {
        check(case, *twist, step, why);
    }
}

#[test]
fn who_may_stand() {
    let cases: &[(&str, Twist, &str, &str)] = &[
        ("a plain standby", |_, _| {}, "announce", "nobody holds"),
        ("no data in the cluster", |view, _| view.initialize = None, "rest", "no data"),
        ("maintenance mode", |view, _| view.config = config(json!({"pause": true})), "refuse", "maintenance"),
        (
            "a primary in maintenance mode",
            |view, me| {
                view.config = config(json!({"pause": true}));
                me.primary = true;
            },
            "announce",
            "running as primary",
        ),
        ("stood down", |_, me| me.stood_down = true, "refuse", "not promoted in time"),
        ("promised to stay away", |_, me| me.promised = true, "refuse", "failsafe_mode"),
        ("a primary promises nothing", |_, me| (me.promised, me.primary) = (true, true), "announce", "running as primary"),
        (
            "a member of a later time",
            |view, _| {
                let theirs = cluster::speech::Speech { speaks: 9, serves_from: 8 };
                view.members.get_mut(&name("n3")).unwrap().member.tenure.as_mut().unwrap().speech = Some(theirs);
            },
            "refuse",
            "of n3: it serves form 8 of keys and calls and later ones",
        ),
        ("no arbiter", |_, me| me.arbiter = false, "refuse", "no arbiter"),
        ("a primary without arbiter", |_, me| (me.arbiter, me.primary) = (false, true), "announce", "running as primary"),
        ("nofailover", |_, me| me.tags = tags(r#"{"nofailover":true}"#), "refuse", "nofailover"),
        (
            "a primary with nofailover",
            |_, me| (me.tags, me.primary) = (tags(r#"{"nofailover":true}"#), true),
            "announce",
            "running as primary",
        ),
        (
            "past the fork",
            |view, me| (view.history, me.lsn) = (history(&[(1, FORK)]), HIGH),
            "refuse",
            "left the cluster's history at 0/F00000",
        ),
        ("behind the timeline, nothing lost", |view, _| view.history = history(&[(1, FORK)]), "announce", ""),
        (
            "behind the timeline, with check_timeline",
            |view, _| {
                view.history = history(&[(1, FORK)]);
                view.config = config(json!({"check_timeline": true}));
            },
            "refuse",
            "is on timeline 1, the cluster is on timeline 2",
        ),
        (
            "a primary behind the timeline",
            |view, me| (view.history, me.primary) = (history(&[(1, FORK)]), true),
            "refuse",
            "is on timeline 1",
        ),
        ("a descendant of the known timeline", |_, me| me.timeline = me.timeline.next(), "announce", ""),
        ("too far behind", |view, _| view.status = status(HIGH), "refuse", "10485760 bytes behind"),
        (
            "within the lag allowed",
            |view, _| {
                view.status = status(HIGH);
                view.config = config(json!({"maximum_lag_on_failover": HIGH.0}));
            },
            "announce",
            "",
        ),
        (
            "sync mode, not in the key",
            |view, _| (view.config, view.sync) = (sync_mode(), sync_key("n9", "n2")),
            "refuse",
            "not in the sync key",
        ),
        (
            "sync mode, in the key, however far behind",
            |view, _| {
                (view.config, view.sync) = (sync_mode(), sync_key("n9", "n1"));
                view.status = status(HIGH);
            },
            "announce",
            "",
        ),
        ("sync mode, the leader of the key", |view, _| (view.config, view.sync) = (sync_mode(), sync_key("n1", "")), "announce", ""),
        ("sync mode, no key yet", |view, _| view.config = sync_mode(), "announce", ""),
        (
            "no sync mode by now, but the leader had not emptied the key",
            |view, _| view.sync = sync_key("n9", "n2"),
            "refuse",
            "not in the sync key",
        ),
    ];
    for (case, twist, step, why) in cases {
        check(case, *twist, step, why);
    }
}

#[test]
fn what_a_failover_by_name_changes() {
    let cases: &[(&str, Twist, &str, &str)] = &[
        (
            "asked for, though far behind, not in sync and tagged",
            |view, me| {
                (view.config, view.sync, view.status) = (sync_mode(), sync_key("n9", "n2"), status(HIGH));
                view.failover = request(None, Some("n1"));
                me.tags = tags(r#"{"nofailover":true}"#);
            },
            "announce",
            "",
        ),
        (
            "asked for, but past the fork",
            |view, me| {
                (view.history, me.lsn) = (history(&[(1, FORK)]), HIGH);
                view.failover = request(None, Some("n1"));
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "asked for, waits for no other standby",
            |view, me| {
                me.vacant_for = Duration::ZERO;
                says(view, "n1", 1, LOW);
                says(view, "n2", 1, HIGH);
                view.failover = request(None, Some("n1"));
            },
            "take",
            "",
        ),
        (
            "asked for, but a primary is back: it serves the request without loss",
            |view, _| {
                says(view, "n1", 1, LOW);
                says(view, "n2", 1, HIGH);
                view.announcements.get_mut(&name("n2")).unwrap().value.primary = true;
                view.failover = request(None, Some("n1"));
            },
            "wait 1000 ms",
            "n2 is fitter",
        ),
        ("another is asked for", |view, _| view.failover = request(None, Some("n2")), "refuse", "n2 is to take over"),
        (
            "another is asked for, and this is a primary",
            |view, me| (view.failover, me.primary) = (request(None, Some("n2")), true),
            "announce",
            "",
        ),
        ("another is asked for that does not exist", |view, _| view.failover = request(None, Some("n8")), "announce", ""),
        (
            "another is asked for whose Postgres is down",
            |view, _| {
                view.members.get_mut(&name("n2")).unwrap().member.state = MemberState::Crashed;
                view.failover = request(None, Some("n2"));
            },
            "announce",
            "",
        ),
        (
            "another is asked for that may not stand",
            |view, _| {
                says(view, "n2", 1, LOW);
                view.announcements.get_mut(&name("n2")).unwrap().value.stands = false;
                view.failover = request(None, Some("n2"));
            },
            "announce",
            "",
        ),
        (
            "a switchover whose leader is gone binds nobody",
            |view, _| {
                all_say(view);
                view.failover = request(Some("n9"), Some("n2"));
            },
            "take",
            "fittest",
        ),
        (
            "nor does it let its candidate pass a fitter one",
            |view, _| {
                all_say(view);
                says(view, "n2", 1, HIGH);
                view.failover = request(Some("n9"), Some("n1"));
            },
            "wait 1000 ms",
            "n2 is fitter",
        ),
        ("an empty request asks for nobody", |view, _| view.failover = versioned(FailoverRequest::default()), "announce", ""),
    ];
    for (case, twist, step, why) in cases {
        check(case, *twist, step, why);
    }
}

#[test]
fn who_goes_first() {
    let cases: &[(&str, Twist, &str, &str)] = &[
        ("there is a leader", |view, _| view.leader = leader("n2"), "rest", "n2 holds the leader key (term 8)"),
        ("I am the leader", |view, _| view.leader = leader("n1"), "rest", "this node holds the leader key"),
        (
            "the primary may be back in a moment",
            |_, me| (me.streaming, me.vacant_for) = (true, HEAD_START - Duration::from_millis(70)),
            "wait 70 ms",
            "it goes first",
        ),
        (
            "one that still reads what lies on its disk says nothing",
            |_, me| (me.end_known, me.vacant_for) = (false, Duration::ZERO),
            "wait 20 ms",
            "has not read all WAL",
        ),
        (
            "nor that it may not stand",
            |view, me| (view.sync, me.end_known) = (sync_key("n9", "n2"), false),
            "wait 20 ms",
            "has not read all WAL",
        ),
        ("a primary knows its end", |_, me| (me.end_known, me.primary) = (false, true), "announce", "running as primary"),
        ("the head start is over", |_, me| (me.streaming, me.vacant_for) = (true, HEAD_START), "announce", ""),
        (
            "one that may not stand speaks at once",
            |_, me| (me.streaming, me.vacant_for, me.arbiter) = (true, Duration::ZERO, false),
            "refuse",
            "",
        ),
        (
            "the word is of another vacancy",
            |view, _| {
                all_say(view);
                view.announcements.get_mut(&name("n1")).unwrap().value.after = Term(6);
            },
            "announce",
            "",
        ),
        (
            "more was received since the word",
            |view, me| {
                all_say(view);
                me.lsn = HIGH;
            },
            "announce",
            "",
        ),
        (
            "a primary's position moves on",
            |view, me| {
                all_say(view);
                (me.primary, me.lsn) = (true, HIGH);
            },
            "take",
            "running as primary",
        ),
        (
            "a word of standing that no longer holds",
            |view, me| {
                all_say(view);
                me.stood_down = true;
            },
            "refuse",
            "",
        ),
        (
            "a refusal was heard",
            |view, me| {
                all_say(view);
                refuses(view, "no arbiter is attached, so nothing could promote this node");
                me.arbiter = false;
            },
            "wait 1000 ms",
            "no arbiter",
        ),
        (
            "a refusal was heard, and there is another reason by now",
            |view, me| {
                all_say(view);
                refuses(view, "no arbiter is attached, so nothing could promote this node");
                me.tags = tags(r#"{"nofailover":true}"#);
            },
            "refuse",
            "nofailover",
        ),
        (
            "a refusal was heard, and its number is another by now",
            |view, _| {
                all_say(view);
                view.status = status(HIGH);
                refuses(
                    view,
                    "this node is 7 bytes behind the last known position of the leader, more than maximum_lag_on_failover (1048576)",
                );
            },
            "wait 1000 ms",
            "10485760 bytes behind",
        ),
        ("level, and first by name", |view, _| all_say(view), "take", "fittest"),
        (
            "level, and not first by name",
            |view, me| {
                all_say(view);
                me.name = name("n2");
            },
            "wait 1000 ms",
            "n1 is fitter",
        ),
        (
            "a fitter one does not stand",
            |view, _| {
                all_say(view);
                says(view, "n2", 1, HIGH);
                view.announcements.get_mut(&name("n2")).unwrap().value.stands = false;
            },
            "take",
            "",
        ),
        (
            "a fitter one went down",
            |view, _| {
                all_say(view);
                says(view, "n2", 1, HIGH);
                view.members.get_mut(&name("n2")).unwrap().member.state = MemberState::Stopped;
            },
            "take",
            "",
        ),
        (
            "a fitter one has spoken and no member key yet",
            |view, _| {
                all_say(view);
                says(view, "n2", 1, HIGH);
                view.members.remove(&name("n2"));
            },
            "wait 1000 ms",
            "n2 is fitter",
        ),
        (
            "my own key says that I am down",
            |view, _| {
                all_say(view);
                view.members.get_mut(&name("n1")).unwrap().member.state = MemberState::Starting;
            },
            "wait 1000 ms",
            "does not say yet",
        ),
        (
            "others are silent",
            |view, me| {
                says(view, "n1", 1, LOW);
                me.vacant_for = PATIENCE - Duration::from_millis(300);
            },
            "wait 300 ms",
            "the positions of n2, n3",
        ),
        ("others stay silent", |view, _| says(view, "n1", 1, LOW), "take", ""),
        (
            "silent ones that can't stand",
            |view, me| {
                says(view, "n1", 1, LOW);
                me.vacant_for = Duration::ZERO;
                view.members.get_mut(&name("n2")).unwrap().member.tags = tags(r#"{"nofailover":true}"#);
                view.members.get_mut(&name("n3")).unwrap().member.state = MemberState::Starting;
            },
            "take",
            "",
        ),
        (
            "a silent primary, whatever its tags",
            |view, me| {
                says(view, "n1", 1, LOW);
                says(view, "n3", 1, LOW);
                me.vacant_for = Duration::ZERO;
                let member = &mut view.members.get_mut(&name("n2")).unwrap().member;
                (member.tags, member.role) = (tags(r#"{"nofailover":true}"#), MemberRole::Primary);
            },
            "wait 1000 ms",
            "the positions of n2",
        ),
    ];
    for (case, twist, step, why) in cases {
        check(case, *twist, step, why);
    }
}

/// n2 has everything, n1 lags. n2 was just started and has replayed less than n1 has: for so many rounds it does not know its end.
fn restarted_voter(rounds: u32, standbys: &str, quorum: u32) -> Option<&'static str> {
    let mut view = three();
    view.config = config(json!({"synchronous_mode": if quorum > 0 { "quorum" } else { "on" }}));
    view.sync = sync_key("n9", standbys);
    view.sync.as_mut().unwrap().value.quorum = quorum;
    view.members.remove(&name("n3"));
    let mut racers = [candidate("n1", 1, FORK), Candidate { end_known: false, ..candidate("n2", 1, LOW) }];
    for round in 0..rounds + 10 {
        if round == rounds {
            racers[1] = candidate("n2", 1, HIGH);
        }
        let steps = racers.each_ref().map(|racer| decide(&view, racer).what);
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                RaceStep::Take(_) => return Some(["n1", "n2"][at]),
                RaceStep::Announce(value) => {
                    view.announcements.insert(racers[at].name.clone(), Versioned { value, revision: 9 });
                }
                RaceStep::Wait(_) | RaceStep::Rest | RaceStep::Depose(_) | RaceStep::CallOff(_) | RaceStep::Tell(_) => {}
            }
        }
    }
    None
}

#[test]
fn a_voter_that_restarted_is_waited_for_until_it_knows_what_it_has() {
    for rounds in 0..5 {
        assert_eq!(restarted_voter(rounds, "n1 n2", 1), Some("n2"), "quorum, {rounds} rounds");
        assert_eq!(restarted_voter(rounds, "n2", 0), Some("n2"), "FIRST 1, {rounds} rounds");
    }
    // Under FIRST 2 both have every acknowledged commit: the one that knows that goes first.
    assert_eq!(restarted_voter(4, "n1 n2", 0), Some("n1"));
}

#[test]
fn a_diverged_member_leads_only_where_it_is_asked_for_and_nobody_else_could() {
    /// n1's WAL went on past the fork; it is asked for, n2 says that it does not stand.
    fn asked(view: &mut ClusterView, me: &mut Candidate) {
        view.history = history(&[(1, FORK)]);
        view.failover = request(None, Some("n1"));
        (view.status, me.lsn) = (status(LOW), HIGH);
        for who in ["n2", "n3"] {
            says(view, who, 1, HIGH);
            view.announcements.get_mut(&name(who)).unwrap().value.stands = false;
        }
    }
    let cases: &[(&str, Twist, &str, &str)] = &[
        ("nobody else could", asked, "announce", "nobody holds"),
        (
            "nobody asked",
            |view, me| {
                asked(view, me);
                view.failover = None;
            },
            "refuse",
            "left the cluster's history at 0/F00000",
        ),
        (
            "another was asked for",
            |view, me| {
                asked(view, me);
                view.failover = request(None, Some("n2"));
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "a switchover: from a leader that lives",
            |view, me| {
                asked(view, me);
                view.failover = request(Some("n9"), Some("n1"));
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "another stands",
            |view, me| {
                asked(view, me);
                view.announcements.get_mut(&name("n3")).unwrap().value.stands = true;
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "another said nothing yet",
            |view, me| {
                asked(view, me);
                view.announcements.remove(&name("n3"));
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "what another said was for a vacancy before",
            |view, me| {
                asked(view, me);
                view.announcements.get_mut(&name("n3")).unwrap().value.after = Term(AFTER.0 - 1);
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "another does not run",
            |view, me| {
                asked(view, me);
                view.announcements.remove(&name("n3"));
                view.members.get_mut(&name("n3")).unwrap().member.state = MemberState::Stopped;
            },
            "announce",
            "nobody holds",
        ),
    ];
    for (case, twist, step, why) in cases {
        check(case, *twist, step, why);
    }
}

/// `status` says that the members of these names had this much, and that standbys confirmed this much.
fn reached(confirmed: Lsn, members: &[(&str, Lsn)]) -> Option<Versioned<Status>> {
    let mut status = Status { optime: LOW, ..Status::default() };
    let end = |lsn| End { timeline: Timeline(1), lsn };
    let members = members.iter().map(|(name, lsn)| ((*name).to_owned(), end(*lsn))).collect();
    Reached { confirmed: Some(end(confirmed)), members }.put_into(&mut status);
    Some(Versioned { value: status, revision: 5 })
}

#[test]
fn a_copy_of_a_voter_is_no_voter() {
    fn quorum(view: &mut ClusterView) {
        view.config = config(json!({"synchronous_mode": "quorum"}));
        view.sync = sync_key("n9", "n1 n2");
        view.sync.as_mut().unwrap().value.quorum = 1;
        for who in ["n1", "n2"] {
            says(view, who, 1, LOW);
        }
    }
    let cases: &[(&str, Twist, &str, &str)] = &[
        (
            "a synchronous standby with less than it said that it has",
            |view, _| {
                view.sync = sync_key("n9", "n1");
                view.status = reached(LOW, &[("n1", HIGH)]);
            },
            "refuse",
            "the member of this name is known to have had 0/1400000 on timeline 1",
        ),
        (
            "one with less than synchronous standbys have confirmed",
            |view, _| {
                view.sync = sync_key("n9", "n1");
                view.status = reached(FORK, &[]);
            },
            "refuse",
            "known to have had 0/F00000",
        ),
        (
            "the leader of the key with less than it had flushed: its disk was put back",
            |view, _| {
                view.sync = sync_key("n1", "n2");
                view.status = reached(LOW, &[("n1", HIGH)]);
            },
            "refuse",
            "known to have had",
        ),
        (
            "whoever asks for it by name has weighed that",
            |view, _| {
                view.sync = sync_key("n9", "n1");
                view.status = reached(LOW, &[("n1", HIGH)]);
                view.failover = request(None, Some("n1"));
            },
            "announce",
            "nobody holds",
        ),
        ("nobody was trusted", |view, _| view.status = reached(LOW, &[("n1", LOW)]), "announce", "nobody holds"),
        (
            "in quorum mode, the other voter has all that it had",
            |view, _| {
                quorum(view);
                view.status = reached(LOW, &[("n1", LOW), ("n2", LOW)]);
            },
            "take",
            "",
        ),
        (
            "the other voter has less: its word is another disk's",
            |view, _| {
                quorum(view);
                view.status = reached(LOW, &[("n1", LOW), ("n2", FORK)]);
            },
            "wait 1000 ms",
            "missing: n2",
        ),
    ];
    for (case, twist, step, why) in cases {
        check(case, *twist, step, why);
    }
}

#[test]
fn a_quorum_in_the_sync_key_asks_for_other_voters() {
    fn quorum(view: &mut ClusterView) {
        view.config = config(json!({"synchronous_mode": "quorum"}));
        view.sync = sync_key("n9", "n1 n2 n3");
        view.sync.as_mut().unwrap().value.quorum = 1;
    }
    let cases: &[(&str, Twist, &str, &str)] = &[
        (
            "no other voter was heard",
            |view, _| {
                quorum(view);
                says(view, "n1", 1, LOW);
            },
            "wait 1000 ms",
            "missing: n2, n3",
        ),
        (
            "one other voter was heard",
            |view, _| {
                quorum(view);
                says(view, "n1", 1, LOW);
                says(view, "n3", 1, LOW);
            },
            "take",
            "",
        ),
        (
            "the only other voter heard may not stand, and has more",
            |view, _| {
                quorum(view);
                says(view, "n1", 1, LOW);
                says(view, "n3", 1, HIGH);
                view.announcements.get_mut(&name("n3")).unwrap().value.stands = false;
            },
            "wait 1000 ms",
            "missing: n2, n3",
        ),
        (
            "the only other voter heard goes on receiving: it promised the old leader, which goes on",
            |view, _| {
                quorum(view);
                says(view, "n1", 1, LOW);
                says(view, "n3", 1, LOW);
                let word = &mut view.announcements.get_mut(&name("n3")).unwrap().value;
                (word.stands, word.receives) = (false, true);
            },
            "wait 1000 ms",
            "missing: n2, n3",
        ),
        (
            "the key's own leader",
            |view, _| {
                quorum(view);
                view.sync.as_mut().unwrap().value.leader = Some("n1".to_owned());
                says(view, "n1", 1, LOW);
            },
            "take",
            "",
        ),
    ];
    for (case, twist, step, why) in cases {
        check(case, *twist, step, why);
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
fn fitness_is_timeline_then_primary_then_wal_then_priority_then_name() {
    let said = |timeline, primary, lsn, priority| {
        let mut said = word(timeline, lsn).value;
        (said.primary, said.priority) = (primary, priority);
        said
    };
    let ranked = [
        ("n9", said(2, false, LOW, 0)),
        ("n8", said(1, true, LOW, 0)),
        ("n7", said(1, false, HIGH, 0)),
        ("n6", said(1, false, LOW, 5)),
        ("n1", said(1, false, LOW, 1)),
        ("n2", said(1, false, LOW, 1)),
    ];
    for pair in ranked.windows(2) {
        let [fitter, less] = pair else { unreachable!() };
        let (first, second) = (name(fitter.0), name(less.0));
        assert!(fitness(&first, &fitter.1) > fitness(&second, &less.1), "{first} before {second}");
    }
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
