//! Which of PostgreSQL's parameters the dynamic configuration may set: judged from what the server says of each, not from a list of those that
//! are known to be dangerous.
//!
//! A client that may write the dynamic configuration must not thereby run code, read or write files, or lead the lease worker to another etcd. What
//! takes a program, a path, an address or a library is a text in PostgreSQL; a switch, a word out of a list or a number can't be one. So a
//! parameter counts if the server knows it and it is no text, or if its name stands among the few [`HARMLESS`] texts. Any other text counts
//! only where the node's own file says the same.

use crate::config::DynamicConfig;
use crate::parameter::{Catalogue, Parameter, refusal};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;

/// What becomes of a parameter in the dynamic configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Admission {
    /// It is used.
    Counts,
    /// It is used where the node's own file says the same.
    OwnFile(&'static str),
    /// It is never used from there.
    Never(&'static str),
    /// The server would not take it.
    Refused(String),
}

impl fmt::Display for Admission {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Admission::Counts => f.write_str("it counts"),
            Admission::OwnFile(why) => write!(f, "{why}, so it counts only where the node's own file says the same"),
            Admission::Never(why) => f.write_str(why),
            Admission::Refused(why) => write!(f, "the server would refuse it: {why}"),
        }
    }
}

/// A section of the dynamic configuration that holds parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// `postgresql.parameters` and those of a role.
    Parameters,
    /// `postgresql.recovery_conf`, and what `standby_cluster` says of recovery.
    RecoveryConf,
}

/// The settings of ours that the dynamic configuration may set (docs/settings.md); the others say who and where this node is.
pub const OURS_DYNAMIC: [&str; 3] = ["tenure.fence_reads", "tenure.fence_wait", "tenure.minimum_synchronous_commit"];

/// Lines of postgresql.conf that read another file; to the server they look like parameters.
const INCLUDES: [&str; 3] = ["include", "include_dir", "include_if_exists"];

/// Shown like settings of the server, and refused now and then where they stand in a file: in recovery, or in a transaction that has begun.
const OF_A_TRANSACTION: [&str; 3] = ["transaction_deferrable", "transaction_isolation", "transaction_read_only"];

/// What belongs in `recovery_conf`.
const RECOVERY: [&str; 15] = [
    "archive_cleanup_command",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
];

/// What a harmless text looks like. Whatever looks otherwise is no harmless one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Names, in a list where there are several: no path, nothing that is quoted away.
    Names,
    /// `Europe/Berlin`: below the server's own directory of time zones.
    Zone,
    /// A file below `log_directory`: no other directory, and nothing but a log by its name.
    LogFile,
    /// Anything on one line.
    Line,
}

/// Texts that name nothing outside of the server: no file, program, library or host. `search_path` is not among them: who puts a schema
/// of their own before `pg_catalog` runs their functions in everybody's sessions.
const HARMLESS: [(&str, Shape); 25] = [
    ("bonjour_name", Shape::Names),
    ("client_encoding", Shape::Names),
    ("datestyle", Shape::Names),
    ("default_table_access_method", Shape::Names),
    ("default_tablespace", Shape::Names),
    ("default_text_search_config", Shape::Names),
    ("event_source", Shape::Names),
    ("lc_messages", Shape::Names),
    ("lc_monetary", Shape::Names),
    ("lc_numeric", Shape::Names),
    ("lc_time", Shape::Names),
    ("log_connections", Shape::Names),
    ("log_destination", Shape::Names),
    ("log_filename", Shape::LogFile),
    ("log_line_prefix", Shape::Line),
    ("log_timezone", Shape::Zone),
    ("pgaudit.log", Shape::Names),
    ("plpgsql.extra_errors", Shape::Names),
    ("plpgsql.extra_warnings", Shape::Names),
    ("synchronized_standby_slots", Shape::Names),
    ("synchronous_standby_names", Shape::Names),
    ("syslog_ident", Shape::Names),
    ("temp_tablespaces", Shape::Names),
    ("timezone", Shape::Zone),
    ("timezone_abbreviations", Shape::Names),
];

