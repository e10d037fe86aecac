//! The background worker: `keeper`'s loops in a process of Postgres.
//!
//! It has shared memory and no database connection, so nothing in SQL can block it. One thread runs
//! the loops of `keeper` side by side with a watch that wakes them and a look at how the server is; on a Citus coordinator a fourth one looks at the other groups. Every loop ends with the
//! process, which Postgres starts again a second later; the lease it then finds under its own name is
//! its own.

mod groups;
mod hear;
mod host;
mod observe;
mod publish;
mod requests;
mod signals;
mod state;
pub mod vitals;

use crate::fence::{bond, kept, layout};
use crate::ground::guc;
use crate::ground::server::data_directory;
use crate::shmem::{self, page};
use cluster::confirmed::{Compared, Differs};
use cluster::lease;
use cluster::name::{MemberName, Scope};
use dcs::key::Keys;
use dcs::remember::Remembered;
use dcs::{Etcd, Settings};
use keeper::Tenure;
use pgrx::pg_sys;
use signals::{Interrupt, Signals};
use state::{Here, Worker};
use std::sync::Arc;
use std::time::Duration;

/// A few loads: often enough that a wrong word is not relied on for long.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// How long a reload waits for a request of SQL's: longer than a write to an etcd that answers takes.
const REQUEST_PATIENCE: Duration = Duration::from_secs(2);

/// Why a worker can't run; it tells and ends, and is started again.
#[derive(Debug, thiserror::Error)]
enum Unable {
    #[error("{0}")]
    Name(#[from] cluster::name::NameError),
    #[error("tenure.name is empty: every member needs a name")]
    NoName,
    #[error("could not read {file}: {source}")]
    File { file: String, source: std::io::Error },
    #[error("could not set up the event loop: {0}")]
    Loop(#[from] std::io::Error),
}

/// Entry point of the background worker.
#[pgrx::pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tenure_lease_worker_main(_arg: pg_sys::Datum) {
    shmem::attach_worker();
    page().mailbox.forget();
    if let Err(why) = run() {
        pgrx::warning!("pg_tenure lease worker could not run: {why}");
    }
    // Exit code 1: Postgres starts the worker again, unless the server itself is going down. Code 0
    // would mean "never again".
    // SAFETY: the proper end of a server process; runs its exit callbacks.
    unsafe { pg_sys::proc_exit(1) }
}

fn run() -> Result<(), Unable> {
    // Current-thread: the lease worker is one thread, and a library that starts another one starts it
    // with every signal blocked, because they are blocked before the runtime exists.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(3).build()?;
    runtime.block_on(async {
        let signals = Signals::open()?;
        if page().is_distrusted() {
            return keep_closed(&signals).await;
        }
        // What is known of etcd's keys outlives a reload.
        let remembered = Arc::new(Remembered::default());
        let mut worker = from_settings(&remembered)?;
        match bond::kept() {
            Ok(bond) => worker.recall_bond(bond),
            // No receiver streams until somebody has looked after it.
            Err(why) => pgrx::warning!(
                "pg_tenure: {why}; hint: this server receives from nobody while the file is there; make a new copy of it with tenure reinit"
            ),
        }
        let spoken = kept::spoken()
            .inspect_err(|why| pgrx::warning!("pg_tenure: {why}; this server promises nothing (failsafe_mode) until another member leads"));
        worker.recall_word(spoken);
        loop {
            let reload = tokio::select! {
                biased;
                end = interrupts(&signals, &worker) => end?,
                death = signals::postmaster_death() => { death?; false }
                never = worker.keep_lease() => match never {},
                never = worker.turns() => match never {},
                never = worker.listen() => match never {},
                () = dcs::watch::keep_watching(worker.store.clone(), worker.host.wake.clone()) => false,
                never = vitals::watch(&worker.host) => match never {},
                never = groups::look_at_others(&worker) => never,
                why = compare() => {
                    // The worker ends with this, and the one after it finds the page like this.
                    pgrx::warning!("pg_tenure reads this release of PostgreSQL wrongly: {why}");
                    page().distrust();
                    page().change(Tenure::close);
                    false
                }
            };
            if !reload {
                return Ok(());
            }
            if worker.host.is_keeping() {
                // The worker after this one reads what came of it.
                return Ok(());
            }
            // SAFETY: SIGHUP's own business, done between two awaits in the process' main thread.
            unsafe { pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP) };
            // What the round before was serving for SQL ended with it: nobody else would give the mailbox back.
            page().mailbox.forget();
            match from_settings(&remembered) {
                // What was sent before may be carried out yet: that outlives a reload.
                Ok(fresh) => worker = fresh.in_place_of(&worker),
                // A wrong setting must not end a leader: what it has works.
                Err(why) => {
                    worker.tell("settings", &format!("the new settings can't be used, the worker goes on with those before: {why}"))
                }
            }
        }
    })
}

