//! What switchover and failover share: check, ask, write the guarded request, wait for what comes of it.

use super::context::{self, Target, Tool, confirm, interactive, print, refuse, refuse_with};
use super::groups::{self, Part};
use super::list::{self, Format};
use crate::ground::outcome::{self, Outcome, Requested};
use crate::node::journal::SWITCHOVER_FAILED;
use anyhow::Result;
use cluster::config::SynchronousMode;
use cluster::failover::{self, FailoverRequest};
use cluster::name::MemberName;
use cluster::view::ClusterView;
use dcs::{Dcs, Error};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Longest wait for the outcome: a switchover takes well under a second, plus the shutdown checkpoint.
pub const BOUND: Duration = Duration::from_secs(60);

/// What the operator wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Planned; nothing may be lost.
    Switchover,
    /// By hand, to a named candidate.
    Failover,
}

impl Action {
    /// Its word.
    pub fn word(self) -> &'static str {
        match self {
            Action::Switchover => "switchover",
            Action::Failover => "failover",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Action::Switchover => "Switchover",
            Action::Failover => "Failover",
        }
    }
}

/// The options of either command.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// The cluster's name.
    pub cluster: Option<String>,
    /// The Citus group.
    pub group: Option<u32>,
    /// Who is to give up the leadership.
    pub leader: Option<String>,
    /// Who is to lead.
    pub candidate: Option<String>,
    /// When.
    pub scheduled: Option<String>,
    /// Do not ask for confirmation.
    pub force: bool,
}

/// Does it.
pub async fn run(tool: &Tool, action: Action, wish: &Wish) -> Result<()> {
    let named = [&wish.leader, &wish.candidate];
    let fits = |part: &Part| named.iter().copied().flatten().all(|name| part.has(name));
    let Part { target, view } = groups::one(tool, wish.cluster.as_deref(), wish.group, fits, &format!("a {}", action.word())).await?;
    let cluster = target.scope.as_str();
    if view.members.values().any(|entry| cluster::store::published(entry).is_some()) {
        return Err(refuse_with(
            format!("etcd has forgotten what the members of {} know: no {} is carried out", target.scope, action.word()),
            "`tenure check` says more; `tenure rebuild-keys` makes the keys again",
        ));
    }
    print(format!("Current cluster topology\n{}", list::members(&view, cluster, target.group, false, Format::Pretty)?))?;
    if !wish.force {
        context::must_be_interactive(&format!("a {}", action.word()))?;
    }

    let leader = view.leader.as_ref().map(|leader| leader.name.to_string());
    let mut request = FailoverRequest::default();
    if action == Action::Switchover {
        let present = leader
            .clone()
            .ok_or_else(|| refuse_with("This cluster has no leader", "`tenure failover --candidate MEMBER` names who shall lead"))?;
        let named = match &wish.leader {
            Some(named) => named.clone(),
            None if wish.force => present.clone(),
            None => context::ask(if view.is_standby_cluster() { "Standby Leader" } else { "Primary" }, &present)?,
        };
        if named != present {
            return Err(refuse_with(format!("Member {named} is not the leader of cluster {cluster}"), format!("{present} leads")));
        }
        request.leader = Some(named);
    }
    request.member = candidate(&view, action, wish, cluster, leader.as_deref())?;
    if action == Action::Failover && !wish.force && is_asynchronous(&view, request.candidate()) {
        let question = format!("Are you sure you want to failover to the asynchronous node {}?", request.candidate().unwrap_or(""));
        if !confirm(&question)? {
            return Err(refuse("Aborting failover"));
        }
    }
    if action == Action::Switchover {
        request.scheduled_at = when(wish)?;
    }
    if request.scheduled_at.is_some() && view.config().paused() {
        return Err(refuse_with("Can't schedule switchover in the paused state", "`tenure resume` ends maintenance mode"));
    }
    failover::candidates(&view, &request)
        .map_err(|why| refuse_with(why.to_string(), "`tenure list` shows the members and what they do"))?;
    if !wish.force {
        are_you_sure(action, cluster, &request, leader.as_deref())?;
    }

    let judged = ClusterView::revision_of(&view.failover);
    let revision = match Box::pin(target.etcd.write_failover(&request, judged)).await {
        Ok(revision) => revision,
        Err(Error::Lost(_)) => return Err(refuse_with("another request was written meanwhile", "look at `tenure list`, then ask again")),
        Err(error) => return Err(error.into()),
    };
    if request.scheduled_at.is_some() {
        print(format!("{} Switchover scheduled", context::timestamp()))?;
        return show(&target).await;
    }
    let before = view.leader.as_ref().map(|leader| leader.name.clone());
    let asked = Requested { revision, before, candidate: request.candidate().map(str::to_owned) };
    match Box::pin(wait(&target, &asked)).await {
        Some(Outcome::Done(leader)) => {
            print(format!("{} {}", context::timestamp(), outcome::success(action.word(), &asked, &leader)))?;
            show(&target).await
        }
        Some(_) => {
            print(format!("{} failed, details: 503, the request was given up and the leader is the same", action.title()))?;
            show(&target).await?;
            let who = leader.unwrap_or_else(|| "the candidate".to_owned());
            let why = reason(tool, &target, &who, revision).await.map_or_else(String::new, |why| format!(": {why}"));
            Err(refuse_with(
                format!("{} failed{why}", action.title()),
                format!("`SELECT * FROM tenure.events()` on {who}, or its arbiter's log, tells why"),
            ))
        }
        None => {
            let text = format!("{} status unknown after {} seconds; operation may still be in progress", action.title(), BOUND.as_secs());
            print(format!("{} result unknown, details: 503, {text}", action.title()))?;
            show(&target).await?;
            Err(refuse_with(text, "`tenure list -W` follows it; `tenure flush CLUSTER switchover` takes the request back"))
        }
    }
}

