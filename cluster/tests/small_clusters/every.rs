//! Every state of three nodes, and what goes wrong meanwhile.

use super::*;

/// Runs the cluster until it is healthy; if nobody could lead, until nothing happens any more.
fn check(start: &Cluster, blow: Option<(u32, Blow)>) {
    let failed = |what: &str, now: &Cluster| -> ! {
        let reasons = now.reasons().join("\n");
        panic!("{what}\nfrom {}\n{blow:?}\nnow {}\n{reasons}", start.told(), now.told())
    };
    let hopeless = |cluster: &Cluster| !cluster.nodes.iter().any(|node| cluster.is_of_use(node));
    let mut cluster = start.clone();
    let mut without_hope = hopeless(&cluster);
    let mut quiet = 0;
    for round in 0..60 {
        if let Some((at, blow)) = blow
            && at == round
        {
            cluster.suffer(blow);
            without_hope = hopeless(&cluster);
            quiet = 0;
        }
        let before = cluster.clone();
        let moved = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cluster.round()));
        match moved {
            Err(_) => failed("a round that must not be", &before),
            Ok(true) => quiet = 0,
            Ok(false) => quiet += 1,
        }
        // More than HEAD_START and PATIENCE: what has not happened by now never will.
        if quiet == 6 && blow.is_none_or(|(at, _)| at < round) {
            match cluster.is_healthy() {
                true => return,
                false if without_hope && cluster.leader.is_none() => return,
                false => failed("at rest, and not healthy", &cluster),
            }
        }
    }
    failed("no end", &cluster)
}

fn every_data() -> Vec<Data> {
    let mut all = vec![Data::Empty, Data::Incomplete];
    for wal in [Wal::before_the_fork(), Wal::past_the_fork(), Wal::after_the_fork()] {
        for server in [
            Server::Stopped(Ended::CleanPrimary),
            Server::Stopped(Ended::CrashedPrimary),
            Server::Stopped(Ended::Standby),
            Server::Primary,
            Server::Standby { upstream: None },
        ] {
            all.push(Data::Present(wal.clone(), server));
        }
    }
    all
}

/// Can there be such a cluster? The race lets nobody lead that left the history, and a primary that
/// leads has the newest timeline there is.
fn can_be(cluster: &Cluster) -> bool {
    // One server writes a timeline, and nobody has more of it.
    let wrote = |server: &Server| !matches!(server, Server::Standby { .. } | Server::Stopped(Ended::Standby));
    for timeline in [1, 2] {
        let of_it = cluster.nodes.iter().filter_map(|node| match &node.data {
            Data::Present(wal, server) if wal.timeline == timeline => Some((wal.lsn, wrote(server))),
            _ => None,
        });
        let of_it = of_it.collect::<Vec<_>>();
        let writers = of_it.iter().filter(|(_, wrote)| *wrote).collect::<Vec<_>>();
        if writers.len() > 1 || writers.iter().any(|writer| of_it.iter().any(|(lsn, _)| *lsn > writer.0)) {
            return false;
        }
    }
    let newest = cluster.nodes.iter().filter_map(|node| match &node.data {
        Data::Present(wal, _) => Some(wal.timeline),
        _ => None,
    });
    let newest = newest.max().unwrap_or(1).max(cluster.history.current().0);
    let Some((leader, _)) = &cluster.leader else { return true };
    let leader = cluster.nodes.iter().find(|node| node.name == *leader).unwrap();
    match &leader.data {
        Data::Present(wal, Server::Primary) => wal.timeline == newest && cluster.is_of_use(leader),
        Data::Present(..) => cluster.is_of_use(leader),
        Data::Empty | Data::Incomplete => true,
    }
}

fn every_cluster(sync: bool, blows: &[(u32, Blow)]) {
    let all = every_data();
    let mut count = 0;
    for leader in [None, Some("n1"), Some("n3")] {
        for lines in [&[][..], &[(1, FORK)][..]] {
            for (i, a) in all.iter().enumerate() {
                for (j, b) in all.iter().enumerate() {
                    for (k, c) in all.iter().enumerate() {
                        // Names only break ties: those that nothing else tells apart come in one order.
                        let told_apart = match (sync, leader) {
                            (true, None | Some("n3")) => i <= j,
                            (true, _) => true,
                            (false, None) => i <= j && j <= k,
                            (false, Some("n1")) => j <= k,
                            (false, _) => false,
                        };
                        if !told_apart {
                            continue;
                        }
                        let key = sync.then(|| sync_key("n1", "n2").unwrap().value);
                        let data = [a.clone(), b.clone(), c.clone()];
                        let cluster = Cluster::of(data, leader, history(lines).unwrap().value, key);
                        if can_be(&cluster) {
                            count += 1;
                            check(&cluster, None);
                            for blow in blows {
                                check(&cluster, Some(*blow));
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(count > 1000, "only {count} clusters were looked at");
}

fn every_blow(rounds: &[u32]) -> Vec<(u32, Blow)> {
    let blows = [Blow::LeaseLost, Blow::Crash(0), Blow::Crash(1), Blow::Crash(2)];
    let at = |round: &u32| blows.map(|blow| (*round, blow));
    rounds.iter().flat_map(at).collect()
}

#[test]
fn every_cluster_of_three_heals_or_says_why_not() {
    every_cluster(false, &[]);
}

#[test]
fn every_cluster_of_three_in_sync_mode_heals_or_says_why_not() {
    every_cluster(true, &[]);
}

#[test]
fn every_cluster_of_three_heals_also_when_a_server_crashes_or_the_lease_is_lost_meanwhile() {
    every_cluster(false, &every_blow(&[1, 2, 4]));
}

#[test]
fn every_cluster_of_three_in_sync_mode_heals_also_when_a_server_crashes_or_the_lease_is_lost() {
    every_cluster(true, &every_blow(&[3]));
}

#[test]
fn every_cluster_before_its_first_data_comes_to_life() {
    let ways = [
        Data::Empty,
        Data::Present(Wal::before_the_fork(), Server::Stopped(Ended::CleanPrimary)),
        Data::Present(Wal::before_the_fork(), Server::Primary),
    ];
    for (i, a) in ways.iter().enumerate() {
        for (b, c) in ways.iter().flat_map(|b| ways.iter().map(move |c| (b, c))) {
            let data = [a.clone(), b.clone(), c.clone()];
            let mut cluster = Cluster::of(data, None, History::default(), None);
            cluster.initialized = false;
            cluster.nodes.rotate_left(i);
            check(&cluster, None);
        }
    }
}
