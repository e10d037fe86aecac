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
    let script = String::from_utf8(script).context("read the script that was made")?;
    let script = match args.shell {
        clap_complete::Shell::Bash => script + &with_members(MEMBERS_IN_BASH),
        clap_complete::Shell::Zsh => members_in_zsh(&script),
        clap_complete::Shell::Fish => script + &with_members(MEMBERS_IN_FISH),
        _ => script,
    };
    Ok(std::io::stdout().lock().write_all(script.as_bytes())?)
}

/// Names of members, asked of the cluster when they are wanted; one a line.
const MEMBERS: &str = r#"tenure list --format tsv 2>/dev/null | awk -F '\t' 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == "Member") column = i; next } { print $column }'"#;

fn with_members(script: &str) -> String {
    script.replace("MEMBERS", MEMBERS)
}

/// Where the script that was made takes any word and a member is meant, it takes members.
fn members_in_zsh(script: &str) -> String {
    let named = ["LEADER", "CANDIDATE", "MEMBER"].map(|value| format!(":{value}:_default'"));
    let meant = |line: &str| {
        named.iter().any(|end| line.contains(end))
            || line.starts_with(r"'*::words -- \[CLUSTER\] \[MEMBER")
            || line.starts_with(r"'*::words -- \[CLUSTER\] MEMBER:")
    };
    let mut lines: Vec<String> =
        script.lines().map(|line| if meant(line) { line.replace(":_default'", ":_tenure_members'") } else { line.to_owned() }).collect();
    // What is to be there before the script ends by calling itself.
    let last = lines.iter().rposition(|line| line.starts_with("if [ \"$funcstack")).unwrap_or(lines.len());
    lines.insert(last, with_members(MEMBERS_IN_ZSH));
    lines.join("\n") + "\n"
}

const MEMBERS_IN_ZSH: &str = r#"_tenure_members() {
    local -a members
    members=(${(f)"$(MEMBERS)"})
    compadd -X 'member' -a members
}
"#;

const MEMBERS_IN_FISH: &str = r#"
function __tenure_members
    MEMBERS
end
complete -c tenure -n '__fish_seen_subcommand_from switchover rebuild-keys' -l leader -l primary -x -a '(__tenure_members)'
complete -c tenure -n '__fish_seen_subcommand_from switchover failover' -l candidate -x -a '(__tenure_members)'
complete -c tenure -n '__fish_seen_subcommand_from dsn query' -s m -l member -x -a '(__tenure_members)'
complete -c tenure -n '__fish_seen_subcommand_from restart reload reinit replay flush version explain' -f -a '(__tenure_members)'
"#;

/// What is made from the commands stays the first word.
const MEMBERS_IN_BASH: &str = r#"
_tenure_members() {
    MEMBERS
}

_tenure_and_members() {
    _tenure "$@"
    local word="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}"
    case "$before" in
        --leader|--primary|--candidate|--member|-m)
            COMPREPLY=($(compgen -W "$(_tenure_members)" -- "$word")); return ;;
    esac
    case " ${COMP_WORDS[*]:0:COMP_CWORD} " in
        *" restart "*|*" reload "*|*" reinit "*|*" replay "*|*" flush "*|*" version "*|*" explain "*)
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
const EXAMPLES: [(&str, &[&str]); 18] = [
    (
        "init",
        &[
            "tenure init /etc/tenure/main.yml --scope main --etcd 10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379",
            "tenure init /etc/tenure/main.yml --like /tmp/of-the-first-node.yml --name n2 --address 10.0.0.2",
        ],
    ),
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
    ("replay", &["tenure replay CLUSTER n4 --until 2026-11-22T14:03:00+01:00", "tenure replay CLUSTER n4 --resume"]),
    ("restore", &["tenure restore --to 2026-11-22T14:03:00+01:00", "tenure restore --undo"]),
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
    fn every_shell_asks_for_members_where_they_are_meant() {
        let mut command = crate::command_line();
        let mut script = Vec::new();
        clap_complete::generate(clap_complete::Shell::Zsh, &mut command, "tenure", &mut script);
        let script = members_in_zsh(&String::from_utf8(script).unwrap());
        let asked = |words: &str| script.lines().filter(|line| line.starts_with(words) && line.contains(":_tenure_members'")).count();
        assert_eq!(asked("'--leader="), 2, "switchover, rebuild-keys");
        assert_eq!(asked("'--candidate="), 2, "switchover, failover");
        assert_eq!(asked("'--member="), 2, "dsn, query");
        assert_eq!(asked("'*::words"), 7, "restart, reload, reinit, replay, flush, version, explain");
        let (ours, call) = (script.find("_tenure_members() {").unwrap(), script.find("if [ \"$funcstack").unwrap());
        assert!(ours < call);
        for script in [MEMBERS_IN_BASH, MEMBERS_IN_ZSH, MEMBERS_IN_FISH] {
            assert_eq!(script.matches("MEMBERS").count(), 1, "{script}");
        }
    }

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
