//! The cluster as plain values, and every rule about it.
//!
//! What this crate never does: I/O, async, reading a clock, logging, randomness. Facts come in as
//! arguments, a decision with its reason goes out; `clippy.toml` and the dependency list hold it to
//! that. `dcs` reads and writes these values in etcd, `extension` asks [`race`] and [`fence`],
//! `arbiter` asks [`duty`]. In reading order:

pub mod lsn;
pub mod name;
pub mod time;

pub mod admission;
pub mod backup;
pub mod config;
pub mod described;
pub mod failover;
pub mod given;
pub mod hba;
pub mod history;
pub mod host;
pub mod instance;
pub mod kind;
pub mod leader;
pub mod mark;
pub mod member;
pub mod mixed;
pub mod parameter;
pub mod pending;
pub mod poolers;
pub mod release;
pub mod renamed;
pub mod request;
pub mod restart;
pub mod roster;
pub mod rows;
pub mod schema;
pub mod speech;
pub mod sync;

pub mod memory;
pub mod reached;
pub mod versioned;
pub mod view;

pub mod local;
pub mod reason;
pub mod upstream;

pub mod closed;
pub mod confirmed;
pub mod deposition;
pub mod failsafe;
pub mod fence;
pub mod lease;
pub mod quorum;

pub mod duty;
pub mod health;
pub mod hearing;
pub mod race;
pub mod rejoin;
pub mod replaced;
pub mod replay;
pub mod restore;
pub mod roles;
pub mod slots;
pub mod source;
pub mod standby_cluster;
pub mod standing;
pub mod store;
pub mod upgrade;
pub mod watchdog;

pub mod address;
pub mod check;
pub mod citus;
pub mod histogram;
pub mod incident;
pub mod surroundings;
