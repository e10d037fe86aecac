//! What the local server says of itself over SQL, and the few statements that the arbiter runs there.

use super::conf::conninfo;
use super::facts::{FACTS, FenceCounts, FenceSeen, ServerFacts, Untaken};
use super::local::{LocalServer, Stream};
use crate::postgres::credentials::{Authentication, Credentials};
use anyhow::{Context, Result, anyhow, bail};
use cluster::host::Address;
use cluster::parameter::Parameter;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::{Mutex, Notify};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, NoTls, Statement};

/// The name of the sessions that work on logical slots.
pub const SLOTS_SESSION: &str = "tenure arbiter, slots";

/// Longest wait for a connection, as in Patroni.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// The server cancels our statements after 2 s; past this the connection itself is given up.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// A session that lasted for less is no news when it ends: the next look makes another, and would make one after the other.
const LASTED: Duration = Duration::from_millis(250);

/// Session settings under which no statement's text is logged, whatever happens to it.
pub const QUIET: &str = "-c log_statement=none -c log_min_duration_statement=-1 -c log_min_duration_sample=-1 -c log_transaction_sample_rate=0 \
    -c log_min_error_statement=panic -c log_parser_stats=off -c debug_print_parse=off -c synchronous_commit=local";

/// A persistent connection to the local server as superuser; made when first needed, made again when it broke.
pub struct LocalSql {
    server: LocalServer,
    /// The number of the way that was gone last.
    preferred: AtomicUsize,
    config: std::sync::Mutex<tokio_postgres::Config>,
    session: Mutex<Option<Session>>,
    /// Told when the persistent connection ends: with it the server, perhaps, or all of its processes but the postmaster.
    ended: Option<Arc<Notify>>,
}

#[derive(Clone)]
struct Session {
    client: Arc<Client>,
    facts: Statement,
    foreign: Statement,
}

impl LocalSql {
    /// Connects later, when first asked something.
    pub fn new(server: LocalServer, superuser: &Credentials, database: &str) -> LocalSql {
        let mut config = tokio_postgres::Config::new();
        config.user(&superuser.username).dbname(database).application_name("tenure arbiter");
        if let Some(password) = &superuser.password {
            config.password(password.reveal());
        }
        LocalSql { server, preferred: AtomicUsize::new(0), config: std::sync::Mutex::new(config), session: Mutex::new(None), ended: None }
    }

    /// As it is, and whenever the persistent connection ends this is told.
    pub fn telling(self, ended: Arc<Notify>) -> LocalSql {
        LocalSql { ended: Some(ended), ..self }
    }

    /// The next connection is made with these: the node's file was read again. The present one stays.
    pub fn authenticate_as(&self, superuser: &Credentials) {
        let mut config = self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        config.user(&superuser.username);
        if let Some(password) = &superuser.password {
            config.password(password.reveal());
        }
    }