impl Shape {
    fn fits(self, value: &str) -> bool {
        let word = |c: char| c.is_alphanumeric() || "_-+., \"()*:;@$<>=!".contains(c);
        let dots = value.contains("..");
        match self {
            Shape::Names => value.chars().all(word) && !dots,
            Shape::Zone => value.chars().all(|c| word(c) || c == '/') && !dots && !value.starts_with('/'),
            Shape::LogFile => {
                let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '%');
                value.chars().all(name) && !dots && !value.starts_with('.') && value.ends_with(".log")
            }
            Shape::Line => !value.chars().any(char::is_control),
        }
    }
}

/// A name as PostgreSQL's files take it; whatever is written into one has to be one, whatever client sent it.
pub fn is_name(name: &str) -> bool {
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$');
    name.starts_with(first) && name.chars().all(word) && !INCLUDES.iter().any(|include| name.eq_ignore_ascii_case(include))
}

/// Why no server takes this name from this section of the dynamic configuration, whatever it knows of it.
pub fn never(section: Section, name: &str) -> Option<&'static str> {
    let name = name.to_ascii_lowercase();
    if INCLUDES.contains(&name.as_str()) {
        return Some("it reads another file, and no configuration of ours does");
    }
    if !is_name(&name) {
        return Some("that is no name of a PostgreSQL parameter");
    }
    if section == Section::RecoveryConf && !RECOVERY.contains(&name.as_str()) {
        return Some("that is no setting of recovery: it belongs in postgresql.parameters");
    }
    if name.starts_with("tenure.") && !OURS_DYNAMIC.contains(&name.as_str()) {
        return Some(
            "of the tenure.* settings only fence_wait, fence_reads and minimum_synchronous_commit can be set for the whole cluster",
        );
    }
    None
}

/// A switch, or a number with a unit: it can't mean a file, a program or an address whatever parameter it is for.
fn is_plain(value: &str) -> bool {
    let value = value.trim();
    let digits = value.find(|c: char| !(c.is_ascii_digit() || matches!(c, '.' | '-' | '+'))).unwrap_or(value.len());
    let (number, unit) = value.split_at(digits);
    let measures = matches!(unit.trim(), "" | "B" | "kB" | "MB" | "GB" | "TB" | "us" | "ms" | "s" | "min" | "h" | "d");
    number.parse::<f64>().is_ok() && measures
        || matches!(value.to_ascii_lowercase().as_str(), "on" | "off" | "true" | "false" | "yes" | "no")
}

/// What becomes of `name = value` in this section, on a server that knows these parameters.
pub fn admission(section: Section, name: &str, value: &str, catalogue: &Catalogue) -> Admission {
    if let Some(why) = never(section, name) {
        return Admission::Never(why);
    }
    if value.contains(['\n', '\r', '\0']) {
        return Admission::Never("a value has to be on one line");
    }
    let name = name.to_ascii_lowercase();
    let Some(parameter) = catalogue.get(&name) else {
        return match (OURS_DYNAMIC.contains(&name.as_str()), catalogue.may_be_known_later(&name)) {
            (true, _) => Admission::Counts,
            (false, false) => Admission::Refused("it has no such parameter".to_owned()),
            (false, true) if is_plain(value) => Admission::Counts,
            (false, true) => Admission::OwnFile("no library that this server has loaded knows it, and it may be a path or a program"),
        };
    };
    if OF_A_TRANSACTION.contains(&name.as_str()) {
        return Admission::Refused("it is a transaction's, not a server's".to_owned());
    }
    if let Some(why) = refusal(parameter, value).filter(|_| catalogue.complete || parameter.context == "internal") {
        return Admission::Refused(why);
    }
    if parameter.vartype != "string" {
        return Admission::Counts;
    }
    match HARMLESS.iter().find(|(harmless, _)| *harmless == name) {
        Some((_, shape)) if shape.fits(value) => Admission::Counts,
        Some(_) => Admission::OwnFile("its value does not look like one that names nothing outside of the server"),
        None => Admission::OwnFile("it is a text, which may run code, or name a file or a host"),
    }
}

