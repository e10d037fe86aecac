//! Files that a directory of the new version takes over from the old one besides what `pg_upgrade` carries.

use crate::config::NodeConfig;
use crate::postgres::{Programs, read_if_there, run, write_atomically};
use anyhow::{Context, Result};
use std::path::Path;

/// Rules, settings of ALTER SYSTEM, and what the user began with.
const KEPT: [&str; 4] = ["pg_hba.conf", "pg_ident.conf", "postgresql.auto.conf", "postgresql.base.conf"];

/// Takes them over from the leader's data, and asks the new version whether it takes them.
pub async fn files(config: &NodeConfig, new: &Programs, data: &Path, to: u32) -> Result<()> {
    let data_dir = &config.postgres.data_dir;
    if config.postgres.config_dir == *data_dir {
        for name in KEPT {
            if let Some(text) = read_if_there(&data_dir.join(name)).await? {
                write_atomically(&data.join(name), &text, 0o600).await?;
            }
        }
    }
    the_users_own(data_dir, data).await?;
    for name in ["postgresql.conf", "postgresql.base.conf"] {
        let file = data.join(name);
        if file.is_file() {
            let mut command = new.command("postgres");
            command.arg("-D").arg(data).arg(format!("--config-file={}", file.display())).args(["-C", "wal_level"]);
            run(command).await.with_context(|| {
                format!("PostgreSQL {to} does not take {name} and postgresql.auto.conf as they are: take out what it does not know")
            })?;
        }
    }
    Ok(())
}

/// Files of the user's in the data directory: certificates, keys, what settings name. What both versions make themselves stays as it is.
async fn the_users_own(from: &Path, to: &Path) -> Result<()> {
    const THEIRS: [&str; 10] = [
        "PG_VERSION",
        "postmaster.pid",
        "postmaster.opts",
        "postgresql.conf",
        "backup_label",
        "backup_manifest",
        "current_logfiles",
        "standby.signal",
        "recovery.signal",
        "tablespace_map",
    ];
    let mut entries = tokio::fs::read_dir(from).await.with_context(|| format!("read directory {}", from.display()))?;
    while let Some(entry) = entries.next_entry().await? {
        let name = entry.file_name();
        let text = name.to_string_lossy();
        let ours = text == dcs::remember::FILE || text == cluster::mark::FILE || text.contains(".tenure") || text.ends_with(".old");
        if !entry.file_type().await?.is_file() || ours || THEIRS.contains(&&*text) || to.join(&name).exists() {
            continue;
        }
        tokio::fs::copy(entry.path(), to.join(&name)).await.with_context(|| format!("copy {text}"))?;
    }
    Ok(())
}

/// So many at once.
pub fn jobs() -> String {
    std::thread::available_parallelism().map_or(1, usize::from).min(8).to_string()
}
