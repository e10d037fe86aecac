//! Small clusters, whole: from every state of three nodes, race and duty together end in a healthy
//! cluster, or everybody says why not.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

mod every;
#[path = "../world/mod.rs"]
mod world;

use cluster::duty::{self, Duty};
use cluster::history::{Ancestry, History};
use cluster::leader::{Leader, LeaseId, Term};
use cluster::local::{DataDir, Ended, LocalState, Postgres};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::{MemberName, Timeline};
use cluster::race;
use cluster::reason::Reason;
use cluster::roles::{self, On, Role};
use cluster::standing::{self, RaceStep};
use cluster::sync::SyncState;
use cluster::view::{Announcement, ClusterView, Initialize, LastTerm, Versioned};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use world::*;

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
/// How far a primary writes in one round.
const WRITES: u64 = 4096;

/// WAL: its newest timeline, how far it goes, and where the timelines before it ended.
#[derive(Debug, Clone, PartialEq)]
struct Wal {
    timeline: u32,
    lsn: Lsn,
    lines: Vec<(u32, Lsn)>,
}

impl Wal {
    fn before_the_fork() -> Wal {
        Wal { timeline: 1, lsn: LOW, lines: vec![] }
    }

    /// Timeline 1, past the point where timeline 2 left it.
    fn past_the_fork() -> Wal {
        Wal { timeline: 1, lsn: HIGH, lines: vec![] }
    }

    fn after_the_fork() -> Wal {
        Wal { timeline: 2, lsn: HIGH, lines: vec![(1, FORK)] }
    }

    fn history(&self) -> History {
        history(&self.lines).unwrap().value.up_to(Timeline(self.timeline))
    }

    /// Everything here is also in `other`.
    fn is_part_of(&self, other: &Wal) -> bool {
        let lines = &other.lines;
        (self.timeline == other.timeline && self.lsn <= other.lsn)
            || lines.iter().any(|(timeline, end)| *timeline == self.timeline && self.lsn <= *end)
    }
}

#[derive(Debug, Clone, PartialEq)]
enum Server {
    Stopped(Ended),
    Primary,
    Standby { upstream: Option<MemberName> },
}

#[derive(Debug, Clone, PartialEq)]
enum Data {
    Empty,
    Incomplete,
    Present(Wal, Server),
}

#[derive(Debug, Clone)]
struct Node {
    name: MemberName,
    data: Data,
    /// Streams from its upstream.
    streaming: bool,
    /// Receives; off from its announcement until there is a leader.
    receives: bool,
    /// Promoted, its first checkpoint still to come.
    checkpoint_due: bool,
    vacant_for: Duration,
}

#[derive(Debug, Clone)]
struct Cluster {
    nodes: Vec<Node>,
    revision: i64,
    initialized: bool,
    leader: Option<(MemberName, Term)>,
    last_term: Term,
    history: History,
    sync: Option<SyncState>,
    announcements: BTreeMap<MemberName, Versioned<Announcement>>,
    /// Every term that saw a promotion.
    promoted: BTreeSet<Term>,
}

/// The roles in which a node may be seen to rest after this duty, as the table has it: by way of those that nobody rests in.
fn comes_to(from: Role, on: On) -> BTreeSet<Role> {
    const REST: [Role; 5] = [Role::Uninitialized, Role::Stopped, Role::Standby, Role::Primary, Role::Ended];
    let (mut at_rest, mut on_the_way) = (BTreeSet::new(), BTreeSet::new());
    let mut ahead: Vec<Role> = roles::next(from, on).into_iter().collect();
    while let Some(role) = ahead.pop() {
        if REST.contains(&role) {
            at_rest.insert(role);
        } else if on_the_way.insert(role) {
            ahead.extend(roles::TABLE.iter().filter(|row| row.from == role && !row.on.is_told()).map(|row| row.to));
        }
    }
    at_rest
}

impl Cluster {
    fn of(data: [Data; 3], leader: Option<&str>, history: History, sync: Option<SyncState>) -> Cluster {
        let node = |(who, data): (&str, Data)| Node {
            name: name(who),
            data,
            streaming: false,
            receives: true,
            checkpoint_due: false,
            vacant_for: Duration::ZERO,
        };
        Cluster {
            nodes: NAMES.into_iter().zip(data).map(node).collect(),
            revision: 10,
            initialized: true,
            leader: leader.map(|leader| (name(leader), NOW)),
            last_term: if leader.is_some() { NOW } else { AFTER },
            history,
            sync,
            announcements: BTreeMap::new(),
            promoted: BTreeSet::new(),
        }
    }

