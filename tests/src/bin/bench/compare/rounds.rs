//! Who is compared, what befalls each of them, and in which order: the plan of one comparison.

use std::fmt;

/// Who manages a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manager {
    /// This product.
    PgTenure,
    /// Patroni.
    Patroni,
    /// pg_auto_failover, which has a monitor in place of etcd.
    AutoFailover,
}

use Manager::{AutoFailover, Patroni, PgTenure};

/// One cluster manager in one setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Contender {
    /// On the command line.
    pub key: &'static str,
    /// In tables.
    pub label: &'static str,
    /// Whose it is.
    pub manager: Manager,
    /// `ttl`, `loop_wait`, `retry_timeout`, in seconds; of pg_auto_failover, after what time a lost node is replaced, and how often it is looked at.
    pub timing: [u64; 3],
    /// `deposition: on`.
    pub deposition: bool,
}

/// With the lease of a default configuration.
pub const OURS: Contender =
    Contender { key: "ttl10", label: "pg_tenure, ttl 10", manager: PgTenure, timing: [10, 2, 2], deposition: false };
/// With the shortest lease.
pub const OURS_SHORT: Contender =
    Contender { key: "ttl3", label: "pg_tenure, ttl 3", manager: PgTenure, timing: [3, 1, 1], deposition: false };
/// Elections before the lease has run out; in quorum mode only.
pub const OURS_DEPOSING: Contender =
    Contender { key: "deposition", label: "pg_tenure, ttl 10, deposition", manager: PgTenure, timing: [10, 2, 2], deposition: true };
/// The least that Patroni accepts.
pub const PATRONI_FAST: Contender =
    Contender { key: "patroni-fast", label: "Patroni, fastest (20/1/3)", manager: Patroni, timing: [20, 1, 3], deposition: false };
/// What it does where nothing is said.
pub const PATRONI: Contender =
    Contender { key: "patroni", label: "Patroni, default (30/10/10)", manager: Patroni, timing: [30, 10, 10], deposition: false };

/// With the least that makes sense of what its manual says to set.
pub const AUTO_FAILOVER_FAST: Contender =
    Contender { key: "auto-failover-fast", label: "pg_auto_failover, fast", manager: AutoFailover, timing: [2, 1, 0], deposition: false };
/// What it does where nothing is said: unhealthy after 20 s, demoted after 30 s more.
pub const AUTO_FAILOVER: Contender =
    Contender { key: "auto-failover", label: "pg_auto_failover, default", manager: AutoFailover, timing: [50, 5, 0], deposition: false };

/// In the order of the tables.
pub const CONTENDERS: [Contender; 7] = [OURS, OURS_SHORT, OURS_DEPOSING, PATRONI_FAST, PATRONI, AUTO_FAILOVER_FAST, AUTO_FAILOVER];

/// What is done to a cluster of three that is whole, under a writer. In the order of the tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// Empty directories to three members.
    ColdStart,
    /// Planned, by the manager's own tool.
    Switchover,
    /// SIGKILL to the primary's postmaster alone.
    PostmasterKilled,
    /// SIGKILL to every process of the primary's node.
    NodeKilled,
    /// The same, and etcd's leader is on that host, one of three members.
    NodeKilledWithEtcdsLeader,
    /// SIGSTOP to every process of the primary's node, for its ttl and 15 s more.
    NodeFrozen,
    /// Whatever the primary's node sends or should receive is dropped in silence, for its ttl and 15 s more.
    NodeCut,
    /// SIGSTOP to the agent beside the primary, for its ttl and 20 s more; Postgres goes on.
    AgentFrozen,
    /// SIGKILL to etcd, which is started again 60 s later.
    EtcdStopped,
    /// The same with `failsafe_mode`.
    EtcdStoppedFailsafe,
    /// Nothing at all, without a writer, for half a minute: what does it cost?
    Idle,
}

use Event::{
    AgentFrozen, ColdStart, EtcdStopped, EtcdStoppedFailsafe, Idle, NodeCut, NodeFrozen, NodeKilled, NodeKilledWithEtcdsLeader,
    PostmasterKilled, Switchover,
};

/// Every event.
pub const EVENTS: [Event; 11] = [
    ColdStart,
    Switchover,
    PostmasterKilled,
    NodeKilled,
    NodeKilledWithEtcdsLeader,
    NodeFrozen,
    NodeCut,
    AgentFrozen,
    EtcdStopped,
    EtcdStoppedFailsafe,
    Idle,
];

