//! Citus: how soon every node's metadata names a worker's new primary after a switchover, standbys and other workers included.

use std::time::{Duration, Instant};
use stories::citus::{self, CitusCluster};
use stories::cluster::PATIENCE;
use stories::node::{PASSWORD, connect_in, rows};
use stories::wait::{lasting, seconds};
use tokio::sync::watch;

/// One second is the aim, on a machine that does nothing else.
const BOUND: Duration = Duration::from_secs(5);

/// How long after the command's return this node names another primary of group 2 than `before`; zero where that was earlier.
async fn follows(name: String, host: String, port: u16, before: String, returned: watch::Receiver<Option<Instant>>) -> (String, Duration) {
    const WHERE: &str = "SELECT nodename || ':' || nodeport FROM pg_dist_node WHERE groupid = 2 AND noderole = 'primary'";
    let began = Instant::now();
    let mut session = None;
    while began.elapsed() < PATIENCE {
        if session.is_none() {
            // The old primary has none while it stops and starts.
            session = connect_in(citus::DATABASE, &host, port, "postgres", PASSWORD, seconds(3)).await.ok();
        }
        let found = match &session {
            Some(client) => rows(client, WHERE).await.ok(),
            None => None,
        };
        match found {
            Some(found) if found.first().is_some_and(|row| row[0] != before) => {
                let returned = *returned.borrow();
                return (name, returned.map_or(Duration::ZERO, |returned| returned.elapsed()));
            }
            Some(_) => {}
            None => session = None,
        }
        lasting(Duration::from_millis(20)).await;
    }
    panic!("{name} names {before} yet");
}

#[tokio::test]
async fn every_nodes_metadata_names_the_new_primary_soon_after_a_switchover() {
    if !citus::is_installed() {
        return;
    }
    let cluster = CitusCluster::planned(2, &[2, 2], |_, _| ()).await;
    cluster.start_all();
    cluster.healthy().await;
    let mut worst = Duration::ZERO;
    for round in 1..=3 {
        let old = cluster.leader(2).await;
        let before = format!("{}:{}", old.host(), old.port());
        let (returns, returned) = watch::channel(None);
        let look = |node: &stories::node::Node| {
            let look = follows(node.name().to_owned(), node.host().to_owned(), node.port(), before.clone(), returned.clone());
            tokio::spawn(look)
        };
        let looks: Vec<_> = cluster.nodes().map(look).collect();
        lasting(Duration::from_millis(500)).await;
        let said = cluster.cli_of(old, &["switchover", "--group", "2", "--force"]).await;
        let ended = Instant::now();
        returns.send_replace(Some(ended));
        assert!(said.status.success(), "{said:?}");
        let mut told = String::new();
        for look in looks {
            let (name, after) = look.await.expect("it follows");
            told += &format!(" {name} {} ms,", after.as_millis());
            if name != old.name() {
                worst = worst.max(after);
            }
        }
        println!("round {round}, {} handed over; its successor's name after the command's return:{told}", old.name());
        cluster.healthy().await;
        println!("round {round}: all rows on every primary, the old one's as a standby too, after {} ms", ended.elapsed().as_millis());
    }
    assert!(worst < BOUND, "{worst:?}");
}
