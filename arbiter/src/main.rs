//! `tenure`: the arbiter beside every Postgres, and the operator's tool.

#[allow(dead_code, reason = "wired by the daemon")]
mod config;
#[allow(dead_code, reason = "wired by the daemon")]
mod postgres;
#[allow(dead_code, reason = "wired by the daemon")]
mod secret;

fn main() {}
