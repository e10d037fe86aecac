//! The verdict on a storm: what the cluster has in the end, against what its clients were told and when.

use crate::storm::clients::LINES;
use crate::storm::mode::Window;
use crate::storm::shared::{Act, End, Ledger, Seen, Transaction, step};
use crate::workload::Outcome;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// What a server has in the end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// How often each id is in the table.
    pub written: BTreeMap<u64, u64>,
    /// Each list, in order.
    pub lists: BTreeMap<u64, Vec<u64>>,
    /// Lines of each COPY that is there.
    pub heaps: BTreeMap<u64, u64>,
}

/// What was found. Only `overlaps` and `dirty_reads` are no violation by themselves.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Statements that were acknowledged.
    pub acknowledged: usize,
    /// Refused by an ERROR.
    pub refused: usize,
    /// Without an answer.
    pub unknown: usize,
    /// Acknowledged without a term: the page had none at that moment.
    pub without_term: usize,
    /// Terms that acknowledged something.
    pub terms: usize,
    /// Acknowledged and not there.
    pub lost: Vec<u64>,
    /// The same while the synchronous mode was off: allowed.
    pub lost_unprotected: Vec<u64>,
    /// Two-phase commits.
    pub transactions: usize,
    /// Prepared with an acknowledgement, and neither there nor ended as was asked.
    pub lost_prepared: Vec<u64>,
    /// Ended with an acknowledgement, and there again, or ended otherwise.
    pub ended_otherwise: Vec<u64>,
    /// A PREPARE that was refused, and there all the same.
    pub wrongly_prepared: Vec<u64>,
    /// COPYs that are there in part, or without their row.
    pub torn: Vec<u64>,
    /// Lost, although the same term acknowledged something later that is there: WAL is one sequence, so that is never allowed.
    pub holes: Vec<u64>,
    /// Terms that lost something, and how much.
    pub lost_by_term: BTreeMap<u64, usize>,
    /// There more than once.
    pub doubled: Vec<u64>,
    /// Refused and there all the same.
    pub wrongly_refused: Vec<u64>,
    /// There, and nobody wrote it.
    pub unheard_of: Vec<u64>,
    /// Appends whose returned list is no beginning of the list as it is now: lost or reordered.
    pub broken_lists: Vec<u64>,
    /// Sent after a later term had acknowledged, and acknowledged by an earlier one all the same.
    pub two_leaders: Vec<u64>,
    /// Terms in which more than one server acknowledged.
    pub shared_terms: Vec<u64>,
    /// Answers of an earlier term that arrived after the first of a later one; sent before it, so the answer may have been on its way.
    pub overlaps: usize,
    /// The longest of these.
    pub longest_overlap: Duration,
    /// Reads of something that is not there any more.
    pub dirty_reads: usize,
    /// All reads.
    pub reads: usize,
}

impl Judgement {
    /// Compares. In the windows an acknowledged commit need not stay.
    pub fn on(contents: &Contents, ledger: &Ledger, windows: &[Window]) -> Judgement {
        let Ledger { acts, reads, transactions } = ledger;
        let mut judged = Judgement { reads: reads.len(), transactions: transactions.len(), ..Judgement::default() };
        let mut there = contents.written.clone();
        for element in contents.lists.values().flatten() {
            *there.entry(*element).or_default() += 1;
        }
        let mut known: BTreeSet<u64> = transactions.iter().map(|one| one.prepare.id).collect();
        let mut lost = Vec::new();
        for act in acts {
            known.insert(act.id);
            let is_there = there.contains_key(&act.id);
            match act.outcome {
                Outcome::Acknowledged => {
                    judged.acknowledged += 1;
                    judged.without_term += usize::from(act.term.is_none());
                    if !is_there {
                        lost.push(act);
                    }
                }
                Outcome::Refused(_) => {
                    judged.refused += 1;
                    if is_there {
                        judged.wrongly_refused.push(act.id);
                    }
                }
                Outcome::Unknown(_) => judged.unknown += 1,
            }
        }
        judged.doubled = there.iter().filter(|(_, count)| **count > 1).map(|(id, _)| *id).collect();
        judged.unheard_of = there.keys().filter(|id| !known.contains(id)).copied().collect();
        judged.torn = contents.heaps.iter().filter(|(id, lines)| **lines != LINES || !there.contains_key(id)).map(|(id, _)| *id).collect();
        judged.look_for_holes(acts, &lost);
        for act in lost {
            let to = if is_within(windows, act.sent, act.known) { &mut judged.lost_unprotected } else { &mut judged.lost };
            to.push(act.id);
        }
        judged.look_at_lists(contents, ledger, windows);
        judged.look_at_terms(acts.iter().chain(transactions.iter().map(|one| &one.prepare)));
        for one in transactions {
            judged.look_at_transaction(one, there.contains_key(&one.prepare.id), is_within(windows, one.prepare.sent, one.last));
        }
        judged
    }

