//! Health: which leader is sick, and who leads in its place; never one that is as sick, never back and forth.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::health::{Cause, Course, Leading, Mode, Rules, Sick, Stays, Vitals, Way, judge, rounded};
use cluster::member::MemberRole;
use cluster::time::Moment;
use cluster::view::ClusterView;
use serde_json::json;
use std::time::Duration;
use world::*;

const AFTER: u64 = 10;
const PAUSE: u64 = 300;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Three members that look and are well; n1 leads.
fn healthy() -> ClusterView {
    let mut view = vacancy();
    view.leader = leader("n1");
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, 1, LOW));
    for who in ["n2", "n3"] {
        view.members.insert(name(who), member(who, MemberRole::Replica, 1, LOW));
    }
    for who in ["n1", "n2", "n3"] {
        say(&mut view, who, Vitals::default());
    }
    view
}

fn say(view: &mut ClusterView, who: &str, vitals: Vitals) {
    view.members.get_mut(&name(who)).unwrap().member.tenure.as_mut().unwrap().vitals = Some(vitals);
}

/// What a story of the last minute leaves: a look each second.
struct Case {
    view: ClusterView,
    own: Vitals,
    /// For so many seconds it has been like this.
    for_long: u64,
    leads_for: u64,
    tried: Option<u64>,
    answered: Vec<&'static str>,
    holders_idle: bool,
    /// Before that n2 was like this.
    n2_before: Vitals,
}

fn hangs() -> Vitals {
    Vitals { flush_ms: 8192, ..Vitals::default() }
}

fn slow() -> Vitals {
    Vitals { flush_ms: 3072, ..Vitals::default() }
}

fn verdict(change: impl FnOnce(&mut Case)) -> Option<Sick> {
    let mut case = Case {
        view: healthy(),
        own: hangs(),
        for_long: AFTER + 1,
        leads_for: 1000,
        tried: None,
        answered: vec!["n2", "n3"],
        holders_idle: false,
        n2_before: Vitals::default(),
    };
    change(&mut case);
    let rules = Rules::of(case.view.config());
    let (mut course, me) = (Course::default(), name("n1"));
    let mut before = case.view.clone();
    say(&mut before, "n2", case.n2_before.clone());
    let begin = 1000;
    for second in 0..30 {
        course.look(Moment(seconds(begin + second)), &before, &me, &Vitals::default(), &rules);
    }
    let mut now = Moment(seconds(begin + 30));
    for second in 0..=case.for_long {
        now = Moment(seconds(begin + 30 + second));
        course.look(now, &case.view, &me, &case.own, &rules);
    }
    let answered = case.answered.iter().map(|who| name(who)).collect();
    let leading = Leading {
        name: &me,
        for_long: seconds(case.leads_for),
        flushed: Some(LOW),
        answered: &answered,
        tried: case.tried.map(seconds),
        holders_idle: case.holders_idle,
    };
    judge(&case.view, &course, now, &case.own, &leading, &rules)
}

fn check(what: &str, change: impl FnOnce(&mut Case), expected: &str) {
    let said = verdict(change).map_or_else(|| "well".to_owned(), |sick| sick.sentence(Mode::Act));
    assert!(said.contains(expected), "{what}: \"{said}\" does not say \"{expected}\"");
}

