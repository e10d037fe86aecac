//! Two builds of pg_tenure in one cluster, in every mix, and a cluster of the older one that becomes the newer one under load.
//!
//! `make mixed OLD=COMMIT` builds both and writes docs/mixed-versions.md from what these stories saw; without two builds they are skipped.

use serde_json::json;
use std::fmt::Write;
use std::process::Output;
use std::time::Duration;
use stories::builds::{Builds, Host, Kind};
use stories::cluster::{Cluster, PATIENCE};
use stories::etcd::Etcd;
use stories::node::{self, Node};
use stories::room::Room;
use stories::verdict::Verdict;
use stories::wait::{self, seconds};
use stories::workload::{Ledger, Writer};

/// Restarts of three servers, on a busy machine.
const ROLLED_WITHIN: Duration = Duration::from_secs(240);

struct Mixed {
    cluster: Cluster,
    hosts: Vec<Host>,
    builds: Builds,
    mode: String,
    writers: std::cell::Cell<u64>,
}

impl Mixed {
    /// Members of these kinds, the first of which founds the cluster and leads.
    async fn start(builds: Builds, mode: &str, kinds: &[Kind]) -> Mixed {
        let room = Room::new();
        let etcd = Etcd::start(&room).await;
        let (mut nodes, mut hosts) = (Vec::new(), Vec::new());
        for (number, kind) in (1..).zip(kinds) {
            let name = format!("n{number}");
            let host = Host::new(&room, &name);
            host.install_arbiter(if kind.new_arbiter { &builds.new } else { &builds.old });
            host.install_library(if kind.new_library { &builds.new } else { &builds.old }, &builds);
            let planned = Node::planned(&room, &name, &etcd.hosts(), |config| {
                config["postgresql"]["bin_dir"] = json!(host.bin());
                config["bootstrap"]["dcs"]["synchronous_mode"] = if mode == "quorum" { json!(mode) } else { json!(false) };
            });
            nodes.push(planned.with_program(&host.tenure()));
            hosts.push(host);
        }
        let cluster = Cluster::assembled(nodes, etcd, room, mode == "quorum");
        for (count, node) in (1..).zip(&cluster.nodes) {
            cluster.start(node);
            cluster.healthy_members(count).await;
        }
        Mixed { cluster, hosts, builds, mode: mode.to_owned(), writers: std::cell::Cell::new(0) }
    }

    /// A writer whose ids are its own.
    async fn writer(&self) -> Writer {
        let number = self.writers.get();
        self.writers.set(number + 1);
        self.cluster.writer_on(self.cluster.targets().first_id(1 + number * 10_000_000)).await
    }

    /// Ends the writer and compares the rows. Where nothing is synchronous a node that is killed may take its last commits with it, as everywhere.
    async fn account(&self, writer: Writer, may_lose: bool) -> (Ledger, Verdict) {
        writer.goes_on(30, PATIENCE).await;
        let ledger = writer.finish();
        let verdict = self.cluster.verdict(&ledger).await;
        if may_lose {
            verdict.nothing_doubled()
        } else {
            verdict.nothing_lost_or_doubled()
        }
        (ledger, verdict)
    }
}

