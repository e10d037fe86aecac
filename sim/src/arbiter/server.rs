//! `steward`'s server in the world: a simulated Postgres, as the arbiter reaches it.

use super::{Arbiter, member};
use crate::server::{self, Recovery};
use crate::store::Store;
use crate::time::Part;
use crate::worker::configured;
use anyhow::{Context, Result};
use cluster::instance::{self, InUse};
use cluster::leader::Term;
use cluster::local::{Ended, LocalState};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState, Tags};
use cluster::name::{MemberName, Timeline};
use cluster::quorum::Setting;
use cluster::time::Moment;
use cluster::upgrade::step::Owed;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use std::collections::BTreeSet;
use std::fmt::Arguments;
use std::rc::Rc;
use std::time::Duration;
use steward::lease::Word;
use steward::server::Stop;
use steward::synchronous::Standbys;
use steward::{Done, Facts, Host, Judged, Sender, Server, Tone, within};

/// Between two looks whether the configuration was read.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// As `arbiter/src/postgres/query.rs` has it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

impl Host for Arbiter {
    type Store = Store;

    fn store(&self) -> &Store {
        self.lease.keeper.store()
    }

    fn name(&self) -> &MemberName {
        &self.name
    }

    fn clock(&self) -> Moment {
        self.world.clock(self.at)
    }

    async fn sleep(&self, span: Duration) {
        self.world.time.sleep(span).await;
    }

    fn tell(&self, tone: Tone, text: Arguments<'_>) {
        self.lease.keeper.tell(tone, text);
    }
}

impl Arbiter {
    async fn sql(&self) -> Result<Rc<server::Server>> {
        self.world.sql(self.at).await.context("no answer")
    }

    /// What the server says of itself in one look.
    pub(super) fn facts_from(&self, server: &server::Server) -> Facts {
        let (timeline, position) = server.position(&self.world);
        let (awaited, confirmed) = (server.awaited.borrow(), server.confirmed.borrow());
        let sender = |at: &usize| {
            let name = &self.world.nodes[*at].name;
            // What was sent is at least what is confirmed.
            let reached = confirmed.get(at).copied().map(Lsn);
            Sender {
                application_name: name.to_string(),
                streaming: true,
                priority: awaited.priority_of(name.as_str()),
                sent: reached,
                written: reached,
                flushed: reached,
                replayed: reached,
            }
        };
        Facts {
            in_recovery: server.in_recovery.get(),
            timeline,
            position,
            flushed: (!server.in_recovery.get()).then(|| Lsn(server.flushed.get())),
            senders: server.senders.borrow().iter().map(sender).collect(),
            synchronous_standby_names: server.standby_names.borrow().to_string(),
            synchronous_commit: "on".to_owned(),
        }
    }

    /// Puts these standbys into the file; true if they were others.
    fn configure(&self, standbys: &Setting) -> bool {
        match self.world.nodes[self.at].data.borrow_mut().disk_mut() {
            Some(disk) if disk.standby_names != *standbys => {
                disk.standby_names = standbys.clone();
                true
            }
            _ => false,
        }
    }

    /// The configuration of a standby, reloaded where it changed.
    pub async fn configure_standby(&self) -> Result<bool> {
        let changed = self.configure(&Setting::nobody());
        if changed {
            self.reload_and_see().await?;
        }
        Ok(changed)
    }
}

impl Server for Arbiter {
    type Process = Rc<server::Server>;
    type Seen = Facts;

    fn facts_of(&self, seen: &Facts) -> Facts {
        seen.clone()
    }

    fn process(&self) -> Option<Rc<server::Server>> {
        self.world.server(self.at)
    }

    fn tags(&self) -> Tags {
        self.world.nodes[self.at].wished.tags.borrow().clone()
    }

    fn standbys(&self) -> &Standbys {
        &self.standbys
    }

    async fn facts(&self) -> Result<Facts> {
        Ok(self.facts_from(&*self.sql().await?))
    }

    async fn standbys_awaited(&self) -> Result<bool> {
        Ok(self.sql().await?.awaited.borrow().count > 0)
    }

