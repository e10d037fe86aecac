//! The password file that replication, clones and rewinds use, so that no password is on a command line or in a setting.

use super::write_where_other;
use crate::postgres::credentials::Credentials;
use anyhow::{Context, Result};
use cluster::host::Address;
use std::path::Path;

/// One line: these credentials, for one host and port or for any.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Of this server; `None` for any.
    pub address: Option<&'a Address>,
    /// Whose password.
    pub credentials: &'a Credentials,
}

/// Writes the file as a whole, mode 0600 (libpq ignores it otherwise), unless it is like that. Users without a password have no line.
pub async fn write(path: &Path, entries: &[Entry<'_>]) -> Result<()> {
    write_where_other(path, &text(entries), 0o600).await.context("write the password file")
}

fn text(entries: &[Entry<'_>]) -> String {
    let mut text = String::new();
    for entry in entries {
        let Some(password) = &entry.credentials.password else { continue };
        let (host, port) = match entry.address {
            Some(at) => (escape(&at.host), at.port.to_string()),
            None => ("*".to_owned(), "*".to_owned()),
        };
        let line = format!("{host}:{port}:*:{}:{}\n", escape(&entry.credentials.username), escape(password.reveal()));
        if !text.contains(&line) {
            text.push_str(&line);
        }
    }
    text
}

/// `:` and `\` would end a field.
fn escape(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ground::secret::Secret;

    #[test]
    fn fields_are_escaped_and_users_without_password_left_out() {
        let with = Credentials { username: "rep:l".to_owned(), password: Some(Secret::new(r"p:w\d")), connection: Vec::new() };
        let without = Credentials { username: "postgres".to_owned(), password: None, connection: Vec::new() };
        let any = Entry { address: None, credentials: &with };
        let here = Address::new("::1", 5432);
        let one = Entry { address: Some(&here), credentials: &with };
        let none = Entry { address: None, credentials: &without };
        assert_eq!(text(&[any, one, none, any]), "*:*:*:rep\\:l:p\\:w\\\\d\n\\:\\:1:5432:*:rep\\:l:p\\:w\\\\d\n");
    }
}
