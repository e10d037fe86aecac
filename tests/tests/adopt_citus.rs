//! A running Citus cluster of Patroni's is taken over group by group with `tenure adopt`, and given back with `tenure abandon`.

use serde_json::json;
use std::path::Path;
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::Node;
use stories::programs;
use stories::takeover;
use stories::wait;
use stories::workload::{Ledger, Writer};

const COORDINATORS: usize = 0;
const WORKERS: usize = 1;

/// Two coordinators and a worker group of two, and who counts what comes of it.
struct Field {
    cluster: CitusCluster,
    phases: Vec<String>,
    /// By group: primaries keep these for ever, as their shards hang on them.
    ids: Vec<Vec<String>>,
}

impl Field {
    async fn of_patroni(patroni: &Path) -> Field {
        let cluster = CitusCluster::planned(2, &[2], |_, config| {
            let hosts = config["etcd3"]["hosts"].as_str().expect("the hosts of etcd").to_owned();
            takeover::fit_for_patroni(config, &hosts);
            config["bootstrap"]["dcs"]["synchronous_mode"] = json!("quorum");
            // Patroni takes its time otherwise, and CREATE EXTENSION citus leaves much to write.
            config["postgresql"]["basebackup"] = json!([{"checkpoint": "fast"}]);
        })
        .await;
        for node in cluster.nodes() {
            node.start_patroni(&cluster.room, patroni);
        }
        cluster.healthy().await;
        cluster.make_written().await;
        let rows = "CREATE TABLE kept(id bigint, what text); SELECT create_distributed_table('kept', 'id');
            INSERT INTO kept SELECT i, md5(i::text) FROM generate_series(1, 1000) AS i;
            CREATE TABLE same(id bigint PRIMARY KEY); SELECT create_reference_table('same'); INSERT INTO same VALUES (1), (2)";
        cluster.query(rows).await.expect("make tables");
        let mut field = Field { cluster, phases: Vec::new(), ids: Vec::new() };
        field.healthy().await;
        field.ids = field.primaries().await;
        field
    }

    /// Each group whole, its standby trusted again: nobody else could take over from its leader.
    async fn healthy(&self) {
        self.cluster.healthy().await;
        for (group, nodes) in self.cluster.groups.iter().enumerate() {
            wait::until(&format!("a synchronous standby of group {group}"), PATIENCE, async || {
                let view = self.cluster.view(group).await.map_err(|error| format!("{error:#}"))?;
                view.fault(nodes.len(), true).map_or(Ok(()), Err)
            })
            .await;
        }
    }

    async fn primaries(&self) -> Vec<Vec<String>> {
        let question = "SELECT groupid, nodeid FROM pg_dist_node WHERE noderole = 'primary' ORDER BY groupid";
        self.cluster.query(question).await.expect("read the primaries")
    }

    /// Who runs each member of a group: `o` ours, `p` Patroni.
    async fn kinds(&self, group: usize) -> String {
        let view = self.cluster.view(group).await.expect("read etcd");
        view.members().into_iter().map(|name| if view.member(name)["tenure"].is_object() { 'o' } else { 'p' }).collect()
    }

    /// Standbys by name, then the leader.
    async fn in_order(&self, group: usize) -> Vec<&Node> {
        let leader = self.cluster.leader(group).await;
        let mut order: Vec<&Node> = self.cluster.groups[group].iter().filter(|node| node.name() != leader.name()).collect();
        order.push(leader);
        order
    }

    /// One group changes hands while a client writes through the coordinators; what that client saw is judged.
    async fn group(&mut self, group: usize, verb: &str) -> Ledger {
        let first_id = 1 + 1_000_000 * (self.phases.len() as u64);
        let writer = Writer::start(self.cluster.targets().first_id(first_id));
        writer.goes_on(50, PATIENCE).await;
        for node in self.in_order(group).await {
            takeover::done(&self.cluster.room, node, &[verb]).await;
            self.healthy().await;
        }
        writer.goes_on(50, PATIENCE).await;
        let ledger = writer.finish();
        let verdict = self.cluster.verdict(&ledger).await;
        let what = if group == COORDINATORS { "the coordinators" } else { "the workers" };
        self.phases.push(format!("{verb}, {what}: {}", verdict.summary));
        println!("{}", self.phases.last().expect("one was said"));
        verdict.nothing_lost_or_doubled();
        self.same_as_ever().await;
        ledger
    }

