//! Bounded, level-triggered waiting: what is true is looked at again and again, and a time-out says what was last seen.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// How often a wait looks. Short against what is measured (tenths of a second), long against one look.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// Waits until `look` gives `Ok`, and gives that; panics after `bound` with what `look` last said.
pub async fn until<T, E: Display>(what: &str, bound: Duration, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(found) => return found,
            Err(seen) if started.elapsed() > bound => {
                panic!("waited {bound:?} for {what}; last seen: {seen}")
            }
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Holds a condition for a while: panics at the first look that gives `Err`.
pub async fn throughout<E: Display>(what: &str, span: Duration, mut look: impl AsyncFnMut() -> Result<(), E>) {
    let started = Instant::now();
    while started.elapsed() < span {
        if let Err(seen) = look().await {
            panic!("{what} was to hold for {span:?}; after {:?}: {seen}", started.elapsed());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Lets a fault last: the story says "frozen for four seconds", and this is those seconds.
pub async fn lasting(span: Duration) {
    tokio::time::sleep(span).await;
}

/// Seconds, for stories.
pub fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}
