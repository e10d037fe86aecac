//! `tenure list`: the members, as a table or for a program.

use super::context::{self, Target, Tool, print, refuse};
use super::table::{self, Column};
use crate::ground::present::{self, Ordered, Position, Row};
use anyhow::Result;
use cluster::citus::Groups;
use cluster::host::POSTGRES;
use cluster::view::{ClusterView, Initialize};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How to write tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// A drawn table.
    #[default]
    #[value(alias = "table")]
    Pretty,
    /// A drawn table, members as a tree.
    #[value(skip)]
    Topology,
    /// Tab-separated lines with titles.
    Tsv,
    /// One JSON array.
    Json,
    /// A YAML list.
    #[value(alias = "yml")]
    Yaml,
}

/// Show the members of a cluster.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Names of clusters; the configured one where none is given.
    pub clusters: Vec<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Show pending restarts, planned restarts and tags even where there are none.
    #[arg(short, long)]
    pub extended: bool,
    /// Print the time before each table.
    #[arg(short, long)]
    pub timestamp: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
    /// Show again whenever something changed; without a terminal the table once, then a line for each member that changed.
    #[arg(short = 'W')]
    pub follow: bool,
    /// Show again every so many seconds.
    #[arg(short, long, value_name = "SECONDS")]
    pub watch: Option<f64>,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let names: Vec<Option<&str>> =
        if args.clusters.is_empty() { vec![None] } else { args.clusters.iter().map(|name| Some(name.as_str())).collect() };
    let targets = names.into_iter().map(|name| tool.target_of_all(name, args.group)).collect::<Result<Vec<_>>>()?;
    if !args.follow && args.watch.is_none() {
        return show_all(&targets, args).await;
    }
    let wake = Arc::new(Notify::new());
    let watchers =
        futures_util::future::join_all(targets.iter().map(|target| dcs::watch::keep_watching(target.etcd.clone(), wake.clone())));
    // Positions are written more often than anybody reads: at most one picture in this time.
    let pace = args.watch.filter(|seconds| seconds.is_finite() && *seconds > 0.0).map_or(Duration::from_secs(2), Duration::from_secs_f64);
    let pictures = async {
        let mut picture = Picture::new(args);
        loop {
            let drawn = match draw(&targets, args).await {
                Ok(drawn) => drawn,
                Err(error) => Drawn { text: format!("Error: {error:#}\n"), rows: Vec::new() },
            };
            picture.show(drawn)?;
            match args.watch {
                Some(_) => tokio::time::sleep(pace).await,
                None => {
                    // A change of roles is shown as it happens, which is faster than anybody reads positions.
                    let _ = tokio::time::timeout(pace, wake.notified()).await;
                    tokio::time::sleep(SHORTEST).await;
                }
            }
        }
    };
    tokio::select! {
        _ = watchers => Ok(()),
        ended = pictures => ended,
    }
}

/// etcd is not asked more often than this, however much changes.
const SHORTEST: Duration = Duration::from_millis(100);

/// What is shown once.
struct Drawn {
    text: String,
    /// Each member with what does not change from moment to moment.
    rows: Vec<(String, String)>,
}

/// What is shown again and again: on a terminal in its place, else what changed, a line for each.
struct Picture {
    terminal: bool,
    /// A program reads it: whole each time.
    whole: bool,
    /// Also what is as before.
    always: bool,
    /// The lines that stand on the terminal.
    lines: usize,
    last: Option<Drawn>,
}

impl Picture {
    fn new(args: &Args) -> Picture {
        let whole = args.watch.is_some() || !matches!(args.format, Format::Pretty | Format::Topology);
        Picture { terminal: std::io::stdout().is_terminal(), whole, always: args.watch.is_some(), lines: 0, last: None }
    }