    fn config(&self) -> tokio_postgres::Config {
        self.config.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// One look at the server: one round trip, or three when the connection is new.
    pub async fn facts(&self) -> Result<ServerFacts> {
        let session = self.session().await?;
        let asked = answer(session.client.query_one(&session.facts, &[])).await;
        let row = self.noting_loss(asked).await.context("ask the server for its state")?;
        let text: &str = row.try_get(0).context("ask the server for its state")?;
        serde_json::from_str(text).context("understand the server's state")
    }

    /// Writes a checkpoint, on a connection of its own: it may take minutes, and others must not wait for it.
    pub async fn checkpoint(&self) -> Result<()> {
        let client = self.connect(&self.config(), "-c statement_timeout=0").await?;
        client.batch_execute("CHECKPOINT").await.context("checkpoint")
    }

    /// Makes the server read its configuration again (as [`super::postmaster::Postmaster::reload`], for where no process is at hand).
    pub async fn reload(&self) -> Result<()> {
        self.execute("SELECT pg_catalog.pg_reload_conf()").await.context("reload the configuration")
    }

    /// Makes the server read its configuration again, and returns once the postmaster is known to have done so: it has then also
    /// told every process of an earlier reload.
    pub async fn reload_and_see(&self) -> Result<()> {
        const LOADED: &str = "SELECT pg_conf_load_time()::text";
        let session = self.session().await?;
        let loaded = async || -> Result<String> {
            let asked = answer(session.client.query_one(LOADED, &[])).await;
            Ok(self.noting_loss(asked).await.context("ask when the configuration was loaded")?.try_get(0)?)
        };
        let before = loaded().await?;
        self.reload().await?;
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        while loaded().await? == before {
            if tokio::time::Instant::now() > deadline {
                bail!("the server has not read its configuration again within {} s", ANSWER_TIMEOUT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Ends the session; the next question makes a new one.
    pub async fn hang_up(&self) {
        *self.session.lock().await = None;
    }

    /// Runs statements without results.
    pub async fn execute(&self, statements: &str) -> Result<()> {
        let session = self.session_for(statements).await?;
        let done = answer(session.client.batch_execute(statements)).await;
        self.noting_loss(done).await
    }

    /// What this node's own page says of its fence.
    pub async fn fence(&self) -> Result<FenceSeen> {
        const FENCE: &str = "SELECT CASE WHEN fence = 'open' OR pg_is_in_recovery() THEN greatest(extract(epoch FROM deadline_left), 0)::float8 END, \
            extract(epoch FROM draining_for)::float8, pg_is_in_recovery() FROM tenure.lease()";
        let session = self.session_of_ours().await?;
        let asked = answer(session.client.query_one(FENCE, &[])).await;
        let row = self.noting_loss(asked).await.context("ask for the fence")?;
        let (left, draining_for): (Option<f64>, Option<f64>) = (row.try_get(0)?, row.try_get(1)?);
        let span = |seconds: Option<f64>| seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        Ok(FenceSeen { left: span(left), draining_for: span(draining_for), in_recovery: row.try_get(2)? })
    }

    /// Sends a notification to the sessions that listen in this database; on a connection of its own, as it is a commit and may wait at the fence.
    pub async fn notify(&self, channel: &str, payload: &str) -> Result<()> {
        let client = self.connect(&self.config(), QUIET).await?;
        answer(client.execute("SELECT pg_notify($1, $2)", &[&channel, &payload])).await.map(drop)
    }

    /// What the extension has counted since the server started.
    pub async fn fence_counts(&self) -> Result<FenceCounts> {
        const COUNTS: &str = "SELECT json_build_object('waited', commits_waited, 'refused', commits_refused, 'cut', commits_cut,
            'timings', (SELECT json_object_agg(timing, told) FROM (SELECT timing, json_build_object('counts', json_agg(count ORDER BY at_most_seconds),
                'seconds', max(total_seconds)) AS told FROM tenure.timings() GROUP BY timing) t))::text FROM tenure.lease()";
        let session = self.session_of_ours().await?;
        let asked = answer(session.client.query_one(COUNTS, &[])).await;
        let text: String = self.noting_loss(asked).await.context("ask the extension for its counts")?.try_get(0)?;
        serde_json::from_str(&text).context("understand the extension's counts")
    }

    /// What the server says of these parameters; nothing of those it does not know.
    pub async fn parameters(&self, names: &[String]) -> Result<BTreeMap<String, Parameter>> {
        const ASKED: &str = "SELECT coalesce(json_object_agg(name, json_build_object('vartype', vartype, 'unit', unit, 'min_val', min_val,
            'max_val', max_val, 'enumvals', enumvals, 'context', context)), '{}')::text FROM pg_settings WHERE lower(name) = ANY ($1)";
        let session = self.session().await?;
        let names: Vec<String> = names.iter().map(|name| name.to_lowercase()).collect();
        let asked = answer(session.client.query_one(ASKED, &[&names])).await;
        let text: String = self.noting_loss(asked).await.context("ask the server for its parameters")?.try_get(0)?;
        let told: BTreeMap<String, Parameter> = serde_json::from_str(&text).context("understand the server's parameters")?;
        Ok(told.into_iter().map(|(name, parameter)| (name.to_lowercase(), parameter)).collect())
    }

    /// What the server says of every parameter that it knows.
    pub async fn all_parameters(&self) -> Result<BTreeMap<String, Parameter>> {
        const ASKED: &str = "SELECT json_object_agg(lower(name), json_build_object('vartype', vartype, 'unit', unit, 'min_val', min_val,
            'max_val', max_val, 'enumvals', enumvals, 'context', context))::text FROM pg_settings";
        serde_json::from_str(&self.text(ASKED).await.context("ask the server for its parameters")?)
            .context("understand the server's parameters")
    }

    /// The settings of its files that the server does not take, though they ask for no restart.
    pub async fn untaken(&self) -> Result<Vec<Untaken>> {
        const ASKED: &str = "SELECT coalesce(json_agg(json_build_object('file', f.sourcefile, 'name', coalesce(f.name, ''), 'value',
            coalesce(f.setting, ''), 'error', f.error)), '[]')::text FROM pg_file_settings f
            LEFT JOIN pg_settings s ON lower(s.name) = lower(f.name) WHERE f.error IS NOT NULL AND s.context IS DISTINCT FROM 'postmaster'";
        serde_json::from_str(&self.text(ASKED).await.context("ask what the server takes of its files")?)
            .context("understand what the server takes")
    }

    /// How the server archives: `archive_command` (empty where a library does it) and the bytes of a segment. None where it does not.
    pub async fn archiving(&self) -> Result<Option<(String, u64)>> {
        const ASKED: &str = "SELECT current_setting('archive_mode') <> 'off', current_setting('archive_command'), \
            coalesce(current_setting('archive_library', true), '') <> '', (SELECT setting::int8 FROM pg_settings WHERE name = 'wal_segment_size')";
        let session = self.session().await?;
        let asked = answer(session.client.query_one(ASKED, &[])).await;
        let row = self.noting_loss(asked).await.context("ask how the server archives")?;
        let (on, command, library, bytes): (bool, String, bool, i64) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?, row.try_get(3)?);
        let command = if library { String::new() } else { command };
        Ok((on && (library || !command.is_empty())).then_some((command, u64::try_from(bytes)?)))
    }

    /// Asks a question whose answer is yes or no.
    pub async fn ask(&self, question: &str) -> Result<bool> {
        let session = self.session_for(question).await?;
        let asked = answer(session.client.query_one(question, &[])).await;
        Ok(self.noting_loss(asked).await?.try_get(0)?)
    }

    /// No client has got anything done for so long: each waits for another one, or for its own program.
    pub async fn clients_idle_for(&self, span: Duration) -> Result<bool> {
        self.ask(&format!(
            "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
               AND application_name NOT LIKE 'tenure arbiter%' AND (state_change > clock_timestamp() - interval '{} ms'
                 OR state = 'active' AND (wait_event_type IS NULL OR wait_event_type IN ('IO', 'LWLock', 'BufferPin', 'IPC')
                   AND wait_event <> 'SyncRep')))",
            span.as_millis()
        ))
        .await
        .context("ask what clients do")
    }

    /// Asks a question whose answer is a text.
    pub async fn text(&self, question: &str) -> Result<String> {
        let session = self.session_for(question).await?;
        let asked = answer(session.client.query_one(question, &[])).await;
        Ok(self.noting_loss(asked).await?.try_get(0)?)
    }

    /// Runs one statement with arguments in our session; gives how many rows came of it.
    pub async fn run(&self, statement: &str, arguments: &[&(dyn ToSql + Sync)]) -> Result<u64> {
        let session = self.session_for(statement).await?;
        let done = answer(session.client.execute(statement, arguments)).await;
        self.noting_loss(done).await
    }

    /// A session of its own for what takes longer than a turn may; in this database, or in the usual one.
    pub async fn open(&self, database: Option<&str>, options: &str) -> Result<Client> {
        self.open_as(SLOTS_SESSION, database, options).await
    }

    /// As [`LocalSql::open`], under another name.
    pub async fn open_as(&self, application_name: &str, database: Option<&str>, options: &str) -> Result<Client> {
        let mut config = self.config();
        config.application_name(application_name);
        if let Some(database) = database {
            config.dbname(database);
        }
        self.connect(&config, options).await
    }

    /// Makes or updates the superuser's password, the replication role and the rewind role. Passwords travel and are stored as SCRAM
    /// secrets, and this session writes none of it into the server's log.
    pub async fn ensure_roles(&self, authentication: &Authentication) -> Result<()> {
        let mut statements = String::new();
        statements.push_str(&role_statement(&authentication.superuser, "SUPERUSER LOGIN"));
        if authentication.replication.username != authentication.superuser.username {
            statements.push_str(&role_statement(&authentication.replication, "LOGIN REPLICATION"));
        }
        if let Some(rewind) = &authentication.rewind
            && rewind.username != authentication.superuser.username
        {
            let options = if rewind.username == authentication.replication.username { "LOGIN REPLICATION" } else { "LOGIN" };
            statements.push_str(&role_statement(rewind, options));
            statements.push_str(&rewind_grants(&rewind.username));
        }
        self.quietly(&statements).await.context("create the cluster's roles")
    }

    /// Makes or updates one more role, with the options of `CREATE ROLE` (`createdb`, `nologin`, ...); words only.
    pub async fn ensure_role(&self, credentials: &Credentials, options: &[String]) -> Result<()> {
        if let Some(odd) = options.iter().find(|option| !option.chars().all(|c| c.is_ascii_alphabetic() || c == ' ')) {
            bail!("\"{odd}\" is no role option");
        }
        self.quietly(&role_statement(credentials, &options.join(" ")))
            .await
            .with_context(|| format!("create role {}", credentials.username))
    }

    /// Runs statements in one transaction, without waiting for a synchronous standby (there may be none yet). The log is quiet from the
    /// session's first moment: a `SET` in the same message would come too late, as the message is logged before it runs.
    async fn quietly(&self, statements: &str) -> Result<()> {
        let client = self.connect(&self.config(), QUIET).await?;
        answer(client.batch_execute(statements)).await
    }

    /// As [`LocalSql::session`], for a statement that may call functions of ours.
    async fn session_for(&self, statement: &str) -> Result<Session> {
        if statement.contains("tenure.") || statement.contains("tenure_internal.") {
            self.session_of_ours().await
        } else {
            self.session().await
        }
    }

    /// A session in which what goes by our names is known to be ours. Asked each time: the extension may be dropped, and its names be
    /// taken, at any moment.
    async fn session_of_ours(&self) -> Result<Session> {
        let session = self.session().await?;
        let asked = answer(session.client.query_opt(&session.foreign, &[])).await;
        judge_foreign(self.noting_loss(asked).await.context("ask whose the functions of pg_tenure are")?)?;
        Ok(session)
    }

    /// A session by the first way that leads to the server. Where the socket's line of pg_hba lets nobody in, TCP's may.
    async fn connect(&self, config: &tokio_postgres::Config, more_options: &str) -> Result<Client> {
        self.connect_telling(config, more_options, None).await
    }

    async fn connect_telling(&self, config: &tokio_postgres::Config, more_options: &str, ended: Option<&Arc<Notify>>) -> Result<Client> {
        let ways = &self.server.ways;
        let first = self.preferred.load(Ordering::Relaxed);
        let mut failures = Vec::new();
        for turn in 0..ways.len() {
            let at = (first + turn) % ways.len();
            let connected = tokio::time::timeout(CONNECT_TIMEOUT, async {
                let stream = self.server.reach(&ways[at]).await?;
                self.connect_over(config, stream, more_options, ended).await
            });
            match connected.await.unwrap_or_else(|_| Err(anyhow!("no answer within {} s", CONNECT_TIMEOUT.as_secs()))) {
                Ok(client) => {
                    self.preferred.store(at, Ordering::Relaxed);
                    return Ok(client);
                }
                Err(why) if is_starting(&why) => return Err(why.context("connect to the local server")),
                Err(why) => failures.push(why),
            }
        }
        let last = failures.pop().unwrap_or_else(|| anyhow!("there is no way to it"));
        let before: String = failures.iter().map(|why| format!(" (before that: {why:#})")).collect();
        Err(last.context(format!("connect to the local server{before}")))
    }

    async fn connect_over(
        &self,
        config: &tokio_postgres::Config,
        stream: Stream,
        more_options: &str,
        ended: Option<&Arc<Notify>>,
    ) -> Result<Client> {
        let mut config = config.clone();
        // What a database or a role may have set must not bend what we ask.
        let options = "-c statement_timeout=2000 -c search_path=pg_catalog -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed -c DateStyle=ISO";
        config.options(format!("{options} {more_options}").trim_end());
        let (client, connection) = config.connect_raw(stream, NoTls).await?;
        let (ended, began) = (ended.cloned(), Instant::now());
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!("the connection to the local server ended: {error}");
            }
            if let Some(ended) = ended.filter(|_| began.elapsed() > LASTED) {
                ended.notify_one();
            }
        });
        Ok(client)
    }

    /// A session over this stream, for tests with false servers.
    #[cfg(test)]
    pub async fn over(&self, stream: Stream, more_options: &str) -> Result<Client> {
        self.connect_over(&self.config(), stream, more_options, None).await
    }

    async fn session(&self) -> Result<Session> {
        let mut held = self.session.lock().await;
        if let Some(session) = held.as_ref().filter(|session| !session.client.is_closed()) {
            return Ok(session.clone());
        }
        *held = None;
        let client = self.connect_telling(&self.config(), "", self.ended.as_ref()).await?;
        let facts = answer(client.prepare(FACTS)).await.context("prepare the question for the server's state")?;
        let foreign = answer(client.prepare(FOREIGN)).await.context("prepare the question whose the functions of pg_tenure are")?;
        let session = Session { client: Arc::new(client), facts, foreign };
        *held = Some(session.clone());
        Ok(session)
    }

    /// Drops the connection after an error that is not the server's own answer to a statement.
    async fn noting_loss<T>(&self, result: Result<T>) -> Result<T> {
        if let Err(error) = &result
            && error.downcast_ref::<tokio_postgres::Error>().is_none_or(|error| error.as_db_error().is_none() || error.is_closed())
        {
            *self.session.lock().await = None;
        }
        if let Err(error) = &result
            && error.downcast_ref::<tokio_postgres::Error>().is_some_and(|error| error.as_db_error().is_some())
        {
            // A failed batch may leave a transaction open.
            if let Some(session) = self.session.lock().await.clone() {
                let _ = answer(session.client.batch_execute("ROLLBACK")).await;
            }
        }
        result
    }
}

