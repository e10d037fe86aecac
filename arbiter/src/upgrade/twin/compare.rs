//! Compares the twin with the leader's server: definitions, roles, and the rows of every table, counted and summed at one position.

use super::make::twin_sql;
use super::sides::{self, Last, confirmed};
use crate::node::Node;
use crate::node::twin::Compared;
use anyhow::{Context, Result, bail};
use cluster::upgrade::twin::{Followed, Twin};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};
use tokio_postgres::Client;

/// Writers wait so long at most for the two snapshots.
const HOLD: Duration = Duration::from_millis(3000);
/// What writes when the hold begins may take so long to end.
const GRACE: Duration = Duration::from_millis(1000);
/// And the twin to confirm what came before.
const CATCH_UP: Duration = Duration::from_millis(1500);

/// So many differences are told.
const TOLD: usize = 20;

/// What both versions print alike. Grants are left out (a later version knows more of them), and so are texts that each version prints in
/// its own way: the definitions of views, defaults and rules.
const DEFINITIONS: &str = "
WITH s AS (SELECT oid, nspname FROM pg_namespace WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'tenure_upgrade') AND nspname !~ '^pg_(toast|temp)'),
e AS (SELECT classid, objid FROM pg_depend WHERE deptype = 'e')
SELECT format('schema %I', nspname) FROM s
UNION ALL SELECT format('extension %I %s', extname, extversion) FROM pg_extension
UNION ALL SELECT format('relation %I.%I (%s, %s)', nspname, relname, relkind, relpersistence) FROM pg_class c JOIN s ON s.oid = relnamespace
UNION ALL SELECT format('column %I.%I.%I %s%s%s%s', nspname, relname, attname, format_type(atttypid, atttypmod), CASE WHEN attnotnull THEN ' not null' END,
    attidentity, attgenerated) FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid JOIN s ON s.oid = relnamespace
    WHERE attnum > 0 AND NOT attisdropped AND relkind IN ('r', 'p', 'v', 'm', 'f', 'c')
UNION ALL SELECT format('constraint %I on %I.%I (%s)', conname, nspname, relname, contype) FROM pg_constraint n JOIN pg_class c ON c.oid = conrelid
    JOIN s ON s.oid = relnamespace WHERE contype <> 'n'
UNION ALL SELECT format('function %I.%I(%s) %s', nspname, proname, pg_get_function_identity_arguments(p.oid), md5(prosrc)) FROM pg_proc p JOIN s ON s.oid = pronamespace
    WHERE NOT EXISTS (SELECT FROM e WHERE classid = 'pg_proc'::regclass AND objid = p.oid)
UNION ALL SELECT format('trigger %I on %I.%I (%s)', tgname, nspname, relname, tgenabled) FROM pg_trigger t JOIN pg_class c ON c.oid = tgrelid
    JOIN s ON s.oid = relnamespace WHERE NOT tgisinternal
UNION ALL SELECT format('policy %I on %I.%I', polname, nspname, relname) FROM pg_policy JOIN pg_class c ON c.oid = polrelid JOIN s ON s.oid = relnamespace
UNION ALL SELECT format('label %I.%I %L', nspname, typname, enumlabel) FROM pg_enum JOIN pg_type t ON t.oid = enumtypid JOIN s ON s.oid = typnamespace";

/// Of the whole server.
const ROLES: &str = "
SELECT format('role %I (%s)', rolname, md5(concat_ws(',', rolsuper, rolinherit, rolcreaterole, rolcreatedb, rolcanlogin, rolreplication, rolbypassrls,
    rolconnlimit, rolpassword, rolvaliduntil))) FROM pg_authid WHERE rolname !~ '^pg_'
UNION ALL SELECT DISTINCT format('membership of %I in %I', m.rolname, r.rolname) FROM pg_auth_members a JOIN pg_authid m ON m.oid = a.member
    JOIN pg_authid r ON r.oid = a.roleid WHERE m.rolname !~ '^pg_'
UNION ALL SELECT format('database %I', datname) FROM pg_database
UNION ALL SELECT format('settings of %s in %s (%s)', coalesce(rolname, 'everybody'), coalesce(datname, 'every database'), md5(setconfig::text))
    FROM pg_db_role_setting LEFT JOIN pg_database d ON d.oid = setdatabase LEFT JOIN pg_authid r ON r.oid = setrole";

const TABLES: &str = "SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relkind = 'r' AND relpersistence = 'p' AND nspname NOT IN ('pg_catalog', 'information_schema') ORDER BY 1";

const SNAPSHOT: &str = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT count(*) FROM pg_class";