    /// What was found when the storm was over has been ended since: committed where its PREPARE was acknowledged and no end, or Commit, was asked for.
    fn look_at_transaction(&mut self, one: &Transaction, is_there: bool, unprotected: bool) {
        let id = one.prepare.id;
        match (&one.prepare.outcome, one.asked) {
            (Outcome::Refused(_), _) if is_there || one.found => self.wrongly_prepared.push(id),
            // Nobody asked for a commit of these.
            (Outcome::Refused(_) | Outcome::Unknown(_), _) => self.ended_otherwise.extend(is_there.then_some(id)),
            (Outcome::Acknowledged, _) if unprotected => {}
            (Outcome::Acknowledged, Some(End::Rollback)) => self.ended_otherwise.extend((is_there || one.ended && one.found).then_some(id)),
            (Outcome::Acknowledged, None | Some(End::Commit)) if !is_there => self.lost_prepared.push(id),
            (Outcome::Acknowledged, _) => self.ended_otherwise.extend((one.ended && one.found).then_some(id)),
        }
    }

    /// What a failover loses is the end of a term, not a part of its middle.
    fn look_for_holes(&mut self, acts: &[Act], lost: &[&Act]) {
        let lost: BTreeSet<u64> = lost.iter().map(|act| act.id).collect();
        let acknowledged = || acts.iter().filter(|act| act.outcome == Outcome::Acknowledged).filter_map(|act| Some((act, act.term?)));
        let mut survived: BTreeMap<u64, Instant> = BTreeMap::new();
        for (act, term) in acknowledged().filter(|(act, _)| !lost.contains(&act.id)) {
            let sent = survived.entry(term).or_insert(act.sent);
            *sent = act.sent.max(*sent);
        }
        for (act, term) in acknowledged().filter(|(act, _)| lost.contains(&act.id)) {
            *self.lost_by_term.entry(term).or_default() += 1;
            if survived.get(&term).is_some_and(|sent| *sent > act.known) {
                self.holes.push(act.id);
            }
        }
    }

    /// Every list that was seen has to be a beginning of the list as it is now, and to end with the element that was appended.
    fn look_at_lists(&mut self, contents: &Contents, ledger: &Ledger, windows: &[Window]) {
        let beginnings: BTreeMap<u64, Vec<u64>> = contents
            .lists
            .iter()
            .map(|(list, elements)| {
                let mut hashes = vec![super::shared::hash(&[])];
                for element in elements {
                    let last = hashes[hashes.len() - 1];
                    hashes.push(step(last, *element));
                }
                (*list, hashes)
            })
            .collect();
        let is_beginning = |seen: &Seen| beginnings.get(&seen.list).and_then(|hashes| hashes.get(seen.length)) == Some(&seen.hash);
        let mut told = BTreeMap::new();
        for act in ledger.acts.iter().filter(|act| act.outcome == Outcome::Acknowledged && !is_within(windows, act.sent, act.known)) {
            let (Some(list), Some(seen)) = (act.list, &act.seen) else {
                continue;
            };
            let last = seen.length.checked_sub(1).and_then(|at| contents.lists.get(&list)?.get(at)).copied();
            // Two that were told one and the same length: one of them was overwritten.
            let twice = told.insert((list, seen.length), act.id).is_some();
            if !is_beginning(seen) || last != Some(act.id) || twice {
                self.broken_lists.push(act.id);
            }
        }
        self.dirty_reads = ledger.reads.iter().filter(|seen| !is_beginning(seen)).count();
    }

