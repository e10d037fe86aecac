//! The arbiter without processes: the procedures that decide over data, for the daemon and for the simulation.
//!
//! They are generic over the store ([`dcs::LocalDcs`]), over the process that they run in ([`Host`]) and over the server that they look after
//! ([`Server`]): the daemon gives them PostgreSQL, its files and its programs, the simulation a world of its own. There is one copy
//! of each step, so what the simulation tries is what ships.
//!
//! What this crate never does: it reads no clock, starts no process, touches no file and no socket. It asks its host.

pub mod duties;
pub mod founding;
mod host;
mod judged;
pub mod lease;
pub mod promote;
pub mod server;
mod standbys;
pub mod stop;
pub mod switchover;
pub mod synchronous;

pub use host::{Host, Tone, within};
pub use judged::{Done, Judged};
pub use server::{Facts, Sender, Server};
