//! The coordinator's side of a planned change in a worker group: an open transaction that has moved the group's primary aside keeps every
//! writer waiting for it; committing it with the new address lets them go on there.
//!
//! One transaction for all groups that are held at a time: `citus_update_node` locks `pg_dist_node`, so that a second transaction
//! would wait for the first, and with it the second group.

use super::database::Database;
use super::holds::{Closing, Hold, limit_of};
use super::keeper::Keeper;
use super::name;
use super::request::{as_long_as, asked_no_more};
use super::session::{RETRY, cooldown};
use anyhow::{Context, Result, anyhow};
use cluster::citus::{self, Groups, NodeRole, Release, Step};
use cluster::leader::Leader;
use cluster::view::ClusterView;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The savepoint before a group's part of the transaction.
const BEFORE: &str = "before";

/// How often a name is asked where it leads, while writers wait for that: who moves it tells nobody.
const ASK_AGAIN: Duration = Duration::from_millis(50);

/// A hold that was asked for.
struct Begins {
    group: u32,
    request: i64,
    term: i64,
    /// How long transactions that use the group may go on.
    cooldown: Duration,
    /// Where they go on for longer, they are not ended and the change is not made.
    calls_off: bool,
}

/// What became of it.
enum Begun {
    Held,
    /// It is not, and why.
    Not(String),
}

impl Keeper {
    /// Begins and ends holds. Gives the time until the next one runs out.
    pub(super) async fn hold(&mut self, groups: &Groups, leader: &Leader) -> Result<Option<Duration>> {
        let limit = limit_of(groups);
        let done = self.look_after_holds(groups, leader, limit).await;
        if done.is_err() && !self.holds.is_empty() {
            // Nothing is known of the transaction: without its session it is rolled back.
            self.databases.iter_mut().for_each(Database::close);
            self.holds.held.clear();
        }
        if self.holds.is_empty() {
            self.gate.open(&self.node).await;
        }
        done?;
        let end = |hold: &Hold| if hold.awaits_name { ASK_AGAIN } else { limit.saturating_sub(hold.since.elapsed()) };
        let ends = self.holds.held.values().map(end);
        Ok(ends.chain((!self.holds.failed.is_empty()).then_some(RETRY)).min())
    }

    async fn look_after_holds(&mut self, groups: &Groups, leader: &Leader, limit: Duration) -> Result<()> {
        self.holds.failed.retain(|_, at| at.elapsed() < RETRY);
        let asks = |group: &u32, view: &ClusterView, request| {
            *group != citus::COORDINATOR
                && !self.holds.holds(*group)
                && citus::answer(view, request).is_none()
                && !self.holds.failed.contains_key(&request)
        };
        let asking = groups.iter().filter_map(|(group, view)| Some((*group, view, citus::hold_wanted(view)?)));
        let mut asking: Vec<_> = asking.filter(|(group, view, (request, _))| asks(group, view, *request)).collect();
        let grace = citus::grace(groups, self.node.config.citus.as_ref().and_then(|citus| citus.grace_s));
        let mut left = 0;
        if self.holds.is_empty()
            && let Some(cooldown) = asking.iter().map(|(_, view, _)| cooldown(&self.node, view)).max()
        {
            let requests: Vec<_> = asking.iter().map(|(group, _, (request, _))| (*group, *request)).collect();
            match self.close_gates(groups, &requests, leader, &Closing { grace, cooldown, limit }).await {
                Some(still) => left = still,
                None => {
                    let groups: Vec<String> = requests.iter().map(|(group, _)| group.to_string()).collect();
                    tracing::warn!("Citus: writers of group {} are not held: nobody asks for it any more", groups.join(", "));
                    asking.clear();
                }
            }
        }
        for (group, view, (request, asked)) in asking {
            let begins =
                Begins { group, request, term: asked.term, cooldown: cooldown(&self.node, view), calls_off: asked.prefers_statements };
            self.holds.failed.insert(request, Instant::now());
            let begun = match left {
                0 => self.begin_hold_while_asked(&begins, limit).await?,
                _ if begins.calls_off => {
                    Begun::Not(format!("{left} transactions are still under way after {} s (citus.grace)", grace.as_secs()))
                }
                _ => self.begin_hold_while_asked(&begins, limit).await?,
            };
            let refused = match begun {
                Begun::Held => None,
                Begun::Not(why) if begins.calls_off => Some(why),
                Begun::Not(_) => continue,
            };
            if let Some(why) = &refused {
                tracing::warn!("Citus: the change in group {group} is called off, statements come first (citus.prefer): {why}");
            }
            self.scope.answer_hold(group, request, leader, refused).await?;
            self.holds.failed.remove(&request);
        }
        self.release(groups).await?;
        if self.holds.is_empty() || self.holds.held.values().any(|hold| hold.released.is_none()) {
            return Ok(());
        }
        for database in &mut self.databases {
            database.commit().await?;
        }
        // Nobody here waits for the messages that follow.
        self.gate.open(&self.node).await;
        for (group, hold) in std::mem::take(&mut self.holds.held) {
            let why = hold.released.unwrap_or(Release::TimedOut);
            tracing::info!("Citus: writers of group {group} were held for {} ms: {why}", hold.since.elapsed().as_millis());
            self.scope.clear_hold(group, hold.request, leader).await?;
        }
        Ok(())
    }

