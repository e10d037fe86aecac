//! `tenure completion SHELL` and `tenure man`: made from the commands themselves, so that they can't lag behind.

use anyhow::{Context, Result};
use std::io::Write;
use std::path::PathBuf;

/// Print the completion script of a shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// Print the manual page, or write one page for each command into a directory.
#[derive(Debug, clap::Args)]
pub struct ManArgs {
    /// Where to write `tenure.1`, `tenure-list.1` and so on; the page of `tenure` goes to standard output without it.
    pub directory: Option<PathBuf>,
}

/// Prints the script.
pub fn run(args: &Args, mut command: clap::Command) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "tenure", &mut script);
    Ok(std::io::stdout().lock().write_all(&script)?)
}

/// Prints or writes the pages.
pub fn man(args: &ManArgs, command: clap::Command) -> Result<()> {
    match &args.directory {
        Some(directory) => {
            let write = || {
                std::fs::create_dir_all(directory)?;
                clap_mangen::generate_to(command, directory)
            };
            write().with_context(|| format!("write the manual to {}", directory.display()))
        }
        None => Ok(clap_mangen::Man::new(command).render(&mut std::io::stdout().lock())?),
    }
}
