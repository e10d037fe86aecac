//! One question to another server over libpq: with the passfile, certificates and list of hosts that its own programs use.

use super::Programs;
use anyhow::{Context, Result, bail};

/// What the server at `conninfo` answers to one command: a line per row, fields parted by tabs.
pub async fn ask(programs: &Programs, conninfo: &str, command: &str) -> Result<String> {
    let mut psql = programs.command("psql");
    psql.args(["-X", "-A", "-t", "-w", "-F", "\t", "-c", command, "-d", conninfo]);
    psql.env("PGCONNECT_TIMEOUT", "2").kill_on_drop(true);
    let output = psql.output().await.context("start psql")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
