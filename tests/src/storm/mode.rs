//! The synchronous mode, changed by REST while the cluster runs, and the times when nothing had to be synchronous.

use crate::cluster::Cluster;
use crate::view::View;
use serde_json::{Value, json};
use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What the mode is changed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// `synchronous_mode: off`.
    Off,
    /// `synchronous_mode_strict: on`.
    Strict,
    /// `synchronous_mode: quorum`.
    Quorum,
    /// `synchronous_node_count: 2`.
    Two,
    /// Both of these.
    QuorumOfTwo,
}

impl Mode {
    /// What may be drawn.
    pub const ALL: [Mode; 5] = [Mode::Off, Mode::Strict, Mode::Quorum, Mode::Two, Mode::QuorumOfTwo];

    fn keys(self) -> Value {
        match self {
            Mode::Off => json!({"synchronous_mode": false}),
            Mode::Strict => json!({"synchronous_mode_strict": true}),
            Mode::Quorum => json!({"synchronous_mode": "quorum"}),
            Mode::Two => json!({"synchronous_node_count": 2}),
            Mode::QuorumOfTwo => json!({"synchronous_mode": "quorum", "synchronous_node_count": 2}),
        }
    }
}

/// The mode that a storm begins with and comes back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// `synchronous_mode: false`.
    Asynchronous,
    /// `synchronous_mode: true`.
    Synchronous,
    /// `synchronous_mode: quorum`.
    Quorum,
}

impl Base {
    /// As the word `sync=` says it.
    pub fn named(word: &str) -> Option<Base> {
        match word {
            "false" => Some(Base::Asynchronous),
            "true" => Some(Base::Synchronous),
            "quorum" => Some(Base::Quorum),
            _ => None,
        }
    }

    /// As the dynamic configuration has it.
    pub fn value(self) -> Value {
        match self {
            Base::Asynchronous => json!(false),
            Base::Synchronous => json!(true),
            Base::Quorum => json!("quorum"),
        }
    }

    /// Nothing acknowledged may be lost.
    pub fn is_synchronous(self) -> bool {
        self != Base::Asynchronous
    }
}

impl fmt::Display for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Base::Asynchronous => "asynchronous",
            Base::Synchronous => "synchronous",
            Base::Quorum => "quorum",
        })
    }
}

/// A time in which an acknowledged commit may be lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Before the mode was changed to none.
    pub from: Instant,
    /// After the cluster was seen whole and synchronous again.
    pub to: Instant,
}

/// The mode of a storm.
#[derive(Debug)]
pub struct Modes {
    base: Base,
    off_since: Mutex<Option<Instant>>,
    windows: Mutex<Vec<Window>>,
}

impl Modes {
    /// With the mode the storm begins with, and comes back to after each round.
    pub fn new(base: Base) -> Modes {
        Modes { base, off_since: Mutex::new(None), windows: Mutex::new(Vec::new()) }
    }

    /// The mode is another for so long.
    pub async fn change(&self, cluster: &Cluster, mode: Mode, lasts: Duration) -> String {
        if mode == Mode::Off {
            let mut since = self.off_since.lock().expect("nobody panicked with the lock");
            since.get_or_insert_with(Instant::now);
        }
        let said = patch(cluster, &mode.keys()).await;
        tokio::time::sleep(lasts).await;
        format!(": {said}")
    }

    /// Asks for the storm's own mode where `config` has another; says what it still has to wait for.
    pub async fn restore(&self, cluster: &Cluster, view: &View) -> Option<String> {
        let config = view.json("config");
        let own =
            [("synchronous_mode", self.base.value()), ("synchronous_mode_strict", json!(false)), ("synchronous_node_count", json!(1))];
        let is_own = |(key, value): &(&str, Value)| config[*key] == *value || (config[*key].is_null() && *key != "synchronous_mode");
        if config.is_null() || own.iter().all(is_own) {
            return None;
        }
        let keys = own.into_iter().map(|(key, value)| (key.to_owned(), value)).collect::<serde_json::Map<_, _>>();
        Some(format!("the mode is changed back: {}", patch(cluster, &keys.into()).await))
    }

    /// The cluster is whole: what is acknowledged from now on has to stay.
    pub fn whole(&self) {
        if let Some(from) = self.off_since.lock().expect("nobody panicked with the lock").take() {
            self.windows.lock().expect("nobody panicked with the lock").push(Window { from, to: Instant::now() });
        }
    }

    /// All times in which the mode was none, the last one perhaps without an end.
    pub fn windows(&self) -> Vec<Window> {
        self.whole();
        self.windows.lock().expect("nobody panicked with the lock").clone()
    }
}

/// Asks one node after another, until one of them has done it.
async fn patch(cluster: &Cluster, keys: &Value) -> String {
    let mut said = String::new();
    for node in &cluster.nodes {
        match tokio::time::timeout(Duration::from_secs(5), node.patch("/config", keys)).await {
            Ok(Ok(answer)) if answer.status == 200 => return format!("{}: 200", node.name()),
            Ok(Ok(answer)) => said = format!("{}: {} {}", node.name(), answer.status, answer.body.trim()),
            Ok(Err(error)) => said = format!("{}: {error:#}", node.name()),
            Err(_) => said = format!("{}: no answer within 5 s", node.name()),
        }
    }
    said
}
