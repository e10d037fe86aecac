//! Timelines: where each ended, and whether a position is part of the present one's past.

use crate::lsn::Lsn;
use crate::name::Timeline;
use serde_json::{Value, json};

/// One line of `history`: timeline, where it ended, why, when, who leads the next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended: the next begins there.
    pub switch: Lsn,
    /// PostgreSQL's reason text.
    pub reason: String,
    /// When, ISO 8601; older programs leave it out.
    pub timestamp: Option<String>,
    /// Who was promoted; older programs leave it out.
    pub new_leader: Option<String>,
}

/// The `history` key: a line for each timeline that ended, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct History(pub Vec<Line>);

/// How a position relates to the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ancestry {
    /// Everything up to the position is part of the present timeline's past (or of the present).
    Ancestor,
    /// The position is past the point where the others forked away: it holds WAL that they do not.
    Diverged {
        /// Where the histories part.
        fork: Lsn,
    },
    /// The history does not reach back (or forward) to this timeline.
    Unknown,
}

/// The reason in a file that only occupies a number.
const OCCUPIED: &str = "this number was used or claimed by another promotion";

/// Where a timeline begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// That timeline.
    pub timeline: Timeline,
    /// The one that ended there.
    pub parent: Timeline,
    /// The position.
    pub at: Lsn,
}

impl History {
    /// Reads the key's JSON; lines of 3, 4 or 5 items are accepted, as the field writes them.
    pub fn from_json(value: &Value) -> Option<History> {
        let line = |item: &Value| {
            let items = item.as_array()?;
            Some(Line {
                timeline: Timeline(u32::try_from(items.first()?.as_u64()?).ok()?),
                switch: Lsn(items.get(1)?.as_u64()?),
                reason: items.get(2)?.as_str()?.to_owned(),
                timestamp: items.get(3).and_then(Value::as_str).map(str::to_owned),
                new_leader: items.get(4).and_then(Value::as_str).map(str::to_owned),
            })
        };
        value.as_array()?.iter().map(line).collect::<Option<Vec<_>>>().map(History)
    }

    /// The key's JSON.
    pub fn to_json(&self) -> Value {
        let line = |line: &Line| {
            let mut items = vec![json!(line.timeline.0), json!(line.switch.0), json!(line.reason)];
            if let Some(timestamp) = &line.timestamp {
                items.push(json!(timestamp));
                if let Some(leader) = &line.new_leader {
                    items.push(json!(leader));
                }
            }
            Value::Array(items)
        };
        Value::Array(self.0.iter().map(line).collect())
    }

    /// Reads a timeline history file of PostgreSQL (`00000002.history`): timeline, switch point, reason.
    pub fn from_file(text: &str) -> History {
        let line = |line: &str| {
            let mut parts = line.splitn(3, char::is_whitespace);
            let timeline = Timeline(parts.next()?.trim().parse().ok()?);
            let switch = parts.next()?.parse().ok()?;
            let reason = parts.next().unwrap_or("").trim().to_owned();
            Some(Line { timeline, switch, reason, timestamp: None, new_leader: None })
        };
        History(text.lines().map(str::trim).filter(|text| !text.is_empty() && !text.starts_with('#')).filter_map(line).collect())
    }

    /// The text of the history file of `timeline`; None where this history does not reach it.
    pub fn file_of(&self, timeline: Timeline) -> Option<String> {
        if timeline != self.current() && self.end_of(timeline).is_none() {
            return None;
        }
        let before = History(self.0.iter().filter(|line| line.timeline < timeline).cloned().collect());
        Some(before.to_file()).filter(|text| !text.is_empty())
    }

    /// The text of a history file with these lines. What is no part of the past has no line there: to PostgreSQL "ended at 0/0" is "has no end".
    pub fn to_file(&self) -> String {
        let ended = self.0.iter().filter(|line| line.switch.is_valid());
        ended.map(|line| format!("{}\t{}\t{}\n", line.timeline, line.switch, line.reason)).collect()
    }

