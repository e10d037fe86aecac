//! `tenure history`: when the leadership changed, and where each timeline ended.

use super::context::{Tool, print};
use super::list::{Format, yaml};
use super::table::{self, Column};
use crate::present::Ordered;
use anyhow::Result;
use cluster::history::History;
use serde_json::json;

const TITLES: [&str; 5] = ["TL", "LSN", "Reason", "Timestamp", "New Leader"];

/// Show the history of failovers and switchovers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let view = tool.target(args.cluster.as_deref(), args.group)?.view().await?;
    print(text(view.history(), args.format)?)
}

fn text(history: &History, format: Format) -> Result<String> {
    let rows = history.0.iter().map(|line| {
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        [line.timeline.to_string(), line.switch.0.to_string(), line.reason.clone(), or_empty(&line.timestamp), or_empty(&line.new_leader)]
    });
    let objects = || {
        let object = |line: &cluster::history::Line| {
            let values = [
                json!(line.timeline),
                json!(line.switch),
                json!(line.reason),
                json!(line.timestamp.as_deref().unwrap_or("")),
                json!(line.new_leader.as_deref().unwrap_or("")),
            ];
            Ordered(TITLES.into_iter().zip(values).collect())
        };
        history.0.iter().map(object).collect::<Vec<_>>()
    };
    Ok(match format {
        Format::Json => serde_json::to_string(&objects())? + "\n",
        Format::Yaml => yaml(&objects())?,
        Format::Tsv => std::iter::once(TITLES.join("\t")).chain(rows.map(|row| row.join("\t"))).collect::<Vec<_>>().join("\n") + "\n",
        Format::Pretty | Format::Topology => {
            let columns = TITLES.map(|title| Column { title, right: matches!(title, "TL" | "LSN") });
            table::pretty(None, &columns, &rows.map(Vec::from).collect::<Vec<_>>())
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_length_fit_the_table() {
        let history =
            History::from_json(&json!([[1, 52151216, "no recovery target specified", "2026-11-20T16:13:01+00:00", "c3"], [2, 7, "x"]]))
                .unwrap();
        insta::assert_snapshot!(text(&history, Format::Pretty).unwrap(), @r#"
        +----+----------+------------------------------+---------------------------+------------+
        | TL |      LSN | Reason                       | Timestamp                 | New Leader |
        +----+----------+------------------------------+---------------------------+------------+
        |  1 | 52151216 | no recovery target specified | 2026-11-20T16:13:01+00:00 | c3         |
        |  2 |        7 | x                            |                           |            |
        +----+----------+------------------------------+---------------------------+------------+
        "#);
        insta::assert_snapshot!(text(&history, Format::Json).unwrap(), @r#"[{"TL":1,"LSN":52151216,"Reason":"no recovery target specified","Timestamp":"2026-11-20T16:13:01+00:00","New Leader":"c3"},{"TL":2,"LSN":7,"Reason":"x","Timestamp":"","New Leader":""}]"#);
    }
}
