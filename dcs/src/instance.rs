//! Which instance this process belongs to: read from the host, for `cluster::instance` to judge by.

use cluster::instance::Instance;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Drawn by the kernel at each boot.
const BOOT: &str = "/proc/sys/kernel/random/boot_id";

/// The instance that keeps its data here; None where the host does not tell.
pub fn here(data_dir: &Path) -> Option<Instance> {
    let boot = std::fs::read_to_string(BOOT).ok()?;
    // The directory itself comes and goes with copies; the one that holds it stays. Its links are followed, so that
    // server and arbiter agree however each was told of it.
    let data_dir = data_dir.canonicalize().unwrap_or_else(|_| data_dir.to_owned());
    let above = std::fs::metadata(data_dir.parent()?).ok()?;
    Some(Instance::of(boot.trim(), above.dev(), above.ino(), &data_dir.file_name()?.to_string_lossy()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_instance_is_the_same_before_and_after_there_is_data_and_another_one_beside() {
        let parent = std::env::temp_dir().join(format!("instance-{}", std::process::id()));
        std::fs::create_dir_all(&parent).unwrap();
        let data = parent.join("data");
        let before = here(&data);
        std::fs::create_dir_all(&data).unwrap();
        assert_eq!(here(&data), before);
        assert!(before.is_some());
        assert_ne!(here(&parent), before);
        std::fs::remove_dir_all(&parent).unwrap();
    }
}
