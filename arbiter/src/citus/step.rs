//! Are the other nodes in step? A row that was moved on the coordinator is carried to them by Citus' maintenance daemon, woken by the
//! commit. This looks whether it was, and says so where it takes long: statements that start there use the old address until then.

use super::keeper::{Keeper, Step};
use super::session::RETRY;
use std::time::{Duration, Instant};

/// Between two looks while they are not.
const SOON: Duration = Duration::from_millis(50);

/// Between two looks while others wait for it.
const AT_ONCE: Duration = Duration::from_millis(10);

/// Past this an attempt is ended that began long before the rows were changed: it may wait for a node that is not there any more.
const STALE: Duration = Duration::from_millis(1500);

/// Past this somebody is told.
const LONG: Duration = Duration::from_secs(3);

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

    /// Looks, and gives the time until the next look where they are not.
    pub(super) async fn look_after_step(&mut self) -> Duration {
        match self.in_step().await {
            true => Duration::MAX,
            false if self.step.told => RETRY,
            false => SOON,
        }
    }
}
