//! What sessions ask for through SQL, written to etcd on their behalf: they have no connection to it.

use super::state::Here;
use crate::ground::guc;
use crate::shmem::page;
use cluster::citus::COORDINATOR;
use cluster::config::DynamicConfig;
use cluster::failover::{self, FailoverRequest};
use cluster::member::MemberRole;
use cluster::request::{MemberRequest, Wish};
use cluster::restart::Conditions;
use cluster::speech;
use cluster::view::ClusterView;
use dcs::key::Keys;
use dcs::{Dcs, Error, Etcd};
use keeper::Host;
use serde::Deserialize;
use serde_json::{Value, json};

/// A request as the room `functions` puts it into shared memory: what, and of which group of a Citus cluster.
#[derive(Debug, Deserialize)]
struct GroupRequest {
    /// None is this server's own.
    group: Option<i64>,
    #[serde(flatten)]
    request: Request,
}

/// What is asked for.
#[derive(Debug, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case")]
enum Request {
    Switchover {
        candidate: Option<String>,
        scheduled_at: Option<String>,
    },
    Failover {
        candidate: String,
    },
    Pause,
    Resume,
    SetConfig {
        patch: serde_json::Map<String, Value>,
    },
    Member {
        wish: Wish,
        member: Option<String>,
        #[serde(default)]
        pending: bool,
    },
}

/// Serves the request in the mailbox, if there is one.
pub async fn serve(here: &Here, view: &ClusterView) {
    let _serving = here.serving.lock().await;
    let Some((id, text)) = page().mailbox.take() else { return };
    let answer = match serde_json::from_str(&text) {
        Ok(GroupRequest { group, request }) => match other_group(group) {
            Ok(None) => act(&Place { here, etcd: &here.etcd, own: true }, view, request).await,
            Ok(Some(group)) => act_elsewhere(here, group, request).await,
            Err(why) => Err(why),
        },
        Err(why) => Err(format!("the request can't be understood: {why}")),
    };
    page().mailbox.answer(id, in_json(answer));
    here.look_again();
}

/// Answers the request in the mailbox, if there is one, with this reason.
pub fn decline(why: &str) {
    if let Some((id, _)) = page().mailbox.take() {
        page().mailbox.answer(id, in_json(Err(why.to_owned())));
    }
}

fn in_json(answer: Result<String, String>) -> String {
    match answer {
        Ok(sentence) => json!({"ok": sentence}),
        Err(sentence) => json!({"error": sentence, "hint": "tenure.status() shows the members, tenure.events() what was decided lately."}),
    }
    .to_string()
}

fn unwritten(why: Error) -> String {
    match why {
        Error::Lost(what) => format!("{what} was changed by somebody else at the same moment: look and try again"),
        other => other.to_string(),
    }
}

/// The cluster that a request is about.
struct Place<'a> {
    here: &'a Here,
    etcd: &'a Etcd,
    /// It is this server's own.
    own: bool,
}

/// The group that is not this server's own. Only a coordinator's server speaks for others.
fn other_group(asked: Option<i64>) -> Result<Option<u32>, String> {
    match (asked, guc::group()) {
        (None, _) => Ok(None),
        (Some(_), None) => Err("this is no Citus cluster: citus_group has to be left out".to_owned()),
        (Some(asked), Some(own)) if asked == i64::from(own) => Ok(None),
        (Some(asked), Some(COORDINATOR)) => u32::try_from(asked).map(Some).map_err(|_| format!("{asked} is no group")),
        (Some(asked), Some(own)) => Err(format!("this server is of group {own}: ask a coordinator's server, or one of group {asked}")),
    }
}

async fn act_elsewhere(here: &Here, group: u32, request: Request) -> Result<String, String> {
    let keys = Keys::new(&guc::namespace(), &here.scope).group(group);
    let etcd = here.etcd.seen_as(keys);
    let view = etcd.load_view().await.map_err(|why| format!("etcd does not answer: {why}"))?;
    if view.members.is_empty() && view.config.is_none() {
        return Err(format!("there is no group {group}"));
    }
    act(&Place { here, etcd: &etcd, own: false }, &view, request).await
}

