//! Every order of commit, confirmation, loss, word, take, change of the sync key and return of the leader, with requests that arrive late or
//! are heard of by nobody; and the same worlds with each guard taken out, which must break.

use super::*;

/// Takes each change that may happen next.
type Add<'a> = dyn FnMut(&dyn Fn(&mut Small)) + 'a;

/// What a world may leave out, to show that it is needed.
#[derive(Debug, Clone, Copy, Default)]
struct Without {
    /// A word is written whatever this node's own word has become.
    own_word: bool,
    /// It is called off whichever server leads by then.
    leader_at_call_off: bool,
    /// A server that sees that the term is over may receive from anybody.
    bond_beyond_term: bool,
    /// The key is taken whatever `sync` has become.
    sync_at_take: bool,
    /// The key is taken whatever the words have become.
    words_at_take: bool,
    /// The position is read before the receiver has ended.
    stop_before_word: bool,
    /// One vote less is enough.
    a_vote: bool,
    /// The bond goes with the server.
    memory: bool,
}

/// A request under way.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Sent {
    Depose { pos: u8, term: u8, mine: u8, stands: bool },
    CallOff { term: u8, mine: u8 },
    Take { pos: u8, term: u8, sync: u8, words: Vec<(u8, u8)> },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Standby {
    pos: u8,
    receives: bool,
    /// The last confirmation sent, and the last that arrived.
    confirms: u8,
    arrived: u8,
    lost: bool,
    bond: Option<u8>,
    called_off: bool,
    /// Requests that may be carried out yet; only the last one's answer can still be heard.
    sent: Vec<Sent>,
    awaits: bool,
    restarted: bool,
    returned: bool,
}

/// A word in etcd: the term, the position and whether it stands (None: called off), and its revision.
type Word = (Option<(u8, u8, bool)>, u8);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Small {
    wal: u8,
    acked: u8,
    /// Not in the key yet; not in the setting.
    key_dropped: Option<u8>,
    setting_dropped: Option<u8>,
    sync_revision: u8,
    revision: u8,
    term: u8,
    moved: bool,
    /// Who took, with how much.
    taken: Option<(u8, u8)>,
    words: Vec<Option<Word>>,
    standbys: Vec<Standby>,
}

impl Small {
    /// Of revisions it matters only which are the same: they are numbered from 1 in every world.
    fn number_anew(&mut self) {
        let mut all: Vec<&mut u8> = vec![&mut self.sync_revision, &mut self.term, &mut self.revision];
        all.extend(
            self.words.iter_mut().flatten().flat_map(|(said, revision)| [said.as_mut().map(|(term, ..)| term), Some(revision)]).flatten(),
        );
        for standby in &mut self.standbys {
            all.extend(standby.bond.as_mut());
            for sent in &mut standby.sent {
                match sent {
                    Sent::Depose { term, mine, .. } | Sent::CallOff { term, mine } => all.extend([term, mine]),
                    Sent::Take { term, sync, words, .. } => {
                        all.extend([term, sync]);
                        all.extend(words.iter_mut().map(|(_, revision)| revision));
                    }
                }
            }
        }
        let used: BTreeSet<u8> = all.iter().map(|revision| **revision).filter(|revision| *revision != 0).collect();
        for revision in all.into_iter().filter(|revision| **revision != 0) {
            *revision = used.iter().position(|known| known == revision).unwrap() as u8 + 1;
        }
    }
}

/// What a decision depends on.
type Question = (usize, Vec<Option<Word>>, (u8, u8, Option<u8>, u8), u8, bool, Option<u8>, bool);

struct Rules {
    voters: usize,
    awaited: usize,
    wal: u8,
    /// The last voter joins while this goes on.
    adds: bool,
    moves: bool,
    /// Who hears the leader again, and whose server is restarted.
    returns: &'static [usize],
    restarts: &'static [usize],
    /// So many requests of one voter that nobody waits for may come late.
    late: usize,
    without: Without,
    known: RefCell<HashMap<Question, RaceStep>>,
}

