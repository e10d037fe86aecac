//! `tenure leave`: this node's server becomes a plain PostgreSQL, which nothing here starts, stops or fences any more.
//!
//! What is left is what was there: data, settings, rules, roles, slots. Only what makes it a member goes: the arbiter, the library, the mark. Broken off
//! anywhere it is run again: each step is taken only where it is still to be taken.

use super::adopt::daemons;
use super::context::{print, refuse_with};
use crate::config::NodeConfig;
use crate::node::store;
use crate::postgres;
use crate::postgres::conf::{HEADER, LIBRARY, quote};
use crate::postgres::postmaster::{Postmaster, StopMode};
use anyhow::Result;
use dcs::{Dcs, Etcd};
use std::path::PathBuf;
use std::time::Duration;

/// Make this node's server a plain PostgreSQL: end the arbiter, stop the server, and take out what made it a member.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The node's file.
    pub file: PathBuf,
    /// Also where maintenance mode is off, or etcd can't be asked: nobody may take over from this server by then.
    #[arg(long)]
    pub force: bool,
    /// Give up waiting for one step after so many seconds.
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub timeout: u64,
}

/// Runs the command.
pub async fn run(args: &Args) -> Result<()> {
    let config = NodeConfig::load(&args.file, std::env::vars()).map_err(|errors| refuse_with(errors.to_string(), "correct these lines"))?;
    let data_dir = &config.postgres.data_dir;
    let owner = daemons::owner_of(data_dir)?;
    let me = rustix::process::geteuid();
    if !me.is_root() && me.as_raw() != owner.0 {
        return Err(refuse_with(format!("{} belongs to another user", data_dir.display()), "run this as that user, or as root"));
    }
    if !args.force {
        demand_maintenance(&config).await?;
    }
    let patience = Duration::from_secs(args.timeout);
    if let Some(arbiter) = daemons::arbiter(&config)? {
        print(format!("stopping {arbiter}"))?;
        arbiter.stop(patience).await?;
    }
    if let Some(server) = Postmaster::adopt(data_dir).await? {
        print(format!("stopping Postgres (process id {})", server.pid()))?;
        server.stop(StopMode::Fast)?;
        if tokio::time::timeout(patience, server.exited()).await.is_err() {
            return Err(refuse_with(
                format!("Postgres did not end within {} s", args.timeout),
                "its log says what it waits for; run this again once it has ended",
            ));
        }
    }
    let files = config.postgres.files();
    for path in [files.main(), data_dir.join("postgresql.auto.conf")] {
        let Some(text) = postgres::read_if_there(&path).await? else { continue };
        let plain = without_us(&text);
        if plain != text {
            postgres::write_atomically(&path, &plain, 0o600).await?;
            daemons::give_to(owner, &path)?;
        }
    }
    // Last: while it lies there, a server that has the library is fenced.
    postgres::mark::remove(data_dir).await?;
    print(format!("{} is a plain PostgreSQL now; its settings are those of before, in {}", data_dir.display(), files.main().display()))?;
    print(format!(
        "start it as you like: `{} -D {} start`, or by its distribution's unit",
        config.postgres.programs().path("pg_ctl").display(),
        data_dir.display()
    ))
}

/// Otherwise another member takes over as soon as this one is down, and the server that is started here would be a second primary.
async fn demand_maintenance(config: &NodeConfig) -> Result<()> {
    let hint = "`tenure pause --wait` first; --force where nobody else can take over";
    let etcd = Etcd::new(config.keys(), store::settings(config)?);
    let view = match Box::pin(etcd.load_view()).await {
        Ok(view) => view,
        Err(why) => return Err(refuse_with(format!("etcd can't be asked whether maintenance mode is on: {why}"), hint)),
    };
    // A cluster that is gone from etcd has nobody to take over.
    if view.initialize.is_some() && !view.config().paused() {
        return Err(refuse_with("the cluster is not in maintenance mode: another member would take over while this one is stopped", hint));
    }
    Ok(())
}

/// A configuration file without what makes its server a member: our settings, our library, and the line that says who writes it.
fn without_us(text: &str) -> String {
    let mut kept = String::new();
    for line in text.split_inclusive('\n') {
        let name = line.trim_start().split(['=', ' ', '\t']).next().unwrap_or("");
        if name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("tenure.")) || line.trim_end() == HEADER {
            continue;
        }
        match line.split_once('=').filter(|_| name.eq_ignore_ascii_case("shared_preload_libraries")) {
            None => kept.push_str(line),
            Some((_, value)) => {
                let value = value.trim().trim_matches('\'');
                let others: Vec<&str> =
                    value.split(',').map(str::trim).filter(|library| !library.is_empty() && *library != LIBRARY).collect();
                kept.push_str(&format!("{name} = {}\n", quote(&others.join(","))));
            }
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_leaves_keeps_its_settings_but_ours() {
        let text = format!(
            "{HEADER}\ninclude 'postgresql.base.conf'\n\nport = '5432'\nshared_preload_libraries = 'citus,pg_tenure'\ntenure.scope = 'main'\n\
             work_mem = '8MB'\n\n# recovery\nprimary_conninfo = 'host=a'\n\n# ours\nTENURE.ttl = '10s'\nsynchronous_standby_names = 'n2'\n"
        );
        let plain = "include 'postgresql.base.conf'\n\nport = '5432'\nshared_preload_libraries = 'citus'\nwork_mem = '8MB'\n\n\
             # recovery\nprimary_conninfo = 'host=a'\n\n# ours\nsynchronous_standby_names = 'n2'\n";
        assert_eq!(without_us(&text), plain);
        assert_eq!(without_us(plain), plain, "once more changes nothing");
        assert_eq!(without_us("shared_preload_libraries = 'pg_tenure'\n"), "shared_preload_libraries = ''\n");
    }
}