/// What goes by our names in this database and is not ours; an empty text where there is nothing by them.
const FOREIGN: &str = "SELECT what FROM (
    SELECT 'schema ' || n.nspname AS what FROM pg_catalog.pg_namespace n
    WHERE n.nspname IN ('tenure', 'tenure_internal') AND (NOT (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.oid = n.nspowner)
        OR NOT EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
            WHERE d.classid = 'pg_catalog.pg_namespace'::pg_catalog.regclass AND d.objid = n.oid
            AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e' AND e.extname = 'pg_tenure'))
    UNION ALL
    SELECT 'function ' || p.oid::pg_catalog.regprocedure::text FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname IN ('tenure', 'tenure_internal') AND NOT (
        p.prolang = (SELECT l.oid FROM pg_catalog.pg_language l WHERE l.lanname = 'c') AND p.probin = '$libdir/pg_tenure'
        AND (SELECT r.rolsuper FROM pg_catalog.pg_roles r WHERE r.oid = p.proowner)
        AND EXISTS (SELECT FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
            WHERE d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass AND d.objid = p.oid
            AND d.refclassid = 'pg_catalog.pg_extension'::pg_catalog.regclass AND d.deptype = 'e' AND e.extname = 'pg_tenure'))
    UNION ALL
    SELECT '' WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_extension e WHERE e.extname = 'pg_tenure')
        OR (SELECT count(*) FROM pg_catalog.pg_namespace n WHERE n.nspname IN ('tenure', 'tenure_internal')) < 2
    ) AS found ORDER BY what DESC LIMIT 1";

