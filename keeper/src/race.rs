//! The race: who this node is in it, and `RaceStep` -> etcd and page.

use crate::{Host, OwnServer, Worker, first_of};
use cluster::failsafe::{self, Spoken};
use cluster::leader::Term;
use cluster::race;
use cluster::reason::Decision;
use cluster::standing::{Candidate, Judged, RaceStep};
use cluster::time::Moment;
use cluster::view::{Announcement, ClusterView};
use dcs::{Error, LocalDcs};
use std::cell::Cell;
use std::ops::Deref;
use std::time::Duration;

/// How long a receiver that was told to end may take before the vacancy goes on without this node.
const RECEIVER_STOP: Duration = Duration::from_secs(1);

/// Between two looks whether it has ended.
const RECEIVER_LOOK: Duration = Duration::from_millis(2);

/// Between two tries of a write that was not answered.
pub(crate) const AGAIN: Duration = Duration::from_millis(100);

/// What the loop does after a step.
pub(crate) enum Applied {
    /// Nothing to wait for.
    Settled,
    /// Look again after this long, or when woken.
    LookAfter(Duration),
    /// The world changed by our hand.
    LookNow,
}

/// The step as a word for people.
fn name_of(step: &RaceStep) -> &'static str {
    match step {
        RaceStep::Rest => "no action",
        RaceStep::Wait(_) => "wait",
        RaceStep::Announce(word) if word.stands => "stand",
        RaceStep::Announce(_) => "stand aside",
        RaceStep::Take(judged) if judged.deposes => "take the leader key from the leader",
        RaceStep::Take(_) => "take the leader key",
        RaceStep::Depose(_) => "depose the leader",
        RaceStep::CallOff(_) => "call the deposition off",
        RaceStep::Tell(_) => "tell who deposes",
    }
}

/// The page says that the key is being taken, until this is dropped: also where a reload ends the turn in the middle, or
/// this node would promise nobody anything from then on.
pub(crate) struct Taking<'a, H: Host>(&'a H);

impl<'a, H: Host> Taking<'a, H> {
    /// None where a promise of `failsafe_mode` forbids it.
    fn begin(host: &'a H) -> Option<Self> {
        let now = host.clock();
        host.change(|page| page.begin_taking(now)).then_some(Taking(host))
    }

    /// Before promises are looked at, where the key is in this node's name already: of a promise and an opening at the same instant, at least
    /// one sees the other, also where this process is frozen in between.
    pub(crate) fn opening(host: &'a H) -> Self {
        host.change(|page| page.begin_opening());
        Taking(host)
    }
}

impl<H: Host> Drop for Taking<'_, H> {
    fn drop(&mut self) {
        self.0.change(|page| page.end_taking());
    }
}

