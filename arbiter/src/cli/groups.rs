//! Which groups of a Citus cluster a command is about. Outside Citus there is one cluster, and no question.

use super::context::{self, Target, Tool, refuse_with};
use anyhow::Result;
use cluster::view::ClusterView;

/// A group of a Citus cluster, or the one cluster that is not of Citus.
pub struct Part {
    /// Where it is.
    pub target: Target,
    /// As read.
    pub view: ClusterView,
}

impl Part {
    /// Is a member of it called so?
    pub fn has(&self, member: &str) -> bool {
        self.view.members.keys().any(|name| name.as_str() == member)
    }
}

/// The group named, or every group.
pub async fn all(tool: &Tool, cluster: Option<&str>, group: Option<u32>) -> Result<Vec<Part>> {
    let scope = tool.target_of_all(cluster, None)?;
    let groups = scope.groups().await?;
    if groups.is_empty() {
        let target = tool.target(cluster, group)?;
        let view = target.view().await?;
        return Ok(vec![Part { target, view }]);
    }
    let known = numbers(groups.keys().copied());
    if let Some(odd) = group.filter(|group| !groups.contains_key(group)) {
        return Err(refuse_with(format!("Citus cluster {} has no group {odd}", scope.scope), format!("its groups are {known}")));
    }
    let wanted = groups.into_iter().filter(|(number, _)| group.is_none_or(|group| group == *number));
    wanted.map(|(number, view)| Ok(Part { target: tool.target(cluster, Some(number))?, view })).collect()
}

/// The group named by the option or, as with Patroni, by the node's file; every group where neither names one, or where `every` asks
/// for that.
pub async fn own(tool: &Tool, cluster: Option<&str>, group: Option<u32>, every: bool) -> Result<Vec<Part>> {
    all(tool, cluster, group.or(tool.group().filter(|_| !every))).await
}

/// The one group that this can be about: the one named, or the only one that fits. Where more than one fits the operator is asked;
/// a node's file does not decide, as with Patroni: what is done to a group was meant for it.
pub async fn one(tool: &Tool, cluster: Option<&str>, group: Option<u32>, fits: impl Fn(&Part) -> bool, what: &str) -> Result<Part> {
    let mut parts = all(tool, cluster, group).await?;
    if parts.len() > 1 && parts.iter().any(&fits) {
        parts.retain(&fits);
    }
    if parts.len() > 1 {
        let known = numbers(parts.iter().filter_map(|part| part.target.group));
        let scope = parts.iter().map(|part| part.target.scope.as_str()).next().unwrap_or("");
        let sentence = format!("For Citus clusters the --group must be specified: {what} can be about groups {known} of {scope}");
        if !context::interactive() {
            return Err(refuse_with(sentence, "give --group NUMBER; `tenure list` shows the groups"));
        }
        let answer = context::ask(&format!("Citus group ({known})"), "")?;
        parts.retain(|part| part.target.group.is_some_and(|group| group.to_string() == answer));
    }
    parts.pop().ok_or_else(|| refuse_with("no group was named", "give --group NUMBER; `tenure list` shows the groups"))
}

fn numbers(groups: impl Iterator<Item = u32>) -> String {
    groups.map(|group| group.to_string()).collect::<Vec<_>>().join(", ")
}
