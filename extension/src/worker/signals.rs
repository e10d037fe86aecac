//! The worker's signals, taken as data: all blocked, read from a descriptor, so that no library's
//! thread and no handler of Postgres' ever runs one.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use tokio::io::unix::AsyncFd;

/// Why the worker's loop is interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interrupt {
    /// SIGTERM or SIGINT: end now; Postgres waits for it at a fast shutdown.
    End,
    /// SIGQUIT: the server crashed or is stopped at once.
    Quit,
    /// SIGHUP: read the settings again.
    Reload,
    /// SIGUSR2: somebody left a request or attached.
    Woken,
}

/// The descriptor that signals are read from.
pub struct Signals(AsyncFd<OwnedFd>);

/// Blocks every signal in this thread, and in every thread it starts later. Called before any is started.
fn block_all() -> libc::sigset_t {
    // SAFETY: plain libc calls on a local set, in the process' only thread.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
        all
    }
}

impl Signals {
    /// Blocks all signals and opens the descriptor. Needs a running tokio runtime.
    pub fn open() -> std::io::Result<Signals> {
        block_all();
        // SAFETY: a new descriptor from the kernel, owned here only.
        let fd = unsafe {
            let mut set = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
                libc::sigaddset(&raw mut set, signal);
            }
            let fd = libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK);
            if fd < 0 {
                return Err(std::io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        // SAFETY: the descriptor is owned by the AsyncFd, so it stays open for as long as it is registered.
        Ok(Signals(unsafe { AsyncFd::register(fd) }?))
    }

    /// The next signal that means something here.
    pub async fn next(&self) -> std::io::Result<Interrupt> {
        loop {
            let mut ready = self.0.readable().await?;
            // SAFETY: the kernel fills a structure of exactly this size.
            let (count, info) = unsafe {
                let mut info: libc::signalfd_siginfo = std::mem::zeroed();
                let count = libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size_of::<libc::signalfd_siginfo>());
                (count, info)
            };
            if count <= 0 {
                ready.clear_ready();
                continue;
            }
            match libc::c_int::try_from(info.ssi_signo).unwrap_or(0) {
                libc::SIGTERM | libc::SIGINT => return Ok(Interrupt::End),
                libc::SIGQUIT => return Ok(Interrupt::Quit),
                libc::SIGHUP => return Ok(Interrupt::Reload),
                libc::SIGUSR2 => return Ok(Interrupt::Woken),
                _ => {} // SIGUSR1 is Postgres' own; this worker takes part in nothing it announces
            }
        }
    }
}

/// Returns once the postmaster is gone: the pipe it holds open then reads as closed.
pub async fn postmaster_death() -> std::io::Result<()> {
    // SAFETY: set by the postmaster before any child exists; the descriptor stays open for this process' life.
    let watch = unsafe { BorrowedFd::borrow_raw(pgrx::pg_sys::postmaster_alive_fds[0]) };
    let watch = watch.try_clone_to_owned()?;
    // SAFETY: the descriptor is owned by the AsyncFd, so it stays open for as long as it is registered.
    let pipe = unsafe { AsyncFd::register_with_interest(watch, tokio::io::Interest::READABLE) }?;
    let _closed = pipe.readable().await?;
    Ok(())
}