    fn show(&mut self, drawn: Drawn) -> Result<()> {
        let text = if self.terminal {
            // Back to where it began; a line that is wider than the terminal must not become two.
            let back = if self.lines > 0 { format!("\x1b[{}A", self.lines) } else { String::new() };
            self.lines = drawn.text.lines().count();
            format!("{back}\x1b[J\x1b[?7l{}\x1b[?7h", context::harmless(&drawn.text))
        } else {
            context::harmless(&match &self.last {
                Some(last) if !self.whole => changes(last, &drawn),
                Some(last) if !self.always && last.text == drawn.text => String::new(),
                _ => drawn.text.clone(),
            })
        };
        self.last = Some(drawn);
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes())?;
        Ok(out.flush()?)
    }
}

/// One line for each member that is another than before.
fn changes(last: &Drawn, drawn: &Drawn) -> String {
    let was = |name: &str| last.rows.iter().find(|(known, _)| known == name).map(|(_, row)| row.as_str());
    let is = |name: &str| drawn.rows.iter().any(|(known, _)| known == name);
    let now = context::timestamp();
    let gone = last.rows.iter().filter(|(name, _)| !is(name)).map(|(name, row)| format!("{now} {name}: {row} -> gone\n"));
    let other = drawn.rows.iter().filter(|(name, row)| was(name) != Some(row)).map(|(name, row)| match was(name) {
        Some(before) => format!("{now} {name}: {before} -> {row}\n"),
        None => format!("{now} {name}: {row}\n"),
    });
    let unread = (drawn.rows.is_empty() && last.text != drawn.text).then(|| format!("{now} {}", drawn.text));
    unread.unwrap_or_else(|| gone.chain(other).collect())
}

async fn show_all(targets: &[Target], args: &Args) -> Result<()> {
    print(draw(targets, args).await?.text)
}

async fn draw(targets: &[Target], args: &Args) -> Result<Drawn> {
    let mut text = String::new();
    let mut rows = Vec::new();
    let brief = |group: Option<u32>, view: &ClusterView| -> Vec<(String, String)> {
        let group = group.map(|group| format!("group {group}, ")).unwrap_or_default();
        let row = |row: Row| {
            let timeline = row.timeline.map(|timeline| format!(", timeline {timeline}")).unwrap_or_default();
            (format!("{group}{}", row.name), format!("{}, {}{timeline}", row.role.title(), row.state))
        };
        present::rows(view).into_iter().map(row).collect()
    };
    for target in targets {
        if args.timestamp {
            let now = context::timestamp();
            text.push_str(&format!("{}\n", now.split('.').next().unwrap_or(&now)));
        }
        let groups = if args.group.is_none() { target.groups().await? } else { Groups::new() };
        text.push_str(&match groups.is_empty() {
            true => {
                let view = target.view().await?;
                rows.extend(brief(args.group, &view));
                members(&view, target.scope.as_str(), args.group, args.extended, args.format)?
            }
            false => {
                rows.extend(groups.iter().flat_map(|(group, view)| brief(Some(*group), view)));
                self::groups(&groups, target.scope.as_str(), args.extended, args.format)?
            }
        });
    }
    Ok(Drawn { text, rows })
}

/// The members of one cluster, or of one group of a Citus cluster, in this format, with what else is worth a line.
pub fn members(view: &ClusterView, cluster: &str, group: Option<u32>, extended: bool, format: Format) -> Result<String> {
    let identity = match view.initialize.as_ref().map(|key| &key.value) {
        None => "uninitialized",
        Some(Initialize::Running) => "initializing",
        Some(Initialize::Done(id)) => id.0.as_str(),
    };
    let title = match group {
        Some(group) => format!(" Citus cluster: {cluster} (group: {group}, {identity}) "),
        None => format!(" Cluster: {cluster} ({identity}) "),
    };
    let drawn = table(&[(group, view)], &title, cluster, extended, format)?;
    Ok(if matches!(format, Format::Pretty | Format::Topology) { drawn + &footer(view) } else { drawn })
}

/// The members of all groups of a Citus cluster, as Patroni shows them.
pub fn groups(groups: &Groups, cluster: &str, extended: bool, format: Format) -> Result<String> {
    let parts: Vec<_> = groups.iter().map(|(group, view)| (Some(*group), view)).collect();
    let mut text = table(&parts, &format!(" Citus cluster: {cluster} "), cluster, extended, format)?;
    if matches!(format, Format::Pretty | Format::Topology) {
        for (group, view) in groups {
            text.extend(footer(view).lines().map(|line| format!(" Citus group: {group},{line}\n")));
        }
    }
    Ok(text)
}