    /// A file for every number up to the present one, so that none is missing: a search for the newest timeline ends before the first that is,
    /// and a standby that asks its primary for the histories in between is refused. Numbers that were passed over are occupied. None where
    /// this history does not reach back to the first timeline.
    pub fn files(&self) -> Option<Vec<(Timeline, String)>> {
        let present = self.current();
        if present > Timeline(1) && self.end_of(Timeline(1)).is_none_or(|end| !end.is_valid()) {
            return None;
        }
        let is_past = |timeline| timeline == present || self.end_of(timeline).is_some_and(Lsn::is_valid);
        let parent = |timeline| self.0.iter().rev().map(|line| line.timeline).find(|past| *past < timeline && is_past(*past));
        let file = |timeline| match self.file_of(timeline).filter(|_| is_past(timeline)) {
            Some(text) => (timeline, text),
            None => (timeline, History::placeholder(parent(timeline).unwrap_or(Timeline(1)))),
        };
        Some((2..=present.0).map(|number| file(Timeline(number))).collect())
    }

    /// This history of a server that recovered to a point, with that point as the end of the timeline that it lies on.
    ///
    /// PostgreSQL writes that the timeline which it was told to follow ends at the point, also where the point is older than that timeline. An
    /// earlier one then seems to go on past the point, to where it really ended, and who is between the two would be taken for part of this past.
    pub fn cut_at_its_point(mut self) -> History {
        self.0.retain(|line| line.switch.is_valid());
        let Some(last) = self.0.last().cloned() else { return self };
        if let Some(at) = self.0.iter().position(|line| line.switch >= last.switch) {
            self.0[at] = Line { timeline: self.0[at].timeline, ..last };
            self.0.truncate(at + 1);
        }
        self
    }

    /// The timelines on the way from a position of its past to the present one, each with where it begins.
    pub fn begin_after(&self, timeline: Timeline, lsn: Lsn) -> Vec<Begin> {
        let past: Vec<&Line> = self.0.iter().filter(|line| line.switch.is_valid()).collect();
        let begins = past.iter().enumerate().map(|(at, line)| Begin {
            timeline: past.get(at + 1).map_or(self.current(), |next| next.timeline),
            parent: line.timeline,
            at: line.switch,
        });
        begins.filter(|begin| begin.timeline > timeline && begin.at >= lsn).collect()
    }

    /// The text of a history file whose only purpose is to occupy its timeline's number on a server that
    /// is on `parent`: it says that the number forked off at 0/0, so the server never follows it.
    pub fn placeholder(parent: Timeline) -> String {
        format!("{parent}\t0/0\t{OCCUPIED}\n")
    }

    /// Is it such a file?
    pub fn is_placeholder(text: &str) -> bool {
        let history = History::from_file(text);
        matches!(history.0.as_slice(), [only] if only.switch == Lsn(0) && only.reason == OCCUPIED)
    }

    /// The present timeline: one after the last that ended, or 1.
    pub fn current(&self) -> Timeline {
        self.0.last().map_or(Timeline(1), |line| line.timeline.next())
    }

    /// Where `timeline` ended, if it did.
    pub fn end_of(&self, timeline: Timeline) -> Option<Lsn> {
        self.0.iter().find(|line| line.timeline == timeline).map(|line| line.switch)
    }

    /// Is the position (`timeline`, `lsn`) part of the past of `present`, whose history this is?
    pub fn ancestry(&self, present: Timeline, timeline: Timeline, lsn: Lsn) -> Ancestry {
        if timeline == present {
            return Ancestry::Ancestor;
        }
        match self.end_of(timeline) {
            Some(end) if timeline < present => {
                // Where a later timeline was left at an older point, this one was left there as well, whatever its line says.
                let later = self.0.iter().filter(|line| line.timeline > timeline && line.timeline < present && line.switch.is_valid());
                let end = later.map(|line| line.switch).fold(end, Lsn::min);
                if lsn <= end { Ancestry::Ancestor } else { Ancestry::Diverged { fork: end } }
            }
            _ => Ancestry::Unknown,
        }
    }

