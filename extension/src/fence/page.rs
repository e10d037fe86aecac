//! How the page begins: closed on a cluster's data, bound by what this server said of a leader, and distrusted in a release that this build does not know.

use super::{bond, kept, layout};
use crate::ground::standing::standing;
use crate::shmem::Beginning;
use cluster::fence::Mode;
use cluster::mark::Standing;

/// Asked when shared memory was laid out just now, before any other process.
pub fn beginning() -> Beginning {
    // A server on a cluster's data starts closed, also after a crash of a backend.
    let mode = if *standing() == Standing::Unmanaged { Mode::Unmanaged } else { Mode::Closed };
    let managed = mode != Mode::Unmanaged;
    Beginning {
        mode,
        is_bound: managed && !matches!(bond::kept(), Ok(None)),
        has_spoken: managed && !matches!(kept::spoken(), Ok(None)),
        unknown_release: layout::as_built().err(),
    }
}