fn table(parts: &[(Option<u32>, &ClusterView)], title: &str, cluster: &str, extended: bool, format: Format) -> Result<String> {
    let rows = |view: &ClusterView| {
        let mut rows = present::rows(view);
        rows.extend(cluster::roster::lost(view).into_iter().map(|(name, _)| Row::lost(name)));
        rows.sort_by(|row, other| row.name.cmp(&other.name));
        if format == Format::Topology { present::as_tree(rows) } else { rows }
    };
    let rows: Vec<(Option<u32>, Row)> = parts.iter().flat_map(|(group, view)| rows(view).into_iter().map(|row| (*group, row))).collect();
    let shown = [
        rows.iter().any(|(_, row)| row.pending_restart),
        rows.iter().any(|(_, row)| row.pending_restart_reason.is_some()),
        rows.iter().any(|(_, row)| row.scheduled_restart.is_some()),
        rows.iter().any(|(_, row)| !row.tags.is_empty()),
    ]
    .map(|used| used || extended);
    let grouped = parts.iter().any(|(group, _)| group.is_some());
    let with_port = needs_port(rows.iter().map(|(_, row)| row));
    let drawn = matches!(format, Format::Pretty | Format::Topology);
    let element = |(group, row): &(Option<u32>, Row)| {
        let mut fields = fields(row, cluster, with_port, shown, drawn);
        if let Some(group) = group {
            fields.insert(1, (GROUP, json!(group)));
        }
        fields
    };
    let elements: Vec<Vec<(&'static str, Value)>> = rows.iter().map(element).collect();
    let mut titles = titles(shown);
    if grouped {
        titles.insert(1, GROUP);
    }
    match format {
        Format::Json => Ok(serde_json::to_string(&objects(elements))? + "\n"),
        Format::Yaml => yaml(&objects(elements)),
        Format::Tsv => {
            let mut lines = vec![titles.join("\t")];
            lines.extend(elements.iter().map(|row| row.iter().map(|(_, value)| text(value, false)).collect::<Vec<_>>().join("\t")));
            Ok(lines.join("\n") + "\n")
        }
        Format::Pretty | Format::Topology => {
            // A single group stands in the title.
            let left_out = if grouped && parts.len() == 1 { 2 } else { 1 };
            let columns: Vec<Column<'_>> = titles.into_iter().skip(left_out).map(column).collect();
            let block = format == Format::Pretty;
            let cells: Vec<Vec<String>> =
                elements.iter().map(|row| row.iter().skip(left_out).map(|(_, value)| text(value, block)).collect()).collect();
            Ok(table::pretty(Some(title), &columns, &cells))
        }
    }
}

/// The column of a Citus cluster's groups.
const GROUP: &str = "Group";

/// A list of objects as YAML, or the reason why not.
pub fn yaml<T: serde::Serialize>(value: &T) -> Result<String> {
    serde_saphyr::to_string(value).map_err(|error| refuse(format!("write YAML: {error}")))
}

fn titles(shown: [bool; 4]) -> Vec<&'static str> {
    let mut titles = vec!["Cluster", "Member", "Host", "Role", "State", "TL", "Receive LSN", "Receive Lag", "Replay LSN", "Replay Lag"];
    let optional = ["Pending restart", "Pending restart reason", "Scheduled restart", "Tags"];
    titles.extend(optional.into_iter().zip(shown).filter(|(_, shown)| *shown).map(|(title, _)| title));
    titles
}

