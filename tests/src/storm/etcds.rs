//! What befalls etcd as a whole: a leader that hangs with a node, a restored backup, emptiness; and the operator that comes after these.

use crate::node::Node;
use crate::storm::fault::{ETCDS, Fault, Ground, answered};
use serde_json::json;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// After so long of being refused, the operator names another member than the one that led last.
const PATIENCE_WITH_THE_HOLDER: Duration = Duration::from_secs(20);

impl Ground {
    /// etcd's leader and a node hang together and come back where they reach each other alone.
    pub(super) async fn hang_with_etcds_leader(&self, fault: &Fault, node: &Node) -> String {
        let etcd = &self.cluster.etcd;
        let Some(network) = &self.network else {
            return ": no network".to_owned();
        };
        let Some(member) = etcd.leader().await else {
            return ": etcd has no leader".to_owned();
        };
        // The network's names, in the order of the members.
        let at = etcd.members().iter().position(|one| one.name() == member.name()).unwrap_or_default();
        let alone = [node.name(), ETCDS[at]];
        let others = self.cluster.nodes.iter().map(Node::name).chain(ETCDS).filter(|name| !alone.contains(name));
        let pairs: Vec<(&str, &str)> =
            others.flat_map(|other| alone.into_iter().flat_map(move |one| [(one, other), (other, one)])).collect();
        member.freeze();
        node.freeze();
        pairs.iter().for_each(|(one, other)| network.cut(one, other));
        // Two thirds of it hung: with a lease of ten seconds that is most often less than the lease, and enough for an
        // election.
        tokio::time::sleep(fault.lasts * 2 / 3).await;
        member.thaw();
        node.thaw();
        tokio::time::sleep(fault.lasts / 3 + Duration::from_secs(2)).await;
        pairs.iter().for_each(|(one, other)| network.heal(one, other));
        format!(" [{}]", member.name())
    }

    /// A backup, time that passes, and the backup is all that etcd knows.
    pub(super) async fn restore_etcd(&self, fault: &Fault) -> String {
        let (etcd, room, began) = (&self.cluster.etcd, &self.cluster.room, Instant::now());
        let saved = match etcd.backup(room).await {
            Ok(saved) => saved,
            Err(error) => return format!(": no backup: {error:#}"),
        };
        let mut said = String::new();
        if fault.choice.is_multiple_of(2) {
            let asked = &self.cluster.nodes[fault.choice % self.cluster.nodes.len()];
            said = answered(asked.post("/switchover", &json!({"leader": self.leader_now().await})).await);
        }
        tokio::time::sleep(fault.lasts.saturating_sub(began.elapsed())).await;
        self.forgot.store(true, Ordering::Relaxed);
        match etcd.put_back(room, &saved).await {
            Ok(()) => said,
            Err(error) => format!("{said}, NOT RESTORED: {error:#}"),
        }
    }

    /// Empty ones are started at once, or after the fault's time.
    pub(super) async fn empty_etcd(&self, fault: &Fault) -> String {
        self.forgot.store(true, Ordering::Relaxed);
        self.cluster.etcd.lose();
        if fault.choice.is_multiple_of(2) {
            tokio::time::sleep(fault.lasts).await;
        }
        self.cluster.etcd.spawn(&self.cluster.room);
        String::new()
    }

    /// What an operator does who reads `tenure check`, while the cluster is not whole; says what came of it.
    ///
    /// Loss is accepted in asynchronous mode only: in the others there always is a member that has everything.
    pub async fn make_keys_anew(&self, since: Instant, synchronous: bool) -> Option<String> {
        if !self.forgot.load(Ordering::Relaxed) {
            return None;
        }
        let mut words = vec!["rebuild-keys", "--force"];
        if since.elapsed() > PATIENCE_WITH_THE_HOLDER {
            let turn = since.elapsed().as_secs() as usize / 2;
            words.extend(["--leader", self.cluster.nodes[turn % self.cluster.nodes.len()].name()]);
            if !synchronous {
                words.push("--accept-loss");
            }
        }
        Some(self.operate(&words).await)
    }

    /// What an operator does who is told that a rewind failed and that `tenure reinit` makes a new copy: just that, while somebody else leads.
    pub async fn make_copies_anew(&self) -> Vec<String> {
        let mut said = Vec::new();
        for node in &self.cluster.nodes {
            // Its last word, so not one that was acted on already.
            if node.log().trim_end().ends_with("`tenure reinit` makes a new copy") {
                said.push(self.operate(&["reinit", crate::node::SCOPE, node.name(), "--force"]).await);
            }
        }
        said
    }

    /// A command, and what it answered.
    async fn operate(&self, words: &[&str]) -> String {
        let first = &self.cluster.nodes[0];
        let mut command = tokio::process::Command::from(first.command(&self.cluster.room));
        command.arg("-c").arg(first.config_file()).args(words).kill_on_drop(true);
        let output = tokio::time::timeout(Duration::from_secs(10), command.output()).await;
        let said = match output {
            Ok(Ok(output)) if output.status.success() => String::from_utf8_lossy(&output.stdout).into_owned(),
            Ok(Ok(output)) => String::from_utf8_lossy(&output.stderr).into_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "no end within 10 s".to_owned(),
        };
        format!("{}: {}", words.join(" "), said.trim().replace('\n', "; "))
    }

    /// The cluster is whole: whatever etcd forgot is known again.
    pub fn remembers(&self) {
        self.forgot.store(false, Ordering::Relaxed);
    }
}