fn text(output: &Output) -> String {
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    said.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The rows of the page are made of these.
fn note(name: &str, lines: &str) {
    print!("{lines}");
    if let Some(into) = std::env::var_os("MIXED_INTO") {
        std::fs::write(std::path::Path::new(&into).join(format!("{name}.tsv")), lines).expect("note what was seen");
    }
}

/// Both nodes lead in turn: by a switchover, then by a failover, while a client writes.
async fn mix(mode: &str, kinds: [&str; 2]) {
    let Some(builds) = Builds::both() else { return };
    let [one, two] = kinds.map(Kind::of);
    let mixed = Mixed::start(builds, mode, &[one, two]).await;
    let cluster = &mixed.cluster;
    let mut lines = String::new();
    for (leads, stands) in [(0, 1), (1, 0)] {
        let (from, to) = (&cluster.nodes[leads], &cluster.nodes[stands]);
        let writer = mixed.writer().await;
        let output = cluster.cli(&["switchover", "--leader", from.name(), "--candidate", to.name(), "--force"]).await;
        assert!(output.status.success(), "{mode} {kinds:?}, {} to {}: {}\n{}", from.name(), to.name(), text(&output), from.log());
        cluster.wait_until("the other to lead", |view| view.leader() == Some(to.name())).await;
        cluster.healthy().await;
        let (ledger, verdict) = mixed.account(writer, false).await;
        line(&mut lines, &mixed, [[one, two][leads], [one, two][stands]], "switchover", &ledger, &verdict);
    }
    for (leads, stands) in [(0, 1), (1, 0)] {
        let (from, to) = (&cluster.nodes[leads], &cluster.nodes[stands]);
        let writer = mixed.writer().await;
        from.kill();
        cluster.wait_until("the other to lead", |view| view.leader() == Some(to.name())).await;
        cluster.start(from);
        cluster.healthy().await;
        let (ledger, verdict) = mixed.account(writer, mode != "quorum").await;
        line(&mut lines, &mixed, [[one, two][leads], [one, two][stands]], "failover", &ledger, &verdict);
    }
    note(&format!("mix-{mode}-{}-{}", kinds[0], kinds[1]), &lines);
}

fn line(lines: &mut String, mixed: &Mixed, [leader, standby]: [Kind; 2], what: &str, ledger: &Ledger, verdict: &Verdict) {
    let (leader, standby, mode) = (leader.words(), standby.words(), &mixed.mode);
    let (pause, acknowledged) = (ledger.longest_pause().as_millis(), ledger.acknowledged().count());
    let (lost, doubled) = (verdict.lost.len(), verdict.doubled.len());
    writeln!(lines, "mix\t{mode}\t{leader}\t{standby}\t{what}\t{pause}\t{acknowledged}\t{lost}\t{doubled}").expect("write a line");
}

/// One story for each pair of kinds; both of a pair lead in it.
macro_rules! mixes {
    ($($mode:ident { $($name:ident: $one:literal beside $two:literal;)* })*) => {
        $(mod $mode {
            $(#[tokio::test]
            async fn $name() {
                super::mix(stringify!($mode), [$one, $two]).await;
            })*
        })*
    };
}

mixes! {
    asynchronous {
        all_old_beside_a_new_arbiter: "oo" beside "no";
        all_old_beside_a_new_library: "oo" beside "on";
        all_old_beside_all_new: "oo" beside "nn";
        new_arbiters_over_old_libraries: "no" beside "no";
        old_arbiters_over_new_libraries: "on" beside "on";
        each_has_another_half: "no" beside "on";
        all_new_beside_an_old_library: "nn" beside "no";
        all_new_beside_an_old_arbiter: "nn" beside "on";
        all_old: "oo" beside "oo";
        all_new: "nn" beside "nn";
    }
    quorum {
        all_old_beside_a_new_arbiter: "oo" beside "no";
        all_old_beside_a_new_library: "oo" beside "on";
        all_old_beside_all_new: "oo" beside "nn";
        new_arbiters_over_old_libraries: "no" beside "no";
        old_arbiters_over_new_libraries: "on" beside "on";
        each_has_another_half: "no" beside "on";
        all_new_beside_an_old_library: "nn" beside "no";
        all_new_beside_an_old_arbiter: "nn" beside "on";
        all_old: "oo" beside "oo";
        all_new: "nn" beside "nn";
    }
}

/// What one finds by the extension in a database: functions and views, with their text and rights.
const OBJECTS: &str = "SELECT string_agg(what, E'\\n' ORDER BY what) FROM (
    SELECT p.oid::regprocedure::text || ' ' || coalesce(p.proacl::text, '') || ' ' || p.prosrc || ' ' || p.provolatile::text || p.proparallel::text AS what
    FROM pg_proc p JOIN pg_depend d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
    UNION ALL SELECT c.oid::regclass::text || ' ' || coalesce(c.relacl::text, '') || ' ' || pg_get_viewdef(c.oid)
    FROM pg_class c WHERE c.relnamespace = 'tenure'::regnamespace AND c.relkind = 'v') objects";

/// Step by step, as docs/upgrade.md says it; each step with a writer of its own, so that its pause is known.
async fn rolling(mode: &str) {
    let Some(builds) = Builds::both() else { return };
    let mixed = Mixed::start(builds, mode, &["oo"; 3].map(Kind::of)).await;
    let mut lines = String::new();
    let (old, new) = (mixed.builds.old.clone(), mixed.builds.new.clone());
    mixed.arbiters("new arbiters, one after another", &new, &mut lines).await;
    mixed.libraries("new libraries: `tenure restart --rolling`", &new, &mut lines).await;

    let cluster = &mixed.cluster;
    let told = format!("the SQL objects of pg_tenure were brought from release {} to {}", old.release, new.release);
    wait::until(&told, PATIENCE, async || {
        let said = cluster.nodes.iter().any(|node| node.log().contains(&told));
        if said { Ok(()) } else { Err("nobody said so") }
    })
    .await;
    let leader = cluster.leader().await;
    assert_eq!(leader.one("SELECT extension FROM tenure.version").await.expect("ask"), new.release);
    leader.query("CREATE DATABASE fresh").await.expect("make a database");
    let fresh = node::connect_in("fresh", leader.host(), leader.port(), "postgres", node::PASSWORD, seconds(10)).await.expect("a session");
    node::rows(&fresh, "CREATE EXTENSION pg_tenure").await.expect("install the extension");
    let installed = node::rows(&fresh, OBJECTS).await.expect("what there is");
    assert_eq!(leader.query(OBJECTS).await.expect("what there is"), installed, "an update leads to the same as a new installation");
    drop(fresh);

    mixed.arbiters("and back: old arbiters", &old, &mut lines).await;
    mixed.libraries("and back: old libraries, newer SQL objects", &old, &mut lines).await;
    note(&format!("rolling-{mode}"), &lines);
}

