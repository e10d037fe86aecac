//! The server's settings: which go into postgresql.conf, which onto the command line, and the files themselves.

use super::controldata::RequiredSettings;
use super::{REQUIRE_AUTH, read_if_there, remove_if_there, sync_directory, write_atomically};
use anyhow::{Context, Result};
use cluster::admission::is_name;
use cluster::renamed;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Our library, on the command line so that nobody's ALTER SYSTEM drops the fence.
pub const LIBRARY: &str = "pg_tenure";

/// What goes onto the command line whatever the local file says, with its default and the least that is served.
const ON_COMMAND_LINE: [(&str, &str, Option<u64>); 10] = [
    ("hot_standby", "on", None),
    ("max_connections", "100", Some(25)),
    ("max_locks_per_transaction", "64", Some(32)),
    ("max_prepared_transactions", "0", Some(0)),
    ("max_replication_slots", "10", Some(4)),
    ("max_wal_senders", "10", Some(3)),
    ("max_worker_processes", "8", Some(2)),
    ("track_commit_timestamp", "off", None),
    ("wal_level", "replica", None),
    ("wal_log_hints", "on", None),
];

/// The first major version whose servers know that word.
const REQUIRE_AUTH_SINCE: u32 = 16;

/// Settings that are never the user's: they are derived, or they belong to recovery, which the arbiter writes.
const OURS: [&str; 9] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "shared_preload_libraries",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "data_directory",
    "config_file",
];

/// Recovery settings (and two that an ALTER SYSTEM must not hold), removed from postgresql.auto.conf.
const NOT_IN_AUTO_CONF: [&str; 14] = [
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "promote_trigger_file",
    "synchronous_standby_names",
    "shared_preload_libraries",
];

/// The settings of one server, settled: nothing is in both halves.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Parameters {
    /// For postgresql.conf; change by reload, or wait for a restart.
    pub file: BTreeMap<String, String>,
    /// For the command line, where nothing in a file and no ALTER SYSTEM overrides them.
    pub argv: BTreeMap<String, String>,
    /// Ours, for the end of postgresql.conf: nothing that comes before them counts against them.
    pub own: BTreeMap<String, String>,
    /// Where the server keeps logical slots on standbys by itself: it does so through this database, by the name in `primary_conninfo`.
    pub slots_database: Option<String>,
}

/// What one part of the node adds to the settings: a value, so that who adds it decides nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Contribution {
    /// For the command line, whatever anybody gave.
    pub argv: BTreeMap<&'static str, String>,
    /// For postgresql.conf, whatever anybody gave.
    pub file: BTreeMap<&'static str, String>,
    /// For postgresql.conf, where nobody gave another value.
    pub unless_given: BTreeMap<&'static str, String>,
    /// For the end of postgresql.conf.
    pub own: BTreeMap<&'static str, String>,
}

/// What is fixed for a node when its settings are settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity<'a> {
    /// The scope: becomes `cluster_name`.
    pub scope: &'a str,
    /// For `listen_addresses`, comma-separated.
    pub listen_addresses: &'a str,
    /// The port.
    pub port: u16,
}

impl Parameters {
    /// Merges: what the local file gives wins over the dynamic configuration, except for the settings on the command line,
    /// which must be the same on every member and so come from the dynamic configuration (the local value is used where it has none).
    pub fn settle(identity: &Identity<'_>, local: &BTreeMap<String, String>, dynamic: &BTreeMap<String, String>) -> Parameters {
        let mut file: BTreeMap<String, String> = BTreeMap::from([("wal_keep_size".to_owned(), "128MB".to_owned())]);
        file.extend(dynamic.clone());
        file.extend(local.clone());
        let mut argv = BTreeMap::new();
        for (name, default, least) in ON_COMMAND_LINE {
            let given = dynamic.get(name).or_else(|| local.get(name)).map_or(default, String::as_str);
            argv.insert(name.to_owned(), admissible(name, given, default, least));
            file.remove(name);
        }
        let libraries = local.get("shared_preload_libraries").or_else(|| dynamic.get("shared_preload_libraries"));
        argv.insert("shared_preload_libraries".to_owned(), with_library(libraries.map_or("", String::as_str)));
        argv.insert("listen_addresses".to_owned(), identity.listen_addresses.to_owned());
        argv.insert("port".to_owned(), identity.port.to_string());
        argv.insert("cluster_name".to_owned(), identity.scope.to_owned());
        for name in OURS {
            file.remove(name);
        }
        Parameters { file, argv, ..Parameters::default() }
    }

