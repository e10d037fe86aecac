//! Members' journals: asked for, and a decision as a line.

use super::context::Tool;
use crate::node::journal::Record;
use anyhow::{Context, Result};
use cluster::member::Member;
use std::time::Duration;

/// A member answers from its memory at once, or it is not well.
const BOUND: Duration = Duration::from_secs(3);

/// What a member keeps of its decisions, oldest first.
pub async fn records(tool: &Tool, member: &Member) -> Result<Vec<Record>> {
    let (_, text) = tool.caller.ask(&member.api_url, "GET", "journal", None, BOUND).await?;
    serde_json::from_str(&text).context("it keeps no journal")
}

/// One decision as a line.
pub fn sentence(record: &Record) -> String {
    let leader = match (&record.leader, record.term) {
        (Some(leader), Some(term)) => format!("{leader} leads in term {term}"),
        _ => "nobody leads".to_owned(),
    };
    format!("  {}  {}: {}  ({leader}; {})", record.at, record.duty, record.why, record.postgres)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_reads_as_one_line() {
        let record = Record {
            at: "2026-11-20T21:00:00.000Z".to_owned(),
            revision: 7,
            leader: Some("n1".to_owned()),
            term: Some(5),
            postgres: "standby at 0/3000000, timeline 1, streaming".to_owned(),
            duty: "no action".to_owned(),
            why: "it follows n1".to_owned(),
            primary: false,
            follows: true,
            winds_back: false,
            forked: None,
        };
        insta::assert_snapshot!(sentence(&record), @"  2026-11-20T21:00:00.000Z  no action: it follows n1  (n1 leads in term 5; standby at 0/3000000, timeline 1, streaming)");
    }
}
