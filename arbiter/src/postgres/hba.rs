//! pg_hba.conf and pg_ident.conf: the lines the user gives, or a list that lets exactly our own roles in.

use super::{read_if_there, write_atomically};
use crate::config::{Authentication, Credentials};
use anyhow::Result;
use std::collections::BTreeSet;
use std::path::Path;

const HEADER: &str = "# Written by tenure: changes belong in the node's configuration file (postgresql.pg_hba, postgresql.pg_ident).";

/// Writes a list of lines as `pg_hba.conf` or `pg_ident.conf`; true if the content changed (then reload).
pub async fn write(path: &Path, lines: &[String]) -> Result<bool> {
    let mut content = format!("{HEADER}\n");
    for line in lines {
        content.push_str(line);
        content.push('\n');
    }
    if read_if_there(path).await?.as_deref() == Some(&content) {
        return Ok(false);
    }
    write_atomically(path, &content, 0o600).await?;
    Ok(true)
}

/// The list for a new cluster where none is configured. Local sockets are open without a password only while
/// the superuser has none; over TCP everybody needs a password, and only our own roles may replicate.
pub fn default_lines(authentication: &Authentication) -> Vec<String> {
    let local = if authentication.superuser.password.is_some() { "scram-sha-256" } else { "trust" };
    let mut lines = vec![format!("local all all {local}"), format!("local replication all {local}")];
    let ours = [Some(&authentication.replication), authentication.rewind.as_ref(), Some(&authentication.superuser)];
    let users: BTreeSet<&str> = ours.into_iter().flatten().map(|credentials: &Credentials| credentials.username.as_str()).collect();
    for user in users {
        lines.push(format!("host replication {} all scram-sha-256", quoted(user)));
    }
    lines.push("host all all all scram-sha-256".to_owned());
    lines
}

/// A role's name as a word of pg_hba.conf; quotes also take away the meaning of words like `all`.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::Secret;

    fn role(username: &str, password: Option<&str>) -> Credentials {
        Credentials { username: username.to_owned(), password: password.map(Secret::new), connection: Vec::new() }
    }

    #[test]
    fn local_sockets_are_open_only_while_the_superuser_has_no_password() {
        let open = Authentication { superuser: role("postgres", None), replication: role("replicator", Some("x")), rewind: None };
        assert_eq!(
            default_lines(&open),
            [
                "local all all trust",
                "local replication all trust",
                "host replication \"postgres\" all scram-sha-256",
                "host replication \"replicator\" all scram-sha-256",
                "host all all all scram-sha-256"
            ]
        );
        let closed = Authentication { superuser: role("postgres", Some("s")), rewind: Some(role("rew", Some("y"))), ..open };
        let lines = default_lines(&closed);
        assert_eq!(lines[0], "local all all scram-sha-256");
        assert!(lines.contains(&"host replication \"rew\" all scram-sha-256".to_owned()));
    }

    #[tokio::test]
    async fn writing_the_same_lines_again_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pg_hba.conf");
        let lines = vec!["local all all trust".to_owned()];
        assert!(write(&path, &lines).await.unwrap());
        assert!(!write(&path, &lines).await.unwrap());
    }
}
