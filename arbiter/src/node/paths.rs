//! Files of ours that lie beside the data directory.

use crate::config::NodeConfig;
use std::path::PathBuf;

/// Where a path that belongs to this data directory but must not lie in it (it would be cloned or
/// rewound with it) is.
pub fn beside(config: &NodeConfig, tail: &str) -> PathBuf {
    let mut path = config.postgres.data_dir.components().as_path().as_os_str().to_owned();
    path.push(tail);
    PathBuf::from(path)
}

/// The datagram socket by which the extension wakes the arbiter.
pub fn wake_socket(config: &NodeConfig) -> PathBuf {
    beside(config, ".tenure-wake")
}

/// The file that holds etcd's password for the extension.
pub fn etcd_password_file(config: &NodeConfig) -> PathBuf {
    beside(config, ".tenure-etcd-password")
}

/// The file that says which copies of logical slots here were shown to be safe.
pub fn trusted_slots_file(config: &NodeConfig) -> PathBuf {
    beside(config, ".tenure-slots")
}
