//! Who led, and how often another came: a figure of the metrics.

use cluster::name::MemberName;

/// Who was seen to lead last, and how often that was another than before.
#[derive(Debug, Default)]
pub struct Led {
    last: Option<MemberName>,
    /// How often another member came.
    pub changes: u64,
}

impl Led {
    /// While nobody leads, nothing has changed yet: the same member may go on.
    pub fn saw(&mut self, leader: Option<&MemberName>) {
        let Some(leader) = leader else { return };
        let before = self.last.replace(leader.clone());
        self.changes += u64::from(before.is_some_and(|before| before != *leader));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_leader_is_a_change() {
        let name = |name| MemberName::new(name).unwrap();
        let mut led = Led::default();
        for (seen, changes) in
            [(None, 0), (Some("n1"), 0), (Some("n1"), 0), (None, 0), (Some("n1"), 0), (Some("n2"), 1), (None, 1), (Some("n1"), 2)]
        {
            led.saw(seen.map(name).as_ref());
            assert_eq!(led.changes, changes, "{seen:?}");
        }
    }
}
