//! What several duties are decided by.

use super::what::Duty;
use crate::failover;
use crate::local::LocalState;
use crate::reason::{Decision, Reason};
use crate::restore;
use crate::upstream::Upstream;
use crate::view::ClusterView;
use std::time::Duration;

/// So long a request that can't be served stays: a candidate may be back in a moment.
pub const REQUEST_PATIENCE: Duration = Duration::from_secs(10);

/// The leader serves (`why`); has anybody asked for a change?
pub(crate) fn requested(view: &ClusterView, local: &LocalState, why: Reason) -> Decision<Duty> {
    let rest = || Decision::new(Duty::Rest, why);
    let Some(request) = view.request() else {
        return rest();
    };
    if let Some(at) = &request.value.scheduled_at
        && !local.request_due
    {
        return Decision::new(Duty::Rest, Reason::Scheduled(at.clone()));
    }
    match failover::candidates(view, &request.value) {
        Ok(candidates) => match candidates.first().cloned() {
            Some(first) => Decision::new(Duty::Switchover { candidates }, Reason::SwitchoverAsked(first)),
            None => rest(),
        },
        // In maintenance mode it waits for its end. Else what keeps it from being done may pass in a moment; a request that stays would
        // be carried out at an hour when nobody thinks of it any more.
        Err(why) if matches!(why, failover::Impossible::Paused) || local.request_waits < REQUEST_PATIENCE => {
            Decision::new(Duty::Rest, Reason::SwitchoverImpossible(why.to_string()))
        }
        Err(why) => Decision::new(Duty::CallOff, Reason::SwitchoverImpossible(why.to_string())),
    }
}

pub(crate) fn start_failed(local: &LocalState) -> Reason {
    Reason::StartFailed(local.start_failed.clone().unwrap_or_default())
}

/// Wind back, or where that failed clone from this source, if the configuration allows it.
pub(crate) fn rewind_or(view: &ClusterView, local: &LocalState, from: Upstream, source: Upstream, why: Reason) -> Decision<Duty> {
    match &local.rewind_failed {
        None => Decision::new(Duty::Rewind { from }, why),
        Some(words) if local.may_clone_over => Decision::new(Duty::Clone { from: source }, Reason::RewindFailedCloneAllowed(words.clone())),
        // The operator who restored the cluster has said that what the others have beyond that is to go.
        Some(words) if restore::is_restored(view) => {
            Decision::new(Duty::Clone { from: source }, Reason::RewindFailedRestored(words.clone()))
        }
        Some(words) => Decision::new(Duty::Rest, Reason::RewindFailedNeedsHand(words.clone())),
    }
}