/// Demands that whatever is found in this database by our names is ours: functions in C from our library, of a superuser and of
/// the extension. Otherwise who owns a database, and made a schema of that name before the extension was made, would have functions
/// of theirs called by a superuser. Asked of the catalogs by their full names, before anything of ours is called.
pub async fn demand_ours(client: &Client) -> Result<()> {
    judge_foreign(answer(client.query_opt(FOREIGN, &[])).await.context("ask whose the functions of pg_tenure are")?)
}

fn judge_foreign(found: Option<tokio_postgres::Row>) -> Result<()> {
    match found.map(|row| row.try_get::<_, String>(0)).transpose()? {
        None => Ok(()),
        Some(nothing) if nothing.is_empty() => Err(anyhow::Error::new(ExtensionMissing)),
        Some(what) => bail!(
            "{what} is not pg_tenure's own, so none of its functions is called here; hint: look whose it is, drop or rename it, and run CREATE EXTENSION pg_tenure"
        ),
    }
}

/// The extension was never made in this database, or somebody dropped it.
#[derive(Debug, thiserror::Error)]
#[error("the extension pg_tenure is not there")]
pub struct ExtensionMissing;

/// The server takes no sessions yet, or no more: it starts, recovers from a crash, or shuts down. None of its own serves then.
pub fn is_starting(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    causes.any(|cause| cause.code() == Some(&SqlState::CANNOT_CONNECT_NOW))
}

