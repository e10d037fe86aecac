//! The operator's commands: one file each, and what they share.

mod cluster_role;
pub mod context;
mod groups;
mod handover;
mod incident;
mod journals;
mod members;
mod surroundings;
pub mod table;
mod without_etcd;

pub mod adopt;
pub mod backup_done;
pub mod check;
pub mod completion;
pub mod demote_cluster;
pub mod dsn;
pub mod edit_config;
pub mod explain;
pub mod failover;
pub mod fleet;
pub mod flush;
pub mod history;
pub mod init;
pub mod leave;
pub mod list;
pub mod patronictl;
pub mod pause;
pub mod promote_cluster;
pub mod query;
pub mod rebuild_keys;
pub mod reinit;
pub mod reload;
pub mod remove;
pub mod replay;
pub mod restart;
pub mod restore;
pub mod roles;
pub mod show_config;
pub mod switchover;
pub mod topology;
pub mod upgrade;
pub mod upgrading;
pub mod validate;
pub mod version;

use anyhow::Result;
use cluster::mixed::Kind;
use context::{Refusal, Source, Tool};
use without_etcd::Wanted;

/// What the operator asks for.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    List(list::Args),
    Topology(topology::Args),
    History(history::Args),
    Switchover(switchover::Args),
    Failover(failover::Args),
    DemoteCluster(demote_cluster::Args),
    PromoteCluster(promote_cluster::Args),
    Restart(restart::Args),
    Reload(reload::Args),
    Reinit(reinit::Args),
    Replay(replay::Args),
    Restore(restore::Args),
    /// Switch maintenance mode on: no automatic failover.
    Pause(pause::Args),
    /// Switch maintenance mode off.
    Resume(pause::Args),
    ShowConfig(show_config::Args),
    EditConfig(edit_config::Args),
    Flush(flush::Args),
    Dsn(dsn::Args),
    Version(version::Args),
    Remove(remove::Args),
    RebuildKeys(rebuild_keys::Args),
    Upgrade(upgrade::Args),
    Query(query::Args),
    Check(check::Args),
    Adopt(adopt::Args),
    /// Give this node back to Patroni: our arbiter is stopped, and with it its server, which Patroni starts again.
    Abandon(adopt::Args),
    Leave(leave::Args),
    BackupDone(backup_done::Args),
    Fleet(fleet::Args),
    Explain(explain::Args),
    Roles(roles::Args),
    Init(init::Args),
    Validate(validate::Args),
    Completion(completion::Args),
    Man(completion::ManArgs),
}

/// The command's own answer. Where etcd does not answer, what the members say of themselves is printed first; it stays an error.
async fn or_ask_members(tool: &Tool, done: Result<()>, wanted: Wanted, format: list::Format) -> Result<()> {
    let Err(why) = done else { return Ok(()) };
    if why.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.etcd_is_away) {
        without_etcd::tell(tool, wanted, format).await?;
    }
    Err(why)
}

/// Runs one command. `command_line` is the whole of it, for what is made from it.
pub async fn run(command: Command, source: &Source, command_line: fn() -> clap::Command) -> Result<()> {
    match &command {
        Command::Init(args) => return init::run(args),
        Command::Validate(args) => return validate::run(args),
        Command::Adopt(args) => return Box::pin(adopt::run(args, Kind::Ours)).await,
        Command::Abandon(args) => return Box::pin(adopt::run(args, Kind::Patroni)).await,
        Command::Leave(args) => return Box::pin(leave::run(args)).await,
        Command::Roles(args) => return roles::run(args),
        Command::Completion(args) => return completion::run(args, command_line()),
        Command::Man(args) => return completion::man(args, command_line()),
        _ => {}
    }
    let tool = Tool::load(source)?;
    match command {
        Command::List(args) => or_ask_members(&tool, list::run(&tool, &args).await, Wanted::Members, args.format).await,
        Command::Topology(args) => topology::run(&tool, &args).await,
        Command::History(args) => history::run(&tool, &args).await,
        Command::Switchover(args) => switchover::run(&tool, args).await,
        Command::Failover(args) => failover::run(&tool, args).await,
        Command::DemoteCluster(args) => demote_cluster::run(&tool, &args).await,
        Command::PromoteCluster(args) => promote_cluster::run(&tool, &args).await,
        Command::Restart(args) => restart::run(&tool, &args).await,
        Command::Reload(args) => reload::run(&tool, &args).await,
        Command::Reinit(args) => reinit::run(&tool, &args).await,
        Command::Replay(args) => replay::run(&tool, &args).await,
        Command::Restore(args) => restore::run(&tool, &args).await,
        Command::Pause(args) => pause::run(&tool, &args, true).await,
        Command::Resume(args) => pause::run(&tool, &args, false).await,
        Command::ShowConfig(args) => show_config::run(&tool, &args).await,
        Command::EditConfig(args) => edit_config::run(&tool, &args).await,
        Command::Flush(args) => flush::run(&tool, &args).await,
        Command::Dsn(args) => dsn::run(&tool, &args).await,
        Command::Version(args) => version::run(&tool, &args).await,
        Command::RebuildKeys(args) => rebuild_keys::run(&tool, &args).await,
        Command::Upgrade(args) => Box::pin(upgrade::run(&tool, &args)).await,
        Command::Remove(args) => remove::run(&tool, &args).await,
        Command::Query(args) => Box::pin(query::run(&tool, &args)).await,
        Command::BackupDone(args) => backup_done::run(&tool, &args).await,
        Command::Fleet(args) => Box::pin(fleet::run(&tool, &args)).await,
        Command::Check(args) => {
            let format = match args.format {
                check::Format::Text => list::Format::Pretty,
                check::Format::Json => list::Format::Json,
                check::Format::Yaml => list::Format::Yaml,
            };
            or_ask_members(&tool, Box::pin(check::run(&tool, &args)).await, Wanted::Members, format).await
        }
        Command::Explain(args) => {
            or_ask_members(&tool, Box::pin(explain::run(&tool, &args)).await, Wanted::Decisions(args.last), args.format).await
        }
        Command::Roles(args) => roles::run(&args),
        Command::Init(args) => init::run(&args),
        Command::Adopt(args) => Box::pin(adopt::run(&args, Kind::Ours)).await,
        Command::Abandon(args) => Box::pin(adopt::run(&args, Kind::Patroni)).await,
        Command::Leave(args) => Box::pin(leave::run(&args)).await,
        Command::Validate(args) => validate::run(&args),
        Command::Completion(args) => completion::run(&args, command_line()),
        Command::Man(args) => completion::man(&args, command_line()),
    }
}
