//! Rejoin: follow, rewind or wait, by what the node has and what the leader tells.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod world;

use cluster::local::Ended;
use cluster::lsn::Lsn;
use cluster::member::MemberRole;
use cluster::name::Timeline;
use cluster::rejoin::{Rejoin, of_standby, of_stopped};
use cluster::view::ClusterView;
use world::*;

/// n1 leads on this timeline with this history.
fn led(timeline: u32, lines: &[(u32, Lsn)]) -> ClusterView {
    let mut view = vacancy();
    view.leader = leader("n1");
    view.history = history(lines);
    view.members.insert(name("n1"), member("n1", MemberRole::Primary, timeline, HIGH));
    view
}

fn check(case: &str, verdict: &Rejoin, expected: &str, why: &str) {
    let (told, said) = match verdict {
        Rejoin::Follow => ("follow", String::new()),
        Rejoin::Rewind(why) => ("rewind", why.to_string()),
        Rejoin::Wait(why) => ("wait", why.to_string()),
    };
    assert_eq!(told, expected, "{case}: {said}");
    assert!(said.contains(why), "{case}: {said}");
}

#[test]
fn a_stopped_server_follows_exactly_if_everything_it_has_is_the_leaders_past() {
    use Ended::{CleanPrimary, CrashedPrimary, Standby};
    let two = || led(2, &[(1, FORK)]);
    let before = Lsn(FORK.0 - 1);
    for (case, view, timeline, checkpoint, ended, expected, why) in [
        ("clean, before the fork", two(), 1, LOW, CleanPrimary, "follow", ""),
        ("clean, the checkpoint ends at the fork", two(), 1, before, CleanPrimary, "follow", ""),
        ("clean, the checkpoint begins at the fork", two(), 1, FORK, CleanPrimary, "rewind", "forked"),
        ("clean, past the fork", two(), 1, HIGH, CleanPrimary, "rewind", "ended at 0/F00000"),
        ("crashed, before the fork", two(), 1, LOW, CrashedPrimary, "rewind", "crashed as primary of timeline 1"),
        ("crashed, on the leader's timeline", two(), 2, LOW, CrashedPrimary, "rewind", "crashed"),
        ("clean, on the leader's timeline", two(), 2, HIGH, CleanPrimary, "follow", ""),
        ("standby, before the fork", two(), 1, LOW, Standby, "follow", ""),
        ("standby, past the fork", two(), 1, HIGH, Standby, "rewind", "forked"),
        ("standby, on the leader's timeline", two(), 2, HIGH, Standby, "follow", ""),
        ("a timeline that nobody knows", two(), 4, LOW, CleanPrimary, "rewind", "not in the history of n1"),
        ("a timeline that was skipped", led(3, &[(1, FORK), (2, Lsn(0))]), 2, LOW, Standby, "rewind", "forked"),
    ] {
        let control = control(timeline, checkpoint, ended);
        check(case, &of_stopped(&view, &name("n1"), &control), expected, why);
    }
}

#[test]
fn nobody_rejoins_before_the_leader_has_told_its_history() {
    let clean = control(1, LOW, Ended::CleanPrimary);
    let past = control(1, HIGH, Ended::CleanPrimary);
    let mut absent = led(2, &[(1, FORK)]);
    absent.members.clear();
    let mut unpromoted = led(2, &[(1, FORK)]);
    unpromoted.members.get_mut(&name("n1")).unwrap().member.role = MemberRole::Replica;
    let mut pending = led(2, &[(1, FORK)]);
    pending.members.get_mut(&name("n1")).unwrap().member.checkpoint_after_promote = Some(false);
    let mut done = pending.clone();
    done.members.get_mut(&name("n1")).unwrap().member.checkpoint_after_promote = Some(true);
    for (case, view, control, expected, why) in [
        ("no member key", &absent, &clean, "wait", "has not told"),
        ("not promoted yet", &unpromoted, &clean, "wait", "has not told"),
        ("its history not written yet", &led(2, &[]), &clean, "wait", "has not told"),
        ("its first checkpoint pending", &pending, &past, "wait", "first checkpoint"),
        ("to follow needs no checkpoint", &pending, &clean, "follow", ""),
        ("its first checkpoint done", &done, &past, "rewind", "forked"),
    ] {
        check(case, &of_stopped(view, &name("n1"), control), expected, why);
    }
    let standby = control(1, LOW, Ended::Standby);
    check("a standby needs no word", &of_stopped(&led(2, &[]), &name("n1"), &standby), "follow", "");
}

#[test]
fn a_running_standby_goes_on_unless_it_can_never_stream_again() {
    let two = || led(2, &[(1, FORK)]);
    let mut untold = two();
    untold.members.clear();
    for (case, view, timeline, position, expected, why) in [
        ("on the leader's timeline", two(), 2, HIGH, "follow", ""),
        ("before the fork", two(), 1, LOW, "follow", ""),
        ("at the fork", two(), 1, FORK, "follow", ""),
        ("past the fork", two(), 1, HIGH, "rewind", "forked"),
        ("the leader has not told", untold, 1, HIGH, "follow", ""),
        ("a timeline ahead of the leader's", two(), 3, HIGH, "rewind", "not in the history of n1"),
        ("a past that the history no longer holds", led(4, &[(3, FORK)]), 2, HIGH, "follow", ""),
    ] {
        check(case, &of_standby(&view, &name("n1"), Timeline(timeline), position), expected, why);
    }
}
