//! The major version of PostgreSQL that the stories run on, and a later one beside it.

use std::path::PathBuf;

/// The major version that the stories run on.
pub fn from() -> u32 {
    let bin = crate::programs::postgres_bin();
    let part = bin.iter().filter_map(|part| part.to_str()?.parse().ok()).next_back();
    part.expect("PostgreSQL's programs lie in a directory that names the version")
}

/// Its programs and pg_tenure are installed where Debian has them.
pub fn is_there(major: u32) -> bool {
    let root = PathBuf::from(format!("/usr/lib/postgresql/{major}"));
    root.join("bin/pg_upgrade").exists() && root.join("lib/pg_tenure.so").exists()
}

/// Where its programs are.
pub fn beside(major: u32) -> PathBuf {
    PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"))
}

/// A later major version beside that one with pg_tenure in it, that of UPGRADE_TO where it is set; None, said loudly, where there is none.
pub fn later() -> Option<u32> {
    let asked = std::env::var("UPGRADE_TO").ok().and_then(|text| text.parse().ok());
    let found = (from() + 1..=18).rev().find(|major| is_there(*major) && asked.is_none_or(|asked: u32| asked == *major));
    if found.is_none() {
        println!("SKIPPED IN PART: no later major version with pg_tenure is installed beside PostgreSQL {}", from());
    }
    found
}