    async fn commit_marker(&self) -> Result<()> {
        let server = self.sql().await?;
        anyhow::ensure!(!server.in_recovery.get(), "cannot execute during recovery");
        self.world.marker(&server);
        Ok(())
    }

    async fn configure_primary(&self, _view: &ClusterView) -> Result<bool> {
        Ok(self.configure(&self.standbys.now().setting))
    }

    async fn configure_for_promotion(&self, _view: &ClusterView, standbys: &Setting) -> Result<()> {
        self.configure(standbys);
        Ok(())
    }

    async fn reload(&self) -> Result<()> {
        self.world.reload(&self.sql().await?);
        Ok(())
    }

    async fn reload_and_see(&self) -> Result<()> {
        let seen = self.world.reload(&self.sql().await?);
        let looks = async {
            while !seen.get() {
                self.sleep(LOOK_EVERY).await;
                self.sql().await?;
            }
            Ok(())
        };
        within(self, ANSWER_TIMEOUT, looks).await.context("the server has not read its configuration again")?
    }

    async fn confirm_lease(&self, view: &ClusterView) -> bool {
        self.lease.confirm(view).await
    }

    /// There is no hook.
    async fn may_promote(&self) -> Result<()> {
        Ok(())
    }

    /// There is no watchdog.
    async fn arm(&self, _ttl: Duration) -> Result<impl Sized> {
        Ok(())
    }

    /// Only a hook or a watchdog asks for it.
    async fn stand_down(&self, _time: Duration) {}

    async fn pass_over_timelines(&self, mine: Timeline, claimed: Timeline) -> Result<()> {
        if let Some(disk) = self.world.nodes[self.at].data.borrow_mut().disk_mut() {
            disk.known.extend(mine.next().0..claimed.0);
        }
        Ok(())
    }

    async fn prepare_promotion(&self, _view: &ClusterView, _begins_with: &Setting) -> Result<()> {
        Ok(())
    }

    async fn promote(&self, _process: &Rc<server::Server>, term: Term) -> Result<()> {
        self.world.promote(self.at, term.0);
        Ok(())
    }

    async fn promoted(&self, _took: Duration) {
        self.world.nodes[self.at].wake_worker.notify(&self.world.time);
    }

    fn begin_first_checkpoint(&self) {
        if self.checkpointing.replace(true) {
            return;
        }
        let (world, at, under_way) = (self.world.clone(), self.at, self.checkpointing.clone());
        self.world.time.spawn((self.at, Part::Arbiter), async move {
            if world.checkpoint(at).await {
                world.nodes[at].wake_worker.notify(&world.time);
            }
            under_way.set(false);
            world.nodes[at].wake_arbiter.notify(&world.time);
        });
    }

    fn in_use(&self, view: &ClusterView) -> Option<InUse> {
        instance::in_use(view, &self.name, &configured(&self.world, self.at), self.lease.lease())
    }

    fn speak(&self, state: MemberState, role: MemberRole) {
        self.lease.take_over(Word { state, role, progress_percent: None, reason: None });
    }

    fn fall_silent(&self) {
        self.lease.hand_to_worker();
    }

    /// There are none.
    async fn release_addresses(&self) {}

    async fn start_primary(&self, view: &ClusterView) -> Result<Done> {
        self.start(view, Recovery::None).await
    }

    async fn start_standby(&self, view: &ClusterView, upstream: &Upstream) -> Result<Done> {
        self.start(view, self.follow_of(upstream.member())).await
    }

    async fn stop(&self, how: Stop, patience: Duration) -> Result<bool> {
        Ok(self.world.stop_server_within(self.at, how == Stop::Fast, patience).await)
    }

    /// A server dies with all of its processes here.
    async fn clear_orphans(&self) -> Result<()> {
        Ok(())
    }

    async fn end_by_force(&self) -> Result<()> {
        self.world.stop_server_within(self.at, false, Duration::ZERO).await;
        Ok(())
    }

    async fn ended(&self) -> Result<steward::server::Ended> {
        let data = self.world.nodes[self.at].data.borrow();
        let disk = data.disk().context("there is no data")?;
        let is_clean = disk.ended == Ended::CleanPrimary;
        Ok(steward::server::Ended { is_clean, checkpoint: Lsn(disk.checkpoint.0), state: format!("{:?}", disk.ended) })
    }

