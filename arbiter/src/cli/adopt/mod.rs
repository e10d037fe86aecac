//! `tenure adopt` and `tenure abandon`: the node of this file from Patroni to us and back, one at a time, with one restart of its server.
//!
//! What is done is read from what is there: which daemon runs here, what the member keys say. So a command that broke off anywhere is begun
//! again, or undone by the other one.

mod checks;
pub(super) mod daemons;
mod place;

pub use place::Args;

use super::context::{print, refuse_with};
use crate::config::NodeConfig;
use crate::ground::member_rest::Caller;
use crate::node::store;
use crate::postgres;
use anyhow::{Context, Result};
use checks::Finding;
use cluster::citus::{COORDINATOR, takeover};
use cluster::mixed::{self, Kind, Next, NotYet};
use cluster::name::MemberName;
use cluster::view::ClusterView;
use daemons::Daemon;
use dcs::{Dcs, Etcd};
use place::Place;
use serde_json::json;
use std::time::{Duration, Instant};

/// Between two looks of a command that a person waits for.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// So often the leader is asked for a switchover.
const TRIES: u32 = 3;

/// Before it is asked once more.
const AGAIN_AFTER: Duration = Duration::from_secs(3);

/// A standby that has come back is synchronous again, or near enough, after a look or two of the leader's daemon; Patroni's looks every ten seconds.
const CANDIDATE_WITHIN: Duration = Duration::from_secs(30);

/// Runs either command.
pub async fn run(args: &Args, to: Kind) -> Result<()> {
    let config = NodeConfig::load(&args.file, std::env::vars())
        .map_err(|errors| refuse_with(errors.to_string(), "correct these lines in a copy of the file, then ask again with that"))?;
    let etcd = Etcd::new(config.keys(), store::settings(&config)?);
    let caller = Caller::new(config.ctl.authentication.clone(), Some(config.ctl.tls.load().context("set up TLS (section ctl)")?))
        .only_over_tls(config.ctl.tls.is_set());
    let groups = match &config.citus {
        Some(_) => Box::pin(etcd.seen_as(config.scope_keys()).load_groups()).await?,
        None => Default::default(),
    };
    let place = Place { args, config, etcd, caller, to, groups };
    let view = place.view().await?;
    let findings = checks::of(&place, &view).await?;
    for finding in &findings {
        print(finding.to_string())?;
    }
    place.tell_members(&view)?;
    let (view, next) = place.next(view).await?;
    let next = match next {
        // A key outlives the process that wrote it: the other command may have broken off here a moment ago.
        Ok(Next::Done) if place.other_broke_off() || place.is_down().await? => Next::Exchange,
        Ok(next) => next,
        Err(why) if args.check => {
            return print(format!("stops: {why}\nafter that:\n{}", place.steps(&Next::Exchange, &view)?));
        }
        Err(why) => return Err(refuse_with(why, place.next_of_all(&view))),
    };
    if next == Next::Done {
        print(format!("{} runs by {to}: nothing is left to do here", place.config.name))?;
        return print(place.next_of_all(&view));
    }
    if args.check {
        print(place.steps(&next, &view)?)?;
    }
    let stops = findings.iter().filter(|finding| matches!(finding, Finding::Stops(_))).count();
    match (stops, args.check) {
        (0, true) => print("nothing was changed; without --check these steps are taken"),
        (0, false) => Box::pin(place.take_steps(next, view)).await,
        _ => Err(refuse_with(format!("{stops} finding(s) stand in the way"), "what is to be done about each stands beside it")),
    }
}

