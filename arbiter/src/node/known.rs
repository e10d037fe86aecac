//! What this node's server knows of parameters, which of them it would not take, and what was left out for it.
//!
//! Two sources, and neither needs a server that runs: the list that the running server gave last (kept beside the data directory), or
//! what the program `postgres` describes by itself; and the same program, asked to read a configuration before a server does. One name that
//! it does not know keeps a running server from every reload, one bad value keeps a stopped one from its start.

use crate::config::NodeConfig;
use crate::node::paths;
use crate::postgres::conf::{ConfigFiles, Parameters, Recovery};
use crate::postgres::facts::ServerFacts;
use crate::postgres::query::LocalSql;
use crate::postgres::{Programs, read_if_there, write_atomically};
use anyhow::{Context, Result};
use cluster::parameter::Catalogue;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::AsyncWriteExt;

/// The program reads a file and ends; on a machine that is busy it may take this long.
const TRY_WITHIN: Duration = Duration::from_secs(10);

/// So often a configuration is tried with what was refused taken out; each time all that can be named at once is named.
const TRIES: u32 = 8;

/// What is left out of the server's configuration: where it stands, and why.
pub type LeftOut = BTreeMap<String, String>;

/// A parameter with its value.
pub type Pair = (String, String);

/// What settings are judged by.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// The parameters that the server knows.
    pub catalogue: Arc<Catalogue>,
    /// What it would not take, with its words.
    pub refused: Arc<BTreeMap<Pair, String>>,
}

/// One node's knowledge; cheap to clone the holder's handle, not this.
#[derive(Debug, Default)]
pub struct Knowledge {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    known: Known,
    /// The server that gave the catalogue, by its start.
    server: String,
    /// What the program takes.
    taken: BTreeSet<Pair>,
    left_out: LeftOut,
}

/// The file beside the data directory.
#[derive(Serialize, Deserialize)]
struct Kept {
    program: String,
    catalogue: Catalogue,
}

fn file(config: &NodeConfig) -> PathBuf {
    paths::beside(config, ".tenure-parameters")
}

impl Knowledge {
    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known now.
    pub fn known(&self) -> Known {
        self.inner().known.clone()
    }

    /// What was left out at the last writing, and why.
    pub fn left_out(&self) -> LeftOut {
        self.inner().left_out.clone()
    }

    /// Another major version is used from now on: what this one said does not count.
    pub fn forget(&self) {
        *self.inner() = Inner::default();
    }

    /// Before a server was asked: what it said last, or what the program says.
    pub async fn recall(&self, programs: &Programs, config: &NodeConfig) -> Result<()> {
        if !self.inner().known.catalogue.parameters.is_empty() {
            return Ok(());
        }
        let program = version(programs).await?;
        let kept = read_if_there(&file(config)).await.ok().flatten();
        let kept = kept.and_then(|text| serde_json::from_str::<Kept>(&text).ok()).filter(|kept| kept.program == program);
        let catalogue = match kept {
            Some(kept) => kept.catalogue,
            None => {
                let mut command = programs.command("postgres");
                command.arg("--describe-config");
                let output = crate::postgres::run(command).await.context("ask postgres for its parameters")?;
                Catalogue::described(&String::from_utf8_lossy(&output.stdout))
            }
        };
        self.inner().known.catalogue = Arc::new(catalogue);
        Ok(())
    }

    /// Asks a server that was not asked since its start; true where it says something new.
    pub async fn learn(&self, sql: &LocalSql, programs: &Programs, config: &NodeConfig, facts: &ServerFacts) -> Result<bool> {
        if self.inner().server == facts.postmaster_start_time {
            return Ok(false);
        }
        let catalogue = Catalogue { parameters: sql.all_parameters().await?, complete: true };
        {
            let mut inner = self.inner();
            inner.server = facts.postmaster_start_time.clone();
            if *inner.known.catalogue == catalogue {
                return Ok(false);
            }
            // Another program, or other libraries: what was refused may be taken now.
            inner.known = Known { catalogue: Arc::new(catalogue.clone()), refused: Arc::default() };
            inner.taken.clear();
        }
        let kept = Kept { program: version(programs).await?, catalogue };
        let text = serde_json::to_string(&kept).context("print the server's parameters")?;
        write_atomically(&file(config), &text, 0o600).await.context("keep the server's parameters")?;
        Ok(true)
    }

    /// Tries the settings on the program until it takes them; `settle` makes them again from what is known. What can't be found out is
    /// left as it is: the server itself has the last word.
    pub async fn settled(
        &self,
        programs: &Programs,
        files: &ConfigFiles,
        recovery: &Recovery,
        settle: impl Fn(&Known) -> Parameters,
    ) -> Parameters {
        let mut parameters = settle(&self.known());
        for _ in 0..TRIES {
            let pairs = parameters.pairs(recovery);
            if pairs.iter().all(|pair| self.inner().taken.contains(pair)) {
                break;
            }
            let named = match tried(programs, files, &parameters, recovery).await {
                Ok(named) => named,
                Err(why) => {
                    tracing::debug!("the configuration was not tried: {why:#}");
                    break;
                }
            };
            let refused: BTreeMap<Pair, String> = pairs
                .iter()
                .filter_map(|pair| Some((pair.clone(), named.iter().find(|(name, _)| name.eq_ignore_ascii_case(&pair.0))?.1.clone())))
                .collect();
            if refused.is_empty() {
                // What is named now, if anything, is nobody's who could be told.
                self.inner().taken.extend(pairs);
                break;
            }
            parameters = settle(&self.refuse(refused));
        }
        parameters
    }