impl Mixed {
    /// The package of the arbiter on each node, standbys first; servers go on.
    async fn arbiters(&self, what: &str, build: &stories::builds::Build, lines: &mut String) {
        let cluster = &self.cluster;
        let leader = cluster.leader().await;
        let servers: Vec<_> = cluster.nodes.iter().map(Node::postmaster).collect();
        let writer = self.writer().await;
        for node in cluster.others(leader).into_iter().chain([leader]) {
            self.host_of(node).install_arbiter(build);
            assert_eq!(node.leave_arbiter(), Some(0), "{}", node.log());
            cluster.start(node);
            wait::until("the member to tell of its arbiter", PATIENCE, async || {
                let view = cluster.view().await.map_err(|why| format!("{why:#}"))?;
                let facts = &view.member(node.name())["tenure"];
                let is = if facts["arbiter_version"].is_null() { &facts["version"] } else { &facts["arbiter_version"] };
                if *is == build.release.as_str() { Ok(()) } else { Err(facts.to_string()) }
            })
            .await;
            cluster.healthy().await;
        }
        assert_eq!(servers, cluster.nodes.iter().map(Node::postmaster).collect::<Vec<_>>(), "no server was restarted");
        self.step(what, writer, lines).await;
    }

    /// The package of the library on each node, then the rolling restart.
    async fn libraries(&self, what: &str, build: &stories::builds::Build, lines: &mut String) {
        let cluster = &self.cluster;
        let writer = self.writer().await;
        for node in &cluster.nodes {
            self.host_of(node).install_library(build, &self.builds);
        }
        let first = &cluster.nodes[0];
        let mut command = tokio::process::Command::from(first.command(&cluster.room));
        command.arg("-c").arg(first.config_file()).args(["restart", "--rolling", "--force"]).kill_on_drop(true);
        let output = tokio::time::timeout(ROLLED_WITHIN, command.output()).await.expect("an end").expect("run tenure");
        assert!(output.status.success(), "{}", text(&output));
        cluster.healthy().await;
        for node in &cluster.nodes {
            wait::until("the library to be this release's", PATIENCE, async || {
                let loaded = node.one("SELECT current_setting('tenure.library_version')").await.map_err(|why| format!("{why:#}"))?;
                if loaded == build.release { Ok(()) } else { Err(loaded) }
            })
            .await;
        }
        self.step(what, writer, lines).await;
    }

    fn host_of(&self, node: &Node) -> &Host {
        let place = self.cluster.nodes.iter().position(|one| one.name() == node.name());
        &self.hosts[place.expect("a node of this cluster")]
    }

    async fn step(&self, what: &str, writer: Writer, lines: &mut String) {
        let (ledger, verdict) = self.account(writer, false).await;
        let (pause, acknowledged) = (ledger.longest_pause().as_millis(), ledger.acknowledged().count());
        let (refused, unknown) = (ledger.refused().count(), ledger.unknown().count());
        let (mode, lost, doubled) = (&self.mode, verdict.lost.len(), verdict.doubled.len());
        writeln!(lines, "step\t{mode}\t{what}\t{pause}\t{acknowledged}\t{refused}\t{unknown}\t{lost}\t{doubled}").expect("write a line");
    }
}

#[tokio::test]
async fn a_cluster_of_the_older_release_is_upgraded_under_load_and_back() {
    rolling("asynchronous").await;
}

#[tokio::test]
async fn the_same_in_quorum_mode() {
    rolling("quorum").await;
}

#[tokio::test]
async fn a_major_upgrade_waits_until_arbiter_library_and_sql_objects_are_of_one_release() {
    let Some(builds) = Builds::both() else { return };
    let mixed = Mixed::start(builds, "asynchronous", &[Kind::of("no")]).await;
    let (old, new) = (&mixed.builds.old.release, &mixed.builds.new.release);
    // The change of places calls what an older library lacks, with the writers held.
    let output = mixed.cluster.cli(&["upgrade", "--to", "18", "--check"]).await;
    let expected = format!("pg_tenure is under way: the arbiter is of release {new}, the library of {old}, the SQL objects of {old}");
    assert!(!output.status.success() && text(&output).contains(&expected), "{}", text(&output));
}