/// How long [`Event::Idle`] is watched, in seconds.
pub const IDLE_S: u64 = 30;

impl Event {
    /// On the command line.
    pub fn key(self) -> &'static str {
        match self {
            ColdStart => "start",
            Switchover => "switchover",
            PostmasterKilled => "postmaster",
            NodeKilled => "node",
            NodeKilledWithEtcdsLeader => "etcd-leader",
            NodeFrozen => "frozen",
            NodeCut => "cut",
            AgentFrozen => "agent",
            EtcdStopped => "etcd",
            EtcdStoppedFailsafe => "failsafe",
            Idle => "idle",
        }
    }

    /// For how long it lasts under this `ttl`, in seconds; zero where it is over at once.
    pub fn lasts_s(self, ttl: u64) -> u64 {
        match self {
            ColdStart | Switchover | PostmasterKilled | NodeKilled | NodeKilledWithEtcdsLeader => 0,
            NodeFrozen | NodeCut => ttl + 15,
            AgentFrozen => ttl + 20,
            EtcdStopped | EtcdStoppedFailsafe => 60,
            Idle => IDLE_S,
        }
    }

    /// The leader is lost to the others, so that deposition has a say: it takes part once the cluster has been whole for a ttl.
    pub fn loses_the_leader(self) -> bool {
        self.ends_a_node() || matches!(self, NodeFrozen | NodeCut)
    }

    /// The cluster is not whole afterwards, so that nothing else can be done to it.
    pub fn ends_a_node(self) -> bool {
        matches!(self, NodeKilled | NodeKilledWithEtcdsLeader)
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ColdStart => "empty directories to three members",
            Switchover => "planned switchover",
            PostmasterKilled => "postmaster killed",
            NodeKilled => "node killed",
            NodeKilledWithEtcdsLeader => "node killed with etcd's leader",
            NodeFrozen => "node frozen",
            NodeCut => "node cut off in silence",
            AgentFrozen => "agent frozen, Postgres alive",
            EtcdStopped => "etcd stopped for 60 s",
            EtcdStoppedFailsafe => "etcd stopped for 60 s, failsafe_mode",
            Idle => "idle",
        })
    }
}

/// How the cluster is set up, and how clients come to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// `synchronous_mode: quorum`, else asynchronous.
    pub quorum: bool,
    /// The writer has one address, HAProxy's; else those of all servers.
    pub haproxy: bool,
}

/// Asynchronous, to all addresses.
pub const ASYNCHRONOUS: Setting = Setting { quorum: false, haproxy: false };
/// In quorum mode, to all addresses.
pub const QUORUM: Setting = Setting { quorum: true, haproxy: false };

/// In the order of the tables.
pub const SETTINGS: [Setting; 4] = [ASYNCHRONOUS, QUORUM, ASYNCHRONOUS.through_haproxy(), QUORUM.through_haproxy()];

/// On the command line: how clients come to the cluster.
pub const WAYS: [&str; 2] = ["direct", "haproxy"];

impl Setting {
    /// The same through HAProxy.
    pub const fn through_haproxy(self) -> Setting {
        Setting { haproxy: true, ..self }
    }

    /// One of [`WAYS`].
    pub fn way(self) -> &'static str {
        WAYS[usize::from(self.haproxy)]
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.quorum { "quorum" } else { "asynchronous" })?;
        f.write_str(if self.haproxy { ", through HAProxy" } else { "" })
    }
}

/// One new cluster, and what befalls it one after another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Round {
    /// Whose.
    pub contender: Contender,
    /// In which mode, and how the writer comes to it.
    pub setting: Setting,
    /// In this order. What leaves the cluster without a node is the last.
    pub events: Vec<Event>,
    /// In the short form at most so often; zero is in the long form only.
    pub short: usize,
}

/// Short: what ends within a quarter of an hour at three runs. Long: everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// The core; once each the shortest lease, a frozen agent and idle nodes.
    Short,
    /// Everything.
    Long,
}

