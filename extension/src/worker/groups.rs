//! What a Citus coordinator's server shows of the other groups in `tenure.status()`. Nothing is decided on it.

use super::state::Worker;
use crate::ground::guc;
use crate::shmem;
use cluster::citus::COORDINATOR;
use dcs::key::Keys;
use keeper::Host;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// Until the configuration was read.
const FIRST: Duration = Duration::from_secs(1);

/// Reads all groups once per `loop_wait`, and at once when another leads one of them; beside the other loops, so that neither the
/// lease nor the race waits for it. On servers of other groups it does nothing.
pub async fn look_at_others(worker: &Worker) -> bool {
    if guc::group() != Some(COORDINATOR) {
        return std::future::pending().await;
    }
    let keys = Keys::new(&guc::namespace(), &worker.host.scope);
    let own = keys.group(COORDINATOR).leader();
    let scope = Arc::new(worker.store.seen_as(keys));
    let wake = Arc::new(Notify::new());
    // Positions are written all the time; who leads is news.
    let leads = |key: &[u8]| key.ends_with(b"/leader") && key != own.as_bytes();
    let looking = async {
        let mut told = String::new();
        let mut news = true;
        loop {
            let asked = shmem::boottime();
            match scope.load_groups().await {
                Ok(mut groups) => {
                    groups.remove(&COORDINATOR);
                    *worker.host.others.borrow_mut() = Some((groups, asked));
                    told.clear();
                    if news {
                        // The turn publishes it; without news the next one is soon enough.
                        worker.host.look_again();
                    }
                }
                Err(why) => {
                    let why = why.to_string();
                    if told != why {
                        worker.tell("groups", &format!("the other groups were not read: {why}"));
                        told = why;
                    }
                }
            }
            news = tokio::select! {
                () = tokio::time::sleep(loop_wait(worker)) => false,
                () = wake.notified() => true,
            };
        }
    };
    tokio::select! {
        never = looking => never,
        () = dcs::watch::keep_watching_keys(scope.clone(), wake.clone(), leads) => false,
    }
}

fn loop_wait(worker: &Worker) -> Duration {
    worker.last_view(|view| view.config().timing().loop_wait).unwrap_or(FIRST)
}