/// Waits until nobody writes who began before the hold did; those who began later wait at their commit.
async fn quiet(client: &Client) -> Result<bool> {
    const WRITING: &str = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE backend_xid IS NOT NULL AND pid <> pg_backend_pid() AND xact_start < $1::text::timestamptz
        AND wait_event IS DISTINCT FROM 'Extension')";
    let began = sides::text(client, "SELECT clock_timestamp()::text").await?;
    let deadline = Instant::now() + GRACE;
    while client.query_one(WRITING, &[&began]).await?.try_get(0)? {
        if Instant::now() > deadline {
            return Ok(false);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(true)
}

/// One snapshot of each database on both sides, at the same position. Gives how long writers waited for it.
async fn snapshots(node: &Node, leader: &[Client], twin: &[Client], followed: &[Followed]) -> Result<Duration> {
    let (watch, last) = (sides::open(&node.sql, None).await?, Last::begin(&node.sql).await?);
    let began = Instant::now();
    node.sql.execute(&format!("SELECT tenure_internal.drain({})", HOLD.as_millis())).await.context("hold writers for the comparison")?;
    let taken = async {
        if !quiet(&watch).await? {
            bail!("a transaction has written for longer than {} ms: the comparison is tried again", GRACE.as_millis());
        }
        for client in leader {
            client.batch_execute(SNAPSHOT).await.context("take a snapshot of the leader")?;
        }
        let at = last.commit().await?;
        if !confirmed(&watch, followed, at, CATCH_UP).await? {
            bail!("the new version did not confirm {at} within {} ms: the comparison is tried again", CATCH_UP.as_millis());
        }
        for client in twin {
            client.batch_execute(SNAPSHOT).await.context("take a snapshot of the new version")?;
        }
        Ok(())
    };
    let taken = taken.await;
    let released = node.sql.execute("SELECT tenure_internal.undrain()").await;
    let held = began.elapsed();
    taken?;
    released.context("let writers go on")?;
    // A session that had to wait for longer than the hold lasts went on before the second snapshot.
    if held >= HOLD {
        bail!("the snapshots took {} ms, and the hold ends after {}: the comparison is tried again", held.as_millis(), HOLD.as_millis());
    }
    Ok(held)
}

async fn lines(client: &Client, question: &str) -> Result<BTreeSet<String>> {
    client.query(question, &[]).await?.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

fn differing(what: &str, (serves, leader): (u32, &BTreeSet<String>), (waits, twin): (u32, &BTreeSet<String>), found: &mut Vec<String>) {
    let only = |version: u32, line: &String| format!("{what}{line} is only in PostgreSQL {version}");
    found.extend(leader.difference(twin).map(|line| only(serves, line)));
    found.extend(twin.difference(leader).map(|line| only(waits, line)));
}

/// Compares. An error says that it could not be done, which may pass.
pub async fn compare(node: &Node, noted: &Twin) -> Result<Compared> {
    let followed = &noted.databases;
    let (serves, waits) = (noted.serves(), noted.waits());
    let twin_sql = twin_sql(node);
    let leader = sides::open_all(&node.sql, followed).await?;
    let twin = sides::open_all(&twin_sql, followed).await?;
    let mut compared = Compared { at: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), ..Compared::default() };
    let found = &mut compared.differences;
    if let (Some(leader), Some(twin)) = (leader.first(), twin.first()) {
        differing("", (serves, &lines(leader, ROLES).await?), (waits, &lines(twin, ROLES).await?), found);
    }
    for ((one, leader), twin) in followed.iter().zip(&leader).zip(&twin) {
        let what = format!("database {}: ", one.database);
        differing(&what, (serves, &lines(leader, DEFINITIONS).await?), (waits, &lines(twin, DEFINITIONS).await?), found);
    }
    compared.held_ms = u64::try_from(snapshots(node, &leader, &twin, followed).await?.as_millis()).unwrap_or(u64::MAX);
    for ((one, leader), twin) in followed.iter().zip(&leader).zip(&twin) {
        for table in lines(leader, TABLES).await? {
            node.twin.tell(|told| told.doing = format!("rows are compared: {} tables are done", compared.tables));
            let sum = format!(
                "SELECT count(*), coalesce(sum(('x' || left(md5((t.*)::text), 16))::bit(64)::bigint::numeric), 0)::text FROM ONLY {table} t"
            );
            // Rolled back, so that no lock on the table outlives its own turn.
            let summed = async |client: &Client| {
                client.batch_execute("SAVEPOINT one").await?;
                let row = client.query_one(&sum, &[]).await?;
                client.batch_execute("ROLLBACK TO SAVEPOINT one").await.map(|()| row)
            };
            let (ours, theirs) =
                tokio::try_join!(summed(leader), summed(twin)).with_context(|| format!("sum the rows of {table} in {}", one.database))?;
            let read = |row: &tokio_postgres::Row| -> Result<(i64, String)> { Ok((row.try_get(0)?, row.try_get(1)?)) };
            let (ours, theirs) = (read(&ours)?, read(&theirs)?);
            compared.tables += 1;
            compared.rows += u64::try_from(ours.0).unwrap_or(0);
            if ours != theirs {
                compared.differences.push(format!(
                    "database {}: {table} has {} rows in PostgreSQL {serves} and {} in {waits}, with {} sums",
                    one.database,
                    ours.0,
                    theirs.0,
                    if ours.1 == theirs.1 { "equal" } else { "other" }
                ));
            }
        }
    }
    compared.different = compared.differences.len();
    compared.differences.truncate(TOLD);
    Ok(compared)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_on_one_side_only_is_named_with_its_side() {
        let set = |lines: &[&str]| lines.iter().map(|line| (*line).to_owned()).collect::<BTreeSet<_>>();
        let mut found = Vec::new();
        differing("database a: ", (15, &set(&["x", "y"])), (17, &set(&["y", "z"])), &mut found);
        assert_eq!(found, ["database a: x is only in PostgreSQL 15", "database a: z is only in PostgreSQL 17"]);
    }
}
