//! What `pg_dist_node` of a coordinator is to hold, by which steps it gets there, and which poolers lead to a group.

use crate::citus::groups::{COORDINATOR, Groups};
use crate::host::{Address, POSTGRES};
use crate::member::{Member, MemberRole};
use crate::view::ClusterView;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// `noderole`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeRole {
    /// Takes its group's writes.
    Primary,
    /// May be read from, where `citus.use_secondary_nodes` says so.
    Secondary,
}

impl NodeRole {
    /// The word in `pg_dist_node`.
    pub fn word(self) -> &'static str {
        match self {
            NodeRole::Primary => "primary",
            NodeRole::Secondary => "secondary",
        }
    }
}

/// One row of `pg_dist_node`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// `nodeid`.
    pub id: i32,
    /// `groupid`.
    pub group: u32,
    /// `nodename` and `nodeport`.
    pub at: Address,
    /// `noderole`.
    pub role: NodeRole,
}

/// What one group's rows are to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The leader, which runs as primary.
    pub primary: Address,
    /// The healthy standbys.
    pub standbys: BTreeSet<Address>,
}

/// One statement on `pg_dist_node`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `citus_set_coordinator_host`: the first row of all.
    SetCoordinator {
        /// Where the coordinator is.
        at: Address,
    },
    /// `citus_update_node`.
    Move {
        /// The row.
        id: i32,
        /// Its new address.
        to: Address,
    },
    /// `citus_add_node`.
    Add {
        /// Its group.
        group: u32,
        /// Its address.
        at: Address,
        /// Its role.
        role: NodeRole,
    },
    /// `citus_remove_node`, for secondaries only: a primary goes with its group's shards, and that is an operator's decision.
    Remove {
        /// Its address.
        at: Address,
    },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SetCoordinator { at } => write!(f, "the coordinator is at {at}"),
            Step::Move { id, to } => write!(f, "node {id} is at {to}"),
            Step::Add { group, at, role } => write!(f, "{at} is a {} of group {group}", role.word()),
            Step::Remove { at } => write!(f, "{at} is gone"),
        }
    }
}

/// The way from the rows that were found to those that are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// Moves, to be made in one transaction in this order.
    pub moves: Vec<Step>,
    /// Rows that come and go, each by itself, after the moves; may fail while the nodes are not in step, and are then tried again.
    pub others: Vec<Step>,
    /// What cannot be done and why: a sentence each.
    pub conflicts: Vec<String>,
}

impl Plan {
    /// True where all is as it is wanted.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty() && self.others.is_empty()
    }
}

/// `host` or `host:port`, an IPv6 address in brackets, as a configuration has it; None where it is no such text.
pub fn address_of(value: &Value) -> Option<Address> {
    let address = Address::parse(value.as_str()?, POSTGRES).ok()?;
    let odd = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '\'' | '@');
    (!address.host.contains(odd)).then_some(address)
}

/// An address by which a group's configuration wants its primary (`citus.primary_address`) or its standbys (`citus.standby_address`)
/// to be reached, whichever server that is: a name or a virtual address that follows the role.
fn named(view: &ClusterView, key: &str) -> Option<Address> {
    view.config().get("citus")?.get(key).and_then(address_of)
}

/// The address at which this group's primary is reached whichever server it is, where its configuration has one.
pub fn primary_address(view: &ClusterView) -> Option<Address> {
    named(view, "primary_address")
}

/// What etcd says a group's rows are to be; None while it has no leader that runs as primary, or does not yet exist: its rows stay as
/// they are then.
pub fn wanted(view: &ClusterView) -> Option<Wanted> {
    view.system_id()?;
    let leader = view.leader.as_ref()?;
    let member = &view.members.get(&leader.name)?.member;
    if member.role != MemberRole::Primary || !member.is_running() {
        return None;
    }
    let serves = |member: &Member| member.role == MemberRole::Replica && member.is_running() && !member.tags.noloadbalance();
    let standbys = view.members.iter().filter(|(name, entry)| **name != leader.name && serves(&entry.member));
    let primary = primary_address(view).or_else(|| member.address())?;
    let shared = named(view, "standby_address");
    // One row for the name that all standbys share.
    let place = |member: &Member| shared.clone().or_else(|| member.address());
    let standbys = standbys.filter_map(|(_, entry)| place(&entry.member)).filter(|at| *at != primary).collect();
    Some(Wanted { primary, standbys })
}

