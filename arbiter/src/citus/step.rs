//! Are the other nodes in step? A row that was moved on the coordinator is carried to them by Citus' maintenance daemon, woken by the
//! commit. This looks whether it was, and says so where it takes long: statements that start there use the old address until then.

use super::Keeper;
use anyhow::Result;
use cluster::leader::Leader;
use std::time::{Duration, Instant};

/// Between two looks while they are not.
const SOON: Duration = Duration::from_millis(50);

/// Between two looks while others wait for it.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Past this an attempt is ended that began long before the rows were changed: it may wait for a node that is not there any more.
const STALE: Duration = Duration::from_millis(1500);

/// Clients of other nodes are kept waiting for no longer than this.
const WAITED_FOR: Duration = Duration::from_secs(3);

/// Past this somebody is told.
const LONG: Duration = Duration::from_secs(3);

/// How long the nodes have been behind.
#[derive(Default)]
pub struct Step {
    behind: Option<Instant>,
    told: bool,
    hurried: bool,
}

impl Keeper {
    /// True where every node has what this one has, in every database.
    pub(super) async fn in_step(&mut self) -> bool {
        let mut behind = Vec::new();
        for database in &mut self.databases {
            match database.behind().await {
                Ok(nodes) => behind.extend(nodes),
                Err(why) => {
                    tracing::debug!("Citus, {}: {why:#}", database.name);
                    behind.push("nodes that could not be asked for".to_owned());
                }
            }
        }
        let Some(since) = self.step.behind else {
            self.step.behind = (!behind.is_empty()).then(Instant::now);
            return behind.is_empty();
        };
        if behind.is_empty() {
            tracing::info!("Citus: the metadata of all nodes is in step, after {} ms", since.elapsed().as_millis());
            self.step = Step::default();
        } else if since.elapsed() > STALE && !self.step.hurried {
            self.step.hurried = true;
            for database in &mut self.databases {
                database.hurry(since.elapsed() + STALE).await;
                // A new session starts the maintenance daemon, should there be none.
                database.close();
            }
        } else if since.elapsed() > LONG && !self.step.told {
            self.step.told = true;
            tracing::warn!(
                "Citus: statements that start on {} use old addresses: the metadata there is behind for {} s; hint: the server's log on the coordinator says why",
                behind.join(", "),
                LONG.as_secs()
            );
        }
        behind.is_empty()
    }

    /// Waits until they are, but no longer than this.
    pub(super) async fn wait_in_step(&mut self, most: Duration) {
        let began = Instant::now();
        while !self.in_step().await && began.elapsed() < most {
            tokio::time::sleep(AT_ONCE).await;
        }
    }

    /// Looks, and lets clients of other nodes go on once they are. Gives the time until the next look where they are not.
    pub(super) async fn look_after_step(&mut self, leader: &Leader) -> Result<Duration> {
        let in_step = self.in_step().await;
        if in_step || self.step.behind.is_some_and(|since| since.elapsed() > WAITED_FOR) {
            self.open_gates(leader).await?;
        }
        Ok(match in_step {
            true => Duration::MAX,
            false if !self.gated.is_empty() => AT_ONCE,
            false if self.step.told => super::RETRY,
            false => SOON,
        })
    }
}
