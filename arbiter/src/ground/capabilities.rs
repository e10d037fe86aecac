//! What this process may do beyond its user: kept for itself, and never handed to Postgres, callbacks or any other program.

use anyhow::{Context, Result};

/// Capabilities that the unit or container gave "ambiently" would be every child's too. After this only this process has them. Before any
/// thread begins.
pub fn keep_to_ourselves() -> Result<()> {
    match rustix::thread::clear_ambient_capability_set() {
        // A kernel, or a filter of system calls, that knows no such set has none to hand on.
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => Ok(()),
        Err(why) => Err(why).context("keep capabilities from child processes"),
    }
}