    /// Puts the settings of a role over those of every role. What is on the command line stays: it changes with a restart only.
    pub fn overlay(&mut self, settings: BTreeMap<String, String>) {
        let ours =
            |name: &str| self.argv.contains_key(name) || OURS.contains(&name) || ON_COMMAND_LINE.iter().any(|(known, ..)| *known == name);
        let settings: Vec<_> = settings.into_iter().filter(|(name, _)| !ours(name)).collect();
        self.file.extend(settings);
    }

    /// Adds what a part of the node contributes.
    pub fn take_in(&mut self, more: Contribution) {
        let named = |of: BTreeMap<&'static str, String>| of.into_iter().map(|(name, value)| (name.to_owned(), value));
        self.argv.extend(named(more.argv));
        self.file.extend(named(more.file));
        self.own.extend(named(more.own));
        for (name, value) in named(more.unless_given) {
            self.file.entry(name).or_insert(value);
        }
    }

    /// For a standby: raises what must not be lower than on the primary whose log it replays. The names of those raised are
    /// returned: a restart is pending for them.
    pub fn raise_to(&mut self, required: &RequiredSettings) -> Vec<&'static str> {
        let mut raised = Vec::new();
        for (name, least) in [
            ("max_connections", required.max_connections),
            ("max_worker_processes", required.max_worker_processes),
            ("max_wal_senders", required.max_wal_senders),
            ("max_prepared_transactions", required.max_prepared_xacts),
            ("max_locks_per_transaction", required.max_locks_per_xact),
        ] {
            let current = self.argv.get(name).and_then(|value| value.parse::<u32>().ok()).unwrap_or(0);
            if current < least {
                self.argv.insert(name.to_owned(), least.to_string());
                raised.push(name);
            }
        }
        raised
    }

    /// What others than we gave: names and values that the server may refuse.
    pub fn pairs(&self, recovery: &Recovery) -> Vec<(String, String)> {
        let extra = match recovery {
            Recovery::None => None,
            Recovery::Standby { extra, .. } => Some(extra),
        };
        let all =
            self.file.iter().chain(self.argv.iter().filter(|(name, _)| !OURS.contains(&name.as_str()))).chain(extra.into_iter().flatten());
        all.map(|(name, value)| (name.clone(), value.clone())).collect()
    }

    /// The `-c name=value` pairs of the postmaster's command line.
    pub fn arguments(&self) -> Vec<String> {
        self.argv.iter().flat_map(|(name, value)| ["-c".to_owned(), format!("{name}={value}")]).collect()
    }
}

/// The value to use: at least the minimum, and for `wal_level` one under which a standby can stream.
fn admissible(name: &str, given: &str, default: &str, least: Option<u64>) -> String {
    if name == "wal_level" {
        return if given == "logical" { given } else { default }.to_owned();
    }
    match least {
        None => given.to_owned(),
        Some(least) => match given.trim().parse::<u64>() {
            Ok(number) => number.max(least).to_string(),
            Err(_) => default.to_owned(),
        },
    }
}

/// The user's libraries in their order (Citus insists on being first), ours appended once.
fn with_library(libraries: &str) -> String {
    let mut list: Vec<&str> = libraries.split(',').map(str::trim).filter(|library| !library.is_empty()).collect();
    if !list.contains(&LIBRARY) {
        list.push(LIBRARY);
    }
    list.join(",")
}

