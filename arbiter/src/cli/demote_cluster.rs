//! `tenure demote-cluster`: a primary cluster becomes a standby cluster that follows another one.

use super::cluster_role;
use super::context::{Tool, refuse_with};
use anyhow::Result;
use serde_json::{Map, Value, json};

/// Demote the cluster to a standby cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
    /// Address of the remote node; several, separated by commas, of which the primary is followed.
    #[arg(long)]
    pub host: Option<String>,
    /// Port of the remote node; or one for each host, separated by commas.
    #[arg(long)]
    pub port: Option<String>,
    /// Command to restore WAL records from the remote primary; counts where each node's own file says the same.
    #[arg(long)]
    pub restore_command: Option<String>,
    /// Name of the slot on the remote node to use for replication.
    #[arg(long)]
    pub primary_slot_name: Option<String>,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    cluster_role::change(tool, args.cluster.as_deref(), args.force, Some(section(args)?)).await
}

fn section(args: &Args) -> Result<Map<String, Value>> {
    if args.host.is_none() && args.port.is_none() && args.restore_command.is_none() {
        return Err(refuse_with("At least --host, --port or --restore-command should be specified", "they say which cluster to follow"));
    }
    let port = args.port.as_deref().map(|port| match port.parse::<u16>() {
        Ok(port) => Ok(json!(port)),
        Err(_) if port.split(',').all(|port| port.trim().parse::<u16>().is_ok()) => Ok(json!(port)),
        Err(_) => Err(refuse_with(format!("\"{port}\" is no port"), "give a number, or one for each host, separated by commas")),
    });
    let text = |value: &Option<String>| value.as_ref().map(|value| json!(value));
    let fields = [
        ("host", text(&args.host)),
        ("port", port.transpose()?),
        ("primary_slot_name", text(&args.primary_slot_name)),
        ("restore_command", text(&args.restore_command)),
    ];
    Ok(fields.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_becomes_the_section() {
        let args = |host: Option<&str>, port: Option<&str>| Args {
            cluster: None,
            force: true,
            host: host.map(str::to_owned),
            port: port.map(str::to_owned),
            restore_command: None,
            primary_slot_name: None,
        };
        assert_eq!(Value::Object(section(&args(Some("a"), Some("5433"))).unwrap()), json!({"host": "a", "port": 5433}));
        assert_eq!(Value::Object(section(&args(Some("a,b"), Some("1,2"))).unwrap()), json!({"host": "a,b", "port": "1,2"}));
        assert!(section(&args(None, None)).is_err());
        assert!(section(&args(Some("a"), Some("x"))).is_err());
    }
}
