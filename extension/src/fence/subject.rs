//! Who is subject to the page: every process under a postmaster, of a server on a cluster's data.

use crate::shmem::{self, Page};
use cluster::fence::{Mode, may_acknowledge};
use pgrx::pg_sys;

/// The page where this process is subject to it.
pub(super) fn managed_page() -> Option<&'static Page> {
    // SAFETY: a plain flag of this process.
    let under_postmaster = unsafe { pg_sys::IsUnderPostmaster };
    shmem::page_if_any().filter(|page| under_postmaster && page.mode() != Mode::Unmanaged)
}

/// May this server acknowledge now? Of a server that is not fenced, and of a standby, nobody asks.
pub(super) fn may_acknowledge_now() -> bool {
    managed_page().is_none_or(|page| may_acknowledge(page.fence(), page.fence_moment(shmem::boottime())))
}
