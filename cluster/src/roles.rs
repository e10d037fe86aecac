//! The roles of a node and every way from one to the next: a table that prints itself.

use crate::duty::Duty;
use crate::local::{DataDir, LocalState, Postgres};
use std::fmt;

/// What a node is doing, as far as its processes and files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// No data directory that could be used.
    Uninitialized,
    /// Makes the first data directory, or founds the cluster on what is there.
    Bootstrapping,
    /// Copies another member's data.
    Cloning,
    /// Has data, and no server runs.
    Stopped,
    /// A server that takes no connections yet.
    Starting,
    /// In recovery.
    Standby,
    /// On its way out of recovery.
    Promoting,
    /// Out of recovery.
    Primary,
    /// A switchover: commits wait while it stops and hands the key over.
    Draining,
    /// Stops because it does not lead.
    Demoting,
    /// Winds its data back to before the fork.
    Rewinding,
    /// Stops because the arbiter was asked to.
    Stopping,
    /// The arbiter does not run.
    Ended,
}

impl Role {
    /// Every role, in the table's order.
    pub const ALL: [Role; 13] = [
        Role::Uninitialized,
        Role::Bootstrapping,
        Role::Cloning,
        Role::Stopped,
        Role::Starting,
        Role::Standby,
        Role::Promoting,
        Role::Primary,
        Role::Draining,
        Role::Demoting,
        Role::Rewinding,
        Role::Stopping,
        Role::Ended,
    ];

    /// The role that a node is seen in between two duties; None for a server that does not answer.
    pub fn seen(local: &LocalState) -> Option<Role> {
        match (&local.data, &local.postgres) {
            (_, Postgres::Silent) => None,
            (_, Postgres::Starting { .. }) => Some(Role::Starting),
            (_, Postgres::Primary { .. }) => Some(Role::Primary),
            (_, Postgres::Standby { .. }) => Some(Role::Standby),
            (DataDir::Empty | DataDir::Incomplete { .. } | DataDir::Damaged { .. }, Postgres::Stopped) => Some(Role::Uninitialized),
            (DataDir::Present(_), Postgres::Stopped) => Some(Role::Stopped),
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What moves a node: a duty it is told, or something that is seen to have happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "the first part are the names of `Duty`, the second says what was seen in its word")]
pub enum On {
    // Told.
    Bootstrap,
    Clone,
    StartPrimary,
    StartStandby,
    Promote,
    Demote,
    DemoteCluster,
    Follow,
    Rewind,
    Switchover,
    HandOver,
    Release,
    Stop,
    Quit,
    // Seen.
    Done,
    Failed,
    Interrupted,
    InRecovery,
    OutOfRecovery,
    Crashed,
    Down,
    KeyLost,
    Abandoned,
    HandedOver,
    FoundData,
    FoundNothing,
    FoundStandby,
    FoundPrimary,
}

impl On {
    /// The duty's row name; None for [`Duty::Rest`] and [`Duty::CallOff`], which move nothing, and for [`Duty::Upgrade`] and [`Duty::RestoreTo`], after which the node is what
    /// its data says.
    pub fn told(duty: &Duty) -> Option<On> {
        Some(match duty {
            Duty::Rest | Duty::CallOff | Duty::Upgrade { .. } | Duty::RestoreTo { .. } => return None,
            Duty::Bootstrap => On::Bootstrap,
            Duty::Clone { .. } | Duty::Restore => On::Clone,
            Duty::StartPrimary { .. } => On::StartPrimary,
            Duty::StartStandby { .. } => On::StartStandby,
            Duty::Promote { .. } => On::Promote,
            Duty::Demote => On::Demote,
            Duty::DemoteCluster { .. } => On::DemoteCluster,
            Duty::Follow { .. } => On::Follow,
            Duty::Rewind { .. } => On::Rewind,
            Duty::Switchover { .. } => On::Switchover,
            Duty::HandOver { .. } => On::HandOver,
            Duty::Release | Duty::GiveWay { .. } => On::Release,
            Duty::Stop => On::Stop,
            Duty::Quit => On::Quit,
        })
    }

    /// True for a duty, false for what is seen.
    pub fn is_told(self) -> bool {
        self <= On::Quit
    }

