//! What the two servers of an upgrade are told and asked by SQL: publication, refusal of definitions, slots, subscriptions, sequences.
//!
//! Everything of ours is called `tenure_upgrade`. Our sessions are of the role `replica`, so that the refusal does not concern them.

use crate::postgres::query::{LocalSql, literal};
use anyhow::{Context, Result, bail};
use cluster::lsn::Lsn;
use cluster::upgrade::twin::Followed;
use futures_util::future::try_join_all;
use std::time::Duration;
use tokio_postgres::Client;

/// How our sessions are called.
pub const SESSION: &str = "tenure arbiter, upgrade";

/// The name of the publication, the subscriptions, the schema and the event triggers.
pub const NAME: &str = "tenure_upgrade";

/// A slot begins when every transaction that runs has ended.
const SLOT_PATIENCE: Duration = Duration::from_secs(600);

/// What our sessions are set to: no bound, no trigger, text as both versions print it the same.
const OPTIONS: &str = "-c statement_timeout=0 -c session_replication_role=replica -c TimeZone=UTC -c IntervalStyle=postgres -c extra_float_digits=1 -c bytea_output=hex \
    -c synchronous_commit=local -c row_security=off";

/// A session of ours in this database, or in the usual one.
pub async fn open(sql: &LocalSql, database: Option<&str>) -> Result<Client> {
    sql.open_as(SESSION, database, OPTIONS).await
}

/// A session in each of these databases.
pub async fn open_all(sql: &LocalSql, databases: &[Followed]) -> Result<Vec<Client>> {
    try_join_all(databases.iter().map(|followed| open(sql, Some(&followed.database)))).await
}

