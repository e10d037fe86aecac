//! `tenure dsn`: where a member's Postgres is reached.

use super::context::{RoleFilter, Tool, print, refuse};
use super::groups;
use anyhow::Result;
use cluster::host::Address;
use cluster::name::MemberName;
use cluster::view::ClusterView;

/// Print host and port of a member, the leader's (of Citus: the coordinator's) unless told otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Any member with this role.
    #[arg(short, long, value_enum, conflicts_with = "member")]
    pub role: Option<RoleFilter>,
    /// This member.
    #[arg(short, long)]
    pub member: Option<String>,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let parts = groups::all(tool, args.cluster.as_deref(), args.group).await?;
    let role = args.role.unwrap_or(if args.member.is_some() { RoleFilter::Any } else { RoleFilter::Leader });
    let wished = |name: &MemberName| args.member.as_deref().is_none_or(|wished| wished == name.as_str());
    let of = |view: &ClusterView| {
        let fits = |name: &MemberName| wished(name) && role.takes(view, name);
        view.members.iter().filter(|(name, _)| fits(name)).find_map(|(_, entry)| entry.member.address())
    };
    let address = parts.iter().find_map(|part| of(&part.view));
    let Address { host, port } = address.ok_or_else(|| refuse("Can not find a suitable member"))?;
    print(format!("host={host} port={port}"))
}
