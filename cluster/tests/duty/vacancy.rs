//! What is owed while nobody leads.

use super::*;

#[test]
fn while_nobody_leads() {
    let cases: &[(&str, Twist, Duty, &str)] = &[
        (
            "no cluster, no data, and members that have data",
            |view, local| {
                alone(view, local, DataDir::Empty, Postgres::Stopped);
                view.initialize = None;
            },
            Duty::Rest,
            "nothing is founded beside it",
        ),
        (
            "no cluster, no data",
            |view, local| {
                alone(view, local, DataDir::Empty, Postgres::Stopped);
                view.initialize = None;
                view.members.clear();
            },
            Duty::Bootstrap,
            "does not exist yet",
        ),
        (
            "another node initializes",
            |view, local| {
                alone(view, local, DataDir::Empty, Postgres::Stopped);
                view.initialize = versioned(Initialize::Running);
            },
            Duty::Rest,
            "another node is making",
        ),
        (
            "its own arbiter was killed while it founded, and this one keeps the lease of the claim",
            |view, local| {
                alone(view, local, DataDir::Incomplete { what: "founding the cluster".to_owned() }, Postgres::Stopped);
                claimed(view, local);
            },
            Duty::Bootstrap,
            "does not exist yet",
        ),
        (
            "the same, with data that had lost their mark already",
            |view, local| {
                alone(view, local, present(Ended::CrashedPrimary), Postgres::Stopped);
                claimed(view, local);
            },
            Duty::Bootstrap,
            "does not exist yet",
        ),
        (
            "the same, and its server runs",
            |view, local| {
                alone(view, local, present(Ended::CrashedPrimary), primary(1, LOW));
                claimed(view, local);
            },
            Duty::Bootstrap,
            "does not exist yet",
        ),
        (
            "no data, nobody to clone from, and a method that needs nobody",
            |view, local| {
                alone(view, local, DataDir::Empty, Postgres::Stopped);
                local.cloning.without_leader = true;
            },
            Duty::Restore,
            "no_leader",
        ),
        (
            "half a copy, and what it was to replace is whole",
            |view, local| {
                alone(view, local, DataDir::Incomplete { what: "clone from n1".to_owned() }, Postgres::Stopped);
                local.aside = Some(control(1, LOW, Ended::Standby));
            },
            Duty::Restore,
            "set aside here for a new copy are whole",
        ),
        (
            "no data, and nobody to clone from",
            |view, local| alone(view, local, DataDir::Empty, Postgres::Stopped),
            Duty::Rest,
            "nobody to clone from",
        ),
        (
            "no cluster, a former primary's data",
            |view, local| {
                alone(view, local, present(Ended::CleanPrimary), Postgres::Stopped);
                view.initialize = None;
            },
            Duty::Bootstrap,
            "",
        ),
        (
            "no cluster, a running primary",
            |view, local| {
                alone(view, local, present(Ended::CrashedPrimary), primary(1, LOW));
                view.initialize = None;
            },
            Duty::Bootstrap,
            "",
        ),
        (
            "no cluster, a standby's data",
            |view, local| {
                alone(view, local, present(Ended::Standby), Postgres::Stopped);
                view.initialize = None;
            },
            Duty::Quit,
            "start the node that was primary first",
        ),
        (
            "stopped",
            |view, local| alone(view, local, present(Ended::CrashedPrimary), Postgres::Stopped),
            Duty::StartStandby { upstream: Upstream::Nobody },
            "must run to stand",
        ),
        (
            "a running primary",
            |view, local| alone(view, local, present(Ended::CrashedPrimary), primary(1, LOW)),
            Duty::Rest,
            "the lease worker decides",
        ),
        (
            "a running primary on an old timeline",
            |view, local| {
                alone(view, local, present(Ended::CrashedPrimary), primary(1, LOW));
                view.history = history(&[(1, FORK)]);
            },
            Duty::Demote,
            "this node is on timeline 1, the cluster is on timeline 2",
        ),
        ("a standby", |view, _| view.leader = None, Duty::Rest, "the lease worker decides"),
    ];
    for (case, twist, duty, why) in cases {
        check(case, *twist, duty, why);
    }
}
