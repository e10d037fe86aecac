//! How this server stands to a cluster: its settings and the mark in its data directory, judged once, in the postmaster.

use super::guc;
use super::server::data_directory;
use cluster::mark::{self, FILE, Identity, Standing};
use pgrx::pg_sys;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

static STANDING: OnceLock<Standing> = OnceLock::new();

/// How this server stands. Judged when first asked, which is while the postmaster loads the library; its processes inherit it.
pub fn standing() -> &'static Standing {
    STANDING.get_or_init(judge)
}

fn judge() -> Standing {
    let settings = Identity {
        scope: guc::scope().unwrap_or_default(),
        namespace: guc::namespace(),
        name: guc::name().unwrap_or_default(),
        group: guc::group(),
    };
    let Some(directory) = data_directory() else { return mark::standing(None, &settings, 0) };
    let marked = match std::fs::read_to_string(directory.join(FILE)) {
        Ok(text) => Some(mark::read(&text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        // Not known to be nobody's: closed.
        Err(error) => Some(Err(error.to_string())),
    };
    let inode = std::fs::metadata(&directory).map_or(0, |found| found.ino());
    mark::standing(marked, &settings, inode)
}

/// Tells why the fence of a cluster's data stays closed. In single-user mode nothing is fenced and nothing is said.
pub fn warn_if_closed() {
    // SAFETY: a plain flag of this process.
    let serves = unsafe { pg_sys::IsPostmasterEnvironment };
    if let (Standing::Closed(why), true) = (standing(), serves) {
        pgrx::warning!(
            "pg_tenure: {why}: no commit is acknowledged here; hint: the member's arbiter starts it as it should be, and where this is to be a server of its own, remove {FILE} from its data directory and the tenure.* settings"
        );
    }
}
