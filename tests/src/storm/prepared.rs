//! Two-phase commits in a storm: prepared under a gid of their own, and ended on whatever server leads then.

use crate::node::{self, Node};
use crate::storm::shared::{AGAIN_AFTER, Act, CLIENT, EVERY_PREPARED, End, PATIENCE, Shared, Transaction, connect, insert};
use crate::workload::{Outcome, judge};
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio_postgres::{Client, SimpleQueryMessage};

/// Every so manieth is left alone when it is prepared, to be ended later.
const LEFT: u64 = 20;
/// So many are left at a time; the oldest is ended then.
const MOST_LEFT: usize = 8;
/// How long the last ones may take to end, in a cluster that is whole.
const FINISH: Duration = Duration::from_secs(60);

impl Transaction {
    /// Its name in `pg_prepared_xacts`.
    pub fn gid(&self) -> String {
        format!("storm-{}", self.prepare.id)
    }

    fn is_left(&self) -> bool {
        self.asked.is_none() && self.prepare.outcome == Outcome::Acknowledged
    }

    /// Ends it; true where that was acknowledged. What fails is looked up after the next connection.
    async fn end(&mut self, end: End, client: &Client) -> bool {
        self.asked = Some(end);
        let verb = if end == End::Commit { "COMMIT" } else { "ROLLBACK" };
        let sql = format!("{verb} PREPARED '{}'", self.gid());
        self.ended = matches!(tokio::time::timeout(PATIENCE[1], client.simple_query(&sql)).await, Ok(Ok(_)));
        self.last = Instant::now();
        self.ended
    }
}

/// The client: prepares, ends most of them at once, some later, and looks up by gid what it does not know.
pub async fn work(number: u64, servers: &[(String, u16)], shared: &Shared) {
    let mut session: Option<(usize, Client)> = None;
    let mut open: VecDeque<Transaction> = VecDeque::new();
    let mut count = 0;
    let mut tick = tokio::time::interval(EVERY_PREPARED);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !shared.stop.load(Ordering::Acquire) {
        let Some((server, client)) = &session else {
            session = connect(servers).await;
            let resolved = match &session {
                Some((_, client)) => resolve(client, &mut open).await,
                None => false,
            };
            if !resolved {
                session = None;
                tokio::time::sleep(AGAIN_AFTER).await;
            }
            continue;
        };
        count += 1;
        let prepare = prepare(number * CLIENT + count, *server, client).await;
        let mut new = Transaction { last: prepare.known, prepare, asked: None, ended: false, found: false };
        let mut went_well = new.prepare.outcome == Outcome::Acknowledged;
        if went_well {
            shared.acknowledged.fetch_add(1, Ordering::AcqRel);
            went_well = match new.prepare.id % LEFT {
                0 => true,
                1..6 => new.end(End::Rollback, client).await,
                _ => new.end(End::Commit, client).await,
            };
        }
        open.push_back(new);
        if went_well && open.iter().filter(|one| one.is_left()).count() > MOST_LEFT {
            let oldest = open.iter_mut().find(|one| one.is_left()).expect("some are left");
            went_well = oldest.end(End::Commit, client).await;
        }
        settle(&mut open, shared);
        if went_well {
            tick.tick().await;
        } else {
            session = None;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
    shared.ledger.lock().expect("no client panicked").transactions.extend(open);
}

/// Nothing is to be done any more for those that ended, or never began.
fn settle(open: &mut VecDeque<Transaction>, shared: &Shared) {
    let mut ledger = shared.ledger.lock().expect("no client panicked");
    for one in std::mem::take(open) {
        if one.ended || matches!(one.prepare.outcome, Outcome::Refused(_)) { ledger.transactions.push(one) } else { open.push_back(one) }
    }
}

async fn prepare(id: u64, server: usize, client: &Client) -> Act {
    let sql = format!("BEGIN; {}; PREPARE TRANSACTION 'storm-{id}'", insert(id));
    let sent = Instant::now();
    let answer = tokio::time::timeout(PATIENCE[0], client.simple_query(&sql)).await;
    let known = Instant::now();
    let mut act = Act { id, sent, known, outcome: Outcome::Acknowledged, server, term: None, list: None, seen: None };
    match answer {
        Ok(Ok(messages)) => {
            act.term = messages.iter().find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
                _ => None,
            });
        }
        Ok(Err(error)) => act.outcome = judge(&error),
        Err(_) => act.outcome = Outcome::Unknown(format!("no answer within {:?}", PATIENCE[0])),
    }
    act
}

/// Looks up what is unknown: an end is asked for again, a PREPARE that nobody acknowledged is rolled back. False where that failed.
async fn resolve(client: &Client, open: &mut VecDeque<Transaction>) -> bool {
    let Some(there) = gids(client).await else {
        return false;
    };
    for one in open.iter_mut().filter(|one| !one.is_left() && !one.ended && there.contains(&one.gid())) {
        if !one.end(one.asked.unwrap_or(End::Rollback), client).await {
            return false;
        }
    }
    true
}

async fn gids(client: &Client) -> Option<BTreeSet<String>> {
    let rows = tokio::time::timeout(PATIENCE[0], node::rows(client, "SELECT gid FROM pg_prepared_xacts")).await;
    Some(rows.ok()?.ok()?.into_iter().flatten().collect())
}

/// After the storm: notes which are there still, and ends every one. An error names what could not be ended.
pub async fn finish(leader: &Node, transactions: &mut [Transaction]) -> Result<(), String> {
    let began = Instant::now();
    loop {
        let last = match leader.connect().await {
            Ok(client) => match finish_in(&client, transactions).await {
                None => return Ok(()),
                Some(what) => what,
            },
            Err(error) => format!("{error:#}"),
        };
        if began.elapsed() > FINISH {
            return Err(format!("prepared transactions could not be ended: {last}"));
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

async fn finish_in(client: &Client, transactions: &mut [Transaction]) -> Option<String> {
    let Some(there) = gids(client).await else {
        return Some("pg_prepared_xacts can't be read".to_owned());
    };
    for gid in &there {
        let one = transactions.iter_mut().find(|one| one.gid() == *gid);
        let commit = one.is_some_and(|one| {
            one.found = true;
            one.prepare.outcome == Outcome::Acknowledged && one.asked != Some(End::Rollback)
        });
        let verb = if commit { "COMMIT" } else { "ROLLBACK" };
        if let Err(error) = node::rows(client, &format!("{verb} PREPARED '{gid}'")).await {
            return Some(format!("{verb} PREPARED '{gid}': {error:#}"));
        }
    }
    None
}