/// Every round there is, in the order of one run.
pub fn rounds() -> Vec<Round> {
    let core = &[ColdStart, Switchover, PostmasterKilled, NodeKilled];
    let of = |contender, setting, events: &[Event], short| Round { contender, setting, events: events.to_vec(), short };
    let round = |contender, quorum, events, short| of(contender, if quorum { QUORUM } else { ASYNCHRONOUS }, events, short);
    let through_haproxy = |contender, setting: Setting| of(contender, setting.through_haproxy(), &core[1..], 0);
    let always = usize::MAX;
    vec![
        round(OURS, false, core, always),
        round(PATRONI_FAST, false, core, always),
        round(OURS_SHORT, false, core, 1),
        round(PATRONI, false, core, 0),
        round(OURS, true, core, always),
        round(PATRONI_FAST, true, core, always),
        round(OURS_DEPOSING, true, core, always),
        round(OURS_SHORT, true, core, 0),
        round(PATRONI, true, core, 0),
        // Of three nodes its defaults make two voters, of which a commit awaits one: the same as quorum mode.
        round(AUTO_FAILOVER_FAST, true, core, 0),
        round(AUTO_FAILOVER, true, core, 0),
        round(OURS_DEPOSING, true, &[NodeKilledWithEtcdsLeader], 0),
        round(PATRONI_FAST, true, &[NodeKilledWithEtcdsLeader], 0),
        round(OURS_SHORT, false, &[NodeKilledWithEtcdsLeader], 0),
        round(PATRONI_FAST, false, &[NodeKilledWithEtcdsLeader], 0),
        round(OURS_DEPOSING, true, &[NodeFrozen], 0),
        round(PATRONI_FAST, true, &[NodeFrozen], 0),
        round(OURS, true, &[NodeFrozen], 0),
        round(OURS, false, &[NodeFrozen], 0),
        round(PATRONI_FAST, false, &[NodeFrozen], 0),
        round(PATRONI, true, &[NodeFrozen], 0),
        round(OURS, true, &[NodeCut], 0),
        round(PATRONI_FAST, true, &[NodeCut], 0),
        round(OURS_DEPOSING, true, &[NodeCut], 0),
        round(OURS, false, &[NodeCut], 0),
        round(PATRONI_FAST, false, &[NodeCut], 0),
        round(OURS, false, &[AgentFrozen], 1),
        round(PATRONI_FAST, false, &[AgentFrozen], 1),
        round(OURS, true, &[AgentFrozen], 0),
        round(PATRONI_FAST, true, &[AgentFrozen], 0),
        round(OURS, false, &[EtcdStopped], 0),
        round(PATRONI_FAST, false, &[EtcdStopped], 0),
        round(PATRONI, false, &[EtcdStopped], 0),
        round(OURS, false, &[EtcdStoppedFailsafe], 0),
        round(PATRONI_FAST, false, &[EtcdStoppedFailsafe], 0),
        through_haproxy(OURS, ASYNCHRONOUS),
        through_haproxy(PATRONI_FAST, ASYNCHRONOUS),
        through_haproxy(OURS_DEPOSING, QUORUM),
        through_haproxy(PATRONI_FAST, QUORUM),
        round(OURS, false, &[Idle], 1),
        round(PATRONI_FAST, false, &[Idle], 1),
        round(PATRONI, false, &[Idle], 0),
    ]
}

/// What is done, in its order: number of the run, from 1, and the round. Contenders take turns, and each second run goes the other way round.
/// `wanted` are keys of events and contenders, and [`WAYS`]; none is all of that kind.
pub fn turns(form: Form, runs: usize, wanted: &[String]) -> Vec<(usize, Round)> {
    let wants = |key: &str, among: &[&str]| {
        let mut of_this_kind = wanted.iter().filter(|word| among.contains(&word.as_str())).peekable();
        of_this_kind.peek().is_none() || of_this_kind.any(|word| word == key)
    };
    let (events, contenders) = (EVENTS.map(Event::key), CONTENDERS.map(|contender| contender.key));
    let mut turns = Vec::new();
    for run in 1..=runs {
        let mut these = rounds();
        for round in &mut these {
            round.events.retain(|event| wants(event.key(), &events));
        }
        these.retain(|round| !round.events.is_empty() && wants(round.contender.key, &contenders) && wants(round.setting.way(), &WAYS));
        these.retain(|round| form == Form::Long || run <= round.short);
        if run % 2 == 0 {
            these.reverse();
        }
        turns.extend(these.into_iter().map(|round| (run, round)));
    }
    turns
}

/// How long the cluster is left in peace before an event, in milliseconds: two seconds, and in each run another part of a `loop_wait`,
/// so that no manager is always met at the same point of its loop.
pub fn calm_ms(contender: &Contender, event: Event, run: usize) -> u64 {
    let [ttl, loop_wait, _] = contender.timing;
    let part = loop_wait * 1000 * (run as u64 % 3) / 3;
    let whole_long_enough = if contender.deposition && event.loses_the_leader() { (ttl + 1) * 1000 } else { 2000 };
    whole_long_enough + part
}

