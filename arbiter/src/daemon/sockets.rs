//! The two sockets that the daemon listens on: REST, and the one by which the extension wakes it.

use crate::config::NodeConfig;
use crate::node::paths;
use anyhow::{Context, Result};
use cluster::host::Address;
use std::os::fd::AsRawFd;
use std::path::Path;
use tokio::net::UnixDatagram;

/// `*` is every address: of both kinds where this machine has both.
pub async fn listen(address: &Address) -> std::io::Result<tokio::net::TcpListener> {
    if address.host != "*" {
        return tokio::net::TcpListener::bind((address.host.as_str(), address.port)).await;
    }
    match tokio::net::TcpListener::bind(("::", address.port)).await {
        Err(why) if why.kind() != std::io::ErrorKind::AddrInUse => tokio::net::TcpListener::bind(("0.0.0.0", address.port)).await,
        bound => bound,
    }
}

/// The socket by which the extension wakes us.
pub fn wake_socket(config: &NodeConfig) -> Result<UnixDatagram> {
    let path = paths::wake_socket(config);
    let _ = std::fs::remove_file(&path);
    let bound = || -> std::io::Result<UnixDatagram> {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return UnixDatagram::bind(&path) };
        // A socket's path has at most 107 bytes. By its directory's descriptor it is short wherever the data lies, and stays where nobody else may write.
        let directory = std::fs::File::open(directory)?;
        UnixDatagram::bind(Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name))
    };
    bound().with_context(|| format!("bind the wake socket {}", path.display()))
}
