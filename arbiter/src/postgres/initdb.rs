//! Makes a new database system with initdb.

use super::marker::Incomplete;
use super::{Programs, empty_directory, is_empty_directory, run, sync_data_directory, write_atomically};
use crate::postgres::credentials::Credentials;
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
    command.arg("--pgdata").arg(data_dir).args(arguments(superuser, options));
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
fn arguments(superuser: &Credentials, options: &[LongOption]) -> Vec<String> {
    // Synced as a whole afterwards.
    let mut arguments: Vec<String> = vec!["--no-sync".to_owned(), format!("--username={}", superuser.username)];
    // initdb's own default is trust for everybody, also for the half of which the user says nothing.
    let says = |name: &str| options.iter().any(|(given, _)| given == name);
    let local = if superuser.password.is_some() { "scram-sha-256" } else { "peer" };
    for (name, method) in [("auth-local", local), ("auth-host", "scram-sha-256")] {
        if !says("auth") && !says(name) {
            arguments.push(format!("--{name}={method}"));
        }
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
    fn defaults_apply_only_where_the_user_gives_no_option_and_never_trust() {
        let role = |username: &str, password: Option<&str>| Credentials {
            username: username.to_owned(),
            password: password.map(crate::ground::secret::Secret::new),
            connection: Vec::new(),
        };
        let with = |superuser: &Credentials, options: &[LongOption]| arguments(superuser, options).join(" ");
        let (open, closed) = (role("postgres", None), role("admin", Some("x")));
        assert_eq!(
            with(&open, &[]),
            "--no-sync --username=postgres --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 --data-checksums"
        );
        assert_eq!(
            with(&closed, &[option("locale", Some("C")), option("auth", Some("md5"))]),
            "--no-sync --username=admin --locale=C --auth=md5"
        );
        assert_eq!(
            with(&closed, &[option("auth-host", Some("md5"))]),
            "--no-sync --username=admin --auth-local=scram-sha-256 --auth-host=md5"
        );
    }

    #[test]
    fn forbidden_options_are_found() {
        assert_eq!(refused_option(&[option("pwfile", Some("/x"))], &FORBIDDEN), Some("pwfile"));
        assert_eq!(refused_option(&[option("encoding", Some("UTF8"))], &FORBIDDEN), None);
    }
}