/// What a round takes on a quiet machine, in seconds: what it waits for, and what was seen of the rest.
pub fn expected_s(run: usize, round: &Round) -> u64 {
    let [ttl, loop_wait, _] = round.contender.timing;
    let (start, cycle) = match round.contender.manager {
        PgTenure => (4, 0),
        Patroni => (7 + loop_wait, 4 + loop_wait),
        AutoFailover => (25, 10),
    };
    let of = |event: &Event| {
        if *event == ColdStart {
            return 0;
        }
        let pause = match event {
            Switchover | PostmasterKilled => cycle,
            NodeKilled if !round.contender.deposition => ttl,
            // etcd elects, and its new leader counts every lease from the beginning.
            NodeKilledWithEtcdsLeader if !round.contender.deposition => ttl + 2,
            _ => 0,
        };
        // The writer's hundred inserts before and fifty afterwards, what had waited in it, and members that come back.
        calm_ms(&round.contender, *event, run).div_ceil(1000) + event.lasts_s(ttl) + pause + 4
    };
    start + round.events.iter().map(of).sum::<u64>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn minutes(form: Form, runs: usize) -> u64 {
        turns(form, runs, &[]).iter().map(|(run, round)| expected_s(*run, round)).sum::<u64>().div_ceil(60)
    }

    #[test]
    fn the_short_form_of_three_runs_ends_within_a_quarter_of_an_hour() {
        assert!((8..=15).contains(&minutes(Form::Short, 3)), "{} minutes", minutes(Form::Short, 3));
        assert!(minutes(Form::Long, 3) <= 120, "{} minutes", minutes(Form::Long, 3));
    }

    #[test]
    fn contenders_take_turns_and_a_second_run_goes_the_other_way_round() {
        let wanted = ["switchover".to_owned(), "ttl10".to_owned(), "patroni-fast".to_owned()];
        let told: Vec<String> = turns(Form::Short, 2, &wanted)
            .iter()
            .map(|(run, round)| format!("{run} {} {} {:?}", round.contender.key, round.setting, round.events))
            .collect();
        assert_eq!(
            told,
            [
                "1 ttl10 asynchronous [Switchover]",
                "1 patroni-fast asynchronous [Switchover]",
                "1 ttl10 quorum [Switchover]",
                "1 patroni-fast quorum [Switchover]",
                "2 patroni-fast quorum [Switchover]",
                "2 ttl10 quorum [Switchover]",
                "2 patroni-fast asynchronous [Switchover]",
                "2 ttl10 asynchronous [Switchover]",
            ]
        );
    }

    #[test]
    fn the_way_that_clients_come_is_chosen_like_events_and_contenders() {
        let ways = |wanted: &[&str]| {
            let wanted: Vec<String> = wanted.iter().map(|word| (*word).to_owned()).collect();
            turns(Form::Long, 1, &wanted).iter().map(|(_, round)| format!("{} {}", round.contender.key, round.setting)).collect::<Vec<_>>()
        };
        let through = ["ttl10 asynchronous, through HAProxy", "patroni-fast asynchronous, through HAProxy"];
        assert_eq!(ways(&["haproxy"])[..2], through);
        assert_eq!(ways(&["haproxy", "ttl10"]), through[..1]);
        assert!(ways(&["direct"]).iter().all(|told| !told.contains("HAProxy")));
        assert_eq!(ways(&[]).len(), ways(&["direct"]).len() + ways(&["haproxy"]).len());
    }

    #[test]
    fn what_leaves_a_cluster_without_a_node_is_the_last_and_deposition_is_compared_in_quorum_mode_only() {
        for round in rounds() {
            let at = round.events.iter().position(|event| event.ends_a_node());
            assert!(at.is_none_or(|at| at + 1 == round.events.len()), "{round:?}");
            assert!(round.setting.quorum || !round.contender.deposition, "{round:?}");
            assert!(round.contender.manager != PgTenure || round.contender.timing[0] <= 10, "{round:?}");
        }
    }

    #[test]
    fn deposition_is_waited_for_and_the_point_in_the_loop_differs_from_run_to_run() {
        let calm = |contender, event| [1, 2, 3].map(|run| calm_ms(contender, event, run));
        assert_eq!(calm(&OURS_DEPOSING, NodeKilled), [11_666, 12_333, 11_000]);
        assert_eq!(calm(&OURS_DEPOSING, Switchover), [2_666, 3_333, 2_000]);
        assert_eq!(calm(&PATRONI, NodeKilled), [5_333, 8_666, 2_000]);
    }
}
