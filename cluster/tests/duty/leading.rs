//! What is owed while this node leads.

use super::*;

#[test]
fn while_it_leads() {
    let cases: &[(&str, Twist, Duty, &str)] = &[
        (
            "its own arbiter was killed between the leader key and the cluster's identity",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                claimed(view, local);
            },
            Duty::Release,
            "does not exist yet",
        ),
        (
            "a primary",
            |view, local| leads(view, local, Ended::CrashedPrimary, primary(1, LOW)),
            Duty::Rest,
            "this node holds the leader key (term 8)",
        ),
        (
            "a standby",
            |view, local| leads(view, local, Ended::Standby, standby(1, LOW, None)),
            Duty::Promote { term: NOW },
            "this node holds",
        ),
        (
            "a standby whose lease is not confirmed",
            |view, local| {
                leads(view, local, Ended::Standby, standby(1, LOW, None));
                local.lease_valid = false;
            },
            Duty::Rest,
            "could not be confirmed",
        ),
        (
            "crashed",
            |view, local| leads(view, local, Ended::CrashedPrimary, Postgres::Stopped),
            Duty::StartPrimary { term: NOW },
            "restarted in place",
        ),
        (
            "crashed, and a synchronous standby has everything",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
            },
            Duty::HandOver { to: name("n3") },
            "n3 has every acknowledged commit",
        ),
        (
            "crashed, and the synchronous standby is down",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
                view.members.get_mut(&name("n3")).unwrap().member.state = MemberState::Starting;
            },
            Duty::StartPrimary { term: NOW },
            "",
        ),
        (
            "crashed, and the synchronous standby runs by its key but does not answer",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
                local.answered.clear();
            },
            Duty::StartPrimary { term: NOW },
            "restarted in place",
        ),
        (
            "crashed, and who goes by the synchronous standby's name has less than that one had",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
                let had = End { timeline: Timeline(1), lsn: HIGH };
                Reached { confirmed: None, members: [("n3".to_owned(), had)].into() }
                    .put_into(&mut view.status.get_or_insert_with(|| status(LOW).unwrap()).value);
            },
            Duty::StartPrimary { term: NOW },
            "restarted in place",
        ),
        (
            "crashed, and of the voters too few answer",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                (view.config, view.sync) = (config(json!({"synchronous_mode": "quorum"})), sync_key("n2", "n1 n3"));
                view.sync.as_mut().unwrap().value.quorum = 1;
                local.answered = [name("n3")].into();
            },
            Duty::StartPrimary { term: NOW },
            "restarted in place",
        ),
        (
            "it does not start, and another could lead",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                local.start_failed = Some("No space left on device".to_owned());
            },
            Duty::Release,
            "does not start (No space left on device), and n1 could lead",
        ),
        (
            "it does not start, and nobody else answers",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                (local.start_failed, local.answered) = (Some("No space left on device".to_owned()), Default::default());
            },
            Duty::StartPrimary { term: NOW },
            "restarted in place",
        ),
        (
            "its postmaster has been frozen for longer than a TTL",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                local.frozen_for = Duration::from_secs(60);
            },
            Duty::Release,
            "n1 could lead",
        ),
        (
            "its postmaster has been frozen for a moment",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                local.frozen_for = Duration::from_secs(2);
            },
            Duty::Rest,
            "holds the leader key",
        ),
        (
            "a server that is not its own",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                local.strange = Some("it listens elsewhere".to_owned());
            },
            Duty::Demote,
            "is not this node's own (it listens elsewhere): it is stopped",
        ),
        (
            "in maintenance mode that one is left alone",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                (local.strange, view.config) = (Some("it listens elsewhere".to_owned()), config(json!({"pause": true})));
            },
            Duty::Rest,
            "nothing fences its commits",
        ),
        (
            "crashed, and the sync key is another leader's",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                (view.config, view.sync) = (sync_mode(), sync_key("n1", "n2 n3"));
            },
            Duty::StartPrimary { term: NOW },
            "",
        ),
        (
            "down for too long",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, Postgres::Stopped);
                local.down_for = Duration::from_secs(301);
            },
            Duty::Release,
            "primary_start_timeout (300 s)",
        ),
        (
            "starting for too long",
            |view, local| {
                let starting = Postgres::Starting { since: Duration::from_secs(301) };
                leads(view, local, Ended::CrashedPrimary, starting);
                local.down_for = Duration::from_secs(301);
            },
            Duty::Release,
            "primary_start_timeout",
        ),
        (
            "stopped, a standby's data: it starts as one and is promoted then",
            |view, local| leads(view, local, Ended::Standby, Postgres::Stopped),
            Duty::StartStandby { upstream: Upstream::Nobody },
            "",
        ),
        (
            "stopped, a primary's data of an old timeline",
            |view, local| {
                leads(view, local, Ended::CleanPrimary, Postgres::Stopped);
                view.history = history(&[(1, FORK)]);
            },
            Duty::StartStandby { upstream: Upstream::Nobody },
            "",
        ),
        (
            "its data is gone",
            |view, local| {
                leads(view, local, Ended::Standby, Postgres::Stopped);
                local.data = DataDir::Empty;
            },
            Duty::Release,
            "the data directory is empty",
        ),
        (
            "a switchover to n3",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                view.failover = request(Some("n2"), Some("n3"));
            },
            Duty::Switchover { candidates: vec![name("n3")] },
            "a switchover to n3",
        ),
        (
            "a switchover to nobody in particular: the furthest first",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                view.members.insert(name("n1"), member("n1", MemberRole::Replica, 1, LOW));
                view.members.insert(name("n3"), member("n3", MemberRole::Replica, 1, HIGH));
                view.failover = request(Some("n2"), None);
            },
            Duty::Switchover { candidates: vec![name("n3"), name("n1")] },
            "",
        ),
        (
            "a switchover away from somebody else",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                view.failover = request(Some("n1"), Some("n3"));
            },
            Duty::Rest,
            "leader name does not match",
        ),
        (
            "a switchover that is scheduled",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                view.failover = request(Some("n2"), Some("n3"));
                view.failover.as_mut().unwrap().value.scheduled_at = Some("2030-01-01T00:00:00+00:00".to_owned());
            },
            Duty::Rest,
            "scheduled for 2030",
        ),
        (
            "a scheduled switchover that is due",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                view.failover = request(Some("n2"), Some("n3"));
                view.failover.as_mut().unwrap().value.scheduled_at = Some("2020-01-01T00:00:00+00:00".to_owned());
                local.request_due = true;
            },
            Duty::Switchover { candidates: vec![name("n3")] },
            "",
        ),
        (
            "asked to stop, and somebody can take over",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                local.stopping = true;
            },
            Duty::Switchover { candidates: vec![name("n3")] },
            "n3 takes over",
        ),
        (
            "asked to stop in maintenance mode",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                (local.stopping, view.config) = (true, config(json!({"pause": true})));
            },
            Duty::Stop,
            "",
        ),
        (
            "a switchover to n3 in maintenance mode",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                view.failover = request(Some("n2"), Some("n3"));
                view.config = config(json!({"pause": true}));
            },
            Duty::Switchover { candidates: vec![name("n3")] },
            "a switchover to n3 was asked for",
        ),
        (
            "a switchover to whom it may concern in maintenance mode",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, primary(1, LOW));
                view.failover = request(Some("n2"), None);
                view.config = config(json!({"pause": true}));
            },
            Duty::Rest,
            "maintenance",
        ),
        (
            "stopped for a switchover that came to nothing, in maintenance mode",
            |view, local| {
                leads(view, local, Ended::CleanPrimary, Postgres::Stopped);
                (local.start_owed, view.config) = (true, config(json!({"pause": true})));
            },
            Duty::StartPrimary { term: NOW },
            "",
        ),
        (
            "stopped by somebody else in maintenance mode",
            |view, local| {
                leads(view, local, Ended::CleanPrimary, Postgres::Stopped);
                view.config = config(json!({"pause": true}));
            },
            Duty::Rest,
            "maintenance",
        ),
        (
            "its server recovers from a crash, and a synchronous standby has everything",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, starting());
                local.crashed = true;
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
            },
            Duty::HandOver { to: name("n3") },
            "crashed while n3 has every",
        ),
        (
            "its server recovers from a crash, and enough voters are there",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, starting());
                local.crashed = true;
                (view.config, view.sync) = (config(json!({"synchronous_mode": "quorum"})), sync_key("n2", "n1 n3"));
                view.sync.as_mut().unwrap().value.quorum = 1;
            },
            Duty::Release,
            "crashed while enough voters",
        ),
        (
            "the same, and that one does not answer",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, starting());
                local.crashed = true;
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
                local.answered.clear();
            },
            Duty::Rest,
            "starting",
        ),
        (
            "the same in maintenance mode",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, starting());
                local.crashed = true;
                (view.config, view.sync) = (config(json!({"pause": true, "synchronous_mode": true})), sync_key("n2", "n3"));
            },
            Duty::Rest,
            "maintenance",
        ),
        (
            "its server recovers from a crash, asynchronous",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, starting());
                local.crashed = true;
            },
            Duty::Rest,
            "starting",
        ),
        (
            "its server starts, and was not primary before",
            |view, local| {
                leads(view, local, Ended::CrashedPrimary, starting());
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
            },
            Duty::Rest,
            "starting",
        ),
        // Known to be imprecise: it did not crash; the hand-over itself is lossless and right.
        (
            "stopped cleanly, and a synchronous standby has everything",
            |view, local| {
                leads(view, local, Ended::CleanPrimary, Postgres::Stopped);
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
            },
            Duty::HandOver { to: name("n3") },
            "crashed",
        ),
    ];
    for (case, twist, duty, why) in cases {
        check(case, *twist, duty, why);
    }
}

