//! Where the time of an unplanned failover goes: the new leader's own account of it, by `tenure.events()` and its arbiter's timings.
//!
//! All processes share one machine, so one wall clock orders the fault and what every server says of it.

use crate::cluster::Cluster;
use crate::workload::Ledger;
use anyhow::{Context, Result};
use std::fmt;
use std::time::{Duration, Instant, SystemTime};

/// The moment of a fault, on the clock of writers and on that of servers.
#[derive(Debug, Clone, Copy)]
pub struct Struck {
    at: Instant,
    wall: SystemTime,
}

impl Struck {
    /// Now.
    pub fn now() -> Struck {
        Struck { at: Instant::now(), wall: SystemTime::now() }
    }

    /// On the clock of writers.
    pub fn at(self) -> Instant {
        self.at
    }
}

/// The phases of one failover, in their order; they add up to the time from the fault to the first commit that the new leader acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases {
    /// From the fault until the next leader said its first word in the race: the leader is lost to it, or its lease has run out.
    pub detect: Duration,
    /// From that word until it went for the key: it ended its receiver, wrote its position, and had the words of those that it needs.
    pub announce: Duration,
    /// From there until the key was its own.
    pub take: Duration,
    /// From the arbiter's decision to promote until Postgres had left recovery.
    pub promote: Duration,
    /// What is left until a client's commit was acknowledged there: arbiter and client take notice, connect and write.
    pub first_write: Duration,
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Phases { detect, announce, take, promote, first_write } = self;
        let phases = [("detect", detect), ("announce", announce), ("take", take), ("promote", promote), ("first write", first_write)];
        let told: Vec<String> = phases.iter().map(|(name, took)| format!("{name} {}", took.as_millis())).collect();
        write!(f, "{} ms", told.join(", "))
    }
}

impl Phases {
    /// Asks the present leader, which must not have led before the fault. Errors: it can't be asked, or its events don't have the step.
    pub async fn of(cluster: &Cluster, struck: Struck, ledger: &Ledger) -> Result<Phases> {
        let leader = cluster.leader().await;
        let since = struck.wall.duration_since(SystemTime::UNIX_EPOCH).context("the wall clock")?.as_micros();
        let events = leader
            .query(&format!(
                "SELECT (extract(epoch FROM at) * 1000000)::bigint - {since}, event FROM tenure.events()
                 WHERE at >= to_timestamp({since} / 1000000.0) AND kind IN ('race', 'leader') ORDER BY at"
            ))
            .await?;
        let after = |wanted: &[&str], from: Duration| {
            let found = events.iter().find_map(|row| {
                let at = Duration::from_micros(row[0].parse().ok()?);
                (at >= from && wanted.iter().any(|wanted| row[1].starts_with(wanted))).then_some(at)
            });
            found.with_context(|| format!("{} says nothing of {wanted:?}: {events:?}", leader.name()))
        };
        let word = after(&["stand", "depose the leader"], Duration::ZERO)?;
        let going = after(&["take the leader key"], word)?;
        let took = after(&["took the leader key"], going)?;
        let first = ledger.acknowledged().find(|one| one.known > struck.at + took).context("nothing was acknowledged afterwards")?;
        let page = leader.get("/metrics").await?.body;
        let line = page.lines().find(|line| line.starts_with("tenure_promotion_seconds_sum"));
        let promote = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).map(Duration::from_secs_f64);
        let promote = promote.with_context(|| format!("{} has no tenure_promotion_seconds", leader.name()))?;
        Ok(Phases {
            detect: word,
            announce: going - word,
            take: took - going,
            promote,
            first_write: (first.known - struck.at).saturating_sub(took + promote),
        })
    }
}
