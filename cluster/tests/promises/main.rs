//! `failsafe_mode` in quorum mode: every order of commit, vacancy, promise, word, take and restart under a leader that is cut off from etcd, with requests that
//! arrive late or are heard of by nobody; and the same worlds with each guard taken out, in which an acknowledged commit is lost.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

#[path = "../world/mod.rs"]
mod world;

use cluster::failsafe::{self, Spoken};
use cluster::leader::Leader;
use cluster::lsn::Lsn;
use cluster::member::MemberRole;
use cluster::quorum::{Method, Setting, Trust};
use cluster::race;
use cluster::standing::{Candidate, RaceStep};
use cluster::sync::SyncState;
use cluster::view::{ClusterView, Versioned};
use serde_json::json;
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap, HashSet};
use world::*;

/// What a world may leave out, to show that it is needed.
#[derive(Debug, Clone, Copy, Default)]
struct Without {
    /// A member promises although it has said a word that counts.
    word_before_promise: bool,
    /// A word that was decided on is said, whatever was promised meanwhile.
    promise_before_word: bool,
    /// What was said goes with the server.
    memory: bool,
    /// It is forgotten while nobody else leads.
    end_of_vacancy: bool,
    /// A member that has promised has a vote.
    promised_receives: bool,
    /// One promise less is enough.
    a_promise: bool,
}

/// A request under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sent {
    Word { pos: u8, receives: bool },
    Take { pos: u8, words: Vec<(u8, u8)> },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Standby {
    pos: u8,
    receives: bool,
    promised: bool,
    /// In the page and beside the data.
    spoken: bool,
    /// A word that was decided on and is not said yet.
    intends: bool,
    sent: Vec<Sent>,
    awaits: bool,
    restarted: bool,
}

impl Standby {
    fn takes(&self) -> bool {
        self.awaits && matches!(self.sent.last(), Some(Sent::Take { .. }))
    }
}

