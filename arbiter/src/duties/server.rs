//! This node as `steward`'s procedures need it: PostgreSQL, its files and its process.

use crate::duties::{copy, demote_cluster, follow, found, give_way, leave, rest, restore_to, rewind, start, upgrade};
use crate::ground::answers;
use crate::ground::clock::boottime;
use crate::node::Node;
use crate::node::lease::tell;
use crate::node::timings::Timed;
use crate::node::{hook, recovery};
use crate::postgres::conf::Recovery;
use crate::postgres::controldata::{self, ClusterState};
use crate::postgres::facts::{self, ServerFacts};
use crate::postgres::postmaster::{Postmaster, StopMode};
use crate::postgres::promote::promote;
use crate::postgres::reserve;
use crate::upkeep::{self, slots};
use anyhow::{Context, Result, bail};
use cluster::history::History;
use cluster::instance::InUse;
use cluster::leader::Term;
use cluster::local::LocalState;
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState, Tags};
use cluster::name::{MemberName, Timeline};
use cluster::quorum::Setting;
use cluster::time::Moment;
use cluster::upgrade::step::Owed;
use cluster::upstream::Upstream;
use cluster::view::ClusterView;
use dcs::Etcd;
use std::collections::BTreeSet;
use std::fmt::Arguments;
use std::time::Duration;
use steward::server::{Ended, Stop};
use steward::synchronous::Standbys;
use steward::{Done, Facts, Host, Judged, Sender, Server, Tone};

impl From<&facts::Sender> for Sender {
    fn from(seen: &facts::Sender) -> Sender {
        Sender {
            application_name: seen.application_name.clone(),
            streaming: seen.state.as_deref() == Some("streaming"),
            priority: seen.sync_priority.unwrap_or(0),
            sent: seen.sent_lsn,
            written: seen.write_lsn,
            flushed: seen.flush_lsn,
            replayed: seen.replay_lsn,
        }
    }
}

impl From<&ServerFacts> for Facts {
    fn from(seen: &ServerFacts) -> Facts {
        Facts {
            in_recovery: seen.in_recovery,
            timeline: seen.timeline,
            position: seen.position(),
            flushed: seen.flush_lsn,
            senders: seen.replication.iter().map(Sender::from).collect(),
            synchronous_standby_names: seen.synchronous_standby_names.clone(),
            synchronous_commit: seen.synchronous_commit.clone(),
        }
    }
}

impl Host for Node {
    type Store = Etcd;

    fn store(&self) -> &Etcd {
        &self.etcd
    }

    fn name(&self) -> &MemberName {
        &self.config.name
    }

    fn clock(&self) -> Moment {
        boottime()
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn tell(&self, tone: Tone, text: Arguments<'_>) {
        tell(tone, text);
    }
}

impl Server for Node {
    type Process = Postmaster;
    type Seen = ServerFacts;

    fn facts_of(&self, seen: &ServerFacts) -> Facts {
        seen.into()
    }

    fn process(&self) -> Option<Postmaster> {
        self.postmaster()
    }

    fn tags(&self) -> Tags {
        Tags(self.config.tags.clone())
    }

    fn standbys(&self) -> &Standbys {
        &self.standbys
    }

    async fn facts(&self) -> Result<Facts> {
        Ok(Facts::from(&self.sql.facts().await?))
    }

    async fn standbys_awaited(&self) -> Result<bool> {
        self.sql.ask("SELECT tenure_internal.standbys_awaited()").await
    }

    async fn commit_marker(&self) -> Result<()> {
        const STATEMENTS: &str = "BEGIN; SET LOCAL tenure.minimum_synchronous_commit = local; SET LOCAL synchronous_commit = local; \
            SELECT pg_logical_emit_message(true, 'tenure', 'synchronous_standby_names'); COMMIT";
        self.sql.execute(STATEMENTS).await
    }

    async fn configure_primary(&self, view: &ClusterView) -> Result<bool> {
        self.write_configuration(view, &Recovery::None).await
    }

    async fn configure_for_promotion(&self, view: &ClusterView, standbys: &Setting) -> Result<()> {
        let recovery = recovery::of(&self.config, &self.dynamic(view), view, &Upstream::Nobody);
        self.write_configuration_with(view, &recovery, standbys).await.map(drop)
    }