/// The session is over, as all of its server may be: another one says more.
pub fn is_lost(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<tokio_postgres::Error>());
    causes.any(|cause| cause.is_closed() || matches!(cause.code(), Some(&SqlState::CRASH_SHUTDOWN | &SqlState::ADMIN_SHUTDOWN)))
}

/// The server itself said no: whatever it is that it refused, it lives.
pub fn is_refusal(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.is::<ExtensionMissing>() || cause.downcast_ref::<tokio_postgres::Error>().is_some_and(|error| error.code().is_some())
    })
}

/// Bounds one exchange; the server's own timeout comes first unless it is stuck.
async fn answer<T>(exchange: impl Future<Output = Result<T, tokio_postgres::Error>>) -> Result<T> {
    Ok(tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.context("the local server did not answer within 4 s")??)
}

/// `CREATE ROLE` or `ALTER ROLE`, whichever is due.
fn role_statement(credentials: &Credentials, options: &str) -> String {
    let name = identifier(&credentials.username);
    let password = match &credentials.password {
        Some(password) => format!(" PASSWORD {}", literal(&stored_password(password.reveal()))),
        None => String::new(),
    };
    let (create, alter) = (format!("CREATE ROLE {name} WITH {options}{password}"), format!("ALTER ROLE {name} WITH {options}{password}"));
    format!(
        "DO $tenure$ BEGIN IF EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = {}) THEN {alter}; ELSE {create}; END IF; END $tenure$;\n",
        literal(&credentials.username)
    )
}