/// Settings out of JSON or YAML: `true` is `on`, numbers are text, `null` and anything nested is left out. What older files call
/// otherwise has today's name, unless that is given too.
pub fn parameters_of(map: &Map<String, Value>) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    for (name, value) in map.iter().filter_map(|(name, value)| Some((name.to_lowercase(), setting_text(value)?))) {
        match renamed::today(&name, &value) {
            Some((today, meant)) => {
                settings.entry(today.to_owned()).or_insert(meant);
            }
            None => {
                settings.insert(name, value);
            }
        }
    }
    settings
}

/// One setting's text, as PostgreSQL reads it.
pub fn setting_text(value: &Value) -> Option<String> {
    match value {
        Value::Bool(true) => Some("on".to_owned()),
        Value::Bool(false) => Some("off".to_owned()),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// What this server is to be when it starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Recovery {
    /// No signal file: a primary, or crash recovery to one.
    None,
    /// A standby: follows an upstream, or waits without one.
    Standby {
        /// `primary_conninfo`; `None` while nobody is to be followed.
        primary_conninfo: Option<String>,
        /// `primary_slot_name`.
        primary_slot_name: Option<String>,
        /// `restore_command` and other recovery settings, from the local file.
        extra: BTreeMap<String, String>,
    },
}

/// The walreceiver passes over the name of a database, the synchronisation of slots does not begin without it.
fn naming_database(conninfo: &str, database: Option<&str>) -> String {
    match database.filter(|_| !conninfo.is_empty() && !conninfo.contains("dbname=")) {
        Some(database) => format!("{conninfo} {}", self::conninfo([("dbname", database)])),
        None => conninfo.to_owned(),
    }
}

impl Recovery {
    /// The same, with an upstream that may not ask for the password in the open, as far as this major version's servers can refuse.
    fn keeping_password(&self, major: Option<u32>) -> Recovery {
        match self {
            Recovery::Standby { primary_conninfo: Some(conninfo), primary_slot_name, extra }
                if major >= Some(REQUIRE_AUTH_SINCE) && conninfo.contains("passfile=") && !conninfo.contains("require_auth=") =>
            {
                let primary_conninfo = Some(format!("{conninfo} require_auth={REQUIRE_AUTH}"));
                Recovery::Standby { primary_conninfo, primary_slot_name: primary_slot_name.clone(), extra: extra.clone() }
            }
            _ => self.clone(),
        }
    }

    /// The same, with a connection that the kernel watches, as far as nobody said otherwise of it.
    fn watched(self) -> Recovery {
        match self {
            Recovery::Standby { primary_conninfo: Some(mut conninfo), primary_slot_name, extra } if !conninfo.is_empty() => {
                let said = |keyword: &str| conninfo.contains(&format!("{keyword}="));
                let alone = !said("keepalives");
                let adds: Vec<_> =
                    WATCHED.iter().filter(|(keyword, _)| !said(keyword) && (alone || !keyword.starts_with("keep"))).collect();
                for (keyword, value) in adds {
                    conninfo.push_str(&format!(" {keyword}={value}"));
                }
                Recovery::Standby { primary_conninfo: Some(conninfo), primary_slot_name, extra }
            }
            _ => self,
        }
    }
}

/// What libpq tells the kernel of a standby's connection: it asks the other end after 5 s of silence and then every 2 s, three times in vain, and
/// waits 10 s at most for what was sent to be taken. A receiver has no time-out of its own before it streams: one whose upstream lost the
/// connection in that moment (a crash behind a cut link) would wait for the kernel's two hours.
const WATCHED: [(&str, &str); 4] =
    [("keepalives_idle", "5"), ("keepalives_interval", "2"), ("keepalives_count", "3"), ("tcp_user_timeout", "10000")];

/// Where a node's configuration files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigFiles {
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where postgresql.conf, pg_hba.conf and pg_ident.conf are: the data directory, or another one as in Debian.
    pub config_dir: PathBuf,
}

