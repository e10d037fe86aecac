//! `tenure completion SHELL` and `tenure man`: made from the commands themselves, so that they can't lag behind.

use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;

/// Print the completion script of a shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// Print the manual page, or write one page for each command into a directory.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Where to write `tenure.1`, `tenure-list.1` and so on; the page of `tenure` goes to standard output without it.
    pub directory: Option<PathBuf>,
}

/// Prints the script.
pub fn run(args: &Args, mut command: clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tenure", &mut script);
    if args.shell == clap_complete::Shell::Bash {
        script.extend_from_slice(MEMBERS_IN_BASH.as_bytes());
    }
    Ok(std::io::stdout().lock().write_all(&script)?)
}

/// Names of members, asked of the cluster when they are wanted. What is made from the commands stays the first word.
const MEMBERS_IN_BASH: &str = r#"
_tenure_members() {
    tenure list --format tsv 2>/dev/null | awk -F '\t' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "Member") column = i; next } { print $column }'
}

_tenure_and_members() {
    _tenure "$@"
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
    case "$before" in
        --leader|--primary|--candidate|--member|-m)
            COMPREPLY=($(compgen -W "$(_tenure_members)" -- "$word")); return ;;
    esac
    case " ${COMP_WORDS[*]:0:COMP_CWORD} " in
        *" restart "*|*" reload "*|*" reinit "*|*" flush "*|*" version "*|*" explain "*)
            [[ "$word" == -* ]] || COMPREPLY+=($(compgen -W "$(_tenure_members)" -- "$word")) ;;
    esac
}

complete -F _tenure_and_members -o bashdefault -o default tenure
"#;

/// What every page says besides its options.
const EXIT_STATUS: &str = ".SH EXIT STATUS\n\
    .TP\n0\nIt was done; of check: no fault is critical.\n\
    .TP\n1\nIt was refused or failed, and standard error says why and what to do; of check: a fault is critical.\n\
    .TP\n2\nThe command line was not understood.\n";

/// What people type, for each command: without an example an option explains nothing.
const EXAMPLES: [(&str, &[&str]); 15] = [
    ("tenure", &["tenure arbiter /etc/tenure/node.yml", "tenure -c /etc/tenure/node.yml list", "tenure check"]),
    ("arbiter", &["tenure arbiter /etc/tenure/node.yml"]),
    ("list", &["tenure list", "tenure list --extended --format json", "tenure list -W"]),
    ("check", &["tenure check", "tenure check --format json"]),
    ("explain", &["tenure explain", "tenure explain n2 -n 20"]),
    (
        "switchover",
        &["tenure switchover --candidate n2", "tenure switchover --leader n1 --candidate n2 --scheduled 2030-01-01T03:00+00:00 --force"],
    ),
    ("failover", &["tenure failover --candidate n2 --force"]),
    ("restart", &["tenure restart CLUSTER n2", "tenure restart CLUSTER --pending --force"]),
    ("reinit", &["tenure reinit CLUSTER n3 --wait"]),
    ("pause", &["tenure pause --wait"]),
    ("resume", &["tenure resume --wait"]),
    ("edit-config", &["tenure edit-config -s ttl=20 -p work_mem=8MB", "tenure edit-config --apply change.yml --force"]),
    ("query", &["tenure query -r replica -C 'SELECT pg_last_wal_replay_lsn()'"]),
    ("flush", &["tenure flush CLUSTER switchover", "tenure flush CLUSTER n2 restart"]),
    ("completion", &["tenure completion bash > /etc/bash_completion.d/tenure"]),
];

/// One page: what clap makes of the command, with the exit status and examples.
fn page(command: clap::Command, write: &mut impl Write) -> std::io::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name()).trim_start_matches("tenure-").to_owned();
    clap_mangen::Man::new(command).render(write)?;
    write.write_all(EXIT_STATUS.as_bytes())?;
    if let Some((_, lines)) = EXAMPLES.iter().find(|(known, _)| *known == name) {
        write.write_all(b".SH EXAMPLES\n")?;
        for line in *lines {
            write.write_all(format!(".PP\n{}\n", line.replace('-', "\\-")).as_bytes())?;
        }
    }
    Ok(())
}

/// Prints or writes the pages.
pub fn man(args: &ManArgs, command: clap::Command) -> Result<()> {
    match &args.directory {
        Some(directory) => {
            let write = || {
                std::fs::create_dir_all(directory)?;
                let mut command = command.disable_help_subcommand(true);
                command.build();
                for part in command.get_subcommands().filter(|part| !part.is_hide_set()) {
                    let name = format!("tenure-{}", part.get_name());
                    let part = part.clone().display_name(name.clone());
                    page(part, &mut std::fs::File::create(directory.join(format!("{name}.1")))?)?;
                }
                page(command, &mut std::fs::File::create(directory.join("tenure.1"))?)
            };
            write().with_context(|| format!("write the manual to {}", directory.display()))
        }
        None => Ok(page(command, &mut std::io::stdout().lock())?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_page_has_its_exit_status_and_the_examples_are_understood() {
        let room = tempfile::tempdir().unwrap();
        man(&ManArgs { directory: Some(room.path().to_owned()) }, crate::command_line()).unwrap();
        let mut pages = 0;
        for page in std::fs::read_dir(room.path()).unwrap() {
            let text = std::fs::read_to_string(page.unwrap().path()).unwrap();
            assert!(text.contains(".SH EXIT STATUS") && text.contains(".SH SYNOPSIS"), "{text}");
            pages += 1;
        }
        assert!(pages > 20, "{pages} pages");
        for line in EXAMPLES.iter().flat_map(|(_, lines)| *lines) {
            let line = line.split(" > ").next().unwrap().replace("'SELECT pg_last_wal_replay_lsn()'", "SELECT");
            crate::command_line().try_get_matches_from(line.split_whitespace()).unwrap_or_else(|why| panic!("{line}: {why}"));
        }
        let text = std::fs::read_to_string(room.path().join("tenure-restart.1")).unwrap();
        assert!(text.contains(".SH EXAMPLES"), "{text}");
    }
}
