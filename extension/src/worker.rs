//! The lease worker: wake, observe, decide, apply, sleep.
//!
//! It has shared memory and no database connection, so nothing in SQL can block it. One thread runs
//! three loops side by side: the keeper renews the lease whatever the others wait for; the watch wakes;
//! the turns read the cluster, ask `cluster::race`, and do what it says. On a Citus coordinator a fourth one looks at the other groups. Every loop ends with the
//! process, which Postgres starts again a second later; the lease it then finds under its own name is
//! its own.

use crate::apply::{self, Applied, Moving};
use crate::observe;
use crate::shmem::{self, page};
use crate::signals::{self, Interrupt, Signals};
use crate::{groups, guc, mailbox, publish, recovered};
use cluster::citus::{self, Groups};
use cluster::instance::{self, InUse, Instance};
use cluster::leader::{Leader, LeaseId, Term};
use cluster::lease;
use cluster::member::Member;
use cluster::name::{MemberName, Scope};
use cluster::race::{self, Candidate};
use cluster::reason::Reason;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::key::Keys;
use dcs::lease::{self as leases, Held};
use dcs::remember::Remembered;
use dcs::{Dcs, Error, Etcd, Settings};
use pgrx::pg_sys;
use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;
use tokio::sync::Notify;

/// Pause before an etcd that gave no answer is asked again: recovery within a second of its return.
const RETRY: Duration = Duration::from_millis(250);

/// A node that took the key and was not promoted does not stand for this long, so that another can.
const STAND_DOWN: Duration = Duration::from_secs(60);

/// What the loops share; one thread, so cells are enough.
pub struct Worker {
    /// The cluster's store.
    pub etcd: Arc<Etcd>,
    /// This node.
    pub name: MemberName,
    /// The cluster.
    pub scope: Scope,
    /// The lease, while there is one.
    pub held: Cell<Option<Held>>,
    /// A move onto another lease whose outcome is not known.
    pub moving: Cell<Option<Moving>>,
    /// Which instance goes by our name here.
    pub instance: Option<Instance>,
    /// On a Citus coordinator: the other groups as last read, and when.
    pub others: RefCell<Option<(Groups, Moment)>>,
    /// The cluster as last read, and when.
    pub view: RefCell<Option<(ClusterView, Moment)>>,
    /// Which vacancy is under way, and since when this node knows of it.
    vacancy: Cell<Option<(Term, Moment)>>,
    /// Since when this node holds the key without being primary.
    unpromoted_since: Cell<Option<Moment>>,
    /// Which leader key is not where its holder keeps it, and since when.
    misplaced_since: Cell<Option<(Term, Moment)>>,
    /// Until when this node does not stand.
    pub stands_down_until: Cell<Option<Moment>>,
    /// What stands in the member key, and when it was written.
    pub published: RefCell<Option<(Member, LeaseId, Moment)>>,
    /// When `status` was written.
    pub status_written: Cell<Option<Moment>>,
    /// Whose slots are kept although their member is gone.
    pub retention: RefCell<cluster::slots::Retention>,
    /// A TTL that etcd raised when it was asked for it: not asked for again.
    pub ttl_refused: Cell<Option<Duration>>,
    /// The last decision, so that only changes are told.
    told: RefCell<String>,
    /// Wakes the turns.
    wake: Arc<Notify>,
    /// Wakes the keeper.
    lease_wanted: Notify,
}

