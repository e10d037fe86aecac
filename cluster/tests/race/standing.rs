//! Who may stand at all: after whom, by whose wish, and with which data.

use super::*;

/// The vacancy was left by a leader of Patroni's.
fn by_patroni(view: &mut ClusterView) {
    view.last_term.as_mut().unwrap().value.how = cluster::mixed::BY_PATRONI.to_owned();
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
            "a leader of ours did: the fittest takes over",
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
        ("on an older timeline, nothing lost", |view, _| view.history = history(&[(1, FORK)]), "announce", ""),
        (
            "on an older timeline, with check_timeline",
            |view, _| {
                view.history = history(&[(1, FORK)]);
                view.config = config(json!({"check_timeline": true}));
            },
            "refuse",
            "is on timeline 1, the cluster is on timeline 2",
        ),
        (
            "a primary on an older timeline",
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
fn a_diverged_member_leads_only_where_it_is_asked_for_and_nobody_else_could() {
    /// n1's WAL went on past the fork; it is asked for, n2 says that it does not stand.
    fn is_asked_for(view: &mut ClusterView, me: &mut Candidate) {
        view.history = history(&[(1, FORK)]);
        view.failover = request(None, Some("n1"));
        (view.status, me.lsn) = (status(LOW), HIGH);
        for who in ["n2", "n3"] {
            says(view, who, 1, HIGH);
            view.announcements.get_mut(&name(who)).unwrap().value.stands = false;
        }
    }
    let cases: &[(&str, Twist, &str, &str)] = &[
        ("nobody else could", is_asked_for, "announce", "nobody holds"),
        (
            "nobody asked",
            |view, me| {
                is_asked_for(view, me);
                view.failover = None;
            },
            "refuse",
            "left the cluster's history at 0/F00000",
        ),
        (
            "another was asked for",
            |view, me| {
                is_asked_for(view, me);
                view.failover = request(None, Some("n2"));
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "a switchover: from a leader that lives",
            |view, me| {
                is_asked_for(view, me);
                view.failover = request(Some("n9"), Some("n1"));
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "another stands",
            |view, me| {
                is_asked_for(view, me);
                view.announcements.get_mut(&name("n3")).unwrap().value.stands = true;
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "another said nothing yet",
            |view, me| {
                is_asked_for(view, me);
                view.announcements.remove(&name("n3"));
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "what another said was for a vacancy before",
            |view, me| {
                is_asked_for(view, me);
                view.announcements.get_mut(&name("n3")).unwrap().value.after = Term(AFTER.0 - 1);
            },
            "refuse",
            "left the cluster's history",
        ),
        (
            "another does not run",
            |view, me| {
                is_asked_for(view, me);
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
