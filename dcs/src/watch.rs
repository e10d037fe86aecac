//! "Look again" signals: a watch on the prefix wakes; it never carries truth.

use crate::Etcd;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;

/// How long to wait before a broken watch is opened again, so that an etcd that is away is not
/// hammered and one that is back is noticed within a quarter second.
const REOPEN: Duration = Duration::from_millis(250);

/// Keeps a watch open for as long as the future is polled, on one endpoint after another, and
/// notifies `wake` for every change and for every (re)opening: changes may have been missed between.
pub async fn keep_watching(etcd: Arc<Etcd>, wake: Arc<Notify>) {
    let mut endpoint = 0;
    loop {
        if let Ok(mut stream) = etcd.open_watch(endpoint).await {
            wake.notify_one();
            // An answer without events (created, progress) is a sign of life only; a cancelled watch is over.
            while let Ok(Some(answer)) = stream.message().await {
                if answer.canceled() {
                    break;
                }
                if !answer.events().is_empty() {
                    wake.notify_one();
                }
            }
        }
        endpoint += 1;
        wake.notify_one();
        tokio::time::sleep(REOPEN).await;
    }
}