/// A word in etcd: position, whether its member goes on receiving, revision.
type Word = (u8, bool, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Small {
    wal: u8,
    acked: u8,
    alive: bool,
    /// The leader's deadline by its lease is not over; its key is there.
    lease: bool,
    key: bool,
    /// The leader goes on by promises.
    counts: bool,
    revision: u8,
    words: Vec<Option<Word>>,
    taken: Option<(u8, u8)>,
    opened: bool,
    standbys: Vec<Standby>,
}

impl Small {
    /// Of revisions it matters only which are the same: they are numbered from 1 in every world.
    fn number_anew(&mut self) {
        let mut all: Vec<&mut u8> = vec![&mut self.revision];
        all.extend(self.words.iter_mut().flatten().map(|(_, _, revision)| revision));
        for standby in &mut self.standbys {
            for sent in &mut standby.sent {
                if let Sent::Take { words, .. } = sent {
                    all.extend(words.iter_mut().map(|(_, revision)| revision));
                }
            }
        }
        let used: BTreeSet<u8> = all.iter().map(|revision| **revision).collect();
        for revision in all {
            *revision = used.iter().position(|known| known == revision).unwrap() as u8 + 1;
        }
    }

    fn leader_is_open(&self) -> bool {
        self.alive && (self.lease || self.counts)
    }
}

struct Rules {
    voters: usize,
    awaited: usize,
    wal: u8,
    restarts: bool,
    /// So many requests of one voter that nobody waits for may come late.
    late: usize,
    without: Without,
    known: RefCell<HashMap<Question, RaceStep>>,
}

/// What a decision depends on.
type Question = (usize, Vec<Option<Word>>, u8, bool);

type Add<'a> = dyn FnMut(&dyn Fn(&mut Small)) + 'a;

impl Rules {
    fn begin(&self) -> Small {
        Small {
            wal: 0,
            acked: 0,
            alive: true,
            lease: true,
            key: true,
            counts: false,
            revision: 1,
            words: vec![None; self.voters],
            taken: None,
            opened: false,
            standbys: vec![Standby { receives: true, ..Standby::default() }; self.voters],
        }
    }

    fn names(&self) -> BTreeSet<cluster::name::MemberName> {
        (0..self.voters).map(of).collect()
    }

    fn key(&self) -> SyncState {
        Trust::under(&Setting::of(Method::Any, self.awaited, self.names())).key(&name("n1"), &SyncState::default())
    }

    /// The vacancy as etcd has it.
    fn view(&self, words: &[Option<Word>]) -> ClusterView {
        let mut view = vacancy();
        view.config = config(json!({"synchronous_mode": "quorum", "failsafe_mode": true}));
        view.sync = versioned(self.key());
        let address = |name: &cluster::name::MemberName| (name.to_string(), format!("http://{name}:8008/patroni"));
        view.failsafe = versioned(self.names().iter().chain([&name("n1")]).map(address).collect());
        view.status = status(Lsn(0));
        for (at, said) in words.iter().enumerate() {
            view.members.insert(of(at), member(of(at).as_str(), MemberRole::Replica, 1, Lsn(0)));
            let Some((pos, receives, revision)) = *said else { continue };
            let mut value = word(1, Lsn(u64::from(pos))).value;
            (value.receives, value.stands) = (receives, !receives);
            view.announcements.insert(of(at), Versioned { value, revision: i64::from(revision) });
        }
        view
    }

    /// All that may come next.
    fn next(&self, small: &Small) -> Vec<Small> {
        let mut all = Vec::new();
        let mut add = |change: &dyn Fn(&mut Small)| {
            let mut after = small.clone();
            change(&mut after);
            if after != *small {
                all.push(after);
            }
        };
        if small.alive && small.wal < self.wal {
            add(&|s| s.wal += 1);
        }
        let confirmed = small.standbys.iter().filter(|standby| standby.pos > small.acked).count();
        if small.leader_is_open() && small.acked < small.wal && confirmed >= self.awaited {
            add(&|s| s.acked += 1);
        }
        // The leader's time ends before what it counts by: its lease, and each promise.
        add(&|s| s.lease = false);
        if !small.lease {
            add(&|s| s.key = false);
        }
        let promises = small.standbys.iter().filter(|standby| standby.promised).count();
        if small.alive && promises + usize::from(self.without.a_promise) >= self.voters {
            add(&|s| s.counts = true);
        }
        add(&|s| s.counts = false);
        add(&|s| (s.alive, s.lease, s.counts) = (false, false, false));
        for at in 0..self.voters {
            self.standby(small, at, &mut add);
        }
        all
    }

    fn standby(&self, small: &Small, at: usize, add: &mut Add<'_>) {
        let (me, without) = (&small.standbys[at], &self.without);
        let took = small.taken.is_some_and(|(who, _)| who as usize == at);
        if me.receives && small.alive && me.pos < small.wal {
            add(&|s| s.standbys[at].pos = s.wal);
        }
        if !me.receives && !took {
            // The startup process tries again.
            add(&|s| s.standbys[at].receives = true);
        }
        let has_a_word = me.spoken && !without.word_before_promise;
        if small.alive && !(took && small.opened || me.takes() || has_a_word) {
            add(&|s| s.standbys[at].promised = true);
        }
        if !small.counts || without.a_promise {
            add(&|s| s.standbys[at].promised = false);
        }
        if self.restarts && !me.restarted && !took {
            add(&|s| {
                let me = &mut s.standbys[at];
                (me.restarted, me.receives, me.awaits, me.intends) = (true, false, false, false);
                me.spoken &= !without.memory;
            });
        }
        if me.spoken && (self.sees_the_end(small, at, took && small.opened) || without.end_of_vacancy) {
            add(&|s| s.standbys[at].spoken = false);
        }
        if took && !small.opened && !me.promised {
            add(&|s| s.opened = true);
        }
        self.requests(small, at, add);
        if !small.key && small.taken.is_none() && !me.awaits {
            if me.intends {
                self.say(small, at, add);
            } else {
                self.decide(small, at, add);
            }
        }
    }

    /// The rule that ships: is the vacancy over for this member?
    fn sees_the_end(&self, small: &Small, at: usize, opened: bool) -> bool {
        let taken = small.taken.map(|(who, _)| Leader { name: of(who as usize), ..leader("n1").unwrap() });
        let view = ClusterView { leader: taken, ..ClusterView::default() };
        failsafe::is_over(&view, Spoken { after: AFTER }, &of(at), opened)
    }

    /// What was decided on: kept, then the receiver is ended, then the position is read.
    fn say(&self, small: &Small, at: usize, add: &mut Add<'_>) {
        if small.standbys[at].promised && !self.without.promise_before_word {
            return add(&|s| s.standbys[at].intends = false);
        }
        add(&|s| {
            let me = &mut s.standbys[at];
            (me.intends, me.spoken, me.receives) = (false, true, false);
            let pos = me.pos;
            self.send(me, Sent::Word { pos, receives: false });
        });
    }

    fn send(&self, me: &mut Standby, sent: Sent) {
        // Of the requests that nobody waits for, so many may be late.
        if me.sent.len() == self.late + 1 {
            me.sent.remove(0);
        }
        me.sent.push(sent);
        me.awaits = true;
    }

    /// A request arrives: its answer is heard or not, and what was not heard may be carried out later.
    fn requests(&self, small: &Small, at: usize, add: &mut Add<'_>) {
        let me = &small.standbys[at];
        for (index, sent) in me.sent.iter().enumerate() {
            let last = me.awaits && index + 1 == me.sent.len();
            add(&|s| {
                match sent {
                    Sent::Word { pos, receives } => {
                        s.revision += 1;
                        s.words[at] = Some((*pos, *receives, s.revision));
                    }
                    Sent::Take { pos, words } => {
                        let same = |(who, revision): &(u8, u8)| s.words[*who as usize].is_some_and(|(_, _, now)| now == *revision);
                        if s.taken.is_none() && words.iter().all(same) {
                            s.taken = Some((at as u8, *pos));
                        }
                    }
                }
                s.standbys[at].sent.remove(index);
                s.standbys[at].awaits &= !last;
            });
        }
        if me.awaits {
            // No answer: it may be carried out later.
            add(&|s| s.standbys[at].awaits = false);
        }
    }

    fn decide(&self, small: &Small, at: usize, add: &mut Add<'_>) {
        let me = &small.standbys[at];
        let mut known = self.known.borrow_mut();
        let step = known.entry((at, small.words.clone(), me.pos, me.promised)).or_insert_with(|| {
            let racer = Candidate { lsn: Lsn(u64::from(me.pos)), promised: me.promised, ..candidate(of(at).as_str(), 1, Lsn(0)) };
            race::decide(&self.view(&small.words), &racer).what
        });
        let step = step.clone();
        drop(known);
        match step {
            RaceStep::Announce(word) => {
                let keeps = failsafe::keeps_word(&self.view(&small.words), &word);
                assert_eq!(keeps, !word.receives, "{word:?}");
                if word.receives && !self.without.promised_receives {
                    add(&|s| {
                        let pos = s.standbys[at].pos;
                        self.send(&mut s.standbys[at], Sent::Word { pos, receives: true });
                    });
                } else if word.receives {
                    add(&|s| {
                        let pos = s.standbys[at].pos;
                        self.send(&mut s.standbys[at], Sent::Word { pos, receives: false });
                    });
                } else {
                    add(&|s| s.standbys[at].intends = true);
                }
            }
            RaceStep::Take(judged) if !me.promised => add(&|s| {
                let words = judged.announcements.iter().map(|(who, revision)| (number(who.as_str()), *revision as u8)).collect();
                // Received more since: it says so first.
                if judged.position.is_some_and(|(_, lsn)| lsn.0 == u64::from(s.standbys[at].pos)) {
                    let pos = s.standbys[at].pos;
                    self.send(&mut s.standbys[at], Sent::Take { pos, words });
                }
            }),
            RaceStep::Take(_) | RaceStep::Rest | RaceStep::Wait(_) => {}
            other => panic!("there is a vacancy: {other:?}"),
        }
    }

    /// Every world that can come to be. Gives how many there are, and in how many somebody leads or the old leader goes on by promises; or how an acknowledged
    /// commit is lost.
    fn explore(&self) -> Result<(usize, usize, usize), String> {
        let mut seen = HashSet::new();
        let mut open = vec![self.begin()];
        let (mut leads, mut goes_on) = (0, 0);
        while let Some(small) = open.pop() {
            if let Some((at, pos)) = small.taken.filter(|_| small.opened) {
                if small.acked > pos {
                    return Err(format!("{} leads with {pos}, and {} is acknowledged: {small:?}", of(at as usize), small.acked));
                }
                leads += 1;
            }
            goes_on += usize::from(small.counts && !small.key);
            for mut next in self.next(&small) {
                next.number_anew();
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        Ok((seen.len(), leads, goes_on))
    }
}

fn of(at: usize) -> cluster::name::MemberName {
    name(&format!("n{}", at + 2))
}

fn number(who: &str) -> u8 {
    who[1..].parse::<u8>().unwrap() - 2
}

fn rules(voters: usize, awaited: usize) -> Rules {
    Rules { voters, awaited, wal: 1, restarts: false, late: 0, without: Without::default(), known: RefCell::default() }
}

#[test]
fn in_a_small_world_of_promises_no_acknowledged_commit_is_lost() {
    let (worlds, leads, goes_on) = rules(2, 1).explore().unwrap();
    assert!(worlds > 500 && leads > 50 && goes_on > 50, "{worlds} worlds, {leads} with a leader, {goes_on} by promises");
}

// Whole worlds take minutes without optimization: `cargo test --release -p tenure-cluster --test promises`.
#[cfg(not(debug_assertions))]
#[test]
fn nor_in_a_greater_one() {
    for (what, rules) in [
        ("late requests", Rules { late: 1, ..rules(2, 1) }),
        ("restarts", Rules { restarts: true, ..rules(2, 1) }),
        ("two commits", Rules { wal: 2, ..rules(2, 1) }),
    ] {
        let began = std::time::Instant::now();
        let (worlds, leads, goes_on) = rules.explore().unwrap();
        eprintln!("{what}: {worlds} worlds, {leads} with a leader, {goes_on} by promises, {} ms", began.elapsed().as_millis());
        assert!(worlds > 1000 && leads > 100 && goes_on > 100);
    }
}

#[cfg(not(debug_assertions))]
#[test]
fn without_any_one_guard_one_is_lost() {
    let whole = Without::default();
    for (what, without) in [
        ("word_before_promise", Without { word_before_promise: true, ..whole }),
        ("promise_before_word", Without { promise_before_word: true, ..whole }),
        ("memory", Without { memory: true, ..whole }),
        ("end_of_vacancy", Without { end_of_vacancy: true, ..whole }),
        ("promised_receives", Without { promised_receives: true, ..whole }),
        ("a_promise", Without { a_promise: true, ..whole }),
    ] {
        match (Rules { without, restarts: what == "memory", ..rules(2, 1) }).explore() {
            Err(how) => eprintln!("without {what}: {how}"),
            Ok((worlds, ..)) => panic!("nothing is lost without {what} in {worlds} worlds: is it needed?"),
        }
    }
}
