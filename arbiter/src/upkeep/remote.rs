//! The cluster that this one follows, asked for its identity, timeline and history over libpq: with the
//! credentials, certificates and host list that streaming uses, and nothing that streaming does not need.

use crate::node::Node;
use crate::node::recovery;
use crate::postgres::psql;
use anyhow::{Context, Result};
use cluster::config::DynamicConfig;
use cluster::history::History;
use cluster::name::{SystemId, Timeline};
use cluster::standby_cluster::RemoteWord;
use cluster::view::ClusterView;
use std::time::Duration;

/// Longest wait for the other side's answers.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asks the other cluster in the background; the loop is woken when it has said something new.
pub fn ask(node: &Node, view: &ClusterView, mine: Timeline) {
    let dynamic = node.dynamic(view);
    if dynamic.standby_cluster().is_none_or(|remote| !remote.streams()) || !node.remote.begin() {
        return;
    }
    let node = node.clone();
    tokio::spawn(async move {
        let said = match tokio::time::timeout(PATIENCE, word(&node, &dynamic, mine)).await {
            Ok(Ok(said)) => Some(said),
            Ok(Err(why)) => {
                tracing::debug!("{why:#}");
                None
            }
            Err(_) => None,
        };
        if node.remote.end(said) {
            node.wake.notify_one();
        }
    });
}

async fn word(node: &Node, dynamic: &DynamicConfig, mine: Timeline) -> Result<RemoteWord> {
    node.write_pgpass().await?;
    let remote = dynamic.standby_cluster().context("there is no standby_cluster")?;
    let authentication = &node.config.postgres.authentication;
    let replication = recovery::remote_conninfo(&node.config, &remote, &authentication.replication, node.config.name.as_str(), None)
        .context("only an archive is named")?;
    let identity = psql(node, &format!("{replication} replication=yes"), "IDENTIFY_SYSTEM").await?;
    let mut fields = identity.trim().split('\t');
    let system_id = SystemId(fields.next().unwrap_or_default().to_owned());
    let timeline = fields.next().and_then(|text| text.parse().ok()).map(Timeline).with_context(|| format!("understand {identity:?}"))?;
    let mut said = RemoteWord { system_id, timeline, history: History::default(), checkpointed: None };
    if timeline > mine {
        let text = psql(node, &format!("{replication} replication=yes"), &format!("TIMELINE_HISTORY {}", timeline.0)).await?;
        // One row: the file's name, and its content.
        let content = text.split_once('\t').map_or("", |(_, content)| content);
        said.history = History::from_file(content).up_to(timeline);
        let database = Some(node.config.postgres.database.as_str());
        let conninfo = recovery::remote_conninfo(&node.config, &remote, authentication.for_rewind(), node.config.name.as_str(), database);
        // Only a rewind needs it, and only then a role that may ask.
        if let Some(conninfo) = conninfo
            && let Ok(text) = psql(node, &conninfo, "SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()").await
        {
            said.checkpointed = text.trim().parse().ok().map(Timeline);
        }
    }
    Ok(said)
}

async fn psql(node: &Node, conninfo: &str, command: &str) -> Result<String> {
    psql::ask(&node.programs, conninfo, command).await.context("ask the cluster in standby_cluster")
}
