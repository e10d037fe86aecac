//! The baseline: two plain servers and a person who types `pg_ctl stop` and `pg_ctl promote`.

use crate::node::{self, PASSWORD};
use crate::ports::Port;
use crate::programs;
use crate::room::Room;
use crate::wait::{self, seconds};
use crate::workload::{Ledger, Targets, Writer};
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// Primary and standby without any of our parts.
pub struct ByHand {
    room: Room,
    primary: Port,
    standby: Port,
    primary_dir: PathBuf,
    standby_dir: PathBuf,
}

impl ByHand {
    /// Makes and starts both; returns once the standby streams.
    pub async fn start() -> ByHand {
        let room = Room::new();
        let hand = ByHand {
            primary: Port::free(),
            standby: Port::free(),
            primary_dir: room.directory("primary"),
            standby_dir: room.directory("standby"),
            room,
        };
        let password = hand.room.path().join("password");
        hand.room.file(&password, PASSWORD);
        hand.run("initdb", |command| {
            command
                .arg("-D")
                .arg(&hand.primary_dir)
                .args(["-U", "postgres", "-E", "UTF8", "--locale=C", "-k", "-A", "scram-sha-256"])
                .arg("--pwfile")
                .arg(&password);
        });
        hand.configure(&hand.primary_dir, &hand.primary);
        hand.start_server(&hand.primary_dir);
        hand.run("pg_basebackup", |command| {
            command
                .args(["-R", "-X", "stream", "-c", "fast", "-h", "127.0.0.1", "-U", "postgres"])
                .args(["-p", &hand.primary.number().to_string()])
                .arg("-D")
                .arg(&hand.standby_dir)
                .env("PGPASSWORD", PASSWORD);
        });
        hand.configure(&hand.standby_dir, &hand.standby);
        hand.start_server(&hand.standby_dir);
        wait::until("the standby to stream", seconds(30), async || {
            let client = node::connect(hand.primary.number(), seconds(3)).await?;
            let seen = node::rows(&client, "SELECT state FROM pg_stat_replication").await?;
            anyhow::ensure!(seen == [["streaming"]], "{seen:?}");
            node::rows(&client, "CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())").await
        })
        .await;
        hand
    }

    /// Stops the primary and promotes the standby under the writer; its ledger has the pause.
    pub async fn switchover(self) -> Ledger {
        let ports = vec![self.primary.number(), self.standby.number()];
        let writer = Writer::start(Targets::on_loopback(ports));
        writer.goes_on(100, seconds(30)).await;
        self.pg_ctl(&self.primary_dir, &["stop", "-m", "fast", "-w"]);
        self.pg_ctl(&self.standby_dir, &["promote", "-w"]);
        writer.goes_on(50, seconds(30)).await;
        writer.finish()
    }

    fn configure(&self, dir: &Path, port: &Port) {
        let file = dir.join("postgresql.auto.conf");
        let mut text = std::fs::read_to_string(&file).unwrap_or_default();
        let room = self.room.path().display();
        let _ = write!(
            text,
            "\nlisten_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = '{room}'\nshared_buffers = 16MB\nmax_connections = 50\ndynamic_shared_memory_type = mmap\n",
            port.number()
        );
        self.room.file(&file, &text);
    }

    fn start_server(&self, dir: &Path) {
        let log = self.room.path().join("by_hand.log");
        self.pg_ctl(dir, &["start", "-w", "-s", "-l", &log.to_string_lossy()]);
    }

    fn pg_ctl(&self, dir: &Path, arguments: &[&str]) {
        self.run("pg_ctl", |command| {
            command.arg("-D").arg(dir).args(arguments);
        });
    }

    fn run(&self, program: &str, arguments: impl FnOnce(&mut std::process::Command)) {
        let path = programs::postgres_bin().join(program);
        let mut command = self.room.command(path, self.room.path());
        command.stdout(std::process::Stdio::null());
        arguments(&mut command);
        let status = command.status().unwrap_or_else(|error| panic!("run {program}: {error}"));
        assert!(status.success(), "{program} failed: {status}");
    }
}
