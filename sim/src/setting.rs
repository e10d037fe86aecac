//! How a run is made up: what its caller asks for, and what the seed draws from that.

use crate::random::Random;

/// A schedule that brings about one kind of event far more often than a mixed one does: for guards whose window is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Focus {
    /// The TTL changes, and etcd's answers are lost while the keys move.
    Moves,
    /// `failsafe_mode`: etcd away or out of reach, nodes and arbiters that come and go.
    Promises,
    /// Quorum mode: voters that come and go.
    Votes,
    /// Synchronous modes, and copies of nodes.
    Copies,
}

impl Focus {
    /// By its name on the command line.
    pub fn of(word: &str) -> Option<Focus> {
        let all = [("moves", Focus::Moves), ("promises", Focus::Promises), ("votes", Focus::Votes), ("copies", Focus::Copies)];
        all.into_iter().find_map(|(name, focus)| (name == word).then_some(focus))
    }

    /// What becomes of a run's setting.
    fn set(self, setting: Setting) -> Setting {
        match self {
            // A standby that stands confirms nothing more: without synchronous standbys only the fence is left.
            Focus::Moves => Setting { sync: false, quorum: false, bad_clocks: false, forgets: false, copies: false, ..setting },
            Focus::Promises => Setting { failsafe: true, forgets: false, copies: false, ..setting },
            Focus::Votes => Setting {
                nodes: setting.nodes.max(3),
                sync: true,
                quorum: true,
                bad_clocks: false,
                forgets: false,
                copies: false,
                ..setting
            },
            Focus::Copies => Setting { sync: true, bad_clocks: false, forgets: false, copies: true, ..setting },
        }
    }

    /// The faults that are drawn, by their numbers in the schedule.
    pub(crate) fn faults(self) -> &'static [usize] {
        match self {
            Focus::Moves => &[22],
            Focus::Promises => &[0, 7, 10, 12, 13, 16, 16, 19, 22, 23],
            Focus::Votes => &[0, 5, 5, 10, 10, 12, 14, 16, 23],
            Focus::Copies => &[0, 5, 10, 10, 12, 13, 23],
        }
    }
}

/// How a run is made up: all of it follows from the seed.
#[derive(Debug, Clone)]
pub struct Options {
    /// Everything random comes from it.
    pub seed: u64,
    /// Faults in the schedule.
    pub steps: u64,
    /// Tells each decision and event as it happens.
    pub verbose: bool,
    /// etcd is restored from backups and emptied at times, in four of ten runs.
    pub forgets: bool,
    /// A host with a copy of a node's disk and file is started at times, in four of ten runs.
    pub copies: bool,
    /// `deposition` is on, in seven of ten synchronous runs.
    pub deposes: bool,
    /// What the schedule is about, where it is about one thing.
    pub focus: Option<Focus>,
    /// Operators wish for something at times, in seven of ten runs.
    pub wishes: bool,
    /// No node has data when the run begins, in four of ten runs without the stores and copies above.
    pub founds: bool,
    /// Processes of servers crash at times, and their postmasters live on, in seven of ten runs.
    pub crashes: bool,
}

/// What is chosen for one run.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub nodes: usize,
    pub sync: bool,
    /// Of the synchronous runs: `synchronous_mode: quorum`.
    pub quorum: bool,
    pub ttl: u64,
    pub start_timeout: u64,
    /// etcd lets go at the very moment it may, not at the next half second.
    pub sharp: bool,
    /// Clocks may stand still, beyond what the fence promises to bear.
    pub bad_clocks: bool,
    /// `failsafe_mode`.
    pub failsafe: bool,
    /// etcd is restored from backups and emptied at times.
    pub forgets: bool,
    /// There is one host more than nodes, which gets copies of their disks.
    pub copies: bool,
    /// `deposition`.
    pub deposes: bool,
    /// Faults of these numbers only.
    pub focus: Option<Focus>,
    /// Operators wish for something at times.
    pub wishes: bool,
    /// The cluster is founded in the run.
    pub founds: bool,
    /// Processes of servers crash at times, and their postmasters live on.
    pub crashes: bool,
}

impl Setting {
    /// What this seed chooses.
    pub fn drawn(options: &Options, random: &Random) -> Setting {
        let setting = Setting {
            nodes: [3, 3, 3, 3, 2, 4, 5][random.index(7)],
            sync: random.per_mille(550),
            quorum: Random::new(options.seed ^ 0x5155_4f52_554d).per_mille(500),
            ttl: [3, 5, 10, 10, 30][random.index(5)],
            start_timeout: [3, 10, 300][random.index(3)],
            sharp: random.per_mille(400),
            bad_clocks: random.per_mille(300),
            // Drawn apart, so that a seed's other choices stay what they were before there was this one.
            failsafe: Random::new(!options.seed).per_mille(400),
            deposes: options.deposes && Random::new(options.seed ^ 0x4445_504f_5345).per_mille(700),
            wishes: options.wishes && Random::new(options.seed ^ 0x5749_5348).per_mille(700),
            forgets: options.forgets && Random::new(options.seed ^ 0x464f_5247_4554).per_mille(400),
            copies: options.copies && Random::new(options.seed ^ 0x434f_5049_4553).per_mille(400),
            founds: options.founds && Random::new(options.seed ^ 0x464f_554e_4453).per_mille(400),
            crashes: options.crashes && Random::new(options.seed ^ 0x43_5241_5348).per_mille(700),
            focus: options.focus,
        };
        let bad_clocks = setting.bad_clocks && setting.sync;
        // Under a clock that stands still a quorum is not safe: a standby receives again after its word (docs/simulation.md).
        let setting = Setting {
            bad_clocks,
            quorum: setting.quorum && setting.sync && !bad_clocks,
            deposes: setting.deposes && setting.sync,
            // A backup would bring maintenance mode back, and nobody ends that.
            wishes: setting.wishes && !setting.forgets,
            // A store that went back to before the founding, or a copy of nothing, would be a second system.
            founds: setting.founds && !setting.forgets && !setting.copies,
            ..setting
        };
        options.focus.map_or(setting.clone(), |focus| focus.set(setting))
    }
}
