//! What stands in the way of a major upgrade, each with its cure: from what the server, its databases and each node's files say.

use super::day;
use serde::{Deserialize, Serialize};
use std::fmt;

/// How heavy an obstacle is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weight {
    /// No upgrade by any path.
    Stops,
    /// No upgrade by logical replication (near-zero): it does not carry this, or can't. `--in-place` does.
    StopsLogical,
    /// To be known beforehand.
    Note,
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Weight::Stops => "stops",
            Weight::StopsLogical => "stops the near-zero path",
            Weight::Note => "note",
        })
    }
}

/// One thing that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Obstacle {
    /// How heavy it is.
    pub weight: Weight,
    /// Its kind, a word for programs.
    pub kind: String,
    /// What it is.
    pub what: String,
    /// What to do.
    pub cure: String,
    /// The member that it is about; of the whole cluster where none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub member: Option<String>,
}

/// What the leader's server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ServerToUpgrade {
    /// Our own role is a superuser.
    pub superuser: bool,
    /// `wal_level`.
    pub wal_level: String,
    /// Slots that may yet be made, and senders.
    pub free_slots: i64,
    /// See `free_slots`.
    pub free_senders: i64,
    /// Prepared transactions that wait, by name.
    pub prepared: Vec<String>,
    /// Slots that are no member's own: name, and what reads it.
    pub slots: Vec<(String, String)>,
    /// Logical slots among these are not carried by `pg_upgrade` before this server's version 17.
    pub version: u32,
    /// Its minor release.
    pub minor: u32,
    /// Data checksums are on.
    pub checksums: bool,
    /// Tablespaces inside of the data directory.
    pub inner_tablespaces: Vec<String>,
    /// All of the users' own.
    pub tablespaces: Vec<String>,
    /// Databases that allow no connections, apart from template0.
    pub closed_databases: Vec<String>,
    /// Settings from files or the command line whose names no library brings.
    pub settings: Vec<String>,
    /// Libraries that the server loads at its start.
    pub preloaded: Vec<String>,
    /// Bytes of all databases.
    pub bytes: i64,
    /// Databases.
    pub databases: i64,
    /// The release of the library that the server loaded.
    pub library: Option<String>,
    /// The release of the SQL objects.
    pub objects: Option<String>,
}

/// What one database says.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Database {
    /// Its name.
    pub name: String,
    /// Its encoding.
    pub encoding: String,
    /// Its collation's provider and name.
    pub locale: String,
    /// Collations whose library has changed since indexes were made by them.
    pub stale_collations: Vec<String>,
    /// Its extensions.
    pub extensions: Vec<String>,
    /// The libraries that its functions are in.
    pub libraries: Vec<String>,
    /// Ordinary tables with neither a primary key nor another replica identity.
    pub without_identity: Vec<String>,
    /// Unlogged tables.
    pub unlogged: Vec<String>,
    /// Large objects.
    pub large_objects: i64,
    /// Sequences, those of identity and serial columns included.
    pub sequences: i64,
    /// Columns that are `GENERATED ALWAYS AS IDENTITY`.
    pub identities: i64,
    /// Publications.
    pub publications: Vec<String>,
    /// Subscriptions.
    pub subscriptions: Vec<String>,
    /// Event triggers of users.
    pub event_triggers: Vec<String>,
    /// Columns of types `reg*` that `pg_upgrade` can't carry.
    pub reg_columns: Vec<String>,
    /// Materialized views: logical replication does not refresh them.
    pub materialized_views: Vec<String>,
    /// The options that its columns carry, by their names.
    pub column_options: Vec<String>,
    /// Citus is there.
    pub citus: bool,
}

/// What one node's files say of the new version.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Files {
    /// The member.
    pub member: String,
    /// Where the programs of the new version should be; None where that can't be told from the node's file.
    pub bin_dir: Option<String>,
    /// Where the node's file says that those of this version are.
    pub bin_dir_now: String,
    /// Programs that are not there.
    pub missing_programs: Vec<String>,
    /// The major version that the new `postgres` says it is.
    pub found: Option<u32>,
    /// Its minor release.
    pub found_minor: Option<u32>,
    /// Libraries that the databases or the settings need and the new version has not.
    pub missing_libraries: Vec<String>,
    /// Extensions that the new version has not.
    pub missing_extensions: Vec<String>,
    /// Options of columns that the new version does not know.
    pub unknown_options: Vec<String>,
    /// Settings that the new version does not know.
    pub unknown_settings: Vec<String>,
    /// Free bytes beside the data directory.
    pub free: Option<u64>,
    /// The data directory is a mount point: no other directory can take its place.
    pub mount_point: bool,
    /// The words of `pg_upgrade --check`, where it was run here and failed.
    pub pg_upgrade: Option<String>,
}