    fn view(&self) -> ClusterView {
        let mut view = vacancy();
        view.initialize = self.initialized.then(|| Versioned { value: Initialize::Done(system()), revision: 1 });
        view.leader = self.leader.as_ref().map(|(name, term)| Leader { name: name.clone(), lease: LeaseId(1), term: *term });
        view.last_term = Some(Versioned { value: LastTerm { holder: name("n9"), how: "taken".to_owned() }, revision: self.last_term.0 });
        view.history = versioned(self.history.clone());
        view.status = status(LOW);
        view.announcements = self.announcements.clone();
        if let Some(sync) = &self.sync {
            view.config = sync_mode();
            view.sync = versioned(sync.clone());
        }
        for node in &self.nodes {
            let (role, state, wal) = match &node.data {
                Data::Empty | Data::Incomplete => (MemberRole::Uninitialized, MemberState::Stopped, None),
                Data::Present(wal, Server::Stopped(_)) => (MemberRole::Replica, MemberState::Stopped, Some(wal)),
                Data::Present(wal, Server::Primary) => (MemberRole::Primary, MemberState::Running, Some(wal)),
                Data::Present(wal, Server::Standby { .. }) => (MemberRole::Replica, MemberState::Running, Some(wal)),
            };
            let (timeline, lsn) = wal.map_or((1, Lsn::INVALID), |wal| (wal.timeline, wal.lsn));
            let mut entry = member(node.name.as_str(), role, timeline, lsn);
            entry.member.state = state;
            entry.member.checkpoint_after_promote = matches!(node.data, Data::Present(_, Server::Primary)).then_some(!node.checkpoint_due);
            view.members.insert(node.name.clone(), entry);
        }
        view
    }

    fn local(&self, node: &Node) -> LocalState {
        let (data, postgres) = match &node.data {
            Data::Empty => (DataDir::Empty, Postgres::Stopped),
            Data::Incomplete => (DataDir::Incomplete { what: "a clone".to_owned() }, Postgres::Stopped),
            Data::Present(wal, server) => {
                let (ended, postgres) = match server {
                    Server::Stopped(ended) => (*ended, Postgres::Stopped),
                    Server::Primary => (Ended::CrashedPrimary, primary(wal.timeline, wal.lsn)),
                    Server::Standby { upstream } => {
                        let upstream = upstream.as_ref().map(MemberName::as_str);
                        (Ended::Standby, standby(wal.timeline, wal.lsn, upstream))
                    }
                };
                let checkpoint = Lsn(wal.lsn.0 - 100);
                (DataDir::Present(control(wal.timeline, checkpoint, ended)), postgres)
            }
        };
        let runs = |node: &&Node| matches!(node.data, Data::Present(_, Server::Primary | Server::Standby { .. }));
        let answered = self.nodes.iter().filter(runs).map(|node| node.name.clone()).collect();
        LocalState { answered, ..local(node.name.as_str(), data, postgres) }
    }

    fn wal_of(&self, name: &MemberName, primary_only: bool) -> Option<Wal> {
        let node = self.nodes.iter().find(|node| node.name == *name)?;
        match &node.data {
            Data::Present(wal, Server::Primary) => Some(wal.clone()),
            Data::Present(wal, Server::Standby { .. }) if !primary_only => Some(wal.clone()),
            _ => None,
        }
    }

    /// The leader's worker publishes, primaries write (the fence is not looked at: any of them may have), standbys stream.
    fn replicate(&mut self) {
        for node in &mut self.nodes {
            if let Data::Present(wal, Server::Primary) = &mut node.data
                && self.leader.as_ref().is_some_and(|(leader, _)| *leader == node.name)
            {
                wal.lsn = Lsn(wal.lsn.0 + WRITES);
                self.history = wal.history();
            }
        }
        for at in 0..self.nodes.len() {
            let node = &self.nodes[at];
            let Data::Present(mine, Server::Standby { upstream: Some(upstream) }) = &node.data else {
                continue;
            };
            let source = self.wal_of(upstream, false).filter(|theirs| node.receives && mine.is_part_of(theirs));
            let node = &mut self.nodes[at];
            node.streaming = source.is_some();
            if let (Some(theirs), Data::Present(mine, _)) = (source, &mut node.data) {
                *mine = theirs;
            }
        }
    }