/// Why a worker can't run; it tells and ends, and is started again.
#[derive(Debug, thiserror::Error)]
enum Unable {
    #[error("{0}")]
    Name(#[from] cluster::name::NameError),
    #[error("tenure.name is empty: every member needs a name")]
    NoName,
    #[error("could not read {file}: {source}")]
    File { file: String, source: std::io::Error },
    #[error("could not set up the event loop: {0}")]
    Loop(#[from] std::io::Error),
}

/// Entry point of the background worker.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tenure_lease_worker_main(_arg: pg_sys::Datum) {
    shmem::attach_worker();
    page().forget_request();
    if let Err(why) = run() {
        pgrx::warning!("pg_tenure lease worker could not run: {why}");
    }
    // Exit code 1: Postgres starts the worker again, unless the server itself is going down. Code 0
    // would mean "never again".
    // SAFETY: the proper end of a server process; runs its exit callbacks.
    unsafe { pg_sys::proc_exit(1) }
}

fn run() -> Result<(), Unable> {
    // Current-thread: the lease worker is one thread, and a library that starts another one starts it
    // with every signal blocked, because they are blocked before the runtime exists.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build()?;
    runtime.block_on(async {
        let signals = Signals::open()?;
        // What is known of etcd's keys outlives a reload.
        let remembered = Arc::new(Remembered::default());
        let mut worker = Worker::from_settings(&remembered)?;
        loop {
            let reload = tokio::select! {
                biased;
                end = interrupts(&signals, &worker) => end?,
                death = signals::postmaster_death() => { death?; false }
                never = worker.keep_lease() => never,
                never = worker.turns() => never,
                () = dcs::watch::keep_watching(worker.etcd.clone(), worker.wake.clone()) => false,
                never = groups::look_at_others(&worker) => never,
            };
            if !reload {
                return Ok(());
            }
            // SAFETY: SIGHUP's own business, done between two awaits in the process' main thread.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            // What the round before was serving for SQL ended with it: nobody else would give the mailbox back.
            page().forget_request();
            match Worker::from_settings(&remembered) {
                // What was sent before may be carried out yet: that outlives a reload.
                Ok(anew) => worker = Worker { moving: worker.moving.clone(), ..anew },
                // A wrong setting must not end a leader: what it has works.
                Err(why) => {
                    worker.tell("settings", &format!("the new settings can't be used, the worker goes on with those before: {why}"))
                }
            }
        }
    })
}

/// Serves signals until one ends this round: true to go on with new settings.
async fn interrupts(signals: &Signals, worker: &Worker) -> std::io::Result<bool> {
    loop {
        match signals.next().await? {
            Interrupt::End => return Ok(false),
            // A crash elsewhere: nothing in shared memory may be touched any more.
            // SAFETY: ends the process at once, as Postgres does on SIGQUIT.
            Interrupt::Quit => unsafe { libc::_exit(2) },
            Interrupt::Reload => return Ok(true),
            Interrupt::Asked => worker.wake.notify_one(),
        }
    }
}

fn read_file(file: Option<String>) -> Result<Option<Vec<u8>>, Unable> {
    file.map(|file| std::fs::read(&file).map_err(|source| Unable::File { file, source })).transpose()
}

/// What the arbiter wrote down lies in the data directory, which is a server process' own directory. Without it the memory begins here.
fn recall(remembered: &Remembered, keys: &Keys) {
    let said = match std::fs::read_to_string(dcs::remember::FILE) {
        Ok(text) => remembered.recall(keys.prefix(), &text).map_err(|why| why.to_string()),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return,
        Err(why) => Err(why.to_string()),
    };
    if let Err(why) = said {
        pgrx::warning!("could not read {}: {why}", dcs::remember::FILE);
    }
}

impl Worker {
    fn from_settings(remembered: &Arc<Remembered>) -> Result<Worker, Unable> {
        let scope = Scope::new(&guc::scope().unwrap_or_default())?;
        let name = MemberName::new(&guc::name().ok_or(Unable::NoName)?)?;
        let endpoints = guc::etcd_endpoints();
        let password = read_file(guc::etcd_password_file())?.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
        let settings = Settings {
            try_timeout: lease::try_timeout(guc::ttl(), endpoints.len()),
            endpoints,
            user: guc::etcd_username().map(|user| (user, password.unwrap_or_default())),
            ca_certificate: read_file(guc::etcd_cacert())?,
            identity: read_file(guc::etcd_cert())?.zip(read_file(guc::etcd_key())?),
        };
        let keys = Keys::new(&guc::namespace(), &scope);
        let keys = guc::group().map_or_else(|| keys.clone(), |group| keys.group(group));
        recall(remembered, &keys);
        Ok(Worker {
            etcd: Arc::new(Etcd::new(keys, settings).remembering(remembered.clone())),
            name,
            scope,
            held: Cell::new(None),
            moving: Cell::new(None),
            instance: observe::data_dir().and_then(|data_dir| dcs::instance::here(&data_dir)),
            others: RefCell::default(),
            view: RefCell::new(None),
            vacancy: Cell::new(None),
            unpromoted_since: Cell::new(None),
            misplaced_since: Cell::new(None),
            stands_down_until: Cell::new(None),
            published: RefCell::new(None),
            status_written: Cell::new(None),
            retention: RefCell::default(),
            ttl_refused: Cell::new(None),
            told: RefCell::new(String::new()),
            wake: Arc::new(Notify::new()),
            lease_wanted: Notify::new(),
        })
    }