impl Place<'_> {
    fn me(&self) -> &MemberName {
        &self.config.name
    }

    /// What is next here, and what it was judged by. Where this member leads and nobody can take over yet, that is waited for: a standby that has just come back
    /// is trusted a moment later only.
    async fn next(&self, mut view: ClusterView) -> Result<(ClusterView, Result<Next, String>)> {
        let began = Instant::now();
        let mut told = false;
        loop {
            let next = mixed::next(&view, self.me(), self.to);
            if next.as_ref().is_ok_and(|next| *next != Next::Done)
                && let Some(why) = self.other_groups_first()
            {
                return Ok((view, Err(why)));
            }
            match next {
                Err(NotYet::NoCandidate(why)) if !self.args.check && began.elapsed() < CANDIDATE_WITHIN => {
                    if !std::mem::replace(&mut told, true) {
                        print(format!("waiting for a member that can take over: {why}"))?;
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                    view = self.view().await?;
                }
                next => return Ok((view, next.map_err(|why| why.to_string()))),
            }
        }
    }

    async fn view(&self) -> Result<ClusterView> {
        let view = Box::pin(self.etcd.load_view()).await?;
        if view.initialize.is_none() {
            return Err(refuse_with(
                format!("there is no cluster {} under {}", self.config.scope, self.etcd.keys().prefix()),
                "check scope, namespace and etcd in the file",
            ));
        }
        Ok(view)
    }

    fn tell_members(&self, view: &ClusterView) -> Result<()> {
        for (name, entry) in &view.members {
            let leads = if view.leader.as_ref().is_some_and(|leader| leader.name == *name) { ", leads" } else { "" };
            print(format!("member {name}: run by {}, {}{leads}", mixed::kind(&entry.member), entry.member.state))?;
        }
        Ok(())
    }

    fn word(&self) -> &'static str {
        match self.to {
            Kind::Ours => "adopt",
            Kind::Patroni => "abandon",
        }
    }

    /// Groups of the same Citus cluster that have to change before this one, as a sentence.
    fn other_groups_first(&self) -> Option<String> {
        let own = self.config.citus.as_ref()?.group;
        let before = takeover::before(&self.groups, own, self.to)?;
        let told: Vec<String> = before
            .iter()
            .map(|(group, members)| format!("group {group} ({})", members.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ")))
            .collect();
        Some(match own {
            COORDINATOR => format!("this is the coordinator's group, and the workers come first: {}", told.join(", ")),
            _ => format!("this is a worker's group, and the coordinator's comes first: {}", told.join(", ")),
        })
    }

    /// What remains in the cluster, as a sentence. Of a Citus cluster what remains in this group, or the next one.
    fn next_of_all(&self, view: &ClusterView) -> String {
        let mut left = mixed::remaining(view, self.to);
        let own = self.config.citus.as_ref().map(|citus| citus.group);
        let mut of_group = String::new();
        let mut others = takeover::remaining(&self.groups, self.to).into_iter().filter(|(group, _)| Some(*group) != own);
        let not_yet = own.is_some_and(|own| takeover::before(&self.groups, own, self.to).is_some());
        if (left.is_empty() || not_yet)
            && let Some((group, members)) = others.next()
        {
            of_group = format!(" (group {group})");
            left = members;
        }
        match left.split_first() {
            None if self.to == Kind::Patroni => match own {
                None => "every member runs by Patroni; `DROP EXTENSION pg_tenure` on the primary takes the last of it away".to_owned(),
                Some(_) => "every member of every group runs by Patroni; `DROP EXTENSION pg_tenure` on each group's primary, there in each distributed \
                    database, too, takes the last of it away"
                    .to_owned(),
            },
            None => "every member runs by pg_tenure".to_owned(),
            Some((first, rest)) => {
                let then = rest.iter().map(|name| format!(", then {name}")).collect::<String>();
                format!("next: `tenure {} FILE` on {first}{then}{of_group}", self.word())
            }
        }
    }

    fn steps(&self, next: &Next, view: &ClusterView) -> Result<String> {
        let me = self.me();
        let mut steps = Vec::new();
        if self.to == Kind::Ours {
            steps.push("on the primary: CREATE EXTENSION IF NOT EXISTS pg_tenure".to_owned());
        }
        if let Next::SwitchOver(whom) = next {
            steps.push(format!("switch over from {me} to {whom}, and wait until {me} streams from it"));
        }
        let stopped = match self.running()? {
            Some(daemon) => format!("stop {daemon}, which stops its Postgres"),
            None => "nothing to stop: neither Patroni nor an arbiter runs here".to_owned(),
        };
        steps.push(stopped);
        if self.to == Kind::Patroni {
            steps.push(format!("take the cluster's mark away from {}", self.config.postgres.data_dir.display()));
        }
        steps.push(format!("start {}, which starts Postgres", self.starts(self.running()?.as_ref())?));
        steps.push(format!("wait until {me} streams and is run by {}", self.to));
        let after = {
            let mut view = view.clone();
            view.members.remove(me);
            self.next_of_all(&view)
        };
        let lines: String = steps.iter().zip(1..).map(|(step, number)| format!("  {number}. {step}\n")).collect();
        Ok(format!("steps on {me}:\n{lines}{after}"))
    }

    /// The daemon of the other kind.
    fn running(&self) -> Result<Option<Daemon>> {
        match self.to {
            Kind::Ours => daemons::patroni(&self.config),
            Kind::Patroni => daemons::arbiter(&self.config),
        }
    }

    /// The daemon that is wanted.
    fn wanted(&self) -> Result<Option<Daemon>> {
        match self.to {
            Kind::Ours => daemons::arbiter(&self.config),
            Kind::Patroni => daemons::patroni(&self.config),
        }
    }

    /// Neither the daemon that is wanted nor a server runs here.
    async fn is_down(&self) -> Result<bool> {
        Ok(self.wanted()?.is_none() && postgres::postmaster::Postmaster::adopt(&self.config.postgres.data_dir).await?.is_none())
    }

    fn starts(&self, instead_of: Option<&Daemon>) -> Result<daemons::Start> {
        daemons::Start::of(&self.config, &self.args.file, self.to, self.args.start.as_deref(), instead_of)
    }

    async fn take_steps(&self, next: Next, view: ClusterView) -> Result<()> {
        if self.to == Kind::Ours {
            checks::make_extension(&self.config, &view).await?;
        }
        // Before anything is stopped: what can't be started again is not stopped.
        let running = self.running()?;
        let wanted = self.wanted()?;
        if self.to == Kind::Patroni
            && let Some(daemon) = &wanted
        {
            // The other command may have broken off before it wrote that down.
            daemon.remember(&self.config).await?;
        }
        let start = self.starts(running.as_ref().or(wanted.as_ref()))?;
        match wanted {
            // It may have been told to end, and not have got round to it.
            Some(daemon) if self.other_broke_off() => {
                print(format!("{} was to be stopped, and is", daemon.name()))?;
                daemon.stop(self.patience()).await?;
            }
            Some(daemon) if running.is_none() => {
                print(format!("{} runs already", daemon.name()))?;
                return self.see_it_through().await;
            }
            _ => {}
        }
        self.note_begin().await?;
        if let Next::SwitchOver(whom) = next {
            self.switch_over(&whom).await?;
        }
        if let Some(running) = running {
            print(format!("stopping {running}"))?;
            if self.to == Kind::Ours {
                running.remember(&self.config).await?;
            }
            running.stop(self.patience()).await?;
        }
        if let Some(server) = postgres::postmaster::Postmaster::adopt(&self.config.postgres.data_dir).await? {
            return Err(refuse_with(
                format!("Postgres still runs here (process id {})", server.pid()),
                format!("was it started by something else? stop it, then run `tenure {}` again", self.word()),
            ));
        }
        if self.to == Kind::Patroni {
            postgres::mark::remove(&self.config.postgres.data_dir).await?;
        }
        print(format!("starting {start}"))?;
        start.run().await?;
        self.see_it_through().await
    }

    async fn see_it_through(&self) -> Result<()> {
        let view = self.until(&format!("{} to run by {}", self.me(), self.to), |view| self.is_through(view)).await?;
        self.note_end()?;
        print(format!("{} runs by {}", self.me(), self.to))?;
        print(self.next_of_all(&view))
    }

    /// It runs by the daemon that was wanted, and stream from the leader; ours with the arbiter attached, so that it may take over.
    fn is_through(&self, view: &ClusterView) -> bool {
        let leads = view.leader.as_ref().is_some_and(|leader| leader.name == *self.me());
        view.members.get(self.me()).is_some_and(|entry| {
            let member = &entry.member;
            let attends = self.to == Kind::Patroni || member.tenure.as_ref().is_some_and(|facts| facts.arbiter);
            let streams = leads || member.tags.nostream() || member.replication_state.as_deref() == Some("streaming");
            mixed::kind(member) == self.to && member.is_running() && attends && streams
        })
    }

    async fn switch_over(&self, to: &MemberName) -> Result<()> {
        let me = self.me();
        print(format!("switching over from {me} to {to}"))?;
        let body = json!({"leader": me, "candidate": to});
        let url = format!("{}/patroni", self.config.rest.url());
        // The daemon that is asked may be slow for a moment, and then nothing was stopped.
        for left in (0..TRIES).rev() {
            let (status, said) = self.caller.ask(&url, "POST", "switchover", Some(&body), self.patience()).await?;
            if status == 200 {
                break;
            }
            if left == 0 || status != 503 {
                return Err(refuse_with(format!("the switchover failed: {status} {said}"), "the log of the leader's daemon says why"));
            }
            print(format!("the switchover failed: {status} {said}; once more"))?;
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        self.until(&format!("{me} to stream from {to}"), |view| {
            let streams = |entry: &cluster::member::MemberEntry| entry.member.replication_state.as_deref() == Some("streaming");
            view.leader.as_ref().is_some_and(|leader| leader.name == *to) && view.members.get(me).is_some_and(streams)
        })
        .await
        .map(drop)
    }

    fn patience(&self) -> Duration {
        Duration::from_secs(self.args.timeout)
    }

    async fn until(&self, what: &str, so: impl Fn(&ClusterView) -> bool) -> Result<ClusterView> {
        let began = Instant::now();
        loop {
            // An etcd that is away for a moment is asked again.
            let last = match Box::pin(self.etcd.load_view()).await {
                Ok(view) if so(&view) => return Ok(view),
                Ok(view) => view.members.get(self.me()).map_or_else(
                    || "it has no member key".to_owned(),
                    |entry| {
                        format!(
                            "run by {}, {}, {}",
                            mixed::kind(&entry.member),
                            entry.member.state,
                            entry.member.replication_state.as_deref().unwrap_or("not streaming")
                        )
                    },
                ),
                Err(why) => why.to_string(),
            };
            if began.elapsed() > self.patience() {
                return Err(refuse_with(
                    format!("waited {} s for {what}: {last}", self.args.timeout),
                    format!(
                        "its log says more; `tenure {} --check` shows where it stands, and both commands can be run again",
                        self.word()
                    ),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