    fn lead(&mut self, who: &MemberName) {
        self.revision += 1;
        self.leader = Some((who.clone(), Term(self.revision)));
        self.last_term = Term(self.revision);
        if let Some(sync) = &mut self.sync {
            *sync = SyncState::of(who, &BTreeSet::new());
        }
    }

    /// What the arbiter of node `at` brings about: where a node then is, the table of roles says as well.
    fn apply(&mut self, at: usize, duty: Duty) {
        let role = |cluster: &Cluster| Role::seen(&cluster.local(&cluster.nodes[at]));
        let (before, on, data) = (role(self), On::told(&duty), self.nodes[at].data.clone());
        let told = format!("{duty:?}");
        self.carry_out(at, duty);
        if data != self.nodes[at].data {
            let (before, after) = (before.unwrap(), role(self).unwrap());
            let may = comes_to(before, on.unwrap());
            assert!(may.contains(&after), "{told} of {before} came to {after}; the table of roles says {may:?}");
        }
    }

    fn carry_out(&mut self, at: usize, duty: Duty) {
        let highest = self
            .nodes
            .iter()
            .filter_map(|node| match &node.data {
                Data::Present(wal, _) => Some(wal.timeline),
                _ => None,
            })
            .max()
            .max(Some(self.history.current().0))
            .unwrap();
        let me = self.nodes[at].name.clone();
        let leads = self.leader.as_ref().filter(|(leader, _)| *leader == me).map(|(_, term)| *term);
        let present = match &self.nodes[at].data {
            Data::Present(wal, _) => Some(wal.clone()),
            _ => None,
        };
        let server = |server| Data::Present(present.clone().unwrap(), server);
        let node_data = match duty {
            Duty::Rest => return,
            Duty::Bootstrap => {
                if self.initialized {
                    return;
                }
                self.initialized = true;
                self.lead(&me);
                Data::Present(present.unwrap_or_else(Wal::before_the_fork), Server::Primary)
            }
            Duty::Clone { from } | Duty::Rewind { from } => match self.wal_of(from.member().unwrap(), true) {
                Some(wal) => Data::Present(wal, Server::Stopped(Ended::Standby)),
                None => Data::Incomplete,
            },
            Duty::StartPrimary { term } => {
                assert_eq!(leads, Some(term), "told to start as primary without the key");
                server(Server::Primary)
            }
            Duty::StartStandby { upstream } => server(Server::Standby { upstream: upstream.member().cloned() }),
            Duty::Follow { upstream } => server(Server::Standby { upstream: Some(upstream.member().unwrap().clone()) }),
            Duty::Promote { term } => {
                assert_eq!(leads, Some(term), "told to promote without the key");
                assert!(self.promoted.insert(term), "two promotions in one term");
                let mut wal = present.unwrap();
                wal.lines.push((wal.timeline, wal.lsn));
                wal.timeline = highest + 1;
                self.nodes[at].checkpoint_due = true;
                Data::Present(wal, Server::Primary)
            }
            Duty::Demote => server(Server::Stopped(Ended::CleanPrimary)),
            Duty::HandOver { to } => {
                self.lead(&to);
                return;
            }
            Duty::Release => {
                assert!(leads.is_some(), "gives up what it does not have");
                self.leader = None;
                return;
            }
            Duty::Restore
            | Duty::DemoteCluster { .. }
            | Duty::Switchover { .. }
            | Duty::GiveWay { .. }
            | Duty::CallOff
            | Duty::Upgrade { .. }
            | Duty::RestoreTo { .. }
            | Duty::Stop
            | Duty::Quit => {
                panic!("{duty:?} although nobody asked")
            }
        };
        self.nodes[at].data = node_data;
    }

    /// What the lease worker of node `at` decides; None where there is no server to run it.
    fn racing(&self, view: &ClusterView, at: usize) -> Option<(RaceStep, Reason)> {
        let node = &self.nodes[at];
        let Data::Present(wal, server @ (Server::Primary | Server::Standby { .. })) = &node.data else {
            return None;
        };
        let me = standing::Candidate {
            primary: *server == Server::Primary,
            streaming: node.streaming,
            vacant_for: node.vacant_for,
            ..candidate(node.name.as_str(), wal.timeline, wal.lsn)
        };
        let decision = race::decide(view, &me);
        Some((decision.what, decision.why))
    }

