//! How this server stands to a cluster: its settings and the mark in its data directory, judged once, in the postmaster.

use crate::guc;
use cluster::mark::{self, FILE, Identity, Standing};
use pgrx::pg_sys;
use std::ffi::CStr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
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

/// The data directory, in every process.
pub fn data_directory() -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    // SAFETY: a C string that the process set before it loaded any library, and never changes.
    let path = unsafe { pg_sys::DataDir };
    if path.is_null() {
        return None;
    }
    // SAFETY: as above.
    let path = unsafe { CStr::from_ptr(path) };
    Some(PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes())))
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
