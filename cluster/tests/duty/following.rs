//! What is owed while another node leads.

use super::*;

/// The WAL of this node ends here, that of `n1` begins there.
fn wal_from(view: &mut ClusterView, local: &mut LocalState, until: Lsn, oldest: Lsn) {
    local.wal_until = Some(until);
    view.members.get_mut(&name("n1")).unwrap().member.tenure.as_mut().unwrap().oldest_wal = Some(oldest);
}

#[test]
fn while_another_leads() {
    let n1 = || name("n1");
    let cases: &[(&str, Twist, Duty, &str)] = &[
        ("it streams", |_, _| {}, Duty::Rest, "streams from n1"),
        (
            "no data",
            |_, local| (local.data, local.postgres) = (DataDir::Empty, Postgres::Stopped),
            Duty::Clone { from: n1().into() },
            "the data directory is empty and n1 leads",
        ),
        (
            "no data, and the leader is down",
            |view, local| {
                (local.data, local.postgres) = (DataDir::Empty, Postgres::Stopped);
                view.members.get_mut(&name("n1")).unwrap().member.state = MemberState::Crashed;
            },
            Duty::Rest,
            "has not told",
        ),
        (
            "a clone broke off",
            |_, local| {
                local.data = DataDir::Incomplete { what: "a clone".to_owned() };
                local.postgres = Postgres::Stopped;
            },
            Duty::Clone { from: n1().into() },
            "a clone was interrupted",
        ),
        ("it is a primary", |_, local| local.postgres = primary(1, LOW), Duty::Demote, "n1 holds the leader key"),
        ("starting", |_, local| local.postgres = Postgres::Starting { since: Duration::ZERO }, Duty::Rest, "starting"),
        ("silent", |_, local| local.postgres = Postgres::Silent, Duty::Rest, "does not answer"),
        (
            "stopped, a standby's data",
            |_, local| local.postgres = Postgres::Stopped,
            Duty::StartStandby { upstream: n1().into() },
            "n1 holds",
        ),
        (
            "stopped, past the fork",
            |view, local| {
                view.history = history(&[(1, FORK)]);
                view.members.insert(name("n1"), member("n1", MemberRole::Primary, 2, HIGH));
                local.data = DataDir::Present(control(1, HIGH, Ended::CleanPrimary));
                local.postgres = Postgres::Stopped;
            },
            Duty::Rewind { from: n1().into() },
            "the history forked",
        ),
        (
            "a rewind failed, a clone is allowed",
            |view, local| {
                view.history = history(&[(1, FORK)]);
                view.members.insert(name("n1"), member("n1", MemberRole::Primary, 2, HIGH));
                local.postgres = standby(1, HIGH, Some("n1"));
                local.rewind_failed = Some("no WAL".to_owned());
            },
            Duty::Clone { from: n1().into() },
            "pg_rewind failed (no WAL)",
        ),
        (
            "a rewind failed, a clone is not allowed",
            |view, local| {
                view.history = history(&[(1, FORK)]);
                view.members.insert(name("n1"), member("n1", MemberRole::Primary, 2, HIGH));
                local.postgres = standby(1, HIGH, Some("n1"));
                (local.rewind_failed, local.may_clone_over) = (Some("no WAL".to_owned()), false);
            },
            Duty::Rest,
            "`tenure reinit`",
        ),
        ("reinit", |_, local| local.reinit = true, Duty::Clone { from: n1().into() }, "reinit"),
        (
            "reinit, and n3 offers itself as source",
            |view, local| {
                local.reinit = true;
                view.members.get_mut(&name("n3")).unwrap().member.tags = tags(r#"{"clonefrom":true}"#);
            },
            Duty::Clone { from: name("n3").into() },
            "reinit",
        ),
        (
            "the copy from n3 failed",
            |view, local| {
                (local.reinit, local.cloning.failed) = (true, Some(name("n3")));
                view.members.get_mut(&name("n3")).unwrap().member.tags = tags(r#"{"clonefrom":true}"#);
            },
            Duty::Clone { from: n1().into() },
            "reinit",
        ),
        (
            "reinit from the leader",
            |view, local| {
                (local.reinit, local.cloning.from_leader) = (true, true);
                view.members.get_mut(&name("n3")).unwrap().member.tags = tags(r#"{"clonefrom":true}"#);
            },
            Duty::Clone { from: n1().into() },
            "reinit",
        ),
        (
            "pg_control is damaged, a clone is allowed",
            |_, local| (local.data, local.postgres) = (DataDir::Damaged { why: "checksum".to_owned() }, Postgres::Stopped),
            Duty::Clone { from: n1().into() },
            "can't be used (checksum)",
        ),
        (
            "pg_control is damaged, a clone is not allowed",
            |_, local| {
                (local.data, local.postgres) = (DataDir::Damaged { why: "checksum".to_owned() }, Postgres::Stopped);
                local.may_clone_over = false;
            },
            Duty::Rest,
            "`tenure reinit`",
        ),
        (
            "it does not start",
            |_, local| (local.postgres, local.start_failed) = (Postgres::Stopped, Some("FATAL: no space".to_owned())),
            Duty::Rest,
            "does not start as standby (FATAL: no space)",
        ),
        ("it follows nobody", |_, local| local.postgres = standby(1, LOW, None), Duty::Follow { upstream: n1().into() }, "n1 holds"),
        (
            "the WAL it needs is gone at n1",
            |view, local| wal_from(view, local, LOW, FORK),
            Duty::Clone { from: n1().into() },
            "gone at n1, which has it from 0/F00000 on, and the configuration allows",
        ),
        (
            "the WAL it needs is gone at n1, and nothing may be replaced",
            |view, local| {
                wal_from(view, local, LOW, FORK);
                local.may_clone_over = false;
            },
            Duty::Rest,
            "no restore_command; `tenure reinit` makes a new copy",
        ),
        (
            "the WAL it needs is gone at n1, and the sync key trusts it",
            |view, local| {
                wal_from(view, local, LOW, FORK);
                view.sync = sync_key("n1", "n2");
            },
            Duty::Rest,
            "`tenure reinit` makes a new copy",
        ),
        ("n1 has the WAL that it needs", |view, local| wal_from(view, local, FORK, FORK), Duty::Rest, "streams from n1"),
        (
            "it has an archive",
            |view, local| {
                wal_from(view, local, LOW, FORK);
                local.wal_until = None;
            },
            Duty::Rest,
            "streams from n1",
        ),
        (
            "it is tagged to follow n3",
            |_, local| local.tags = tags(r#"{"replicatefrom":"n3"}"#),
            Duty::Follow { upstream: name("n3").into() },
            "n1 holds",
        ),
        (
            "it is tagged to follow n3, which is down",
            |view, local| {
                local.tags = tags(r#"{"replicatefrom":"n3"}"#);
                view.members.get_mut(&name("n3")).unwrap().member.state = MemberState::Stopped;
            },
            Duty::Rest,
            "streams from n1",
        ),
        (
            "the tags of n2 and n3 lead in a circle",
            |view, local| {
                local.tags = tags(r#"{"replicatefrom":"n3"}"#);
                view.members.get_mut(&name("n3")).unwrap().member.tags = tags(r#"{"replicatefrom":"n2"}"#);
            },
            Duty::Rest,
            "streams from n1",
        ),
        (
            "it follows n3, which is tagged to follow itself",
            |view, local| {
                local.tags = tags(r#"{"replicatefrom":"n3"}"#);
                view.members.get_mut(&name("n3")).unwrap().member.tags = tags(r#"{"replicatefrom":"n3"}"#);
            },
            Duty::Follow { upstream: name("n3").into() },
            "",
        ),
        ("it is tagged to follow itself", |_, local| local.tags = tags(r#"{"replicatefrom":"n2"}"#), Duty::Rest, ""),
        (
            "its data is another cluster's",
            |view, _| view.initialize = versioned(Initialize::Done(SystemId("1".to_owned()))),
            Duty::Quit,
            "belongs to the database system",
        ),
        ("asked to stop", |_, local| local.stopping = true, Duty::Stop, "asked to stop"),
        (
            "maintenance mode",
            |view, local| {
                view.config = config(json!({"pause": true}));
                local.postgres = primary(1, LOW);
            },
            Duty::Rest,
            "maintenance",
        ),
    ];
    for (case, twist, duty, why) in cases {
        check(case, *twist, duty, why);
    }
}