    /// The TTL that the dynamic configuration asks for, or the fallback while it was never read.
    pub fn wanted_ttl(&self) -> Duration {
        self.view.borrow().as_ref().filter(|(view, _)| view.config.is_some()).map_or_else(guc::ttl, |(view, _)| view.config().timing().ttl)
    }

    /// Look again now.
    pub fn look_again(&self) {
        self.wake.notify_one();
    }

    /// A lease is missing or must change: the keeper sees to it.
    pub fn want_lease(&self) {
        self.lease_wanted.notify_one();
    }

    // ---- The keeper ----

    /// Renews the lease for ever, and gets one where there is none.
    async fn keep_lease(&self) -> bool {
        loop {
            let pause = match self.held.get() {
                Some(held) => self.renew(held).await,
                None => match apply::acquire_lease(self).await {
                    Ok(held) => {
                        self.held.set(Some(held));
                        self.look_again();
                        lease::renew_every(held.grant.ttl)
                    }
                    Err(why) => {
                        self.tell("lease", &format!("no lease: {why}"));
                        RETRY
                    }
                },
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.lease_wanted.notified() => {}
            }
        }
    }

    async fn renew(&self, held: Held) -> Duration {
        let wall_ahead = shmem::wall_ahead_ns();
        let sent = shmem::boottime();
        match leases::renew(&*self.etcd, shmem::boottime, held.grant.lease).await {
            Ok(renewed) => {
                page().timings.lease_renewal.observe(shmem::boottime().since(sent));
                let deadline = renewed.held.deadline;
                shmem::renewal_was_sent_at(wall_ahead);
                self.etcd_answered();
                // The turn may have changed the lease while the answer was under way.
                if let Some(now) = self.held.get().filter(|now| now.grant.lease == held.grant.lease) {
                    self.held.set(Some(Held { deadline: deadline.max(now.deadline), ..now }));
                    // Kept by an etcd that is not believed, the lease keeps nobody else away.
                    if page().lease() == held.grant.lease.0 && !self.doubts() {
                        self.renew_page(renewed.leader.as_ref(), held.grant.lease, deadline);
                    }
                }
                lease::renew_every(held.grant.ttl)
            }
            Err(Error::LeaseGone) => {
                self.etcd_answered();
                self.tell("lease", &format!("etcd says that lease {} has run out", held.grant.lease));
                // Of an etcd that was emptied or restored this is no fact: the deadline still holds in the one that granted the lease.
                let doubted = matches!(self.etcd.load_view().await, Err(Error::Doubted { .. }));
                if page().lease() == held.grant.lease.0 && !doubted {
                    page().close();
                }
                self.held.set(None);
                self.look_again();
                Duration::ZERO
            }
            Err(why) => {
                let left = held.deadline.since(shmem::boottime());
                self.tell("lease", &format!("lease not renewed, {} ms are left: {why}", left.as_millis()));
                RETRY
            }
        }
    }

    /// The lease lives on; the page only where the leader key hung on it still after the renewal, in the page's own
    /// term, and no write is under way that would put the key elsewhere.
    fn renew_page(&self, leader: Option<&Leader>, lease: LeaseId, deadline: Moment) {
        let ours = leader.is_some_and(|leader| leader.name == self.name && leader.lease == lease && leader.term.0 == page().term());
        if ours && self.moving.get().is_none() {
            page().renew(deadline);
        } else {
            self.look_again();
        }
    }

    /// etcd answered something just now.
    pub fn etcd_answered(&self) {
        page().etcd_seen(shmem::boottime());
    }

    // ---- The turns ----

    /// Looks, decides and applies whenever something may have changed.
    async fn turns(&self) -> bool {
        loop {
            page().worker_seen(shmem::boottime());
            recovered::look(page());
            let pause = self.turn().await;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.wake.notified() => {}
            }
        }
    }

    /// etcd answers, and it is not believed.
    fn doubts(&self) -> bool {
        self.etcd.remembered().is_some_and(|remembered| remembered.doubt().is_some())
    }

