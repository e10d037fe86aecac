//! The last minutes, for the page's small charts: in memory, so many samples of so many members.

use serde::Serialize;
use std::collections::VecDeque;

/// Ten minutes, one sample in two seconds.
const SAMPLES_MOST: usize = 300;
/// More lines than this nobody tells apart in a small chart; with it the whole is a few hundred kilobytes at most.
pub const MEMBERS_MOST: usize = 16;

/// One look.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// Milliseconds since 1970.
    pub at: i64,
    /// Who led, as far as this node knew.
    pub leader: Option<String>,
    /// Milliseconds left on this node's own lease; None for a node that does not lead.
    pub lease: Option<u64>,
    /// Seconds since etcd answered this node.
    pub etcd: Option<u64>,
    /// Name, bytes behind the leader, timeline.
    pub members: Vec<(String, Option<u64>, Option<u32>)>,
}

/// The samples, oldest first.
#[derive(Debug, Default)]
pub struct Past(VecDeque<Sample>);

impl Past {
    /// One more; the oldest goes.
    pub fn add(&mut self, sample: Sample) {
        if self.0.len() == SAMPLES_MOST {
            self.0.pop_front();
        }
        self.0.push_back(sample);
    }

    /// All of them as JSON.
    pub fn json(&self) -> String {
        serde_json::to_string(&self.0).unwrap_or_else(|_| "[]".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_sample_goes_and_the_whole_stays_small() {
        let mut past = Past::default();
        let members = vec![("a-name-of-twenty-char".to_owned(), Some(u64::MAX), Some(9)); MEMBERS_MOST];
        for at in 0..=SAMPLES_MOST {
            past.add(Sample {
                at: i64::try_from(at).unwrap(),
                leader: Some("n1".to_owned()),
                lease: Some(1),
                etcd: Some(1),
                members: members.clone(),
            });
        }
        assert_eq!((past.0.len(), past.0[0].at), (SAMPLES_MOST, 1));
        assert!(past.json().len() < 400_000, "{}", past.json().len());
    }
}
