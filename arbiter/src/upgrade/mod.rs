//! A new major version of PostgreSQL (docs/upgrade.md): what stands in its way, the trial, and what is written down of one that has begun.

pub mod carried;
pub mod demanded;
pub mod files;
pub mod inspect;
pub mod journal;
pub mod trial;
pub mod twin;

use crate::config::NodeConfig;
use crate::postgres::query::LocalSql;
use anyhow::{Context, Result};
use cluster::upgrade::obstacle::{self, Obstacle};
use cluster::upgrade::reachable;
use cluster::view::ClusterView;
use serde::{Deserialize, Serialize};

/// What one member says to `POST /upgrade` with `"check": true`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Checked {
    /// Who.
    pub member: String,
    /// It is the primary: what it says is of the whole cluster, too.
    pub primary: bool,
    /// Its major version.
    pub from: u32,
    /// What was asked for.
    pub to: u32,
    /// What stands in the way there.
    pub obstacles: Vec<Obstacle>,
}

/// Looks for all that stands in the way on this node; on the primary also in its databases, and `pg_upgrade --check` is run there.
pub async fn check(config: &NodeConfig, sql: &LocalSql, view: &ClusterView, primary: bool, to: u32) -> Result<Checked> {
    let member = config.name.to_string();
    let (server, databases) = inspect::all(sql, view).await.context("ask the server what an upgrade would meet")?;
    let from = server.version;
    let mut checked = Checked { member, primary, from, to, obstacles: Vec::new() };
    if let Err(what) = reachable(from, to) {
        let cure = "name a later version that pg_tenure is built for".to_owned();
        let obstacle = Obstacle { weight: obstacle::Weight::Stops, kind: "version".to_owned(), what, cure, member: None };
        checked.obstacles.push(obstacle);
        return Ok(checked);
    }
    let old = config.postgres.programs_of(from).unwrap_or_else(|| config.postgres.programs());
    checked.obstacles.extend(obstacle::of_releases(env!("CARGO_PKG_VERSION"), &server));
    let mut files = files::look(config, &old, &server, &databases, to).await?;
    if primary {
        checked.obstacles.extend(obstacle::of_server(&server));
        checked.obstacles.extend(databases.iter().flat_map(obstacle::of_database));
        if let Some(programs) = config.postgres.programs_of(to).filter(|_| files.found == Some(to)) {
            files.pg_upgrade = trial::run(config, &programs, &old, &server).await.context("try pg_upgrade --check")?;
        }
    }
    checked.obstacles.extend(obstacle::of_files(&files, to, &server));
    checked.obstacles.sort();
    Ok(checked)
}
