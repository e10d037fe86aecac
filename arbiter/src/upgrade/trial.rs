//! `pg_upgrade --check` against the running primary: it reads there, and starts a server of the new version on an empty throw-away directory.

use crate::config::NodeConfig;
use crate::node::paths;
use crate::postgres::{Programs, tail};
use anyhow::{Context, Result};
use cluster::upgrade::obstacle::ServerToUpgrade;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;
use tokio::process::Command;

/// Many databases with many tables: each is asked several times.
const PATIENCE: Duration = Duration::from_secs(90);

/// So much of what it found is told.
const TOLD: usize = 1500;

/// Its words where it failed; None where it found nothing.
pub async fn run(config: &NodeConfig, new: &Programs, old: &Programs, server: &ServerToUpgrade) -> Result<Option<String>> {
    let place = paths::beside(config, ".upgrade-check");
    let done = in_place(config, new, old, server, &place).await;
    remove(&place).await?;
    done
}

async fn in_place(config: &NodeConfig, new: &Programs, old: &Programs, server: &ServerToUpgrade, place: &Path) -> Result<Option<String>> {
    remove(place).await?;
    tokio::fs::DirBuilder::new().mode(0o700).create(place).await.with_context(|| format!("create {}", place.display()))?;
    let empty = place.join("data");
    make_empty(config, new, server.checksums, server.version, &empty).await?;
    let mut command = pg_upgrade(config, new, old, &config.postgres.data_dir, &empty, place).await?;
    // Some libraries, ours among them, are loaded at the start or not at all.
    command.arg("--check").arg("--new-options").arg(preloading(&server.preloaded.join(",")));
    let output = tokio::time::timeout(PATIENCE, command.kill_on_drop(true).output()).await;
    let output = output.with_context(|| format!("no end within {} s", PATIENCE.as_secs()))?.context("start pg_upgrade")?;
    Ok((!output.status.success()).then(|| words(&output, &empty)))
}

/// An empty database system of the new version that `pg_upgrade` can fill: its superuser and its checksums are those of the old one; encoding
/// and locale too, which before version 16 it compares and from there on carries.
pub async fn make_empty(config: &NodeConfig, new: &Programs, checksums: bool, from: u32, directory: &Path) -> Result<()> {
    let mut command = new.command("initdb");
    command.arg("--pgdata").arg(directory).arg(format!("--username={}", config.postgres.authentication.superuser.username));
    // Nobody but the user that runs this reaches it: the directory above is closed, and it listens nowhere else.
    command.args(["--no-sync", "--auth-local=trust", "--auth-host=reject"]);
    for (name, value) in &config.bootstrap.initdb {
        if matches!(name.as_str(), "encoding" | "locale" | "lc-collate" | "lc-ctype" | "locale-provider" | "icu-locale" | "wal-segsize") {
            command.arg(value.as_ref().map_or(format!("--{name}"), |value| format!("--{name}={value}")));
        }
    }
    let to = new_major(new);
    match (checksums, to) {
        (true, _) => drop(command.arg("--data-checksums")),
        (false, Some(18..)) => drop(command.arg("--no-data-checksums")),
        (false, _) => {}
    }
    crate::postgres::run(command).await.with_context(|| format!("make an empty database system beside that of version {from}"))?;
    Ok(())
}

/// By the directory's name, which has it: [`cluster::upgrade::beside`].
fn new_major(new: &Programs) -> Option<u32> {
    let path = new.path("postgres");
    path.iter().filter_map(|part| part.to_str()?.rsplit('-').next()?.parse().ok()).next_back()
}

/// `pg_upgrade` from this data of the old version into this directory, run in `place`, which has the sockets.
pub async fn pg_upgrade(
    config: &NodeConfig,
    new: &Programs,
    old: &Programs,
    from: &Path,
    directory: &Path,
    place: &Path,
) -> Result<Command> {
    let postgres = &config.postgres;
    let credentials = &postgres.authentication.superuser;
    let password_file = place.join("pgpass");
    let entry = crate::postgres::pgpass::Entry { address: None, credentials };
    crate::postgres::pgpass::write(&password_file, &[entry]).await?;
    let directory_of = |programs: &Programs| programs.path("postgres").parent().map(Path::to_owned).unwrap_or_default();
    let mut command = new.command("pg_upgrade");
    command.env("PGPASSFILE", &password_file).current_dir(place);
    command.arg("--old-bindir").arg(directory_of(old)).arg("--new-bindir").arg(directory_of(new));
    command.arg("--old-datadir").arg(from).arg("--new-datadir").arg(directory);
    command.arg("--socketdir").arg(place).arg("--username").arg(&credentials.username);
    command.arg("--old-port").arg(postgres.listen.port.to_string());
    // Only a name of the socket in `place`; pg_upgrade wants another one than the old server's.
    command.arg("--new-port").arg(if postgres.listen.port == 50_432 { "50433" } else { "50432" });
    Ok(command)
}

/// The option by which a server of the new version loads these libraries at its start.
pub fn preloading(libraries: &str) -> String {
    // Names of files, out of a setting that only a superuser or the node's file can change; nothing of it may be read by a shell.
    let plain = |character: &char| character.is_ascii_alphanumeric() || matches!(character, '_' | '-' | '.' | ',' | '/');
    let libraries: String = libraries.replace("$libdir/", "").chars().filter(plain).collect();
    format!("-c shared_preload_libraries='{libraries}'")
}

/// As one word of a shell.
pub fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', "'\\''"))
}

/// What it said last, with the reports that it wrote.
pub fn words(output: &Output, directory: &Path) -> String {
    let said = format!("{}\n{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let mut text = match said.find("fatal") {
        Some(at) => said[at + "fatal".len()..].lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; "),
        None => tail(&said),
    };
    let mut reports = Vec::new();
    reports_in(&directory.join("pg_upgrade_output.d"), &mut reports);
    for report in reports {
        let lines: Vec<&str> = report.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        text.push_str(&format!(" [{}]", lines.join("; ")));
    }
    text.chars().take(TOLD).collect()
}

fn reports_in(directory: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if path.is_dir() {
            reports_in(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "txt") {
            found.extend(std::fs::read_to_string(&path).ok().filter(|text| !text.trim().is_empty()));
        }
    }
}

/// Removes a directory of ours, where it is.
pub async fn remove(directory: &Path) -> Result<()> {
    match tokio::fs::remove_dir_all(directory).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| format!("remove {}", directory.display())),
        _ => Ok(()),
    }
}