    async fn reload(&self) -> Result<()> {
        Node::reload(self).await
    }

    async fn reload_and_see(&self) -> Result<()> {
        // Of `in_force` it is the second of two: nothing new is in the files, so nobody is told.
        self.sql.reload_and_see().await
    }

    async fn confirm_lease(&self, view: &ClusterView) -> bool {
        self.lease.confirm(view).await
    }

    async fn may_promote(&self) -> Result<()> {
        hook::pre_promote(&self.config).await
    }

    async fn arm(&self, ttl: Duration) -> Result<impl Sized> {
        self.watchdog.arm(&self.config.watchdog, ttl).await
    }

    async fn stand_down(&self, time: Duration) {
        Node::stand_down(self, time).await;
    }

    async fn pass_over_timelines(&self, mine: Timeline, claimed: Timeline) -> Result<()> {
        let wal = self.config.postgres.data_dir.join("pg_wal");
        for number in mine.next().0..claimed.0 {
            let path = wal.join(format!("{number:08X}.history"));
            if crate::postgres::read_if_there(&path).await?.is_none() {
                tracing::warn!("timeline {number} was used or claimed elsewhere: this promotion passes over it");
                crate::postgres::write_atomically(&path, &History::placeholder(mine), 0o600).await?;
            }
        }
        Ok(())
    }

    async fn prepare_promotion(&self, view: &ClusterView, begins_with: &Setting) -> Result<()> {
        slots::before_promotion(self, view).await;
        crate::citus::before_promotion(self, view, begins_with).await.context("set Citus to reading from primaries")
    }

    async fn promote(&self, process: &Postmaster, _term: Term) -> Result<()> {
        promote(process, &self.config.postgres.data_dir).await
    }

    async fn promoted(&self, took: Duration) {
        self.page.changed.notify_one();
        self.timings.observe(Timed::Promotion, took);
        self.callbacks.serves(&self.config, &MemberRole::Primary);
        // Wakes the lease worker: the new role is to be in the member key.
        if let Err(why) = self.sql.execute("SELECT tenure_internal.attach_arbiter()").await {
            tracing::warn!("attach to the lease worker: {why:#}");
        }
    }

    fn begin_first_checkpoint(&self) {
        upkeep::first_checkpoint(self);
    }

    fn in_use(&self, view: &ClusterView) -> Option<InUse> {
        self.lease.in_use(view)
    }

    fn speak(&self, state: MemberState, role: MemberRole) {
        Node::speak(self, state, role);
    }

    fn fall_silent(&self) {
        self.lease.hand_to_worker();
    }

    async fn release_addresses(&self) {
        self.addresses.release(&self.config.vip).await;
    }

    async fn start_primary(&self, view: &ClusterView) -> Result<Done> {
        start::start(self, view, &Recovery::None).await
    }

    async fn start_standby(&self, view: &ClusterView, upstream: &Upstream) -> Result<Done> {
        start::start(self, view, &follow::settings(self, view, upstream)).await
    }

    async fn stop(&self, how: Stop, patience: Duration) -> Result<bool> {
        let mode = match how {
            Stop::Fast => StopMode::Fast,
            Stop::Immediate => StopMode::Immediate,
        };
        self.stop_within(mode, patience).await
    }

    async fn clear_orphans(&self) -> Result<()> {
        Node::clear_orphans(self).await
    }

    async fn end_by_force(&self) -> Result<()> {
        let lived = self.postmaster().is_some();
        Node::end_by_force(self).await?;
        if lived {
            self.callbacks.ended();
        }
        Ok(())
    }

    async fn ended(&self) -> Result<Ended> {
        let control = controldata::read(&self.programs, &self.config.postgres.data_dir).await?;
        let is_clean = control.state == ClusterState::ShutDown;
        Ok(Ended { is_clean, checkpoint: control.checkpoint, state: format!("{:?}", control.state) })
    }

    async fn leave(&self) {
        leave::leave(self).await;
    }

    fn demoted(&self) {
        self.callbacks.demoted(&self.config);
    }