    /// What the table prints: a duty by its name, what is seen as a sentence.
    pub fn words(self) -> &'static str {
        match self {
            On::Bootstrap => "Bootstrap",
            On::Clone => "Clone",
            On::StartPrimary => "StartPrimary",
            On::StartStandby => "StartStandby",
            On::Promote => "Promote",
            On::Demote => "Demote",
            On::DemoteCluster => "DemoteCluster",
            On::Follow => "Follow",
            On::Rewind => "Rewind",
            On::Switchover => "Switchover",
            On::HandOver => "HandOver",
            On::Release => "Release",
            On::Stop => "Stop",
            On::Quit => "Quit",
            On::Done => "it is done",
            On::Failed => "it failed",
            On::Interrupted => "it broke off half way",
            On::InRecovery => "in recovery, takes connections",
            On::OutOfRecovery => "out of recovery",
            On::Crashed => "the server crashed",
            On::Down => "the server is down",
            On::KeyLost => "the leader key is lost",
            On::Abandoned => "no candidate has everything in time",
            On::HandedOver => "the key is handed over",
            On::FoundData => "the arbiter starts and finds data",
            On::FoundNothing => "the arbiter starts and finds no data",
            On::FoundStandby => "the arbiter starts and finds a standby",
            On::FoundPrimary => "the arbiter starts and finds a primary",
        }
    }
}

/// One way from a role to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row {
    /// The role before.
    pub from: Role,
    /// What moves the node.
    pub on: On,
    /// The role after.
    pub to: Role,
}

const fn row(from: Role, on: On, to: Role) -> Row {
    Row { from, on, to }
}

/// Every way from a role to the next.
pub const TABLE: &[Row] = &[
    row(Role::Uninitialized, On::Bootstrap, Role::Bootstrapping),
    row(Role::Uninitialized, On::Clone, Role::Cloning),
    row(Role::Uninitialized, On::Release, Role::Uninitialized),
    row(Role::Uninitialized, On::Stop, Role::Ended),
    row(Role::Bootstrapping, On::OutOfRecovery, Role::Primary),
    row(Role::Bootstrapping, On::Failed, Role::Uninitialized),
    row(Role::Cloning, On::Done, Role::Stopped),
    row(Role::Cloning, On::Failed, Role::Uninitialized),
    row(Role::Stopped, On::Bootstrap, Role::Bootstrapping),
    row(Role::Stopped, On::StartPrimary, Role::Starting),
    row(Role::Stopped, On::StartStandby, Role::Starting),
    row(Role::Stopped, On::Rewind, Role::Rewinding),
    row(Role::Stopped, On::Clone, Role::Cloning),
    row(Role::Stopped, On::HandOver, Role::Stopped),
    row(Role::Stopped, On::DemoteCluster, Role::Demoting),
    row(Role::Stopped, On::Release, Role::Stopped),
    row(Role::Stopped, On::Stop, Role::Ended),
    row(Role::Stopped, On::Quit, Role::Ended),
    row(Role::Starting, On::InRecovery, Role::Standby),
    row(Role::Starting, On::OutOfRecovery, Role::Primary),
    row(Role::Starting, On::Failed, Role::Stopped),
    row(Role::Starting, On::Demote, Role::Demoting),
    row(Role::Starting, On::Release, Role::Starting),
    row(Role::Starting, On::Clone, Role::Cloning),
    row(Role::Starting, On::Stop, Role::Stopping),
    row(Role::Starting, On::Quit, Role::Ended),
    row(Role::Standby, On::Promote, Role::Promoting),
    row(Role::Standby, On::Follow, Role::Standby),
    row(Role::Standby, On::Rewind, Role::Rewinding),
    row(Role::Standby, On::Clone, Role::Cloning),
    row(Role::Standby, On::Switchover, Role::Standby),
    row(Role::Standby, On::Demote, Role::Demoting),
    row(Role::Standby, On::Release, Role::Stopped),
    row(Role::Standby, On::Crashed, Role::Stopped),
    row(Role::Standby, On::Stop, Role::Stopping),
    row(Role::Standby, On::Quit, Role::Ended),
    row(Role::Promoting, On::OutOfRecovery, Role::Primary),
    row(Role::Promoting, On::KeyLost, Role::Standby),
    row(Role::Promoting, On::Crashed, Role::Stopped),
    row(Role::Primary, On::Bootstrap, Role::Primary),
    row(Role::Primary, On::Switchover, Role::Draining),
    row(Role::Primary, On::Demote, Role::Demoting),
    row(Role::Primary, On::DemoteCluster, Role::Demoting),
    row(Role::Primary, On::Release, Role::Stopped),
    row(Role::Primary, On::Clone, Role::Cloning),
    row(Role::Primary, On::Crashed, Role::Stopped),
    row(Role::Primary, On::Stop, Role::Stopping),
    row(Role::Primary, On::Quit, Role::Ended),
    row(Role::Draining, On::HandedOver, Role::Stopped),
    row(Role::Draining, On::Abandoned, Role::Primary),
    row(Role::Draining, On::Crashed, Role::Stopped),
    row(Role::Demoting, On::Down, Role::Stopped),
    row(Role::Rewinding, On::Done, Role::Stopped),
    row(Role::Rewinding, On::Failed, Role::Stopped),
    row(Role::Rewinding, On::Interrupted, Role::Uninitialized),
    row(Role::Stopping, On::Down, Role::Ended),
    row(Role::Ended, On::FoundData, Role::Stopped),
    row(Role::Ended, On::FoundNothing, Role::Uninitialized),
    row(Role::Ended, On::FoundStandby, Role::Standby),
    row(Role::Ended, On::FoundPrimary, Role::Primary),
];

