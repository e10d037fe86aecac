//! The node's configuration: a file in Patroni's schema and the environment, validated into a type that cannot be wrong.

mod address;
mod citus;
mod known;
pub mod load;
mod methods;
mod overlay;
mod poolers;
mod reach;
mod rest;
mod tree;
mod validate;
mod vip;
mod watchdog;

pub use crate::postgres::credentials::{Authentication, Credentials};
pub use address::Listen;
pub use methods::{BootstrapMethod, MethodCommand, ReplicaMethod};

use crate::ground::program::CommandLine;
use crate::ground::secret::Secret;
use crate::ground::tls;
use crate::postgres::Programs;
use crate::postgres::conf::ConfigFiles;
use crate::postgres::initdb::LongOption;
use cluster::host::Address;
use cluster::name::{MemberName, Scope};
use cluster::upgrade::{beside, named};
use dcs::key::Keys;
use ipnet::IpNet;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// All that one node is told by its file and its environment.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// The cluster's name.
    pub scope: Scope,
    /// The prefix in etcd, with a leading and without a trailing slash.
    pub namespace: String,
    /// This member's name.
    pub name: MemberName,
    /// The REST interface.
    pub rest: RestConfig,
    /// How others' REST is asked.
    pub ctl: CtlConfig,
    /// Where etcd is.
    pub etcd: EtcdConfig,
    /// What a new cluster is made of.
    pub bootstrap: BootstrapConfig,
    /// The local server.
    pub postgres: PostgresConfig,
    /// This member's tags, as given.
    pub tags: Map<String, Value>,
    /// The group of a Citus cluster that this node belongs to.
    pub citus: Option<CitusConfig>,
    /// Poolers that are paused around a planned change.
    pub poolers: Vec<PoolerConfig>,
    /// Virtual addresses.
    pub vip: VipConfig,
    /// The watchdog device.
    pub watchdog: WatchdogConfig,
    /// Our own log.
    pub log: LogConfig,
    /// Settings that have no effect, or another than their words say: each a dotted key and half a sentence, for a WARN at start.
    pub not_served: Vec<String>,
}

/// `restapi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RestConfig {
    /// Where to listen.
    pub listen: Address,
    /// Where others reach it.
    pub connect_address: Address,
    /// Basic authentication for what changes something; `None`: not asked.
    pub authentication: Option<(String, Secret)>,
    /// HTTPS instead of HTTP.
    pub tls: Option<tls::ServerTls>,
    /// Who may change something, by address; `None`: not asked.
    pub allowlist: Option<Allowlist>,
    /// Sent with each answer.
    pub extra_headers: Vec<(String, String)>,
}

impl RestConfig {
    /// What others reach this interface by.
    pub fn url(&self) -> String {
        let protocol = if self.tls.is_some() { "https" } else { "http" };
        format!("{protocol}://{}", self.connect_address)
    }

    /// Anybody who reaches the port from elsewhere may change everything: no password, certificate or address is asked for.
    pub fn is_open_to_everybody(&self) -> bool {
        let here =
            self.listen.host == "localhost" || self.listen.host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
        let certificate = self.tls.as_ref().is_some_and(|tls| tls.verify_client != tls::VerifyClient::None);
        !here && self.authentication.is_none() && self.allowlist.is_none() && !certificate
    }
}

/// `restapi.allowlist` and `restapi.allowlist_include_members`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allowlist {
    /// Addresses and networks.
    pub networks: Vec<IpNet>,
    /// Names, looked up at each request.
    pub hosts: Vec<String>,
    /// The addresses of the cluster's members as well.
    pub members: bool,
}

/// `ctl`: how members and people ask a member's REST.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CtlConfig {
    /// Shown to members that ask for it; the one of `restapi` where `ctl` has none.
    pub authentication: Option<(String, Secret)>,
    /// For members that speak HTTPS.
    pub tls: tls::Client,
}

/// `etcd3` or `etcd`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdConfig {
    /// As URLs: `http://host:port`. Never empty.
    pub endpoints: Vec<String>,
    /// Certificate authority file.
    pub cacert: Option<PathBuf>,
    /// Our certificate and its key.
    pub client_certificate: Option<(PathBuf, PathBuf)>,
    /// User name, where etcd asks for one.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
}

/// `bootstrap`: read once, when the cluster is new.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BootstrapConfig {
    /// The first dynamic configuration.
    pub dcs: Map<String, Value>,
    /// Long options of initdb.
    pub initdb: Vec<LongOption>,
    /// Lines that are added to pg_hba.conf when the cluster is founded, where no `pg_hba` is given.
    pub pg_hba: Option<Vec<String>>,
    /// Roles to make.
    pub users: Vec<BootstrapUser>,
    /// A method other than initdb that makes the first data directory.
    pub method: Option<BootstrapMethod>,
    /// A command to run when the cluster is made (`post_bootstrap`, or its old name `post_init`).
    pub post_bootstrap: Option<CommandLine>,
}

/// One of `bootstrap.users`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BootstrapUser {
    /// Name and password.
    pub credentials: Credentials,
    /// `createrole`, `createdb`, ...
    pub options: Vec<String>,
}

