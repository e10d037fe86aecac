//! `tenure rebuild-keys`: makes the cluster's keys again from what its members know, after etcd was restored from a backup or emptied.

use super::context::{self, Tool, confirm, print, refuse, refuse_with};
use super::groups::{self, Part};
use anyhow::Result;
use cluster::name::MemberName;
use cluster::store::{self, NoRebuild};
use dcs::Error;

/// Make the keys in etcd again from what the members know: after etcd was restored from a backup or emptied.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The cluster's name; the configured one where none is given.
    pub cluster: Option<String>,
    /// The Citus group.
    #[arg(long)]
    pub group: Option<u32>,
    /// Who is to lead, if the one that led last is gone.
    #[arg(long)]
    pub leader: Option<MemberName>,
    /// Go ahead although this leader may lack acknowledged commits.
    #[arg(long)]
    pub accept_loss: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    pub force: bool,
}

/// Runs the command.
pub async fn run(tool: &Tool, args: &Args) -> Result<()> {
    let fits = |part: &Part| args.leader.as_ref().is_none_or(|leader| part.has(leader.as_str()));
    let Part { target, view } = groups::one(tool, args.cluster.as_deref(), args.group, fits, "making keys again").await?;
    let plan = store::rebuild(&view, args.leader.as_ref()).map_err(|why| {
        let hint = match &why {
            NoRebuild::NobodyDoubts => "members say so within seconds of seeing an etcd that forgot; `tenure check` shows it",
            NoRebuild::HolderSilent { .. } => "start its arbiter; or, where it is gone for good, name another member: --leader NAME",
            NoRebuild::NotAMember(_) => "`tenure list` shows the members; start its arbiter",
        };
        refuse_with(why.to_string(), hint)
    })?;
    print(format!(
        "{} leads, database system {}, on timeline {} or greater; the keys are made the {}. time",
        plan.leader, plan.system_id, plan.timeline, plan.generation
    ))?;
    if !plan.unheard.is_empty() {
        print(format!("{} did not say what they know: if one of them led later, what it acknowledged is lost", plan.unheard.join(", ")))?;
    }
    if let Some(risk) = plan.risk.as_ref().filter(|_| !args.accept_loss) {
        return Err(refuse_with(risk.clone(), "name another member, or say --accept-loss"));
    }
    if !args.force {
        context::must_be_interactive("making keys again")?;
        if !confirm("Make the keys again?")? {
            return Err(refuse("Aborted!"));
        }
    }
    match target.etcd.rebuild(&plan, &view).await {
        Ok(term) => print(format!("The keys of {} are made again: {} leads in term {term}", target.scope, plan.leader)),
        Err(Error::Lost(_)) => Err(refuse_with("the keys changed meanwhile", "look at `tenure list`, then ask again")),
        Err(Error::LeaseGone) => {
            Err(refuse_with(format!("the member key of {} has just run out", plan.leader), "see that its arbiter runs, then ask again"))
        }
        Err(why) => Err(why.into()),
    }
}
