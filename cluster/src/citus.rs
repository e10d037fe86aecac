//! Citus: what `pg_dist_node` of a coordinator is to hold, by which steps it gets there, and when a hold on a group's writers ends.
//!
//! Each group of a Citus cluster is a cluster of its own in etcd. The coordinator's primary reads them all at one revision and
//! keeps its metadata equal to that. What Citus asks of the steps (`node_metadata.c` of Citus 13): host and port are unique over all
//! rows; a row that is moved keeps its id, and with it its group's shards; moves go into the local catalog alone and are
//! carried to the other nodes afterwards, so that they work whoever is down; rows are added and removed on all nodes at once,
//! which fails while one of them is away or not in step.

use crate::member::{Member, MemberRole};
use crate::name::MemberName;
use crate::view::ClusterView;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// The coordinator's group.
pub const COORDINATOR: u32 = 0;

/// All groups of a Citus cluster, at one revision.
pub type Groups = BTreeMap<u32, ClusterView>;

/// Where a server is reached.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    /// A name or an address of a host.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

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

fn address(member: &Member) -> Option<Address> {
    member.host_port().map(|(host, port)| Address { host, port })
}

/// `host` or `host:port`, an IPv6 address in brackets, as a configuration has it; None where it is no such text.
pub fn address_of(value: &Value) -> Option<Address> {
    let text = value.as_str()?.trim();
    let (host, port) = match text.strip_prefix('[') {
        Some(v6) => v6.split_once(']')?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    let port = match port.strip_prefix(':') {
        Some(port) => port.parse().ok().filter(|port| *port != 0)?,
        None if port.is_empty() => 5432,
        None => return None,
    };
    let word = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | '\'' | '@'));
    word.then(|| Address { host: host.to_owned(), port })
}

/// An address by which a group's configuration wants its primary (`citus.primary_address`) or its standbys (`citus.standby_address`)
/// to be reached, whoever that is: a name or a virtual address that follows the role.
fn named(view: &ClusterView, key: &str) -> Option<Address> {
    view.config().get("citus")?.get(key).and_then(address_of)
}

/// The address at which this group's primary is reached whoever it is, where its configuration has one.
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
    let primary = primary_address(view).or_else(|| address(member))?;
    let shared = named(view, "standby_address");
    // One row for the name that all standbys share.
    let place = |member: &Member| shared.clone().or_else(|| address(member));
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
    let pooler = |member: &Member| member.proxy().map(|(host, port)| Address { host, port });
    let leader = view.leader.as_ref()?;
    let standbys = view.members.iter().filter(|(name, _)| **name != leader.name);
    let standbys = standbys.filter_map(|(_, entry)| Some((address(&entry.member)?, pooler(&entry.member)?)));
    Some(Poolers {
        primary: view.members.get(&leader.name).and_then(|entry| pooler(&entry.member)),
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
    // Citus leaves behind what belonged to a node that was removed.
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

/// The primary's row gets the leader's address, whoever has that now.
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

/// `tenure/hold` of a worker's group: its leader is about to stop and asks the coordinator to keep writers waiting meanwhile.
/// Hangs on the leader's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRequest {
    /// Who asks.
    pub leader: MemberName,
    /// In which term: a request of another one says nothing.
    pub term: i64,
    /// The change is to be called off where statements are in its way.
    #[serde(default)]
    pub prefers_statements: bool,
}

/// `tenure/held` of a worker's group: the coordinator keeps writers waiting. Hangs on the coordinator's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldWord {
    /// The revision of the request that this answers.
    pub request: i64,
    /// Which coordinator holds.
    pub coordinator: MemberName,
    /// In which term.
    pub term: i64,
    /// Why writers are not held and the change is to be called off; None: they wait.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
}

/// `tenure/coordinator` of a worker's group: who was promoted as coordinator last. Written before that promotion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoordinatorWord {
    /// Who.
    pub leader: MemberName,
    /// In which term, as [`order`] has it. A coordinator that only moves its key onto another lease gets a new one and does not say so: its sessions go on.
    pub term: i64,
}

/// How many bits of an [`order`] are the term's.
const TERM_BITS: u32 = 47;

/// The term in an [`order`].
pub fn term_of(order: i64) -> i64 {
    order & ((1 << TERM_BITS) - 1)
}

/// A coordinator's term as sessions and words between groups carry it: after etcd's keys were made anew terms begin again from small numbers, so the
/// generation of the keys counts before the term. One number, so that it is compared and stored in one step.
pub fn order(generation: u32, term: i64) -> i64 {
    let generation = i64::from(generation.min(0xFFFF));
    generation << TERM_BITS | term.clamp(0, (1 << TERM_BITS) - 1)
}

/// The request of a group that is to be served: its present leader's, in its present term.
pub fn hold_wanted(view: &ClusterView) -> Option<(i64, &HoldRequest)> {
    let leader = view.leader.as_ref()?;
    let hold = view.hold.as_ref().filter(|hold| hold.value.term == leader.term.0 && hold.value.leader == leader.name)?;
    Some((hold.revision, &hold.value))
}

/// The answer to this request; None while there is none.
pub fn answer(view: &ClusterView, request: i64) -> Option<&HeldWord> {
    view.held.as_ref().map(|held| &held.value).filter(|held| held.request == request)
}