/// `postgresql`.
#[derive(Debug, Clone, PartialEq)]
pub struct PostgresConfig {
    /// Addresses and port the server listens on.
    pub listen: Listen,
    /// Where others reach it.
    pub connect_address: Address,
    /// Where clients reach it through a proxy or pooler.
    pub proxy_address: Option<Address>,
    /// The data directory: absolute.
    pub data_dir: PathBuf,
    /// Where its configuration files are.
    pub config_dir: PathBuf,
    /// PostgreSQL's programs.
    pub bin_dir: PathBuf,
    /// The password file that we write.
    pub pgpass: PathBuf,
    /// Where the server's standard error goes.
    pub server_log: PathBuf,
    /// The database that our own connections use.
    pub database: String,
    /// The roles that we use.
    pub authentication: Authentication,
    /// Local settings.
    pub parameters: BTreeMap<String, String>,
    /// Settings over those, by the server's role.
    pub parameters_by_role: ByRole<BTreeMap<String, String>>,
    /// Lines of pg_hba.conf.
    pub pg_hba: Option<Vec<String>>,
    /// Instead of those, by the server's role.
    pub pg_hba_by_role: ByRole<Option<Vec<String>>>,
    /// Lines of pg_ident.conf.
    pub pg_ident: Option<Vec<String>>,
    /// Instead of those, by the server's role.
    pub pg_ident_by_role: ByRole<Option<Vec<String>>>,
    /// How copies are made, best first; never empty.
    pub create_replica_methods: Vec<ReplicaMethod>,
    /// Long options of pg_basebackup.
    pub basebackup: Vec<LongOption>,
    /// Long options of pg_rewind.
    pub rewind: Vec<LongOption>,
    /// Our own connections go through the socket directory; `None`: where that leads nowhere, by TCP.
    pub use_unix_socket: Option<bool>,
    /// Members have replication slots; `None`: the dynamic configuration says (default true).
    pub use_slots: Option<bool>,
    /// Rejoin by pg_rewind where possible; `None`: the dynamic configuration says (default false).
    pub use_pg_rewind: Option<bool>,
    /// Clone when a rewind failed; `None`: the dynamic configuration says (default false).
    pub remove_data_directory_on_rewind_failure: Option<bool>,
    /// Clone when timelines diverged and a rewind is impossible; `None`: as above.
    pub remove_data_directory_on_diverged_timelines: Option<bool>,
    /// Seconds to wait for a start or stop before saying so; `None`: the dynamic configuration says (default 60).
    pub pg_ctl_timeout_s: Option<u64>,
    /// Commands to run after events.
    pub callbacks: Callbacks,
    /// A command to run before a promotion.
    pub pre_promote: Option<CommandLine>,
    /// A command to run before every stop.
    pub before_stop: Option<CommandLine>,
    /// Recovery settings beside our own (`restore_command`, ...).
    pub recovery_conf: BTreeMap<String, String>,
}

/// What a server is, as far as its settings go: the suffix in `parameters_primary` and the like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerRole {
    /// Out of recovery.
    Primary,
    /// In recovery, not leading.
    Replica,
    /// In recovery, leading a standby cluster.
    StandbyLeader,
}

impl ServerRole {
    /// Every role.
    pub const ALL: [ServerRole; 3] = [ServerRole::Primary, ServerRole::Replica, ServerRole::StandbyLeader];
}

impl fmt::Display for ServerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ServerRole::Primary => "primary",
            ServerRole::Replica => "replica",
            ServerRole::StandbyLeader => "standby_leader",
        })
    }
}

/// One value for each role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ByRole<T> {
    /// [`ServerRole::Primary`]'s.
    pub primary: T,
    /// [`ServerRole::Replica`]'s.
    pub replica: T,
    /// [`ServerRole::StandbyLeader`]'s.
    pub standby_leader: T,
}

impl<T> ByRole<T> {
    /// Of this role.
    pub fn of(&self, role: ServerRole) -> &T {
        match role {
            ServerRole::Primary => &self.primary,
            ServerRole::Replica => &self.replica,
            ServerRole::StandbyLeader => &self.standby_leader,
        }
    }

    /// From what makes one value out of the role's name.
    pub fn each(mut value: impl FnMut(&str) -> T) -> ByRole<T> {
        ByRole { primary: value("primary"), replica: value("replica"), standby_leader: value("standby_leader") }
    }
}

/// `postgresql.callbacks`: commands, called with action, role and scope.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Callbacks {
    /// The server became ready after a start.
    pub on_start: Option<CommandLine>,
    /// The arbiter stopped the server.
    pub on_stop: Option<CommandLine>,
    /// The server was restarted in the same role.
    pub on_restart: Option<CommandLine>,
    /// The configuration was reloaded.
    pub on_reload: Option<CommandLine>,
    /// The server was promoted or demoted.
    pub on_role_change: Option<CommandLine>,
}

