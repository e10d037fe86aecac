//! One comparison: where, how, what was seen, and what did not come to its end.

use super::seen::Seen;
use stories::machine::Machine;

/// Everything that the page and the chart are made of.
#[derive(Debug, Clone)]
pub struct Run {
    /// Where and with what.
    pub machine: Machine,
    /// How to do it again.
    pub command: String,
    /// What came of it.
    pub seen: Vec<Seen>,
    /// What could not be tried here, and why.
    pub left_out: Vec<String>,
    /// What did not come to its end.
    pub failed: Vec<String>,
}

/// A run that never was, for tests of what is drawn from one.
#[cfg(test)]
pub fn sample() -> Run {
    let machine = Machine {
        date: "2026-01-02 03:04 UTC".to_owned(),
        processor: "2 x Example CPU".to_owned(),
        memory_mib: 4096,
        kernel: "6.1.0".to_owned(),
        versions: vec!["pg_tenure 0.0.0".to_owned(), "Patroni 0.0.0".to_owned()],
        load_before: 0.1,
        load_after: 1.5,
    };
    Run { machine, command: "make bench-compare RUNS=3".to_owned(), seen: super::seen::sample(), left_out: Vec::new(), failed: Vec::new() }
}