/// So many names are told; the rest is a number.
const NAMED: usize = 10;

/// What is needed beside the data with hard links: the catalogs of one database, and for all of them WAL and what is not linked.
const PER_DATABASE: u64 = 16 << 20;
/// See [`PER_DATABASE`].
const BESIDE: u64 = 256 << 20;

fn names(list: &[String]) -> String {
    let more = list.len().saturating_sub(NAMED);
    let told = list.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
    if more == 0 { told } else { format!("{told} and {more} more") }
}

fn obstacle(weight: Weight, kind: &str, what: String, cure: impl Into<String>) -> Obstacle {
    Obstacle { weight, kind: kind.to_owned(), what, cure: cure.into(), member: None }
}

/// What stands in the way by what the leader's server says.
pub fn of_server(server: &ServerToUpgrade) -> Vec<Obstacle> {
    use Weight::*;
    let mut found = Vec::new();
    if !server.superuser {
        let cure = "let postgresql.authentication.superuser in each node's file name a superuser";
        found.push(obstacle(
            Stops,
            "rights",
            "the role that pg_tenure works as is no superuser: it may not carry roles and definitions".to_owned(),
            cure,
        ));
    }
    if !server.prepared.is_empty() {
        let what = format!("prepared transactions wait: {}", names(&server.prepared));
        found.push(obstacle(Stops, "prepared_transactions", what, "COMMIT PREPARED or ROLLBACK PREPARED each of them (pg_prepared_xacts)"));
    }
    if !server.slots.is_empty() {
        let list: Vec<String> = server.slots.iter().map(|(name, reader)| format!("{name} ({reader})")).collect();
        let what = format!("replication slots of others are not carried to the new version: {}", names(&list));
        let cure = "stop what reads them, drop them, and make them again afterwards; a subscriber begins from a new copy or from the position it has";
        found.push(obstacle(Stops, "replication_slots", what, cure));
    }
    if !server.inner_tablespaces.is_empty() {
        let what = format!("tablespaces lie inside of the data directory: {}", names(&server.inner_tablespaces));
        found.push(obstacle(Stops, "tablespaces", what, "move them out of it: ALTER TABLE ... SET TABLESPACE, then DROP TABLESPACE"));
    }
    if !server.tablespaces.is_empty() {
        let what = format!("tablespaces, of which no second copy is made on the same host: {}", names(&server.tablespaces));
        found.push(obstacle(
            StopsLogical,
            "tablespace_copies",
            what,
            "use --in-place, or move what is in them: ALTER TABLE ... SET TABLESPACE pg_default",
        ));
    }
    if !server.closed_databases.is_empty() {
        let what = format!("databases allow no connections: {}", names(&server.closed_databases));
        found.push(obstacle(Stops, "closed_databases", what, "ALTER DATABASE ... ALLOW_CONNECTIONS true, or drop them"));
    }
    if server.wal_level != "logical" {
        let cure = "set wal_level to logical in the dynamic configuration, and restart the members";
        found.push(obstacle(StopsLogical, "wal_level", format!("wal_level is {}", server.wal_level), cure));
    }
    for (left, name) in [(server.free_slots, "max_replication_slots"), (server.free_senders, "max_wal_senders")] {
        if left < server.databases {
            let what = format!("{name} leaves {left} for {} databases", server.databases);
            found.push(obstacle(
                StopsLogical,
                "slots_left",
                what,
                format!("raise {name} in the dynamic configuration, and restart the members"),
            ));
        }
    }
    if !server.checksums {
        let cure = "nothing has to be done; pg_checksums --enable on a stopped server turns them on, before or after";
        found.push(obstacle(Note, "checksums", "data checksums are off, and stay so in the new version".to_owned(), cure));
    }
    found
}

