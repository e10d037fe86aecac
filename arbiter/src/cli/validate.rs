//! `tenure validate`: would this file start a node, and found a cluster?

use super::context::{print, refuse_with};
use crate::config::{NodeConfig, ReplicaMethod, ServerRole};
use crate::ground::program::CommandLine;
use anyhow::Result;
use cluster::config::DynamicConfig;
use cluster::parameter::Catalogue;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Check a node's configuration file.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file, or a directory of *.yml files.
    pub file: PathBuf,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    let config = NodeConfig::load(&args.file, std::env::vars())
        .map_err(|errors| refuse_with(errors.to_string(), "correct these lines, then check again"))?;
    let dynamic = DynamicConfig(config.bootstrap.dcs.clone());
    let mut wrong: Vec<String> = dynamic.faults().iter().map(|fault| format!("bootstrap.dcs: {fault}")).collect();
    wrong.extend(missing_programs(&config));
    let mut notes = config.not_served.clone();
    notes.extend(dynamic.notes().into_iter().map(|note| format!("bootstrap.dcs: {note}")));
    match catalogue(&config) {
        Some(catalogue) => parameters(&config, &dynamic, &catalogue, &mut wrong, &mut notes),
        None => notes.push("postgres could not be asked which parameters it knows: their names were not checked".to_owned()),
    }
    for line in notes {
        print(format!("note: {line}"))?;
    }
    if !wrong.is_empty() {
        let lines: String = wrong.iter().map(|line| format!("\n  {line}")).collect();
        return Err(refuse_with(
            format!("cannot use the configuration {}:{lines}", args.file.display()),
            "correct these lines, then check again",
        ));
    }
    print(format!("{} is valid: member {} of {}", args.file.display(), config.name, config.scope))
}

