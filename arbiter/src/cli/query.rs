//! `tenure query`: run SQL on a member, by its role or its name.

use super::context::{RoleFilter, Tool, print, refuse_with};
use super::groups;
use super::list::{Format, yaml};
use super::table::{self, Column};
use anyhow::{Context, Result};
use cluster::host::Address;
use cluster::name::MemberName;
use cluster::view::ClusterView;
use serde_json::{Map, Value, json};
use std::io::Read;
use std::time::Duration;
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Longest wait for a connection.
const CONNECT_BOUND: Duration = Duration::from_secs(5);
/// The pause of `-W`, as people know it.
const PAUSE_S: f64 = 2.0;

/// Run SQL on a member, the leader (of Citus: the coordinator's) unless told otherwise.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Output format.
    #[arg(long, value_enum, default_value = "tsv")]
    pub format: Format,
    /// A file with the SQL; `-` is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    pub file: Option<String>,
    /// The SQL.
    #[arg(short = 'C', long, value_name = "SQL")]
    pub command: Option<String>,
    /// Ask for the password.
    #[arg(long)]
    pub password: bool,
    /// The user; the superuser of the configuration file where it names one.
    #[arg(short = 'U', long)]
    pub username: Option<String>,
    /// The database.
    #[arg(long)]
    pub dbname: Option<String>,
    /// Show again every 2 seconds.
    #[arg(short = 'W')]
    pub follow: bool,
    /// Show again every so many seconds.
    #[arg(short, long, value_name = "SECONDS")]
    pub watch: Option<f64>,
    /// Any member with this role.
    #[arg(short, long, value_enum, conflicts_with = "member")]
    pub role: Option<RoleFilter>,
    /// This member.
    #[arg(short, long)]
    pub member: Option<String>,
    /// What stands between the columns of tsv.
    #[arg(long, default_value = "\t")]
    pub delimiter: String,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let sql = match (&args.command, args.file.as_deref()) {
        (Some(sql), _) => sql.clone(),
        (None, Some("-")) => {
            let mut sql = String::new();
            std::io::stdin().read_to_string(&mut sql).context("read standard input")?;
            sql
        }
        (None, Some(file)) => {
            std::fs::read_to_string(file).map_err(|why| refuse_with(format!("{file} can't be read: {why}"), "check the --file option"))?
        }
        (None, None) => return Err(refuse_with("You need to specify either --command or --file", "tenure query -C 'SELECT 1'")),
    };
    let mut config = credentials(tool, args)?;
    config.dbname(args.dbname.as_deref().unwrap_or("postgres")).application_name("tenure query").connect_timeout(CONNECT_BOUND);
    loop {
        // Read again each time: the leader may be another by then.
        let parts = groups::all(tool, args.cluster.as_deref(), args.group).await?;
        let found = parts.iter().find_map(|part| member(&part.view, args));
        let (name, address) = found.ok_or_else(|| refuse_with("Can not find a suitable member", "`tenure list` shows who there is"))?;
        let mut config = config.clone();
        config.host(&address.host).port(address.port);
        match ask(&config, &sql).await {
            Ok(results) => {
                for (columns, rows) in &results {
                    print(written(columns, rows, args)?)?;
                }
            }
            Err(why) if args.follow || args.watch.is_some() => print(format!("Error: {name} ({address}): {why:#}"))?,
            Err(why) => return Err(why.context(format!("ask {name} ({address})"))),
        }
        let pause = args.watch.or(args.follow.then_some(PAUSE_S)).filter(|seconds| seconds.is_finite() && *seconds > 0.0);
        match pause {
            Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
            None => return Ok(()),
        }
    }
}