    async fn turn(&self) -> Duration {
        // As it was before the view is read: who leads on this lease then leads until this deadline, unless we give the key away.
        let held = self.held.get();
        let view = match self.etcd.load_view().await {
            Ok(view) => view,
            Err(Error::Doubted { doubt, view }) => {
                // Nothing is raced for, opened or closed by it. What this member knows is said in its own key.
                self.tell("etcd", &format!("{doubt}: it is not believed, commits wait at the fence once the lease runs out"));
                mailbox::decline(&format!("etcd is not believed: {doubt}"));
                self.etcd_answered();
                let server = observe::server();
                let held = self.held.get().map(|held| held.grant.lease);
                if instance::in_use(&view, &self.name, &publish::compose(self, server), held).is_none() {
                    publish::member(self, &view, server, shmem::boottime()).await;
                }
                return RETRY;
            }
            Err(why) => {
                self.tell("etcd", &why.to_string());
                mailbox::decline(&format!("etcd does not answer: {why}"));
                return RETRY;
            }
        };
        let now = shmem::boottime();
        self.etcd_answered();
        // A term is the revision at which a key was made. One from the future would end every session of a coordinator, for ever.
        if let Some(word) = view.coordinator.as_ref().filter(|word| citus::term_of(word.value.term) <= view.revision) {
            page().know_coordinator(word.value.term);
        }
        page().generation.store(view.store_generation(), SeqCst);
        publish::snapshot(self, &view);
        let server = observe::server();
        let mine = publish::compose(self, server);
        if let Some(other) = instance::in_use(&view, &self.name, &mine, self.held.get().map(|held| held.grant.lease)) {
            return self.keep_out(&other);
        }
        mailbox::serve(self, &view).await;
        *self.view.borrow_mut() = Some((view.clone(), now));
        let loop_wait = view.config().timing().loop_wait;
        if view.system_id().is_some_and(|id| *id != observe::system_id()) {
            self.tell("race", "this data belongs to another cluster: keeping out of everything");
            page().close();
            return loop_wait;
        }
        // The keeper wakes the turns when it has got another lease.
        let Some(held) = held.filter(|held| self.held.get().is_some_and(|now| now.grant.lease == held.grant.lease)) else { return RETRY };
        if apply::change_ttl(self, &view, held).await {
            // The view is of before: who leads on which lease is read again.
            return RETRY;
        }
        self.settle_page(&view, held, server, now).await;
        publish::member(self, &view, server, now).await;
        publish::status(self, &view, server, now).await;
        self.race(&view, server, now).await.min(loop_wait)
    }

    /// Another instance goes by our name: no key is ours to touch, and no lease.
    fn keep_out(&self, other: &InUse) -> Duration {
        page().close();
        self.held.set(None);
        self.moving.set(None);
        self.tell("lease", &format!("no lease: {other}"));
        mailbox::decline(&other.to_string());
        RETRY
    }

    /// Opens the page where the view says that this node leads on the lease it holds; closes it where not.
    async fn settle_page(&self, view: &ClusterView, held: Held, server: observe::Server, now: Moment) {
        let Some(leader) = view.leader_if(&self.name).filter(|leader| leader.lease == held.grant.lease) else {
            if page().term() != 0 || page().held_until().is_some() {
                page().close();
            }
            self.unpromoted_since.set(None);
            return self.give_up_misplaced(view, held, now).await;
        };
        self.misplaced_since.set(None);
        if cluster::failsafe::keeps_closed(page().is_promised(now), page().term(), leader.term.0) {
            // A take whose answer was lost was carried out after all, and meanwhile this node promised the
            // old leader to stay away: the key waits until the promise has run out.
            self.tell("leader", "the leader key is ours, but this node promised to stay away from it (failsafe_mode): waiting");
            return;
        }
        if view.is_standby_cluster() {
            return self.lead_standby_cluster(server, held.deadline, now);
        }
        page().forget_demotion();
        if self.may_serve(view) {
            page().open(leader.term.0, leader.lease.0, held.deadline);
        }
        if server.is_primary() {
            self.unpromoted_since.set(None);
            return;
        }
        let since = self.unpromoted_since.get().unwrap_or(now);
        self.unpromoted_since.set(Some(since));
        if now.since(since) > race::PROMOTION_PATIENCE && !view.config().paused() {
            // Closed first: were it promoted at this very moment, it could not commit.
            page().close();
            self.stands_down_until.set(Some(now + STAND_DOWN));
            self.tell("race", &Reason::NotPromotedInTime.to_string());
            if let Err(why) = self.etcd.release_leader(leader).await {
                self.tell("race", &format!("leader key not given up: {why}"));
            }
        }
    }

