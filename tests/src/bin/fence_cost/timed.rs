//! Transactions per second and processor time per transaction in many short rounds: plain, fenced, control, by turns.
//!
//! Of each round only ratios are kept, and of these the median with its confidence interval by the sign test: no
//! assumption about how the machine's noise is distributed.

use super::{LIMIT, SETTINGS, percent, pgbench};
use stories::alone::{Alone, Server};
use stories::room::Room;

/// One measurement.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    /// Transactions per second.
    tps: f64,
    /// Processor time of the server per transaction, its lease worker included, in microseconds.
    cpu_us: f64,
}

/// A median with the bounds between which it lies with at least 95 %.
#[derive(Debug, Clone, Copy)]
struct Median {
    low: f64,
    middle: f64,
    high: f64,
}

impl std::fmt::Display for Median {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({} to {})", percent(self.middle), percent(self.low), percent(self.high))
    }
}

/// The ranks, from 0, of the two bounds among `count` sorted values.
fn ranks(count: usize) -> (usize, usize) {
    let mut chance = 0.5_f64.powi(i32::try_from(count).unwrap_or(i32::MAX));
    let (mut below, mut low) = (0.0, 0);
    for rank in 0..count / 2 {
        below += chance;
        if below > 0.025 {
            break;
        }
        low = rank;
        chance *= (count - rank) as f64 / (rank + 1) as f64;
    }
    (low, count - 1 - low)
}

fn median(mut ratios: Vec<f64>) -> Median {
    ratios.sort_by(f64::total_cmp);
    let (low, high) = ranks(ratios.len());
    let middle = f64::midpoint(ratios[(ratios.len() - 1) / 2], ratios[ratios.len() / 2]);
    Median { low: ratios[low], middle, high: ratios[high] }
}

/// Time per transaction, as ratios to the plain server.
pub struct Timed {
    fenced: Median,
    control: Median,
}

impl Timed {
    /// Slower by more than the limit with confidence, while two equal servers differ less.
    pub fn is_too_much(&self) -> bool {
        self.fenced.low > 1.0 + LIMIT && self.control.high < 1.0 + LIMIT && self.control.low > 1.0 - LIMIT
    }

    /// The result in words.
    pub fn sentence(&self) -> String {
        let what = if self.is_too_much() {
            "the fence costs more than 1 %"
        } else if self.fenced.high < 1.0 + LIMIT {
            "the fence costs less than 1 %"
        } else {
            "nothing can be said, this machine's noise is larger than what is looked for"
        };
        format!("{what}: time per transaction fenced / plain {}, control / plain {}", self.fenced, self.control)
    }
}

async fn see(room: &Room, server: &Server, seconds: &str) -> Seen {
    let before = server.processor_time().await;
    let text = pgbench(room, server.port(), &["-n", "-N", "-M", "prepared", "-c", "2", "-j", "1", "-T", seconds]);
    let used = server.processor_time().await.saturating_sub(before);
    let number =
        |name: &str| -> Option<f64> { text.lines().find_map(|line| line.strip_prefix(name)?.split([' ', '/']).next()?.parse().ok()) };
    let found = number("tps = ").zip(number("number of transactions actually processed: "));
    let (tps, transactions) = found.unwrap_or_else(|| panic!("no numbers in {text}"));
    Seen { tps, cpu_us: used.as_secs_f64() * 1e6 / transactions }
}

/// Measures.
pub async fn measure(rounds: usize, seconds: &str) -> Timed {
    let fenced = Alone::start(&SETTINGS).await;
    let plain = Server::plain(&fenced.room, "plain", &SETTINGS).await;
    let control = Server::plain(&fenced.room, "control", &SETTINGS).await;
    let servers: [&Server; 3] = [&plain, &fenced, &control];
    for server in servers {
        pgbench(&fenced.room, server.port(), &["-q", "-i", "-s", "10"]);
        see(&fenced.room, server, "3").await; // warms the caches
    }
    let mut ratios: [Vec<f64>; 4] = Default::default();
    for round in 0..rounds {
        let mut seen = [Seen::default(); 3];
        for step in 0..3 {
            let which = (step + round) % 3;
            seen[which] = see(&fenced.room, servers[which], seconds).await;
        }
        let [plain, fenced, control] = seen;
        ratios[0].push(plain.tps / fenced.tps);
        ratios[1].push(plain.tps / control.tps);
        ratios[2].push(fenced.cpu_us / plain.cpu_us);
        ratios[3].push(control.cpu_us / plain.cpu_us);
    }
    let [fenced_time, control_time, fenced_cpu, control_cpu] = ratios.map(median);
    println!("{rounds} rounds of {seconds} s each, median and 95 % interval:");
    println!("time per transaction: fenced / plain {fenced_time}; control / plain {control_time}");
    println!("processor time per transaction: fenced / plain {fenced_cpu}; control / plain {control_cpu}");
    assert_eq!(fenced.count("commits_refused").await + fenced.count("commits_cut").await, 0, "the lease ran all the time");
    Timed { fenced: fenced_time, control: control_time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounds_of_the_median_are_those_of_the_tables_of_the_sign_test() {
        assert_eq!([6, 10, 20, 30, 50].map(ranks), [(0, 5), (1, 8), (5, 14), (9, 20), (17, 32)]);
    }
}