/// What the node will run sooner or later and cannot.
pub fn missing_programs(config: &NodeConfig) -> Vec<String> {
    let postgres = &config.postgres;
    let mut needed = vec!["postgres", "pg_controldata"];
    needed.extend(config.founding_method().is_none().then_some("initdb"));
    needed.extend(postgres.create_replica_methods.contains(&ReplicaMethod::Basebackup).then_some("pg_basebackup"));
    let rewinds = postgres.use_pg_rewind.unwrap_or_else(|| DynamicConfig(config.bootstrap.dcs.clone()).use_pg_rewind());
    needed.extend(rewinds.then_some("pg_rewind"));
    let mut missing: Vec<String> = needed
        .into_iter()
        .filter(|name| !is_program(&postgres.bin_dir.join(name)))
        .map(|name| format!("postgresql.bin_dir: there is no program {}", postgres.bin_dir.join(name).display()))
        .collect();
    let callbacks = &postgres.callbacks;
    let mut lines: Vec<(String, &CommandLine)> = [
        ("postgresql.callbacks.on_start", &callbacks.on_start),
        ("postgresql.callbacks.on_stop", &callbacks.on_stop),
        ("postgresql.callbacks.on_restart", &callbacks.on_restart),
        ("postgresql.callbacks.on_reload", &callbacks.on_reload),
        ("postgresql.callbacks.on_role_change", &callbacks.on_role_change),
        ("postgresql.pre_promote", &postgres.pre_promote),
        ("postgresql.before_stop", &postgres.before_stop),
        ("bootstrap.post_bootstrap", &config.bootstrap.post_bootstrap),
    ]
    .into_iter()
    .filter_map(|(key, line)| Some((key.to_owned(), line.as_ref()?)))
    .collect();
    lines.extend(config.bootstrap.method.iter().map(|method| (format!("bootstrap.{}.command", method.command.name), &method.command.line)));
    lines.extend(postgres.create_replica_methods.iter().filter_map(|method| match method {
        ReplicaMethod::Basebackup => None,
        ReplicaMethod::Command(command) => Some((format!("postgresql.{}.command", command.name), &command.line)),
    }));
    missing.extend(lines.into_iter().filter_map(|(key, line)| {
        let program = line.program();
        (!is_found(program))
            .then(|| format!("{key}: there is no program {program}{}", if program.contains('/') { "" } else { " on the PATH" }))
    }));
    missing
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn is_found(program: &str) -> bool {
    if program.contains('/') {
        return is_program(Path::new(program));
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| is_program(&directory.join(program)))
}

/// What this node's PostgreSQL knows of itself; without the parameters of libraries.
fn catalogue(config: &NodeConfig) -> Option<Catalogue> {
    let said = Command::new(config.postgres.bin_dir.join("postgres")).arg("--describe-config").output().ok()?;
    let catalogue = Catalogue::described(&String::from_utf8_lossy(&said.stdout));
    (said.status.success() && !catalogue.parameters.is_empty()).then_some(catalogue)
}

fn parameters(config: &NodeConfig, dynamic: &DynamicConfig, catalogue: &Catalogue, wrong: &mut Vec<String>, notes: &mut Vec<String>) {
    let postgres = &config.postgres;
    let sections = std::iter::once("parameters".to_owned()).chain(ServerRole::ALL.map(|role| format!("parameters_{role}")));
    let mut given: Vec<(String, BTreeMap<String, String>)> = Vec::new();
    for section in sections {
        let values = dynamic.postgresql().and_then(|map| map.get(&section)).and_then(serde_json::Value::as_object);
        given.push((format!("bootstrap.dcs.postgresql.{section}"), values.map(crate::postgres::conf::parameters_of).unwrap_or_default()));
    }
    given.push(("postgresql.parameters".to_owned(), postgres.parameters.clone()));
    given.extend(ServerRole::ALL.map(|role| (format!("postgresql.parameters_{role}"), postgres.parameters_by_role.of(role).clone())));
    for (section, values) in given {
        for name in values.keys().filter(|name| catalogue.get(name).is_none() && !name.contains('.')) {
            let near = catalogue.parameters.keys().min_by_key(|known| strsim::damerau_levenshtein(name, known));
            match near.filter(|near| strsim::damerau_levenshtein(name, near) <= 1 + name.len() / 6) {
                Some(near) => wrong.push(format!("{section}.{name}: the server knows no such parameter; did you mean {near}?")),
                // What is for developers is not told by the program either.
                None => notes.push(format!("{section}.{name}: the server does not tell of such a parameter")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_those_of_libraries_are_let_be() {
        let room = tempfile::tempdir().unwrap();
        std::fs::write(room.path().join("postgres"), "").unwrap();
        let file = room.path().join("node.yml");
        let text = "{scope: s, name: n1, restapi: {listen: '127.0.0.1:1'}, etcd3: {host: 'e:1'}, bootstrap: {dcs: {postgresql: {parameters: \
             {wrk_mem: 4MB}}}}, postgresql: {listen: '127.0.0.1:2', data_dir: /d, bin_dir: ROOM, callbacks: {on_start: /nowhere/x}, \
             parameters: {shared_bufers: 1, citus.x: 1, zero_damaged_pages: 'on', work_mem: 1MB}}}";
        std::fs::write(&file, text.replace("ROOM", &room.path().display().to_string())).unwrap();
        let config = NodeConfig::load(&file, std::iter::empty()).unwrap();
        let catalogue = Catalogue::described("work_mem\tuser\tx\tINTEGER\nshared_buffers\tpostmaster\tx\tINTEGER\n");
        let (mut wrong, mut notes) = (missing_programs(&config), Vec::new());
        parameters(&config, &DynamicConfig(config.bootstrap.dcs.clone()), &catalogue, &mut wrong, &mut notes);
        let bin = room.path().display();
        let programs = ["postgres", "pg_controldata", "initdb", "pg_basebackup", "pg_rewind"];
        let mut expected: Vec<String> =
            programs.iter().map(|name| format!("postgresql.bin_dir: there is no program {bin}/{name}")).collect();
        expected.extend([
            "postgresql.callbacks.on_start: there is no program /nowhere/x".to_owned(),
            "bootstrap.dcs.postgresql.parameters.wrk_mem: the server knows no such parameter; did you mean work_mem?".to_owned(),
            "postgresql.parameters.shared_bufers: the server knows no such parameter; did you mean shared_buffers?".to_owned(),
        ]);
        assert_eq!(wrong, expected);
        assert_eq!(notes, ["postgresql.parameters.zero_damaged_pages: the server does not tell of such a parameter"]);
    }
}
