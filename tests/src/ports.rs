//! Free ports that no two tests share: each is locked by a file as long as its `Port` lives.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below Linux' ephemeral ports (32768 and up), so that no outgoing connection takes one meanwhile.
const FIRST: u16 = 20_000;
const COUNT: u16 = 10_000;

/// A port on loopback that is this test's own.
#[derive(Debug)]
pub struct Port {
    number: u16,
    _lock: File,
}

impl Port {
    /// Locks a port that nobody listens on.
    pub fn free() -> Port {
        // Processes start at different places, so that they seldom try the same port.
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = (std::process::id() % u32::from(COUNT)) as u16;
        let directory = std::env::temp_dir().join("tenure-ports");
        if fs::create_dir(&directory).is_ok() {
            let _ = fs::set_permissions(&directory, fs::Permissions::from_mode(0o1777));
        }
        for _ in 0..COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = FIRST + (start.wrapping_mul(13).wrapping_add(step)) % COUNT;
            let Ok(lock) = File::options().create(true).truncate(false).write(true).open(directory.join(number.to_string())) else {
                continue;
            };
            if lock.try_lock().is_ok() && TcpListener::bind(("127.0.0.1", number)).is_ok() {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port between {FIRST} and {}", FIRST + COUNT - 1);
    }

    /// Its number.
    pub fn number(&self) -> u16 {
        self.number
    }

    /// `127.0.0.1:<number>`.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.number)
    }
}
