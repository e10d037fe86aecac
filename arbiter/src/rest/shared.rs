//! An answer that many may ask for at once and that costs the server a question: made once for all who wait.

use std::future::Future;
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// The last answer of one kind.
pub struct Joint<T> {
    last: Mutex<Option<(Instant, T)>>,
    /// A client gets an answer that was begun at most so long before.
    keeps: Duration,
}

impl<T: Clone> Joint<T> {
    /// None yet.
    pub fn new(keeps: Duration) -> Joint<T> {
        Joint { last: Mutex::default(), keeps }
    }

    /// The answer that is young enough, or a new one. Where its maker goes away in the middle, the next in the row makes it.
    pub async fn get(&self, make: impl Future<Output = T>) -> T {
        let asked = Instant::now();
        let mut last = self.last.lock().await;
        if let Some((_, answer)) = last.as_ref().filter(|(begun, _)| *begun + self.keeps >= asked) {
            return answer.clone();
        }
        let begun = Instant::now();
        let answer = make.await;
        *last = Some((begun, answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn many_who_ask_at_once_cost_two_answers() {
        let joint = Joint::new(Duration::ZERO);
        let made = AtomicU32::new(0);
        let make = async || {
            made.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        futures_util::future::join_all((0..100).map(|_| joint.get(make()))).await;
        // The first, and one more that was begun after all the others had asked.
        assert!(made.load(Ordering::Relaxed) <= 2, "{made:?}");
    }

    #[tokio::test]
    async fn an_old_answer_is_made_anew() {
        let joint = Joint::new(Duration::from_millis(20));
        assert_eq!(joint.get(async { 1 }).await, 1);
        assert_eq!(joint.get(async { 2 }).await, 1);
        tokio::time::sleep(Duration::from_millis(40)).await;
        assert_eq!(joint.get(async { 3 }).await, 3);
    }
}
