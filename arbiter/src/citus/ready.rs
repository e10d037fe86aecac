//! What every group's primary sees to: that the distributed databases are there, with the extension and the credentials by which
//! nodes reach each other, and that no transaction stays in doubt after a promotion.

use super::session::SESSION;
use crate::config::Credentials;
use crate::node::Node;
use crate::postgres::conf::conninfo;
use crate::postgres::query::{QUIET, identifier};
use anyhow::{Context, Result};
use std::time::Duration;
use tokio_postgres::Client;

/// A new database is a copy of a template, and the extension's script is long.
const PATIENT: &str = "-c statement_timeout=60000";

/// How long the settling of in-doubt transactions may take, and how often it is tried: a node that is away fails it.
const RECOVERY_PATIENCE: Duration = Duration::from_secs(60);
const RECOVERY_TRIES: u32 = 10;

/// Makes what is missing of the distributed databases.
pub async fn make_ready(node: &Node) -> Result<()> {
    let Some(citus) = &node.config.citus else { return Ok(()) };
    let session = node.sql.open_as(SESSION, None, &format!("{QUIET} {PATIENT}")).await?;
    for name in &citus.databases {
        if session.query_opt("SELECT FROM pg_database WHERE datname = $1", &[name]).await?.is_none() {
            session
                .batch_execute(&format!("CREATE DATABASE {}", identifier(name)))
                .await
                .with_context(|| format!("create database {name}"))?;
            tracing::info!("Citus: database {name} was created");
        }
        let database = node.sql.open_as(SESSION, Some(name), &format!("{QUIET} {PATIENT}")).await?;
        database
            .batch_execute("CREATE EXTENSION IF NOT EXISTS citus")
            .await
            .with_context(|| format!("create the extension citus in {name}"))?;
        // For `tenure.status()` and the rest where people are connected. Each group's primary does it for itself.
        database
            .batch_execute(
                "SET citus.enable_ddl_propagation = off; CREATE EXTENSION IF NOT EXISTS pg_tenure; RESET citus.enable_ddl_propagation",
            )
            .await
            .with_context(|| format!("create the extension pg_tenure in {name}"))?;
        let superuser = &node.config.postgres.authentication.superuser;
        keep_credentials(&database, superuser).await.with_context(|| format!("write pg_dist_authinfo in {name}"))?;
    }
    Ok(())
}

/// `pg_dist_authinfo` holds what the superuser shows to other nodes. In clear, as Citus reads it; only superusers can.
async fn keep_credentials(database: &Client, superuser: &Credentials) -> Result<()> {
    let password = superuser.password.as_ref().map(|password| ("password", password.reveal()));
    let files = superuser.connection.iter().filter(|(name, _)| name == "sslcert" || name == "sslkey");
    let pairs: Vec<(&str, &str)> = password.into_iter().chain(files.map(|(name, value)| (name.as_str(), value.as_str()))).collect();
    let known = database
        .query_opt("SELECT authinfo FROM pg_dist_authinfo WHERE nodeid = 0 AND rolename = $1::text::name", &[&superuser.username])
        .await?
        .map(|row| row.try_get::<_, String>(0))
        .transpose()?;
    let wanted = (!pairs.is_empty()).then(|| conninfo(pairs));
    if known == wanted {
        return Ok(());
    }
    // One statement: there is no moment without credentials, whatever becomes of this session.
    const PUT: &str = "INSERT INTO pg_dist_authinfo VALUES (0, $1::text::name, $2)
        ON CONFLICT (rolename, nodeid) DO UPDATE SET authinfo = EXCLUDED.authinfo";
    const REMOVE: &str = "DELETE FROM pg_dist_authinfo WHERE nodeid = 0 AND rolename = $1::text::name";
    match &wanted {
        Some(wanted) => database.execute(PUT, &[&superuser.username, wanted]).await?,
        None => database.execute(REMOVE, &[&superuser.username]).await?,
    };
    tracing::info!("Citus: pg_dist_authinfo has the credentials of {}", superuser.username);
    Ok(())
}

/// Settles transactions in doubt, in the background: those that were begun here, and `everywhere` those of the workers too.
pub fn recover_prepared(node: Node, everywhere: bool) {
    let databases = node.config.citus.as_ref().map(|citus| citus.databases.clone()).unwrap_or_default();
    for name in databases {
        let node = node.clone();
        tokio::spawn(async move {
            for attempt in 1..=RECOVERY_TRIES {
                match tokio::time::timeout(RECOVERY_PATIENCE, recover(&node, &name, everywhere)).await {
                    Ok(Ok(0)) => return,
                    Ok(Ok(count)) => return tracing::info!("Citus: {count} transactions in doubt were settled in {name}"),
                    Ok(Err(why)) if attempt == RECOVERY_TRIES => tracing::warn!("Citus: settle transactions in doubt in {name}: {why:#}"),
                    Ok(Err(why)) => tracing::debug!("Citus: settle transactions in doubt in {name}: {why:#}"),
                    Err(_) => {
                        return tracing::warn!(
                            "Citus: transactions in doubt in {name} were not settled in time; Citus tries again by itself"
                        );
                    }
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
}

async fn recover(node: &Node, database: &str, everywhere: bool) -> Result<i32> {
    let session = node.sql.open_as(SESSION, Some(database), "-c statement_timeout=60000").await?;
    let mut count: i32 = session.query_one("SELECT recover_prepared_transactions()", &[]).await?.try_get(0)?;
    if everywhere {
        let on_workers =
            "SELECT coalesce(sum(result::int), 0)::int FROM run_command_on_workers('SELECT recover_prepared_transactions()') WHERE success";
        count += session.query_one(on_workers, &[]).await?.try_get::<_, i32>(0)?;
    }
    Ok(count)
}
