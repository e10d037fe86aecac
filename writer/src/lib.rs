//! The client that writes every ten milliseconds and keeps a ledger: the demo shows it, the stories and the benchmarks measure with it.
//!
//! It stands apart from the tests, so that `make demo` does not build them.

pub mod delays;
pub mod open_loop;
pub mod wait;
pub mod workload;