    /// After a reload: did it take effect? What an extension refuses is known by no program. True if something of ours was not taken, and
    /// is to be written without it.
    pub async fn look_after_reload(&self, sql: &LocalSql, files: &ConfigFiles) -> bool {
        let untaken = match sql.untaken().await {
            Ok(untaken) => untaken,
            Err(why) => {
                tracing::debug!("{why:#}");
                return false;
            }
        };
        let main = files.main();
        let (ours, others): (Vec<_>, Vec<_>) =
            untaken.into_iter().partition(|setting| Path::new(&setting.file) == main && !setting.name.is_empty());
        for setting in others {
            tracing::warn!(
                "the reload did not take effect for {} = {} in {}: {}",
                setting.name,
                setting.value,
                setting.file,
                setting.error
            );
        }
        let refused: BTreeMap<Pair, String> = ours.into_iter().map(|setting| ((setting.name, setting.value), setting.error)).collect();
        let new = refused.keys().any(|pair| !self.inner().known.refused.contains_key(pair));
        self.refuse(refused);
        new
    }

    fn refuse(&self, refused: BTreeMap<Pair, String>) -> Known {
        let mut inner = self.inner();
        let mut all = (*inner.known.refused).clone();
        all.extend(refused);
        inner.known.refused = Arc::new(all);
        inner.known.clone()
    }

    /// Says what is left out and was not before.
    pub fn tell(&self, left_out: LeftOut) {
        let mut inner = self.inner();
        for (key, why) in &left_out {
            if inner.left_out.get(key) != Some(why) {
                tracing::warn!("{key} is left out here: {why}; hint: docs/security.md says what the dynamic configuration may set");
            }
        }
        for key in inner.left_out.keys().filter(|key| !left_out.contains_key(*key)) {
            tracing::info!("{key} is not left out any more");
        }
        inner.left_out = left_out;
    }
}

async fn version(programs: &Programs) -> Result<String> {
    let mut command = programs.command("postgres");
    command.arg("--version");
    let output = crate::postgres::run(command).await.context("ask postgres for its version")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// The parameters that the program does not take out of these settings, each with its words.
async fn tried(programs: &Programs, files: &ConfigFiles, parameters: &Parameters, recovery: &Recovery) -> Result<Vec<Pair>> {
    // In the same directory, since what it includes is named relative to it.
    let path = files.config_dir.join(format!(".postgresql.conf.tried-{}", std::process::id()));
    let mut candidate = tokio::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path).await?;
    candidate.write_all(files.content(parameters, recovery).as_bytes()).await?;
    candidate.flush().await?;
    let mut command = programs.command("postgres");
    // Asked for one value, it reads the whole configuration and ends before it touches the data. The words have to be ours to read.
    command.arg("-C").arg("max_connections").arg("-D").arg(&files.data_dir).arg("-c").arg(format!("config_file={}", path.display()));
    for option in ["lc_messages=C", "log_destination=stderr", "log_min_messages=log", "log_error_verbosity=default", "log_line_prefix="] {
        command.arg("-c").arg(option);
    }
    command.kill_on_drop(true);
    let output = tokio::time::timeout(TRY_WITHIN, command.output()).await;
    let removed = tokio::fs::remove_file(&path).await;
    let output = output.context("postgres did not read the configuration in time")?.context("start postgres")?;
    removed.context("remove the configuration that was tried")?;
    Ok(if output.status.success() { Vec::new() } else { named(&String::from_utf8_lossy(&output.stderr)) })
}

/// The parameters that are named in the program's lines: `LOG:  invalid value for parameter "work_mem": "abc"`.
fn named(text: &str) -> Vec<Pair> {
    let name_in = |line: &str| {
        let words = line.split_once(":  ").map_or(line, |(_, words)| words);
        let (_, rest) = words.split_once("parameter \"")?;
        let (name, _) = rest.split_once('"')?;
        let words = words.split_once(" in file \"").map_or(words, |(words, _)| words);
        Some((name.to_owned(), words.trim().to_owned()))
    };
    text.lines().filter_map(name_in).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_words_name_what_it_does_not_take() {
        let text = "LOG:  unrecognized configuration parameter \"shared_bufers\" in file \"/x/y\" line 4\n\
            2026-11-21 18:52:46.542 UTC [2663] LOG:  1 8kB is outside the valid range for parameter \"temp_buffers\" (100 .. 1073741823)\n\
            LOG:  parameter \"hot_standby\" requires a Boolean value\n\
            HINT:  Available values: always, on, off.\n\
            FATAL:  configuration file \"/x/y\" contains errors\n";
        let pairs = [
            ("shared_bufers", "unrecognized configuration parameter \"shared_bufers\""),
            ("temp_buffers", "1 8kB is outside the valid range for parameter \"temp_buffers\" (100 .. 1073741823)"),
            ("hot_standby", "parameter \"hot_standby\" requires a Boolean value"),
        ];
        assert_eq!(named(text), pairs.map(|(name, words)| (name.to_owned(), words.to_owned())));
    }
}
