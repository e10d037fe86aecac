//! Parameters that every served major of PostgreSQL calls otherwise than the files of older deployments do. What a server does not know keeps
//! it from starting, and what these say is still meant.

use serde_json::{Map, Value};

/// A WAL segment's size, unless initdb was told otherwise.
const SEGMENT_MB: u64 = 16;

/// The name and the value that mean the same today; None where the name is today's, or the value could not be read.
pub fn today(name: &str, value: &str) -> Option<(&'static str, String)> {
    let segments = || value.trim().parse::<u64>().ok();
    match name.to_ascii_lowercase().as_str() {
        // Renamed in 13, from segments to a size.
        "wal_keep_segments" => Some(("wal_keep_size", format!("{}MB", segments()?.checked_mul(SEGMENT_MB)?))),
        // Replaced in 9.5: what used to be written between two checkpoints was up to three times this.
        "checkpoint_segments" => Some(("max_wal_size", format!("{}MB", segments()?.checked_mul(3 * SEGMENT_MB)?.max(2 * SEGMENT_MB)))),
        // Renamed in 10.
        "min_parallel_relation_size" => Some(("min_parallel_table_scan_size", value.to_owned())),
        // Renamed in 9.3.
        "unix_socket_directory" => Some(("unix_socket_directories", value.to_owned())),
        _ => None,
    }
}

/// What is said of the old names in a section of parameters, one sentence each.
pub fn notes(section: &str, parameters: &Map<String, Value>) -> Vec<String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let known = |wanted: &str| parameters.keys().any(|name| name.eq_ignore_ascii_case(wanted));
    let note = |(name, value): (&String, &Value)| {
        let (today, meant) = today(name, &text(value))?;
        let what = if known(today) { format!("{today} is given too, and counts") } else { format!("taken as {today} = {meant}") };
        Some(format!("{section}.{name}: PostgreSQL has no such parameter any more; {what}"))
    };
    parameters.iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_older_files_say_is_said_in_todays_words() {
        for (name, value, expected) in [
            ("wal_keep_segments", "8", Some(("wal_keep_size", "128MB"))),
            ("WAL_KEEP_SEGMENTS", "0", Some(("wal_keep_size", "0MB"))),
            ("wal_keep_segments", "many", None),
            ("checkpoint_segments", "32", Some(("max_wal_size", "1536MB"))),
            ("unix_socket_directory", "/tmp", Some(("unix_socket_directories", "/tmp"))),
            ("wal_keep_size", "1GB", None),
        ] {
            assert_eq!(today(name, value), expected.map(|(name, value)| (name, value.to_owned())), "{name}");
        }
    }

    #[test]
    fn each_is_said_and_todays_name_counts_where_both_are_given() {
        let parameters = json!({"wal_keep_segments": 8, "work_mem": "4MB", "checkpoint_segments": "3", "max_wal_size": "1GB"});
        assert_eq!(
            notes("postgresql.parameters", parameters.as_object().unwrap()),
            [
                "postgresql.parameters.checkpoint_segments: PostgreSQL has no such parameter any more; max_wal_size is given too, and counts",
                "postgresql.parameters.wal_keep_segments: PostgreSQL has no such parameter any more; taken as wal_keep_size = 128MB",
            ]
        );
    }
}
