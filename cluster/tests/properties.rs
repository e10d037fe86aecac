//! Properties of histories, over random inputs.

#![allow(clippy::unwrap_used, reason = "a test that can't go on should say where")]

use cluster::history::{Ancestry, History, Line};
use cluster::lsn::Lsn;
use cluster::name::Timeline;
use proptest::prelude::*;

/// A server's past: timelines that rise, some skipped, each ending past the one before.
fn past() -> impl Strategy<Value = (History, Timeline)> {
    (proptest::collection::vec((1u32..4, 1u64..1000), 0..6), 1u32..4).prop_map(|(steps, skip)| {
        let (mut timeline, mut end, mut lines) = (0, 0, Vec::new());
        for (rise, wal) in steps {
            timeline = if timeline == 0 { 1 } else { timeline + rise };
            end += wal;
            lines.push(Line { timeline: Timeline(timeline), switch: Lsn(end), reason: String::new(), timestamp: None, new_leader: None });
        }
        let present = if timeline == 0 { 1 } else { timeline + skip };
        (History(lines), Timeline(present))
    })
}

proptest! {
    #[test]
    fn a_history_up_to_its_timeline_has_no_gap_and_says_the_present((file, present) in past()) {
        let whole = file.clone().up_to(present);
        prop_assert_eq!(whole.current(), present);
        let timelines = whole.0.iter().map(|line| line.timeline.0).collect::<Vec<_>>();
        prop_assert_eq!(timelines, (1..present.0).collect::<Vec<_>>());
        prop_assert!(file.0.iter().all(|line| whole.0.contains(line)), "no line is lost");
        prop_assert_eq!(whole.clone().up_to(present), whole, "twice is once");
    }

    #[test]
    fn a_position_is_an_ancestor_up_to_the_fork_and_never_behind_it(
        (file, present) in past(), timeline in 1u32..20, lsn in 1u64..6000,
    ) {
        let whole = file.clone().up_to(present);
        let ancestry = whole.ancestry(present, Timeline(timeline), Lsn(lsn));
        let expected = if timeline == present.0 {
            Ancestry::Ancestor
        } else if timeline > present.0 {
            Ancestry::Unknown
        } else {
            match file.end_of(Timeline(timeline)) {
                Some(end) if lsn <= end.0 => Ancestry::Ancestor,
                Some(fork) => Ancestry::Diverged { fork },
                None => Ancestry::Diverged { fork: Lsn::INVALID },
            }
        };
        prop_assert_eq!(ancestry, expected);
        if ancestry == Ancestry::Ancestor && lsn > 1 {
            prop_assert_eq!(whole.ancestry(present, Timeline(timeline), Lsn(lsn - 1)), ancestry, "what is before it too");
        }
    }

    #[test]
    fn json_and_merging_lose_nothing((file, present) in past()) {
        let whole = file.up_to(present);
        prop_assert_eq!(History::from_json(&whole.to_json()), Some(whole.clone()));
        let told = History::default().merged(&whole, "then", "n1");
        prop_assert_eq!(told.merged(&whole, "now", "n2"), told, "lines known keep their time");
    }
}