fn credentials(tool: &Tool, args: &Args) -> Result<tokio_postgres::Config> {
    let mut config = tokio_postgres::Config::new();
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let configured = tool.superuser.as_ref();
    let user = args.username.clone().or_else(|| configured.map(|(user, _)| user.clone())).or_else(|| variable("PGUSER"));
    let user = user.ok_or_else(|| refuse_with("no user is named", "give -U USER, or a node's file (-c FILE)"))?;
    let own = configured.filter(|(name, _)| *name == user).and_then(|(_, password)| password.clone());
    if args.password {
        config.password(rpassword::prompt_password("Password: ").context("read the password")?);
    } else if let Some(password) = variable("PGPASSWORD") {
        config.password(password);
    } else if let Some(password) = own {
        config.password(password.reveal());
    }
    config.user(user);
    Ok(config)
}

fn member(view: &ClusterView, args: &Args) -> Option<(MemberName, Address)> {
    let role = args.role.unwrap_or(if args.member.is_some() { RoleFilter::Any } else { RoleFilter::Leader });
    let fits = |name: &MemberName| args.member.as_deref().is_none_or(|wished| wished == name.as_str()) && role.takes(view, name);
    let mut found = view.members.iter().filter(|(name, _)| fits(name));
    found.find_map(|(name, entry)| entry.member.address().map(|address| (name.clone(), address)))
}

/// Titles and cells of one result; an empty cell may be a null.
pub type Results = Vec<(Vec<String>, Vec<Vec<Option<String>>>)>;

/// Asks one server.
pub async fn ask(config: &tokio_postgres::Config, sql: &str) -> Result<Results> {
    let (client, connection) = tokio::time::timeout(CONNECT_BOUND, config.connect(NoTls)).await.context("no answer within 5 s")??;
    let talking = tokio::spawn(connection);
    let messages = client.simple_query(sql).await;
    talking.abort();
    let mut results = Results::new();
    for message in messages? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                results.push((columns.iter().map(|column| column.name().to_owned()).collect(), Vec::new()));
            }
            SimpleQueryMessage::Row(row) => {
                if let Some((_, rows)) = results.last_mut() {
                    rows.push((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect());
                }
            }
            _ => {}
        }
    }
    Ok(results)
}

fn written(columns: &[String], rows: &[Vec<Option<String>>], args: &Args) -> Result<String> {
    let object =
        |row: &Vec<Option<String>>| -> Map<String, Value> { columns.iter().cloned().zip(row.iter().map(|cell| json!(cell))).collect() };
    let cells: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|cell| cell.clone().unwrap_or_default()).collect()).collect();
    match args.format {
        Format::Json => Ok(serde_json::to_string(&rows.iter().map(object).collect::<Vec<_>>())?),
        Format::Yaml => yaml(&rows.iter().map(object).collect::<Vec<_>>()),
        Format::Tsv => {
            let lines = std::iter::once(columns.to_vec()).chain(cells).map(|line| line.join(&args.delimiter));
            Ok(lines.collect::<Vec<_>>().join("\n"))
        }
        Format::Pretty | Format::Topology => {
            let titles: Vec<Column<'_>> = columns.iter().map(|title| Column { title, right: false }).collect();
            Ok(table::pretty(None, &titles, &cells))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_written_in_every_format() {
        let columns = ["a", "b"].map(str::to_owned);
        let rows = [vec![Some("1".to_owned()), None]];
        let args = |format| Args {
            cluster: None,
            group: None,
            format,
            file: None,
            command: None,
            password: false,
            username: None,
            dbname: None,
            follow: false,
            watch: None,
            role: None,
            member: None,
            delimiter: ";".to_owned(),
        };
        for (format, expected) in [
            (Format::Tsv, "a;b\n1;"),
            (Format::Json, r#"[{"a":"1","b":null}]"#),
            (Format::Yaml, "- a: \"1\"\n  b: null\n"),
            (Format::Pretty, "+---+---+\n| a | b |\n+---+---+\n| 1 |   |\n+---+---+\n"),
        ] {
            assert_eq!(written(&columns, &rows, &args(format)).unwrap(), expected, "{format:?}");
        }
    }
}
