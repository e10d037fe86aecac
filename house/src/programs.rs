//! Programs are started in few places, each of which sees to what becomes of them; every other file asks one of those.

use crate::source;
use std::collections::BTreeSet;
use std::path::Path;

/// Where `Command::new` may stand in arbiter/src, and why there.
const MAY: [(&str, &str); 7] = [
    ("ground/program.rs", "commands of the node's file: bounded, heard, ended with their group"),
    ("postgres/mod.rs", "PostgreSQL's programs: `Programs::command` with a clean environment, `run` to their end"),
    ("postgres/postmaster.rs", "the server, which outlives the arbiter"),
    ("duties/demote_cluster.rs", "archive_command, by the shell as the server itself would run it"),
    ("cli/adopt/daemons.rs", "systemctl, or the daemons themselves where no unit runs them: they outlive the operator's command"),
    ("cli/edit_config.rs", "the operator's editor, at the operator's terminal"),
    ("cli/validate.rs", "`postgres --describe-config`, asked without a runtime"),
];

/// Files that start a program and may not, and rows that no file needs any more.
pub fn faults(arbiter: &Path, files: &[std::path::PathBuf]) -> std::io::Result<Vec<String>> {
    let mut starts = BTreeSet::new();
    for file in files {
        if source::code(&std::fs::read_to_string(arbiter.join(file))?).contains("Command::new(") {
            starts.insert(file.display().to_string());
        }
    }
    Ok(judged(&starts, &MAY.map(|(file, _)| file)))
}

fn judged(starts: &BTreeSet<String>, may: &[&str]) -> Vec<String> {
    let more = starts.iter().filter(|file| !may.contains(&file.as_str()));
    let more = more.map(|file| format!("arbiter/src/{file} starts a program: ground/program.rs and postgres/mod.rs are there for that"));
    let less = may
        .iter()
        .filter(|file| !starts.contains(**file))
        .map(|file| format!("arbiter/src/{file} starts no program: take its row out of house/src/programs.rs"));
    more.chain(less).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_may_start_programs() {
        let starts = |files: &[&str]| files.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        for (found, faults) in [(&["a"][..], 0), (&["a", "b"], 1), (&[], 1), (&["b"], 2)] {
            assert_eq!(judged(&starts(found), &["a"]).len(), faults, "{found:?}");
        }
    }
}