/// Compares what the fence reads with what the server says, until they differ.
async fn compare() -> Differs {
    let mut compared = Compared::default();
    loop {
        if let Some(Err(why)) = layout::look().map(|look| compared.with(&look)) {
            return why;
        }
        tokio::time::sleep(COMPARE_EVERY).await;
    }
}

/// What the fence would read of this server is not known: no lease is taken, so that another member leads, and nothing is acknowledged here.
async fn keep_closed(signals: &Signals) -> Result<(), Unable> {
    let why = "the fence can't read what synchronous standbys have confirmed in this release of PostgreSQL";
    pgrx::warning!(
        "{why}: commits are refused here, and this member does not lead; hint: install a pg_tenure that was built for this minor release, then restart the server"
    );
    // A client that is refused is told, and `tenure.events()` has it.
    page().note.write(why);
    page().events.record("fence", "closed until this server starts again", why, page().term());
    loop {
        let interrupt = tokio::select! {
            interrupt = signals.next() => interrupt?,
            death = signals::postmaster_death() => { death?; Interrupt::End }
        };
        match interrupt {
            Interrupt::End => return Ok(()),
            // SAFETY: as in `interrupts`.
            Interrupt::Quit => unsafe { libc::_exit(2) },
            Interrupt::Reload => {}
            Interrupt::Woken => requests::decline(why),
        }
    }
}

/// Serves signals until one ends this round: true to go on with new settings.
async fn interrupts(signals: &Signals, worker: &Worker) -> std::io::Result<bool> {
    loop {
        match signals.next().await? {
            Interrupt::End => return Ok(false),
            // A crash elsewhere: nothing in shared memory may be touched any more.
            // SAFETY: ends the process at once, as Postgres does on SIGQUIT.
            Interrupt::Quit => unsafe { libc::_exit(2) },
            Interrupt::Reload => return reload(signals, worker).await,
            Interrupt::Woken => worker.host.was_woken(),
        }
    }
}

/// A reload lets a request of SQL's that is being served come to its end, for a while: dropped midway, its outcome is known to nobody.
async fn reload(signals: &Signals, worker: &Worker) -> std::io::Result<bool> {
    let served = tokio::time::timeout(REQUEST_PATIENCE, worker.host.serving.lock());
    tokio::pin!(served);
    loop {
        let interrupt = tokio::select! {
            biased;
            interrupt = signals.next() => interrupt?,
            _ = &mut served => return Ok(true),
        };
        match interrupt {
            Interrupt::End => return Ok(false),
            // SAFETY: as in `interrupts`.
            Interrupt::Quit => unsafe { libc::_exit(2) },
            Interrupt::Reload => {}
            Interrupt::Woken => worker.host.was_woken(),
        }
    }
}

fn read_file(file: Option<String>) -> Result<Option<Vec<u8>>, Unable> {
    file.map(|file| std::fs::read(&file).map_err(|source| Unable::File { file, source })).transpose()
}

/// What the arbiter wrote down lies in the data directory, which is a server process' own directory. Without it the memory begins here.
fn recall(remembered: &Remembered, keys: &Keys) {
    let said = match std::fs::read_to_string(dcs::remember::FILE) {
        Ok(text) => remembered.recall(keys.prefix(), &text).map_err(|why| why.to_string()),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => return,
        Err(why) => Err(why.to_string()),
    };
    if let Err(why) = said {
        pgrx::warning!("could not read {}: {why}", dcs::remember::FILE);
    }
}

fn from_settings(remembered: &Arc<Remembered>) -> Result<Worker, Unable> {
    let scope = Scope::new(&guc::scope().unwrap_or_default())?;
    let name = MemberName::new(&guc::name().ok_or(Unable::NoName)?)?;
    let endpoints = guc::etcd_endpoints();
    let password = read_file(guc::etcd_password_file())?.map(|bytes| String::from_utf8_lossy(&bytes).trim_end().to_owned());
    let settings = Settings {
        try_timeout: lease::try_timeout(guc::ttl(), endpoints.len()),
        endpoints,
        user: guc::etcd_username().map(|user| (user, password.unwrap_or_default())),
        ca_certificate: read_file(guc::etcd_cacert())?,
        identity: read_file(guc::etcd_cert())?.zip(read_file(guc::etcd_key())?),
    };
    let keys = Keys::new(&guc::namespace(), &scope);
    let keys = guc::group().map_or_else(|| keys.clone(), |group| keys.group(group));
    recall(remembered, &keys);
    let etcd = Arc::new(Etcd::new(keys, settings).remembering(remembered.clone()));
    let instance = data_directory().and_then(|data_dir| dcs::instance::here(&data_dir));
    Ok(Worker::new(etcd.clone(), Here::new(etcd, name.clone(), scope), name, instance))
}
