//! Lease arithmetic only: when to renew, until when a grant counts.

use crate::time::Moment;
use std::time::Duration;

/// The shortest lease we ask for. etcd raises anything below 1.5 election timeouts (2 s with its
/// defaults), and looks for expired leases every half second; at 3 s a lease survives one lost renewal.
pub const TTL_MINIMUM: Duration = Duration::from_secs(3);

/// The longest: a day, the most that the extension's setting `tenure.ttl` takes.
pub const TTL_MAXIMUM: Duration = Duration::from_secs(86_400);

/// Where etcd stood when a member of it answered: the header of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Which cluster of etcd.
    pub cluster: u64,
    /// The raft term of the last entry that the member had applied.
    pub raft_term: u64,
    /// The revision that it had come to.
    pub revision: i64,
}

/// Does a keep-alive's answer count, given the answer to a linearizable read that was sent after it was heard?
///
/// By itself it does not: a member of etcd that thinks that it leads answers a keep-alive without asking anybody (3.4 before 3.4.31,
/// 3.5 before 3.5.13), while the leader that was elected meanwhile lets the lease run out by its own count. The
/// argument, whichever members answered:
///
/// * A member lets leases run out only as leader, and begins to count them, each in full, when it applies the first
///   entry of its own raft term. Until then it knows no time for them.
/// * The read is linearizable: a majority confirmed its leader after it was sent, and it shows every entry that was
///   committed before. So its term is at least that of every leader that had begun to count when the read was sent.
/// * The header of the keep-alive's answer is written before the lease is looked at. Its term is one that this member
///   has applied an entry of. A member that led in an older term has heard of its end before it applies such an entry, and a
///   member that passes the question on passes it to the leader of that term or a later one. So the member that renewed the lease
///   had begun to count in a raft term not older than the one in the header.
/// * Where both terms are the same, nobody of a later term had begun to count when the read was sent, which was
///   after the keep-alive was sent. A leader that begins later begins with the full TTL. So etcd lets the lease go one TTL
///   after the keep-alive was sent at the earliest: the deadline that [`deadline`] counts from that moment comes first.
///
/// All of that holds within one life of etcd. One that was restored from a backup counts its raft terms again, often under the same cluster id, and may be in the very
/// term in which a member of before, which nobody stopped, believes that it leads. Revisions only grow in one life: a read that shows less than the
/// keep-alive's answer did is of another. (Once the restored one has come to more revisions than that member, nothing tells them apart:
/// docs/failure-modes.md.)
///
/// A grant needs no such proof: it is an entry itself, committed after it was sent, and a leader of etcd begins to count after that.
pub fn counts(kept: Standing, read_after: Standing) -> bool {
    (kept.cluster, kept.raft_term) == (read_after.cluster, read_after.raft_term) && kept.revision <= read_after.revision
}

/// Renew this often: a quarter of the TTL leaves three further tries before the deadline.
pub fn renew_every(ttl: Duration) -> Duration {
    ttl / 4
}

/// How long one try at one endpoint may take, so that every endpoint is asked within half the TTL.
pub fn try_timeout(ttl: Duration, endpoints: usize) -> Duration {
    let shares = u32::try_from(endpoints.max(1)).unwrap_or(u32::MAX);
    (ttl / 2 / shares).clamp(Duration::from_millis(100), Duration::from_secs(2))
}

/// What is taken off a grant for the difference in rate between two hosts' clocks: 2 % of the TTL
/// (a crystal is off by 0.01 %, a badly slewed clock by 0.05 %), and never less than 20 ms.
pub fn drift_margin(ttl: Duration) -> Duration {
    (ttl / 50).max(Duration::from_millis(20))
}

/// Until when a grant counts here. `sent` was read before the request left, etcd counts its TTL from
/// when it arrived, so this deadline passes first, however long the answer took.
pub fn deadline(sent: Moment, granted: Duration) -> Moment {
    sent + granted.saturating_sub(drift_margin(granted))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// etcd counts on its own clock from the request's arrival; ours may run slower by up to 1 %.
        #[test]
        fn our_deadline_passes_before_etcd_lets_go(
            sent_ms in 0u64..10_000_000, travel_ms in 0u64..60_000, ttl_s in 3u64..600, slow_per_mille in 0u32..10,
        ) {
            let sent = Moment(Duration::from_millis(sent_ms));
            let ttl = Duration::from_secs(ttl_s);
            let ours = deadline(sent, ttl).since(sent);
            // Seen on a perfect clock, a span on our slow clock lasts longer.
            let in_true_time = ours + ours * slow_per_mille / 1000;
            let etcd = Duration::from_millis(travel_ms) + ttl;
            prop_assert!(in_true_time < etcd);
        }
    }

    #[test]
    fn a_keep_alive_counts_under_the_term_of_the_read_after_it() {
        let at = |cluster, raft_term| Standing { cluster, raft_term, revision: 7 };
        assert!(counts(at(1, 5), at(1, 5)));
        // A leader was elected since: perhaps it was the one before that answered.
        assert!(!counts(at(1, 5), at(1, 6)));
        // No member of one etcd says so after the other.
        assert!(!counts(at(1, 6), at(1, 5)));
        assert!(!counts(at(1, 5), at(2, 5)));
        // Something was written meanwhile; and never is anything unwritten, but in an etcd that was restored.
        assert!(counts(at(1, 5), Standing { revision: 8, ..at(1, 5) }));
        assert!(!counts(at(1, 5), Standing { revision: 6, ..at(1, 5) }));
    }

    #[test]
    fn three_renewals_fit_before_the_deadline() {
        for ttl in [3, 10, 30].map(Duration::from_secs) {
            assert!(renew_every(ttl) * 3 < deadline(Moment::default(), ttl).0);
        }
    }
}