/// Why the leader gave the request of this revision up, where it can be asked.
async fn reason(tool: &Tool, target: &Target, leader: &str, asked: i64) -> Option<String> {
    let view = target.etcd.load_view().await.ok()?;
    let (_, entry) = view.members.iter().find(|(name, _)| name.as_str() == leader)?;
    let records = super::journals::records(tool, &entry.member).await.ok()?;
    records.into_iter().rev().find(|record| record.duty == SWITCHOVER_FAILED && record.revision >= asked).map(|record| record.why)
}

fn candidate(view: &ClusterView, action: Action, wish: &Wish, cluster: &str, leader: Option<&str>) -> Result<Option<String>> {
    let names: Vec<&str> = view
        .members
        .iter()
        .filter(|(name, entry)| Some(name.as_str()) != leader && !entry.member.tags.nofailover())
        .map(|(name, _)| name.as_str())
        .collect();
    if names.is_empty() {
        return Err(refuse(format!("No candidates found to {} to", action.word())));
    }
    let candidate = match &wish.candidate {
        Some(candidate) => candidate.clone(),
        None if wish.force => String::new(),
        None => context::ask(&format!("Candidate {names:?}").replace('"', "'"), "")?,
    };
    if candidate.is_empty() {
        if action == Action::Failover {
            return Err(refuse_with(
                "Failover could be performed only to a specific candidate",
                format!("--candidate names one of {}", names.join(", ")),
            ));
        }
        return Ok(None);
    }
    if Some(candidate.as_str()) == leader {
        return Err(refuse(format!("Member {candidate} is already the leader of cluster {cluster}")));
    }
    if !names.contains(&candidate.as_str()) {
        let sentence = format!("Member {candidate} does not exist in cluster {cluster} or is tagged as nofailover");
        return Err(refuse_with(sentence, format!("candidates are {}", names.join(", "))));
    }
    Ok(Some(candidate))
}

fn is_asynchronous(view: &ClusterView, candidate: Option<&str>) -> bool {
    let Some(candidate) = candidate.and_then(|name| MemberName::new(name).ok()) else { return false };
    view.config().synchronous_mode() != SynchronousMode::Off
        && view.sync.as_ref().is_some_and(|sync| !sync.value.is_empty() && !sync.value.may_lead(&candidate))
}

