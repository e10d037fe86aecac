//! Flushes of WAL that are slow or fail: a library between a server and its disk, which a file tells what to do.

use crate::room::Room;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

/// The library, and the file that it reads at each flush.
pub struct Flush {
    library: PathBuf,
    control: PathBuf,
}

impl Flush {
    /// Compiles it into the room.
    pub fn in_room(room: &Room) -> Flush {
        let (source, library, control) = (room.path().join("flush.c"), room.path().join("flush.so"), room.path().join("flush"));
        fs::write(&source, include_str!("flush.c")).expect("write the library's source");
        let made = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).arg("-ldl").status().expect("run cc");
        assert!(made.success(), "cc: {made}");
        fs::write(&control, "0").expect("write the file that it reads");
        Flush { library, control }
    }

    /// What a node's programs need in their environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &PathBuf| path.display().to_string();
        vec![("LD_PRELOAD".to_owned(), text(&self.library)), ("STORY_FLUSH".to_owned(), text(&self.control))]
    }

    /// From now on each flush of WAL takes so many milliseconds more; `EIO` where it is to fail.
    pub fn says(&self, word: &str) {
        fs::write(&self.control, word).expect("write the file that it reads");
    }
}
