//! The noise as it is made: begun, printed, ended.

use crate::Wanted;
use crate::ground::{Ground, NODES};
use crate::plan::{Lasting, Plan, Sudden, What, Whose};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use stories::process::{self, Pid, Signal};
use stories::storm::delay::Late;
use stories::storm::fault::ETCDS;

/// How long a process is frozen.
const FROZEN: Duration = Duration::from_secs(2);

#[expect(clippy::disallowed_methods, reason = "a thread of its own: nothing that another one waits for makes it longer")]
fn freeze(pid: Pid) {
    process::signal(pid, Signal::STOP);
    std::thread::sleep(FROZEN);
    process::signal(pid, Signal::CONT);
}

/// What is made, and how often it was.
pub struct Made<'a> {
    ground: &'a Ground,
    began: Instant,
    hogs: RefCell<Vec<Child>>,
    times: RefCell<BTreeMap<String, (usize, Duration)>>,
}

impl<'a> Made<'a> {
    /// Nothing yet.
    pub fn new(ground: &'a Ground, began: Instant) -> Made<'a> {
        Made { ground, began, hogs: RefCell::default(), times: RefCell::default() }
    }

    /// Every kind by its own plan.
    pub async fn all(&self, plan: &Plan, wanted: &Wanted) {
        let [hog, lose, delay, compact, moved, checkpoint, freeze] = &plan.kinds[..] else {
            unreachable!("a plan has seven kinds");
        };
        tokio::join!(
            self.kind(hog, wanted),
            self.kind(lose, wanted),
            self.kind(delay, wanted),
            self.kind(compact, wanted),
            self.kind(moved, wanted),
            self.kind(checkpoint, wanted),
            self.kind(freeze, wanted),
        );
    }

    async fn kind(&self, planned: &[(Duration, What)], wanted: &Wanted) {
        for (at, what) in planned {
            tokio::time::sleep(at.saturating_sub(self.began.elapsed())).await;
            match what {
                What::Lasting(kind, whose, lasts) => self.last(*kind, *whose, *lasts, wanted).await,
                What::Sudden(kind, choice) => self.happen(*kind, *choice).await,
            }
        }
    }

    fn say(&self, kind: &str, lasts: Duration, words: &str) {
        println!("{:7.1} s  {words}", self.began.elapsed().as_secs_f64());
        let mut times = self.times.borrow_mut();
        let (count, sum) = times.entry(kind.to_owned()).or_default();
        *count += 1;
        *sum += lasts;
    }

    async fn last(&self, kind: Lasting, whose: Whose, lasts: Duration, wanted: &Wanted) {
        let network = &self.ground.network;
        let names: Vec<&str> = match whose {
            Whose::Nodes => NODES.to_vec(),
            Whose::Node(number) => vec![NODES[number]],
            Whose::Etcd(number) => vec![ETCDS[number]],
        };
        let seconds = lasts.as_secs();
        match kind {
            Lasting::Hog => {
                self.say("CPU hogged on every node", lasts, &format!("CPU hogged on every node for {seconds} s"));
                self.hogs.borrow_mut().extend(NODES.iter().filter_map(|_| self.hog()));
                tokio::time::sleep(lasts).await;
                self.end();
            }
            Lasting::Lose => {
                let percent = wanted.percent;
                self.say(
                    &format!("{percent} % loss, {}", sort_of(whose)),
                    lasts,
                    &format!("{percent} % of the packets from and to {whose} lost for {seconds} s"),
                );
                // Each packet has one draw: where all lose, only what they send is drawn for.
                let all = [&NODES[..], &ETCDS[..]].concat();
                let names = if whose == Whose::Nodes { all } else { names };
                match whose {
                    Whose::Nodes => names.iter().for_each(|name| network.lose_sent(name, percent)),
                    _ => names.iter().for_each(|name| network.lose(name, percent)),
                }
                tokio::time::sleep(lasts).await;
                names.iter().for_each(|name| network.keep(name));
            }
            Lasting::Delay => {
                let by = wanted.late.as_millis();
                self.say(
                    &format!("{by} ms late, {}", sort_of(whose)),
                    lasts,
                    &format!("what {whose} sends is {by} ms late for {seconds} s"),
                );
                let late = |name: &&str| match self.ground.delay.begin(network, name, wanted.late) {
                    Ok(late) => Some(late),
                    Err(error) => {
                        println!("NOT LATE: {name}: {error:#}");
                        None
                    }
                };
                let late: Vec<Late<'_>> = names.iter().filter_map(late).collect();
                tokio::time::sleep(lasts).await;
                drop(late);
            }
        }
    }

    async fn happen(&self, kind: Sudden, choice: usize) {
        let cluster = &self.ground.cluster;
        match kind {
            Sudden::Compact => {
                let mut said = vec![word(cluster.etcd.compact().await)];
                for member in cluster.etcd.members() {
                    said.push(word(cluster.etcd.defragment(member).await));
                }
                self.say("etcd compacted and defragmented", Duration::ZERO, &format!("etcd compacted, defragmented: {}", said.join(", ")));
            }
            Sudden::MoveEtcdLeader => {
                let said = match cluster.etcd.leader().await {
                    Some(member) => format!("from {}: {}", member.name(), word(cluster.etcd.move_leader(member).await)),
                    None => "nobody says who leads".to_owned(),
                };
                self.say("etcd's leader moved", Duration::ZERO, &format!("etcd's leader moved {said}"));
            }
            Sudden::Checkpoint => {
                let leader = cluster.leader().await;
                let began = Instant::now();
                let said = word(leader.query("CHECKPOINT").await);
                let took = began.elapsed();
                self.say("CHECKPOINT", took, &format!("CHECKPOINT on {}: {said}, took {} ms", leader.name(), took.as_millis()));
            }
            Sudden::Freeze => match self.victim(choice) {
                Some((pid, words)) => {
                    self.say("a process frozen for 2 s", FROZEN, &format!("frozen for 2 s: {words}"));
                    std::thread::spawn(move || freeze(pid));
                }
                None => println!("NOBODY TO FREEZE"),
            },
        }
    }

    /// Any kind of process of the cluster but postmasters is as likely as any other; among those of a kind each is.
    fn victim(&self, choice: usize) -> Option<(Pid, String)> {
        let cluster = &self.ground.cluster;
        let mut kinds: BTreeMap<String, Vec<(Pid, String)>> = BTreeMap::new();
        for node in &cluster.nodes {
            let postmaster = node.postmaster();
            for pid in process::below(node.dir()).into_iter().filter(|pid| Some(*pid) != postmaster) {
                let title = process::title(pid);
                let kind = match title.strip_prefix("postgres: ") {
                    // "story: walwriter", "postgres postgres 10.1.2.1(4711) COMMIT"
                    Some(rest) if rest.contains(" postgres ") || rest.starts_with("postgres ") => "backend".to_owned(),
                    Some(rest) => rest.split_whitespace().take(2).collect::<Vec<_>>().join(" "),
                    None if Some(pid) == node.arbiter_pid() => "arbiter".to_owned(),
                    None => continue,
                };
                kinds.entry(kind).or_default().push((pid, format!("{} of {}", title, node.name())));
            }
        }
        for member in cluster.etcd.members() {
            for pid in process::below(member.dir()) {
                kinds.entry("etcd".to_owned()).or_default().push((pid, member.name().to_owned()));
            }
        }
        let of_a_kind = kinds.into_values().collect::<Vec<_>>();
        let one = of_a_kind.get(choice % of_a_kind.len().max(1))?;
        let (pid, words) = one.get(choice / 1000 % one.len())?;
        Some((*pid, words.chars().take(100).collect()))
    }

    /// A processor's time, all of it.
    fn hog(&self) -> Option<Child> {
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]).current_dir(self.ground.cluster.room.path()).stdin(Stdio::null());
        command.spawn().map_err(|error| println!("NO HOG: {error}")).ok()
    }

    /// Ends the hogs.
    pub fn end(&self) {
        for mut hog in self.hogs.borrow_mut().drain(..) {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }

    /// How often each kind was made, and for how long in all.
    pub fn table(&self) -> String {
        let mut table = "| noise | times | seconds in all |\n|---|---|---|\n".to_owned();
        for (kind, (count, sum)) in self.times.borrow().iter() {
            let _ = writeln!(table, "| {kind} | {count} | {:.0} |", sum.as_secs_f64());
        }
        table
    }
}

fn sort_of(whose: Whose) -> &'static str {
    match whose {
        Whose::Nodes => "every node",
        Whose::Node(_) => "one node",
        Whose::Etcd(_) => "one member of etcd",
    }
}

fn word<T>(outcome: anyhow::Result<T>) -> String {
    outcome.map_or_else(|error| format!("{error:#}").chars().take(80).collect(), |_| "done".to_owned())
}
