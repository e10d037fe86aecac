//! `tenure`: the arbiter beside every Postgres, and the operator's tool.

mod address;
mod citus;
mod cli;
mod config;
mod daemon;
mod duties;
#[cfg(test)]
mod fuzz_tests;
mod ground;
mod node;
mod poolers;
mod postgres;
mod rest;
mod upgrade;
mod upkeep;

use clap::{CommandFactory, FromArgMatches, Parser};
use cli::patronictl::Called;
use ground::logging;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// High availability for PostgreSQL, decided from inside the server.
#[derive(Debug, Parser)]
#[command(name = "tenure", version, propagate_version = false)]
struct Arguments {
    /// The tool's configuration: a node's file, or one with scope and etcd only.
    #[arg(short, long, global = true, env = "TENURE_CONFIG_FILE", value_name = "FILE")]
    config_file: Option<PathBuf>,
    /// Where etcd is: etcd3://HOST:PORT[,HOST:PORT]/NAMESPACE.
    #[arg(short, long, global = true, env = "DCS_URL", visible_alias = "dcs", value_name = "URL")]
    dcs_url: Option<String>,
    /// Do not check the certificates of members that speak HTTPS.
    #[arg(short = 'k', long, global = true)]
    insecure: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the arbiter of one node.
    Arbiter {
        /// The node's configuration: a YAML file, or a directory of *.yml files.
        config: PathBuf,
    },
    #[command(flatten)]
    Tool(Box<cli::Command>),
}

fn main() -> ExitCode {
    let called = Called::by(std::env::args_os().next().as_deref());
    let parsed = called.words(Arguments::command()).try_get_matches().and_then(|found| Arguments::from_arg_matches(&found));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(wrong) => return not_understood(&wrong),
    };
    let ended = run(arguments, called);
    logging::finish();
    match ended {
        Ok(code) => code,
        Err(error) => {
            // A reader that went away (`| head`) is no failure of ours to talk about.
            if let Some(io) = error.downcast_ref::<std::io::Error>()
                && io.kind() == std::io::ErrorKind::BrokenPipe
            {
                return ExitCode::SUCCESS;
            }
            let hint = error.downcast_ref::<cli::context::Refusal>().and_then(|refusal| refusal.hint.clone());
            say_error(&format!("{error:#}"), hint.as_deref());
            ExitCode::FAILURE
        }
    }
}

/// One style for every error: what is wrong, then what to do; the first word in red where a terminal shows it.
fn say_error(error: &str, hint: Option<&str>) {
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let (red, plain) = if colour { ("\x1b[1;31m", "\x1b[0m") } else { ("", "") };
    let hint = hint.map(|hint| format!("hint: {hint}\n")).unwrap_or_default();
    // Nobody is left to tell where standard error is closed.
    let _ = std::io::stderr().write_all(
        format!("{}{red}Error:{plain} {}", logging::error_prefix(), cli::context::harmless(&format!("{error}\n{hint}"))).as_bytes(),
    );
}

/// A command line that can't be read, or one that asks for help or the version.
fn not_understood(wrong: &clap::Error) -> ExitCode {
    let code = ExitCode::from(u8::try_from(wrong.exit_code()).unwrap_or(2));
    if !wrong.use_stderr() {
        let _ = wrong.print();
        return code;
    }
    let text = wrong.to_string();
    match text.strip_prefix("error: ") {
        Some(error) => say_error(error.trim_end(), None),
        // The help, where nothing was asked for.
        None => drop(wrong.print()),
    }
    code
}

/// The whole command line, for what is made from it.
pub(crate) fn command_line() -> clap::Command {
    Arguments::command()
}

fn run(arguments: Arguments, called: Called) -> anyhow::Result<ExitCode> {
    // One thread: the arbiter's memory budget is 12 MiB, and nothing here computes.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match arguments.command {
        Command::Arbiter { config } => runtime.block_on(daemon::begin::run(&config)),
        Command::Tool(command) => {
            logging::start(Some("warn"), false, None);
            let file = arguments.config_file.or_else(|| std::env::var_os("PATRONICTL_CONFIG_FILE").map(PathBuf::from));
            let source = cli::context::Source { file, dcs_url: arguments.dcs_url, insecure: arguments.insecure, called };
            runtime.block_on(cli::run(*command, &source, command_line)).map(|()| ExitCode::SUCCESS)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_and_their_options_do_not_clash() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_typing_error_names_the_nearest_and_ends_with_2() {
        for (line, words) in [
            ("lst", "'list'"),
            ("list --formt json", "'--format'"),
            ("list -f xml", "pretty, tsv, json, yaml"),
            ("restart -r king", "standby-leader"),
            ("reinit --wait=yes", "unexpected value"),
            ("query -m a -r replica -C x", "cannot be used with"),
            ("completion tcsh", "possible values"),
        ] {
            let error = Arguments::try_parse_from(std::iter::once("tenure").chain(line.split_whitespace())).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
            assert!(error.to_string().contains(words), "{line}: {error}");
        }
    }

    #[test]
    fn what_people_type_is_understood() {
        for line in [
            "-c f list",
            "list demo -e -t -f json -c f",
            "list -W",
            "list -w 2 --format table",
            "list -f yml",
            "topology -d etcd3://h:1/ns",
            "history -f tsv",
            "-k switchover demo --leader a --candidate b --force",
            "switchover --primary a --scheduled 2030-01-01T00:00+00:00",
            "failover --candidate b --force",
            "demote-cluster demo --host a,b --port 5432 --primary-slot-name s --restore-command x --force",
            "promote-cluster --force",
            "restart demo a b --force",
            "restart demo -r replica --pending --pg-version 15.3 --timeout 10 --any",
            "restart --rolling --force",
            "reload demo a",
            "reinit demo a --force --from-leader --wait",
            "pause --wait",
            "resume demo",
            "edit-config -s ttl=20 -p work_mem=4MB --force -q",
            "edit-config --apply - --force",
            "edit-config --replace f",
            "show-config demo",
            "flush demo switchover --force",
            "dsn -r replica",
            "dsn -m a",
            "version demo a",
            "init f --scope s --name n --address 10.0.0.1 --etcd e:2379 --data-dir /d --bin-dir /b --port 5433 --owner postgres",
            "init f --like g --name n2 --address 10.0.0.2",
            "validate f",
            "check -f json",
            "roles --format mermaid",
            "remove demo",
            "rebuild-keys demo --leader a --accept-loss --force",
            "upgrade demo --to 17 --check --format json",
            "upgrade demo --to 17 --in-place --force",
            "upgrade demo --to 17 --force",
            "upgrade --status -f json",
            "upgrade --switch --force",
            "upgrade --back",
            "upgrade --finish",
            "upgrade --cancel",
            "upgrade --compare",
            "query demo -C SELECT -r replica --format json -w 2",
            "query -f - -m a -U u --dbname d",
            "explain demo a -n 5 -f json",
            "completion bash",
            "man d",
            "explain --incident demo",
            "backup-done demo --at 2026-11-22T03:00:00Z --label full",
            "fleet list -f json",
            "fleet check",
            "arbiter f",
            "adopt --check f",
            "abandon f --start patroni --timeout 60",
            "leave f --force",
        ] {
            let words = std::iter::once("tenure").chain(line.split_whitespace());
            assert!(Arguments::try_parse_from(words).is_ok(), "{line}");
        }
        assert_eq!(Arguments::try_parse_from(["tenure", "list", "--nonsense"]).map(|_| ()).map_err(|error| error.exit_code()), Err(2));
    }
}