/// What comes first where statements are in the way of a planned change (`citus.prefer`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// The change, and statements that take too long end with an error.
    #[default]
    Change,
    /// The statements, and the change is called off.
    Statements,
}

impl Prefer {
    /// The word of a configuration; None where it is another.
    pub fn of(word: &str) -> Option<Prefer> {
        match word {
            "change" => Some(Prefer::Change),
            "statements" => Some(Prefer::Statements),
            _ => None,
        }
    }
}

/// What a planned change of this group prefers: by its own dynamic configuration, else by the coordinator's, else by the node's file.
pub fn prefer(groups: &Groups, group: u32, file: Option<Prefer>) -> Prefer {
    let said = |of: u32| groups.get(&of)?.config().get("citus")?.get("prefer")?.as_str().and_then(Prefer::of);
    said(group).or_else(|| said(COORDINATOR)).or(file).unwrap_or_default()
}

/// How long statements that are under way get to end before a planned change, where nothing else is said: more than nearly all that serve
/// somebody who waits take, and no longer than such a one waits.
pub const GRACE: Duration = Duration::from_secs(5);

fn seconds(value: &Value) -> Option<u64> {
    value.as_u64().or_else(|| value.as_str()?.trim().parse().ok())
}

/// The same (`citus.grace`): by the coordinator's dynamic configuration, else by its node's file.
pub fn grace(groups: &Groups, file_s: Option<u64>) -> Duration {
    let said = || groups.get(&COORDINATOR)?.config().get("citus")?.get("grace").and_then(seconds);
    said().or(file_s).map_or(GRACE, Duration::from_secs)
}

/// `tenure/gate` of a worker's group: another group is about to change its primary, so distributed statements that begin here are to
/// wait. Hangs on the coordinator's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GateWord {
    /// Which coordinator asks.
    pub coordinator: MemberName,
    /// In which term, as [`order`] has it.
    pub term: i64,
    /// Reads wait too.
    pub reads: bool,
    /// How long statements under way get to end.
    #[serde(default = "half_a_second")]
    pub grace_ms: u64,
    /// How long the gate may have to stay closed beside the time of the change itself.
    #[serde(default)]
    pub beside_ms: u64,
}

/// What a coordinator of a version that does not say it waits for.
fn half_a_second() -> u64 {
    500
}

/// `tenure/gated` of a worker's group: its primary keeps statements waiting. Hangs on that one's lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatedWord {
    /// The revision of the word that this answers.
    pub gate: i64,
    /// Who answers.
    pub leader: MemberName,
    /// In which term.
    pub term: i64,
    /// Statements wait here; before that it was only heard, and statements under way are waited for.
    #[serde(default = "yes")]
    pub closed: bool,
    /// So many transactions were still under way at the end of the grace.
    #[serde(default)]
    pub left: u32,
}

fn yes() -> bool {
    true
}

/// The gate that this group's leader is to keep closed: its revision, and what it says. A word of a coordinator that was deposed counts
/// no more; its lease may still run.
pub fn gate_wanted(view: &ClusterView) -> Option<(i64, &GateWord)> {
    let newest = view.coordinator.as_ref().map_or(0, |word| word.value.term);
    let gate = view.gate.as_ref().filter(|gate| gate.value.term >= newest)?;
    view.leader.as_ref()?;
    Some((gate.revision, &gate.value))
}

/// What the groups say to this gate so far; None for those that have not even heard. Nobody waits for one that has no primary, or that asked
/// for a hold itself and is about to stop.
pub fn gated(groups: &Groups, gate: i64) -> BTreeMap<u32, Option<&GatedWord>> {
    let answer = |view: &'_ ClusterView| {
        let term = view.leader.as_ref().map(|leader| leader.term.0);
        view.gated.as_ref().is_some_and(|gated| gated.value.gate == gate && Some(gated.value.term) == term)
    };
    let asked = groups.iter().filter(|(group, view)| **group != COORDINATOR && wanted(view).is_some() && view.hold.is_none());
    asked.map(|(group, view)| (*group, view.gated.as_ref().filter(|_| answer(view)).map(|gated| &gated.value))).collect()
}

/// Those of them that are still missing.
pub fn not_gated(groups: &Groups, gate: i64) -> BTreeSet<u32> {
    let closed = |word: &Option<&GatedWord>| word.is_some_and(|word| word.closed);
    gated(groups, gate).into_iter().filter(|(_, word)| !closed(word)).map(|(group, _)| group).collect()
}

/// Why a hold ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    /// A new leader serves.
    Served,
    /// The old leader took its request back and serves on.
    CalledOff,
    /// It took too long.
    TimedOut,
}

impl fmt::Display for Release {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Release::Served => "the new primary serves",
            Release::CalledOff => "the old primary serves on",
            Release::TimedOut => "it took too long",
        })
    }
}

/// Does the hold for this request, asked for in this term, end now? Writers wait on while nobody could serve them, but not for ever.
pub fn release(view: &ClusterView, request: i64, term: i64, waited: Duration, limit: Duration) -> Option<Release> {
    let served_in = wanted(view).and(view.leader.as_ref()).map(|leader| leader.term.0);
    let asks = view.hold.as_ref().is_some_and(|hold| hold.revision == request);
    match served_in {
        Some(now) if now != term => Some(Release::Served),
        Some(_) if !asks => Some(Release::CalledOff),
        _ if waited >= limit => Some(Release::TimedOut),
        _ => None,
    }
}
