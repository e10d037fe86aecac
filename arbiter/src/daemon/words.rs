//! Duties in the words of the arbiter's own log.

use cluster::duty::Duty;
use cluster::restore;
use cluster::upgrade::step::Owed;
use cluster::upstream::Upstream;

/// What is done, for people.
pub fn word(duty: &Duty) -> String {
    match duty {
        Duty::Rest => "no action".to_owned(),
        Duty::Bootstrap => "found the cluster".to_owned(),
        Duty::Clone { from } => format!("clone from {from}"),
        Duty::Restore => "make the data from a backup".to_owned(),
        Duty::StartPrimary { term } => format!("start as primary (term {term})"),
        Duty::StartStandby { upstream: Upstream::Nobody } => "start as standby".to_owned(),
        Duty::StartStandby { upstream } => format!("start as standby of {upstream}"),
        Duty::Promote { term } => format!("promote (term {term})"),
        Duty::Demote => "demote".to_owned(),
        Duty::DemoteCluster { term } => format!("become a standby cluster (after term {term})"),
        Duty::Follow { upstream } => format!("follow {upstream}"),
        Duty::Rewind { from } => format!("rewind to {from}"),
        Duty::Switchover { .. } => "switch over".to_owned(),
        Duty::HandOver { to } => format!("hand over to {to}"),
        Duty::CallOff => "take the request back".to_owned(),
        Duty::GiveWay { to } => format!("give way to {to}"),
        Duty::Release => "give the leader key up".to_owned(),
        Duty::Upgrade { owed: Owed::Undo } => "call the major upgrade off".to_owned(),
        Duty::Upgrade { owed: Owed::Discard } => "give up the data of a major upgrade".to_owned(),
        Duty::Upgrade { .. } => "go on with the major upgrade".to_owned(),
        Duty::RestoreTo { owed: restore::Owed::Undo } => "call the restore off".to_owned(),
        Duty::RestoreTo { .. } => "go on with the restore".to_owned(),
        Duty::Stop => "stop".to_owned(),
        Duty::Quit => "quit".to_owned(),
    }
}
