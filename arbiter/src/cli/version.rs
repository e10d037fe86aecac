//! `tenure version`: of this tool, of each member, and of its PostgreSQL.

use super::context::{Tool, print};
use super::groups;
use anyhow::{Context, Result};
use cluster::member::TenureFacts;
use serde_json::Value;
use std::time::Duration;

/// A status is answered at once, or the member is not well.
const BOUND: Duration = Duration::from_secs(3);

/// Show versions.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// [CLUSTER] [MEMBER...]; only the tool's own version where no cluster is configured.
    pub words: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
}

/// The tool's own.
pub fn own() -> String {
    format!("tenure version {}", env!("CARGO_PKG_VERSION"))
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    print(own())?;
    let (cluster, names) = tool.cluster_and_members(&args.words);
    if cluster.is_none() && tool.scope().is_none() {
        return Ok(());
    }
    let parts = groups::all(tool, cluster, args.group).await?;
    print("")?;
    for (name, entry) in parts.iter().flat_map(|part| &part.view.members) {
        if names.is_empty() || names.iter().any(|wished| wished == name.as_str()) {
            let ours = entry.member.tenure.as_ref().filter(|facts| !facts.version.is_empty());
            let asked = tool.caller.ask(&entry.member.api_url, "GET", "patroni", None, BOUND).await;
            match asked.and_then(|(_, text)| line(&text, ours)) {
                Ok(line) => print(format!("{name}: {line}"))?,
                Err(error) => print(format!("{name}: failed to get version: {error:#}"))?,
            }
        }
    }
    Ok(())
}

/// Who runs what: the library in the server, the arbiter, the SQL objects; Patroni's release is that of the surface that tools see.
fn line(status: &str, ours: Option<&TenureFacts>) -> Result<String> {
    let status: Value = serde_json::from_str(status).context("understand the status")?;
    let surface = status.get("patroni").and_then(|patroni| patroni.get("version")).and_then(Value::as_str).unwrap_or("unknown");
    let program = match ours {
        Some(facts) => format!("pg_tenure {} (Patroni {surface})", facts.version),
        None => format!("Patroni {surface}"),
    };
    let postgres = status.get("server_version").and_then(Value::as_u64).map(|version| format!(" PostgreSQL {}", postgres_version(version)));
    let parts = ours.map(|facts| [("arbiter", &facts.arbiter_version), ("SQL objects", &facts.extension_version)]);
    let parts = parts.into_iter().flatten().filter_map(|(part, version)| Some(format!(", {part} {}", version.as_ref()?)));
    Ok(program + &postgres.unwrap_or_default() + &parts.collect::<String>())
}

/// 150020 is 15.20; before 10 there were three parts.
fn postgres_version(version: u64) -> String {
    if version < 100_000 {
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    } else {
        format!("{}.{}", version / 10_000, version % 100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_read_as_people_write_them() {
        let status = r#"{"server_version":150020,"patroni":{"version":"4.1.5"}}"#;
        assert_eq!(line(status, None).unwrap(), "Patroni 4.1.5 PostgreSQL 15.20");
        let facts = TenureFacts { version: "0.1.0".to_owned(), ..TenureFacts::default() };
        assert_eq!(line(status, Some(&facts)).unwrap(), "pg_tenure 0.1.0 (Patroni 4.1.5) PostgreSQL 15.20");
        let facts = TenureFacts { arbiter_version: Some("0.2.0".to_owned()), extension_version: Some("0.1.0".to_owned()), ..facts };
        assert_eq!(
            line(status, Some(&facts)).unwrap(),
            "pg_tenure 0.1.0 (Patroni 4.1.5) PostgreSQL 15.20, arbiter 0.2.0, SQL objects 0.1.0"
        );
        assert_eq!(postgres_version(90623), "9.6.23");
    }
}
