//! A bank over the shards of a Citus cluster: transfers between accounts on different workers, whose sum never changes.

use crate::citus::{CitusCluster, DATABASE, session};
use crate::cluster::PATIENCE;
use crate::node::{PASSWORD, rows};
use crate::wait;
use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;
use tokio_postgres::config::TargetSessionAttrs;

/// Accounts 1 to this, each with the same balance at first.
const ACCOUNTS: u64 = 16;
/// What each account begins with.
const BALANCE: i64 = 1000;

/// Clients that transfer until they are told to stop; each transfer has an id of its own in the table `transfers`.
pub struct Bank {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    clients: Vec<JoinHandle<Vec<u64>>>,
}

impl Bank {
    /// Makes the tables and starts so many clients.
    pub async fn open(cluster: &CitusCluster, clients: u64) -> Bank {
        wait::until("the bank's tables", PATIENCE, async || {
            let tables = format!(
                "DROP TABLE IF EXISTS accounts, transfers; CREATE TABLE accounts(id bigint PRIMARY KEY, balance bigint);
                 CREATE TABLE transfers(id bigint PRIMARY KEY);
                 SELECT create_distributed_table('accounts', 'id'); SELECT create_distributed_table('transfers', 'id');
                 INSERT INTO accounts SELECT id, {BALANCE} FROM generate_series(1, {ACCOUNTS}) id"
            );
            cluster.query(&tables).await.map(drop).map_err(|error| format!("{error:#}"))
        })
        .await;
        let (stop, acknowledged) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let servers: Vec<(String, u16)> = cluster.groups[0].iter().map(|node| (node.host().to_owned(), node.port())).collect();
        let client = |number: u64| {
            let (servers, stop, acknowledged) = (servers.clone(), stop.clone(), acknowledged.clone());
            tokio::spawn(async move {
                let mut told = Vec::new();
                let mut id = number << 32;
                while !stop.load(Ordering::Relaxed) {
                    // An error, and whether it took place is not known: another session, another id.
                    let _ = transfer_on_one_session(&servers, &mut id, &stop, |id| {
                        told.push(id);
                        acknowledged.fetch_add(1, Ordering::Relaxed);
                    })
                    .await;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                told
            })
        };
        let bank = Bank { stop: stop.clone(), acknowledged: acknowledged.clone(), clients: (1..=clients).map(client).collect() };
        bank.goes_on(20).await;
        bank
    }

    /// Waits until so many more transfers were acknowledged.
    pub async fn goes_on(&self, more: u64) {
        let goal = self.acknowledged.load(Ordering::Relaxed) + more;
        wait::until("more transfers", PATIENCE, async || {
            let now = self.acknowledged.load(Ordering::Relaxed);
            if now >= goal { Ok(()) } else { Err(format!("{now} of {goal} acknowledged")) }
        })
        .await;
    }

    /// Reads the sum through the coordinator over and over beside the transfers, for as long as `during` goes on; prints how many of the
    /// sums were not the whole.
    pub async fn sums(&self, cluster: &CitusCluster, when: &str, during: impl Future<Output = ()>) {
        let (over, began) = (AtomicBool::new(false), Instant::now());
        let transfers = self.acknowledged.load(Ordering::Relaxed);
        let ends = async {
            during.await;
            over.store(true, Ordering::Relaxed);
        };
        let reads = async {
            let session = session(cluster.leader(0).await).await.expect("a session");
            let (mut whole, mut half, mut failed) = (0_u32, 0_u32, 0_u32);
            while !over.load(Ordering::Relaxed) {
                match rows(&session, "SELECT sum(balance) FROM accounts").await {
                    Ok(sum) if sum == [[whole_sum().to_string()]] => whole += 1,
                    Ok(_) => half += 1,
                    Err(error) => {
                        println!("a sum {when}: {error:#}");
                        failed += 1;
                        wait::lasting(Duration::from_millis(20)).await;
                    }
                }
            }
            (whole, half, failed)
        };
        let ((), (whole, half, failed)) = tokio::join!(ends, reads);
        let transfers = self.acknowledged.load(Ordering::Relaxed) - transfers;
        let share = f64::from(half) * 100.0 / f64::from((whole + half).max(1));
        println!(
            "sums read {when}: {} in {:.1} s beside {transfers} transfers, {half} not the whole ({share:.0} %), {failed} reads failed",
            whole + half,
            began.elapsed().as_secs_f64()
        );
    }

    /// Ends the clients; gives the ids of the transfers that were acknowledged.
    pub async fn close(self) -> Vec<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let mut told = Vec::new();
        for client in self.clients {
            told.extend(client.await.expect("a client does not panic"));
        }
        told
    }
}

