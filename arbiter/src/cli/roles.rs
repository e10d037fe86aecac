//! `tenure roles`: the table of what a node can be and what moves it there.

use super::context::print;
use anyhow::Result;

/// How to write the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Format {
    /// One row a line.
    #[default]
    Text,
    /// A diagram.
    Mermaid,
}

/// Print the table of roles.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    pub format: Format,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<()> {
    print(match args.format {
        Format::Text => cluster::roles::text(),
        Format::Mermaid => cluster::roles::mermaid(),
    })
}
