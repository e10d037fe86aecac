//! The methods that make data directories: for replicas and for a new cluster, each with a section of its own.

use super::tree::At;
use crate::ground::program::CommandLine;
use crate::postgres::conf::parameters_of;
use serde_json::Value;
use std::collections::BTreeMap;

/// One of `postgresql.create_replica_methods`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReplicaMethod {
    /// pg_basebackup, built in.
    Basebackup,
    /// A command.
    Command(MethodCommand),
}

/// A method's section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MethodCommand {
    /// Its name.
    pub name: String,
    /// What is run.
    pub line: CommandLine,
    /// Our own arguments are not given.
    pub no_params: bool,
    /// It works without a running member.
    pub no_leader: bool,
    /// The data directory is not emptied before it.
    pub keep_data: bool,
    /// The other keys, for `--key=value`.
    pub options: Vec<(String, String)>,
}

/// `bootstrap.method` and its section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapMethod {
    /// What is run.
    pub command: MethodCommand,
    /// The recovery settings and signal files that the command leaves are used.
    pub keep_existing_recovery_conf: bool,
    /// Recovery settings for the first start; None: no recovery is asked for.
    pub recovery_conf: Option<BTreeMap<String, String>>,
}

impl ReplicaMethod {
    /// Its name in the list.
    pub fn name(&self) -> &str {
        match self {
            ReplicaMethod::Basebackup => "basebackup",
            ReplicaMethod::Command(command) => &command.name,
        }
    }
}

impl MethodCommand {
    /// `--key=value`: the section's own, then ours unless `no_params`.
    pub fn arguments(&self, ours: &[(String, String)]) -> Vec<String> {
        let ours = if self.no_params { &[] } else { ours };
        self.options.iter().chain(ours).map(|(name, value)| format!("--{name}={value}")).collect()
    }
}

/// `postgresql.create_replica_methods`, or its old name; pg_basebackup where there is none.
pub fn replica_methods(at: &At<'_>) -> Vec<ReplicaMethod> {
    let names = at.at("create_replica_methods").lines().or_else(|| at.at("create_replica_method").lines()).unwrap_or_default();
    if names.is_empty() {
        return vec![ReplicaMethod::Basebackup];
    }
    let method = |name: &String| match name.as_str() {
        "basebackup" => Some(ReplicaMethod::Basebackup),
        _ => command(&at.at(name), name, &["no_params", "no_leader", "keep_data"]).map(ReplicaMethod::Command),
    };
    names.iter().filter_map(method).collect()
}

/// `bootstrap.method`; None: initdb.
pub fn bootstrap_method(at: &At<'_>) -> Option<BootstrapMethod> {
    let name = at.at("method").text().filter(|name| name != "initdb")?;
    let section = at.at(&name);
    if section.value.is_none() {
        section.note("is missing: bootstrap.method names it, and its `command` makes the first data directory");
        return None;
    }
    let own = ["no_params", "keep_existing_recovery_conf", "recovery_conf"];
    let command = command(&section, &name, &own)?;
    let recovery = section.at("recovery_conf");
    let mut settings = recovery.map().map(parameters_of);
    if let Some(settings) = &mut settings {
        let action = settings.entry("recovery_target_action".to_owned()).or_insert_with(|| "promote".to_owned());
        if action != "promote" {
            let found = action.clone();
            recovery
                .at("recovery_target_action")
                .note(format!("found \"{found}\", expected promote: the cluster is founded when recovery ends by itself"));
        }
    }
    let keep_existing_recovery_conf = section.at("keep_existing_recovery_conf").flag().unwrap_or(false);
    Some(BootstrapMethod { command, keep_existing_recovery_conf, recovery_conf: settings })
}

/// A section; where it has no `command`, the method's name is one, as in Patroni.
fn command(section: &At<'_>, name: &str, own: &[&str]) -> Option<MethodCommand> {
    let text = section.at("command").text().or_else(|| section.at("command").value.is_none().then(|| name.to_owned()))?;
    let line = CommandLine::parse(&text).map_err(|why| section.at("command").note(why)).ok()?;
    // Patroni's documentation writes `no_leader: 1`.
    let flag = |key: &str| match section.at(key).value {
        Some(Value::Number(number)) => number.as_i64() != Some(0),
        _ => section.at(key).flag().unwrap_or(false),
    };
    // As Patroni does: the words for a replica's method are given to a script that takes our arguments.
    let told = |key: &str| matches!(key, "no_leader" | "keep_data") && !flag("no_params");
    let options = section.map().into_iter().flatten();
    let options = options.filter(|(key, _)| *key != "command" && (!own.contains(&key.as_str()) || told(key)));
    let options = options.filter_map(|(key, value)| Some((key.clone(), argument(value)?))).collect();
    Some(MethodCommand {
        name: name.to_owned(),
        line,
        no_params: flag("no_params"),
        no_leader: flag("no_leader"),
        keep_data: flag("keep_data"),
        options,
    })
}

/// A value as Patroni's scripts are given it: Python's words for true and false.
fn argument(value: &Value) -> Option<String> {
    match value {
        Value::Bool(true) => Some("True".to_owned()),
        Value::Bool(false) => Some("False".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}