impl ConfigFiles {
    /// `postgresql.conf`: written by us.
    pub fn main(&self) -> PathBuf {
        self.config_dir.join("postgresql.conf")
    }
    /// What `postgresql.conf` was before us: included first.
    pub fn base(&self) -> PathBuf {
        self.config_dir.join("postgresql.base.conf")
    }
    /// `pg_hba.conf`.
    pub fn hba(&self) -> PathBuf {
        self.config_dir.join("pg_hba.conf")
    }
    /// `pg_ident.conf`.
    pub fn ident(&self) -> PathBuf {
        self.config_dir.join("pg_ident.conf")
    }

    /// Writes `postgresql.conf` (its first version is kept as `postgresql.base.conf`, once); true if it changed.
    pub async fn write_main(&self, parameters: &Parameters, recovery: &Recovery) -> Result<bool> {
        let (main, base) = (self.main(), self.base());
        let before = read_if_there(&main).await?;
        if read_if_there(&base).await?.is_none() {
            // A crash between the two writes must leave a base file: copy, don't rename.
            let kept = before.as_deref().filter(|text| !text.starts_with(HEADER)).unwrap_or("");
            write_atomically(&base, kept, 0o600).await.context("keep the first postgresql.conf")?;
        }
        let version = read_if_there(&self.data_dir.join("PG_VERSION")).await?;
        let major = version.and_then(|text| text.trim().parse().ok());
        let content = self.content(parameters, &recovery.keeping_password(major).watched());
        if before.as_deref() == Some(&content) {
            return Ok(false);
        }
        write_atomically(&main, &content, 0o600).await?;
        Ok(true)
    }

    /// The whole text. Nothing but a name gets to be one here, whatever client sent it, and no value gets out of its quotes.
    pub fn content(&self, parameters: &Parameters, recovery: &Recovery) -> String {
        let mut content = format!("{HEADER}\ninclude 'postgresql.base.conf'\n\n");
        let mut settings = parameters.file.clone();
        if self.config_dir != self.data_dir {
            for (name, path) in [("hba_file", self.hba()), ("ident_file", self.ident())] {
                settings.entry(name.to_owned()).or_insert_with(|| path.display().to_string());
            }
        }
        // What stands on the command line wins anyway; without it here a reload would complain of what
        // postgresql.base.conf says instead, and a server that is started by hand would not know whose it is.
        // The timeline likewise: it can't be taken out without a restart.
        settings.extend(parameters.argv.iter().map(|(name, value)| (name.clone(), value.clone())));
        settings.insert("recovery_target_timeline".to_owned(), "latest".to_owned());
        put(&mut content, &settings);
        if let Recovery::Standby { primary_conninfo, primary_slot_name, extra } = recovery {
            let primary_conninfo = primary_conninfo.as_ref().map(|text| naming_database(text, parameters.slots_database.as_deref()));
            content.push_str("\n# recovery\n");
            let mut settings = extra.clone();
            settings.insert("primary_conninfo".to_owned(), primary_conninfo.unwrap_or_default());
            settings.insert("primary_slot_name".to_owned(), primary_slot_name.clone().unwrap_or_default());
            put(&mut content, &settings);
        }
        content.push_str("\n# ours\n");
        put(&mut content, &parameters.own);
        content
    }

    /// Creates or removes `standby.signal` (and any `recovery.signal`), durably.
    pub async fn signal(&self, recovery: &Recovery) -> Result<()> {
        let standby = self.data_dir.join("standby.signal");
        let mut changed = remove_if_there(&self.data_dir.join("recovery.signal")).await?;
        match recovery {
            Recovery::None => changed |= remove_if_there(&standby).await?,
            Recovery::Standby { .. } => {
                if read_if_there(&standby).await?.is_none() {
                    write_atomically(&standby, "", 0o600).await?;
                }
            }
        }
        if changed { sync_directory(&self.data_dir).await } else { Ok(()) }
    }

