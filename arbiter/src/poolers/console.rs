//! PgBouncer's admin console: the few commands that a planned change needs. It speaks the simple protocol only.

use crate::config::PoolerConfig;
use anyhow::{Context, Result, bail};
use cluster::poolers::Database;
use std::time::Duration;
use tokio_postgres::config::SslMode;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage, SimpleQueryRow, Socket};
use tokio_postgres_rustls::MakeRustlsConnect;

/// A console on the same network answers in milliseconds; past this it is as good as away.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// A session on the console.
pub struct Console {
    client: Client,
}

impl Console {
    /// Connects and logs in.
    pub async fn open(pooler: &PoolerConfig) -> Result<Console> {
        let mut config = Config::new();
        config.host(&pooler.address.host).port(pooler.address.port).user(&pooler.user).dbname("pgbouncer").connect_timeout(ANSWER_WITHIN);
        if let Some(password) = &pooler.password {
            config.password(password.reveal());
        }
        let connected = async {
            match pooler.tls.clone() {
                None => connect(config.ssl_mode(SslMode::Disable), NoTls).await,
                Some(tls) => {
                    config.ssl_mode(if tls.required { SslMode::Require } else { SslMode::Prefer });
                    let read = move || if tls.by_name { tls.files.load_by_name() } else { tls.files.load() };
                    let read = tokio::task::spawn_blocking(read).await.context("read the certificates")??;
                    connect(&config, MakeRustlsConnect::new((*read).clone())).await
                }
            }
        };
        let client = tokio::time::timeout(ANSWER_WITHIN, connected).await.context("it does not answer")??;
        Ok(Console { client })
    }

    /// Every database it knows of.
    pub async fn databases(&self) -> Result<Vec<Database>> {
        let rows = self.rows("SHOW DATABASES").await?;
        let database = |row: &SimpleQueryRow| -> Result<Database, tokio_postgres::Error> {
            Ok(Database {
                name: row.try_get("name")?.unwrap_or_default().to_owned(),
                host: row.try_get("host")?.unwrap_or_default().to_owned(),
                port: row.try_get("port")?.and_then(|port| port.parse().ok()).unwrap_or_default(),
                paused: row.try_get("paused")? == Some("1"),
            })
        };
        rows.iter().map(database).collect::<Result<_, tokio_postgres::Error>>().context("understand SHOW DATABASES")
    }

    /// Connections to a server of this database are being made. PgBouncer ends them when it pauses, and takes that for a failed login:
    /// after RESUME it would refuse its clients until one has worked (1.18, `check_fast_fail`).
    pub async fn logs_in(&self, database: &str) -> Result<bool> {
        self.any_in_pools(database, &["sv_login"]).await
    }

    /// Clients have server connections of this database.
    pub async fn is_busy(&self, database: &str) -> Result<bool> {
        self.any_in_pools(database, &["sv_active", "sv_tested"]).await
    }

    async fn any_in_pools(&self, database: &str, columns: &[&str]) -> Result<bool> {
        let rows = self.rows("SHOW POOLS").await?;
        let counts = |row: &SimpleQueryRow| -> Result<bool, tokio_postgres::Error> {
            let mut any = false;
            for column in columns {
                any |= row.try_get(*column)?.is_some_and(|count| count != "0");
            }
            Ok(any && row.try_get("database")? == Some(database))
        };
        rows.iter().map(counts).try_fold(false, |any, one| Ok::<bool, tokio_postgres::Error>(any | one?)).context("understand SHOW POOLS")
    }

    /// Returns once no server connection of this database is left: what runs there has ended, what comes waits.
    pub async fn pause(&self, database: &str) -> Result<()> {
        self.client.simple_query(&format!("PAUSE {}", quoted(database))).await.map(drop).context("PAUSE")
    }

    /// What waits goes on.
    pub async fn resume(&self, database: &str) -> Result<()> {
        self.rows(&format!("RESUME {}", quoted(database))).await.map(drop).context("RESUME")
    }

    /// Its files are read again.
    pub async fn reload(&self) -> Result<()> {
        self.rows("RELOAD").await.map(drop).context("RELOAD")
    }

    async fn rows(&self, command: &str) -> Result<Vec<SimpleQueryRow>> {
        let answered = tokio::time::timeout(ANSWER_WITHIN, self.client.simple_query(command)).await;
        let Ok(answer) = answered else { bail!("no answer within {} s", ANSWER_WITHIN.as_secs()) };
        let rows = answer?.into_iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        });
        Ok(rows.collect())
    }
}

async fn connect<T>(config: &Config, tls: T) -> Result<Client>
where
    T: MakeTlsConnect<Socket, Stream: Send + 'static>,
{
    let (client, connection) = config.connect(tls).await.context("connect to its console")?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("the connection to PgBouncer's console ended: {error}");
        }
    });
    Ok(client)
}

/// As the console takes names: always in quotes, a quote doubled.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
