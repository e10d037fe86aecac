//! Where the programs are: PostgreSQL's, etcd's and our own; a missing one is said in one sentence.

use std::path::{Path, PathBuf};

/// PostgreSQL's directory of programs: `PG_BIN`, else Debian's for `PG_MAJOR` (15).
pub fn postgres_bin() -> PathBuf {
    if let Some(dir) = std::env::var_os("PG_BIN") {
        return PathBuf::from(dir);
    }
    let major = std::env::var("PG_MAJOR").unwrap_or_else(|_| "15".to_owned());
    let dir = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    assert!(dir.join("postgres").exists(), "no PostgreSQL in {}; hint: `make setup`, or say PG_BIN=", dir.display());
    dir
}

/// Its major version.
pub fn postgres_major() -> u32 {
    let output =
        std::process::Command::new(postgres_bin().join("postgres")).arg("--version").output().expect("ask postgres for its version");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let digits = said.chars().skip_while(|c| !c.is_ascii_digit()).take_while(char::is_ascii_digit).collect::<String>();
    digits.parse().unwrap_or_else(|_| panic!("no version in: {said}"))
}

/// The binary `tenure`: `TENURE_BIN`, else the release build of this checkout.
pub fn tenure() -> PathBuf {
    if let Some(path) = std::env::var_os("TENURE_BIN") {
        return PathBuf::from(path);
    }
    let path = target().join("release/tenure");
    assert!(path.exists(), "{} is not built; hint: `make build install`", path.display());
    path
}

/// `patroni`, for comparisons and for moving over: `PATRONI`, else the one that `make patroni` installed.
pub fn patroni() -> Option<PathBuf> {
    installed_patroni("PATRONI", "patroni")
}

/// `patronictl`: `PATRONICTL`, else the one that `make patroni` installed.
pub fn patronictl() -> Option<PathBuf> {
    installed_patroni("PATRONICTL", "patronictl")
}

/// What `variable` names, else `program` where `make patroni` puts it: for root a place that the user of Postgres can
/// read, who runs it in the stories; the target directory for everyone else.
fn installed_patroni(variable: &str, program: &str) -> Option<PathBuf> {
    if let Some(said) = std::env::var_os(variable) {
        return Some(PathBuf::from(said)).filter(|path| path.exists());
    }
    let places = [PathBuf::from("/opt/pg_tenure-tests/patroni"), target().join("patroni")];
    places.into_iter().map(|place| place.join("bin").join(program)).find(|path| path.exists())
}

/// `check_patroni`, beside [`patronictl`].
pub fn check_patroni() -> Option<PathBuf> {
    let path = patronictl()?.with_file_name("check_patroni");
    path.exists().then_some(path)
}

/// HAProxy, where Debian's package is installed.
pub fn haproxy() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/sbin/haproxy");
    path.exists().then_some(path)
}

/// pg_auto_failover's program: `PG_AUTOCTL`, else Debian's package where it is installed.
pub fn pg_autoctl() -> Option<PathBuf> {
    let path = std::env::var_os("PG_AUTOCTL").map_or_else(|| PathBuf::from("/usr/bin/pg_autoctl"), PathBuf::from);
    path.exists().then_some(path)
}

/// PgBouncer, where Debian's package is installed.
pub fn pgbouncer() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/sbin/pgbouncer");
    path.exists().then_some(path)
}

/// Prometheus' tool that reads rules, where Debian's package `prometheus` is installed.
pub fn promtool() -> Option<PathBuf> {
    let path = PathBuf::from("/usr/bin/promtool");
    path.exists().then_some(path)
}

fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"), PathBuf::from)
}
