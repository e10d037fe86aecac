//! From every state of two nodes and of the cluster that they follow, race and duty together end in a healthy standby cluster (or, once
//! `standby_cluster` is gone, in a primary), with at most one promotion in a term.

use super::*;

/// WAL as far as it matters here: its timeline, and how far it goes.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Wal(u32, Lsn);

#[derive(Debug, Clone, Copy, PartialEq)]
enum Server {
    Stopped(Ended),
    Primary,
    Standby(From),
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum From {
    Nobody,
    Member(usize),
    Remote,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct Node {
    /// None: no data directory that could be used.
    data: Option<(Wal, Server)>,
    streaming: bool,
    vacant_for: Duration,
}

/// A cluster of two, and the server that it is to follow.
#[derive(Debug, Clone)]
struct Pair {
    nodes: [Node; 2],
    remote: Wal,
    /// Where timeline 1 ended, on the other side (its timeline is 2 then) or here.
    fork: Option<Lsn>,
    follows: bool,
    leader: Option<(usize, Term)>,
    revision: i64,
    history: History,
    words: BTreeMap<MemberName, Versioned<Announcement>>,
    promoted: BTreeSet<Term>,
}

const NAMES: [&str; 2] = ["n2", "n3"];

impl Pair {
    fn view(&self) -> ClusterView {
        let mut view = vacancy();
        view.config = if self.follows { follows() } else { config(json!({})) };
        view.last_term = Some(Versioned { value: LastTerm { holder: name("n9"), how: "taken".to_owned() }, revision: self.revision });
        view.leader = self.leader.map(|(at, term)| Leader { name: name(NAMES[at]), lease: LeaseId(1), term });
        view.history = versioned(self.history.clone());
        view.announcements = self.words.clone();
        for (at, node) in self.nodes.iter().enumerate() {
            let leads = self.leader.is_some_and(|(leader, _)| leader == at);
            let (Wal(timeline, lsn), state, role) = match node.data {
                None => (Wal(1, Lsn::INVALID), MemberState::Stopped, MemberRole::Uninitialized),
                Some((wal, Server::Stopped(_))) => (wal, MemberState::Stopped, MemberRole::Replica),
                Some((wal, Server::Primary)) => (wal, MemberState::Running, MemberRole::Primary),
                Some((wal, Server::Standby(_))) if leads && self.follows => (wal, MemberState::Running, MemberRole::StandbyLeader),
                Some((wal, Server::Standby(_))) => (wal, MemberState::Running, MemberRole::Replica),
            };
            let mut entry = member(NAMES[at], role, timeline, lsn);
            entry.member.state = state;
            view.members.insert(name(NAMES[at]), entry);
        }
        view
    }

    fn local(&self, at: usize) -> LocalState {
        let node = &self.nodes[at];
        let (data, postgres) = match node.data {
            None => (DataDir::Incomplete { what: "a clone".to_owned() }, Postgres::Stopped),
            Some((Wal(timeline, lsn), server)) => {
                let (ended, postgres) = match server {
                    Server::Stopped(ended) => (ended, Postgres::Stopped),
                    Server::Primary => (Ended::CrashedPrimary, primary(timeline, lsn)),
                    Server::Standby(from) => {
                        let upstream = match from {
                            From::Nobody => None,
                            From::Member(member) => Some(NAMES[member]),
                            From::Remote => Some("a"),
                        };
                        (Ended::Standby, standby(timeline, lsn, upstream))
                    }
                };
                (DataDir::Present(control(timeline, Lsn(lsn.0 - 1), ended)), postgres)
            }
        };
        let mut local = local(NAMES[at], data, postgres);
        let leads = self.leader.is_some_and(|(leader, _)| leader == at);
        let Wal(timeline, _) = self.remote;
        let lines: Vec<(u32, Lsn)> = self.fork.map(|fork| (1, fork)).into_iter().collect();
        local.remote = Remote {
            followed: matches!(node.data, Some((_, Server::Standby(From::Remote)))),
            said: if leads && !node.streaming { remote(timeline, &lines[..if timeline > 1 { lines.len() } else { 0 }]) } else { None },
        };
        local
    }

    /// Can a standby with `mine` go on from `theirs`?
    fn streams(&self, mine: Wal, theirs: Wal) -> bool {
        (mine.0 == theirs.0 && mine.1 <= theirs.1) || (mine.0 < theirs.0 && self.fork.is_some_and(|fork| mine.1 <= fork))
    }

    fn replicate(&mut self) {
        for at in 0..2 {
            let Some((mine, Server::Standby(from))) = self.nodes[at].data else {
                self.nodes[at].streaming = false;
                continue;
            };
            let theirs = match from {
                From::Nobody => None,
                From::Remote => Some(self.remote),
                From::Member(member) => match self.nodes[member].data {
                    Some((wal, Server::Primary | Server::Standby(_))) => Some(wal),
                    _ => None,
                },
            };
            let theirs = theirs.filter(|theirs| self.streams(mine, *theirs));
            self.nodes[at].streaming = theirs.is_some();
            if let Some(theirs) = theirs {
                self.nodes[at].data = Some((theirs, Server::Standby(from)));
            }
        }
        // The leader writes the history of what it has.
        if let Some((at, _)) = self.leader
            && let Some((Wal(timeline, _), Server::Primary | Server::Standby(_))) = self.nodes[at].data
            && timeline > self.history.current().0
        {
            let lines: Vec<(u32, Lsn)> = (1..timeline).map(|line| (line, self.fork.unwrap())).collect();
            self.history = history(&lines).unwrap().value;
        }
    }

    fn lead(&mut self, at: usize) {
        self.revision += 1;
        self.leader = Some((at, Term(self.revision)));
    }

    fn of(upstream: &Upstream) -> From {
        match upstream {
            Upstream::Member(member) => From::Member(NAMES.iter().position(|name| *name == member.as_str()).unwrap()),
            Upstream::Remote => From::Remote,
            Upstream::Nobody => From::Nobody,
        }
    }

    fn apply(&mut self, at: usize, duty: Duty) {
        let leads = self.leader.filter(|(leader, _)| *leader == at).map(|(_, term)| term);
        let wal = self.nodes[at].data.map(|(wal, _)| wal);
        let node = match duty {
            Duty::Rest => return,
            Duty::Clone { from } | Duty::Rewind { from } => {
                let source = match Pair::of(&from) {
                    From::Remote => Some(self.remote),
                    From::Member(member) => self.nodes[member].data.map(|(wal, _)| wal),
                    From::Nobody => panic!("a copy of nobody's data"),
                };
                source.map(|wal| (wal, Server::Stopped(Ended::Standby)))
            }
            Duty::StartStandby { upstream } => Some((wal.unwrap(), Server::Standby(Pair::of(&upstream)))),
            Duty::Follow { upstream } => Some((wal.unwrap(), Server::Standby(Pair::of(&upstream)))),
            Duty::Demote => Some((wal.unwrap(), Server::Stopped(Ended::CleanPrimary))),
            Duty::DemoteCluster { term } => {
                assert_eq!(leads, Some(term));
                self.lead(at);
                Some((wal.unwrap(), Server::Standby(From::Remote)))
            }
            Duty::Promote { term } => {
                assert!(!self.follows, "promoted although another cluster is to be followed");
                assert_eq!(leads, Some(term));
                assert!(self.promoted.insert(term), "two promotions in one term");
                let Wal(timeline, lsn) = wal.unwrap();
                Some((Wal(timeline + 1, lsn), Server::Primary))
            }
            Duty::StartPrimary { term } => {
                assert_eq!(leads, Some(term));
                assert!(!self.follows, "started as primary although another cluster is to be followed");
                Some((wal.unwrap(), Server::Primary))
            }
            Duty::Release => {
                self.leader = None;
                return;
            }
            Duty::Bootstrap
            | Duty::Restore
            | Duty::Switchover { .. }
            | Duty::HandOver { .. }
            | Duty::GiveWay { .. }
            | Duty::CallOff
            | Duty::Upgrade { .. }
            | Duty::RestoreTo { .. }
            | Duty::Stop
            | Duty::Quit => {
                panic!("{duty:?} although nobody asked")
            }
        };
        self.nodes[at].data = node;
        self.nodes[at].streaming = false;
    }

    fn racing(&self, view: &ClusterView, at: usize) -> RaceStep {
        let node = &self.nodes[at];
        let Some((Wal(timeline, lsn), server @ (Server::Primary | Server::Standby(_)))) = node.data else {
            return RaceStep::Rest;
        };
        let me = standing::Candidate {
            primary: server == Server::Primary,
            streaming: node.streaming,
            vacant_for: node.vacant_for,
            ..candidate(NAMES[at], timeline, lsn)
        };
        race::decide(view, &me).what
    }

    fn round(&mut self) {
        self.replicate();
        let view = self.view();
        let duties = [0, 1].map(|at| duty::decide(&view, &self.local(at)).what);
        let steps = [0, 1].map(|at| self.racing(&view, at));
        for node in &mut self.nodes {
            node.vacant_for = if self.leader.is_some() { Duration::ZERO } else { node.vacant_for + Duration::from_millis(400) };
        }
        for (at, duty) in duties.into_iter().enumerate() {
            self.apply(at, duty);
        }
        for (at, step) in steps.into_iter().enumerate() {
            match step {
                RaceStep::Rest | RaceStep::Wait(_) => {}
                RaceStep::Announce(value) => {
                    assert_eq!(value.receives, self.follows && !value.primary);
                    self.words.insert(name(NAMES[at]), Versioned { value, revision: 99 });
                }
                RaceStep::Take(judged) if self.leader.is_none() => {
                    assert_eq!(judged.position.is_none(), self.follows);
                    self.lead(at);
                }
                RaceStep::Take(_) => {}
                RaceStep::Depose(_) | RaceStep::CallOff(_) | RaceStep::Tell(_) => panic!("a standby cluster deposes nobody"),
            }
        }
    }

    fn is_healthy(&self) -> bool {
        let Some((leader, _)) = self.leader else { return false };
        let (led, other) = (&self.nodes[leader], &self.nodes[1 - leader]);
        let followed = matches!(other.data, Some((_, Server::Standby(From::Member(at)))) if at == leader) && other.streaming;
        let leads = match led.data {
            Some((wal, Server::Standby(From::Remote))) => self.follows && led.streaming && wal == self.remote,
            Some((_, Server::Primary)) => !self.follows,
            _ => false,
        };
        followed && leads
    }

    fn runs_to_health(&mut self, from: &str) {
        for _ in 0..40 {
            self.round();
            if self.is_healthy() {
                return;
            }
        }
        let view = self.view();
        let told = [0, 1].map(|at| duty::decide(&view, &self.local(at)));
        panic!("no end\nfrom {from}\nnow {self:#?}\n{told:#?}");
    }
}

#[test]
fn every_standby_cluster_of_two_ends_healthy_through_demotion_failover_and_promotion() {
    let wals = [Wal(1, LOW), Wal(1, HIGH)];
    let mut every = vec![None];
    for wal in wals {
        for server in [
            Server::Stopped(Ended::CleanPrimary),
            Server::Stopped(Ended::CrashedPrimary),
            Server::Stopped(Ended::Standby),
            Server::Primary,
            Server::Standby(From::Nobody),
            Server::Standby(From::Remote),
        ] {
            every.push(Some((wal, server)));
        }
    }
    let mut count = 0;
    for leader in [None, Some(0), Some(1)] {
        for (a, b) in every.iter().flat_map(|a| every.iter().map(move |b| (*a, *b))) {
            // The other side is where timeline 1 went on, or where timeline 2 left it before or past what is here.
            for (remote, fork) in [(Wal(1, HIGH), None), (Wal(2, HIGH), Some(FORK)), (Wal(2, Lsn(HIGH.0 * 2)), Some(HIGH))] {
                let node = |data| Node { data, streaming: false, vacant_for: Duration::ZERO };
                let leader = leader.map(|at| (at, NOW));
                let mut pair = Pair {
                    nodes: [node(a), node(b)],
                    remote,
                    fork,
                    follows: true,
                    leader,
                    revision: if leader.is_some() { NOW.0 } else { AFTER.0 },
                    history: History::default(),
                    words: BTreeMap::new(),
                    promoted: BTreeSet::new(),
                };
                let from = format!("{pair:#?}");
                pair.runs_to_health(&from);
                assert!(pair.promoted.is_empty());
                count += 1;
                // The leader dies and is back; then the cluster is promoted, and demoted again.
                let (led, _) = pair.leader.take().unwrap();
                pair.nodes[led].data = pair.nodes[led].data.map(|(wal, _)| (wal, Server::Stopped(Ended::Standby)));
                pair.runs_to_health(&from);
                assert!(pair.promoted.is_empty(), "a failover promotes nobody here");
                pair.follows = false;
                pair.fork = Some(pair.remote.1);
                pair.runs_to_health(&from);
                assert_eq!(pair.promoted.len(), 1);
                let (led, term) = pair.leader.unwrap();
                // The other side has followed and was promoted after the clean stop.
                let Some((Wal(timeline, lsn), _)) = pair.nodes[led].data else { panic!("it leads") };
                pair.follows = true;
                pair.remote = Wal(timeline + 1, lsn);
                pair.runs_to_health(&from);
                assert_ne!(pair.leader.unwrap().1, term, "the demotion begins a term");
                pair.follows = false;
                pair.runs_to_health(&from);
            }
        }
    }
    assert!(count > 1000, "only {count} were looked at");
}