fn column(title: &'static str) -> Column<'static> {
    let right = matches!(title, "Group" | "TL" | "Receive LSN" | "Receive Lag" | "Replay LSN" | "Replay Lag");
    let title = if title.ends_with(" Lag") { "Lag" } else { title };
    Column { title, right }
}

/// Hosts are shown with their port where one is not PostgreSQL's own, or where two members share a host.
fn needs_port<'a>(rows: impl Iterator<Item = &'a Row>) -> bool {
    let addresses: Vec<_> = rows.filter_map(|row| row.address.as_ref()).collect();
    let hosts: std::collections::BTreeSet<_> = addresses.iter().map(|address| &address.host).collect();
    addresses.iter().any(|address| address.port != POSTGRES) || hosts.len() < addresses.len()
}

fn fields(row: &Row, cluster: &str, with_port: bool, shown: [bool; 4], drawn: bool) -> Vec<(&'static str, Value)> {
    let host = match &row.address {
        Some(address) if with_port => address.to_string(),
        Some(address) => address.host.clone(),
        None => String::new(),
    };
    let lsn = |position: Option<Position>| json!(position.map_or("unknown".to_owned(), |position| position.lsn.to_string()));
    let megabytes = |position: Option<Position>| {
        position.map_or(json!(""), |position| json!((position.lag_bytes as f64 / 1_048_576.0).round_ties_even() as u64))
    };
    let positions = match row.positions {
        Some(positions) => [lsn(positions.receive), megabytes(positions.receive), lsn(positions.replay), megabytes(positions.replay)],
        None => [json!(""), json!(""), json!(""), json!("")],
    };
    let values = [
        json!(cluster),
        json!(row.name),
        json!(host),
        json!(row.role.title()),
        json!(row.state),
        row.timeline.map_or(json!(""), |timeline| json!(timeline)),
    ];
    let values = values.into_iter().chain(positions);
    let optional = [
        json!(if row.pending_restart { "*" } else { "" }),
        json!(restart_reason(row, drawn)),
        json!(scheduled_restart(row)),
        if row.tags.is_empty() { json!("") } else { json!(row.tags) },
    ];
    let optional = optional.into_iter().zip(shown).filter(|(_, shown)| *shown).map(|(value, _)| value);
    titles(shown).into_iter().zip(values.chain(optional)).collect()
}

/// `guc: old->new`, one line each; a long one is cut out of a drawn table.
fn restart_reason(row: &Row, drawn: bool) -> String {
    let line = |(setting, values): (&String, &Value)| {
        let part =
            |key: &str| values.get(key).map_or(String::new(), |value| value.as_str().map_or_else(|| value.to_string(), str::to_owned));
        let line = format!("{setting}: {}->{}", part("old_value"), part("new_value"));
        // Ours; what programs read stays as they know it.
        let line = match values.get("order").and_then(Value::as_str).filter(|_| drawn) {
            Some(order) => format!("{line} ({order})"),
            None => line,
        };
        if drawn && line.chars().count() > 50 { format!("{setting}: [hidden - too long]") } else { line }
    };
    row.pending_restart_reason.iter().flatten().map(line).collect::<Vec<_>>().join("\n")
}

fn scheduled_restart(row: &Row) -> String {
    let Some(scheduled) = &row.scheduled_restart else { return String::new() };
    let at = scheduled.get("schedule").and_then(Value::as_str).unwrap_or("");
    match scheduled.get("postgres_version").and_then(Value::as_str) {
        Some(version) => format!("{at} if version < {version}"),
        None => at.to_owned(),
    }
}

/// Objects without their empty fields.
fn objects(rows: Vec<Vec<(&'static str, Value)>>) -> Vec<Ordered> {
    rows.into_iter().map(|row| Ordered(row.into_iter().filter(|(_, value)| value.as_str() != Some("")).collect())).collect()
}

/// A value as a cell. Tags: one per line in a block, else in one line.
fn text(value: &Value, block: bool) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Object(tags) => {
            let pair = |(tag, value): (&String, &Value)| format!("{tag}: {}", text(value, false));
            let pairs: Vec<String> = tags.iter().map(pair).collect();
            if block { pairs.join("\n") } else { format!("{{{}}}", pairs.join(", ")) }
        }
        other => other.to_string(),
    }
}