    /// Rows from before all of it, and the ids by which shards know their nodes.
    async fn same_as_ever(&self) {
        let question = "SELECT count(*), sum(id), count(*) FILTER (WHERE what <> md5(id::text)) FROM kept";
        assert_eq!(self.cluster.query(question).await.expect("compare rows"), [["1000", "500500", "0"]]);
        let joined = "SELECT count(*) FROM kept JOIN same USING (id)";
        assert_eq!(self.cluster.query(joined).await.expect("join with the reference table"), [["2"]]);
        assert_eq!(self.primaries().await, self.ids);
    }
}

/// The arbiter that `tenure adopt` started has said this.
async fn says(node: &Node, words: &str) {
    let log = node.dir().join("data.arbiter.log");
    wait::until(&format!("{} to say \"{words}\"", node.name()), PATIENCE, async || {
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        if said.contains(words) { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn a_citus_cluster_of_patronis_is_taken_over_group_by_group_and_given_back() {
    if !citus::is_installed() {
        return;
    }
    let Some(patroni) = programs::patroni() else {
        println!("SKIPPED: no Patroni here; `make patroni` installs it");
        return;
    };
    let mut field = Field::of_patroni(&patroni).await;

    // The order of the groups is kept, also by a look.
    let coordinator = field.in_order(COORDINATORS).await[0];
    let words = takeover::refused(&field.cluster.room, coordinator, &["adopt"]).await;
    assert!(words.contains("the workers come first: group 1 (w1") && words.contains("(group 1)"), "{words}");
    let looked = takeover::done(&field.cluster.room, coordinator, &["adopt", "--check"]).await;
    assert!(looked.contains("stops: this is the coordinator's group"), "{looked}");

    // A client waits while a worker's primary changes, as Patroni holds it for its own workers: it sees no error.
    let there = field.group(WORKERS, "adopt").await;
    assert_eq!((field.kinds(COORDINATORS).await, field.kinds(WORKERS).await), ("pp".to_owned(), "oo".to_owned()));
    assert_eq!((there.refused().count(), there.unknown().count()), (0, 0), "{}", there.summary());

    // In between, a planned change of a worker that is ours, with a coordinator that is Patroni's.
    let writer = Writer::start(field.cluster.targets().first_id(500_000_001));
    writer.goes_on(50, PATIENCE).await;
    let old = field.cluster.leader(WORKERS).await;
    let switched = field.cluster.cli_of(old, &["switchover", "--group", "1", "--force"]).await;
    assert!(switched.status.success(), "{}", String::from_utf8_lossy(&switched.stderr));
    let new = field.cluster.leads_other_than(WORKERS, old).await;
    says(old, "the coordinator, which Patroni runs, was told to hold writers").await;
    says(new, "the coordinator, which Patroni runs, was told that this node is its group's primary").await;
    writer.goes_on(50, PATIENCE).await;
    let ledger = writer.finish();
    field.healthy().await;
    let verdict = field.cluster.verdict(&ledger).await;
    let between = format!("a switchover of the workers in between: {}", verdict.summary);
    println!("{between}");
    verdict.nothing_lost_or_doubled();
    assert_eq!((ledger.refused().count(), ledger.unknown().count()), (0, 0), "{between}");

    field.group(COORDINATORS, "adopt").await;
    assert_eq!((field.kinds(COORDINATORS).await, field.kinds(WORKERS).await), ("oo".to_owned(), "oo".to_owned()));
    println!("{}", field.cluster.cli_ok(&["check"]).await);

    let worker = field.in_order(WORKERS).await[0];
    let words = takeover::refused(&field.cluster.room, worker, &["abandon"]).await;
    assert!(words.contains("the coordinator's comes first: group 0 (c"), "{words}");
    field.group(COORDINATORS, "abandon").await;
    let back = field.group(WORKERS, "abandon").await;
    assert_eq!((back.refused().count(), back.unknown().count()), (0, 0), "{}", back.summary());
    assert_eq!((field.kinds(COORDINATORS).await, field.kinds(WORKERS).await), ("pp".to_owned(), "pp".to_owned()));

    // Nothing of ours is left in a server; the library is gone from the settings with its daemon.
    for group in [COORDINATORS, WORKERS] {
        let leader = field.cluster.leader(group).await;
        for client in [leader.connect().await.expect("connect"), citus::session(leader).await.expect("connect")] {
            client.batch_execute("DROP EXTENSION pg_tenure").await.expect("drop the extension");
        }
    }
    field.same_as_ever().await;
    println!("{}\n{between}", field.phases.join("\n"));
}
