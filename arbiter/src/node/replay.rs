//! The delay of this standby's replay that an operator wishes in place of the configured one (`duties/replay.rs` carries it out).

use crate::postgres::conf::Recovery;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Mutex;

const SETTING: &str = "recovery_min_apply_delay";

/// The delay that an operator's wish puts in place of the configured one; 0 for none. It ends with this arbiter; a pause does not.
#[derive(Debug, Default)]
pub struct Replay {
    delay_ms: AtomicU64,
    /// Held while one wish is carried out.
    pub one_at_a_time: Mutex<()>,
}

impl Replay {
    /// The recovery settings with it.
    pub fn over(&self, recovery: &Recovery) -> Recovery {
        let (mut recovery, delay) = (recovery.clone(), self.delay_ms.load(Ordering::Relaxed));
        if let Recovery::Standby { extra, .. } = &mut recovery
            && delay > 0
        {
            extra.insert(SETTING.to_owned(), format!("{delay}ms"));
        }
        recovery
    }

    /// Puts a delay in place of the configured one, or that back.
    pub fn set(&self, delay: Option<Duration>) {
        self.delay_ms.store(delay.map_or(0, |delay| u64::try_from(delay.as_millis()).unwrap_or(u64::MAX).max(1)), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn the_operators_delay_stands_in_place_of_the_configured_one() {
        let extra = BTreeMap::from([(SETTING.to_owned(), "3600s".to_owned())]);
        let configured = Recovery::Standby { primary_conninfo: None, primary_slot_name: None, extra };
        let in_force = |recovery: &Recovery| match recovery {
            Recovery::Standby { extra, .. } => extra.get(SETTING).cloned(),
            Recovery::None => None,
        };
        let replay = Replay::default();
        assert_eq!(in_force(&replay.over(&configured)).as_deref(), Some("3600s"));
        replay.set(Some(Duration::from_millis(1234)));
        assert_eq!(in_force(&replay.over(&configured)).as_deref(), Some("1234ms"));
        assert_eq!(replay.over(&Recovery::None), Recovery::None);
        replay.set(None);
        assert_eq!(replay.over(&configured), configured);
    }
}
