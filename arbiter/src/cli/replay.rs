//! `tenure replay`: a delayed standby replays up to a time and stops there, or pauses, or goes on.

use super::context::{Tool, print, refuse_with};
use super::members;
use crate::rest::REPLAY_WITHIN;
use anyhow::Result;
use serde_json::{Value, json};

/// Replay a delayed standby up to a time, to save what was deleted on the primary since.
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["until", "pause", "resume"])))]
pub struct Args {
    /// [CLUSTER] MEMBER
    #[arg(required = true)]
    pub words: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Replay what was committed up to this time, with its zone (2026-11-22T14:03:00+01:00), and stop there.
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Stop where it is.
    #[arg(long)]
    pub pause: bool,
    /// Go on, by the delay of its tag.
    #[arg(long)]
    pub resume: bool,
}

impl Args {
    fn body(&self) -> Value {
        match &self.until {
            Some(until) => json!({"until": until}),
            None if self.pause => json!({"pause": true}),
            None => json!({"resume": true}),
        }
    }
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let chosen = members::choose(tool, &args.words, args.group, None, true, "replay").await?;
    let mut named = members::each(&chosen);
    let (Some((chosen, name)), None) = (named.next(), named.next()) else {
        return Err(refuse_with("replay is of one member", "name it: `tenure replay MEMBER --until TIME`"));
    };
    match chosen.ask(tool, name, "POST", "replay", Some(&args.body()), REPLAY_WITHIN).await {
        Ok((200, said)) => print(format!("Success: replay on member {name}: {said}")),
        answer => members::report(name, "replay", answer).and_then(|done| members::all_done("replay", &[done])),
    }
}
