//! What the server and each of its databases say that a major upgrade depends on.

use crate::postgres::query::LocalSql;
use anyhow::{Context, Result};
use cluster::slots;
use cluster::upgrade::obstacle::{Database, ServerToUpgrade};
use cluster::view::ClusterView;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// Catalogs of many tables take their time; who asks waits for the answer.
const OPTIONS: &str = "-c statement_timeout=30000";
/// See [`OPTIONS`].
const BOUND: Duration = Duration::from_secs(35);
/// How our sessions are called.
const SESSION: &str = "tenure arbiter, upgrade";

const SERVER: &str = "
SELECT json_build_object(
  'superuser', (SELECT rolsuper FROM pg_roles WHERE rolname = current_user),
  'wal_level', current_setting('wal_level'),
  'free_slots', current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots),
  'free_senders', current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication),
  'prepared', coalesce((SELECT json_agg(gid ORDER BY gid) FROM pg_prepared_xacts), '[]'),
  'slots', coalesce((SELECT json_agg(json_build_array(slot_name, coalesce(plugin, 'a physical standby')) ORDER BY slot_name)
             FROM pg_replication_slots WHERE NOT temporary), '[]'),
  'version', current_setting('server_version_num')::int / 10000,
  'minor', current_setting('server_version_num')::int % 10000,
  'checksums', current_setting('data_checksums') = 'on',
  'inner_tablespaces', coalesce((SELECT json_agg(spcname) FROM pg_tablespace
             WHERE starts_with(pg_tablespace_location(oid), current_setting('data_directory') || '/')), '[]'),
  'tablespaces', coalesce((SELECT json_agg(spcname ORDER BY spcname) FROM pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global')), '[]'),
  'closed_databases', coalesce((SELECT json_agg(datname) FROM pg_database WHERE NOT datallowconn AND datname <> 'template0'), '[]'),
  'settings', coalesce((SELECT json_agg(name ORDER BY name) FROM pg_settings
             WHERE source IN ('configuration file', 'command line', 'database', 'user') AND name !~ '[.]'), '[]'),
  'preloaded', (SELECT json_agg(trim(library)) FROM unnest(string_to_array(concat_ws(',', current_setting('shared_preload_libraries'),
             current_setting('session_preload_libraries'), current_setting('local_preload_libraries')), ',')) library WHERE trim(library) <> ''),
  'bytes', (SELECT sum(pg_database_size(oid))::bigint FROM pg_database),
  'databases', (SELECT count(*) FROM pg_database WHERE datallowconn),
  'library', nullif(current_setting('tenure.library_version', true), ''),
  'objects', (SELECT extversion FROM pg_extension WHERE extname = 'pg_tenure')
)::text";

/// Of tables of users: what is in the catalogs' own schemas comes with the new version.
const DATABASE: &str = "
WITH mine AS (SELECT c.oid, format('%I.%I', n.nspname, c.relname) AS name, c.relkind, c.relpersistence, c.relreplident
              FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
              WHERE n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp_)'
                AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
SELECT json_build_object(
  'name', d.datname,
  'encoding', pg_encoding_to_char(d.encoding),
  'locale', d.datcollate,
  'stale_collations', coalesce((SELECT json_agg(collname ORDER BY collname) FROM pg_collation
             WHERE collversion IS NOT NULL AND collversion <> pg_collation_actual_version(oid)), '[]'),
  'extensions', coalesce((SELECT json_agg(extname ORDER BY extname) FROM pg_extension), '[]'),
  'libraries', coalesce((SELECT json_agg(DISTINCT probin) FROM pg_proc WHERE probin IS NOT NULL AND oid >= 16384), '[]'),
  'without_identity', coalesce((SELECT json_agg(name ORDER BY name) FROM mine WHERE relkind = 'r' AND relpersistence = 'p'
             AND (relreplident = 'n' OR relreplident = 'd' AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = mine.oid AND i.indisprimary))), '[]'),
  'unlogged', coalesce((SELECT json_agg(name ORDER BY name) FROM mine WHERE relkind = 'r' AND relpersistence = 'u'), '[]'),
  'materialized_views', coalesce((SELECT json_agg(name ORDER BY name) FROM mine WHERE relkind = 'm'), '[]'),
  'large_objects', (SELECT count(*) FROM pg_largeobject_metadata),
  'sequences', (SELECT count(*) FROM mine WHERE relkind = 'S'),
  'identities', (SELECT count(*) FROM pg_attribute a JOIN mine ON mine.oid = a.attrelid WHERE a.attidentity = 'a' AND NOT a.attisdropped),
  'publications', coalesce((SELECT json_agg(pubname ORDER BY pubname) FROM pg_publication), '[]'),
  'subscriptions', coalesce((SELECT json_agg(subname ORDER BY subname) FROM pg_subscription WHERE subdbid = d.oid), '[]'),
  'event_triggers', coalesce((SELECT json_agg(evtname ORDER BY evtname) FROM pg_event_trigger e WHERE evtenabled <> 'D'
             AND NOT EXISTS (SELECT FROM pg_depend p WHERE p.classid = 'pg_event_trigger'::regclass AND p.objid = e.oid AND p.deptype = 'e')), '[]'),
  'reg_columns', coalesce((SELECT json_agg(mine.name || '.' || a.attname ORDER BY 1) FROM pg_attribute a JOIN mine ON mine.oid = a.attrelid
             WHERE mine.relkind IN ('r', 'm') AND NOT a.attisdropped AND a.atttypid IN ('regproc'::regtype, 'regprocedure'::regtype,
               'regoper'::regtype, 'regoperator'::regtype, 'regconfig'::regtype, 'regdictionary'::regtype, 'regnamespace'::regtype,
               'regcollation'::regtype)), '[]'),
  'column_options', coalesce((SELECT json_agg(DISTINCT split_part(option, '=', 1)) FROM pg_attribute a JOIN mine ON mine.oid = a.attrelid,
             unnest(a.attoptions) option WHERE NOT a.attisdropped), '[]'),
  'citus', EXISTS (SELECT FROM pg_extension WHERE extname = 'citus')
)::text FROM pg_database d WHERE d.datname = current_database()";

async fn ask<T: DeserializeOwned>(sql: &LocalSql, database: Option<&str>, question: &str) -> Result<T> {
    let client = sql.open_as(SESSION, database, OPTIONS).await?;
    let row = tokio::time::timeout(BOUND, client.query_one(question, &[])).await.context("no answer within 35 s")??;
    serde_json::from_str(row.try_get(0)?).context("understand the answer")
}

/// The server, and every database that lets anybody in.
pub async fn all(sql: &LocalSql, view: &ClusterView) -> Result<(ServerToUpgrade, Vec<Database>)> {
    let mut server: ServerToUpgrade = ask(sql, None, SERVER).await?;
    let members: Vec<String> = slots::of_members(view).collect();
    server.slots.retain(|(name, _)| !members.contains(name));
    let names: Vec<String> =
        ask(sql, None, "SELECT coalesce(json_agg(datname ORDER BY datname), '[]')::text FROM pg_database WHERE datallowconn").await?;
    let mut databases = Vec::new();
    for name in names {
        let database = ask(sql, Some(&name), DATABASE).await.with_context(|| format!("look into the database {name}"))?;
        databases.push(database);
    }
    Ok((server, databases))
}
