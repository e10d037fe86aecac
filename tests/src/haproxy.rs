//! HAProxy with the recipe of docs/routing.md: REST says who is the primary and who a standby.

use crate::cluster::Cluster;
use crate::ports::Port;
use std::path::Path;
use std::process::Child;

/// A running one; dropped, it ends.
pub struct Haproxy {
    /// Leads to the primary.
    pub writes: Port,
    /// Leads to a standby.
    pub reads: Port,
    process: Child,
}

impl Haproxy {
    /// In front of this cluster, whoever manages it.
    pub fn before(cluster: &Cluster, program: &Path) -> Haproxy {
        let (writes, reads) = (Port::free(), Port::free());
        let directory = cluster.room.directory("haproxy");
        let file = directory.join("haproxy.cfg");
        cluster.room.file(&file, &recipe(cluster, &writes, &reads));
        let log = cluster.room.log(&directory.join("haproxy.log"));
        let mut command = cluster.room.command(program, &directory);
        command.arg("-db").arg("-f").arg(&file).stdout(log.try_clone().expect("share the log")).stderr(log);
        Haproxy { writes, reads, process: command.spawn().expect("start HAProxy") }
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// As docs/routing.md has it, word for word but for the addresses.
fn recipe(cluster: &Cluster, writes: &Port, reads: &Port) -> String {
    let defaults = "global\n    maxconn 200\ndefaults\n    mode tcp\n    retries 2\n    timeout client 30m\n    timeout server 30m\n    \
                    timeout connect 1s\n    timeout check 1s\n";
    let servers: String = cluster
        .nodes
        .iter()
        .map(|node| format!("    server {} {}:{} maxconn 100 check port {}\n", node.name(), node.host(), node.port(), node.rest_port()))
        .collect();
    let listen = |name: &str, port: &Port, path: &str| {
        format!(
            "listen {name}\n    bind 127.0.0.1:{}\n    option httpchk OPTIONS {path}\n    http-check expect status 200\n    \
             default-server inter 500ms fall 2 rise 1 on-marked-down shutdown-sessions\n{servers}",
            port.number()
        )
    };
    format!("{defaults}{}{}", listen("primary", writes, "/primary"), listen("replicas", reads, "/replica?lag=16MB"))
}