    /// Acknowledgements have to follow one another term by term.
    fn look_at_terms<'a>(&mut self, acts: impl Iterator<Item = &'a Act>) {
        let mut first: BTreeMap<u64, Instant> = BTreeMap::new();
        let mut servers: BTreeMap<u64, BTreeSet<usize>> = BTreeMap::new();
        let acknowledged: Vec<(&Act, u64)> =
            acts.filter(|act| act.outcome == Outcome::Acknowledged).filter_map(|act| Some((act, act.term?))).collect();
        for (act, term) in &acknowledged {
            let known = first.entry(*term).or_insert(act.known);
            *known = act.known.min(*known);
            servers.entry(*term).or_default().insert(act.server);
        }
        self.terms = first.len();
        self.shared_terms = servers.into_iter().filter(|(_, servers)| servers.len() > 1).map(|(term, _)| term).collect();
        for (act, term) in acknowledged {
            let Some(later) = first.range(term + 1..).map(|(_, known)| *known).min() else {
                continue;
            };
            if act.sent > later {
                self.two_leaders.push(act.id);
            } else if act.known > later {
                self.overlaps += 1;
                self.longest_overlap = self.longest_overlap.max(act.known - later);
            }
        }
    }

    /// One sentence for each rule that was broken. Without synchronous mode a failover may lose the last commits, as everywhere.
    pub fn violations(&self, synchronous: bool) -> Vec<String> {
        let lists: [(&str, &[u64], bool); 12] = [
            ("acknowledged and lost", &self.lost, synchronous),
            ("prepared with an acknowledgement and lost", &self.lost_prepared, synchronous),
            ("ended with an acknowledgement and otherwise in the end", &self.ended_otherwise, synchronous),
            ("refused to be prepared and there", &self.wrongly_prepared, true),
            ("copied in part", &self.torn, true),
            ("lost before something that is there", &self.holes, true),
            ("there twice", &self.doubled, true),
            ("refused and there", &self.wrongly_refused, true),
            ("there and never written", &self.unheard_of, true),
            ("acknowledged with a list that is not so any more", &self.broken_lists, synchronous),
            ("acknowledged by an earlier leader after a later one", &self.two_leaders, true),
            ("terms in which two servers acknowledged", &self.shared_terms, true),
        ];
        let broken = lists.into_iter().filter(|(_, ids, counts)| *counts && !ids.is_empty());
        broken.map(|(what, ids, _)| format!("{} {what}: {:?}", ids.len(), &ids[..ids.len().min(20)])).collect()
    }
}

