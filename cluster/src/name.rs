//! Names: scope, member, system identifier, timeline; each checked once, where it comes in.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Why a text can't be a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("{what} is empty: give it a name of letters, digits, '-', '_' or '.'")]
    Empty {
        /// Which name.
        what: &'static str,
    },
    /// A character that would break a key, a slot or `synchronous_standby_names`.
    #[error(
        "{what} \"{name}\" holds the character {character:?}, which would break a key or a standby list: use letters, digits, '-', '_' or '.'"
    )]
    Character {
        /// Which name.
        what: &'static str,
        /// As given.
        name: String,
        /// The first offender.
        character: char,
    },
    /// Longer than PostgreSQL's `application_name` (63 bytes).
    #[error("{what} \"{name}\" is longer than 63 bytes, the most that PostgreSQL keeps of an application_name")]
    Long {
        /// Which name.
        what: &'static str,
        /// As given.
        name: String,
    },
}

fn checked(what: &'static str, name: &str) -> Result<String, NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    let forbidden = |c: &char| matches!(c, '/' | ',' | '"' | '\'' | '(' | ')' | '*') || c.is_whitespace() || c.is_control();
    if let Some(character) = name.chars().find(forbidden) {
        return Err(NameError::Character { what, name: name.to_owned(), character });
    }
    if name.len() > 63 {
        return Err(NameError::Long { what, name: name.to_owned() });
    }
    Ok(name.to_owned())
}

macro_rules! text_name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and keeps the name.
            pub fn new(name: &str) -> Result<Self, NameError> {
                checked($what, name).map(Self)
            }
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(name: String) -> Result<Self, NameError> {
                Self::new(&name)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }
        impl std::str::FromStr for $name {
            type Err = NameError;
            fn from_str(name: &str) -> Result<Self, NameError> {
                Self::new(name)
            }
        }
    };
}

text_name!(
    /// The cluster's name: one set of members with one leader.
    Scope, "scope"
);
text_name!(
    /// A member's name, unique in its scope; also its `application_name` when it streams.
    MemberName, "name"
);

impl MemberName {
    /// The replication slot that belongs to this member: lower case, `-` and `.` as `_`, any other
    /// character outside `[a-z0-9_]` as `uNNNN` (its code point), cut to 63 (the field's mapping).
    pub fn slot_name(&self) -> String {
        let mut slot = String::new();
        for character in self.0.to_lowercase().chars() {
            match character {
                'a'..='z' | '0'..='9' | '_' => slot.push(character),
                '-' | '.' => slot.push('_'),
                other => slot.push_str(&format!("u{:04}", u32::from(other))),
            }
        }
        slot.truncate(63);
        slot
    }
}

/// PostgreSQL's database system identifier, as text (it exceeds what JSON numbers carry).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SystemId(pub String);

impl fmt::Display for SystemId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A PostgreSQL timeline: 1 after initdb, one more at every promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// The timeline that a promotion from this one begins.
    pub fn next(self) -> Timeline {
        Timeline(self.0 + 1)
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A boot of a host (its kernel draws a random id at each), the directory in it that holds the data directory, and the name
/// of that one. Server and arbiter of one node find the same without asking each other, also after each was started again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Instance(String);

impl Instance {
    /// Of these facts.
    pub fn of(boot: &str, device: u64, inode: u64, directory: &str) -> Instance {
        Instance(format!("{boot}/{device:x}:{inode:x}/{directory}"))
    }
}

impl fmt::Display for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_a_key_are_refused_with_the_reason() {
        for (name, part) in [("", "empty"), ("a/b", "'/'"), ("a,b", "','"), ("a b", "' '"), (&"x".repeat(64), "63 bytes")] {
            let error = MemberName::new(name).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn slot_names_are_what_the_field_expects() {
        for (name, slot) in [("n0", "n0"), ("Node-1.example", "node_1_example"), ("knöd", "knu0246d")] {
            assert_eq!(MemberName::new(name).unwrap().slot_name(), slot);
        }
    }
}
