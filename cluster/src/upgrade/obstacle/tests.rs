//! Every obstacle once, with what makes it.

use super::*;

fn server() -> ServerToUpgrade {
    ServerToUpgrade {
        superuser: true,
        wal_level: "logical".to_owned(),
        free_slots: 9,
        free_senders: 9,
        checksums: true,
        databases: 1,
        version: 15,
        ..ServerToUpgrade::default()
    }
}

fn kinds(found: &[Obstacle]) -> Vec<(&str, Weight)> {
    found.iter().map(|obstacle| (obstacle.kind.as_str(), obstacle.weight)).collect()
}

#[test]
fn nothing_stands_in_the_way_of_a_plain_server() {
    assert_eq!(of_server(&server()), []);
    assert_eq!(of_database(&Database { name: "app".to_owned(), encoding: "UTF8".to_owned(), ..Database::default() }), []);
    assert_eq!(of_files(&files(), 17, &server()), []);
}

#[test]
fn each_fact_of_the_server_is_named_with_its_weight() {
    use Weight::*;
    let list = || vec!["x".to_owned()];
    let rows: [(ServerToUpgrade, &str, Weight); 10] = [
        (ServerToUpgrade { superuser: false, ..server() }, "rights", Stops),
        (ServerToUpgrade { prepared: list(), ..server() }, "prepared_transactions", Stops),
        (ServerToUpgrade { slots: vec![("s".to_owned(), "pgoutput".to_owned())], ..server() }, "replication_slots", Stops),
        (ServerToUpgrade { inner_tablespaces: list(), ..server() }, "tablespaces", Stops),
        (ServerToUpgrade { tablespaces: list(), ..server() }, "tablespace_copies", StopsLogical),
        (ServerToUpgrade { closed_databases: list(), ..server() }, "closed_databases", Stops),
        (ServerToUpgrade { wal_level: "replica".to_owned(), ..server() }, "wal_level", StopsLogical),
        (ServerToUpgrade { free_slots: 0, ..server() }, "slots_left", StopsLogical),
        (ServerToUpgrade { free_senders: 0, ..server() }, "slots_left", StopsLogical),
        (ServerToUpgrade { checksums: false, ..server() }, "checksums", Note),
    ];
    for (server, kind, weight) in rows {
        assert_eq!(kinds(&of_server(&server)), [(kind, weight)]);
    }
}

#[test]
fn parts_of_another_release_stop_a_major_upgrade() {
    let of = |library: &str, objects: Option<&str>| ServerToUpgrade {
        library: Some(library.to_owned()),
        objects: objects.map(str::to_owned),
        ..server()
    };
    for (library, objects, told) in [
        ("0.2.0", Some("0.2.0"), None),
        ("0.2.0", None, None),
        ("0.1.0", Some("0.1.0"), Some("the arbiter is of release 0.2.0, the library of 0.1.0, the SQL objects of 0.1.0")),
        ("0.2.0", Some("0.1.0"), Some("the arbiter is of release 0.2.0, the SQL objects of 0.1.0")),
        ("0.3.0", Some("0.2.0"), Some("the arbiter is of release 0.2.0, the library of 0.3.0")),
    ] {
        let found = of_releases("0.2.0", &of(library, objects));
        let said = found.first().map(|obstacle| obstacle.what.trim_start_matches("an upgrade of pg_tenure is under way: "));
        assert_eq!(said, told);
        assert!(found.iter().all(|obstacle| obstacle.weight == Weight::Stops));
    }
}

#[test]
fn each_fact_of_a_database_is_named_with_its_weight() {
    use Weight::*;
    let list = || vec!["x".to_owned()];
    let plain = Database::default;
    let rows: [(Database, &str, Weight); 13] = [
        (Database { subscriptions: list(), ..plain() }, "subscriptions", Stops),
        (Database { reg_columns: list(), ..plain() }, "reg_columns", Stops),
        (Database { without_identity: list(), ..plain() }, "replica_identity", StopsLogical),
        (Database { unlogged: list(), ..plain() }, "unlogged_tables", StopsLogical),
        (Database { materialized_views: list(), ..plain() }, "materialized_views", StopsLogical),
        (Database { publications: list(), ..plain() }, "publications", Note),
        (Database { event_triggers: list(), ..plain() }, "event_triggers", Note),
        (Database { stale_collations: list(), ..plain() }, "collations", Note),
        (Database { large_objects: 1, ..plain() }, "large_objects", StopsLogical),
        (Database { sequences: 1, ..plain() }, "sequences", Note),
        (Database { identities: 1, ..plain() }, "identity_columns", Note),
        (Database { encoding: "SQL_ASCII".to_owned(), ..plain() }, "encoding", Note),
        (Database { citus: true, ..plain() }, "citus", Stops),
    ];
    for (database, kind, weight) in rows {
        let found = of_database(&database);
        assert_eq!(kinds(&found), [(kind, weight)]);
        assert!(!found[0].cure.is_empty(), "{kind} has a cure");
    }
}

fn files() -> Files {
    Files { member: "n1".to_owned(), bin_dir: Some("/b".to_owned()), found: Some(17), free: Some(1 << 40), ..Files::default() }
}

#[test]
fn each_fact_of_a_nodes_files_is_named_with_its_member() {
    use Weight::*;
    let list = || vec!["x".to_owned()];
    let large = ServerToUpgrade { bytes: 1 << 39, ..server() };
    let newer = ServerToUpgrade { minor: 20, ..server() };
    let rows: [(Files, &ServerToUpgrade, &str, Weight); 12] = [
        (Files { bin_dir: None, ..files() }, &server(), "programs", Stops),
        (Files { missing_programs: list(), ..files() }, &server(), "programs", Stops),
        (Files { found: Some(16), ..files() }, &server(), "programs", Stops),
        (Files { found_minor: Some(11), ..files() }, &newer, "minor_release", Stops),
        (Files { missing_libraries: list(), ..files() }, &server(), "libraries", Stops),
        (Files { missing_extensions: list(), ..files() }, &server(), "extensions", Stops),
        (Files { unknown_options: list(), ..files() }, &server(), "column_options", Stops),
        (Files { unknown_settings: list(), ..files() }, &server(), "settings", Note),
        (Files { free: Some(1 << 20), ..files() }, &server(), "space", Stops),
        (Files { free: Some(1 << 38), ..files() }, &large, "space", StopsLogical),
        (Files { mount_point: true, ..files() }, &server(), "mount_point", Stops),
        (Files { pg_upgrade: Some("no".to_owned()), ..files() }, &server(), "pg_upgrade", Stops),
    ];
    for (files, server, kind, weight) in rows {
        let found = of_files(&files, 17, server);
        assert_eq!(kinds(&found), [(kind, weight)]);
        assert_eq!(found[0].member.as_deref(), Some("n1"), "{kind}");
    }
}

#[test]
fn a_minor_release_of_the_same_day_or_later_is_no_obstacle() {
    let newer = ServerToUpgrade { minor: 20, ..server() };
    for minor in [Some(12), Some(13), None] {
        assert_eq!(of_files(&Files { found_minor: minor, ..files() }, 17, &newer), [], "{minor:?}");
    }
}

#[test]
fn a_long_list_is_cut_and_counted() {
    let tables: Vec<String> = (0..12).map(|n| format!("t{n}")).collect();
    assert!(names(&tables).ends_with("t9 and 2 more"), "{}", names(&tables));
}