async fn act(place: &Place<'_>, view: &ClusterView, request: Request) -> Result<String, String> {
    match request {
        Request::Switchover { candidate, scheduled_at } => {
            let leader = view.leader.as_ref().ok_or_else(|| failover::Impossible::NoLeader.to_string())?;
            let request = FailoverRequest { leader: Some(leader.name.to_string()), member: candidate, scheduled_at, ..Default::default() };
            request_failover(place, view, request).await
        }
        Request::Failover { candidate } => {
            let request = FailoverRequest { member: Some(candidate), ..Default::default() };
            request_failover(place, view, request).await
        }
        Request::Pause => change(place, view, "pause", Value::Bool(true), "paused").await,
        Request::Resume => change(place, view, "pause", Value::Null, "resumed").await,
        Request::SetConfig { patch } => {
            let after = view.config().patched(&patch).map_err(|fault| fault.to_string())?;
            if after == *view.config() {
                return Ok("not changed".to_owned());
            }
            write(place, view, after.clone()).await?;
            let notes: Vec<String> = after.notes().into_iter().filter(|note| !view.config().notes().contains(note)).collect();
            Ok(["configuration changed".to_owned()].into_iter().chain(notes).collect::<Vec<_>>().join("; "))
        }
        Request::Member { wish, member, pending } => ask_member(place, view, wish, member.as_deref(), pending).await,
    }
}

/// Puts a request where the member's arbiter finds it; without a name this server's own.
async fn ask_member(place: &Place<'_>, view: &ClusterView, wish: Wish, member: Option<&str>, pending: bool) -> Result<String, String> {
    let name = match member {
        Some(name) => name,
        None if place.own => place.here.name.as_str(),
        None => return Err("the member of another group is to be named".to_owned()),
    };
    let Some((name, entry)) = view.members.iter().find(|(known, _)| known.as_str() == name) else {
        return Err(format!("no member is called {name}"));
    };
    if wish == Wish::Reinit && view.leader.is_none() {
        return Err("the cluster has no leader to copy from".to_owned());
    }
    if wish == Wish::Reinit && view.leader_if(name).is_some() {
        return Err(format!("{name} is the leader: its data is the cluster's, and can't be made again from a copy"));
    }
    if matches!(wish, Wish::Replay(_)) && entry.member.role == MemberRole::Primary {
        return Err(format!("{name} is the primary: there is nothing to replay"));
    }
    if entry.member.tenure.as_ref().is_none_or(|facts| !facts.arbiter) {
        return Err(format!("no arbiter is beside {name} to do it"));
    }
    let conditions = Conditions { restart_pending: pending, ..Conditions::default() };
    if let Some(why) = entry.member.apart() {
        return Err(format!("{name} would not understand it: seen from here, {why}"));
    }
    let request = MemberRequest { wish, conditions, by: place.here.name.to_string(), speech: speech::OURS };
    place.etcd.write_request(name, &request).await.map_err(unwritten)?;
    Ok(format!("{wish} of {name} was requested"))
}

async fn request_failover(place: &Place<'_>, view: &ClusterView, request: FailoverRequest) -> Result<String, String> {
    let candidates = failover::candidates(view, &request).map_err(|why| why.to_string())?;
    place.etcd.write_failover(&request, ClusterView::revision_of(&view.failover)).await.map_err(unwritten)?;
    let to = match (request.candidate(), candidates.first()) {
        (Some(named), _) => named.to_owned(),
        (None, Some(first)) => format!("{first} or another fit member"),
        (None, None) => "a fit member".to_owned(),
    };
    let verb = if request.is_switchover() { "switchover" } else { "failover" };
    Ok(match &request.scheduled_at {
        Some(at) => format!("{verb} to {to} is scheduled for {at}"),
        None => format!("{verb} to {to} was requested"),
    })
}

async fn change(place: &Place<'_>, view: &ClusterView, key: &str, value: Value, done: &str) -> Result<String, String> {
    let mut config = view.config().clone();
    let before = config.clone();
    if value.is_null() {
        config.0.remove(key)
    } else {
        config.0.insert(key.to_owned(), value)
    };
    if config == before {
        return Err(format!("the cluster is {done} already"));
    }
    write(place, view, config).await.map(|()| format!("cluster management is {done}"))
}

async fn write(place: &Place<'_>, view: &ClusterView, config: DynamicConfig) -> Result<(), String> {
    if let Some(fault) = config.newly_at_fault(view.config()) {
        return Err(fault.to_string());
    }
    place.etcd.write_config(&config, ClusterView::revision_of(&view.config)).await.map(drop).map_err(unwritten)
}
