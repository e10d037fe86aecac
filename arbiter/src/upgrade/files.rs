//! What this node's files have of the new major version: programs, libraries, extensions, settings, room.

use crate::config::NodeConfig;
use crate::postgres::{Programs, run};
use anyhow::{Context, Result};
use cluster::parameter::Catalogue;
use cluster::upgrade::beside;
use cluster::upgrade::obstacle::{Database, Files, ServerToUpgrade};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What an upgrade calls.
const NEEDED: [&str; 10] =
    ["postgres", "pg_ctl", "initdb", "pg_upgrade", "pg_dump", "pg_dumpall", "pg_restore", "pg_resetwal", "pg_controldata", "psql"];
/// And what makes the standbys and the statistics, and what shows that a server had no commit at its end.
const NEEDED_LATER: [&str; 3] = ["pg_basebackup", "pg_waldump", "vacuumdb"];

/// Looks.
pub async fn look(config: &NodeConfig, old: &Programs, server: &ServerToUpgrade, databases: &[Database], to: u32) -> Result<Files> {
    let postgres = &config.postgres;
    let bin_dir_now = old.bin_dir().display().to_string();
    let mut files =
        Files { member: config.name.to_string(), bin_dir: beside(&bin_dir_now, server.version, to), bin_dir_now, ..Files::default() };
    let Some(new) = postgres.programs_of(to) else { return Ok(files) };
    let absent = |name: &&&str| !new.path(name).is_file();
    files.missing_programs = NEEDED.iter().chain(&NEEDED_LATER).filter(absent).map(ToString::to_string).collect();
    if !files.missing_programs.is_empty() {
        return Ok(files);
    }
    (files.found, files.found_minor) = release(&new).await.unwrap_or_default();
    if files.found != Some(to) {
        return Ok(files);
    }
    let directories = Directories::of(&new, to).await;
    let wanted = databases.iter().flat_map(|database| &database.libraries).chain(&server.preloaded);
    let wanted: BTreeSet<&str> = wanted.map(|library| bare(library)).chain(["pg_tenure"]).collect();
    files.missing_libraries = wanted.into_iter().filter(|library| !directories.has_library(library)).map(str::to_owned).collect();
    let wanted: BTreeSet<&String> = databases.iter().flat_map(|database| &database.extensions).collect();
    files.missing_extensions = wanted.into_iter().filter(|extension| !directories.has_extension(extension)).cloned().collect();
    let options: BTreeSet<&String> = databases.iter().flat_map(|database| &database.column_options).collect();
    files.unknown_options = unknown(&new, options).await?;
    let (before, after) = (described(old).await?, described(&new).await?);
    let gone = |name: &&String| before.get(name).is_some() && after.get(name).is_none();
    files.unknown_settings = server.settings.iter().filter(gone).cloned().collect();
    files.free = room(&postgres.data_dir);
    files.mount_point = is_mount_point(&postgres.data_dir);
    Ok(files)
}

/// The major version and the minor release that `postgres --version` says.
async fn release(programs: &Programs) -> Option<(Option<u32>, Option<u32>)> {
    let mut command = programs.command("postgres");
    command.arg("--version");
    let said = run(command).await.ok()?;
    Some(numbers(&String::from_utf8_lossy(&said.stdout)))
}

/// `postgres (PostgreSQL) 17.12 (Debian 17.12-0+deb13u1)`; a beta (`18beta1`) has no minor release.
fn numbers(text: &str) -> (Option<u32>, Option<u32>) {
    let word = text.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit())).unwrap_or_default();
    let major = word.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok();
    let minor = word.split_once('.').and_then(|(_, minor)| minor.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok());
    (major, minor)
}

/// A server's program has the name of each option that it knows in it, and nothing else tells before it is asked to set one.
async fn unknown(programs: &Programs, options: BTreeSet<&String>) -> Result<Vec<String>> {
    let (path, options): (PathBuf, Vec<String>) = (programs.path("postgres"), options.into_iter().cloned().collect());
    if options.is_empty() {
        return Ok(options);
    }
    let look = move || {
        let program = std::fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        let knows = |option: &String| program.windows(option.len()).any(|part| part == option.as_bytes());
        Ok(options.into_iter().filter(|option| !knows(option)).collect())
    };
    tokio::task::spawn_blocking(look).await.context("look into the program")?
}

async fn described(programs: &Programs) -> Result<Catalogue> {
    let mut command = programs.command("postgres");
    command.arg("--describe-config");
    let output = run(command).await.with_context(|| format!("ask {} for its parameters", programs.path("postgres").display()))?;
    Ok(Catalogue::described(&String::from_utf8_lossy(&output.stdout)))
}

/// `$libdir/x.so` and `x` are the library x; a path stays a path.
fn bare(library: &str) -> &str {
    let name = library.strip_prefix("$libdir/").unwrap_or(library);
    name.strip_suffix(".so").unwrap_or(name)
}

/// Where a version keeps its libraries and extensions.
struct Directories {
    libraries: PathBuf,
    extensions: PathBuf,
}

impl Directories {
    /// As its `pg_config` says; without one, as Debian and the sources lay them.
    async fn of(programs: &Programs, to: u32) -> Directories {
        let ask = async |option: &str| {
            let mut command = programs.command("pg_config");
            command.arg(option);
            let said = run(command).await.ok()?;
            Some(PathBuf::from(String::from_utf8_lossy(&said.stdout).trim()))
        };
        let root = programs.path("postgres").parent().and_then(Path::parent).map(Path::to_owned).unwrap_or_default();
        let libraries = ask("--pkglibdir").await.unwrap_or_else(|| root.join("lib"));
        let shared = match ask("--sharedir").await {
            Some(shared) => shared,
            None => {
                let debian = PathBuf::from(format!("/usr/share/postgresql/{to}"));
                if root.starts_with("/usr/lib/postgresql") { debian } else { root.join("share") }
            }
        };
        Directories { libraries, extensions: shared.join("extension") }
    }

    fn has_library(&self, name: &str) -> bool {
        let path = if name.starts_with('/') { PathBuf::from(name) } else { self.libraries.join(name) };
        let with_suffix = PathBuf::from(format!("{}.so", path.display()));
        path.is_file() || with_suffix.is_file()
    }

    fn has_extension(&self, name: &str) -> bool {
        self.extensions.join(format!("{name}.control")).is_file()
    }
}

/// Free bytes beside the data directory.
fn room(data_dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(data_dir.parent()?).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

fn is_mount_point(data_dir: &Path) -> bool {
    let device = |path: &Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    let Some(parent) = data_dir.parent() else { return true };
    device(data_dir) != device(parent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_release_has_two_numbers() {
        for (text, expected) in [
            ("postgres (PostgreSQL) 17.12 (Debian 17.12-0+deb13u1)\n", (Some(17), Some(12))),
            ("postgres (PostgreSQL) 18beta1\n", (Some(18), None)),
            ("", (None, None)),
        ] {
            assert_eq!(numbers(text), expected, "{text}");
        }
    }

    #[test]
    fn a_library_is_known_by_its_bare_name() {
        for (given, expected) in
            [("$libdir/postgis-3", "postgis-3"), ("citus.so", "citus"), ("/opt/x.so", "/opt/x"), ("pg_tenure", "pg_tenure")]
        {
            assert_eq!(bare(given), expected);
        }
    }
}
