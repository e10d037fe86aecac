//! The name `patronictl`, a link to `tenure`: where the same word means something else there, the link takes patronictl's.

use clap::{Arg, Command};
use std::ffi::OsStr;
use std::path::Path;

/// By which name the tool was called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Called {
    /// `tenure`, or anything else.
    #[default]
    Tenure,
    /// `patronictl`.
    Patronictl,
}

impl Called {
    /// From the first word of the command line: a path, as the shell found it.
    pub fn by(first_word: Option<&OsStr>) -> Called {
        let name = first_word.and_then(|word| Path::new(word).file_name());
        if name == Some(OsStr::new("patronictl")) { Called::Patronictl } else { Called::Tenure }
    }

    /// The command line of this name.
    pub fn words(self, command: Command) -> Command {
        match self {
            Called::Tenure => command,
            Called::Patronictl => patronictl(command),
        }
    }
}

/// There the global options stand before the command only, so that their letters are free after it; and a command that
/// changes several members wants the cluster's name, which is always its first word.
fn patronictl(mut command: Command) -> Command {
    for option in ["config_file", "dcs_url", "insecure"] {
        command = command.mut_arg(option, |option| option.global(false));
    }
    for name in ["restart", "reload", "reinit"] {
        command = command.mut_subcommand(name, |command| command.mut_arg("words", |words| named(words).required(true)));
    }
    command
        .name("patronictl")
        .bin_name("patronictl")
        // The cluster, and what is to be discarded.
        .mut_subcommand("flush", |flush| flush.mut_arg("words", |words| named(words).num_args(2..)))
        .mut_subcommand("query", |query| {
            query.mut_arg("command", |sql| sql.short('c').short_alias('C')).mut_arg("dbname", |database| database.short('d'))
        })
}

fn named(words: Arg) -> Arg {
    words.help("CLUSTER [MEMBER...]")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arguments;
    use crate::Command as Word;
    use crate::cli;
    use clap::{CommandFactory, FromArgMatches};

    fn parsed(called: Called, line: &str) -> Result<Arguments, clap::Error> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        called.words(Arguments::command()).try_get_matches_from(words).and_then(|found| Arguments::from_arg_matches(&found))
    }

    #[test]
    fn the_name_is_the_last_part_of_the_first_word() {
        for (word, called) in [
            (Some("patronictl"), Called::Patronictl),
            (Some("/usr/local/bin/patronictl"), Called::Patronictl),
            (Some("./tenure"), Called::Tenure),
            (Some("/opt/patronictl/tenure"), Called::Tenure),
            (None, Called::Tenure),
        ] {
            assert_eq!(Called::by(word.map(OsStr::new)), called, "{word:?}");
        }
    }

    #[test]
    fn both_names_have_a_command_line_without_clashes() {
        for called in [Called::Tenure, Called::Patronictl] {
            called.words(Arguments::command()).debug_assert();
        }
    }

    #[test]
    fn c_and_d_of_query_are_the_statement_and_the_database_under_patronictl_only() {
        let arguments = parsed(Called::Patronictl, "-c f query demo -c SELECT -d citus -U u --format pretty").unwrap();
        assert_eq!(arguments.config_file, Some("f".into()));
        let Word::Tool(tool) = arguments.command else { panic!("no tool") };
        let cli::Command::Query(query) = *tool else { panic!("no query") };
        assert_eq!((query.command.as_deref(), query.dbname.as_deref()), (Some("SELECT"), Some("citus")));

        let arguments = parsed(Called::Tenure, "query demo -c f -C SELECT -d etcd3://h:1").unwrap();
        assert_eq!((arguments.config_file, arguments.dcs_url.as_deref()), (Some("f".into()), Some("etcd3://h:1")));
        let Word::Tool(tool) = arguments.command else { panic!("no tool") };
        let cli::Command::Query(query) = *tool else { panic!("no query") };
        assert_eq!((query.command.as_deref(), query.dbname), (Some("SELECT"), None));
    }

    #[test]
    fn a_command_for_several_members_wants_the_clusters_name_under_patronictl_only() {
        for (line, tenure, patronictl) in [
            ("restart --force", true, false),
            ("restart demo --force", true, true),
            ("reload", true, false),
            ("reload demo n1 --force", true, true),
            ("reinit --force", true, false),
            ("reinit demo n1", true, true),
            ("flush switchover", true, false),
            ("flush demo switchover --force", true, true),
            ("flush demo n1 n2 restart", true, true),
            ("list -c f", true, false),
            ("-c f -d etcd3://h:1/ns -k list demo --group 1 -e -f json", true, true),
            ("switchover --group 2 --force", true, true),
            ("query -C SELECT", true, true),
        ] {
            assert_eq!(parsed(Called::Tenure, line).is_ok(), tenure, "tenure {line}");
            assert_eq!(parsed(Called::Patronictl, line).is_ok(), patronictl, "patronictl {line}");
        }
    }
}