/// Maintenance mode, and a switchover that waits for its time.
fn footer(view: &ClusterView) -> String {
    let mut lines = String::new();
    if view.config().paused() {
        lines.push_str(" Maintenance mode: on\n");
    }
    if let Some(request) = view.request()
        && let Some(at) = &request.value.scheduled_at
    {
        lines.push_str(&format!(" Switchover scheduled at: {at}\n"));
        if request.value.is_switchover() {
            lines.push_str(&format!("                    from: {}\n", request.value.leader.as_deref().unwrap_or("")));
        }
        if let Some(candidate) = request.value.candidate() {
            lines.push_str(&format!("                      to: {candidate}\n"));
        }
    }
    for (name, entry) in &view.members {
        if let Some(sick) = entry.member.tenure.as_ref().and_then(|facts| facts.sick.as_deref()) {
            lines.push_str(&format!(" {name} is sick: {sick}\n"));
        }
    }
    for key in &view.unreadable {
        lines.push_str(&format!(" Can't be read: {key}\n"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::present::tests::{member, sample};
    use cluster::config::DynamicConfig;
    use cluster::failover::FailoverRequest;
    use cluster::view::Versioned;

    #[test]
    fn the_table_is_the_one_people_know() {
        let mut view = sample();
        view.members.get_mut(&cluster::name::MemberName::new("n2").unwrap()).unwrap().member.tags.0.clear();
        insta::assert_snapshot!(members(&view, "demo", None, false, Format::Pretty).unwrap(), @r#"
        + Cluster: demo (7710284044615527583) ----+-----------+----+-------------+-----+------------+-----+
        | Member | Host            | Role         | State     | TL | Receive LSN | Lag | Replay LSN | Lag |
        +--------+-----------------+--------------+-----------+----+-------------+-----+------------+-----+
        | n0     | 127.0.0.1:15430 | Leader       | running   |  1 |             |     |            |     |
        | n1     | 127.0.0.1:15431 | Sync Standby | streaming |  1 |   0/504BEA8 |   0 |  0/504BEA8 |   0 |
        | n2     | 127.0.0.1:15432 | Replica      | streaming |  1 |   0/4C4B400 |   4 |  0/4B571C0 |   5 |
        +--------+-----------------+--------------+-----------+----+-------------+-----+------------+-----+
        "#);
    }

    #[test]
    fn who_is_sick_is_said_below_the_table() {
        let mut view = sample();
        let n1 = view.members.get_mut(&cluster::name::MemberName::new("n1").unwrap()).unwrap();
        let facts = cluster::member::TenureFacts { sick: Some("only 20 MB are free on the disk".to_owned()), ..Default::default() };
        n1.member.tenure = Some(facts);
        assert_eq!(footer(&view), " n1 is sick: only 20 MB are free on the disk\n");
        // What a program reads has the field's own fields only.
        let tsv = members(&view, "demo", None, false, Format::Tsv).unwrap();
        assert!(!tsv.contains("sick"), "{tsv}");
    }

    #[test]
    fn the_groups_of_a_citus_cluster_are_one_table() {
        let mut paused = sample();
        paused.config = Some(Versioned { value: DynamicConfig(serde_json::from_str(r#"{"pause":true}"#).unwrap()), revision: 2 });
        paused.members.retain(|name, _| name.as_str() == "n0");
        let all = Groups::from([(0, paused.clone()), (2, paused)]);
        insta::assert_snapshot!(groups(&all, "demo", false, Format::Pretty).unwrap(), @r#"
        + Citus cluster: demo -------------+--------+---------+----+-------------+-----+------------+-----+
        | Group | Member | Host            | Role   | State   | TL | Receive LSN | Lag | Replay LSN | Lag |
        +-------+--------+-----------------+--------+---------+----+-------------+-----+------------+-----+
        |     0 | n0     | 127.0.0.1:15430 | Leader | running |  1 |             |     |            |     |
        |     2 | n0     | 127.0.0.1:15430 | Leader | running |  1 |             |     |            |     |
        +-------+--------+-----------------+--------+---------+----+-------------+-----+------------+-----+
         Citus group: 0, Maintenance mode: on
         Citus group: 2, Maintenance mode: on
        "#);
        // One group alone has its number in the title.
        insta::assert_snapshot!(members(&all[&2], "demo", Some(2), false, Format::Pretty).unwrap(), @r#"
        + Citus cluster: demo (group: 2, 7710284044615527583) -----------+-----+------------+-----+
        | Member | Host            | Role   | State   | TL | Receive LSN | Lag | Replay LSN | Lag |
        +--------+-----------------+--------+---------+----+-------------+-----+------------+-----+
        | n0     | 127.0.0.1:15430 | Leader | running |  1 |             |     |            |     |
        +--------+-----------------+--------+---------+----+-------------+-----+------------+-----+
         Maintenance mode: on
        "#);
        assert!(
            members(&all[&2], "demo", Some(2), false, Format::Json).unwrap().starts_with(r#"[{"Cluster":"demo","Group":2,"Member":"n0""#)
        );
        assert!(groups(&all, "demo", false, Format::Tsv).unwrap().starts_with("Cluster\tGroup\tMember\t"));
        assert!(groups(&all, "demo", false, Format::Json).unwrap().starts_with(r#"[{"Cluster":"demo","Group":0,"Member":"n0""#));
    }

    #[test]
    fn extended_with_tags_restart_pause_and_a_planned_switchover() {
        let mut view = sample();
        member(
            &mut view,
            "n1",
            r#"{"conn_url":"postgres://db1/postgres","api_url":"","state":"running","role":"replica","pending_restart":true,"pending_restart_reason":{"max_connections":{"old_value":"100","new_value":"150"}},"tags":{"clonefrom":true,"nofailover":true}}"#,
        );
        view.config = Some(Versioned { value: DynamicConfig(serde_json::from_str(r#"{"pause":true}"#).unwrap()), revision: 2 });
        let request = FailoverRequest {
            leader: Some("n0".into()),
            member: Some("n1".into()),
            scheduled_at: Some("2027-01-01T00:00:00+00:00".into()),
            ..Default::default()
        };
        view.failover = Some(Versioned { value: request, revision: 4 });
        insta::assert_snapshot!(members(&view, "demo", None, true, Format::Pretty).unwrap(), @r#"
        + Cluster: demo (7710284044615527583) -----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-------------------+-------------------+
        | Member | Host            | Role    | State     | TL | Receive LSN | Lag | Replay LSN | Lag | Pending restart | Pending restart reason    | Scheduled restart | Tags              |
        +--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-------------------+-------------------+
        | n0     | 127.0.0.1:15430 | Leader  | running   |  1 |             |     |            |     |                 |                           |                   |                   |
        +--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-------------------+-------------------+
        | n1     | db1:5432        | Replica | running   |    |     unknown |     |    unknown |     | *               | max_connections: 100->150 |                   | clonefrom: true   |
        |        |                 |         |           |    |             |     |            |     |                 |                           |                   | nofailover: true  |
        +--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-------------------+-------------------+
        | n2     | 127.0.0.1:15432 | Replica | streaming |  1 |   0/4C4B400 |   4 |  0/4B571C0 |   5 |                 |                           |                   | replicatefrom: n1 |
        +--------+-----------------+---------+-----------+----+-------------+-----+------------+-----+-----------------+---------------------------+-------------------+-------------------+
         Maintenance mode: on
         Switchover scheduled at: 2027-01-01T00:00:00+00:00
                            from: n0
                              to: n1
        "#);
    }

    #[test]
    fn rows_for_programs() {
        let view = sample();
        insta::assert_snapshot!(members(&view, "demo", None, false, Format::Json).unwrap(), @r#"[{"Cluster":"demo","Member":"n0","Host":"127.0.0.1:15430","Role":"Leader","State":"running","TL":1},{"Cluster":"demo","Member":"n1","Host":"127.0.0.1:15431","Role":"Sync Standby","State":"streaming","TL":1,"Receive LSN":"0/504BEA8","Receive Lag":0,"Replay LSN":"0/504BEA8","Replay Lag":0},{"Cluster":"demo","Member":"n2","Host":"127.0.0.1:15432","Role":"Replica","State":"streaming","TL":1,"Receive LSN":"0/4C4B400","Receive Lag":4,"Replay LSN":"0/4B571C0","Replay Lag":5,"Tags":{"replicatefrom":"n1"}}]"#);
        insta::assert_snapshot!(members(&view, "demo", None, false, Format::Tsv).unwrap().replace('\t', "|"), @r#"
        Cluster|Member|Host|Role|State|TL|Receive LSN|Receive Lag|Replay LSN|Replay Lag|Tags
        demo|n0|127.0.0.1:15430|Leader|running|1|||||
        demo|n1|127.0.0.1:15431|Sync Standby|streaming|1|0/504BEA8|0|0/504BEA8|0|
        demo|n2|127.0.0.1:15432|Replica|streaming|1|0/4C4B400|4|0/4B571C0|5|{replicatefrom: n1}
        "#);
        insta::assert_snapshot!(members(&view, "demo", None, false, Format::Yaml).unwrap(), @r#"
        - Cluster: demo
          Member: n0
          Host: 127.0.0.1:15430
          Role: Leader
          State: running
          TL: 1
        - Cluster: demo
          Member: n1
          Host: 127.0.0.1:15431
          Role: Sync Standby
          State: streaming
          TL: 1
          Receive LSN: 0/504BEA8
          Receive Lag: 0
          Replay LSN: 0/504BEA8
          Replay Lag: 0
        - Cluster: demo
          Member: n2
          Host: 127.0.0.1:15432
          Role: Replica
          State: streaming
          TL: 1
          Receive LSN: 0/4C4B400
          Receive Lag: 4
          Replay LSN: 0/4B571C0
          Replay Lag: 5
          Tags:
            replicatefrom: n1
        "#);
    }

    #[test]
    fn without_a_terminal_only_what_changed_is_told() {
        let drawn = |rows: &[(&str, &str)]| Drawn {
            text: "a table".to_owned(),
            rows: rows.iter().map(|(name, row)| ((*name).to_owned(), (*row).to_owned())).collect(),
        };
        let before = drawn(&[("n1", "Leader, running"), ("n2", "Replica, streaming"), ("n3", "Replica, streaming")]);
        let after = drawn(&[("n1", "Replica, stopping"), ("n2", "Leader, running"), ("n4", "Replica, starting")]);
        let told = changes(&before, &after);
        let told: Vec<&str> = told.lines().map(|line| line.split_once(" n").unwrap().1).collect();
        assert_eq!(
            told,
            [
                "3: Replica, streaming -> gone",
                "1: Leader, running -> Replica, stopping",
                "2: Replica, streaming -> Leader, running",
                "4: Replica, starting"
            ]
        );
        assert_eq!(changes(&after, &after), "");
        let error = Drawn { text: "Error: etcd does not answer\n".to_owned(), rows: Vec::new() };
        assert!(changes(&after, &error).ends_with("Error: etcd does not answer\n"));
    }

    #[test]
    fn the_topology_indents() {
        insta::assert_snapshot!(members(&sample(), "demo", None, false, Format::Topology).unwrap(), @r#"
        + Cluster: demo (7710284044615527583) ----+-----------+----+-------------+-----+------------+-----+---------------------+
        | Member | Host            | Role         | State     | TL | Receive LSN | Lag | Replay LSN | Lag | Tags                |
        +--------+-----------------+--------------+-----------+----+-------------+-----+------------+-----+---------------------+
        | n0     | 127.0.0.1:15430 | Leader       | running   |  1 |             |     |            |     |                     |
        | + n1   | 127.0.0.1:15431 | Sync Standby | streaming |  1 |   0/504BEA8 |   0 |  0/504BEA8 |   0 |                     |
        |   + n2 | 127.0.0.1:15432 | Replica      | streaming |  1 |   0/4C4B400 |   4 |  0/4B571C0 |   5 | {replicatefrom: n1} |
        +--------+-----------------+--------------+-----------+----+-------------+-----+------------+-----+---------------------+
        "#);
    }
}
