//! Every setting of the extension: its unit, its default and why.
//!
//! The arbiter writes most of them from the node's file. Settings that a reload may change are read
//! again by the lease worker on SIGHUP; which node this is can change by a restart only.

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum, pg_sys};
use std::ffi::{CStr, CString};
use std::time::Duration;

type Text = GucSetting<Option<CString>>;

/// The levels of `synchronous_commit`, in Postgres' own order (its numbers are these ordinals).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, PostgresGucEnum)]
pub enum SynchronousCommit {
    /// Nothing is awaited.
    #[name = c"off"]
    Off,
    /// Flushed here.
    #[name = c"local"]
    Local,
    /// Written, not yet flushed, by the synchronous standbys.
    #[name = c"remote_write"]
    RemoteWrite,
    /// Flushed by the synchronous standbys.
    #[name = c"on"]
    On,
    /// Visible on the synchronous standbys.
    #[name = c"remote_apply"]
    RemoteApply,
}

static SCOPE: Text = Text::new(None);
static NAMESPACE: Text = Text::new(Some(c"/service"));
static NAME: Text = Text::new(None);
/// Negative: no Citus cluster.
static GROUP: GucSetting<i32> = GucSetting::<i32>::new(-1);
static COORDINATOR_TERM: Text = Text::new(None);
static SAY_TERM: GucSetting<bool> = GucSetting::<bool>::new(true);
static SESSIONS_READ_ONLY: GucSetting<bool> = GucSetting::<bool>::new(false);
static ETCD_ENDPOINTS: Text = Text::new(None);
static ETCD_CACERT: Text = Text::new(None);
static ETCD_CERT: Text = Text::new(None);
static ETCD_KEY: Text = Text::new(None);
static ETCD_USERNAME: Text = Text::new(None);
static ETCD_PASSWORD_FILE: Text = Text::new(None);
static MEMBER: Text = Text::new(None);
static WAKE_SOCKET: Text = Text::new(None);
/// Half the default TTL: a renewal that is later than that will hardly come at all.
static FENCE_WAIT_MS: GucSetting<i32> = GucSetting::<i32>::new(5000);
static FENCE_READS: GucSetting<bool> = GucSetting::<bool>::new(false);
/// A compromise: short enough for a takeover people hardly notice, long enough for etcd's own election.
static TTL_S: GucSetting<i32> = GucSetting::<i32>::new(10);
static MINIMUM_SYNCHRONOUS_COMMIT: GucSetting<SynchronousCommit> = GucSetting::<SynchronousCommit>::new(SynchronousCommit::On);

const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
    Ok(version) => version,
    Err(_) => panic!("a version holds no zero byte"),
};
static LIBRARY_VERSION: Text = Text::new(Some(VERSION));
static LIBRARY_SPEECH: Text = Text::new(Some(cluster::speech::OURS_AS_TEXT));

