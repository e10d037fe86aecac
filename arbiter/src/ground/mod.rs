//! What every other room stands on: programs, texts, TLS, our own log, and how one member asks another.

pub mod answers;
pub mod capabilities;
pub mod certificates;
pub mod clock;
pub mod logging;
pub mod member_rest;
pub mod outcome;
pub mod present;
pub mod process;
pub mod program;
pub mod secret;
pub mod systemd;
pub mod tls;