/// A SCRAM secret, unless the configuration holds one (or an md5 one) already.
fn stored_password(password: &str) -> String {
    let is_secret = password.starts_with("SCRAM-SHA-256$") || (password.len() == 35 && password.starts_with("md5"));
    if is_secret { password.to_owned() } else { postgres_protocol::password::scram_sha_256(password.as_bytes()) }
}

/// The functions that pg_rewind calls on the source.
fn rewind_grants(username: &str) -> String {
    let role = identifier(username);
    let functions = [
        "pg_ls_dir(text, boolean, boolean)",
        "pg_stat_file(text, boolean)",
        "pg_read_binary_file(text)",
        "pg_read_binary_file(text, bigint, bigint, boolean)",
    ];
    functions.iter().map(|function| format!("GRANT EXECUTE ON FUNCTION pg_catalog.{function} TO {role};\n")).collect()
}

/// An identifier in SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string in SQL, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// The conninfo by which a member reaches another server: who, where, and with which password file.
pub fn member_conninfo(at: &Address, credentials: &Credentials, passfile: &str, application_name: &str, database: Option<&str>) -> String {
    let port = at.port.to_string();
    let mut pairs = vec![("host", at.host.as_str()), ("port", port.as_str()), ("user", credentials.username.as_str())];
    pairs.extend(database.map(|database| ("dbname", database)));
    if credentials.password.is_some() {
        pairs.push(("passfile", passfile));
    }
    pairs.push(("application_name", application_name));
    pairs.extend(credentials.connection.iter().map(|(keyword, value)| (keyword.as_str(), value.as_str())));
    if !credentials.connection.iter().any(|(keyword, _)| keyword == "sslmode") {
        pairs.push(("sslmode", "prefer"));
    }
    conninfo(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::secret::Secret;

    fn role(username: &str, password: Option<&str>) -> Credentials {
        Credentials { username: username.to_owned(), password: password.map(Secret::new), connection: Vec::new() }
    }

    #[test]
    fn a_role_statement_holds_no_clear_password() {
        let statement = role_statement(&role("o'r\"d", Some("hunter2")), "LOGIN REPLICATION");
        assert!(!statement.contains("hunter2"));
        for part in ["rolname = 'o''r\"d'", "CREATE ROLE \"o'r\"\"d\" WITH LOGIN REPLICATION PASSWORD 'SCRAM-SHA-256$4096:", "ALTER ROLE"] {
            assert!(statement.contains(part), "{part} in {statement}");
        }
        assert!(!role_statement(&role("a", None), "LOGIN").contains("PASSWORD"));
        assert_eq!(stored_password("SCRAM-SHA-256$4096:x"), "SCRAM-SHA-256$4096:x");
    }

    #[test]
    fn strings_survive_quotes_and_backslashes() {
        for (text, sql) in [("a", "'a'"), ("it's", "'it''s'"), (r"a\b", r"E'a\\b'")] {
            assert_eq!(literal(text), sql);
        }
    }

    #[test]
    fn a_member_is_reached_with_a_password_file_and_its_own_ssl_settings() {
        let mut credentials = role("replicator", Some("x"));
        let text = member_conninfo(&Address::new("10.0.0.1", 5432), &credentials, "/var/lib/pgpass", "n1", Some("postgres"));
        assert_eq!(
            text,
            "host=10.0.0.1 port=5432 user=replicator dbname=postgres passfile=/var/lib/pgpass application_name=n1 sslmode=prefer"
        );
        credentials.password = None;
        credentials.connection = vec![("sslmode".to_owned(), "verify-full".to_owned())];
        assert_eq!(
            member_conninfo(&Address::new("h", 1), &credentials, "/p", "n1", None),
            "host=h port=1 user=replicator application_name=n1 sslmode=verify-full"
        );
    }
}
