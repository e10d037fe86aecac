//! What acts outside of its transaction is judged before it acts: past the deadline nothing of it is done, neither to files here nor at a publisher.

use std::collections::BTreeSet;
use std::path::Path;
use stories::alone::{Alone, Server, Session};

/// Every directory below, and every link.
fn directories(of: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Ok(entries) = std::fs::read_dir(of) else { return found };
    for entry in entries.flatten() {
        let path = entry.path();
        let kind = entry.file_type().expect("the type of a file");
        if kind.is_symlink() || kind.is_dir() {
            found.insert(path.display().to_string());
        }
        if kind.is_dir() {
            found.extend(directories(&path));
        }
    }
    found
}

/// A server with a database in each of two tablespaces' reach, and a session that was there before the deadline.
async fn with_files() -> (Alone, Session) {
    let alone = Alone::start(&[]).await;
    let session = alone.session().await;
    for name in ["empty", "other", "full"] {
        alone.room.directory(name);
    }
    let at = |name: &str| alone.room.path().join(name).display().to_string();
    for statement in [
        "CREATE DATABASE mine".to_owned(),
        format!("CREATE TABLESPACE empty LOCATION '{}'", at("empty")),
        format!("CREATE TABLESPACE filled LOCATION '{}'", at("full")),
        "CREATE DATABASE theirs TABLESPACE filled".to_owned(),
        "CREATE TABLE kept(n int PRIMARY KEY); INSERT INTO kept VALUES (1), (2)".to_owned(),
        "CREATE INDEX another ON kept(n); CREATE MATERIALIZED VIEW seen AS SELECT n FROM kept; CREATE UNIQUE INDEX ON seen(n)".to_owned(),
        "CREATE ROLE owner; CREATE TABLE owned(n int); ALTER TABLE owned OWNER TO owner".to_owned(),
    ] {
        session.ok(&statement).await;
    }
    (alone, session)
}

#[tokio::test]
async fn databases_and_tablespaces_are_touched_inside_the_lease_only() {
    let (alone, session) = with_files().await;
    let before = directories(alone.room.path());
    alone.let_the_deadline_pass().await;
    let elsewhere = alone.room.path().join("other").display().to_string();
    for statement in [
        "DROP DATABASE mine".to_owned(),
        "DROP DATABASE mine WITH (FORCE)".to_owned(),
        "DROP DATABASE theirs".to_owned(),
        "CREATE DATABASE another".to_owned(),
        "CREATE DATABASE another STRATEGY file_copy".to_owned(),
        "CREATE DATABASE another TABLESPACE empty".to_owned(),
        "ALTER DATABASE mine SET TABLESPACE empty".to_owned(),
        "DROP TABLESPACE empty".to_owned(),
        format!("CREATE TABLESPACE late LOCATION '{elsewhere}'"),
    ] {
        println!("{statement}");
        session.tell(&statement).await.refused("25006");
        let after = directories(alone.room.path());
        let changed: Vec<&String> = before.symmetric_difference(&after).collect();
        assert!(changed.is_empty(), "{statement} was refused, and changed {changed:?}");
    }
    alone.renew().await;
    for statement in
        ["ALTER DATABASE mine SET TABLESPACE empty", "ALTER DATABASE mine SET TABLESPACE filled", "CREATE DATABASE copied TEMPLATE theirs"]
    {
        session.ok(statement).await;
    }
    for statement in
        ["DROP DATABASE mine", "DROP DATABASE theirs", "DROP DATABASE copied", "DROP TABLESPACE empty", "DROP TABLESPACE filled"]
    {
        session.ok(statement).await;
    }
}