    /// Not simulated: commits wait until the primary's next look.
    async fn leave(&self) {}

    fn demoted(&self) {}

    async fn checkpoint(&self) -> Result<()> {
        anyhow::ensure!(self.world.checkpoint(self.at).await, "no checkpoint was made");
        Ok(())
    }

    async fn is_writing(&self) -> Result<bool> {
        Ok(self.sql().await?.under_way.get() > 0)
    }

    async fn drain(&self, most: Duration) -> Result<()> {
        let (server, now) = (self.sql().await?, self.clock());
        self.world.change_page(&server, |page| page.drain(now, now + most, 0));
        Ok(())
    }

    async fn undrain(&self) -> Result<()> {
        let server = self.sql().await?;
        self.world.change_page(&server, |page| page.undrain());
        Ok(())
    }

    /// There is nothing beside it.
    async fn quieten(&self, _view: &ClusterView, _leaving: bool) -> Result<impl Sized> {
        Ok(())
    }

    async fn answering(&self, view: &ClusterView, names: &[MemberName]) -> BTreeSet<MemberName> {
        self.sleep(self.world.delay() + self.world.delay()).await;
        let answered = self.answered(view);
        names.iter().filter(|name| answered.contains(*name)).cloned().collect()
    }

    async fn position_of(&self, view: &ClusterView, name: &MemberName) -> Result<Lsn> {
        self.sleep(self.world.delay() + self.world.delay()).await;
        anyhow::ensure!(self.answered(view).contains(name), "it does not answer");
        let standby = self.world.number_of(name).and_then(|at| self.world.serving(at)).context("it does not serve")?;
        Ok(standby.position(&self.world).1)
    }

    async fn promise_of(&self, view: &ClusterView, name: &MemberName) -> Option<Duration> {
        self.sleep(self.world.delay() + self.world.delay()).await;
        self.answered(view).contains(name).then_some(())?;
        let at = self.world.number_of(name)?;
        let left = self.world.asked(at)?.is_bound_for();
        (!left.is_zero()).then_some(left)
    }

    fn announce_switchover(&self, _to: &MemberName) {}

    fn handed_over(&self, _took: Duration) {}

    fn gave_up_switchover(&self, _view: &ClusterView, _local: &LocalState, _why: String) {}

    async fn rest(&self, judged: Judged<'_, Facts>) -> Result<Done> {
        let Some(facts) = judged.seen else { return Ok(Done::Settled) };
        let again = self.keep_in_order(judged.view, facts).await?;
        Ok(if again { Done::LookAgain } else { Done::Settled })
    }

    async fn found(&self, _judged: Judged<'_, Facts>) -> Result<Done> {
        self.found_it().await
    }

    async fn clone_from(&self, _judged: Judged<'_, Facts>, from: &Upstream) -> Result<Done> {
        self.clone_of(member(from)?).await
    }

    async fn restore(&self, _view: &ClusterView) -> Result<Done> {
        anyhow::bail!("a restore is not simulated")
    }

    async fn follow(&self, _view: &ClusterView, upstream: &Upstream) -> Result<Done> {
        let server = self.sql().await?;
        server.upstream.set(self.world.number_of(member(upstream)?));
        server.told_to_follow.tell(&self.world.time);
        Ok(Done::LookAgain)
    }

    async fn rewind(&self, view: &ClusterView, from: &Upstream) -> Result<Done> {
        self.rewind_to(view, member(from)?).await
    }

    /// Nobody is sick here.
    async fn give_way(&self, judged: Judged<'_, Facts>, _to: &MemberName) -> Result<Done> {
        steward::stop::release(self, judged.view).await
    }

    async fn resume_upgrade(&self, _view: &ClusterView, _owed: Owed) -> Result<Done> {
        anyhow::bail!("a major upgrade is not simulated")
    }

    async fn resume_restore(&self, _view: &ClusterView, _owed: cluster::restore::Owed) -> Result<Done> {
        anyhow::bail!("a restore is not simulated")
    }

    async fn demote_cluster(&self, _view: &ClusterView, _term: Term) -> Result<Done> {
        anyhow::bail!("a standby cluster is not simulated")
    }
}
