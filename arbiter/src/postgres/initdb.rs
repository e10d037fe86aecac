//! Makes a new database system with initdb.

use super::marker::Incomplete;
use super::{Programs, empty_directory, is_empty_directory, run, sync_data_directory, write_atomically};
use crate::config::Credentials;
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};

/// A program's long option without its dashes, with its value if it takes one.
pub type LongOption = (String, Option<String>);

/// Options that are ours to give (or that would leave the directory unsafe), as in Patroni.
pub const FORBIDDEN: [&str; 9] = ["pgdata", "nosync", "no-sync", "pwfile", "sync-only", "version", "username", "pwprompt", "show"];

/// Makes the database system in `data_dir`, owned by `superuser`. The directory is marked incomplete
/// meanwhile, and emptied again if initdb fails; so it is refused where something is there that no half-done work of ours explains.
pub async fn initdb(programs: &Programs, data_dir: &Path, superuser: &Credentials, options: &[LongOption]) -> Result<()> {
    super::refuse_root()?;
    let mark = Incomplete::of(data_dir);
    if mark.read().await?.is_some() {
        empty_directory(data_dir).await.context("clear what an earlier attempt left")?;
    }
    if !is_empty_directory(data_dir).await? {
        bail!("{} is not empty: a new database system is made in an empty directory only", data_dir.display());
    }
    mark.set("initdb").await?;
    let password_file = match &superuser.password {
        Some(password) => {
            let path = password_path(data_dir);
            write_atomically(&path, &format!("{}\n", password.reveal()), 0o600)
                .await
                .context("write the superuser's password for initdb")?;
            Some(path)
        }
        None => None,
    };
    let mut command = programs.command("initdb");
    // The new cluster's locale is the environment's, as with initdb by hand.
    match std::env::var_os("LC_ALL") {
        Some(locale) => command.env("LC_ALL", locale),
        None => command.env_remove("LC_ALL"),
    };
    command.arg("--pgdata").arg(data_dir).args(arguments(&superuser.username, options));
    if let Some(path) = &password_file {
        let mut argument = std::ffi::OsString::from("--pwfile=");
        argument.push(path);
        command.arg(argument);
    }
    let mut made = run(command).await.context("make a new database system").map(|_| ());
    if made.is_ok() {
        made = sync_data_directory(data_dir).await;
    }
    if let Some(path) = &password_file {
        super::remove_if_there(path).await?;
    }
    if made.is_err() {
        empty_directory(data_dir).await.context("clean up after initdb")?;
    }
    mark.clear().await?;
    made
}

fn password_path(data_dir: &Path) -> PathBuf {
    let mut path = data_dir.components().as_path().as_os_str().to_owned();
    path.push(".tenure-initdb-password");
    PathBuf::from(path)
}

/// The arguments besides the directory and the password: what the user gives, or UTF8 with checksums where nothing is given.
fn arguments(superuser: &str, options: &[LongOption]) -> Vec<String> {
    // Synced as a whole afterwards.
    let mut arguments: Vec<String> = vec!["--no-sync".to_owned(), format!("--username={superuser}")];
    // initdb's own default is trust for everybody; pg_hba.conf is written afterwards, until then nobody but the socket's owner gets in.
    if !options.iter().any(|(name, _)| name.starts_with("auth")) {
        arguments.push("--auth-local=trust".to_owned());
        arguments.push("--auth-host=scram-sha-256".to_owned());
    }
    if options.is_empty() {
        arguments.extend(["--encoding=UTF8".to_owned(), "--data-checksums".to_owned()]);
    }
    arguments.extend(options.iter().map(as_argument));
    arguments
}

/// `--name` or `--name=value`.
pub fn as_argument((name, value): &LongOption) -> String {
    match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    }
}

/// Names the first option that is not the user's to give.
pub fn refused_option(options: &[LongOption], forbidden: &[&'static str]) -> Option<&'static str> {
    forbidden.iter().find(|name| options.iter().any(|(given, _)| given == *name)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn option(name: &str, value: Option<&str>) -> LongOption {
        (name.to_owned(), value.map(str::to_owned))
    }

    #[test]
    fn defaults_apply_only_where_the_user_gives_no_option() {
        assert_eq!(
            arguments("postgres", &[]),
            ["--no-sync", "--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256", "--encoding=UTF8", "--data-checksums"]
        );
        assert_eq!(
            arguments("admin", &[option("locale", Some("C")), option("auth", Some("scram-sha-256"))]),
            ["--no-sync", "--username=admin", "--locale=C", "--auth=scram-sha-256"]
        );
    }

    #[test]
    fn forbidden_options_are_found() {
        assert_eq!(refused_option(&[option("pwfile", Some("/x"))], &FORBIDDEN), Some("pwfile"));
        assert_eq!(refused_option(&[option("encoding", Some("UTF8"))], &FORBIDDEN), None);
    }
}