#[test]
fn a_sick_leader_gives_way_to_who_is_better_off_and_to_nobody_else() {
    check("nothing is wrong", |case| case.own = Vitals::default(), "well");
    check("it hangs", |_| (), "a flush of WAL takes 8.192 s or more; it gives way to n2 by force");
    check("it is slow", |case| case.own = slow(), "gives way to n2 by a switchover");
    check("not for long enough", |case| case.for_long = AFTER - 1, "well");
    check("a second is nothing", |case| case.own.flush_ms = 1792, "well");
    check(
        "the disk is almost full",
        |case| (case.own = Vitals { disk_free_mb: Some(200), ..Vitals::default() }, case.for_long = 3).0,
        "only 200 MB",
    );
    check("there is room yet", |case| case.own = Vitals { disk_free_mb: Some(300), ..Vitals::default() }, "well");
    check("a connection takes four seconds", |case| case.own = Vitals { connect_ms: 4096, ..Vitals::default() }, "well");
    check("nobody comes in", |case| case.own = Vitals { connect_ms: 7168, ..Vitals::default() }, "n2 by force");
    check("no CPU", |case| case.own = Vitals { late_ms: 640, ..Vitals::default() }, "n2 by a switchover");
    check("a little late", |case| case.own = Vitals { late_ms: 448, ..Vitals::default() }, "well");
    check("the disk says no", |case| case.own = Vitals { disk_fault: Some("I/O error".to_owned()), ..Vitals::default() }, "n2 by force");
    check("off", |case| case.view.config = config(json!({"sick_primary": false})), "well");
    check("maintenance", |case| case.view.config = config(json!({"pause": true})), "maintenance mode");
    check("its own thresholds", |case| case.view.config = config(json!({"sick_primary_slow": "20s"})), "well");
    check(
        "by priority",
        |case| case.view.members.get_mut(&name("n3")).unwrap().member.tags = tags(r#"{"failover_priority":5}"#),
        "gives way to n3",
    );
}

#[test]
fn without_a_free_slot_it_gives_way_only_where_those_who_are_in_get_nothing_done() {
    let no_slot = || Vitals { refused: true, ..Vitals::default() };
    let and = |change: fn(&mut Vitals)| {
        let mut own = no_slot();
        change(&mut own);
        own
    };
    let works = "it keeps the leader key: those who hold its connections get their work done";
    check("they work, or nobody knows", |case| case.own = no_slot(), works);
    check("they do nothing", |case| (case.own = no_slot(), case.holders_idle = true).0, "gives way to n2 by a switchover");
    check("it can't give way twice", |case| (case.own = no_slot(), case.holders_idle = true, case.tried = Some(1)).0, "could not give way");
    check("they work, on a disk that is almost full", |case| case.own = and(|own| own.disk_free_mb = Some(9)), "n2 by a switchover");
    check("they work, slowly", |case| case.own = and(|own| own.flush_ms = 3072), "n2 by a switchover");
    check("they would, and the disk hangs", |case| case.own = and(|own| own.disk_ms = 8192), "n2 by force");
}

/// What is different in a case.
type Change<'a> = &'a dyn Fn(&mut Case);

#[test]
fn another_cause_is_news_and_other_figures_are_none() {
    let almost_full = |mb| Vitals { disk_free_mb: Some(mb), ..Vitals::default() };
    let both = || Vitals { refused: true, ..almost_full(200) };
    let cause = |mode, change: &dyn Fn(&mut Case)| {
        let sick = verdict(|case| (case.own = almost_full(200), change(case)).1);
        Cause::of(&[], sick.as_ref(), mode)
    };
    let first = cause(Mode::Act, &|_| ());
    assert!(first.is_some());
    assert_eq!(cause(Mode::Act, &|case| case.own = Vitals::default()), None, "all is well");
    let same: [(&str, Change<'_>); 3] = [
        ("fewer MB", &|case| case.own = almost_full(191)),
        ("another standby in its place", &|case| case.answered = vec!["n3"]),
        ("it lasts", &|case| case.for_long = 100),
    ];
    for (what, change) in same {
        assert_eq!(cause(Mode::Act, change), first, "{what}");
    }
    let other: [(&str, Change<'_>); 4] = [
        ("slots too", &|case| case.own = both()),
        ("another symptom", &|case| case.own = slow()),
        ("nobody is better off", &|case| case.answered = vec![]),
        ("it came to lead just now", &|case| case.leads_for = 1),
    ];
    for (what, change) in other {
        assert_ne!(cause(Mode::Act, change), first, "{what}");
    }
    assert_ne!(cause(Mode::Observe, &|_| ()), first, "it would, and does not");
    let alone = cause(Mode::Act, &|case| case.answered.clear());
    assert_eq!(cause(Mode::Act, &|case| (case.own = almost_full(7), case.answered.clear()).1), alone, "others' words are no news");
    // Who does not lead has symptoms, and no way.
    let on_a_standby = |vitals: Vitals| Cause::of(&vitals.symptoms(&Rules::of(&Default::default())), None, Mode::Act);
    assert_eq!(on_a_standby(almost_full(9)), on_a_standby(almost_full(10)));
    assert_ne!(on_a_standby(almost_full(9)), on_a_standby(slow()));
    assert_eq!(on_a_standby(Vitals::default()), None);
}

#[test]
fn who_is_as_sick_or_silent_or_not_known_is_not_better_off() {
    let alone = |case: &mut Case| drop(case.view.members.remove(&name("n3")));
    check("n2 is as sick", |case| (alone(case), say(&mut case.view, "n2", hangs())).0, "nobody is better off; n2: a flush of WAL");
    check(
        "n2 has another trouble",
        |case| (alone(case), say(&mut case.view, "n2", Vitals { disk_free_mb: Some(10), ..Vitals::default() })).0,
        "nobody is better off; n2: only 10 MB",
    );
    check("n2 does not answer", |case| case.answered = vec!["n3"], "gives way to n3");
    check("nobody answers", |case| case.answered = vec![], "nobody is better off; n2: it does not answer; n3: it does not answer");
    check(
        "an older version",
        |case| (alone(case), case.view.members.get_mut(&name("n2")).unwrap().member.tenure.as_mut().unwrap().vitals = None).0,
        "n2: it does not say how it is",
    );
    check("n2 was sick a moment ago", |case| (alone(case), case.n2_before = hangs()).0, "n2: it has not been well for 10 s yet");
    check(
        "n2 has not all of it",
        |case| {
            case.view.members.get_mut(&name("n2")).unwrap().member.xlog_location = None;
            let member = &mut case.view.members.get_mut(&name("n2")).unwrap().member;
            (member.receive_lsn, member.replay_lsn) = (Some(cluster::lsn::Lsn(LOW.0 - 1)), None);
        },
        "gives way to n3 by force",
    );
}

#[test]
fn in_a_synchronous_mode_only_who_is_in_the_sync_key_takes_over() {
    let sync = |case: &mut Case, standbys: &str| (case.view.config, case.view.sync) = (sync_mode(), sync_key("n1", standbys));
    check("n3 is", |case| sync(case, "n3"), "gives way to n3 by force");
    check(
        "n3 is, and is sick",
        |case| (sync(case, "n3"), say(&mut case.view, "n3", slow())).0,
        "n2: it is not a synchronous standby; n3: a flush",
    );
}

#[test]
fn it_does_not_go_back_and_forth() {
    check("it came to lead just now", |case| case.leads_for = PAUSE - 1, "came to lead less than sick_primary_pause (300 s) ago");
    check("it tried and could not", |case| case.tried = Some(PAUSE - 1), "could not give way less than");
    check("that was long ago", |case| case.tried = Some(PAUSE), "gives way to n2");

    // Two members whose disks are bad by turns, every second one look, for two hours: the leader judges.
    let mut moved = 0;
    let mut view = healthy();
    view.members.remove(&name("n3"));
    let rules = Rules::of(view.config());
    let (mut course, mut leads, mut since) = (Course::default(), "n1", 0_u64);
    for second in 0..7200 {
        let (sick, well) = if (second / 60) % 2 == 0 { ("n1", "n2") } else { ("n2", "n1") };
        say(&mut view, sick, hangs());
        say(&mut view, well, Vitals::default());
        let own = if leads == sick { hangs() } else { Vitals::default() };
        let (me, now) = (name(leads), Moment(seconds(1000 + second)));
        course.look(now, &view, &me, &own, &rules);
        let answered = [name("n1"), name("n2")].into();
        let leading =
            Leading { name: &me, for_long: seconds(second - since), flushed: None, answered: &answered, tried: None, holders_idle: false };
        match judge(&view, &course, now, &own, &leading, &rules).map(|sick| sick.way) {
            Some(Ok(Way::ByForce(to))) => {
                (leads, since, moved) = (if to == name("n1") { "n1" } else { "n2" }, second, moved + 1);
                // The next one's arbiter has looked by itself.
                view.leader = leader(leads);
                let (mine, other) = (if leads == "n1" { "n1" } else { "n2" }, if leads == "n1" { "n2" } else { "n1" });
                view.members.insert(name(mine), member(mine, MemberRole::Primary, 1, LOW));
                view.members.insert(name(other), member(other, MemberRole::Replica, 1, LOW));
            }
            Some(Ok(Way::Planned(_))) => panic!("it hangs"),
            Some(Err(Stays::Paused)) => panic!("nobody paused"),
            Some(Err(_)) | None => {}
        }
    }
    assert!((1..=7200 / PAUSE).contains(&moved), "moved {moved} times");
}

#[test]
fn small_changes_are_no_news() {
    for (ms, told) in
        [(0, 0), (255, 0), (256, 256), (300, 256), (320, 320), (1000, 896), (2047, 1792), (2500, 2048), (9000, 8192), (12_000, 10_240)]
    {
        assert_eq!(rounded(Duration::from_millis(ms)), told, "{ms}");
    }
    assert_eq!(serde_json::to_string(&Vitals::default()).unwrap(), "{}");
    let all = r#"{"flush_ms":2048,"late_ms":256,"disk_errors":true,"refused":true,"disk_ms":512,"connect_ms":1024,"disk_free_mb":7,"disk_fault":"x"}"#;
    let read: Vitals = serde_json::from_str(all).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), all);
    assert_eq!(read.symptoms(&Rules::of(&Default::default())).len(), 4);
}
