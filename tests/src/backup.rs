//! Backup tools that people have: where they are, and what a story does where one is not installed.

use std::path::PathBuf;

/// The program, or None, loudly: CI installs it (`make setup`), a machine without it skips the story.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file());
    assert!(found.is_some() || std::env::var_os("CI").is_none(), "{name} is not installed; hint: `make setup`");
    if found.is_none() {
        println!("SKIPPED: {name} is not installed; hint: `make setup`");
    }
    found
}