impl Rules {
    fn begin(&self) -> Small {
        Small {
            wal: 0,
            acked: 0,
            key_dropped: self.adds.then_some(self.voters as u8 - 1),
            setting_dropped: self.adds.then_some(self.voters as u8 - 1),
            sync_revision: 1,
            revision: 10,
            term: 10,
            moved: false,
            taken: None,
            words: vec![None; self.voters],
            standbys: vec![Standby { receives: true, ..Standby::default() }; self.voters],
        }
    }

    fn setting(&self, dropped: Option<u8>) -> Setting {
        let names: BTreeSet<_> = (0..self.voters).filter(|at| dropped != Some(*at as u8)).map(of).collect();
        Setting::of(Method::Any, self.awaited, names)
    }

    fn key(&self, dropped: Option<u8>) -> SyncState {
        Trust::under(&self.setting(dropped)).key(&name("n1"), &SyncState::default())
    }

    /// Who leads, and nothing else.
    fn leads(&self, small: &Small) -> ClusterView {
        let who = small.taken.map_or(name("n1"), |(at, _)| of(at as usize));
        let leader = cluster::leader::Leader { name: who, term: Term(i64::from(small.term)), ..leader("n1").unwrap() };
        ClusterView { leader: Some(leader), ..ClusterView::default() }
    }

