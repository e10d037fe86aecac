//! Roles of a server that we connect as.

use crate::ground::secret::Secret;

/// `postgresql.authentication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// For our own connections.
    pub superuser: Credentials,
    /// For streaming and clones.
    pub replication: Credentials,
    /// For pg_rewind; the superuser where there is none.
    pub rewind: Option<Credentials>,
}

impl Authentication {
    /// Who pg_rewind connects as.
    pub fn for_rewind(&self) -> &Credentials {
        self.rewind.as_ref().unwrap_or(&self.superuser)
    }
}

/// One role of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The role's name.
    pub username: String,
    /// Its password, where it has one.
    pub password: Option<Secret>,
    /// libpq's connection settings given for it: `sslmode`, `sslcert`, ...
    pub connection: Vec<(String, String)>,
}
