//! `tenure edit-config`: change the dynamic configuration, with a diff and a guarded write.

use super::context::{Tool, confirm, interactive, print, refuse, refuse_with};
use super::groups::{self, Part};
use super::list::yaml;
use anyhow::{Context, Result};
use cluster::admission;
use cluster::config::{DynamicConfig, merge};
use cluster::parameter::Catalogue;
use cluster::view::ClusterView;
use dcs::{Dcs, Error};
use serde_json::{Map, Value};
use std::io::{Read, Write};

/// The leader is asked about parameters for at most this long: without its answer the change is made all the same.
const ASK_BOUND: std::time::Duration = std::time::Duration::from_secs(2);

/// Edit the dynamic configuration.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Do not show the changes.
    #[arg(short, long)]
    pub quiet: bool,
    /// Set KEY (dotted) to VALUE (YAML); `null` removes it. May be given several times.
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// Set a parameter of PostgreSQL: as -s postgresql.parameters.KEY=VALUE.
    #[arg(short, long, value_name = "KEY=VALUE")]
    pub pg: Vec<String>,
    /// Merge a YAML file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub apply: Option<String>,
    /// Replace everything with a YAML file; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub replace: Option<String>,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let group = args.group.or(tool.group());
    let Part { target, view } = groups::one(tool, args.cluster.as_deref(), group, |_| true, "a change of the configuration").await?;
    let Some(config) = &view.config else {
        return Err(refuse(format!("The config key does not exist in the cluster {}", target.scope)));
    };
    let before = &config.value.0;
    let after = DynamicConfig(edited(before, args, target.scope.as_str())?);
    if after.0 == *before {
        return if args.quiet { Ok(()) } else { print("Not changed") };
    }
    if !args.quiet {
        print(diff(&yaml(before)?, &yaml(&after.0)?))?;
    }
    if let Some(fault) = after.newly_at_fault(&config.value) {
        return Err(refuse_with(fault.to_string(), "nothing was written; docs/compatibility.md lists the settings"));
    }
    for note in after.notes().iter().filter(|note| !config.value.notes().contains(note)) {
        print(format!("note: {note}"))?;
    }
    for warning in refused_parameters(tool, &view, &config.value, &after).await {
        print(format!("warning: {warning}"))?;
    }
    let from_standard_input = [&args.apply, &args.replace].into_iter().flatten().any(|file| file == "-");
    if !args.force && (from_standard_input || !interactive()) {
        return Err(refuse_with("nothing was written: standard input can't be asked to confirm", "Use --force option to apply changes"));
    }
    if !args.force && !confirm("Apply these changes?")? {
        return print("Not applied");
    }
    match Box::pin(target.etcd.write_config(&after, ClusterView::revision_of(&view.config))).await {
        Ok(_) => print("Configuration changed"),
        Err(Error::Lost(_)) => {
            Err(refuse_with("Config modification aborted due to concurrent changes", "look at `tenure show-config`, then edit again"))
        }
        Err(error) => Err(error.into()),
    }
}

/// What will not count of the parameters that change, by what the leader's server says of them; nothing where it can't be asked.
async fn refused_parameters(tool: &Tool, view: &ClusterView, before: &DynamicConfig, after: &DynamicConfig) -> Vec<String> {
    let names = admission::changed_names(before, after);
    let leader = view.leader.as_ref().and_then(|leader| view.members.get(&leader.name)).filter(|entry| entry.member.tenure.is_some());
    let Some(leader) = leader.filter(|_| !names.is_empty()) else { return Vec::new() };
    let asked = tool.caller.ask(&leader.member.api_url, "GET", &format!("parameters?names={}", names.join(",")), None, ASK_BOUND).await;
    match asked {
        Ok((200, text)) => {
            let parameters = serde_json::from_str(&text).unwrap_or_default();
            admission::warnings(before, after, &Catalogue { parameters, complete: true })
        }
        _ => Vec::new(),
    }
}

fn edited(before: &Map<String, Value>, args: &Args, cluster: &str) -> Result<Map<String, Value>> {
    let mut after = before.clone();
    if let Some(file) = &args.replace {
        after = read_yaml(file)?;
    }
    if let Some(file) = &args.apply {
        merge(&mut after, &read_yaml(file)?);
    }
    for pair in &args.set {
        set(&mut after, pair.trim())?;
    }
    for pair in &args.pg {
        set(&mut after, &format!("postgresql.parameters.{}", pair.trim()))?;
    }
    if args.replace.is_none() && args.apply.is_none() && args.set.is_empty() && args.pg.is_empty() {
        after = in_editor(before, cluster)?;
    }
    Ok(after)
}

fn read_yaml(file: &str) -> Result<Map<String, Value>> {
    let text = if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("read standard input")?;
        text
    } else {
        std::fs::read_to_string(file).with_context(|| format!("read {file}"))?
    };
    parse(&text, if file == "-" { "standard input" } else { file })
}

fn parse(text: &str, from: &str) -> Result<Map<String, Value>> {
    match serde_saphyr::from_str(text).with_context(|| format!("understand {from}"))? {
        Value::Object(map) => Ok(map),
        _ => Err(refuse(format!("{from} should be a map of settings"))),
    }
}

