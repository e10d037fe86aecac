//! What restart, reload and reinit share: choose members, ask the operator, ask each member's REST.

use super::context::{self, RoleFilter, Target, Tool, confirm, print, refuse};
use super::list::{self, Format};
use anyhow::Result;
use cluster::name::MemberName;
use cluster::view::ClusterView;
use serde_json::Value;
use std::time::Duration;

/// Members of a cluster that a command goes to.
pub struct Chosen {
    /// The cluster.
    pub target: Target,
    /// As read.
    pub view: ClusterView,
    /// Which members.
    pub members: Vec<MemberName>,
}

/// Chooses by the words given and the role; shows the cluster unless `force`.
pub async fn choose(
    tool: &Tool,
    words: &[String],
    group: Option<u32>,
    role: Option<RoleFilter>,
    force: bool,
    action: &str,
) -> Result<Chosen> {
    let (cluster, names) = tool.cluster_and_members(words);
    let target = tool.target(cluster, group)?;
    let view = target.view().await?;
    if !force || role.is_some() {
        print(list::members(&view, target.scope.as_str(), false, Format::Pretty)?)?;
    }
    let members = context::choose_members(&view, target.scope.as_str(), names, role, action)?;
    Ok(Chosen { target, view, members })
}

impl Chosen {
    /// Asks whether to go on, unless forced.
    pub fn are_you_sure(&self, force: bool, action: &str) -> Result<()> {
        let names = self.members.iter().map(MemberName::as_str).collect::<Vec<_>>().join(", ");
        if force {
            return Ok(());
        }
        context::must_be_interactive(&format!("a {action}"))?;
        if confirm(&format!("Are you sure you want to {action} members {names}?"))? {
            Ok(())
        } else {
            Err(refuse(format!("Aborted {action}")))
        }
    }

    /// Asks one member's REST.
    pub async fn ask(
        &self,
        tool: &Tool,
        name: &MemberName,
        method: &str,
        path: &str,
        body: Option<&Value>,
        bound: Duration,
    ) -> Result<(u16, String)> {
        let api_url = self.view.members.get(name).map_or("", |entry| entry.member.api_url.as_str());
        tool.caller.ask(api_url, method, path, body, bound).await
    }
}

/// Prints `Success: ...` or `Failed: ...` as scripts look for it; true on success.
pub fn report(name: &MemberName, action: &str, answer: Result<(u16, String)>) -> Result<bool> {
    match answer {
        Ok((200, _)) => print(format!("Success: {action} on member {name}")).map(|()| true),
        Ok((202, _)) => print(format!("Success: {action} scheduled on member {name}")).map(|()| true),
        Ok((status, text)) => {
            print(format!("Failed: {action} for member {name}, status code={status}, ({})", text.trim()))?;
            if status == 401 {
                print(
                    "hint: the member asks for credentials: put `ctl.authentication` or `restapi.authentication` into the configuration file (-c)",
                )?;
            }
            Ok(false)
        }
        Err(error) => print(format!("Failed: {action} for member {name}, ({error:#})")).map(|()| false),
    }
}

/// An error where any member failed: what was done is printed already.
pub fn all_done(action: &str, done: &[bool]) -> Result<()> {
    let failed = done.iter().filter(|done| !**done).count();
    if failed == 0 { Ok(()) } else { Err(refuse(format!("{action} failed on {failed} of {} members", done.len()))) }
}
