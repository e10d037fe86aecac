//! What every other room stands on: the settings, what this server is and says of itself, and what users are told.

pub mod error;
pub mod guc;
pub mod server;
pub mod standing;