/// The parameters in a section of the document's `postgresql`, as text and by names in small letters.
fn parameters(config: &DynamicConfig, section: &str) -> BTreeMap<String, String> {
    let section = config.postgresql().and_then(|postgresql| postgresql.get(section)).and_then(Value::as_object);
    let text = |value: &Value| match value {
        Value::Bool(on) => Some(if *on { "on" } else { "off" }.to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    };
    section.into_iter().flatten().filter_map(|(name, value)| Some((name.to_lowercase(), text(value)?))).collect()
}

const SECTIONS: [(&str, Section); 5] = [
    ("parameters", Section::Parameters),
    ("parameters_primary", Section::Parameters),
    ("parameters_replica", Section::Parameters),
    ("parameters_standby_leader", Section::Parameters),
    ("recovery_conf", Section::RecoveryConf),
];

/// The parameters that a change gives another value: section, name and value.
fn changed<'a>(
    before: &'a DynamicConfig,
    after: &'a DynamicConfig,
) -> impl Iterator<Item = (&'static str, Section, String, String)> + use<'a> {
    SECTIONS.into_iter().flat_map(move |(section, kind)| {
        let old = parameters(before, section);
        let new = parameters(after, section).into_iter().filter(move |(name, value)| old.get(name) != Some(value));
        new.map(move |(name, value)| (section, kind, name, value))
    })
}

/// The names of the parameters that a change gives another value: what a server is to be asked about.
pub fn changed_names(before: &DynamicConfig, after: &DynamicConfig) -> Vec<String> {
    let mut names: Vec<String> = changed(before, after).map(|(_, _, name, _)| name).collect();
    names.sort();
    names.dedup();
    names
}

/// What of a change will not count, or not everywhere, one sentence each, for the person who makes it.
pub fn warnings(before: &DynamicConfig, after: &DynamicConfig, catalogue: &Catalogue) -> Vec<String> {
    let warning = |(section, kind, name, value): (&str, Section, String, String)| {
        let verdict = match kind {
            Section::Parameters => admission(kind, &name, &value, catalogue),
            Section::RecoveryConf => recovery_admission(&name, &value),
        };
        (verdict != Admission::Counts).then(|| format!("postgresql.{section}.{} will be left out: {verdict}", name.escape_default()))
    };
    changed(before, after).filter_map(warning).collect()
}

/// What becomes of `name = value` among the settings of recovery. They are the server's own, the same in every release, so nothing has to be
/// known of it.
pub fn recovery_admission(name: &str, value: &str) -> Admission {
    let of = |vartype: &str| Parameter { vartype: vartype.to_owned(), ..Parameter::default() };
    let vartype = match name {
        "recovery_min_apply_delay" => "integer",
        "recovery_target_action" => "enum",
        "recovery_target_inclusive" => "bool",
        _ => "string",
    };
    let catalogue = Catalogue { parameters: [(name.to_lowercase(), of(vartype))].into(), complete: false };
    admission(Section::RecoveryConf, name, value, &catalogue)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalogue(complete: bool) -> Catalogue {
        let of = |name: &str, vartype: &str| {
            let unit = (vartype == "integer").then(|| if name == "work_mem" { "kB" } else { "ms" }.to_owned());
            Parameter { vartype: vartype.to_owned(), unit, context: "sighup".to_owned(), ..Parameter::default() }
        };
        let known = [
            ("work_mem", "integer"),
            ("fsync", "bool"),
            ("wal_compression", "enum"),
            ("archive_command", "string"),
            ("hba_file", "string"),
            ("search_path", "string"),
            ("TimeZone", "string"),
            ("log_filename", "string"),
            ("log_line_prefix", "string"),
            ("synchronous_standby_names", "string"),
            ("recovery_min_apply_delay", "integer"),
            ("restore_command", "string"),
            ("auto_explain.log_min_duration", "integer"),
            ("tenure.etcd_endpoints", "string"),
        ];
        let parameters = known.into_iter().map(|(name, vartype)| (name.to_lowercase(), of(name, vartype)));
        Catalogue { parameters: parameters.collect(), complete }
    }

    fn word(admission: &Admission) -> &'static str {
        match admission {
            Admission::Counts => "counts",
            Admission::OwnFile(_) => "own file",
            Admission::Never(_) => "never",
            Admission::Refused(_) => "refused",
        }
    }

    #[test]
    fn what_is_no_text_counts_and_a_text_only_where_it_names_nothing_outside() {
        for (name, value, expected) in [
            ("work_mem", "8MB", "counts"),
            ("Work_Mem", "8MB", "counts"),
            ("work_mem", "many", "refused"),
            ("fsync", "off", "counts"),
            ("wal_compression", "on", "counts"),
            ("archive_command", "touch /tmp/x", "own file"),
            ("hba_file", "/tmp/hba", "own file"),
            ("search_path", "attacker, pg_catalog", "own file"),
            ("timezone", "Europe/Berlin", "counts"),
            ("TimeZone", "../../../etc/shadow", "own file"),
            ("timezone", "/etc/shadow", "own file"),
            ("log_filename", "postgresql-%a.log", "counts"),
            ("log_filename", "../pg_hba.conf", "own file"),
            ("log_filename", "authorized_keys", "own file"),
            ("log_line_prefix", "%m [%p] it's/here ", "counts"),
            ("log_line_prefix", "a\u{1b}b", "own file"),
            ("log_line_prefix", "a\ninclude 'x'", "never"),
            ("synchronous_standby_names", "FIRST 1 (\"n-1\", n2)", "counts"),
            ("shared_bufers", "1GB", "refused"),
            ("auto_explain.log_min_duration", "5s", "counts"),
            ("auto_explain.log_min_durations", "5s", "refused"),
            ("pg_stat_statements.max", "10000", "counts"),
            ("pg_stat_statements.max", "10000; x", "own file"),
            ("plperl.on_init", "system('touch x')", "own file"),
            ("tenure.fence_wait", "3s", "counts"),
            ("tenure.etcd_endpoints", "http://attacker", "never"),
            ("Tenure.Member", "{}", "never"),
            ("include", "/tmp/x", "never"),
            ("INCLUDE_IF_EXISTS", "/tmp/x", "never"),
            ("include_dir", "/tmp", "never"),
            ("work_mem = 1\ninclude", "/tmp/x", "never"),
            ("1x", "1", "never"),
            ("", "1", "never"),
        ] {
            let told = admission(Section::Parameters, name, value, &catalogue(true));
            assert_eq!(word(&told), expected, "{name} = {value}: {told}");
        }
    }

    #[test]
    fn whoever_changes_something_is_told_what_of_it_will_not_count() {
        let config = |json: &str| DynamicConfig(serde_json::from_str(json).unwrap());
        let before = config(r#"{"postgresql":{"parameters":{"shared_bufers":"1GB","work_mem":"4MB"}}}"#);
        let after = config(
            r#"{"postgresql":{"parameters":{"shared_bufers":"1GB","work_mem":"abc","fsync":true},"recovery_conf":{"restore_command":"x"}}}"#,
        );
        assert_eq!(changed_names(&before, &after), ["fsync", "restore_command", "work_mem"]);
        assert_eq!(
            warnings(&before, &after, &catalogue(true)),
            [
                "postgresql.parameters.work_mem will be left out: the server would refuse it: expected a number, or one with a unit that measures the same as kB",
                "postgresql.recovery_conf.restore_command will be left out: it is a text, which may run code, or name a file or a host, so it counts only where the node's own file says the same",
            ]
        );
    }

    #[test]
    fn recovery_conf_takes_recoverys_names_only() {
        for (name, value, expected) in [
            ("recovery_min_apply_delay", "1min", "counts"),
            ("restore_command", "cp x", "own file"),
            ("tenure.etcd_endpoints", "http://attacker", "never"),
            ("tenure.fence_wait", "1s", "never"),
            ("work_mem", "8MB", "never"),
            ("standby_mode", "on", "never"),
        ] {
            let told = admission(Section::RecoveryConf, name, value, &catalogue(true));
            assert_eq!(word(&told), expected, "{name} = {value}: {told}");
            assert_eq!(recovery_admission(name, value), told, "{name}");
        }
    }

    #[test]
    fn a_server_that_never_ran_is_known_by_half_and_nothing_dangerous_counts_there() {
        for (name, value, expected) in [
            ("work_mem", "8MB", "counts"),
            ("archive_command", "x", "own file"),
            ("auto_explain.log_min_durations", "5s", "refused"),
            ("citus.node_conninfo", "host=x", "own file"),
            ("zero_damaged_pages", "on", "refused"),
        ] {
            assert_eq!(word(&admission(Section::Parameters, name, value, &catalogue(false))), expected, "{name}");
        }
        assert_eq!(word(&admission(Section::Parameters, "hba_file", "/tmp/x", &Catalogue::default())), "refused");
    }
}
