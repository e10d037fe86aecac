//! Fixtures of the end-to-end stories: real PostgreSQL, real etcd, the real `tenure`, and a writer with a verdict.
//!
//! Every test owns a [`room::Room`]: one directory with all of its files, in which every process that it
//! starts has its working directory, so that nothing outlives the test. The words for what may befall a
//! process are different words on purpose: stop (asked), kill (SIGKILL), freeze (SIGSTOP: alive, silent).
//! In reading order:

pub mod http;
pub mod machine;
pub mod majors;
pub mod place;
pub mod ports;
pub mod process;
pub mod programs;
pub mod proxy;
pub mod room;
pub mod tls;
pub use writer::wait;

pub mod alone;
pub mod bank;
pub mod callgrind;
pub mod citus;
pub mod cluster;
pub mod etcd;
pub mod flush;
pub mod haproxy;
pub mod memory;
pub mod node;
pub mod session;
pub mod view;

pub mod arp;
pub mod backup;
pub mod builds;
pub mod by_hand;
pub mod phases;
pub mod subscriber;
pub mod takeover;
pub mod upgrading;
pub mod verdict;
pub mod watchdog;
pub use writer::{delays, open_loop, workload};

pub mod storm;

pub mod isolation;
