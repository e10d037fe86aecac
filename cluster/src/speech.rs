//! Which form of keys, requests and calls a build speaks, and whether two builds understand each other.
//!
//! The number of the release says nothing of that: most releases change none of it. So each part says which form it speaks and the oldest that it
//! still serves, in its member key, and a member that reads a form that it can't know keeps out, with a sentence, instead of guessing.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// What one build speaks. A key without it was written before there was a second form: the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Speech {
    /// The form that it writes.
    pub speaks: u32,
    /// The oldest that it still serves.
    pub serves_from: u32,
}

/// Of this build. A change of a key, of a request or of a function that the arbiter calls, which an older build would take for something else, is a
/// new form: it is written only once a release is out that reads it.
pub const OURS: Speech = Speech { speaks: 1, serves_from: 1 };

/// The same as a text, which the library shows as its setting `tenure.library_speech`: an arbiter reads it before it calls anything there.
pub const OURS_AS_TEXT: &std::ffi::CStr = c"1/1";

/// The header by which a program that asks a member's REST says what it speaks, in this text's form.
pub const HEADER: &str = "tenure-speech";

/// As `3/2`: speaks 3, serves 2 and later ones. This form never changes: its reader may be of any time.
impl fmt::Display for Speech {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.speaks, self.serves_from)
    }
}

/// Not of the form `3/2`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no form of keys and calls, which are told as in 3/2")]
pub struct Unreadable(String);

impl FromStr for Speech {
    type Err = Unreadable;

    fn from_str(text: &str) -> Result<Speech, Unreadable> {
        let parts = text.split_once('/').and_then(|(speaks, from)| Some((speaks.parse().ok()?, from.parse().ok()?)));
        let (speaks, serves_from) = parts.ok_or_else(|| Unreadable(text.to_owned()))?;
        Ok(Speech { speaks, serves_from })
    }
}

/// Why this build does not understand the one that sends this header; None where it does, and where there is none, as of programs that are not ours.
pub fn apart_by_header(header: Option<&str>) -> Result<Option<Apart>, Unreadable> {
    header.map(str::parse).transpose().map(|theirs: Option<Speech>| OURS.apart_from(theirs?))
}

impl Default for Speech {
    fn default() -> Speech {
        Speech { speaks: 1, serves_from: 1 }
    }
}

/// Why two builds don't understand each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Apart {
    /// The other is of a later time.
    #[error("it serves form {theirs} of keys and calls and later ones, this one speaks {ours}: upgrade this one")]
    Newer {
        /// The oldest that it serves.
        theirs: u32,
        /// What is spoken here.
        ours: u32,
    },
    /// The other is of an earlier time.
    #[error("it speaks form {theirs} of keys and calls, this one serves {ours} and later ones: upgrade that one")]
    Older {
        /// What it speaks.
        theirs: u32,
        /// The oldest that is served here.
        ours: u32,
    },
}

impl Speech {
    /// Why the other is not understood here, or does not understand what is said here; None where all is well.
    pub fn apart_from(self, other: Speech) -> Option<Apart> {
        if other.serves_from > self.speaks {
            return Some(Apart::Newer { theirs: other.serves_from, ours: self.speaks });
        }
        (other.speaks < self.serves_from).then_some(Apart::Older { theirs: other.speaks, ours: self.serves_from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_understand_each_other_and_others_say_why_not() {
        let of = |speaks, serves_from| Speech { speaks, serves_from };
        for (mine, theirs, why) in [
            (of(1, 1), of(1, 1), ""),
            (of(1, 1), of(2, 1), ""),
            (of(2, 1), of(1, 1), ""),
            (of(1, 1), of(3, 2), "it serves form 2 of keys and calls and later ones, this one speaks 1: upgrade this one"),
            (of(3, 2), of(1, 1), "it speaks form 1 of keys and calls, this one serves 2 and later ones: upgrade that one"),
            (of(2, 1), of(3, 2), ""),
        ] {
            assert_eq!(mine.apart_from(theirs).map(|why| why.to_string()).unwrap_or_default(), why, "{mine:?} {theirs:?}");
        }
        assert_eq!(Speech::default().apart_from(OURS), None, "this build serves the first form");
    }

    #[test]
    fn what_is_told_as_text_is_read_as_it_was_meant() {
        assert_eq!(OURS_AS_TEXT.to_str(), Ok(OURS.to_string().as_str()));
        assert_eq!("3/2".parse::<Speech>(), Ok(Speech { speaks: 3, serves_from: 2 }));
        for wrong in ["", "3", "3/", "3/2/1", "-1/1", "three/two"] {
            assert!(wrong.parse::<Speech>().is_err(), "{wrong}");
            assert!(apart_by_header(Some(wrong)).is_err(), "{wrong}: what can't be read is not taken for the first form");
        }
        assert_eq!(apart_by_header(None), Ok(None));
        assert_eq!(apart_by_header(Some("1/1")), Ok(None));
        assert_eq!(apart_by_header(Some("9/8")), Ok(Some(Apart::Newer { theirs: 8, ours: OURS.speaks })));
    }
}
