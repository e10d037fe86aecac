//! A sick leader whose server does not do what it is told any more: end it by force, and let the one who is better off lead.
//!
//! Nothing may be acknowledged here once another leads. A process that was killed in the middle of a write to a disk that hangs does not end
//! before that write does, and it will never again run an instruction of its own: the kernel ends it on its way back. So it counts as
//! ended for whom the key is given to, and not for a start on the same data.

use crate::duties::done::Done;
use crate::ground::answers;
use crate::node::Node;
use crate::postgres::facts::ServerFacts;
use anyhow::{Context, Result};
use cluster::lsn::Lsn;
use cluster::member::{MemberRole, MemberState};
use cluster::name::MemberName;
use dcs::Dcs;
use std::time::{Duration, Instant};
use steward::{Judged, switchover};

/// What is under way may take this long to come to the one who takes over.
const FAREWELL: Duration = Duration::from_secs(2);

/// A question to a server that may hang.
const PATIENCE: Duration = Duration::from_millis(500);

/// Ends the server and gives the key away.
pub async fn give_way(node: &Node, judged: Judged<'_, ServerFacts>, to: &MemberName) -> Result<Done> {
    let view = judged.view;
    let leader = view.leader_if(&node.config.name).context("this node leads no more")?;
    let began = Instant::now();
    let last = quiet(node, judged, to).await;
    let asked = began.elapsed();
    // From here on nobody else keeps the lease.
    node.speak(MemberState::Crashed, MemberRole::Demoted);
    node.end_by_force().await?;
    let ended = began.elapsed();
    let sync = view.sync.as_ref().map(|sync| &sync.value).filter(|sync| !sync.is_empty());
    let has_everything = match (sync, last) {
        // It confirmed whatever was acknowledged.
        (Some(sync), _) => sync.quorum == 0 && sync.has_standby(to),
        (None, Some(last)) => answers::position(&node.caller, view, to).await.is_ok_and(|has| has >= last),
        (None, None) => false,
    };
    if has_everything {
        switchover::hand_over(node, leader, to, None).await?;
    } else {
        node.etcd.release_leader(leader).await?;
    }
    node.callbacks.demoted(&node.config);
    node.speak(MemberState::Stopped, MemberRole::Demoted);
    tracing::warn!(
        "the sick server was ended by force and {}: quiet {} ms, end {} ms, key {} ms",
        if has_everything { format!("{to} leads") } else { "its leader key given up".to_owned() },
        asked.as_millis(),
        (ended - asked).as_millis(),
        (began.elapsed() - ended).as_millis()
    );
    Ok(Done::LookAgain)
}

/// Without a synchronous standby what was acknowledged last may not have left yet: what is new waits, and what is on disk gets a moment
/// to travel. Gives how far that is, where the server tells.
async fn quiet(node: &Node, judged: Judged<'_, ServerFacts>, to: &MemberName) -> Option<Lsn> {
    let most = FAREWELL.as_millis();
    let drained = tokio::time::timeout(PATIENCE, node.sql.execute(&format!("SELECT tenure_internal.drain({most})"))).await;
    if !matches!(drained, Ok(Ok(()))) {
        return None;
    }
    let until = Instant::now() + FAREWELL;
    let mut last = None;
    while Instant::now() < until {
        let Ok(Ok(facts)) = tokio::time::timeout(PATIENCE, node.sql.facts()).await else { break };
        let has = facts.replication.iter().find(|sender| sender.application_name == to.as_str()).and_then(|sender| sender.flush_lsn);
        let moved = last.replace(facts.flush_lsn?) != facts.flush_lsn;
        if !moved && has >= last {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    tracing::info!(
        "the server is quiet, {} has led until {}",
        judged.local.name,
        last.map_or_else(|| "?".to_owned(), |lsn| lsn.to_string())
    );
    last
}