/// The other commands that make transactions of their own, or new files: each is refused at its first commit and leaves what was there.
#[tokio::test]
async fn what_makes_transactions_of_its_own_leaves_nothing_past_the_deadline() {
    let (alone, session) = with_files().await;
    let indexes = "SELECT string_agg(indexrelid::regclass || ' ' || indisvalid, ', ' ORDER BY 1) FROM pg_index WHERE indrelid >= 16384";
    let relations =
        "SELECT string_agg(relname || ' ' || relfilenode, ', ' ORDER BY 1) FROM pg_class WHERE oid >= 16384 AND relkind IN ('r', 'i', 'm')";
    let (indexes_before, relations_before) = (session.ok(indexes).await, session.ok(relations).await);
    let before = directories(alone.room.path());
    alone.let_the_deadline_pass().await;
    for statement in [
        "CREATE INDEX CONCURRENTLY late ON kept(n)",
        "REINDEX TABLE CONCURRENTLY kept",
        "REINDEX TABLE kept",
        "REINDEX DATABASE postgres",
        "DROP INDEX CONCURRENTLY another",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY seen",
        "VACUUM FULL kept",
        "CLUSTER kept USING another",
        "TRUNCATE kept",
        "DROP TABLE kept CASCADE",
        "ALTER TABLE kept SET TABLESPACE empty",
        "ALTER TABLE ALL IN TABLESPACE pg_default SET TABLESPACE empty",
        "DROP OWNED BY owner",
        "REASSIGN OWNED BY owner TO postgres",
        "ALTER DATABASE mine RENAME TO yours",
        "ALTER DATABASE mine CONNECTION LIMIT 5",
        "ALTER TABLESPACE empty RENAME TO vacant",
        "DROP SCHEMA public CASCADE",
        "CREATE EXTENSION test_decoding_is_no_extension",
        "SELECT lo_create(0)",
        "DROP ROLE owner",
    ] {
        println!("{statement}");
        let told = session.tell(statement).await;
        assert!(matches!(told, stories::alone::Told::Refused(..)), "{statement}: {told}");
        assert_eq!(session.ok(indexes).await, indexes_before, "{statement}");
        assert_eq!(session.ok(relations).await, relations_before, "{statement}");
    }
    // A table on its way to another tablespace makes this database's directory there. It is empty, and the next one finds it.
    let mut after = directories(alone.room.path());
    after.retain(|path| before.contains(path) || !path.contains("/empty/"));
    assert_eq!(before, after);
    alone.renew().await;
    assert_eq!(session.ok("SELECT count(*) FROM kept").await, "2");
    session.ok("DROP TABLESPACE empty").await;
    session.ok("VACUUM FULL kept").await;
    session.ok("REINDEX TABLE CONCURRENTLY kept").await;
}

#[tokio::test]
async fn a_publisher_hears_nothing_of_what_is_refused() {
    let alone = Alone::start(&[]).await;
    let publisher = Server::plain(&alone.room, "publisher", &[("wal_level", "logical")]).await;
    let source = publisher.session().await;
    source.ok("CREATE TABLE kept(n int)").await;
    source.ok("CREATE PUBLICATION everything FOR TABLE kept").await;
    let session = alone.session().await;
    session.ok("CREATE TABLE kept(n int)").await;
    let create = |name: &str| {
        format!(
            "CREATE SUBSCRIPTION {name} CONNECTION 'host=127.0.0.1 port={} user=postgres dbname=postgres' PUBLICATION everything",
            publisher.port()
        )
    };
    session.ok(&create("early")).await;
    let slots =
        "SELECT string_agg(slot_name, ',' ORDER BY slot_name) FROM pg_replication_slots WHERE NOT temporary AND slot_name !~ '_sync_'";
    assert_eq!(source.ok(slots).await, "early");
    alone.let_the_deadline_pass().await;
    let drop_here = "DROP SUBSCRIPTION early";
    for statement in
        [create("late").as_str(), "ALTER SUBSCRIPTION early REFRESH PUBLICATION", "ALTER SUBSCRIPTION early DISABLE", drop_here]
    {
        println!("{statement}");
        session.tell(statement).await.refused("25006");
        assert_eq!(source.ok(slots).await, "early", "{statement}");
    }
    alone.renew().await;
    session.ok(&create("late")).await;
    session.ok("DROP SUBSCRIPTION late").await;
    session.ok(drop_here).await;
    assert_eq!(source.ok(&format!("SELECT coalesce(({slots}), 'none')")).await, "none");
}
