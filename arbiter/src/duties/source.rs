//! How a copy or a rewind reaches the server that it is made from.

use crate::config::Credentials;
use crate::node::Node;
use crate::node::recovery;
use crate::postgres::query::member_conninfo;
use anyhow::{Context, Result, bail};
use cluster::upstream::Upstream;
use cluster::view::ClusterView;

/// How a copy or a rewind reaches its source, as whom. Never under the member's own name: to the primary that is the name of a
/// standby, for which commits may wait, and the stream of a copy confirms WAL that nobody could promote. (No member can be called so.)
pub fn conninfo(node: &Node, view: &ClusterView, from: &Upstream, credentials: &Credentials, database: Option<&str>) -> Result<String> {
    let config = &node.config;
    let application_name = format!("copy/{}", config.name);
    match from {
        Upstream::Member(name) => {
            let source = &view.members.get(name).with_context(|| format!("{name} has no member key"))?.member;
            let address = source.address().with_context(|| format!("{name} has no usable address: {}", source.conn_url))?;
            let passfile = config.postgres.pgpass.display().to_string();
            Ok(member_conninfo(&address, credentials, &passfile, &application_name, database))
        }
        Upstream::Remote => {
            let remote = node.dynamic(view).standby_cluster().context("standby_cluster names nothing to copy from")?;
            recovery::remote_conninfo(config, &remote, credentials, &application_name, database).context("standby_cluster names no host")
        }
        Upstream::Nobody => bail!("nobody to copy from"),
    }
}

/// Host and port of a conninfo, for the log: the rest is nobody's business there.
pub fn address(conninfo: &str) -> String {
    let words = conninfo.split_whitespace().filter(|word| word.starts_with("host=") || word.starts_with("port="));
    words.collect::<Vec<_>>().join(" ")
}