fn is_within(windows: &[Window], sent: Instant, known: Instant) -> bool {
    windows.iter().any(|window| sent < window.to && known > window.from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storm::shared::hash;

    fn judge(contents: &Contents, acts: &[Act]) -> Judgement {
        Judgement::on(contents, &Ledger { acts: acts.to_vec(), ..Ledger::default() }, &[])
    }

    fn act(id: u64, at_ms: (u64, u64), term: u64, server: usize) -> Act {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let at = |ms| *START.get_or_init(Instant::now) + Duration::from_millis(ms);
        let (sent, known) = (at(at_ms.0), at(at_ms.1));
        Act { id, sent, known, outcome: Outcome::Acknowledged, server, term: Some(term), list: None, seen: None }
    }

    fn append(id: u64, returned: &[u64]) -> Act {
        let seen = Seen { list: 1, length: returned.len(), hash: hash(returned) };
        Act { list: Some(1), seen: Some(seen), ..act(id, (0, 1), 1, 0) }
    }

    #[test]
    fn an_answer_of_an_earlier_leader_to_what_was_sent_after_a_later_ones_is_seen() {
        let contents = Contents { written: (1..=4).map(|id| (id, 1)).collect(), ..Contents::default() };
        let acts = [act(1, (0, 10), 5, 0), act(2, (8, 22), 5, 0), act(3, (15, 20), 9, 1), act(4, (21, 30), 5, 0)];
        let judged = judge(&contents, &acts);
        assert_eq!(judged.two_leaders, [4]);
        assert_eq!((judged.overlaps, judged.longest_overlap), (1, Duration::from_millis(2)));
        assert_eq!(judged.terms, 2);
        assert_eq!(judged.violations(true).len(), 1);
    }

    #[test]
    fn one_term_belongs_to_one_server() {
        let contents = Contents { written: (1..=2).map(|id| (id, 1)).collect(), ..Contents::default() };
        let judged = judge(&contents, &[act(1, (0, 1), 5, 0), act(2, (2, 3), 5, 1)]);
        assert_eq!(judged.shared_terms, [5]);
    }

    #[test]
    fn lost_and_reordered_appends_are_seen() {
        let contents = Contents { lists: BTreeMap::from([(1, vec![10, 30, 20])]), ..Contents::default() };
        let good = judge(&contents, &[append(10, &[10]), append(30, &[10, 30]), append(20, &[10, 30, 20])]);
        assert_eq!(good.violations(true), Vec::<String>::new());
        let reordered = judge(&contents, &[append(10, &[10]), append(20, &[10, 20]), append(30, &[10, 20, 30])]);
        assert_eq!(reordered.broken_lists, [20, 30]);
        let lost = judge(&contents, &[append(10, &[10]), append(40, &[10, 30, 20, 40])]);
        assert_eq!((lost.lost, lost.broken_lists), (vec![40], vec![40]));
        assert_eq!(lost.unheard_of, [20, 30]);
    }

    #[test]
    fn a_term_loses_its_end_and_not_its_middle() {
        let contents = Contents { written: BTreeMap::from([(1, 1), (3, 1)]), ..Contents::default() };
        let acts = [act(1, (0, 1), 5, 0), act(2, (2, 3), 5, 0), act(3, (4, 5), 5, 0), act(4, (6, 7), 5, 0)];
        let judged = judge(&contents, &acts);
        assert_eq!((judged.lost.clone(), judged.holes.clone()), (vec![2, 4], vec![2]));
        assert_eq!(judged.violations(false).len(), 1);
    }

    #[test]
    fn lost_doubled_and_wrongly_refused_are_told_apart() {
        let contents = Contents { written: BTreeMap::from([(2, 2), (3, 1)]), ..Contents::default() };
        let refused = Act { outcome: Outcome::Refused("no".to_owned()), ..act(3, (0, 1), 1, 0) };
        let judged = judge(&contents, &[act(1, (0, 1), 1, 0), act(2, (0, 1), 1, 0), refused]);
        assert_eq!((judged.lost, judged.doubled, judged.wrongly_refused), (vec![1], vec![2], vec![3]));
    }

    #[test]
    fn what_was_acknowledged_while_the_mode_was_off_may_be_lost_and_nothing_else() {
        let acts = [act(1, (0, 10), 5, 0), act(2, (20, 30), 5, 0), act(3, (40, 50), 5, 0)];
        let window = Window { from: acts[0].known + Duration::from_millis(5), to: acts[2].sent - Duration::from_millis(5) };
        let ledger = Ledger { acts: acts.to_vec(), ..Ledger::default() };
        let judged = Judgement::on(&Contents::default(), &ledger, &[window]);
        assert_eq!((judged.lost, judged.lost_unprotected), (vec![1, 3], vec![2]));
    }

    #[test]
    fn prepared_transactions_are_judged_by_what_was_asked_and_acknowledged() {
        let refused = || Outcome::Refused("no".to_owned());
        let unknown = || Outcome::Unknown("cut".to_owned());
        let acknowledged = || Outcome::Acknowledged;
        // The PREPARE, what was asked, that was acknowledged, found in the end, the row is there; lost, otherwise, wrongly prepared.
        #[rustfmt::skip]
        let table = [
            (acknowledged(), None,                false, true,  true,  (0, 0, 0)),
            (acknowledged(), None,                false, false, false, (1, 0, 0)),
            (acknowledged(), Some(End::Commit),   true,  false, true,  (0, 0, 0)),
            (acknowledged(), Some(End::Commit),   true,  true,  true,  (0, 1, 0)),
            (acknowledged(), Some(End::Commit),   true,  false, false, (1, 0, 0)),
            (acknowledged(), Some(End::Commit),   false, true,  true,  (0, 0, 0)),
            (acknowledged(), Some(End::Commit),   false, false, true,  (0, 0, 0)),
            (acknowledged(), Some(End::Commit),   false, false, false, (1, 0, 0)),
            (acknowledged(), Some(End::Rollback), true,  false, false, (0, 0, 0)),
            (acknowledged(), Some(End::Rollback), true,  true,  false, (0, 1, 0)),
            (acknowledged(), Some(End::Rollback), true,  false, true,  (0, 1, 0)),
            (acknowledged(), Some(End::Rollback), false, true,  false, (0, 0, 0)),
            (unknown(),      None,                false, false, false, (0, 0, 0)),
            (unknown(),      Some(End::Rollback), false, true,  false, (0, 0, 0)),
            (unknown(),      None,                false, false, true,  (0, 1, 0)),
            (refused(),      None,                false, false, false, (0, 0, 0)),
            (refused(),      None,                false, true,  false, (0, 0, 1)),
            (refused(),      None,                false, false, true,  (0, 0, 1)),
        ];
        for (row, (outcome, asked, ended, found, is_there, expected)) in table.into_iter().enumerate() {
            let prepare = Act { outcome, ..act(1, (0, 1), 1, 0) };
            let one = Transaction { last: prepare.known, prepare, asked, ended, found };
            let contents = Contents { written: is_there.then_some((1, 1)).into_iter().collect(), ..Contents::default() };
            let judged = Judgement::on(&contents, &Ledger { transactions: vec![one], ..Ledger::default() }, &[]);
            let seen = (judged.lost_prepared.len(), judged.ended_otherwise.len(), judged.wrongly_prepared.len());
            assert_eq!(seen, expected, "row {row}");
            assert_eq!(judged.unheard_of, [] as [u64; 0]);
        }
    }

    #[test]
    fn a_copy_is_there_as_a_whole_with_its_row_or_not_at_all() {
        let contents = Contents {
            written: BTreeMap::from([(1, 1), (2, 1)]),
            heaps: BTreeMap::from([(1, LINES), (2, LINES - 1), (3, LINES)]),
            ..Contents::default()
        };
        assert_eq!(judge(&contents, &[act(1, (0, 1), 1, 0), act(2, (0, 1), 1, 0)]).torn, [2, 3]);
    }
}