fn when(wish: &Wish) -> Result<Option<String>> {
    let text = match &wish.scheduled {
        Some(text) => text.clone(),
        None if wish.force => return Ok(None),
        None => {
            let next_hour = jiff::Zoned::now().saturating_add(jiff::Span::new().hours(1)).strftime("%Y-%m-%dT%H:%M").to_string();
            context::ask(&format!("When should the switchover take place (e.g. {next_hour} ) "), "now")?
        }
    };
    scheduled(&text, &jiff::Zoned::now()).map_err(refuse)
}

/// Reads a time to come. Without a zone it is the operator's own; it is written with one.
pub fn scheduled(text: &str, now: &jiff::Zoned) -> Result<Option<String>, String> {
    let text = text.trim();
    if text.is_empty() || text == "now" {
        return Ok(None);
    }
    let unreadable = || format!("Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format (e.g. ISO 8601)");
    let zoned = match text.parse::<jiff::Timestamp>() {
        Ok(timestamp) => timestamp.to_zoned(now.time_zone().clone()),
        Err(_) => {
            let local = text.parse::<jiff::civil::DateTime>().map_err(|_| unreadable())?;
            local.to_zoned(now.time_zone().clone()).map_err(|_| unreadable())?
        }
    };
    if zoned <= *now {
        return Err("Schedule cannot be in the past".to_owned());
    }
    Ok(Some(zoned.strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()))
}

fn are_you_sure(action: Action, cluster: &str, request: &FailoverRequest, leader: Option<&str>) -> Result<()> {
    let demoting = leader.map(|leader| format!(", demoting current leader {leader}")).unwrap_or_default();
    let (question, aborting) = match &request.scheduled_at {
        Some(at) => (
            format!("Are you sure you want to schedule switchover of cluster {cluster} at {at}{demoting}?"),
            "Aborting scheduled switchover".to_owned(),
        ),
        None => (format!("Are you sure you want to {} cluster {cluster}{demoting}?", action.word()), format!("Aborting {}", action.word())),
    };
    if interactive() && confirm(&question)? { Ok(()) } else { Err(refuse(aborting)) }
}

/// Looks whenever the cluster changed, until the request is done or dropped; None after [`BOUND`].
async fn wait(target: &Target, asked: &Requested) -> Option<Outcome> {
    let wake = Arc::new(Notify::new());
    let outcome = async {
        loop {
            wake.notified().await;
            // An etcd that is away says nothing; the watch wakes us again when it is back.
            if let Ok(view) = target.etcd.load_view().await {
                match outcome::judge(&view, asked) {
                    Outcome::Pending => {}
                    outcome => return outcome,
                }
            }
        }
    };
    tokio::select! {
        outcome = outcome => Some(outcome),
        () = dcs::watch::keep_watching(target.etcd.clone(), wake.clone()) => None,
        () = tokio::time::sleep(BOUND) => None,
    }
}

async fn show(target: &Target) -> Result<()> {
    print(list::members(&target.view().await?, target.scope.as_str(), target.group, false, Format::Pretty)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_to_come_is_written_with_its_zone() {
        let now: jiff::Zoned = "2026-06-01T12:00:00[UTC]".parse().unwrap();
        for (text, expected) in [
            ("now", Ok(None)),
            ("2026-06-01T13:00+00:00", Ok(Some("2026-06-01T13:00:00+00:00"))),
            ("2026-06-01T13:00", Ok(Some("2026-06-01T13:00:00+00:00"))),
            ("2026-06-01 15:00:00+02:00", Ok(Some("2026-06-01T13:00:00+00:00"))),
        ] {
            assert_eq!(scheduled(text, &now), expected.map(|at| at.map(str::to_owned)), "{text}");
        }
        assert_eq!(scheduled("2026-06-01T11:00Z", &now), Err("Schedule cannot be in the past".to_owned()));
        assert!(scheduled("tea time", &now).is_err_and(|why: String| why.starts_with("Unable to parse")));
    }
}