    fn view(&self, small: &Small) -> ClusterView {
        let mut view = led("n1");
        let term = Term(i64::from(small.term));
        view.config = world::config(quorum_on());
        view.members.insert(name("n1"), member("n1", MemberRole::Primary, 1, Lsn(0)));
        let who = small.taken.map_or(name("n1"), |(at, _)| of(at as usize));
        view.leader = Some(cluster::leader::Leader { name: who.clone(), term, ..leader("n1").unwrap() });
        view.last_term = Some(Versioned { value: LastTerm { holder: who, how: String::new() }, revision: term.0 });
        let mut key = self.key(small.key_dropped);
        if self.without.a_vote {
            key.quorum = key.quorum.saturating_sub(1);
        }
        view.sync = Some(Versioned { value: key, revision: i64::from(small.sync_revision) });
        // The leader reaches etcd, and tells what was confirmed as soon as it acknowledges it.
        let mut status = Status::default();
        let confirmed = (small.acked > 0).then(|| End { timeline: Timeline(1), lsn: Lsn(u64::from(small.acked)) });
        Reached { confirmed, ..Reached::default() }.put_into(&mut status);
        view.status = Some(Versioned { value: status, revision: 1 });
        for (at, said) in small.words.iter().enumerate() {
            view.members.insert(of(at), member(of(at).as_str(), MemberRole::Replica, 1, Lsn(0)));
            let Some((said, revision)) = said else { continue };
            let base = word(1, Lsn(0)).value;
            let value = match said {
                Some((term, pos, stands)) => {
                    let (after, lsn) = (Term(i64::from(*term)), Lsn(u64::from(*pos)));
                    Announcement { after, deposes: true, stands: *stands, lsn, ..base }
                }
                None => Announcement { after: Term(0), stands: false, ..base },
            };
            view.announcements.insert(of(at), Versioned { value, revision: i64::from(*revision) });
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
        if small.wal < self.wal {
            add(&|s| s.wal += 1);
        }
        let setting = self.setting(small.setting_dropped);
        let has = |at: &usize| small.standbys[*at].arrived > small.acked && setting.names.contains(&of(*at));
        if small.acked < small.wal && (0..self.voters).filter(has).count() >= setting.count {
            // The leader's fence is open all the time: nothing here rests on a deadline.
            add(&|s| s.acked += 1);
        }
        if small.key_dropped.is_some() && small.taken.is_none() {
            // The leader's write compares its own key: it is refused once another leads.
            add(&|s| {
                s.key_dropped = None;
                s.revision += 1;
                s.sync_revision = s.revision;
            });
        }
        if small.key_dropped.is_none() && small.setting_dropped.is_some() {
            add(&|s| s.setting_dropped = None);
        }
        if self.moves && !small.moved && small.taken.is_none() {
            // The leader's key goes onto another lease: another term of the same leader.
            add(&|s| {
                s.revision += 1;
                (s.term, s.moved) = (s.revision, true);
            });
        }
        for at in 0..self.voters {
            let me = &small.standbys[at];
            if me.receives && me.pos < small.wal {
                add(&|s| {
                    s.standbys[at].pos = s.wal;
                    s.standbys[at].confirms = s.wal;
                });
            }
            if me.arrived < me.confirms {
                add(&|s| s.standbys[at].arrived = s.standbys[at].confirms);
            }
            if !me.lost && !me.called_off {
                add(&|s| s.standbys[at].lost = true);
            }
            if self.returns.contains(&at) && me.lost && !me.returned {
                add(&|s| (s.standbys[at].lost, s.standbys[at].returned) = (false, true));
            }
            let took = small.taken.is_some_and(|(who, _)| who as usize == at);
            let bound = me.bond.is_some_and(|term| {
                let bond = Bond { term: Term(i64::from(term)), leader: name("n1"), timeline: Timeline(1) };
                let over = self.without.bond_beyond_term && small.term != term;
                deposition::binds(&bond, &self.leads(small), Timeline(1)) && !over
            });
            if !me.receives && !bound && !took {
                // The startup process tries again, whichever server leads by now.
                add(&|s| {
                    s.standbys[at].receives = true;
                    s.standbys[at].bond = None;
                });
            }
            if self.restarts.contains(&at) && !me.restarted && !took {
                add(&|s| {
                    let me = &mut s.standbys[at];
                    (me.restarted, me.receives, me.awaits) = (true, false, false);
                    if self.without.memory {
                        me.bond = None;
                    }
                });
            }
            self.requests(small, at, &mut add);
            if small.taken.is_none() && !me.awaits {
                self.decide(small, at, bound, &mut add);
            }
        }
        all
    }

    /// A request arrives: its answer is heard or not, and what was not heard may be carried out again.
    fn requests(&self, small: &Small, at: usize, add: &mut Add<'_>) {
        for (index, sent) in small.standbys[at].sent.iter().enumerate() {
            let last = small.standbys[at].awaits && index + 1 == small.standbys[at].sent.len();
            add(&|s| {
                let done = self.carry_out(s, at, sent);
                let me = &mut s.standbys[at];
                me.sent.remove(index);
                if last {
                    me.awaits = false;
                    if done && matches!(sent, Sent::CallOff { .. }) {
                        (me.bond, me.called_off) = (None, true);
                    }
                }
            });
        }
        if small.standbys[at].awaits {
            // No answer: it may be carried out later.
            add(&|s| s.standbys[at].awaits = false);
        }
    }

    fn carry_out(&self, small: &mut Small, at: usize, sent: &Sent) -> bool {
        let without = &self.without;
        let mine = |small: &Small| small.words[at].map_or(0, |(_, revision)| revision);
        let leads = |small: &Small, term: u8| small.term == term && small.taken.is_none();
        match sent {
            Sent::Depose { pos, term, mine: judged, stands } => {
                let may = leads(small, *term) && (without.own_word || mine(small) == *judged);
                if may {
                    small.revision += 1;
                    small.words[at] = Some((Some((*term, *pos, *stands)), small.revision));
                }
                may
            }
            Sent::CallOff { term, mine: judged } => {
                let may = (without.leader_at_call_off || leads(small, *term)) && (without.own_word || mine(small) == *judged);
                if may {
                    small.revision += 1;
                    small.words[at] = Some((None, small.revision));
                }
                may
            }
            Sent::Take { pos, term, sync, words } => {
                let same = |(who, revision): &(u8, u8)| small.words[*who as usize].is_some_and(|(_, now)| now == *revision);
                let may = leads(small, *term)
                    && (without.sync_at_take || small.sync_revision == *sync)
                    && (without.words_at_take || words.iter().all(same));
                if may {
                    small.revision += 1;
                    (small.term, small.taken) = (small.revision, Some((at as u8, *pos)));
                }
                may
            }
        }
    }

    /// The rule that ships.
    fn ask(&self, small: &Small, at: usize, bond: Option<u8>) -> RaceStep {
        let me = &small.standbys[at];
        let racer = Candidate {
            lsn: Lsn(u64::from(me.pos)),
            deposition: Knowledge {
                ears: if me.lost { Ears::Lost } else { Ears::Hears },
                bond: bond.map(|term| Bond { term: Term(i64::from(term)), leader: name("n1"), timeline: Timeline(1) }),
                bound_for: Duration::from_secs(60),
                rests: me.called_off,
            },
            ..candidate(of(at).as_str(), 1, Lsn(0))
        };
        race::decide(&self.view(small), &racer).what
    }

    fn decide(&self, small: &Small, at: usize, bound: bool, add: &mut Add<'_>) {
        let me = &small.standbys[at];
        let bond = me.bond.filter(|_| bound);
        let keys = (small.term, small.sync_revision, small.key_dropped, small.acked);
        let asked = (at, small.words.clone(), keys, me.pos, me.lost, bond, me.called_off);
        let mut known = self.known.borrow_mut();
        let step = known.entry(asked).or_insert_with(|| self.ask(small, at, bond)).clone();
        drop(known);
        let send = |s: &mut Small, sent: Sent| {
            let me = &mut s.standbys[at];
            // Of the requests that nobody waits for, one is enough to be late.
            if me.sent.len() == self.late + 1 {
                me.sent.remove(0);
            }
            me.sent.push(sent);
            me.awaits = true;
        };
        let guards = |guarded: &Guarded| (guarded.leader.0 as u8, guarded.mine as u8);
        match step {
            RaceStep::Depose(guarded) => add(&|s| {
                let (term, mine) = guards(&guarded);
                let me = &mut s.standbys[at];
                me.bond = Some(term);
                me.receives &= self.without.stop_before_word;
                let pos = me.pos;
                send(s, Sent::Depose { pos, term, mine, stands: guarded.word.stands });
            }),
            RaceStep::CallOff(guarded) => add(&|s| {
                let (term, mine) = guards(&guarded);
                send(s, Sent::CallOff { term, mine });
            }),
            RaceStep::Take(Judged { after, sync, announcements, position, .. }) => add(&|s| {
                let words = announcements.iter().map(|(who, revision)| (number(who.as_str()), *revision as u8)).collect();
                let pos = position.unwrap().1.0 as u8;
                send(s, Sent::Take { pos, term: after.0 as u8, sync: sync as u8, words });
            }),
            RaceStep::Rest | RaceStep::Wait(_) | RaceStep::Tell(_) => {}
            RaceStep::Announce(word) => panic!("there is no vacancy: {word:?}"),
        }
    }

    /// Every world that can come to be. Gives how many there are and how many takes they saw; or how an acknowledged commit is lost.
    fn explore(&self) -> Result<(usize, usize), String> {
        let mut seen = HashSet::new();
        let mut open = vec![self.begin()];
        let mut takes = 0;
        while let Some(small) = open.pop() {
            if let Some((at, pos)) = small.taken
                && small.acked > pos
            {
                return Err(format!("{} leads with {pos}, and {} is acknowledged: {small:?}", of(at as usize), small.acked));
            }
            takes += usize::from(small.taken.is_some());
            for mut next in self.next(&small) {
                next.number_anew();
                if seen.insert(next.clone()) {
                    open.push(next);
                }
            }
        }
        Ok((seen.len(), takes))
    }
}

fn of(at: usize) -> cluster::name::MemberName {
    name(&format!("n{}", at + 2))
}

fn number(who: &str) -> u8 {
    who[1..].parse::<u8>().unwrap() - 2
}

fn rules(voters: usize, awaited: usize) -> Rules {
    Rules {
        voters,
        awaited,
        wal: 2,
        adds: false,
        moves: false,
        returns: &[0],
        restarts: &[],
        late: 1,
        without: Without::default(),
        known: RefCell::default(),
    }
}

#[test]
fn in_a_very_small_world_no_acknowledged_commit_is_lost() {
    let (worlds, takes) = Rules { wal: 1, late: 0, ..rules(2, 1) }.explore().unwrap();
    assert!(worlds > 500 && takes > 50, "{worlds} worlds, {takes} takes");
}

// Whole worlds take minutes without optimization: `cargo test --release -p tenure-cluster --test deposition`.
#[cfg(not(debug_assertions))]
#[test]
fn in_no_small_world_of_three_is_an_acknowledged_commit_lost() {
    let three = |awaited| Rules { wal: 1, ..rules(2, awaited) };
    for awaited in [1, 2] {
        for (what, rules) in [
            ("n2 hears it again", three(awaited)),
            ("n3 does", Rules { returns: &[1], ..three(awaited) }),
            ("n2 is restarted", Rules { returns: &[], restarts: &[0], ..three(awaited) }),
            ("n3 is restarted, and hears it again", Rules { returns: &[1], restarts: &[1], late: 0, ..three(awaited) }),
            ("n3 joins", Rules { returns: &[], adds: true, ..three(1) }),
            ("the leader's key moves", Rules { moves: true, late: 0, ..three(awaited) }),
        ] {
            let began = std::time::Instant::now();
            let (worlds, takes) = rules.explore().unwrap();
            eprintln!("2 voters, {awaited} awaited, {what}: {worlds} worlds, {takes} with a take, {} ms", began.elapsed().as_millis());
            assert!(worlds > 500 && takes > 100, "{worlds} worlds, {takes} takes");
        }
    }
}

#[cfg(not(debug_assertions))]
#[test]
fn nor_in_one_of_five() {
    for awaited in [1, 2] {
        let rules = Rules { wal: 1, returns: &[], restarts: &[], late: 0, ..rules(4, awaited) };
        let (worlds, takes) = rules.explore().unwrap();
        eprintln!("4 voters, {awaited} awaited: {worlds} worlds, {takes} with a take");
        assert!(worlds > 1000 && takes > 100, "{worlds} worlds, {takes} takes");
    }
}

#[cfg(not(debug_assertions))]
#[test]
fn without_any_one_guard_one_is_lost() {
    let whole = Without::default();
    for (what, without) in [
        ("own_word", Without { own_word: true, ..whole }),
        ("leader_at_call_off", Without { leader_at_call_off: true, ..whole }),
        ("bond_beyond_term", Without { bond_beyond_term: true, ..whole }),
        ("sync_at_take", Without { sync_at_take: true, ..whole }),
        ("words_at_take", Without { words_at_take: true, ..whole }),
        ("stop_before_word", Without { stop_before_word: true, ..whole }),
        ("a_vote", Without { a_vote: true, ..whole }),
        ("memory", Without { memory: true, ..whole }),
    ] {
        let base = Rules { wal: 1, without, returns: &[1], ..rules(2, 1) };
        let rules = match what {
            "sync_at_take" => Rules { adds: true, returns: &[], ..base },
            "memory" => Rules { restarts: &[0], returns: &[], late: 0, ..base },
            _ => base,
        };
        let lost = rules.explore();
        match lost {
            Err(how) => eprintln!("without {what}: {how}"),
            Ok((worlds, _)) => panic!("nothing is lost without {what} in {worlds} worlds: is it needed?"),
        }
    }
}