/// Through which connection poolers other nodes reach a group: `citus.use_proxy` of its configuration, and `proxy_address` of its members.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Poolers {
    /// Beside the primary.
    pub primary: Option<Address>,
    /// Beside the standbys, by the address in the standby's row.
    pub standbys: BTreeMap<Address, Address>,
}

/// The poolers of every group whose configuration says whether they are used; those of the others are nobody's business here.
pub fn poolers(groups: &Groups) -> BTreeMap<u32, Poolers> {
    groups.iter().filter_map(|(group, view)| Some((*group, poolers_of(view)?))).collect()
}

/// Other nodes reach the group's primary through the pooler beside it.
pub fn uses_poolers(view: &ClusterView) -> bool {
    poolers_of(view).is_some_and(|poolers| poolers.primary.is_some())
}

fn poolers_of(view: &ClusterView) -> Option<Poolers> {
    let used = view.config().get("citus")?.get("use_proxy")?.as_bool()?;
    let wanted = wanted(view)?;
    if !used {
        return Some(Poolers::default());
    }
    let leader = view.leader.as_ref()?;
    let standbys = view.members.iter().filter(|(name, _)| **name != leader.name);
    let standbys = standbys.filter_map(|(_, entry)| Some((entry.member.address()?, entry.member.proxy()?)));
    Some(Poolers {
        primary: view.members.get(&leader.name).and_then(|entry| entry.member.proxy()),
        standbys: standbys.filter(|(at, _)| wanted.standbys.contains(at)).collect(),
    })
}

/// What `pg_dist_poolinfo` is to be changed to: by node, None where its row goes. Found are the rows of both tables. A primary's pooler goes
/// with its row whatever address that has at the moment: on nodes other than the coordinator's primary addresses come later.
pub fn pooler_changes(rows: &[Row], found: &BTreeMap<i32, String>, poolers: &BTreeMap<u32, Poolers>) -> BTreeMap<i32, Option<String>> {
    let wanted = |row: &Row| {
        let of = poolers.get(&row.group)?;
        Some(match row.role {
            NodeRole::Primary => of.primary.as_ref(),
            NodeRole::Secondary => of.standbys.get(&row.at),
        })
    };
    let text = |at: &Address| format!("host={} port={}", at.host, at.port);
    let known = rows.iter().filter_map(|row| Some((row.id, wanted(row)?.map(text))));
    // Citus leaves what belonged to a node that was removed.
    let left = found.keys().filter(|id| !poolers.is_empty() && rows.iter().all(|row| row.id != **id)).map(|id| (*id, None));
    known.chain(left).filter(|(id, wanted)| found.get(id) != wanted.as_ref()).collect()
}

/// What etcd says of every group.
pub fn all_wanted(groups: &Groups) -> BTreeMap<u32, Wanted> {
    groups.iter().filter_map(|(group, view)| Some((*group, wanted(view)?))).collect()
}

/// The address that a primary's row has inside the transaction that holds its group's writers: one where nobody is.
pub fn demoted(at: &Address) -> Address {
    Address { host: format!("{}{DEMOTED}", at.host), port: at.port }
}

const DEMOTED: &str = "-demoted";

fn without_mark(at: &Address) -> Address {
    Address { host: at.host.strip_suffix(DEMOTED).unwrap_or(&at.host).to_owned(), port: at.port }
}

/// The rows as they are after the steps so far.
struct Rows(Vec<Row>);

impl Rows {
    fn at(&self, at: &Address) -> Option<&Row> {
        self.0.iter().find(|row| row.at == *at)
    }

    fn primary(&self, group: u32) -> Option<&Row> {
        self.0.iter().find(|row| row.group == group && row.role == NodeRole::Primary)
    }

    fn step(&mut self, id: i32, to: Address, moves: &mut Vec<Step>) {
        if let Some(row) = self.0.iter_mut().find(|row| row.id == id) {
            row.at = to.clone();
        }
        moves.push(Step::Move { id, to });
    }
}

