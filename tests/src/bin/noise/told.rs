//! What the members and etcd told of it: who leads, and which words stand in the logs.

use crate::Wanted;
use crate::ground::Ground;
use std::time::{Duration, Instant};
use stories::cluster::Cluster;

/// What stands in all logs together.
#[derive(Debug, Clone, Default)]
pub struct Told {
    /// Voters that have lost the leader, and said so.
    pub spoken: usize,
    /// Of these called off.
    pub called_off: usize,
    /// Tries to take the key of a leader that lives.
    pub taken: usize,
    /// Servers that became primary.
    pub promotions: usize,
    /// What members said who called themselves sick.
    pub sick: Vec<String>,
}

impl Told {
    /// Since the cluster was made.
    pub fn by(cluster: &Cluster) -> Told {
        let mut told = Told::default();
        for node in &cluster.nodes {
            let server = std::fs::read(node.server_log()).unwrap_or_default();
            told.read(node.name(), &String::from_utf8_lossy(&server));
            told.read(node.name(), &node.log());
        }
        told
    }

    fn read(&mut self, name: &str, log: &str) {
        let mut sick = false;
        for line in log.lines() {
            self.spoken += usize::from(line.contains("race: depose the leader"));
            self.called_off += usize::from(line.contains("race: call the deposition off"));
            self.taken += usize::from(line.contains("race: take the leader key from the leader"));
            self.promotions += usize::from(line.contains("promoted: timeline"));
            if line.contains("this node is sick:") {
                // It says so again whenever a number in its words changes.
                if !sick {
                    self.sick.push(format!("{name}: {line}"));
                }
                sick = true;
            }
            sick &= !line.contains("this node is well again");
        }
    }

    /// What came after `before`.
    pub fn since(mut self, before: &Told) -> Told {
        self.spoken -= before.spoken;
        self.called_off -= before.called_off;
        self.taken -= before.taken;
        self.promotions -= before.promotions;
        self.sick.retain(|line| !before.sick.contains(line));
        self
    }
}

/// What was seen from outside.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// Another led than at the look before.
    pub changes: usize,
    /// Looks in which nobody led.
    pub without: usize,
    /// Looks that etcd did not answer.
    pub unanswered: usize,
    /// The machine's, of one minute: in the middle, and the most.
    pub load_average: String,
}

/// Looks at etcd twice a second, and prints a line each minute.
pub async fn watch(ground: &Ground, wanted: &Wanted, began: Instant, before: &Told) -> Watched {
    let mut watched = Watched::default();
    let mut led: Option<String> = None;
    let mut loads: Vec<f64> = Vec::new();
    let mut proven = (false, false);
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while began.elapsed() < wanted.lasts {
        let at = began.elapsed().as_secs_f64();
        match ground.cluster.view().await {
            Ok(view) => match view.leader() {
                Some(name) => {
                    if let Some(old) = led.as_ref().filter(|old| *old != name) {
                        println!("{at:7.1} s  THE LEADER CHANGED: {old}, now {name}");
                        watched.changes += 1;
                    }
                    led = Some(name.to_owned());
                }
                None => watched.without += 1,
            },
            Err(_) => watched.unanswered += 1,
        }
        if at >= 60.0 * (loads.len() + 1) as f64 {
            let average = load_average();
            loads.push(average);
            let told = Told::by(&ground.cluster).since(before);
            println!(
                "{at:7.1} s  load {average:.1}, {} leads, {} changes, {} words of voters, {} called off, {} times sick",
                led.as_deref().unwrap_or("nobody"),
                watched.changes.max(told.promotions),
                told.spoken,
                told.called_off,
                told.sick.len()
            );
        }
        if wanted.proof {
            prove(ground, began.elapsed(), wanted.lasts, &mut proven).await;
        }
        tick.tick().await;
    }
    loads.push(load_average());
    loads.sort_by(f64::total_cmp);
    watched.load_average = format!("{:.1}, {:.1}", loads[loads.len() / 2], loads[loads.len() - 1]);
    watched
}

/// What is no noise, in the middle and after three quarters: the counts must not stay 0.
async fn prove(ground: &Ground, at: Duration, lasts: Duration, (frozen, sick): &mut (bool, bool)) {
    if at > lasts / 2 && !*frozen {
        *frozen = true;
        let leader = ground.cluster.leader().await;
        println!("{:7.1} s  proof: {} is frozen whole for 6 s", at.as_secs_f64(), leader.name());
        leader.freeze();
        tokio::time::sleep(Duration::from_secs(6)).await;
        leader.thaw();
    }
    if at > lasts * 3 / 4 && !*sick {
        *sick = true;
        println!("{:7.1} s  proof: no disk has enough space any more", at.as_secs_f64());
        ground.cluster.configure(&serde_json::json!({"sick_primary_disk_free_mb": 1_000_000_000})).await;
    }
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0)
}