    /// Removes recovery settings from `postgresql.auto.conf`; true if there were any.
    pub async fn clean_auto_conf(&self) -> Result<bool> {
        let path = self.data_dir.join("postgresql.auto.conf");
        let Some(text) = read_if_there(&path).await? else { return Ok(false) };
        let cleaned = without_recovery(&text);
        if cleaned == text {
            return Ok(false);
        }
        write_atomically(&path, &cleaned, 0o600).await?;
        Ok(true)
    }
}

/// The first line of the files that we write.
pub const HEADER: &str = "# Written by tenure: changes belong in the node's configuration file or in the dynamic configuration.";

fn without_recovery(text: &str) -> String {
    let belongs = |line: &&str| {
        let name = line.trim_start().split(['=', ' ', '\t']).next().unwrap_or("");
        let ours = name.get(..7).is_some_and(|prefix| prefix.eq_ignore_ascii_case("tenure."));
        !ours && !NOT_IN_AUTO_CONF.iter().any(|unwanted| name.eq_ignore_ascii_case(unwanted))
    };
    text.split_inclusive('\n').filter(belongs).collect()
}

fn put(content: &mut String, settings: &BTreeMap<String, String>) {
    for (name, value) in settings.iter().filter(|(name, value)| is_name(name) && !value.contains('\0')) {
        content.push_str(&format!("{name} = {}\n", quote(value)));
    }
}

/// A value in postgresql.conf: single quotes doubled, backslashes too, no line may end inside.
pub fn quote(value: &str) -> String {
    let escaped = value.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n").replace('\r', "\\r");
    format!("'{escaped}'")
}

/// Joins a conninfo string: values are quoted where libpq needs it, empty ones left out.
pub fn conninfo<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let words: Vec<String> = pairs
        .into_iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(keyword, value)| format!("{keyword}={}", conninfo_value(value)))
        .collect();
    words.join(" ")
}

