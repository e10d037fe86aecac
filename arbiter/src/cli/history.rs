//! `tenure history`: when the leadership changed, and where each timeline ended.

use super::context::{Tool, print};
use super::groups;
use super::list::{Format, yaml};
use super::table::{self, Column};
use crate::ground::present::Ordered;
use anyhow::Result;
use cluster::history::History;
use serde_json::json;

const GROUP: &str = "Group";
const TITLES: [&str; 5] = ["TL", "LSN", "Reason", "Timestamp", "New Leader"];

/// Show the history of failovers and switchovers.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Every group of a Citus cluster, also where the configuration file is of one of them.
    #[arg(long, conflicts_with = "group")]
    pub all_groups: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let parts = groups::own(tool, args.cluster.as_deref(), args.group, args.all_groups).await?;
    let several = parts.len() > 1;
    let parts: Vec<_> = parts.iter().map(|part| (part.target.group.filter(|_| several), part.view.history())).collect();
    print(text(&parts, args.format)?)
}

/// The lines of one cluster, or of several groups with the group before each.
fn text(parts: &[(Option<u32>, &History)], format: Format) -> Result<String> {
    let group = parts.iter().find_map(|(group, _)| *group).map(|_| GROUP);
    let titles: Vec<&'static str> = group.into_iter().chain(TITLES).collect();
    let lines = || parts.iter().flat_map(|(group, history)| history.0.iter().map(move |line| (*group, line)));
    let rows = lines().map(|(group, line)| {
        let or_empty = |text: &Option<String>| text.clone().unwrap_or_default();
        let line = [
            line.timeline.to_string(),
            line.switch.0.to_string(),
            line.reason.clone(),
            or_empty(&line.timestamp),
            or_empty(&line.new_leader),
        ];
        group.map(|group| group.to_string()).into_iter().chain(line).collect::<Vec<_>>()
    });
    let objects = || {
        let object = |(group, line): (Option<u32>, &cluster::history::Line)| {
            let values = [
                json!(line.timeline),
                json!(line.switch),
                json!(line.reason),
                json!(line.timestamp.as_deref().unwrap_or("")),
                json!(line.new_leader.as_deref().unwrap_or("")),
            ];
            Ordered(titles.iter().copied().zip(group.map(|group| json!(group)).into_iter().chain(values)).collect())
        };
        lines().map(object).collect::<Vec<_>>()
    };
    Ok(match format {
        Format::Json => serde_json::to_string(&objects())? + "\n",
        Format::Yaml => yaml(&objects())?,
        Format::Tsv => std::iter::once(titles.join("\t")).chain(rows.map(|row| row.join("\t"))).collect::<Vec<_>>().join("\n") + "\n",
        Format::Pretty | Format::Topology => {
            let column = |title: &&'static str| Column { title, right: matches!(*title, GROUP | "TL" | "LSN") };
            table::pretty(None, &titles.iter().map(column).collect::<Vec<_>>(), &rows.collect::<Vec<_>>())
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
        insta::assert_snapshot!(text(&[(None, &history)], Format::Pretty).unwrap(), @r#"
        +----+----------+------------------------------+---------------------------+------------+
        | TL |      LSN | Reason                       | Timestamp                 | New Leader |
        +----+----------+------------------------------+---------------------------+------------+
        |  1 | 52151216 | no recovery target specified | 2026-11-20T16:13:01+00:00 | c3         |
        |  2 |        7 | x                            |                           |            |
        +----+----------+------------------------------+---------------------------+------------+
        "#);
        insta::assert_snapshot!(text(&[(None, &history)], Format::Json).unwrap(), @r#"[{"TL":1,"LSN":52151216,"Reason":"no recovery target specified","Timestamp":"2026-11-20T16:13:01+00:00","New Leader":"c3"},{"TL":2,"LSN":7,"Reason":"x","Timestamp":"","New Leader":""}]"#);
        assert_eq!(
            text(&[(Some(0), &history), (Some(2), &History::default())], Format::Tsv).unwrap().lines().next(),
            Some("Group\tTL\tLSN\tReason\tTimestamp\tNew Leader")
        );
        let several = text(&[(Some(0), &History::default()), (Some(2), &history)], Format::Json).unwrap();
        assert!(several.starts_with(r#"[{"Group":2,"TL":1,"#), "{several}");
    }
}
