//! Does the fence read what it means to read? What it takes from the server's shared memory is compared with what the server's own
//! functions say of its synchronous standbys; `pg_stat_replication` shows the same.
//!
//! The library is built against the headers of one minor release and meets others. Where two of them differ in what lies where, the fence
//! would take any word for a position that a standby has confirmed.

use crate::lsn::Lsn;
use std::fmt;

/// Written, flushed and applied, in the order in which the server keeps them.
pub type Levels = [Lsn; 3];

const NAMES: [&str; 3] = ["written", "flushed", "applied"];

/// Looks in a row at which the standbys had gone on and what is read had not. A walsender notes first what its standby says and then
/// what all of them have, in the same turn: one look may fall between the two, not as many as these.
const BEHIND_MOST: u32 = 5;

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What the fence takes for the positions that the synchronous standbys have confirmed.
    pub read: Levels,
    /// The byte after them: whether there are synchronous standbys.
    pub status: u8,
    /// This minor release has two flags in that byte: known, defined.
    pub flags_are_two: bool,
    /// How far this server has flushed, asked after that.
    pub flushed: Lsn,
    /// The length of a segment of WAL, in bytes.
    pub segment: u64,
    /// What the synchronous standbys have confirmed by what the server's own functions say, asked before; None where too few are there.
    pub said: Option<Levels>,
}

impl Look {
    /// The furthest that a standby can truthfully say: what it has written and flushed came from here, and only what is flushed here is sent.
    /// What it has applied may be the end of that segment. A standby that replays the record that ends a segment (`pg_switch_wal`,
    /// `archive_timeout`, the end of a base backup) goes on after the segment's padding at once, and says so while this server still flushes the padding.
    fn most(&self) -> Levels {
        let applied = self.flushed.0.checked_next_multiple_of(self.segment).map_or(self.flushed, Lsn);
        [self.flushed, self.flushed, applied]
    }
}

/// What is read can't be what it is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Differs {
    /// No standby can have more than there is; [`Look::most`].
    Ahead {
        /// At this level.
        level: usize,
        /// Read.
        read: Lsn,
        /// Flushed here.
        flushed: Lsn,
    },
    /// No minor release writes this.
    Status {
        /// Read.
        read: u8,
    },
    /// The standbys go on and what is read does not.
    Behind {
        /// At this level.
        level: usize,
        /// Read.
        read: Lsn,
        /// By the server's own functions, some time before.
        said: Lsn,
    },
}

impl fmt::Display for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Differs::Ahead { level, read, flushed } => {
                write!(f, "synchronous standbys are read to have {} up to {read}, and this server has flushed to {flushed}", NAMES[*level])
            }
            Differs::Status { read } => write!(f, "whether there are synchronous standbys is read as {read}, which no release writes"),
            Differs::Behind { level, read, said } => {
                write!(
                    f,
                    "synchronous standbys are read to have {} up to {read}, and pg_stat_replication showed {said} before",
                    NAMES[*level]
                )
            }
        }
    }
}

/// What was seen before, to which the next look is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Compared {
    said: Option<Levels>,
    behind: u32,
}

impl Compared {
    /// Takes one more look into account.
    pub fn with(&mut self, look: &Look) -> Result<(), Differs> {
        let most = look.most();
        if let Some(level) = (0..3).find(|&level| look.read[level] > most[level]) {
            return Err(Differs::Ahead { level, read: look.read[level], flushed: look.flushed });
        }
        // Two flags: nothing is said of standbys before it is known whether there are any.
        let known = if look.flags_are_two { matches!(look.status, 0 | 1 | 3) } else { look.status <= 1 };
        if !known {
            return Err(Differs::Status { read: look.status });
        }
        let before = std::mem::replace(&mut self.said, look.said);
        let Some((before, now)) = before.zip(look.said) else {
            self.behind = 0;
            return Ok(());
        };
        // Only who has gone on since the last look has noted what all of them had by then: an idle standby says nothing for as long as it likes.
        let stuck = (0..3).find(|&level| now[level] > before[level] && look.read[level] < before[level]);
        let Some(level) = stuck else {
            self.behind = 0;
            return Ok(());
        };
        self.behind += 1;
        if self.behind < BEHIND_MOST { Ok(()) } else { Err(Differs::Behind { level, read: look.read[level], said: before[level] }) }
    }
}