    /// As [`Keeper::begin_hold`], for as long as the group asks for it: a transaction in the way may take until the cooldown ends, and the worker that
    /// asked may die meanwhile. Where that was so, or where it failed, this group's part of the transaction is undone.
    async fn begin_hold_while_asked(&mut self, begins: &Begins, limit: Duration) -> Result<Begun> {
        let (group, request) = (begins.group, begins.request);
        let mut backends = Vec::new();
        for database in &mut self.databases {
            database.begin(limit + Duration::from_secs(5)).await?;
            database.run(&format!("SAVEPOINT {BEFORE}")).await?;
            backends.push(database.backend().await?);
        }
        let (sql, scope, changes) = (self.node.sql.clone(), self.scope.clone(), self.changes.clone());
        let requests = [(group, request)];
        let over = asked_no_more(&scope, changes, &requests);
        let why = match as_long_as(&sql, &backends, over, self.begin_hold(begins)).await {
            Some(Ok(())) => return Ok(Begun::Held),
            Some(Err(why)) => why,
            None => {
                self.holds.held.remove(&group);
                anyhow!("nobody asks for it any more")
            }
        };
        tracing::warn!("Citus: writers of group {group} are not held: {why:#}");
        for database in &mut self.databases {
            database.run(&format!("ROLLBACK TO {BEFORE}")).await.with_context(|| format!("go on without a hold of group {group}"))?;
        }
        if self.holds.is_empty() {
            self.databases.iter_mut().for_each(Database::close);
        }
        Ok(Begun::Not(format!("{why:#}")))
    }

    /// When this returns nobody writes to the group through this coordinator.
    async fn begin_hold(&mut self, begins: &Begins) -> Result<()> {
        let Begins { group, request, term, cooldown, calls_off } = *begins;
        let since = Instant::now();
        let mut rows = Vec::new();
        for database in &mut self.databases {
            let found = database.rows().await?;
            let row = found.into_iter().find(|row| row.group == group && row.role == NodeRole::Primary);
            if let Some(row) = &row {
                let aside = Step::Move { id: row.id, to: citus::demoted(&row.at) };
                match calls_off {
                    true => database.step_aside(&aside, cooldown).await?,
                    false => database.steps(&[aside], cooldown).await?,
                }
            }
            rows.push(row);
        }
        tracing::info!("Citus: writers of group {group} wait, after {} ms", since.elapsed().as_millis());
        self.holds.held.insert(group, Hold { request, term, since, rows, awaits_name: false, released: None });
        Ok(())
    }

    /// Puts the rows of groups whose hold ends to where they belong, in the transaction that holds them.
    async fn release(&mut self, groups: &Groups) -> Result<()> {
        let nobody = Default::default();
        for (group, hold) in self.holds.held.iter_mut().filter(|(_, hold)| hold.released.is_none()) {
            let view = groups.get(group).unwrap_or(&nobody);
            // The span is the hold's own: the server, too, counts from the moment the transaction was idle.
            let Some(why) = citus::release(view, hold.request, hold.term, hold.since.elapsed(), limit_of(groups)) else { continue };
            hold.awaits_name =
                why == Release::Served && hold.since.elapsed() < limit_of(groups) && !name::leads_there(&self.node, view).await;
            if hold.awaits_name {
                continue;
            }
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