/// The steps from the rows that were found to those that are wanted. Rows of a group of which nothing is known stay as they are.
pub fn plan(found: &[Row], wanted: &BTreeMap<u32, Wanted>) -> Plan {
    let mut plan = Plan::default();
    let mut rows = Rows(found.to_vec());
    for (group, want) in wanted {
        move_primary(*group, want, wanted, &mut rows, &mut plan);
    }
    for (group, want) in wanted {
        settle_standbys(*group, want, &mut rows, &mut plan);
    }
    plan
}

/// The primary's row gets the leader's address, whichever row has that now.
fn move_primary(group: u32, want: &Wanted, all: &BTreeMap<u32, Wanted>, rows: &mut Rows, plan: &mut Plan) {
    if let Some((other, _)) = all.iter().find(|(other, claim)| **other < group && claim.primary == want.primary) {
        plan.conflicts.push(format!("groups {other} and {group} both say that their primary is at {}", want.primary));
        return;
    }
    let Some((id, before)) = rows.primary(group).map(|row| (row.id, row.at.clone())) else {
        let there = rows.at(&want.primary).map(|row| (row.id, row.group, row.role));
        match there {
            Some((_, _, NodeRole::Secondary)) => {
                rows.0.retain(|row| row.at != want.primary);
                plan.others.push(Step::Remove { at: want.primary.clone() });
            }
            Some((id, of, NodeRole::Primary)) if moves_away(of, want, all) => rows.step(id, aside(&want.primary, id), &mut plan.moves),
            Some((_, of, NodeRole::Primary)) => return plan.conflicts.push(registered(group, want, of)),
            None => {}
        }
        plan.others.push(match group {
            COORDINATOR => Step::SetCoordinator { at: want.primary.clone() },
            _ => Step::Add { group, at: want.primary.clone(), role: NodeRole::Primary },
        });
        return;
    };
    if before == want.primary {
        return;
    }
    let displaced = rows.at(&want.primary).map(|row| (row.id, row.group, row.role));
    if let Some((other, of, role)) = displaced {
        if role == NodeRole::Primary && !moves_away(of, want, all) {
            plan.conflicts.push(registered(group, want, of));
            return;
        }
        rows.step(other, aside(&want.primary, other), &mut plan.moves);
    }
    rows.step(id, want.primary.clone(), &mut plan.moves);
    if let Some((other, of, NodeRole::Secondary)) = displaced {
        // The row of the standby that was promoted: for a standby that has none yet, or else for the old primary, the likeliest to come.
        let mut places = all.get(&of).into_iter().flat_map(|its| its.standbys.iter().cloned()).chain([without_mark(&before)]);
        if let Some(place) = places.find(|place| rows.at(place).is_none()) {
            rows.step(other, place, &mut plan.moves);
        }
    }
}

/// The primary of that group is known to be elsewhere: its row will follow it.
fn moves_away(of: u32, want: &Wanted, all: &BTreeMap<u32, Wanted>) -> bool {
    all.get(&of).is_some_and(|its| its.primary != want.primary)
}

/// A place that nobody has, for the length of a transaction.
fn aside(at: &Address, id: i32) -> Address {
    Address { host: format!("{}-moving-{id}", at.host), port: at.port }
}

fn registered(group: u32, want: &Wanted, of: u32) -> String {
    format!("the primary of group {group} is at {}, where the primary of group {of} is registered", want.primary)
}

/// Healthy standbys have a row, and nobody else: rows of those that are gone are used for those that came.
fn settle_standbys(group: u32, want: &Wanted, rows: &mut Rows, plan: &mut Plan) {
    let secondaries = rows.0.iter().filter(|row| row.group == group && row.role == NodeRole::Secondary);
    let mut gone: Vec<(i32, Address)> =
        secondaries.filter(|row| !want.standbys.contains(&row.at)).map(|row| (row.id, row.at.clone())).collect();
    let taken = |at: &&Address| rows.at(at).is_none();
    let added: Vec<Address> = want.standbys.iter().filter(taken).cloned().collect();
    for at in added {
        match gone.pop() {
            Some((id, _)) => rows.step(id, at, &mut plan.moves),
            None => plan.others.push(Step::Add { group, at, role: NodeRole::Secondary }),
        }
    }
    plan.others.extend(gone.into_iter().map(|(_, at)| Step::Remove { at }));
}