    /// The history of a server on `present`, with a line for each timeline that it skipped.
    ///
    /// PostgreSQL promotes to the first number that it finds unused, so timeline 3 may fork from
    /// timeline 1 while 2 belongs to a server that is gone; the history file of 3 then names 1 only,
    /// and [`History::current`] would say 2 for ever. A skipped timeline ends at 0/0: nothing of it
    /// is part of this past, so a member that is on it has diverged. Call it before `history` is written.
    pub fn up_to(mut self, present: Timeline) -> History {
        let first = self.0.first().map_or(Timeline(1), |line| line.timeline);
        for timeline in (first.0..present.0).map(Timeline) {
            if self.end_of(timeline).is_none() {
                self.0.push(Line {
                    timeline,
                    switch: Lsn::INVALID,
                    reason: "not part of this history".to_owned(),
                    timestamp: None,
                    new_leader: None,
                });
            }
        }
        self.0.sort_by_key(|line| line.timeline);
        self
    }

    /// The lines of `fresh` put after what is known here; known lines keep their time and leader.
    pub fn merged(&self, fresh: &History, timestamp: &str, leader: &str) -> History {
        let mut lines = Vec::new();
        for line in &fresh.0 {
            match self.0.iter().find(|known| known.timeline == line.timeline && known.switch == line.switch) {
                Some(known) => lines.push(known.clone()),
                None => lines.push(Line { timestamp: Some(timestamp.to_owned()), new_leader: Some(leader.to_owned()), ..line.clone() }),
            }
        }
        History(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "1\t0/31BC2A0\tno recovery target specified\n\n2\t0/5000000\tno recovery target specified\n";

    #[test]
    fn a_file_reads_and_tells_ancestry() {
        let history = History::from_file(FILE);
        assert_eq!(history.current(), Timeline(3));
        let present = Timeline(3);
        for (timeline, lsn, expected) in [
            (3, 0x6000000, Ancestry::Ancestor),
            (2, 0x5000000, Ancestry::Ancestor),
            (2, 0x5000001, Ancestry::Diverged { fork: Lsn(0x5000000) }),
            (1, 0x31BC2A0, Ancestry::Ancestor),
            (1, 0x4000000, Ancestry::Diverged { fork: Lsn(0x31BC2A0) }),
            (4, 0x1, Ancestry::Unknown),
        ] {
            assert_eq!(history.ancestry(present, Timeline(timeline), Lsn(lsn)), expected, "{timeline} {lsn:x}");
        }
    }

    #[test]
    fn json_survives_a_round_trip_in_every_length() {
        let value =
            json!([[1, 52151216, "no recovery target specified", "2026-11-20T16:13:01+00:00", "c3"], [2, 7, "x"], [3, 8, "y", "t"]]);
        assert_eq!(History::from_json(&value).unwrap().to_json(), value);
        assert!(History::from_json(&json!([[1]])).is_none());
    }

    #[test]
    fn a_history_file_is_written_from_the_key_as_far_as_that_reaches() {
        let history =
            History::from_json(&json!([[1, 0x3002128, "no recovery target specified", "then", "n1"], [3, 0x4000000, "x"]])).unwrap();
        let first = "1\t0/3002128\tno recovery target specified\n";
        let third = format!("{first}3\t0/4000000\tx\n");
        for (timeline, expected) in [(1, None), (2, None), (3, Some(first.to_owned())), (4, Some(third.clone())), (5, None)] {
            assert_eq!(history.file_of(Timeline(timeline)), expected, "{timeline}");
        }
        assert_eq!(history.up_to(Timeline(4)).file_of(Timeline(4)), Some(third), "a number that was passed over has no line");
    }

    #[test]
    fn no_number_is_without_a_file_up_to_the_present_one() {
        let files = |lines: &[(u32, u64)], present| {
            let history = History(lines.iter().map(|(timeline, end)| line(*timeline, *end)).collect()).up_to(Timeline(present));
            history.files().map(|files| files.into_iter().map(|(number, text)| (number.0, text)).collect::<Vec<_>>())
        };
        let occupied = |parent| History::placeholder(Timeline(parent));
        assert_eq!(files(&[], 1), Some(vec![]));
        assert_eq!(files(&[(1, 0x10)], 2), Some(vec![(2, "1\t0/10\tx\n".to_owned())]));
        assert_eq!(files(&[(1, 0x10)], 3), Some(vec![(2, occupied(1)), (3, "1\t0/10\tx\n".to_owned())]));
        let both = "1\t0/10\tx\n3\t0/20\tx\n".to_owned();
        assert_eq!(
            files(&[(1, 0x10), (3, 0x20)], 5),
            Some(vec![(2, occupied(1)), (3, "1\t0/10\tx\n".to_owned()), (4, occupied(3)), (5, both)])
        );
        assert_eq!(files(&[(3, 0x20)], 4), None, "what was before is not known");
    }

    #[test]
    fn a_point_that_is_older_than_the_timeline_it_was_reached_from_ends_the_timeline_it_lies_on() {
        for (lines, expected) in [
            (&[(1, 0x10)][..], &[(1, 0x10)][..]),
            (&[(1, 0x10), (2, 0x20)], &[(1, 0x10), (2, 0x20)]),
            (&[(1, 0x10), (2, 0x08)], &[(1, 0x08)]),
            (&[(1, 0x10), (2, 0x10)], &[(1, 0x10)]),
            (&[(1, 0x10), (2, 0x20), (4, 0x18)], &[(1, 0x10), (2, 0x18)]),
            (&[(1, 0x10), (2, 0x20), (4, 0x08)], &[(1, 0x08)]),
            (&[(1, 0x10), (2, 0), (3, 0x20)], &[(1, 0x10), (3, 0x20)]),
            (&[], &[]),
        ] {
            let told =
                History(lines.iter().map(|(timeline, end)| Line { reason: format!("of {timeline}"), ..line(*timeline, *end) }).collect());
            let point = told.0.last().map(|line| line.reason.clone());
            let cut = told.cut_at_its_point();
            assert_eq!(cut.0.iter().map(|line| (line.timeline.0, line.switch.0)).collect::<Vec<_>>(), expected, "{lines:?}");
            assert_eq!(cut.0.last().map(|line| line.reason.clone()), point, "{lines:?}");
        }
    }

    #[test]
    fn a_timeline_ends_where_a_later_one_was_left_before_it() {
        // As PostgreSQL writes it of a recovery on timeline 2 to a point of timeline 1.
        let history = History(vec![line(1, 0x10), line(2, 0x08)]);
        for (timeline, lsn, expected) in [
            (1, 0x08, Ancestry::Ancestor),
            (1, 0x09, Ancestry::Diverged { fork: Lsn(0x08) }),
            (2, 0x11, Ancestry::Diverged { fork: Lsn(0x08) }),
        ] {
            assert_eq!(history.ancestry(Timeline(3), Timeline(timeline), Lsn(lsn)), expected, "{timeline} {lsn:x}");
        }
    }

    #[test]
    fn the_timelines_on_the_way_are_those_that_begin_later() {
        let history = History(vec![line(1, 0x10), line(3, 0x20)]).up_to(Timeline(5));
        let begin = |timeline, lsn| {
            history
                .begin_after(Timeline(timeline), Lsn(lsn))
                .iter()
                .map(|begin| (begin.parent.0, begin.timeline.0, begin.at.0))
                .collect::<Vec<_>>()
        };
        assert_eq!(begin(1, 0x08), [(1, 3, 0x10), (3, 5, 0x20)]);
        assert_eq!(begin(3, 0x18), [(3, 5, 0x20)]);
        assert_eq!(begin(5, 0x30), []);
    }

    fn line(timeline: u32, end: u64) -> Line {
        Line { timeline: Timeline(timeline), switch: Lsn(end), reason: "x".to_owned(), timestamp: None, new_leader: None }
    }

    #[test]
    fn a_placeholder_is_nobodys_future() {
        let placeholder = History::from_file(&History::placeholder(Timeline(3)));
        assert_eq!(placeholder.ancestry(Timeline(4), Timeline(3), Lsn(1)), Ancestry::Diverged { fork: Lsn(0) });
        assert!(History::is_placeholder(&History::placeholder(Timeline(3))) && !History::is_placeholder(FILE));
    }

    #[test]
    fn known_lines_keep_their_time() {
        let known = History::from_json(&json!([[1, 0x31BC2A0, "no recovery target specified", "then", "n1"]])).unwrap();
        let merged = known.merged(&History::from_file(FILE), "now", "n2");
        assert_eq!(merged.0[0].timestamp.as_deref(), Some("then"));
        assert_eq!(merged.0[1].new_leader.as_deref(), Some("n2"));
    }
}