/// Defines the settings. Called once, while the postmaster loads the library.
pub fn register() {
    let start = || GucContext::Postmaster;
    let reload = || GucContext::Sighup;
    let open = GucFlags::empty();
    let secret = GucFlags::SUPERUSER_ONLY;
    let text = GucRegistry::define_string_guc;
    text(
        c"tenure.scope",
        c"Name of the cluster this server belongs to.",
        c"Empty: the server is unmanaged, no commit is fenced and no lease worker runs.",
        &SCOPE,
        start(),
        open,
    );
    text(
        c"tenure.namespace",
        c"Prefix of the cluster's keys in etcd.",
        c"Patroni's default, so that existing tools find the cluster.",
        &NAMESPACE,
        start(),
        open,
    );
    // Settings and no functions: they tell of the library whatever SQL objects there are, also none, or those of another release.
    text(
        c"tenure.library_version",
        c"The release of pg_tenure that this server has loaded.",
        c"Set by the library itself. The SQL objects may be of another one: see the view tenure.version.",
        &LIBRARY_VERSION,
        GucContext::Internal,
        GucFlags::DISALLOW_IN_FILE,
    );
    text(
        c"tenure.library_speech",
        c"Which form of keys and calls the library speaks, and the oldest that it serves.",
        c"Set by the library itself, and read by the arbiter before it calls anything.",
        &LIBRARY_SPEECH,
        GucContext::Internal,
        GucFlags::DISALLOW_IN_FILE,
    );
    text(c"tenure.name", c"Name of this member, unique in its scope.", c"", &NAME, start(), open);
    GucRegistry::define_int_guc(
        c"tenure.group",
        c"Group of this server in a Citus cluster.",
        c"Each group has its own keys, below the scope's. -1: there are no groups.",
        &GROUP,
        -1,
        i32::MAX,
        start(),
        open,
    );
    text(
        c"tenure.coordinator_term",
        c"In which term of a Citus coordinator this session was opened.",
        c"Set by the coordinator's servers on every connection to other nodes; a worker ends sessions of a coordinator that was deposed.",
        &COORDINATOR_TERM,
        GucContext::Backend,
        open,
    );
    GucRegistry::define_bool_guc(
        c"tenure.sessions_read_only",
        c"Whether sessions that begin now stay read-only, whatever becomes of the server.",
        c"Set by the arbiter on the standbys of a Citus coordinator, whose sessions keep citus.use_secondary_nodes=always and can never write.",
        &SESSIONS_READ_ONLY,
        reload(),
        open,
    );
    GucRegistry::define_bool_guc(
        c"tenure.say_term",
        c"Whether a Citus coordinator's connections to other nodes carry its term.",
        c"They do so in libpq's options. Off where a pooler between the nodes refuses these.",
        &SAY_TERM,
        reload(),
        open,
    );
    text(c"tenure.etcd_endpoints", c"Addresses of etcd, as a comma-separated list of URLs.", c"", &ETCD_ENDPOINTS, reload(), secret);
    text(
        c"tenure.etcd_cacert",
        c"File with the certificate authority that etcd's certificate is checked against.",
        c"",
        &ETCD_CACERT,
        reload(),
        secret,
    );
    text(c"tenure.etcd_cert", c"File with the client certificate shown to etcd.", c"", &ETCD_CERT, reload(), secret);
    text(c"tenure.etcd_key", c"File with the client certificate's key.", c"", &ETCD_KEY, reload(), secret);
    text(c"tenure.etcd_username", c"User name at etcd.", c"", &ETCD_USERNAME, reload(), secret);
    text(
        c"tenure.etcd_password_file",
        c"File with the password at etcd.",
        c"A file, so that the password stands in no setting and no log.",
        &ETCD_PASSWORD_FILE,
        reload(),
        secret,
    );
    text(
        c"tenure.member",
        c"What the arbiter wants in this member's key, as JSON.",
        c"conn_url, api_url, tags and version.",
        &MEMBER,
        reload(),
        secret,
    );
    text(
        c"tenure.wake_socket",
        c"Path of the arbiter's datagram socket.",
        c"One byte sent there makes the arbiter look again at once.",
        &WAKE_SOCKET,
        reload(),
        secret,
    );
    GucRegistry::define_int_guc(
        c"tenure.fence_wait",
        c"How long a commit waits for the lease to be renewed before it fails.",
        c"Zero fails at once.",
        &FENCE_WAIT_MS,
        0,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
    GucRegistry::define_bool_guc(
        c"tenure.fence_reads",
        c"Whether a primary without a running lease also refuses to read tables.",
        c"Off by default: a stale read is often better than none. Catalogs stay readable, and so do standbys.",
        &FENCE_READS,
        GucContext::Suset,
        open,
    );
    GucRegistry::define_int_guc(
        c"tenure.ttl",
        c"Time to live of the lease while the cluster's configuration was never read.",
        c"Afterwards the key ttl of the dynamic configuration counts.",
        &TTL_S,
        3,
        86_400,
        reload(),
        GucFlags::UNIT_S,
    );
    GucRegistry::define_enum_guc(
        c"tenure.minimum_synchronous_commit",
        c"The least synchronous_commit a commit uses while synchronous_standby_names is set.",
        c"Otherwise any session could acknowledge commits that the next leader has never seen.",
        &MINIMUM_SYNCHRONOUS_COMMIT,
        GucContext::Suset,
        open,
    );
    // A misspelt tenure.* setting is an error where Postgres knows how (15 and later), else a warning.
    #[cfg(not(feature = "pg14"))]
    // SAFETY: the prefix is a constant C string.
    unsafe {
        pg_sys::MarkGUCPrefixReserved(c"tenure".as_ptr());
    }
    #[cfg(feature = "pg14")]
    // SAFETY: the prefix is a constant C string.
    unsafe {
        pg_sys::EmitWarningsOnPlaceholders(c"tenure".as_ptr());
    }
}

/// A text setting; None where it is empty or no UTF-8.
fn text(setting: &'static Text) -> Option<String> {
    setting.get().and_then(|text: CString| text.into_string().ok()).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

/// `tenure.scope`; None means unmanaged.
pub fn scope() -> Option<String> {
    text(&SCOPE)
}

/// `tenure.namespace`.
pub fn namespace() -> String {
    text(&NAMESPACE).unwrap_or_else(|| "/service".to_owned())
}

/// `tenure.name`.
pub fn name() -> Option<String> {
    text(&NAME)
}

/// `tenure.group`; None where there are no groups.
pub fn group() -> Option<u32> {
    u32::try_from(GROUP.get()).ok()
}

/// `tenure.coordinator_term`; 0 where the session is no coordinator's.
pub fn coordinator_term() -> i64 {
    text(&COORDINATOR_TERM).and_then(|term| term.parse().ok()).unwrap_or(0)
}

/// `tenure.sessions_read_only`.
pub fn sessions_read_only() -> bool {
    SESSIONS_READ_ONLY.get()
}

/// `tenure.say_term`.
pub fn say_term() -> bool {
    SAY_TERM.get()
}

/// `tenure.etcd_endpoints`, split and trimmed.
pub fn etcd_endpoints() -> Vec<String> {
    let list = text(&ETCD_ENDPOINTS).unwrap_or_default();
    list.split(',').map(str::trim).filter(|endpoint| !endpoint.is_empty()).map(str::to_owned).collect()
}

/// `tenure.etcd_cacert`.
pub fn etcd_cacert() -> Option<String> {
    text(&ETCD_CACERT)
}

/// `tenure.etcd_cert`.
pub fn etcd_cert() -> Option<String> {
    text(&ETCD_CERT)
}

/// `tenure.etcd_key`.
pub fn etcd_key() -> Option<String> {
    text(&ETCD_KEY)
}

/// `tenure.etcd_username`.
pub fn etcd_username() -> Option<String> {
    text(&ETCD_USERNAME)
}

/// `tenure.etcd_password_file`.
pub fn etcd_password_file() -> Option<String> {
    text(&ETCD_PASSWORD_FILE)
}

/// `tenure.member`: JSON text.
pub fn member() -> Option<String> {
    text(&MEMBER)
}

/// `tenure.wake_socket`.
pub fn wake_socket() -> Option<String> {
    text(&WAKE_SOCKET)
}

/// `tenure.fence_wait`.
pub fn fence_wait() -> Duration {
    Duration::from_millis(u64::try_from(FENCE_WAIT_MS.get()).unwrap_or(0))
}

/// `tenure.fence_reads`.
pub fn fence_reads() -> bool {
    FENCE_READS.get()
}

/// `tenure.ttl`.
pub fn ttl() -> Duration {
    Duration::from_secs(u64::try_from(TTL_S.get()).unwrap_or(10))
}

/// `tenure.minimum_synchronous_commit`.
pub fn minimum_synchronous_commit() -> SynchronousCommit {
    MINIMUM_SYNCHRONOUS_COMMIT.get()
}

/// The server has such a setting and hides its value from ordinary roles.
pub fn is_known(name: &CStr) -> bool {
    // SAFETY: missing_ok; the name is a C string.
    let flags = unsafe { pg_sys::GetConfigOptionFlags(name.as_ptr(), true) };
    u32::try_from(flags).is_ok_and(|flags| flags & pg_sys::GUC_SUPERUSER_ONLY != 0)
}

/// Any setting by name, as text: for Postgres' own settings that have no binding.
pub fn of_postgres(name: &CStr) -> Option<String> {
    // SAFETY: missing_ok, and the result is a C string that lives until the next call; it is copied at once.
    unsafe {
        let value = pg_sys::GetConfigOption(name.as_ptr(), true, false);
        if value.is_null() { None } else { CStr::from_ptr(value).to_str().ok().map(str::to_owned) }
    }
}
