//! The coordinator's side of a planned change in a worker group: an open transaction that has moved the group's primary aside keeps every
//! writer waiting for it; committing it with the new address lets them go on there.
//!
//! One transaction for all groups that are held at a time: `citus_update_node` locks `pg_dist_node`, so that a second transaction
//! would wait for the first, and with it the second group.

use super::Keeper;
use anyhow::{Context, Result};
use cluster::citus::{self, Groups, NodeRole, Release, Row, Step};
use cluster::leader::Leader;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The groups whose writers wait.
#[derive(Default)]
pub struct Holds(BTreeMap<u32, Hold>);

struct Hold {
    request: i64,
    /// The leader's term when it asked.
    term: i64,
    since: Instant,
    /// The row of its primary as it was, by database.
    rows: Vec<Option<Row>>,
    /// Its rows are right again; what is missing is the commit.
    released: Option<Release>,
}

impl Holds {
    /// Are this group's writers held?
    pub fn holds(&self, group: u32) -> bool {
        self.0.contains_key(&group)
    }

    /// Are nobody's?
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Keeper {
    /// Begins and ends holds. Gives the time until the next one runs out.
    pub(super) async fn hold(&mut self, groups: &Groups, leader: &Leader) -> Result<Option<Duration>> {
        let limit = limit(groups);
        let done = self.tend_holds(groups, leader, limit).await;
        if done.is_err() && !self.holds.is_empty() {
            // Nothing is known of the transaction: without its session it is rolled back.
            self.databases.iter_mut().for_each(super::Database::close);
            self.holds = Holds::default();
        }
        done?;
        Ok(self.holds.0.values().map(|hold| limit.saturating_sub(hold.since.elapsed())).min())
    }

    async fn tend_holds(&mut self, groups: &Groups, leader: &Leader, limit: Duration) -> Result<()> {
        for (group, view) in groups {
            match citus::hold_wanted(view) {
                Some((request, asked)) if *group != citus::COORDINATOR && !self.holds.holds(*group) && !citus::is_held(view, request) => {
                    let term = asked.term;
                    self.begin_hold(*group, request, term, limit, super::cooldown(&self.hands, view))
                        .await
                        .with_context(|| format!("hold the writers of group {group}"))?;
                    self.scope.answer_hold(*group, request, leader).await?;
                }
                _ => {}
            }
        }
        self.release(groups).await?;
        if self.holds.is_empty() || self.holds.0.values().any(|hold| hold.released.is_none()) {
            return Ok(());
        }
        for database in &mut self.databases {
            database.commit().await?;
        }
        for (group, hold) in std::mem::take(&mut self.holds).0 {
            let why = hold.released.unwrap_or(Release::TimedOut);
            tracing::info!("Citus: writers of group {group} were held for {} ms: {why}", hold.since.elapsed().as_millis());
            self.scope.clear_hold(group, hold.request, leader).await?;
        }
        Ok(())
    }

    /// When this returns nobody writes to the group through this coordinator.
    async fn begin_hold(&mut self, group: u32, request: i64, term: i64, limit: Duration, cooldown: Duration) -> Result<()> {
        let since = Instant::now();
        let mut rows = Vec::new();
        for database in &mut self.databases {
            let found = database.rows().await?;
            let row = found.into_iter().find(|row| row.group == group && row.role == NodeRole::Primary);
            database.begin(limit + Duration::from_secs(5)).await?;
            if let Some(row) = &row {
                let aside = Step::Move { id: row.id, to: citus::demoted(&row.at) };
                database.steps(&[aside], cooldown).await?;
            }
            rows.push(row);
        }
        tracing::info!("Citus: writers of group {group} wait, after {} ms", since.elapsed().as_millis());
        self.holds.0.insert(group, Hold { request, term, since, rows, released: None });
        Ok(())
    }

    /// Puts the rows of groups whose hold ends to where they belong, in the transaction that holds them.
    async fn release(&mut self, groups: &Groups) -> Result<()> {
        let nobody = Default::default();
        for (group, hold) in self.holds.0.iter_mut().filter(|(_, hold)| hold.released.is_none()) {
            let view = groups.get(group).unwrap_or(&nobody);
            // The span is the hold's own: the server, too, counts from the moment the transaction was idle.
            let Some(why) = citus::release(view, hold.request, hold.term, hold.since.elapsed(), limit(groups)) else { continue };
            let wanted: BTreeMap<_, _> = citus::wanted(view).map(|wanted| (*group, wanted)).into_iter().collect();
            for (database, row) in self.databases.iter_mut().zip(&hold.rows) {
                match (row, wanted.is_empty()) {
                    (Some(row), true) => database.steps(&[Step::Move { id: row.id, to: row.at.clone() }], Duration::ZERO).await?,
                    _ => database.move_held(&wanted).await?,
                }
            }
            hold.released = Some(why);
        }
        Ok(())
    }
}

/// How long writers are held at most: twice the time in which a worker whose node died has another leader.
fn limit(groups: &Groups) -> Duration {
    let ttl = groups.get(&citus::COORDINATOR).map(|own| own.config().timing().ttl).unwrap_or_default();
    (ttl * 2).max(Duration::from_secs(10))
}
