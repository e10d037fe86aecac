//! What is done in few places only, each of which sees to what comes of it: every other file asks one of those.

use crate::source;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Something that stands in few files of arbiter/src.
struct Few {
    /// The code by which it is known.
    code: &'static str,
    /// What such a file does.
    does: &'static str,
    /// What a file does that wants it.
    ask: &'static str,
    /// Where it may stand, and why there.
    may: &'static [(&'static str, &'static str)],
}

const FEW: [Few; 2] = [
    Few {
        code: "Command::new(",
        does: "starts a program",
        ask: "ground/program.rs and postgres/mod.rs are there for that",
        may: &[
            ("ground/program.rs", "commands of the node's file: bounded, heard, ended with their group"),
            ("postgres/mod.rs", "PostgreSQL's programs: `Programs::command` with a clean environment, `run` to their end"),
            ("postgres/postmaster.rs", "the server, which outlives the arbiter"),
            ("postgres/aside.rs", "cp, which ends with the task that waits for it, where a copy by this process would go on in its thread"),
            ("postgres/archive.rs", "archive_command, by the shell as the server itself would run it"),
            ("cli/adopt/daemons.rs", "systemctl, or the daemons themselves where no unit runs them: they outlive the operator's command"),
            ("cli/edit_config.rs", "the operator's editor, at the operator's terminal"),
            ("cli/validate.rs", "`postgres --describe-config`, asked without a runtime"),
        ],
    },
    Few {
        code: ".write_main(",
        does: "writes postgresql.conf",
        ask: "node/configuration.rs is there for that, and node/settings.rs says what is in it",
        may: &[("node/configuration.rs", "what the server is set to, written by one hand")],
    },
];

/// Files that do what they may not, and rows that no file needs any more.
pub fn faults(arbiter: &Path, files: &[PathBuf]) -> std::io::Result<Vec<String>> {
    let mut codes = Vec::new();
    for file in files {
        codes.push((file.display().to_string(), source::code(&std::fs::read_to_string(arbiter.join(file))?)));
    }
    let found = |few: &Few| codes.iter().filter(|(_, code)| code.contains(few.code)).map(|(file, _)| file.clone()).collect();
    Ok(FEW.iter().flat_map(|few| judged(few, &found(few))).collect())
}

fn judged(few: &Few, found: &BTreeSet<String>) -> Vec<String> {
    let Few { does, ask, may, .. } = few;
    let more = found.iter().filter(|file| !may.iter().any(|(may, _)| may == file));
    let more = more.map(|file| format!("arbiter/src/{file} {does}: {ask}"));
    let less = may.iter().filter(|(file, _)| !found.contains(*file));
    let less = less.map(|(file, _)| format!("nothing in arbiter/src/{file} {does}: take its row out of house/src/places.rs"));
    more.chain(less).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_those_that_may() {
        let few = Few { code: "x(", does: "does it", ask: "a does", may: &[("a", "for a reason")] };
        let found = |files: &[&str]| files.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
        for (files, faults) in [(&["a"][..], 0), (&["a", "b"], 1), (&[], 1), (&["b"], 2)] {
            assert_eq!(judged(&few, &found(files)).len(), faults, "{files:?}");
        }
    }
}