/// Where a node in this role goes when it is told or sees this; None where the table has no such row.
pub fn next(from: Role, on: On) -> Option<Role> {
    TABLE.iter().find(|row| row.from == from && row.on == on).map(|row| row.to)
}

/// The table as text, one row a line.
pub fn text() -> String {
    let mut lines = vec![format!("{:<14} {:<40} {}", "from", "on", "to")];
    for Row { from, on, to } in TABLE {
        let (from, to) = (from.to_string(), to.to_string());
        lines.push(format!("{from:<14} {:<40} {to}", on.words()));
    }
    lines.join("\n") + "\n"
}

/// The table as a mermaid diagram.
pub fn mermaid() -> String {
    let mut lines = vec!["stateDiagram-v2".to_owned(), format!("    [*] --> {}", Role::Uninitialized)];
    for Row { from, on, to } in TABLE {
        lines.push(format!("    {from} --> {to}: {}", on.words()));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Every role that can be reached from these.
    fn reach(from: &[Role], rows: impl Fn(Role) -> Vec<Role>) -> BTreeSet<Role> {
        let mut reached = from.iter().copied().collect::<BTreeSet<_>>();
        let mut ahead = from.to_vec();
        while let Some(role) = ahead.pop() {
            ahead.extend(rows(role).into_iter().filter(|next| reached.insert(*next)));
        }
        reached
    }

    #[test]
    fn every_role_is_reached_from_the_first() {
        let forward = |role| TABLE.iter().filter(|row| row.from == role).map(|row| row.to).collect();
        let reached = reach(&[Role::Uninitialized], forward);
        assert_eq!(reached, BTreeSet::from(Role::ALL));
    }

    #[test]
    fn no_role_is_without_a_way_out() {
        let backward = |role| TABLE.iter().filter(|row| row.to == role).map(|row| row.from).collect();
        for serving in [Role::Standby, Role::Primary] {
            assert_eq!(reach(&[serving], backward), BTreeSet::from(Role::ALL), "to {serving}");
        }
    }

    #[test]
    fn every_duty_is_in_the_table_and_no_row_contradicts_another() {
        let told = BTreeSet::from(TOLD);
        let in_table = TABLE.iter().map(|row| row.on).filter(|on| on.is_told());
        assert_eq!(in_table.collect::<BTreeSet<_>>(), told);
        let keys = TABLE.iter().map(|row| (row.from, row.on)).collect::<BTreeSet<_>>();
        assert_eq!(keys.len(), TABLE.len(), "two rows for one role and event");
    }

    /// One of each: `On::told` is exhaustive, so a new duty fails to compile there and is added here.
    const TOLD: [On; 14] = [
        On::Bootstrap,
        On::Clone,
        On::StartPrimary,
        On::StartStandby,
        On::Promote,
        On::Demote,
        On::DemoteCluster,
        On::Follow,
        On::Rewind,
        On::Switchover,
        On::HandOver,
        On::Release,
        On::Stop,
        On::Quit,
    ];

    #[test]
    fn the_table_prints_itself() {
        let text = text();
        assert!(text.contains("Standby        Promote                                  Promoting\n"), "{text}");
        assert_eq!(text.lines().count(), TABLE.len() + 1);
        let mermaid = mermaid();
        assert!(mermaid.starts_with("stateDiagram-v2\n    [*] --> Uninitialized\n"), "{mermaid}");
        assert!(mermaid.contains("    Draining --> Stopped: the key is handed over\n"), "{mermaid}");
    }
}