/// Two upgrades at a time: the arbiter, of this release, calls what an older library or older SQL objects may lack, and would find that out with
/// the writers held.
pub fn of_releases(arbiter: &str, server: &ServerToUpgrade) -> Vec<Obstacle> {
    let parts = [("library", &server.library), ("SQL objects", &server.objects)];
    let other = |(part, release): (&str, &Option<String>)| {
        let release = release.as_ref().filter(|release| *release != arbiter)?;
        Some(format!("the {part} of {release}"))
    };
    let others: Vec<String> = parts.into_iter().filter_map(other).collect();
    if others.is_empty() {
        return Vec::new();
    }
    let what = format!("an upgrade of pg_tenure is under way: the arbiter is of release {arbiter}, {}", others.join(", "));
    let cure = "finish it first: the packages on every node, then `tenure restart --rolling`; the SQL objects follow by themselves";
    vec![obstacle(Weight::Stops, "releases", what, cure)]
}

/// What stands in the way by what one database says.
pub fn of_database(database: &Database) -> Vec<Obstacle> {
    use Weight::*;
    let mut found = Vec::new();
    let of = |what: &str| format!("database {}: {what}", database.name);
    let mut named = |weight, kind: &str, list: &[String], what: &str, cure: &str| {
        if !list.is_empty() {
            found.push(obstacle(weight, kind, of(&format!("{what}: {}", names(list))), cure));
        }
    };
    named(
        Stops,
        "subscriptions",
        &database.subscriptions,
        "subscriptions would begin again from nothing, as their position is not carried before version 17",
        "drop them, and create them afterwards with (create_slot = false, copy_data = false) at the publisher's slot",
    );
    named(
        Stops,
        "reg_columns",
        &database.reg_columns,
        "columns of a reg* type hold numbers that change",
        "change their type to text or oid, or drop them",
    );
    named(
        StopsLogical,
        "replica_identity",
        &database.without_identity,
        "tables without a replica identity can't be updated while they are published",
        "give each a primary key, or ALTER TABLE ... REPLICA IDENTITY FULL",
    );
    named(
        StopsLogical,
        "unlogged_tables",
        &database.unlogged,
        "unlogged tables are not replicated",
        "ALTER TABLE ... SET LOGGED, or fill them again afterwards",
    );
    named(
        StopsLogical,
        "materialized_views",
        &database.materialized_views,
        "materialized views are not replicated",
        "REFRESH MATERIALIZED VIEW after the switch; by --in-place they are carried",
    );
    named(
        Note,
        "publications",
        &database.publications,
        "publications are carried as definitions, the slots of their subscribers are not",
        "plan how subscribers begin again",
    );
    named(
        Note,
        "event_triggers",
        &database.event_triggers,
        "event triggers of your own run also while definitions are carried",
        "ALTER EVENT TRIGGER ... DISABLE those that forbid or log definitions, until the upgrade is over",
    );
    named(
        Note,
        "collations",
        &database.stale_collations,
        "the collation library has changed since these collations were recorded",
        "REINDEX what is sorted by them, then ALTER COLLATION (or DATABASE) ... REFRESH VERSION",
    );
    let mut counted = |weight, kind: &str, count: i64, what: &str, cure: &str| {
        if count > 0 {
            found.push(obstacle(weight, kind, of(&format!("{count} {what}")), cure));
        }
    };
    counted(
        StopsLogical,
        "large_objects",
        database.large_objects,
        "large objects, which are not replicated",
        "use --in-place, or move them into bytea columns",
    );
    counted(
        Note,
        "sequences",
        database.sequences,
        "sequences: logical replication does not carry their values",
        "nothing by --in-place; otherwise they are to be set at the switch",
    );
    counted(
        Note,
        "identity_columns",
        database.identities,
        "columns GENERATED ALWAYS AS IDENTITY",
        "nothing: a subscriber writes the publisher's value; their sequences count above",
    );
    if database.encoding == "SQL_ASCII" {
        let cure = "nothing by --in-place; otherwise make sure that every text is valid in one encoding";
        found.push(obstacle(Note, "encoding", of("its encoding is SQL_ASCII: nothing checks what text is in it"), cure));
    }
    if database.citus {
        let what = of("Citus: the coordinator and the workers have to change together, and no logical replication carries their metadata");
        let cure = "upgrade Citus itself first; then all groups in place, the coordinator's first, as docs/upgrade.md says; `tenure upgrade` refuses to do it by itself";
        found.push(obstacle(Stops, "citus", what, cure));
    }
    found
}

