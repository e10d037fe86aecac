//! Lsn: a position in WAL, with arithmetic that does not lie.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A byte position in WAL. In JSON it is an integer, as other tools write it; shown
/// it is PostgreSQL's `X/Y`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Lsn(pub u64);

/// Length of a shutdown checkpoint's record: header 24, data header 2, `CheckPoint` 88 bytes in all majors that are served; each build of
/// the extension compares it with its headers. A standby that is past its start by so much has all of it.
pub const CHECKPOINT_RECORD_BYTES: u64 = 24 + 2 + 88;

impl Lsn {
    /// PostgreSQL's InvalidXLogRecPtr: no position at all.
    pub const INVALID: Lsn = Lsn(0);

    /// How many bytes `self` is behind `ahead`; 0 where it is level or further.
    pub fn lag_bytes_behind(self, ahead: Lsn) -> u64 {
        ahead.0.saturating_sub(self.0)
    }

    /// True for a real position.
    pub fn is_valid(self) -> bool {
        self != Lsn::INVALID
    }
}

/// The text was not of the form `X/Y` with hexadecimal halves.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a log position: expected hexadecimal X/Y, as in 0/3000148")]
pub struct NotAnLsn(pub String);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = NotAnLsn;

    fn from_str(text: &str) -> Result<Self, NotAnLsn> {
        let refuse = || NotAnLsn(text.to_owned());
        let (high, low) = text.trim().split_once('/').ok_or_else(refuse)?;
        if high.len() > 8 || low.len() > 8 {
            return Err(refuse());
        }
        let high = u64::from_str_radix(high, 16).map_err(|_| refuse())?;
        let low = u64::from_str_radix(low, 16).map_err(|_| refuse())?;
        Ok(Lsn(high << 32 | low))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_number_agree() {
        for (text, number) in [("0/0", 0), ("0/3000148", 0x3000148), ("1/A", 0x1_0000_000A)] {
            assert_eq!(text.parse::<Lsn>().unwrap(), Lsn(number));
            assert_eq!(Lsn(number).to_string(), text);
        }
        for wrong in ["", "0", "/", "G/1", "123456789/0", "-1/0"] {
            assert!(wrong.parse::<Lsn>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_position_ahead_has_no_lag() {
        assert_eq!(Lsn(10).lag_bytes_behind(Lsn(30)), 20);
        assert_eq!(Lsn(30).lag_bytes_behind(Lsn(10)), 0);
    }
}