#[test]
fn the_arbiter_keeps_the_lease_through_a_crash_recovery_unless_a_synchronous_standby_can_take_over() {
    let cases: &[(&str, Twist, bool)] = &[
        ("a leader recovers", |_, _| {}, true),
        ("it serves", |_, local| local.postgres = primary(1, LOW), false),
        ("it does not answer", |_, local| local.postgres = Postgres::Silent, false),
        ("it has ended", |_, local| local.postgres = Postgres::Stopped, false),
        ("another leads", |view, _| view.leader = leader("n1"), false),
        ("nobody leads", |view, _| view.leader = None, false),
        ("for too long", |_, local| local.down_for = Duration::from_secs(301), false),
        ("synchronous, n3 has everything", |view, _| (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3")), false),
        (
            "synchronous, n3 is down",
            |view, _| {
                (view.config, view.sync) = (sync_mode(), sync_key("n2", "n3"));
                view.members.get_mut(&name("n3")).unwrap().member.state = MemberState::Starting;
            },
            true,
        ),
    ];
    for (case, twist, keeps) in cases {
        let (mut view, mut local) = healthy();
        leads(&mut view, &mut local, Ended::CrashedPrimary, starting());
        twist(&mut view, &mut local);
        assert_eq!(keeps_lease_for_recovery(&view, &local), *keeps, "{case}");
    }
}
