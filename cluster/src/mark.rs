//! The mark in a data directory: whose it is, and how a server that is started on it stands to the fence, by whatever hand it is started.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The file's name in the data directory.
pub const FILE: &str = "tenure.mark";

/// The state in the member key of a node on whose data a server runs that is not its own.
pub const STATE: &str = "running unfenced";

/// Who a member is, as its settings and its data's mark say.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Identity {
    /// `tenure.scope`; empty where there is none.
    pub scope: String,
    /// `tenure.namespace`.
    pub namespace: String,
    /// `tenure.name`.
    pub name: String,
    /// `tenure.group`; None outside of a Citus cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.scope.is_empty() {
            return f.write_str("no cluster");
        }
        write!(f, "{} in {}/{}", self.name, self.namespace.trim_end_matches('/'), self.scope)?;
        self.group.map_or(Ok(()), |group| write!(f, ", group {group}"))
    }
}

/// What the arbiter writes into the data directory before each start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// Whose data it is.
    #[serde(flatten)]
    pub of: Identity,
    /// The inode of the directory that was marked: a copy of it is another one.
    pub directory: u64,
}

/// How a server stands to its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It belongs to none: nothing is fenced.
    Unmanaged,
    /// It is the member that its settings name: a lease worker runs, the fence is closed until that opens it.
    Managed,
    /// The data belongs to a cluster and the server is not known to be the member that it was marked for: the fence stays closed.
    Closed(Strange),
}

/// Why a server on marked data is not the member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the sentence of each variant is its documentation")]
pub enum Strange {
    #[error("the mark in the data directory can't be read: {0}")]
    Unreadable(String),
    #[error("the data directory belongs to {mark}, the server's settings say {settings}")]
    Other { mark: Identity, settings: Identity },
    #[error("the data directory is a copy of that of {0}")]
    Copied(Identity),
}

/// Judges a start: the mark that lies in the data directory, the settings, and the inode of the directory.
///
/// A cluster's data is never unmanaged, however the server is started: with settings that name no cluster nothing would fence
/// a server that was deposed. A copy (a restored backup) would take the lease of the original for its own, as its settings
/// are the same ones, so it gets none.
pub fn standing(mark: Option<Result<Mark, String>>, settings: &Identity, directory: u64) -> Standing {
    match mark {
        None if settings.scope.is_empty() => Standing::Unmanaged,
        None => Standing::Managed,
        Some(Err(why)) => Standing::Closed(Strange::Unreadable(why)),
        Some(Ok(mark)) if mark.of != *settings => Standing::Closed(Strange::Other { mark: mark.of, settings: settings.clone() }),
        Some(Ok(mark)) if mark.directory != directory => Standing::Closed(Strange::Copied(mark.of)),
        Some(Ok(_)) => Standing::Managed,
    }
}

/// Reads a mark.
pub fn read(text: &str) -> Result<Mark, String> {
    serde_json::from_str(text).map_err(|why| why.to_string())
}

/// Why a running server that was found, not started, is not this member's own; None where it is.
/// `running`: who it says it is; None where the library is not loaded there.
pub fn strange(me: &Identity, running: Option<&Identity>) -> Option<String> {
    match running {
        None => Some("the library pg_tenure is not loaded in it, so nothing fences its commits".to_owned()),
        Some(it) if it != me => Some(format!("its settings say {it}, this node is {me}")),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n1() -> Identity {
        Identity { scope: "main".to_owned(), namespace: "/service".to_owned(), name: "n1".to_owned(), group: None }
    }

    #[test]
    fn data_of_a_cluster_is_never_unmanaged() {
        let nobody = Identity { namespace: "/service".to_owned(), ..Identity::default() };
        let other = Identity { name: "n2".to_owned(), ..n1() };
        let mark = |of: Identity| Some(Ok(Mark { of, directory: 7 }));
        for (case, mark, settings, directory, expected) in [
            ("nobody's data", None, nobody.clone(), 7, "unmanaged"),
            ("before the first mark", None, n1(), 7, "managed"),
            ("as its arbiter starts it", mark(n1()), n1(), 7, "managed"),
            ("started without its settings", mark(n1()), nobody.clone(), 7, "the settings say no cluster"),
            ("as another member", mark(n1()), other, 7, "the settings say n2 in /service/main"),
            ("another group", mark(n1()), Identity { group: Some(1), ..n1() }, 7, "the settings say n1 in /service/main, group 1"),
            ("a copy, with its settings", mark(n1()), n1(), 8, "a copy of that of n1 in /service/main"),
            ("damaged", Some(read("{")), n1(), 7, "can't be read"),
            ("damaged, and no settings", Some(read("")), nobody, 7, "can't be read"),
        ] {
            let said = match standing(mark, &settings, directory) {
                Standing::Unmanaged => "unmanaged".to_owned(),
                Standing::Managed => "managed".to_owned(),
                Standing::Closed(why) => why.to_string().replace("the server's settings", "the settings"),
            };
            assert!(said.contains(expected), "{case}: {said}");
        }
    }

    #[test]
    fn a_server_that_is_found_is_judged() {
        assert_eq!(strange(&n1(), Some(&n1())), None);
        assert!(strange(&n1(), None).unwrap().contains("not loaded"));
        let other = Identity { scope: "test".to_owned(), ..n1() };
        assert_eq!(strange(&n1(), Some(&other)).unwrap(), "its settings say n1 in /service/test, this node is n1 in /service/main");
    }

    #[test]
    fn a_mark_survives_a_round_trip() {
        let mark = Mark { of: Identity { group: Some(2), ..n1() }, directory: 9 };
        assert_eq!(read(&serde_json::to_string(&mark).unwrap()), Ok(mark));
    }
}