/// `citus`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CitusConfig {
    /// The group: 0 is the coordinator's.
    pub group: u32,
    /// The databases that are distributed, each with metadata of its own; never empty.
    pub databases: Vec<String>,
    /// How long transactions that use a worker group may go on once its writers are held; `None`: `retry_timeout`, as with Patroni.
    pub lock_cooldown_s: Option<u64>,
    /// When a coordinator's standby is promoted, its sessions end: they began with `citus.use_secondary_nodes=always` and could never write.
    pub end_sessions_at_promotion: bool,
    /// While a worker's primary is changed on purpose, reads wait too, not only writes.
    pub hold_reads: bool,
    /// How long statements under way get to end before a planned change of a worker; `None`: `cluster::citus::GRACE`.
    pub grace_s: Option<u64>,
    /// Whether such a change or the statements in its way come first.
    pub prefer: Option<cluster::citus::Prefer>,
}

/// One of `pgbouncer`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolerConfig {
    /// Where its console is: a host or the directory of its socket, and the port.
    pub address: Address,
    /// One of its `admin_users`.
    pub user: String,
    /// That user's password, where it is asked for.
    pub password: Option<Secret>,
    /// TLS to the console; `None`: it is spoken to in plain.
    pub tls: Option<PoolerTls>,
    /// The databases that are this cluster's; `None`: those whose server is a member.
    pub databases: Option<Vec<String>>,
    /// The part of its configuration, on this machine, in which the primary's address is kept up to date.
    pub databases_file: Option<PathBuf>,
    /// What runs there may take so long to end when it is paused.
    pub pause_within: Duration,
}

/// TLS to a pooler's console, by libpq's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolerTls {
    /// Not in plain, whatever the pooler says (`require` and above).
    pub required: bool,
    /// The certificate must be for the host (`verify-full`).
    pub by_name: bool,
    /// The authority of its certificate, and what is shown to it.
    pub files: crate::ground::tls::Client,
}

/// `vip`: addresses that the arbiter holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct VipConfig {
    /// On the primary, while it may write.
    pub primary: Vec<IpNet>,
    /// On the member that reads go to.
    pub replica: Vec<IpNet>,
    /// The network interface they are on.
    pub interface: String,
}

/// `watchdog`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WatchdogConfig {
    /// Whether a device is used.
    pub mode: cluster::watchdog::Mode,
    /// Which.
    pub device: PathBuf,
    /// It fires so many seconds before the TTL is over; -1: at half of it.
    pub safety_margin_s: i64,
}

/// `log`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogConfig {
    /// The least level written: `error`, `warn`, `info`, `debug` or `trace`.
    pub level: Option<&'static str>,
    /// JSON lines instead of text.
    pub json: bool,
    /// A directory for log files instead of standard error.
    pub dir: Option<PathBuf>,
}

/// Everything that is wrong with a node's configuration, one line each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigErrors {
    /// The file or directory.
    pub file: PathBuf,
    /// Keys that nobody knows, each with the nearest known one.
    pub unknown: Vec<String>,
    /// Values that are missing or wrong.
    pub wrong: Vec<String>,
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot use the configuration {}:", self.file.display())?;
        for line in self.unknown.iter().chain(&self.wrong) {
            write!(f, "\n  {line}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl NodeConfig {
    /// The method that makes the first data directory instead of initdb. A standby cluster begins with a copy.
    pub fn founding_method(&self) -> Option<&BootstrapMethod> {
        let follows = cluster::config::DynamicConfig(self.bootstrap.dcs.clone()).standby_cluster().is_some();
        self.bootstrap.method.as_ref().filter(|_| !follows)
    }

    /// The keys of everything under the scope: of this cluster, or of all groups of the Citus cluster.
    pub fn scope_keys(&self) -> Keys {
        Keys::new(&self.namespace, &self.scope)
    }

    /// The keys of this node's own cluster.
    pub fn keys(&self) -> Keys {
        let keys = self.scope_keys();
        self.citus.as_ref().map_or_else(|| keys.clone(), |citus| keys.group(citus.group))
    }
}

impl PostgresConfig {
    /// PostgreSQL's programs.
    pub fn programs(&self) -> Programs {
        Programs::new(&self.bin_dir)
    }

    /// Those of a major version, by where the file says that those of one are.
    pub fn programs_of(&self, major: u32) -> Option<Programs> {
        let bin_dir = self.bin_dir.to_str()?;
        let of_file = named(bin_dir)?;
        if of_file == major { Some(self.programs()) } else { beside(bin_dir, of_file, major).map(Programs::new) }
    }

    /// Those that the data asks for: after an upgrade the file may still name the version of before. Those of the file where the data does
    /// not say, or where its version is not there.
    pub fn programs_at_start(&self) -> Programs {
        let version = std::fs::read_to_string(self.data_dir.join("PG_VERSION")).ok();
        let of_data = version.and_then(|version| self.programs_of(version.trim().parse().ok()?));
        of_data.filter(|programs| programs.path("postgres").is_file()).unwrap_or_else(|| self.programs())
    }

    /// The server's configuration files.
    pub fn files(&self) -> ConfigFiles {
        ConfigFiles { data_dir: self.data_dir.clone(), config_dir: self.config_dir.clone() }
    }
}

#[cfg(test)]
mod tests;
