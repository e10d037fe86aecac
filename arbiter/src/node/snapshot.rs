//! What the daemon last saw and decided: the one value that REST answers are made from.

use crate::postgres::facts::ServerFacts;
use cluster::described::Described;
use cluster::duty::Duty;
use cluster::health::Symptom;
use cluster::local::LocalState;
use cluster::reason::Decision;
use cluster::restart::Scheduled;
use cluster::restore::Target;
use cluster::view::ClusterView;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::{mpsc, oneshot, watch};

/// The node as of one turn of the daemon's loop.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The cluster as last read; empty before the first answer of etcd.
    pub view: Arc<ClusterView>,
    /// When etcd last answered.
    pub view_at: Option<Instant>,
    /// Until when this node's lease counts by the arbiter's own or the lease worker's word.
    pub lease_until: Option<Instant>,
    /// This node.
    pub local: Arc<LocalState>,
    /// What its server said, while it answers.
    pub facts: Option<Arc<ServerFacts>>,
    /// What only the arbiter knows of the node and its member key says.
    pub described: Arc<Described>,
    /// What is wrong with this node's health and has lasted.
    pub symptoms: Vec<Symptom>,
    /// What was decided and why.
    pub decision: Option<Decision<Duty>>,
    /// How often another member came to lead, as seen by this arbiter since it started.
    pub leader_changes: u64,
    /// When the loop last turned: what `/liveness` asks.
    pub turned_at: Instant,
}

/// What REST asks of the daemon's loop; each is answered once it is done or refused.
#[derive(Debug)]
pub enum Command {
    /// Something was written to etcd or a file: look now.
    LookNow,
    /// Restart Postgres in place.
    Restart(oneshot::Sender<Result<(), String>>),
    /// Read the node's file again and reload Postgres.
    Reload(oneshot::Sender<Result<(), String>>),
    /// Restart Postgres at a later time.
    Schedule(Box<Scheduled>, oneshot::Sender<Result<(), String>>),
    /// Forget the restart that was planned; an error where none was.
    ForgetRestart(oneshot::Sender<Result<(), String>>),
    /// Replay of this standby, by hand: answered when it is where it was to go.
    Replay(cluster::replay::Ask, oneshot::Sender<Result<String, String>>),
    /// A major upgrade: a step of it that stops the server.
    Upgrade(Wanted, oneshot::Sender<Result<(), String>>),
    /// Restore this cluster to a point in its past, as its leader, or call that off.
    Restore(Restoring, oneshot::Sender<Result<(), String>>),
    /// Replace this standby's data by a new copy.
    Reinitialize {
        /// A job that is under way is ended first.
        force: bool,
        /// From the leader, by pg_basebackup.
        from_leader: bool,
        /// The data that are here may go first, also where they are the only other copy.
        overwrite: bool,
        /// Started, or why not.
        answer: oneshot::Sender<Result<(), String>>,
    },
}

/// What is asked of a restore to a point in the past.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Restoring {
    /// Begin one.
    To(Target),
    /// Call the one off that is under way.
    Undo,
}

/// What stops the server for a major upgrade.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Upgrade the cluster in place to this major version.
    InPlace(u32),
    /// The server and its twin change places.
    ChangePlaces,
}

impl Command {
    /// Answers that it is not done.
    pub fn refuse(self, why: &str) {
        match self {
            Command::LookNow => {}
            Command::Replay(_, answer) => drop(answer.send(Err(why.to_owned()))),
            Command::Restart(answer)
            | Command::Reload(answer)
            | Command::Schedule(_, answer)
            | Command::ForgetRestart(answer)
            | Command::Upgrade(_, answer)
            | Command::Restore(_, answer)
            | Command::Reinitialize { answer, .. } => drop(answer.send(Err(why.to_owned()))),
        }
    }
}

/// The daemon as its REST server sees it.
#[derive(Clone)]
pub struct NodeHandle {
    /// What it last saw.
    pub snapshot: watch::Receiver<Snapshot>,
    /// What it can be asked.
    pub commands: mpsc::Sender<Command>,
    /// What it decided.
    pub journal: crate::node::journal::Journal,
    /// etcd, for the routes that write a request there.
    pub etcd: Arc<dcs::Etcd>,
    /// The node's file.
    pub config: Arc<crate::config::NodeConfig>,
    /// Until when this node promised not to take the leader key (`failsafe_mode`): kept here, too, since
    /// a server that is restarted forgets it.
    pub promise: crate::node::promise::Promise,
    /// How long procedures took.
    pub timings: crate::node::timings::Timings,
    /// When the node's certificates end.
    pub certificates: Arc<crate::node::certificates::Ends>,
    /// What its server knows of parameters.
    pub knowledge: Arc<crate::node::known::Knowledge>,
    /// The node's own server.
    pub sql: Arc<crate::postgres::query::LocalSql>,
    /// What is under way with the twin of a major upgrade.
    pub twin: Arc<crate::node::twin::TwinWork>,
}