/// The databases that let anybody in.
pub async fn databases(sql: &LocalSql) -> Result<Vec<String>> {
    let client = open(sql, None).await?;
    let rows = client.query("SELECT datname::text FROM pg_database WHERE datallowconn ORDER BY datname", &[]).await?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

/// One value of text.
pub async fn text(client: &Client, question: &str) -> Result<String> {
    Ok(client.query_one(question, &[]).await?.try_get(0)?)
}

/// A position.
pub async fn lsn(client: &Client, question: &str) -> Result<Lsn> {
    let said = text(client, question).await?;
    said.parse().map_err(|_| anyhow::anyhow!("{said} is no position"))
}

/// What keeps the two sides alike while one follows: everything is published, and definitions are refused. Temporary tables are nobody
/// else's business, and go through.
const ON_THE_LEADER: &str = "
CREATE SCHEMA tenure_upgrade;
REVOKE ALL ON SCHEMA tenure_upgrade FROM PUBLIC;
CREATE FUNCTION tenure_upgrade.refuse() RETURNS event_trigger LANGUAGE plpgsql SET search_path = pg_catalog AS $body$
DECLARE what text;
BEGIN
    IF tg_event = 'sql_drop' THEN
        SELECT object_type || ' ' || coalesce(object_identity, '') INTO what FROM pg_event_trigger_dropped_objects()
            WHERE original AND NOT is_temporary AND coalesce(schema_name, '') !~ '^pg_temp' LIMIT 1;
    ELSE
        SELECT object_type || ' ' || coalesce(object_identity, '') INTO what FROM pg_event_trigger_ddl_commands()
            WHERE coalesce(schema_name, '') !~ '^pg_temp' LIMIT 1;
    END IF;
    IF what IS NOT NULL THEN
        RAISE EXCEPTION 'definitions can''t be changed while a new major version follows this one: % (%)', tg_tag, what
            USING ERRCODE = 'object_in_use', HINT = 'Wait until the upgrade is over, or have it called off: `tenure upgrade --status` shows it.';
    END IF;
END $body$;
CREATE EVENT TRIGGER tenure_upgrade_made ON ddl_command_end EXECUTE FUNCTION tenure_upgrade.refuse();
CREATE EVENT TRIGGER tenure_upgrade_dropped ON sql_drop EXECUTE FUNCTION tenure_upgrade.refuse();
CREATE PUBLICATION tenure_upgrade FOR ALL TABLES;";

const OFF_THE_LEADER: &str = "
DROP EVENT TRIGGER IF EXISTS tenure_upgrade_made;
DROP EVENT TRIGGER IF EXISTS tenure_upgrade_dropped;
DROP PUBLICATION IF EXISTS tenure_upgrade;
DROP SCHEMA IF EXISTS tenure_upgrade CASCADE;";

/// Are definitions of ours in the arbiter's own database? Every database has them, or none.
pub async fn is_prepared(sql: &LocalSql) -> Result<bool> {
    sql.ask("SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'tenure_upgrade')").await
}

/// Prepares every database of the leader, and makes the slots.
pub async fn prepare(sql: &LocalSql, followed: &[Followed]) -> Result<()> {
    for one in followed {
        let client = open(sql, Some(&one.database)).await?;
        let told = async {
            client.batch_execute(&format!("BEGIN; {OFF_THE_LEADER} {ON_THE_LEADER} COMMIT")).await?;
            make_slot(&client, &one.slot).await
        };
        told.await.with_context(|| format!("prepare the database {}", one.database))?;
    }
    Ok(())
}

/// A logical slot that begins now; one of that name goes before.
pub async fn make_slot(client: &Client, slot: &str) -> Result<()> {
    let name = literal(slot);
    client.batch_execute(&format!("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name = {name}")).await?;
    let statement = format!("SELECT lsn::text FROM pg_create_logical_replication_slot({name}, 'pgoutput')");
    match tokio::time::timeout(SLOT_PATIENCE, client.query_one(&statement, &[])).await {
        Ok(made) => made.map(drop).with_context(|| format!("make the slot {slot}")),
        Err(_) => bail!(
            "the slot {slot} could not begin within {} s: a transaction that writes has run for all that time; hint: pg_stat_activity shows it (backend_xid)",
            SLOT_PATIENCE.as_secs()
        ),
    }
}

/// Takes away all that was made on this server, whatever of it is there. Subscriptions first, without asking the other side.
pub async fn clean(sql: &LocalSql) -> Result<()> {
    for database in databases(sql).await? {
        let client = open(sql, Some(&database)).await?;
        drop_subscription(&client).await.with_context(|| format!("drop the subscription in {database}"))?;
        client.batch_execute(&format!("BEGIN; {OFF_THE_LEADER} COMMIT")).await.with_context(|| format!("clean the database {database}"))?;
    }
    drop_slots(&open(sql, None).await?, OURS).await
}

/// The slots that are made for an upgrade.
pub const OURS: &str = "slot_name ~ '^tenure_upgrade_[0-9]+_[0-9]+$'";
/// Every slot: of a server that nobody else reads.
pub const EVERY: &str = "true";

/// Drops these slots; who reads one is ended before.
pub async fn drop_slots(client: &Client, which: &str) -> Result<()> {
    for _ in 0..100 {
        client
            .batch_execute(&format!(
                "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE {which} AND active_pid IS NOT NULL;
                 SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE {which} AND NOT active"
            ))
            .await
            .context("drop the slots")?;
        let left = text(client, &format!("SELECT count(*)::text FROM pg_replication_slots WHERE {which}")).await?;
        if left == "0" {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    bail!("slots stay in use")
}

/// Drops our subscription in this database, where there is one; the other side keeps its slot.
pub async fn drop_subscription(client: &Client) -> Result<()> {
    let there = client.query_opt("SELECT 1 FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid WHERE subname = 'tenure_upgrade' AND datname = current_database()", &[]);
    if there.await?.is_some() {
        // Not in one transaction: dropping waits for the worker, which ends when it sees the subscription disabled.
        for statement in ["DISABLE", "SET (slot_name = NONE)"] {
            client.batch_execute(&format!("ALTER SUBSCRIPTION {NAME} {statement}")).await?;
        }
        client.batch_execute(&format!("DROP SUBSCRIPTION {NAME}")).await?;
    }
    Ok(())
}

/// Subscribes in this database from exactly this position on.
pub async fn subscribe(client: &Client, conninfo: &str, slot: &str, from: Lsn) -> Result<()> {
    drop_subscription(client).await?;
    // Named in the statement are files and names, no password: that is in the file.
    client
        .batch_execute(&format!(
            "CREATE SUBSCRIPTION {NAME} CONNECTION {} PUBLICATION {NAME} WITH (create_slot = false, copy_data = false, enabled = false, slot_name = {})",
            literal(conninfo),
            literal(slot)
        ))
        .await
        .context("create the subscription")?;
    client
        .batch_execute(&format!(
            "SELECT pg_replication_origin_advance('pg_' || s.oid, '{from}') FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid
             WHERE subname = '{NAME}' AND datname = current_database(); ALTER SUBSCRIPTION {NAME} ENABLE"
        ))
        .await
        .context("begin the subscription")
}

/// How many bytes of WAL the slots' reader has not confirmed, the worst of them; None where a slot is missing or nobody reads it.
pub async fn lag(client: &Client, followed: &[Followed]) -> Result<Option<u64>> {
    let rows = client
        .query("SELECT slot_name::text, (pg_current_wal_insert_lsn() - confirmed_flush_lsn)::int8, active FROM pg_replication_slots WHERE slot_type = 'logical'", &[])
        .await
        .context("ask how far the new version is")?;
    let mut worst = 0;
    for one in followed {
        let row = rows.iter().find(|row| row.try_get::<_, String>(0).is_ok_and(|name| name == one.slot));
        let Some((Some(bytes), true)) =
            row.map(|row| (row.try_get::<_, Option<i64>>(1).unwrap_or_default(), row.try_get(2).unwrap_or(false)))
        else {
            return Ok(None);
        };
        worst = worst.max(u64::try_from(bytes).unwrap_or(0));
    }
    Ok(Some(worst))
}

/// Waits until everything up to this position is confirmed; false where that takes longer.
pub async fn confirmed(client: &Client, followed: &[Followed], up_to: Lsn, within: Duration) -> Result<bool> {
    let slots: Vec<String> = followed.iter().map(|one| one.slot.clone()).collect();
    let question =
        format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name::text = ANY ($1) AND confirmed_flush_lsn >= '{up_to}'");
    let deadline = tokio::time::Instant::now() + within;
    loop {
        let count: i64 = client.query_one(&question, &[&slots]).await.context("ask what the new version has confirmed")?.try_get(0)?;
        if usize::try_from(count) == Ok(slots.len()) {
            return Ok(true);
        }
        if tokio::time::Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// A transaction that begins before a drain, which lets it pass: its commit puts what was written before it on disk, so that it is sent. Nobody
/// else's does so while writers wait.
pub struct Last {
    client: Client,
    /// Its process.
    pub pid: i32,
}

impl Last {
    /// Before the drain.
    pub async fn begin(sql: &LocalSql) -> Result<Last> {
        let client = open(sql, None).await?;
        client.batch_execute("BEGIN").await?;
        let pid = client.query_one("SELECT pg_backend_pid()", &[]).await?.try_get(0)?;
        Ok(Last { client, pid })
    }

    /// When nobody else commits any more; gives the position that has to be confirmed.
    pub async fn commit(self) -> Result<Lsn> {
        self.client
            .batch_execute("SELECT pg_logical_emit_message(true, 'tenure', 'last'); COMMIT")
            .await
            .context("write the last record")?;
        lsn(&self.client, "SELECT pg_current_wal_flush_lsn()::text").await
    }
}

/// The question for the values of every sequence in this database, as statements that set them; None where it has none.
pub async fn sequences(client: &Client) -> Result<Option<String>> {
    let rows = client
        .query("SELECT quote_ident(schemaname) || '.' || quote_ident(sequencename) FROM pg_sequences ORDER BY 1", &[])
        .await
        .context("ask for the sequences")?;
    let names: Vec<String> = rows.iter().map(|row| row.try_get(0)).collect::<Result<_, _>>()?;
    let part = |name: &String| {
        format!("SELECT format('SELECT setval(%L, %s, %L)', {}, last_value, is_called) AS statement FROM {name}", literal(name))
    };
    let parts: Vec<String> = names.iter().map(part).collect();
    Ok((!parts.is_empty()).then(|| format!("SELECT string_agg(statement, ';') FROM ({}) s", parts.join(" UNION ALL "))))
}
