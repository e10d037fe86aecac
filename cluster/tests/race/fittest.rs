//! Of those that may stand, which one goes first, and for whom it waits.

use super::*;

/// `n1` was heard to refuse, with this reason.
fn refuses(view: &mut ClusterView, why: &str) {
    let said = &mut view.announcements.get_mut(&name("n1")).unwrap().value;
    (said.stands, said.why) = (false, Some(why.to_owned()));
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
            "standbys have confirmed commits up to 0/F00000 on timeline 1",
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
            "a person who asks for it by name has weighed that",
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
