//! `failsafe_mode`: etcd is away, and the leader goes on as long as every known member promises not to
//! take its key.
//!
//! A promise is kept in the member's shared memory, where the lease worker looks before it takes the
//! key, and in its arbiter, which renews it before it attaches to a restarted server (a server without
//! an arbiter does not stand). The leader counts from before it asked, the members from when they
//! answered, so the leader's time is over first.
//!
//! A member promises for one TTL of its own at most, whoever asks, and says where that is less than it was asked for. `/patroni` tells
//! the promise, a switchover waits for its end while the old leader still serves, and it ends early where the leader's lease outlives it.

use crate::daemon::snapshot::NodeHandle;
use crate::node::Node;
use crate::postgres::query::LocalSql;
use anyhow::{Context, Result, bail};
use cluster::failsafe::Refusal;
use cluster::lease;
use cluster::time::Moment;
use cluster::view::ClusterView;
use dcs::Dcs;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// One member's answer must come within this, so that a round fits into a quarter of the shortest lease.
const ANSWER_PATIENCE: Duration = Duration::from_millis(600);

/// CLOCK_BOOTTIME: the clock that the extension's page counts by, on the same host.
pub fn boottime() -> Moment {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Moment(Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0)))
}

/// A promise as the arbiter remembers it. Cheap to clone.
///
/// Until when one binds lies in memory, the clock it is counted on ends with the host. For how long one may bind that was given
/// before this arbiter began lies in a file beside the data: `ttl` may have been lowered since.
#[derive(Debug, Clone, Default)]
pub struct Promise(Arc<Mutex<Given>>, Arc<AtomicU64>);

/// Until when, and to whom; an arbiter that starts does not know whom the one before it promised something.
#[derive(Debug, Clone, Default)]
struct Given {
    until: Moment,
    to: Option<String>,
}

impl Promise {
    fn given(&self) -> MutexGuard<'_, Given> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises until then; never less than before.
    pub fn extend(&self, until: Moment, to: Option<&str>) {
        let mut given = self.given();
        if until > given.until {
            // What binds longest is what has to end; to two at a time nothing ends early.
            let another = given.until > boottime() && given.to.as_deref() != to;
            *given = Given { until, to: to.filter(|_| !another).map(str::to_owned) };
        }
    }

    /// How long it binds yet, and to whom it was given.
    pub fn left(&self) -> Option<(Duration, Option<String>)> {
        let given = self.given();
        let left = given.until.since(boottime());
        (!left.is_zero()).then(|| (left, given.to.clone()))
    }

    /// It is over before its time where the leader it was given to holds its key for longer.
    pub async fn end_where_superseded(&self, view: &ClusterView, etcd: &dcs::Etcd, sql: &LocalSql) -> Result<()> {
        let Given { until, to: Some(to) } = self.given().clone() else { return Ok(()) };
        let now = boottime();
        let Some(leader) = view.leader.as_ref().filter(|leader| until > now && leader.name.as_str() == to) else { return Ok(()) };
        let left = etcd.lease_left(leader.lease).await?;
        if !cluster::failsafe::is_superseded(view, &to, until, now, left) {
            return Ok(());
        }
        // The page first, and only this promise: one that was given meanwhile binds longer.
        sql.ask(&format!("SELECT tenure_internal.end_promise({})", until.as_nanos())).await.context("end the promise of failsafe_mode")?;
        let mut given = self.given();
        if given.until == until {
            *given = Given::default();
        }
        tracing::info!("failsafe_mode: the promise to {to} is over, its lease outlives it");
        Ok(())
    }

    /// A promise for so long is about to be given: durably known before it is. Less is written down only while none binds.
    async fn write_down(&self, data_dir: &Path, ttl: Duration) -> Result<()> {
        let (known, binds) = (self.1.load(Ordering::SeqCst), self.left().is_some());
        if ttl.as_secs() > known || ttl.as_secs() < known && !binds {
            let path = file(data_dir);
            crate::postgres::write_atomically(&path, &ttl.as_secs().to_string(), 0o600).await.context("write the promise down")?;
            self.1.store(ttl.as_secs(), Ordering::SeqCst);
        }
        Ok(())
    }

    /// This arbiter begins: one before it may have promised a moment ago, for as long as it wrote down, or for `ttl` where
    /// nothing is written.
    pub async fn recall(&self, data_dir: &Path, ttl: Option<Duration>) -> Result<()> {
        let written = crate::postgres::read_if_there(&file(data_dir)).await?;
        let written = written.and_then(|text| text.trim().parse().ok()).map(Duration::from_secs);
        if let Some(longest) = written.max(ttl) {
            self.extend(boottime() + longest, None);
        }
        self.1.store(written.unwrap_or_default().as_secs(), Ordering::SeqCst);
        Ok(())
    }

