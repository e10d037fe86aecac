//! What this node promised in `failsafe_mode`: not to take the leader key for a while (`upkeep/failsafe.rs` says how it is asked).

use crate::ground::clock::boottime;
use crate::postgres::query::LocalSql;
use anyhow::{Context, Result};
use cluster::time::Moment;
use cluster::view::ClusterView;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

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
    pub async fn write_down(&self, data_dir: &Path, ttl: Duration) -> Result<()> {
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
