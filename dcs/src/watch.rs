//! "Look again" signals: a watch on the prefix wakes; it never carries truth.

use crate::error::Error;
use crate::etcd::Etcd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long to wait before a broken watch is opened again, so that an etcd that is away is not
/// hammered and one that is back is noticed within a quarter second.
const REOPEN: Duration = Duration::from_millis(250);

/// The longest wait while etcd refuses the watch: each try is a login, and logins cost etcd processor time.
const REOPEN_REFUSED: Duration = Duration::from_secs(8);

/// Keeps a watch open for as long as the future is polled, on one endpoint after another, and
/// notifies `wake` for every change and for every (re)opening: changes may have been missed between.
pub async fn keep_watching(etcd: Arc<Etcd>, wake: Arc<Notify>) {
    keep_watching_keys(etcd, wake, |_| true).await;
}

/// As [`keep_watching`], but woken only by changes of keys that matter.
pub async fn keep_watching_keys(etcd: Arc<Etcd>, wake: Arc<Notify>, matters: impl Fn(&[u8]) -> bool) {
    let mut endpoint = 0;
    let mut pause = REOPEN;
    loop {
        match watch_once(&etcd, endpoint, &wake, &matters).await {
            // etcd 3.4 says of a token it no longer knows, too, that it permits nothing.
            Ended::Refused => {
                etcd.log_in_anew(endpoint).await;
                pause = (pause * 2).min(REOPEN_REFUSED);
            }
            Ended::Broken => {
                pause = REOPEN;
                endpoint += 1;
            }
        }
        wake.notify_one();
        tokio::time::sleep(pause).await;
    }
}

enum Ended {
    /// The connection, the endpoint or the revision is gone.
    Broken,
    /// etcd does not permit it.
    Refused,
}

async fn watch_once(etcd: &Etcd, endpoint: usize, wake: &Notify, matters: &impl Fn(&[u8]) -> bool) -> Ended {
    let mut stream = match etcd.open_watch(endpoint).await {
        Ok(stream) => stream,
        Err(Error::Refused(_)) => return Ended::Refused,
        Err(_) => return Ended::Broken,
    };
    wake.notify_one();
    // An answer without events (created, progress) is a sign of life only; a cancelled watch is over.
    while let Ok(Some(answer)) = stream.message().await {
        if answer.canceled() {
            return if answer.cancel_reason().contains("permission denied") { Ended::Refused } else { Ended::Broken };
        }
        if answer.events().iter().filter_map(|event| event.kv()).any(|kv| matters(kv.key())) {
            wake.notify_one();
        }
    }
    Ended::Broken
}