    async fn checkpoint(&self) -> Result<()> {
        reserve::give(&self.config.postgres.data_dir, reserve::Part::Half).await;
        self.sql.checkpoint().await
    }

    async fn is_writing(&self) -> Result<bool> {
        const WRITERS: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid()
            AND wait_event IS DISTINCT FROM 'Extension')";
        self.sql.ask(WRITERS).await
    }

    async fn drain(&self, most: Duration) -> Result<()> {
        self.sql.execute(&format!("SELECT tenure_internal.drain({})", most.as_millis())).await
    }

    async fn undrain(&self) -> Result<()> {
        self.sql.execute("SELECT tenure_internal.undrain()").await
    }

    async fn quieten(&self, view: &ClusterView, leaving: bool) -> Result<impl Sized> {
        crate::citus::daemon::end(self).await?;
        // Before poolers are paused: what is under way through one of them could not end.
        crate::citus::ask(self, view, leaving).await?;
        Ok(crate::poolers::pause(self, view).await)
    }

    async fn answering(&self, view: &ClusterView, names: &[MemberName]) -> BTreeSet<MemberName> {
        answers::of(&self.caller, view, names).await
    }

    async fn position_of(&self, view: &ClusterView, name: &MemberName) -> Result<Lsn> {
        answers::position(&self.caller, view, name).await
    }

    async fn promise_of(&self, view: &ClusterView, name: &MemberName) -> Option<Duration> {
        answers::promise(&self.caller, view, name).await
    }

    /// By `NOTIFY tenure`. Of a promotion nobody could hear: LISTEN is refused during recovery.
    fn announce_switchover(&self, to: &MemberName) {
        let told = serde_json::json!({"event": "switchover", "from": self.config.name, "to": to});
        let sql = self.sql.clone();
        tokio::spawn(async move {
            if let Err(why) = sql.notify("tenure", &told.to_string()).await {
                tracing::warn!("NOTIFY tenure: {why:#}");
            }
        });
    }

    fn handed_over(&self, took: Duration) {
        self.timings.observe(Timed::Handover, took);
    }

    fn gave_up_switchover(&self, view: &ClusterView, local: &LocalState, why: String) {
        self.journal.gave_up_switchover(view, local, why);
    }

    async fn rest(&self, judged: Judged<'_, ServerFacts>) -> Result<Done> {
        rest::rest(self, judged).await
    }

    async fn found(&self, judged: Judged<'_, ServerFacts>) -> Result<Done> {
        let ttl = judged.view.config().timing().ttl;
        if let Some(why) = self.watchdog.bars(&self.config.watchdog, ttl) {
            bail!("the cluster is not founded here: {why}");
        }
        found::bootstrap(self, &judged.local.data).await.map(|()| Done::LookAgain)
    }

    async fn clone_from(&self, judged: Judged<'_, ServerFacts>, from: &Upstream) -> Result<Done> {
        let local = judged.local;
        let terms = copy::Terms {
            only_basebackup: local.cloning.from_leader,
            forked_may_go: local.may_clone_over || cluster::restore::is_restored(judged.view),
        };
        copy::clone(self, judged.view, from, terms).await
    }

    async fn restore(&self, view: &ClusterView) -> Result<Done> {
        copy::restore(self, view).await
    }

    async fn follow(&self, view: &ClusterView, upstream: &Upstream) -> Result<Done> {
        follow::follow(self, view, upstream).await
    }

    async fn rewind(&self, view: &ClusterView, from: &Upstream) -> Result<Done> {
        rewind::rewind(self, view, from).await
    }

    async fn give_way(&self, judged: Judged<'_, ServerFacts>, to: &MemberName) -> Result<Done> {
        give_way::give_way(self, judged, to).await
    }

    async fn resume_upgrade(&self, view: &ClusterView, owed: Owed) -> Result<Done> {
        upgrade::resume(self, view, owed).await
    }

    async fn resume_restore(&self, view: &ClusterView, owed: cluster::restore::Owed) -> Result<Done> {
        restore_to::resume(self, view, owed).await
    }

    async fn demote_cluster(&self, view: &ClusterView, term: Term) -> Result<Done> {
        demote_cluster::demote_cluster(self, view, term).await
    }
}