    /// Everybody looks, everybody decides, everything happens. Says whether anything but waiting did.
    fn round(&mut self) -> bool {
        self.replicate();
        let view = self.view();
        let duties = self.nodes.iter().map(|node| duty::decide(&view, &self.local(node)).what).collect::<Vec<_>>();
        let steps = (0..3).map(|at| self.racing(&view, at).map(|(step, _)| step)).collect::<Vec<_>>();
        let primaries = duties.iter().filter(|duty| matches!(duty, Duty::Promote { .. } | Duty::StartPrimary { .. }));
        assert!(primaries.count() <= 1, "two are told to be primary");
        let takes = steps.iter().filter(|step| matches!(step, Some(RaceStep::Take(_))));
        assert!(takes.count() <= 1, "two take the key in one view");
        let mut moved = false;
        for node in &mut self.nodes {
            moved |= std::mem::take(&mut node.checkpoint_due);
            if self.leader.is_some() {
                node.receives = true;
                node.vacant_for = Duration::ZERO;
            } else {
                node.vacant_for += Duration::from_millis(400);
            }
        }
        for (at, duty) in duties.into_iter().enumerate() {
            moved |= duty != Duty::Rest;
            self.apply(at, duty);
        }
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                None | Some(RaceStep::Rest | RaceStep::Wait(_)) => {}
                Some(RaceStep::Announce(value)) => {
                    moved = true;
                    self.revision += 1;
                    self.nodes[at].receives = false;
                    self.nodes[at].streaming = false;
                    let said = Versioned { value, revision: self.revision };
                    self.announcements.insert(self.nodes[at].name.clone(), said);
                }
                Some(RaceStep::Take(judged)) if self.leader.is_none() => {
                    moved = true;
                    assert_eq!(judged.after, self.last_term);
                    let me = self.nodes[at].name.clone();
                    self.lead(&me);
                }
                Some(RaceStep::Take(_)) => {}
                Some(RaceStep::Depose(_) | RaceStep::CallOff(_) | RaceStep::Tell(_)) => panic!("deposition is off"),
            }
        }
        moved
    }

    fn is_healthy(&self) -> bool {
        let Some((leader, _)) = &self.leader else { return false };
        let Some(theirs) = self.wal_of(leader, true) else { return false };
        self.nodes.iter().all(|node| {
            let Data::Present(wal, server) = &node.data else { return false };
            match server {
                Server::Primary => node.name == *leader,
                Server::Standby { .. } => node.streaming && *wal == theirs,
                Server::Stopped(_) => false,
            }
        })
    }

    /// Has this node data that the cluster may go on with? Told from the facts at the start.
    fn is_of_use(&self, node: &Node) -> bool {
        let Data::Present(wal, _) = &node.data else { return false };
        let sound = |timeline, lsn| {
            let ancestry = self.history.ancestry(self.history.current(), Timeline(timeline), lsn);
            !matches!(ancestry, Ancestry::Diverged { .. })
        };
        sound(wal.timeline, wal.lsn) && self.sync.as_ref().is_none_or(|sync| sync.may_lead(&node.name))
    }

    fn told(&self) -> String {
        let nodes =
            self.nodes.iter().map(|node| format!("\n  {} {:?}{}", node.name, node.data, if node.streaming { ", streaming" } else { "" }));
        let nodes = nodes.collect::<String>();
        let lines = self.history.0.iter().map(|line| (line.timeline.0, line.switch)).collect::<Vec<_>>();
        format!("leader {:?}, history {lines:?}, sync {:?}{nodes}", self.leader, self.sync)
    }

    fn reasons(&self) -> Vec<String> {
        let view = self.view();
        let node = |(at, node): (usize, &Node)| {
            let duty = duty::decide(&view, &self.local(node));
            format!("{}: {:?}: {}; {:?}", node.name, duty.what, duty.why, self.racing(&view, at).map(|(step, why)| (step, why.to_string())))
        };
        self.nodes.iter().enumerate().map(node).collect()
    }
}

/// What goes wrong in the middle.
#[derive(Debug, Clone, Copy)]
enum Blow {
    /// The server of this node crashes.
    Crash(usize),
    /// The leader's lease runs out.
    LeaseLost,
}

impl Cluster {
    fn suffer(&mut self, blow: Blow) {
        match blow {
            Blow::LeaseLost => self.leader = None,
            Blow::Crash(at) => {
                let node = &mut self.nodes[at];
                node.streaming = false;
                if let Data::Present(_, server) = &mut node.data {
                    match server {
                        Server::Primary => *server = Server::Stopped(Ended::CrashedPrimary),
                        Server::Standby { .. } => *server = Server::Stopped(Ended::Standby),
                        Server::Stopped(_) => {}
                    }
                }
            }
        }
    }
}
