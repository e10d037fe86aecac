//! `failsafe_mode`: whom a leader without etcd asks, who promises, and what a promise forbids.
//!
//! The leader may go on while everybody who could take its key has promised not to. Who could is said by the
//! key `failsafe` (see [`crate::race::may_stand`]), so the leader has to ask at least all in it.

use crate::name::MemberName;
use crate::view::ClusterView;
use std::collections::BTreeMap;

/// Name to REST address, as the key `failsafe` has them.
pub type Members = BTreeMap<String, String>;

/// What the leader is to write into the key: every member while the mode is on, nobody while it is off. None where
/// that stands there already.
pub fn key_to_write(view: &ClusterView) -> Option<Members> {
    let on = view.config().failsafe_mode();
    let members = view.members.iter().filter(|(_, entry)| on && entry.is_kept());
    let members: Members = members.map(|(name, entry)| (name.to_string(), entry.member.api_url.clone())).collect();
    let known = view.failsafe.as_ref().map(|known| &known.value);
    (known != Some(&members) && !(known.is_none() && members.is_empty())).then_some(members)
}

/// Why the leader can't go on by promises.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unable {
    /// No key, as far as is known.
    #[error("the failsafe key was never read")]
    NoKey,
    /// The key was written before this node was a member.
    #[error("this node is not in the failsafe key")]
    NotInKey,
}

/// Whose promise the leader `me` needs, with their REST addresses: everybody in the key as last read, and everybody in what
/// was last sent to be written. That may have been carried out although its answer was lost, and then those it
/// added may stand.
pub fn whom_to_ask(view: &ClusterView, sent: Option<&Members>, me: &MemberName) -> Result<Members, Unable> {
    let known = &view.failsafe.as_ref().ok_or(Unable::NoKey)?.value;
    if !known.contains_key(me.as_str()) {
        return Err(Unable::NotInKey);
    }
    let all = sent.into_iter().flatten().chain(known).filter(|(name, _)| name.as_str() != me.as_str());
    Ok(all.map(|(name, address)| (name.clone(), address.clone())).collect())
}

/// Why a member does not promise.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The mode is off, as far as this node knows.
    #[error("failsafe_mode is off")]
    Off,
    /// Somebody else leads.
    #[error("{0} leads, as far as this node knows")]
    AnotherLeads(MemberName),
}

/// May a member promise `leader` not to take its key? The lease worker's page has the last word.
pub fn may_promise(view: &ClusterView, leader: &str) -> Result<(), Refusal> {
    if !view.config().failsafe_mode() {
        return Err(Refusal::Off);
    }
    match &view.leader {
        Some(other) if other.name.as_str() != leader => Err(Refusal::AnotherLeads(other.name.clone())),
        _ => Ok(()),
    }
}

/// Must the page stay as it is although etcd says that this node leads in `leads_in`? A take whose answer was lost may be
/// carried out after its node promised to stay away; a page that is open for that term already goes on.
pub fn keeps_closed(promised: bool, page_term: i64, leads_in: i64) -> bool {
    promised && page_term != leads_in
}