impl<S, H> Worker<S, H>
where
    S: Deref<Target: LocalDcs + Sized>,
    H: Host,
{
    /// Races where there is a vacancy. Gives the time until the next look.
    pub(crate) async fn race(&self, view: &ClusterView, server: OwnServer, now: Moment) -> Duration {
        if view.leader.is_some() {
            self.vacancy.set(None);
        }
        let after = view.last_term();
        let since = match self.vacancy.get() {
            Some((term, since)) if term == after => since,
            _ => now,
        };
        if view.leader.is_none() {
            self.vacancy.set(Some((after, since)));
        }
        let promised = !server.is_primary() && self.host.page().is_promised(now);
        let me = Candidate {
            name: self.name.clone(),
            tags: self.configured().tags,
            primary: server.is_primary(),
            timeline: server.timeline(),
            lsn: server.position(),
            end_known: server.end_known(),
            streaming: server.streaming(),
            arbiter: self.host.arbiter_attends(now, self.patience_with_arbiter()),
            vacant_for: now.since(since),
            promised,
            deposition: self.knowledge(view, now),
            stood_down: self.stands_down_until.get().is_some_and(|until| now < until),
        };
        let decision = race::decide(view, &me);
        if view.leader.is_none() {
            self.host.note(&format!("nobody leads, and of this member: {}", decision.why));
        }
        self.tell_why("race", name_of(&decision.what), &decision.why.to_string());
        match self.apply(view, decision).await {
            Applied::Settled => view.config().timing().loop_wait,
            Applied::LookAfter(pause) => pause,
            Applied::LookNow => {
                self.host.look_again();
                Duration::ZERO
            }
        }
    }

    async fn apply(&self, view: &ClusterView, decision: Decision<RaceStep>) -> Applied {
        match decision.what {
            RaceStep::Rest => Applied::Settled,
            RaceStep::Wait(pause) => Applied::LookAfter(pause),
            RaceStep::Announce(word) => self.announce(view, word).await,
            RaceStep::Take(judged) => self.take(&judged).await,
            RaceStep::Depose(guarded) => self.depose(view, guarded).await,
            RaceStep::CallOff(guarded) => self.call_off(&guarded).await,
            RaceStep::Tell(guarded) => self.say(&guarded).await,
        }
    }

    /// Stops receiving, reads the position after that, says it.
    async fn announce(&self, view: &ClusterView, mut word: Announcement) -> Applied {
        let Some(held) = self.held.get() else { return Applied::LookAfter(RECEIVER_STOP) };
        if failsafe::keeps_word(view, &word) && !self.keeps_word(word.after).await {
            return Applied::LookAfter(AGAIN);
        }
        if word.stands && !word.primary && !word.receives {
            if !self.receiver_ended().await {
                return Applied::LookNow;
            }
            let server = self.host.server();
            word.lsn = server.position();
            word.timeline = server.timeline();
        }
        match self.store.announce(&self.name, &word, held.grant.lease).await {
            Ok(()) | Err(Error::Lost(_)) => Applied::LookNow,
            Err(why) => {
                self.tell("race", &format!("position not announced: {why}"));
                Applied::LookAfter(AGAIN)
            }
        }
    }

    /// From here on this server promises the leader of before nothing, whatever becomes of this process and of the server. False where it has promised.
    async fn keeps_word(&self, after: Term) -> bool {
        let (spoken, now) = (Spoken { after }, self.clock());
        // Of a promise and a word at the same instant each side writes its own first and reads the other's after that.
        if !self.host.change(|page| page.begin_speaking(now)) {
            return false;
        }
        let before = self.spoken.get();
        if before == Some(spoken) {
            return true;
        }
        if let Err(fault) = self.host.keep_word(Some(spoken)).await {
            if before.is_none() {
                self.host.change(|page| page.end_speaking());
            }
            self.tell("race", &format!("nothing is said for this vacancy, because it can't be kept that this server has spoken: {fault}"));
            return false;
        }
        self.spoken.set(Some(spoken));
        true
    }

    /// What this server has said before it was started, or before this worker was. An error is what can't be understood: it counts until another leads.
    pub fn recall_word(&self, spoken: Result<Option<Spoken>, String>) {
        let spoken = spoken.unwrap_or(Some(Spoken { after: Term(0) }));
        // The worker before this one may have ended between the file and the page.
        self.host.change(|page| if spoken.is_some() { page.has_spoken() } else { page.end_speaking() });
        self.spoken.set(spoken);
    }

    /// A vacancy that is over: its word counts no more, and this server may promise again.
    pub(crate) async fn settle_word(&self, view: &ClusterView) {
        let opened = view.leader.as_ref().is_some_and(|leader| self.host.page().term() == leader.term.0);
        let Some(spoken) = self.spoken.get().filter(|spoken| failsafe::is_over(view, *spoken, &self.name, opened)) else { return };
        if let Err(fault) = self.host.keep_word(None).await {
            let after = spoken.after;
            return self.tell(
                "race",
                &format!("this server promises nothing (failsafe_mode), because its word after term {after} can't be taken away: {fault}"),
            );
        }
        self.spoken.set(None);
        self.host.change(|page| page.end_speaking());
    }

    /// Ends the receiver: from here on the old leader, whatever its clock says, gets no further confirmation from us. False where it does not end.
    pub(crate) async fn receiver_ended(&self) -> bool {
        let ended = Cell::new(false);
        let stopped = async {
            while self.host.receiver_running() {
                self.host.stop_receiver();
                // A level, not an event: nothing tells another process that a receiver has ended.
                self.host.sleep(RECEIVER_LOOK).await;
            }
            ended.set(true);
        };
        first_of(stopped, self.host.sleep(RECEIVER_STOP)).await;
        if !ended.get() {
            self.tell("race", "the WAL receiver does not end: not standing before it has");
        }
        ended.get()
    }

    async fn take(&self, judged: &Judged) -> Applied {
        let server = self.host.server();
        if !server.is_primary() && judged.position.is_some_and(|announced| announced != (server.timeline(), server.position())) {
            return Applied::LookNow; // received more since: say so first
        }
        let Some(held) = self.held.get().filter(|held| self.clock() < held.deadline) else { return Applied::LookAfter(AGAIN) };
        let Some(_taking) = Taking::begin(&self.host) else { return Applied::LookAfter(AGAIN) };
        // Where the answer is lost the key may become ours yet: then the page opens only while nothing is promised.
        match self.store.take_leader(&self.name, held.grant.lease, judged).await {
            Ok(term) => {
                // The deadline is the lease's: the key hangs on it, so it lives as long.
                let held = self.held.get().filter(|now| now.grant.lease == held.grant.lease).unwrap_or(held);
                // A standby cluster is led with a closed fence; the next turn says until when. So is one whose old leader may still take
                // over until this node is promoted.
                if judged.position.is_some() && !judged.sync_becomes.as_ref().is_some_and(|sync| sync.until_promoted) {
                    self.host.change(|page| page.open(term.0, held.grant.lease.0, held.deadline));
                }
                if let Some(since) = self.vacancy.get().map(|(_, since)| since).or(self.lost_since.take()) {
                    self.host.race_took(self.clock().since(since));
                }
                self.tell("leader", &format!("took the leader key, term {term}"));
                self.host.wake_arbiter();
                Applied::LookNow
            }
            Err(Error::Lost(what)) => {
                self.tell("race", &format!("{what} changed while the key was being taken: looking again"));
                Applied::LookNow
            }
            Err(why) => {
                // Perhaps it was written and the answer was lost: the next look tells.
                self.tell("race", &format!("leader key not taken: {why}"));
                Applied::LookAfter(AGAIN)
            }
        }
    }
}
