//! Which form of keys, requests and calls a build speaks, and whether two builds understand each other.
//!
//! The number of the release says nothing of that: most releases change none of it. So each part says which form it speaks and the oldest that it
//! still serves, in its member key, and whoever reads a form that it can't know keeps out, with a sentence, instead of guessing.

use serde::{Deserialize, Serialize};

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
}