/// `a.b=value`: the value is YAML; null or nothing removes. Below `postgresql.parameters` the rest is one
/// name, as extensions have dots in theirs.
fn set(config: &mut Map<String, Value>, pair: &str) -> Result<()> {
    let (key, value) = pair.split_once('=').ok_or_else(|| refuse_with(format!("Invalid parameter setting {pair}"), "write KEY=VALUE"))?;
    let value: Value =
        if value.trim().is_empty() { Value::Null } else { serde_saphyr::from_str(value).with_context(|| format!("understand {value}"))? };
    let path: Vec<&str> = match key.trim().strip_prefix("postgresql.parameters.") {
        Some(parameter) => vec!["postgresql", "parameters", parameter],
        None => key.trim().split('.').collect(),
    };
    put(config, &path, value);
    Ok(())
}

fn put(config: &mut Map<String, Value>, path: &[&str], value: Value) {
    match path {
        [] => {}
        [last] if value.is_null() => {
            config.remove(*last);
        }
        [last] => {
            config.insert((*last).to_owned(), value);
        }
        [first, rest @ ..] => {
            let removes = value.is_null();
            let below = config.entry(*first).or_insert_with(|| Value::Object(Map::new()));
            if !below.is_object() {
                *below = Value::Object(Map::new());
            }
            if let Value::Object(below) = below {
                put(below, rest, value);
                if removes && below.is_empty() {
                    config.remove(*first);
                }
            }
        }
    }
}

/// Opens `$EDITOR`, `editor` or `vi` on the configuration.
fn in_editor(before: &Map<String, Value>, cluster: &str) -> Result<Map<String, Value>> {
    if !interactive() {
        return Err(refuse_with(
            "nothing to change is given, and an editor needs a terminal",
            "use -s KEY=VALUE, -p KEY=VALUE, --apply FILE or --replace FILE",
        ));
    }
    let path = std::env::temp_dir().join(format!("{cluster}-config-{}.yaml", std::process::id()));
    // create_new: never through a link that somebody put there.
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).open(&path).with_context(|| format!("create {}", path.display()))?;
    file.write_all(yaml(before)?.as_bytes())?;
    drop(file);
    let named = ["EDITOR", "VISUAL"].into_iter().find_map(|variable| std::env::var(variable).ok().filter(|editor| !editor.is_empty()));
    let editors = named.map_or_else(|| vec!["editor".to_owned(), "vi".to_owned()], |editor| vec![editor]);
    let opened = editors.iter().find_map(|editor| {
        let mut words = editor.split_whitespace();
        std::process::Command::new(words.next()?).args(words).arg(&path).status().ok()
    });
    let text = std::fs::read_to_string(&path);
    std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
    match opened {
        Some(status) if status.success() => parse(&text.context("read what was edited")?, "what was edited"),
        Some(status) => Err(refuse(format!("the editor ended with {status}; nothing was written"))),
        None => {
            Err(refuse_with("EDITOR environment variable is not set. editor or vi are not available", "set EDITOR, or use -s KEY=VALUE"))
        }
    }
}

/// The changes line by line, `-` before what goes and `+` before what comes. Both texts have sorted keys, so
/// the longest common subsequence of lines reads well; a configuration is small enough for its table.
pub fn diff(before: &str, after: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let mut common = vec![vec![0usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] { common[i + 1][j + 1] + 1 } else { common[i + 1][j].max(common[i][j + 1]) };
        }
    }
    let mut text = String::from("--- \n+++ \n");
    let (mut i, mut j) = (0, 0);
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            text.push_str(&format!(" {}\n", old[i]));
            (i, j) = (i + 1, j + 1);
        } else if i < old.len() && (j == new.len() || common[i + 1][j] >= common[i][j + 1]) {
            text.push_str(&format!("-{}\n", old[i]));
            i += 1;
        } else {
            text.push_str(&format!("+{}\n", new[j]));
            j += 1;
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn map(value: Value) -> Map<String, Value> {
        value.as_object().cloned().unwrap()
    }

    #[test]
    fn settings_are_put_merged_and_removed() {
        let mut config = map(json!({"ttl": 30, "postgresql": {"parameters": {"work_mem": "4MB"}}}));
        for pair in [
            "ttl=20",
            "postgresql.use_pg_rewind=true",
            "postgresql.parameters.pg_stat_statements.max=100",
            "maximum_lag_on_failover=",
            "a.b.c=x",
        ] {
            set(&mut config, pair).unwrap();
        }
        let expected = json!({"ttl": 20, "a": {"b": {"c": "x"}}, "postgresql": {"use_pg_rewind": true, "parameters": {"work_mem": "4MB", "pg_stat_statements.max": 100}}});
        assert_eq!(Value::Object(config.clone()), expected);
        set(&mut config, "a.b.c=null").unwrap();
        assert!(!config.contains_key("a"), "empty sections go with their last key");
        merge(&mut config, &map(json!({"ttl": null, "postgresql": {"parameters": {"work_mem": null}}, "pause": true})));
        assert_eq!(
            Value::Object(config),
            json!({"pause": true, "postgresql": {"use_pg_rewind": true, "parameters": {"pg_stat_statements.max": 100}}})
        );
        assert!(set(&mut Map::new(), "novalue").is_err());
    }

    #[test]
    fn a_diff_shows_what_goes_and_what_comes() {
        insta::assert_snapshot!(diff("loop_wait: 10\nttl: 30\n", "loop_wait: 10\npause: true\nttl: 20\n"), @r#"
        --- 
        +++ 
         loop_wait: 10
        -ttl: 30
        +pause: true
        +ttl: 20
        "#);
    }
}
