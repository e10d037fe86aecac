//! The verdict: what the server has, against what the writer was told.

use crate::node::Node;
use crate::workload::{Ledger, Outcome};
use anyhow::{Context, Result};
use std::collections::BTreeMap;

/// Three lists that have to be empty, each of ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Acknowledged and not there.
    pub lost: Vec<u64>,
    /// There more than once.
    pub doubled: Vec<u64>,
    /// Refused and there all the same.
    pub wrongly_refused: Vec<u64>,
    /// One line on what the writer saw.
    pub summary: String,
}

impl Verdict {
    /// Compares the table on this node with the ledger.
    pub async fn of(node: &Node, ledger: &Ledger) -> Result<Verdict> {
        // No unique index on purpose: a doubled row has to be seen, not refused.
        let rows = node.query("SELECT id, count(*) FROM written GROUP BY id").await?;
        Verdict::of_rows(rows, ledger)
    }

    /// Compares rows of id and count with the ledger.
    pub fn of_rows(rows: Vec<Vec<String>>, ledger: &Ledger) -> Result<Verdict> {
        let mut there = BTreeMap::new();
        for row in rows {
            let [id, count] = row.as_slice() else {
                continue;
            };
            let id: u64 = id.parse().context("read an id")?;
            there.insert(id, count.parse::<u64>().context("read a count")?);
        }
        Ok(Verdict::on(&there, ledger))
    }

    fn on(there: &BTreeMap<u64, u64>, ledger: &Ledger) -> Verdict {
        let ids = |wanted: &dyn Fn(&Outcome, bool) -> bool| {
            ledger
                .attempts
                .iter()
                .filter(|attempt| wanted(&attempt.outcome, there.contains_key(&attempt.id)))
                .map(|attempt| attempt.id)
                .collect()
        };
        Verdict {
            lost: ids(&|outcome, there| *outcome == Outcome::Acknowledged && !there),
            wrongly_refused: ids(&|outcome, there| matches!(outcome, Outcome::Refused(_)) && there),
            doubled: there.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect(),
            summary: ledger.summary(),
        }
    }

    /// Nothing acknowledged is lost, nothing is there twice, nothing refused is there.
    pub fn nothing_lost_or_doubled(&self) {
        self.nothing_doubled();
        assert!(self.lost.is_empty(), "{} acknowledged rows are lost: {:?} ({})", self.lost.len(), self.lost, self.summary);
    }

    /// For failovers without a synchronous standby, where the last commits may be lost, as everywhere.
    pub fn nothing_doubled(&self) {
        assert!(self.doubled.is_empty(), "rows are there twice: {:?} ({})", self.doubled, self.summary);
        assert!(self.wrongly_refused.is_empty(), "refused rows are there: {:?} ({})", self.wrongly_refused, self.summary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Attempt;
    use std::time::Instant;

    #[test]
    fn lost_doubled_and_wrongly_refused_are_told_apart() {
        let now = Instant::now();
        let outcomes = [
            Outcome::Acknowledged,
            Outcome::Acknowledged,
            Outcome::Refused("no".to_owned()),
            Outcome::Unknown("?".to_owned()),
            Outcome::Unknown("?".to_owned()),
        ];
        let attempts = (1..).zip(outcomes).map(|(id, outcome)| Attempt { id, due: now, sent: now, known: now, outcome });
        let ledger = Ledger { attempts: attempts.collect(), ended: now };
        let verdict = Verdict::on(&BTreeMap::from([(1, 2), (3, 1), (4, 1)]), &ledger);
        assert_eq!(verdict.lost, [2]);
        assert_eq!(verdict.doubled, [1]);
        assert_eq!(verdict.wrongly_refused, [3]);
    }
}