/// What stands in the way on one node. `bytes`: of all databases, on whose number the room beside them depends.
pub fn of_files(files: &Files, to: u32, server: &ServerToUpgrade) -> Vec<Obstacle> {
    use Weight::*;
    let mut found = Vec::new();
    let Some(bin_dir) = &files.bin_dir else {
        let what = format!(
            "where PostgreSQL {to} is can't be told from postgresql.bin_dir, {}: it does not name the version once",
            files.bin_dir_now
        );
        let cure =
            "lay the versions side by side, in directories that differ by the number alone, and name the present one in postgresql.bin_dir";
        found.push(obstacle(Stops, "programs", what, cure));
        return of_member(found, &files.member);
    };
    if !files.missing_programs.is_empty() {
        let what = format!("{bin_dir} lacks {}", names(&files.missing_programs));
        found.push(obstacle(Stops, "programs", what, format!("install PostgreSQL {to} there (Debian: postgresql-{to})")));
        return of_member(found, &files.member);
    }
    if files.found != Some(to) {
        let said = files.found.map_or("nothing".to_owned(), |found| found.to_string());
        found.push(obstacle(
            Stops,
            "programs",
            format!("{bin_dir}/postgres says that its major version is {said}"),
            format!("install PostgreSQL {to} there"),
        ));
        return of_member(found, &files.member);
    }
    if let Some(minor) = files.found_minor
        && let (Some(here), Some(there)) = (day(server.version, server.minor), day(to, minor))
        && there < here
    {
        let what = format!(
            "PostgreSQL {to}.{minor} was released before {}.{}, of which pg_upgrade may carry what it does not know",
            server.version, server.minor
        );
        found.push(obstacle(Stops, "minor_release", what, format!("update PostgreSQL {to} to its newest minor release")));
    }
    for library in &files.missing_libraries {
        let cure = match library.as_str() {
            "pg_tenure" => format!("install pg_tenure for PostgreSQL {to} (postgresql-{to}-pg-tenure, or make install PG_MAJOR={to})"),
            _ => format!("install the package that brings {library} for PostgreSQL {to}, or drop what uses it"),
        };
        found.push(obstacle(Stops, "libraries", format!("PostgreSQL {to} has no library {library}"), cure));
    }
    for extension in &files.missing_extensions {
        let cure = format!("install it for PostgreSQL {to}, or DROP EXTENSION {extension}");
        found.push(obstacle(Stops, "extensions", format!("PostgreSQL {to} has no extension {extension}"), cure));
    }
    for option in &files.unknown_options {
        let what = format!(
            "columns carry the option {option}, which this release of PostgreSQL {to} does not know: pg_upgrade does not see it beforehand and fails"
        );
        let cure = format!(
            "update PostgreSQL {to} to a release that knows it; or, where nothing needs it, ALTER TABLE ... ALTER COLUMN ... RESET ({option}) (pg_attribute.attoptions)"
        );
        found.push(obstacle(Stops, "column_options", what, cure));
    }
    if !files.unknown_settings.is_empty() {
        let what = format!("PostgreSQL {to} does not know these settings: {}", names(&files.unknown_settings));
        found.push(obstacle(
            Note,
            "settings",
            what,
            "they are left out of what the new server is started with; take them out of the configuration",
        ));
    }
    let databases = u64::try_from(server.databases).unwrap_or(0);
    let (least, whole) = (BESIDE + databases * PER_DATABASE, u64::try_from(server.bytes).unwrap_or(0));
    let mib = |bytes: u64| bytes >> 20;
    match files.free {
        Some(free) if free < least => {
            let what = format!("{} MiB are free beside the data directory, and at least {} are needed", mib(free), mib(least));
            found.push(obstacle(Stops, "space", what, "free or add space"));
        }
        Some(free) if free < whole + least => {
            let what = format!("{} MiB are free, and a second copy of the data takes {}", mib(free), mib(whole + least));
            found.push(obstacle(StopsLogical, "space", what, "free or add space; --in-place links files and needs no second copy"));
        }
        _ => {}
    }
    if files.mount_point {
        let what = "the data directory is a mount point: the new one is made beside it, takes its place in one step, and must be on the same file system";
        found.push(obstacle(Stops, "mount_point", what.to_owned(), "let postgresql.data_dir be a directory below the mount point"));
    }
    if let Some(words) = &files.pg_upgrade {
        found.push(obstacle(Stops, "pg_upgrade", format!("pg_upgrade --check: {words}"), "do what it says, then check again"));
    }
    of_member(found, &files.member)
}

fn of_member(found: Vec<Obstacle>, member: &str) -> Vec<Obstacle> {
    found.into_iter().map(|obstacle| Obstacle { member: Some(member.to_owned()), ..obstacle }).collect()
}

#[cfg(test)]
mod tests;
