//! What restart, reload and reinit share: choose members, ask the operator, ask each member's REST.

use super::context::{self, RoleFilter, Target, Tool, confirm, print, refuse, refuse_with};
use super::groups::{self, Part};
use super::list::{self, Format};
use anyhow::Result;
use cluster::name::MemberName;
use cluster::view::ClusterView;
use serde_json::Value;
use std::time::Duration;

/// Members of a cluster, or of one group of a Citus cluster, that a command goes to.
pub struct Chosen {
    /// The cluster.
    pub target: Target,
    /// As read.
    pub view: ClusterView,
    /// Which members.
    pub members: Vec<MemberName>,
}

/// Chooses by the words given and the role, of every group where none is named; shows the cluster unless `force`.
pub async fn choose(
    tool: &Tool,
    words: &[String],
    group: Option<u32>,
    role: Option<RoleFilter>,
    force: bool,
    action: &str,
) -> Result<Vec<Chosen>> {
    let (cluster, names) = tool.cluster_and_members(words);
    let parts = groups::all(tool, cluster, group).await?;
    let several = parts.len() > 1;
    for word in names.iter().filter(|_| several) {
        match parts.iter().filter(|part| part.has(word)).count() {
            0 => return Err(refuse_with(format!("{word} is not a member of any group"), "`tenure list` shows who is")),
            1 => {}
            _ => return Err(refuse_with(format!("members of more than one group are called {word}"), "give --group NUMBER")),
        }
    }
    if several && names.is_empty() && action == "reinitialize" {
        return Err(refuse_with(format!("no member to {action} is named"), "name the members"));
    }
    let mut chosen = Vec::new();
    for Part { target, view } in parts {
        let here = |word: &&String| !several || view.members.keys().any(|name| name.as_str() == word.as_str());
        let named: Vec<String> = names.iter().filter(here).cloned().collect();
        let nobody =
            (named.is_empty() && !names.is_empty()) || role.is_some_and(|role| !view.members.keys().any(|name| role.takes(&view, name)));
        if several && nobody {
            continue;
        }
        let scope = target.scope.as_str();
        if !force || role.is_some() {
            print(list::members(&view, scope, target.group, false, Format::Pretty)?)?;
        }
        let members = context::choose_members(&view, scope, &named, role, action)?;
        chosen.push(Chosen { target, view, members });
    }
    if chosen.is_empty() { Err(refuse(format!("No member to {action}"))) } else { Ok(chosen) }
}

/// Asks whether to go on, unless forced.
pub fn are_you_sure(chosen: &[Chosen], force: bool, action: &str) -> Result<()> {
    let names = chosen.iter().flat_map(|part| &part.members).map(MemberName::as_str).collect::<Vec<_>>().join(", ");
    if force {
        return Ok(());
    }
    context::must_be_interactive(&format!("a {action}"))?;
    if confirm(&format!("Are you sure you want to {action} members {names}?"))? { Ok(()) } else { Err(refuse(format!("Aborted {action}"))) }
}

/// Every member with its group.
pub fn each(chosen: &[Chosen]) -> impl Iterator<Item = (&Chosen, &MemberName)> {
    chosen.iter().flat_map(|part| part.members.iter().map(move |name| (part, name)))
}

impl Chosen {
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