    /// As leader this node may acknowledge commits: not in a standby cluster, and not while others may still lead in its place, also if
    /// somebody promotes it by hand.
    pub fn may_serve(&self, view: &ClusterView) -> bool {
        !view.is_standby_cluster() && !view.sync.as_ref().is_some_and(|sync| sync.value.waits_for_promotion(&self.name))
    }

    /// A leader key that nobody can lead by goes after a TTL: whatever moved it meant to go on long before.
    async fn give_up_misplaced(&self, view: &ClusterView, held: Held, now: Moment) {
        let Some(leader) = view.leader.as_ref().filter(|_| race::misplaced(view, &self.name, held.grant.lease)) else {
            return self.misplaced_since.set(None);
        };
        let since = match self.misplaced_since.get() {
            Some((term, since)) if term == leader.term => since,
            _ => now,
        };
        self.misplaced_since.set(Some((leader.term, since)));
        if now.since(since) > held.grant.ttl {
            self.tell("leader", &format!("the leader key of {} is not on its lease, so nobody can lead by it: giving it up", leader.name));
            if let Err(why) = self.etcd.release_leader(leader).await {
                self.tell("leader", &format!("leader key not given up: {why}"));
            }
        }
    }

    /// The key is kept without a promotion, and with a closed fence. A server that is primary still is to be
    /// stopped by its arbiter: nothing that begins from now on is acknowledged, also if there is no arbiter.
    fn lead_standby_cluster(&self, server: observe::Server, deadline: Moment, now: Moment) {
        self.unpromoted_since.set(None);
        if !server.is_primary() {
            page().hold(deadline);
        } else if page().drain_for_demotion(now) {
            self.tell("leader", "standby_cluster is set: new transactions wait at their commit until this server is a standby");
        }
    }

    /// Races where there is a vacancy. Gives the time until the next look.
    async fn race(&self, view: &ClusterView, server: observe::Server, now: Moment) -> Duration {
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
        let promised = !server.is_primary() && page().is_promised(now);
        let me = Candidate {
            name: self.name.clone(),
            tags: publish::wanted(self).tags,
            primary: server.is_primary(),
            timeline: server.timeline(),
            lsn: server.position(),
            end_known: server.end_known(),
            streaming: server.streaming(),
            arbiter: page().arbiter_attends(now, publish::patience_with_arbiter(self)),
            vacant_for: now.since(since),
            promised,
            stood_down: self.stands_down_until.get().is_some_and(|until| now < until),
        };
        let decision = race::decide(view, &me);
        self.tell_why("race", apply::name_of(&decision.what), &decision.why.to_string());
        match apply::race_step(self, decision).await {
            Applied::Settled => view.config().timing().loop_wait,
            Applied::LookAfter(pause) => pause,
            Applied::LookNow => {
                self.look_again();
                Duration::ZERO
            }
        }
    }

    /// Since when nobody leads, as far as this node has seen.
    pub fn vacant_since(&self) -> Option<Moment> {
        self.vacancy.get().map(|(_, since)| since)
    }

    /// Tells a change once: in Postgres' log and in `tenure.events()`.
    pub fn tell(&self, kind: &str, text: &str) {
        self.tell_why(kind, text, "");
    }

    /// As [`Worker::tell`], with the reason apart.
    pub fn tell_why(&self, kind: &str, text: &str, cause: &str) {
        let line = if cause.is_empty() { format!("{kind}: {text}") } else { format!("{kind}: {text}: {cause}") };
        // Milliseconds left and the like change with every repetition; the words before them don't.
        let gist = |line: &str| line.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        if gist(&self.told.borrow()) == gist(&line) {
            return;
        }
        pgrx::log!("pg_tenure {line}");
        page().record_event(kind, text, cause, page().term());
        *self.told.borrow_mut() = line;
    }
}