    /// Puts a promise that still holds into the server's shared memory. Called before the arbiter
    /// attaches: until then a standby does not stand.
    pub async fn renew(&self, sql: &LocalSql) -> Result<()> {
        let until = self.given().until;
        if until > boottime() {
            sql.ask(&format!("SELECT tenure_internal.promise({})", until.as_nanos()))
                .await
                .context("renew the promise of failsafe_mode")?;
        }
        Ok(())
    }
}

fn file(data_dir: &Path) -> PathBuf {
    let mut name = data_dir.as_os_str().to_owned();
    name.push(".tenure-promise");
    PathBuf::from(name)
}

/// Keeps the `failsafe` key equal to the members while the mode is on, and empty while it is off.
pub async fn publish(node: &Node, view: &ClusterView, leader: &cluster::leader::Leader) -> Result<()> {
    let Some(members) = cluster::failsafe::key_to_write(view) else { return Ok(()) };
    // Before it is sent: whatever becomes of the answer, those it adds may stand from then on.
    node.note_failsafe_sent(&members);
    node.etcd.write_failsafe(&members, ClusterView::revision_of(&view.failsafe), leader).await.context("write the failsafe key")?;
    node.note_failsafe_written(members);
    Ok(())
}

/// Asks every member in the `failsafe` key; if all promise, the fence stays open for another TTL.
pub async fn ask_all(node: &Node, view: &ClusterView) -> Result<()> {
    let known = cluster::failsafe::whom_to_ask(view, node.failsafe_sent().as_ref(), &node.config.name)?;
    let ttl = view.config().timing().ttl;
    let asked_at = boottime();
    let address = &node.config.postgres.connect_address;
    let body = json!({
        "name": node.config.name,
        "conn_url": format!("postgres://{address}/{}", node.config.postgres.database),
        "api_url": format!("{}/patroni", node.config.rest.url()),
        "ttl": ttl.as_secs(),
    });
    let asks = known.iter().map(|(name, api_url)| {
        let body = &body;
        async move {
            let answer = node.caller.ask(api_url, "POST", "failsafe", Some(body), ANSWER_PATIENCE).await;
            match answer {
                Ok((200, _)) => Ok(ttl),
                Ok((202, text)) => shorter(&text).with_context(|| format!("{name} promises for an unknown time: {text}")),
                Ok((status, text)) => bail!("{name} does not promise: {status} {text}"),
                Err(why) => Err(why).with_context(|| format!("{name} does not promise")),
            }
        }
    });
    let promised = futures_util::future::try_join_all(asks).await?;
    let until = lease::deadline(asked_at, promised.into_iter().fold(ttl, Duration::min));
    let open = node.sql.ask(&format!("SELECT tenure_internal.extend_lease({})", until.as_nanos())).await?;
    if !open {
        bail!("the fence is closed: this node does not lead");
    }
    Ok(())
}

/// What a member answers whose own TTL is shorter than the leader's.
pub fn accepted_for(promised: Duration) -> String {
    format!("{ACCEPTED_FOR}{}", promised.as_millis())
}

const ACCEPTED_FOR: &str = "Accepted, for so many milliseconds only: ";

fn shorter(text: &str) -> Option<Duration> {
    text.strip_prefix(ACCEPTED_FOR)?.trim().parse().ok().map(Duration::from_millis)
}

/// A leader without etcd asks this node for its promise. The sentence of a refusal goes back to it.
///
/// An arbiter that has not read etcd since it began does not promise: it knows neither who leads nor whether the
/// mode is on, and a leader that counted on it would count on a node that may have been told otherwise.
///
/// Gives for how long it is promised: at most one TTL of this node's own configuration.
pub async fn promise(node: &NodeHandle, view: &ClusterView, leader: &str, asked: Option<Duration>) -> Result<Duration, (u16, String)> {
    if node.snapshot.borrow().view_at.is_none() {
        return Err((503, "this arbiter has not read etcd since it began".to_owned()));
    }
    cluster::failsafe::may_promise(view, leader).map_err(|why| match why {
        Refusal::Off => (502, why.to_string()),
        Refusal::AnotherLeads(_) | Refusal::AnotherLed(_) => (500, why.to_string()),
    })?;
    let promised = cluster::failsafe::promised_for(view, asked);
    if let Err(why) = node.promise.write_down(&node.config.postgres.data_dir, promised).await {
        return Err((503, format!("the promise can't be kept here: {why:#}")));
    }
    let until = boottime() + promised;
    // Its page may know of a tenure of its own that this arbiter slept through.
    let known = cluster::failsafe::latest_tenure(view);
    let ask = format!(
        "SELECT CASE WHEN coalesce((SELECT fencing_token FROM tenure.lease()), 0) > {known} THEN false ELSE tenure_internal.promise({}) END",
        until.as_nanos()
    );
    match node.sql.ask(&ask).await {
        Ok(true) => {
            node.promise.extend(until, Some(leader));
            Ok(promised)
        }
        Ok(false) => Err((500, "Running as a leader, or led since".to_owned())),
        Err(why) => Err((503, format!("the promise can't be kept here: {why:#}"))),
    }
}
