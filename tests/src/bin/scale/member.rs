//! A member without a server: `keeper`'s host over a role and a position that moves slowly. Its arbiter attends, and promotes at once.

use crate::meter::{Meter, Renewal};
use cluster::lsn::Lsn;
use cluster::member;
use cluster::name::{MemberName, SystemId, Timeline};
use cluster::slots::Publication;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::remember::Remembered;
use keeper::{Host, OwnServer, Tenure};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// A primary writes 16 KiB of WAL a second: its position is another one at each look.
const WAL_BYTES_A_MS: u64 = 16;

/// Where the first primary begins, as after initdb.
const FIRST_END: u64 = 0x0300_0000;

/// CLOCK_BOOTTIME now, by which deadlines are counted.
pub fn boottime() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Moment(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
}

/// The WAL of a group: who writes it, and how far it is.
pub struct Wal {
    primary: Cell<Option<usize>>,
    timeline: Cell<u32>,
    /// The end when the present primary began, or when the last one was gone.
    end: Cell<u64>,
    since: Cell<Moment>,
}

impl Wal {
    /// As the first member founds it.
    pub fn begin() -> Rc<Wal> {
        let (primary, timeline) = (Cell::new(Some(0)), Cell::new(1));
        Rc::new(Wal { primary, timeline, end: Cell::new(FIRST_END), since: Cell::new(boottime()) })
    }

    /// The member that writes it.
    pub fn primary(&self) -> Option<usize> {
        self.primary.get()
    }

    fn end(&self) -> u64 {
        let written =
            self.primary.get().map_or(0, |_| u64::try_from(boottime().since(self.since.get()).as_millis()).unwrap_or(0) * WAL_BYTES_A_MS);
        self.end.get() + written
    }

    /// The primary is gone, and nothing more is written.
    pub fn lose_primary(&self) {
        self.end.set(self.end());
        self.primary.set(None);
    }

    /// Another one goes on from what it has.
    fn promote(&self, member: usize, from: u64) {
        self.end.set(from);
        self.since.set(boottime());
        self.timeline.set(self.timeline.get() + 1);
        self.primary.set(Some(member));
    }
}

/// One member: the process that a lease worker's loops run in.
pub struct Member {
    /// The number of its group, and its own in it.
    pub group: usize,
    /// See `group`.
    pub number: usize,
    /// Its name.
    pub name: MemberName,
    /// Wakes the turns; the watch does.
    pub wake: Arc<Notify>,
    lease_wanted: Notify,
    page: Tenure,
    wal: Rc<Wal>,
    /// Its receiver was told to end, here; it begins again once somebody leads.
    stopped_at: Cell<Option<u64>>,
    remembered: Arc<Remembered>,
    meter: Arc<Meter>,
}

impl Member {
    /// A member of this group.
    pub fn new(group: usize, number: usize, name: MemberName, wal: Rc<Wal>, remembered: Arc<Remembered>, meter: Arc<Meter>) -> Member {
        let page = Tenure::default();
        page.begin(cluster::fence::Mode::Closed);
        let (wake, lease_wanted, stopped_at) = (Arc::new(Notify::new()), Notify::new(), Cell::new(None));
        Member { group, number, name, wake, lease_wanted, page, wal, stopped_at, remembered, meter }
    }

    fn is_primary(&self) -> bool {
        self.wal.primary() == Some(self.number)
    }
}

/// Whose data a group has.
pub fn system_id(group: usize) -> SystemId {
    SystemId((7_400_000_000_000_000_000 + group as u64).to_string())
}

impl Host for Member {
    fn clock(&self) -> Moment {
        boottime()
    }

    fn wall_clock(&self) -> jiff::Timestamp {
        jiff::Timestamp::now()
    }

    async fn sleep(&self, span: Duration) {
        tokio::time::sleep(span).await;
    }

    fn look_again(&self) {
        self.wake.notify_one();
    }

    async fn look_wanted(&self) {
        self.wake.notified().await;
    }

    fn want_lease(&self) {
        self.lease_wanted.notify_one();
    }

    async fn lease_wanted(&self) {
        self.lease_wanted.notified().await;
    }

    /// The key was taken: its arbiter promotes, and that takes no time.
    fn wake_arbiter(&self) {
        if !self.is_primary() {
            self.wal.promote(self.number, self.stopped_at.take().unwrap_or_else(|| self.wal.end()));
        }
        self.meter.took(self.group, boottime());
        self.look_again();
    }

    fn server(&self) -> OwnServer {
        let timeline = Timeline(self.wal.timeline.get());
        let end = Lsn(self.stopped_at.get().unwrap_or_else(|| self.wal.end()));
        if self.is_primary() {
            return OwnServer::Primary { timeline, flushed: end, confirmed: None };
        }
        OwnServer::Standby { timeline, received: end, replayed: end, streaming: self.receiver_running(), end_known: true }
    }

    fn system_id(&self) -> SystemId {
        system_id(self.group)
    }

    fn checkpointed_timeline(&self) -> Option<Timeline> {
        Some(Timeline(self.wal.timeline.get()))
    }

    fn receiver_running(&self) -> bool {
        self.wal.primary().is_some_and(|primary| primary != self.number) && self.stopped_at.get().is_none()
    }

    fn stop_receiver(&self) {
        self.stopped_at.set(Some(self.wal.end()));
    }

    fn page(&self) -> &Tenure {
        &self.page
    }

    fn change<T>(&self, change: impl FnOnce(&Tenure) -> T) -> T {
        change(&self.page)
    }

    fn before_renewal(&self) -> i64 {
        0
    }

    fn after_renewal(&self, _look: i64) {}

    fn arbiter_attends(&self, _now: Moment, _patience: Duration) -> bool {
        true
    }

    fn configured(&self) -> (member::Member, Option<String>) {
        let (group, number) = (self.group, self.number + 1);
        let configured = serde_json::json!({
            "conn_url": format!("postgres://10.{number}.{}.{}:5432/postgres", group / 256, group % 256),
            "api_url": format!("http://10.{number}.{}.{}:8008/patroni", group / 256, group % 256),
            "state": "running",
            "role": "replica",
            "version": dcs::SURFACE_VERSION,
        });
        (serde_json::from_value(configured).expect("a constant that parses"), None)
    }

    fn describe(&self, _member: &mut member::Member) {}

    fn slots(&self) -> Option<Publication> {
        None
    }

    fn remembered(&self) -> Option<&Remembered> {
        Some(&self.remembered)
    }

    fn record(&self, _kind: &str, _text: &str, _cause: &str, line: &str) {
        self.meter.said(line);
    }

    fn note(&self, _why: &str) {}

    fn turn_begins(&self) {}

    fn etcd_answered(&self) {}

    /// Its arbiter lets the receiver go on once somebody leads.
    fn seen(&self, view: &ClusterView) {
        self.page.know_generation(view.store_generation());
        if view.leader.as_ref().is_some_and(|leader| leader.name != self.name) {
            self.stopped_at.set(None);
        }
    }

    async fn serve_requests(&self, _view: &ClusterView) {}

    fn decline_requests(&self, _why: &str) {}

    fn renewal_took(&self, took: Duration) {
        let leads = matches!(self.page.mode(), cluster::fence::Mode::Open | cluster::fence::Mode::Draining);
        self.meter.renewed(Renewal { group: self.group, leads, ended: boottime(), took });
    }

    fn race_took(&self, _span: Duration) {}
}