/// What commits may count on that wait for `count` of these standbys: each of the first `count`, or in quorum mode any so many of them.
pub fn confirmed(quorum: bool, count: usize, standbys: &[Levels]) -> Option<Levels> {
    if count == 0 || standbys.len() < count {
        return None;
    }
    let at = |level: usize| {
        let mut positions: Vec<Lsn> = standbys.iter().map(|standby| standby[level]).collect();
        if quorum {
            positions.sort_unstable_by(|a, b| b.cmp(a));
        }
        positions.truncate(count);
        positions.into_iter().min().unwrap_or_default()
    };
    Some([at(0), at(1), at(2)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels(of: [u64; 3]) -> Levels {
        of.map(Lsn)
    }

    fn look(read: [u64; 3], said: Option<[u64; 3]>) -> Look {
        Look { read: levels(read), status: 3, flags_are_two: true, flushed: Lsn(1000), segment: 1024, said: said.map(levels) }
    }

    #[test]
    fn what_commits_count_on_is_what_enough_standbys_have() {
        let (a, b, c) = (levels([30, 20, 10]), levels([29, 28, 5]), levels([9, 8, 7]));
        for (quorum, count, standbys, expected) in [
            (false, 1, vec![a], Some([30, 20, 10])),
            (false, 2, vec![a, b], Some([29, 20, 5])),
            (true, 1, vec![a, b, c], Some([30, 28, 10])),
            (true, 2, vec![a, b, c], Some([29, 20, 7])),
            (true, 2, vec![a], None),
            (false, 0, vec![], None),
        ] {
            assert_eq!(confirmed(quorum, count, &standbys), expected.map(levels), "{quorum} {count} {standbys:?}");
        }
    }

    #[test]
    fn no_position_is_ahead_of_the_server_and_no_byte_is_unknown() {
        let mut compared = Compared::default();
        assert_eq!(compared.with(&look([1000, 1000, 1000], None)), Ok(()));
        assert!(matches!(compared.with(&look([0, 0x7f00_1234_5678, 0], None)), Err(Differs::Ahead { level: 1, .. })));
        // 1000 lies in a segment that ends at 1024, 1024 in one that ends there.
        for (flushed, read, ahead) in [
            (1000, [1000, 1000, 1024], None),
            (1000, [1000, 1000, 1025], Some(2)),
            (1000, [1000, 1024, 1024], Some(1)),
            (1000, [1024, 1000, 1000], Some(0)),
            (1024, [1024, 1024, 1024], None),
            (1024, [1024, 1024, 1025], Some(2)),
        ] {
            let seen = Compared::default().with(&Look { flushed: Lsn(flushed), ..look(read, None) });
            let level = seen.err().map(|why| match why {
                Differs::Ahead { level, .. } => level,
                other => panic!("{other}"),
            });
            assert_eq!(level, ahead, "{flushed} {read:?}");
        }
        for (status, flags_are_two, fine) in [(0, true, true), (1, true, true), (2, true, false), (3, true, true), (4, true, false)]
            .into_iter()
            .chain([(0, false, true), (1, false, true), (2, false, false), (3, false, false)])
        {
            let seen = compared.with(&Look { status, flags_are_two, ..look([0; 3], None) });
            assert_eq!(seen.is_ok(), fine, "{status} {flags_are_two}");
        }
    }

    #[test]
    fn standbys_that_go_on_are_read_to_go_on() {
        // What is read, what is said, and whether the five looks in which it goes on pass.
        let rounds = |read: fn(u64) -> u64, said: fn(u64) -> u64| {
            let mut compared = Compared::default();
            (1..=6).try_for_each(|round| compared.with(&look([read(round); 3], Some([said(round); 3]))))
        };
        assert_eq!(rounds(|round| round * 10, |round| round * 10), Ok(()), "level");
        assert_eq!(rounds(|round| round * 10 - 10, |round| round * 10), Ok(()), "between the two notes");
        assert_eq!(rounds(|_| 0, |_| 500), Ok(()), "an idle standby that only became synchronous");
        assert!(matches!(rounds(|_| 0, |round| round * 10), Err(Differs::Behind { level: 0, .. })), "another word");
        assert_eq!(rounds(|round| if round == 4 { 30 } else { 0 }, |round| round * 10), Ok(()), "not in a row");
    }
}