fn conninfo_value(value: &str) -> String {
    if value.chars().any(|c| c.is_whitespace() || matches!(c, '\'' | '\\' | '=')) {
        format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    const IDENTITY: Identity<'static> = Identity { scope: "main", listen_addresses: "127.0.0.1,10.0.0.1", port: 5433 };

    #[test]
    fn the_command_line_follows_the_dynamic_configuration_and_the_file_the_local_one() {
        let local =
            map(&[("work_mem", "8MB"), ("max_connections", "50"), ("port", "1"), ("wal_level", "minimal"), ("primary_conninfo", "x")]);
        let dynamic = map(&[
            ("work_mem", "4MB"),
            ("max_connections", "200"),
            ("max_wal_senders", "1"),
            ("jit", "off"),
            ("max_worker_processes", "many"),
        ]);
        let settled = Parameters::settle(&IDENTITY, &local, &dynamic);
        assert_eq!(settled.file, map(&[("jit", "off"), ("wal_keep_size", "128MB"), ("work_mem", "8MB")]));
        for (name, value) in [
            ("max_connections", "200"),
            ("max_wal_senders", "3"),
            ("max_worker_processes", "8"),
            ("wal_level", "replica"),
            ("wal_log_hints", "on"),
            ("port", "5433"),
            ("listen_addresses", "127.0.0.1,10.0.0.1"),
            ("cluster_name", "main"),
            ("shared_preload_libraries", "pg_tenure"),
        ] {
            assert_eq!(settled.argv[name], value, "{name}");
        }
        assert_eq!(settled.arguments()[..2], ["-c", "cluster_name=main"]);
    }

    #[test]
    fn the_library_is_appended_once_and_the_users_order_kept() {
        for (given, settled) in
            [("", "pg_tenure"), ("citus, pg_stat_statements", "citus,pg_stat_statements,pg_tenure"), ("pg_tenure,x", "pg_tenure,x")]
        {
            assert_eq!(with_library(given), settled);
        }
    }

    #[test]
    fn a_standby_is_raised_to_what_its_primary_had() {
        let mut settled = Parameters::settle(&IDENTITY, &BTreeMap::new(), &BTreeMap::new());
        let required = RequiredSettings {
            max_connections: 300,
            max_prepared_xacts: 5,
            max_worker_processes: 8,
            max_wal_senders: 4,
            max_locks_per_xact: 64,
        };
        assert_eq!(settled.raise_to(&required), ["max_connections", "max_prepared_transactions"]);
        assert_eq!(settled.argv["max_connections"], "300");
        assert!(settled.raise_to(&required).is_empty());
    }

    #[test]
    fn values_are_quoted_so_that_nothing_ends_early() {
        for (value, quoted) in [("a", "'a'"), ("it's", "'it''s'"), (r"C:\x", r"'C:\\x'"), ("two\nlines", r"'two\nlines'")] {
            assert_eq!(quote(value), quoted);
        }
        assert_eq!(
            conninfo([("host", "10.0.0.1"), ("password", ""), ("passfile", "/a b/it's"), ("application_name", "n=1")]),
            r"host=10.0.0.1 passfile='/a b/it\'s' application_name='n=1'"
        );
    }

    #[test]
    fn nothing_but_a_name_is_written_as_one_and_ours_come_last() {
        let files = ConfigFiles { data_dir: "/d".into(), config_dir: "/d".into() };
        let parameters = Parameters {
            file: map(&[
                ("work_mem = '1MB'\ninclude", "/x"),
                ("include", "/x"),
                ("Include_Dir", "/x"),
                ("work_mem", "4MB'\n#"),
                ("a b", "1"),
            ]),
            argv: BTreeMap::new(),
            own: map(&[("tenure.etcd_endpoints", "ours")]),
            slots_database: None,
        };
        let extra = map(&[("tenure.etcd_endpoints", "theirs"), ("include_if_exists", "/x")]);
        let text = files.content(&parameters, &Recovery::Standby { primary_conninfo: None, primary_slot_name: None, extra });
        let lines: Vec<&str> = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
        let expected = [
            "include 'postgresql.base.conf'",
            "recovery_target_timeline = 'latest'",
            r"work_mem = '4MB''\n#'",
            "primary_conninfo = ''",
            "primary_slot_name = ''",
            "tenure.etcd_endpoints = 'theirs'",
            "tenure.etcd_endpoints = 'ours'",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn the_upstream_is_named_with_a_database_where_the_server_keeps_slots_through_it() {
        for (conninfo, database, expected) in [
            ("host=a", None, "host=a"),
            ("host=a", Some("postgres"), "host=a dbname=postgres"),
            ("host=a", Some("my db"), "host=a dbname='my db'"),
            ("host=a dbname=theirs", Some("postgres"), "host=a dbname=theirs"),
            ("", Some("postgres"), ""),
        ] {
            assert_eq!(naming_database(conninfo, database), expected);
        }
    }

    #[test]
    fn yaml_values_become_settings() {
        let value: Value = serde_json::json!({"hot_standby": true, "Work_Mem": "4MB", "jit": false, "max_connections": 100, "ratio": 1.5, "gone": null, "odd": {"a": 1}});
        let expected = map(&[("hot_standby", "on"), ("jit", "off"), ("max_connections", "100"), ("ratio", "1.5"), ("work_mem", "4MB")]);
        assert_eq!(parameters_of(value.as_object().unwrap()), expected);
    }

    #[test]
    fn recovery_settings_leave_the_auto_conf_and_others_stay() {
        let text = "# Do not edit\nprimary_conninfo = 'host=a'\nwork_mem = '4MB'\nRECOVERY_TARGET_LSN='0/1'\nrecovery_min_apply_delay = '5s'\nshared_preload_libraries = ''\n";
        assert_eq!(without_recovery(text), "# Do not edit\nwork_mem = '4MB'\nrecovery_min_apply_delay = '5s'\n");
    }

    #[test]
    fn a_standby_tells_no_server_its_password_in_the_open_where_libpq_can_refuse() {
        let standby = |conninfo: &str| Recovery::Standby {
            primary_conninfo: Some(conninfo.to_owned()),
            primary_slot_name: None,
            extra: BTreeMap::new(),
        };
        for (major, given, expected) in [
            (Some(15), "host=a passfile=/p", "host=a passfile=/p"),
            (None, "host=a passfile=/p", "host=a passfile=/p"),
            (Some(16), "host=a passfile=/p", "host=a passfile=/p require_auth=!password"),
            (Some(17), "host=a passfile=/p require_auth=scram-sha-256", "host=a passfile=/p require_auth=scram-sha-256"),
            // Without a password there is none to be told.
            (Some(17), "host=a", "host=a"),
        ] {
            assert_eq!(standby(given).keeping_password(major), standby(expected), "{major:?}");
        }
        assert_eq!(Recovery::None.keeping_password(Some(17)), Recovery::None);
    }

    #[test]
    fn a_standbys_connection_is_watched_unless_somebody_said_how() {
        let standby = |conninfo: &str| Recovery::Standby {
            primary_conninfo: Some(conninfo.to_owned()),
            primary_slot_name: None,
            extra: BTreeMap::new(),
        };
        let all = "host=a keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000";
        for (given, expected) in [
            ("host=a", all),
            // As it is in force: nothing is said twice.
            (all, all),
            ("host=a keepalives=0", "host=a keepalives=0 tcp_user_timeout=10000"),
            ("host=a keepalives_idle=60", "host=a keepalives_idle=60 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000"),
            ("host=a tcp_user_timeout=0", "host=a tcp_user_timeout=0 keepalives_idle=5 keepalives_interval=2 keepalives_count=3"),
            ("", ""),
        ] {
            assert_eq!(standby(given).watched(), standby(expected), "{given}");
        }
    }

    #[tokio::test]
    async fn the_first_file_is_kept_as_base_and_the_second_write_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let files = ConfigFiles { data_dir: directory.path().to_owned(), config_dir: directory.path().to_owned() };
        std::fs::write(files.main(), "max_wal_size = 1GB\n").unwrap();
        let parameters = Parameters::settle(&IDENTITY, &map(&[("log_line_prefix", "it's %m ")]), &BTreeMap::new());
        let standby = Recovery::Standby {
            primary_conninfo: Some("host=a".to_owned()),
            primary_slot_name: Some("n1".to_owned()),
            extra: BTreeMap::new(),
        };
        assert!(files.write_main(&parameters, &standby).await.unwrap());
        assert!(!files.write_main(&parameters, &standby).await.unwrap());
        files.signal(&standby).await.unwrap();
        assert!(directory.path().join("standby.signal").exists());
        let text = std::fs::read_to_string(files.main()).unwrap();
        for line in [
            "include 'postgresql.base.conf'",
            "log_line_prefix = 'it''s %m '",
            "primary_conninfo = 'host=a keepalives_idle=5 keepalives_interval=2 keepalives_count=3 tcp_user_timeout=10000'",
            "primary_slot_name = 'n1'",
            "recovery_target_timeline = 'latest'",
        ] {
            assert!(text.lines().any(|have| have == line), "{line} in {text}");
        }
        assert!(files.write_main(&parameters, &Recovery::None).await.unwrap());
        files.signal(&Recovery::None).await.unwrap();
        assert!(!directory.path().join("standby.signal").exists());
        assert_eq!(std::fs::read_to_string(files.base()).unwrap(), "max_wal_size = 1GB\n");
        assert!(!std::fs::read_to_string(files.main()).unwrap().contains("primary_conninfo"));
    }
}