/// The sum of all balances, at any time.
fn whole_sum() -> i64 {
    BALANCE * i64::try_from(ACCOUNTS).expect("a small number")
}

/// The sum is what it was, and each acknowledged transfer is there; transactions in doubt are waited for.
pub async fn judge(cluster: &CitusCluster, told: &[u64]) {
    let expected = whole_sum();
    wait::until("the sum to be what it was, with nothing left in doubt", PATIENCE, async || {
        let ask = async |sql: &str| cluster.query(sql).await.map_err(|error| format!("{error:#}"));
        let sum = ask("SELECT sum(balance) FROM accounts").await?;
        let in_doubt = ask("SELECT sum(result::int) FROM run_command_on_all_nodes('SELECT count(*) FROM pg_prepared_xacts')").await?;
        if sum == [[expected.to_string()]] && in_doubt == [["0"]] { Ok(()) } else { Err(format!("sum {sum:?}, in doubt {in_doubt:?}")) }
    })
    .await;
    let there = cluster.query("SELECT id FROM transfers").await.expect("the transfers");
    let there: std::collections::BTreeSet<u64> = there.into_iter().flatten().filter_map(|id| id.parse().ok()).collect();
    let lost: Vec<&u64> = told.iter().filter(|id| !there.contains(id)).collect();
    println!("bank: {} transfers acknowledged, {} there, {} lost, sum {expected}", told.len(), there.len(), lost.len());
    assert!(lost.is_empty(), "acknowledged transfers are lost: {lost:?}");
}

async fn transfer_on_one_session(
    servers: &[(String, u16)],
    id: &mut u64,
    stop: &AtomicBool,
    mut acknowledged: impl FnMut(u64),
) -> Result<()> {
    let mut config = tokio_postgres::Config::new();
    for (host, port) in servers {
        config.host(host).port(*port);
    }
    config.user("postgres").password(PASSWORD).dbname(DATABASE).application_name("bank");
    config.target_session_attrs(TargetSessionAttrs::ReadWrite).connect_timeout(Duration::from_secs(1));
    let patience = Duration::from_secs(15);
    let (client, connection) = tokio::time::timeout(patience, config.connect(NoTls)).await??;
    let connection = tokio::spawn(connection);
    let done = async {
        while !stop.load(Ordering::Relaxed) {
            *id += 1;
            let (from, to) = (*id % ACCOUNTS + 1, (*id * 7 + 3) % ACCOUNTS + 1);
            // In the order of their numbers, so that two clients don't wait for each other.
            let (first, second, amount) = if from < to { (from, to, -1) } else { (to, from, 1) };
            let transfer = format!(
                "BEGIN; UPDATE accounts SET balance = balance + {amount} WHERE id = {first};
                 UPDATE accounts SET balance = balance - {amount} WHERE id = {second};
                 INSERT INTO transfers VALUES ({id}); COMMIT"
            );
            tokio::time::timeout(patience, client.batch_execute(&transfer)).await??;
            acknowledged(*id);
        }
        Ok(())
    };
    let done = done.await;
    connection.abort();
    done
}
