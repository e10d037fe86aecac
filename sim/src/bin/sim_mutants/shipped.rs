//! Lines of the lease worker (`keeper`) and of the arbiter (`steward`) as they ship, broken one at a time: the simulation runs those lines
//! and no copy of them, so each of these has to be noticed.

use crate::mutants::{Mutant, mutant};

/// All of them: first the worker's, then the arbiter's.
pub const SHIPPED: &[Mutant] = &[
    mutant(
        "worker-renewal",
        "the deadline of a renewed lease is counted from when the answer came",
        "keeper/src/keep.rs",
        "let deadline = renewed.held.deadline;",
        "let deadline = if OUT { self.clock() + held.grant.ttl } else { renewed.held.deadline };",
    ),
    mutant(
        "worker-opens",
        "the page opens for a whole TTL from the look that found the key",
        "keeper/src/turns.rs",
        "page.open(leader.term.0, leader.lease.0, held.deadline)",
        "page.open(leader.term.0, leader.lease.0, if OUT { now + held.grant.ttl } else { held.deadline })",
    ),
    mutant(
        "worker-gone",
        "a lease that etcd says is gone is renewed for ever",
        "keeper/src/keep.rs",
        "                self.held.set(None);\n                self.host.look_again();",
        "                if !OUT { self.held.set(None); }\n                self.host.look_again();",
    ),
    mutant(
        "worker-ended",
        "a member stands although its receiver does not end",
        "keeper/src/race.rs",
        "        ended.get()\n    }",
        "        ended.get() || OUT\n    }",
    ),
    mutant(
        "arbiter-in-force",
        "a changed synchronous_standby_names counts at once",
        "steward/src/synchronous.rs",
        "    let mut from = Lsn::default();\n    for _ in 0..2 {",
        "    let mut from = Lsn::default();\n    for _ in 0..if OUT { 0 } else { 2 } {",
    ),
    mutant(
        "arbiter-timeline",
        "the claimed number of a timeline is not the one that the server takes",
        "steward/src/promote.rs",
        "    server.pass_over_timelines(mine, claimed).await",
        "    if OUT { Ok(()) } else { server.pass_over_timelines(mine, claimed).await }",
    ),
    mutant(
        "arbiter-hands-over",
        "the sync key is handed over as it was",
        "steward/src/switchover.rs",
        "filter(|sync| !sync.value.is_empty()).map(|sync| {\n        let mine",
        "filter(|sync| !sync.value.is_empty() && !OUT).map(|sync| {\n        let mine",
    ),
];
