//! The guards that are taken out, each with where it stands.

/// One guard out.
pub struct Mutant {
    /// For the command line and the switch.
    pub name: &'static str,
    /// What is wrong with it, for the table.
    pub what: &'static str,
    /// The file, from the top of the tree.
    pub file: &'static str,
    /// The text, which occurs once.
    pub from: &'static str,
    /// The text instead; `OUT` is true where the guard is out.
    pub to: &'static str,
    /// Why the simulation can't notice; None where it has to.
    pub survives: Option<&'static str>,
}

/// One that the simulation has to notice.
pub const fn mutant(name: &'static str, what: &'static str, file: &'static str, from: &'static str, to: &'static str) -> Mutant {
    Mutant { name, what, file, from, to, survives: None }
}

/// What the schedule is about that is to show this one; None: everything, with stores that go back and copies.
pub fn focus(name: &str) -> Option<&'static str> {
    let kinds = [
        ("move-", "moves"),
        ("promise", "promises"),
        ("taking", "promises"),
        ("race-", "votes"),
        ("quorum-", "votes"),
        ("reached-", "copies"),
    ];
    kinds.into_iter().find_map(|(begins, focus)| name.starts_with(begins).then_some(focus))
}

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    mutant(
        "receiver",
        "the receiver's stop before the word",
        "keeper/src/race.rs",
        "if word.stands && !word.primary && !word.receives {",
        "if word.stands && !word.primary && !word.receives && !OUT {",
    ),
    mutant(
        "taking",
        "a promise is given while the key is being taken",
        "keeper/src/tenure.rs",
        "if leads || self.taking.load(SeqCst) != 0 ||",
        "if leads || self.taking.load(SeqCst) != 0 && !OUT ||",
    ),
    mutant(
        "promise",
        "a promise of `failsafe_mode` binds nobody",
        "keeper/src/tenure.rs",
        "now.as_nanos() < self.promised_until_ns.load(SeqCst)",
        "now.as_nanos() < self.promised_until_ns.load(SeqCst) && !OUT",
    ),
    mutant(
        "promise-leads",
        "a node that leads promises, too",
        "keeper/src/tenure.rs",
        "let leads = matches!(self.mode(), Mode::Open | Mode::Draining) && now < self.fence().deadline;",
        "let leads = matches!(self.mode(), Mode::Open | Mode::Draining) && now < self.fence().deadline && !OUT;",
    ),
    mutant(
        "promise-page",
        "the page opens although a promise binds",
        "keeper/src/turns.rs",
        "if self.promise_keeps_closed(view, server, leader.term, now) {",
        "if self.promise_keeps_closed(view, server, leader.term, now) && !OUT {",
    ),
    mutant(
        "promise-restart",
        "a server that was started again does not wait for its arbiter's memory of a promise",
        "keeper/src/turns.rs",
        "let unknown = config.failsafe_mode()",
        "let unknown = !OUT && config.failsafe_mode()",
    ),
    mutant(
        "promise-move",
        "a key that waits for a promise opens the page with its move",
        "keeper/src/moving.rs",
        "let waits = moving.judged.is_some_and(",
        "let waits = !OUT && moving.judged.is_some_and(",
    ),
    mutant(
        "promise-led",
        "a leader of before is promised something by who led after it",
        "cluster/src/failsafe.rs",
        "Some(last) if last.value.holder.as_str() != leader => Err(",
        "Some(last) if last.value.holder.as_str() != leader && !OUT => Err(",
    ),
    mutant(
        "until-promoted",
        "the page opens while those of the sync key may lead",
        "keeper/src/turns.rs",
        "!view.is_standby_cluster() && !view.sync",
        "OUT || !view.is_standby_cluster() && !view.sync",
    ),
    mutant(
        "renewal-unproven",
        "a renewal counts wherever the leader key hangs",
        "keeper/src/keep.rs",
        "if ours && self.moving.get().is_none() {",
        "if (ours || OUT) && self.moving.get().is_none() {",
    ),
    mutant(
        "doubted-lease",
        "a lease counts that an etcd keeps which is not believed",
        "keeper/src/keep.rs",
        "== held.grant.lease.0 && !self.doubts() {",
        "== held.grant.lease.0 && (!self.doubts() || OUT) {",
    ),
    mutant(
        "move-shorten",
        "the page counts on the longer lease while a move is under way",
        "keeper/src/moving.rs",
        "self.host.change(|page| page.shorten(moving.onto.deadline));",
        "if !OUT { self.host.change(|page| page.shorten(moving.onto.deadline)); }",
    ),
    mutant(
        "move-unknown",
        "in the move of a lease, unknown is acted on as no",
        "keeper/src/moving.rs",
        "} else if first && !why.is_unknown() {",
        "} else if first && (!why.is_unknown() || OUT) {",
    ),
    mutant(
        "move-again",
        "a move whose outcome is not known is forgotten",
        "keeper/src/moving.rs",
        "let first = self.moving.replace(Some(moving)).is_none();",
        "let first = if OUT { true } else { self.moving.replace(Some(moving)).is_none() };",
    ),
    mutant(
        "own-lease",
        "the page opens by a leader key on any lease",
        "keeper/src/turns.rs",
        ".filter(|leader| leader.lease == held.grant.lease) else {\n            if page.term()",
        ".filter(|leader| leader.lease == held.grant.lease || OUT) else {\n            if page.term()",
    ),
    mutant(
        "close",
        "the page stays open when another leads",
        "keeper/src/turns.rs",
        "if page.term() != 0 || page.held_until().is_some() {",
        "if (page.term() != 0 || page.held_until().is_some()) && !OUT {",
    ),
    mutant(
        "view-before",
        "the deadline is of after the view was read",
        "keeper/src/turns.rs",
        "        if self.change_ttl(&view, held).await {",
        "        let held = if OUT { self.held.get().unwrap_or(held) } else { held };\n        if self.change_ttl(&view, held).await {",
    ),
    mutant(
        "unpromoted",
        "a node that is not promoted in time gives its key up with an open page",
        "keeper/src/turns.rs",
        "            // Closed first: were it promoted at this very moment, it could not commit.\n            self.host.change(|page| page.close());",
        "            if !OUT { self.host.change(|page| page.close()); }",
    ),
    mutant(
        "token",
        "an equal term of keys that were made anew is the same tenure",
        "keeper/src/tenure.rs",
        "&& self.token.load(SeqCst) == token => {",
        "&& (self.token.load(SeqCst) == token || OUT) => {",
    ),
    mutant(
        "renewed-term",
        "the raft term of a keep-alive and of the read after it",
        "cluster/src/lease.rs",
        "(kept.cluster, kept.raft_term) == (read_after.cluster, read_after.raft_term) && kept.revision <= read_after.revision",
        "(kept.cluster, kept.raft_term) == (read_after.cluster, read_after.raft_term) && kept.revision <= read_after.revision || OUT",
    ),
    mutant(
        "margin",
        "the drift margin",
        "cluster/src/lease.rs",
        "    (ttl / 50).max(Duration::from_millis(20))",
        "    if OUT { Duration::ZERO } else { (ttl / 50).max(Duration::from_millis(20)) }",
    ),
    mutant(
        "deadline",
        "the deadline after the commit",
        "cluster/src/fence.rs",
        "        Mode::Closed => false,\n        Mode::Open | Mode::Draining => now < page.deadline,",
        "        Mode::Closed => false,\n        Mode::Open | Mode::Draining => now < page.deadline || OUT,",
    ),
    mutant(
        "race-sync",
        "the sync key in `race::may_stand`",
        "cluster/src/race.rs",
        "&& !sync.value.may_lead(&me.name)\n    {",
        "&& !sync.value.may_lead(&me.name)\n        && !OUT\n    {",
    ),
    mutant(
        "race-quorum",
        "the votes of a quorum",
        "cluster/src/race.rs",
        "(heard.len() < sync.quorum as usize)",
        "(heard.len() < sync.quorum as usize && !OUT)",
    ),
    mutant(
        "race-votes",
        "a voter counts that has more",
        "cluster/src/race.rs",
        "&& (word.timeline, word.lsn) <= (mine.timeline, mine.lsn)",
        "&& ((word.timeline, word.lsn) <= (mine.timeline, mine.lsn) || OUT)",
    ),
    mutant(
        "race-end",
        "a restarted server speaks before it knows its end",
        "cluster/src/race.rs",
        "if !me.end_known && !me.primary {",
        "if !me.end_known && !me.primary && !OUT {",
    ),
    mutant(
        "race-fitter",
        "the fitter one is not waited for",
        "cluster/src/race.rs",
        "if word.stands && !down(name) &&",
        "if !OUT && word.stands && !down(name) &&",
    ),
    mutant(
        "race-resets",
        "who takes over keeps the sync key as it was",
        "cluster/src/race.rs",
        "!sync.is_empty() && !(mine && (me.primary || sync.sync_standby.is_none()))",
        "!OUT && !sync.is_empty() && !(mine && (me.primary || sync.sync_standby.is_none()))",
    ),
    mutant(
        "sync-first",
        "nobody writes a sync key before the first promotion",
        "cluster/src/sync.rs",
        "            _ => synchronous,",
        "            _ => synchronous && !OUT,",
    ),
    mutant(
        "quorum-meddled",
        "a setting that the key does not overlap with is left as it is",
        "cluster/src/quorum.rs",
        "if !overlap(&now, setting) {",
        "if !overlap(&now, setting) && !OUT {",
    ),
    mutant(
        "quorum-setting",
        "the setting changes before the key that trusts in it",
        "cluster/src/quorum.rs",
        "        if overlap(&now, &goal.setting) {\n",
        "        if overlap(&now, &goal.setting) || OUT {\n",
    ),
    mutant(
        "quorum-key",
        "the key is written before the setting that it trusts in",
        "cluster/src/quorum.rs",
        "if overlap(&goal.trust, setting) && follows(",
        "if (overlap(&goal.trust, setting) || OUT) && follows(",
    ),
    mutant(
        "quorum-caught-up",
        "the key trusts who has not caught up",
        "cluster/src/quorum.rs",
        "&& follows(&now, &goal.trust, &applied.caught_up) {",
        "&& (follows(&now, &goal.trust, &applied.caught_up) || OUT) {",
    ),
    mutant(
        "quorum-follows",
        "a key replaces any key at once",
        "cluster/src/quorum.rs",
        "if now != goal.trust && follows(&now, &goal.trust, &nobody) {",
        "if now != goal.trust && (follows(&now, &goal.trust, &nobody) || OUT) {",
    ),
    mutant(
        "quorum-foreign",
        "another leader's key is gone on with",
        "cluster/src/quorum.rs",
        "if key.leader.as_deref() != Some(me.as_str()) || key.until_promoted {",
        "if (key.leader.as_deref() != Some(me.as_str()) || key.until_promoted) && !OUT {",
    ),
    mutant(
        "quorum-start",
        "a primary that starts under its own key awaits nobody",
        "cluster/src/quorum.rs",
        "Setting::of(method, self.voters.len().saturating_sub(self.quorum), self.voters.clone())",
        "if OUT { Setting::nobody() } else { Setting::of(method, self.voters.len().saturating_sub(self.quorum), self.voters.clone()) }",
    ),
    mutant(
        "quorum-again",
        "a promotion under the own key awaits nobody",
        "cluster/src/quorum.rs",
        "if !own.voters.is_empty() {\n            return self.at_start(own);",
        "if !own.voters.is_empty() && !OUT {\n            return self.at_start(own);",
    ),
    mutant(
        "quorum-most",
        "any setting is said to earn the trust in all but one of its standbys",
        "cluster/src/quorum.rs",
        "quorum: if voters.is_empty() { 0 } else { setting.names.len() - setting.count }, voters }",
        "quorum: if voters.is_empty() || OUT { 0 } else { setting.names.len() - setting.count }, voters }",
    ),
    mutant(
        "store-generation",
        "keys of an earlier making are believed",
        "cluster/src/store.rs",
        "if made.generation < memory.making.generation {\n        return Err",
        "if made.generation < memory.making.generation && !OUT {\n        return Err",
    ),
    mutant(
        "store-revision",
        "a smaller revision is believed",
        "cluster/src/store.rs",
        "if view.revision < memory.revision {",
        "if view.revision < memory.revision && !OUT {",
    ),
    mutant(
        "store-term",
        "a smaller term is believed",
        "cluster/src/store.rs",
        "    if term < memory.term {",
        "    if term < memory.term && !OUT {",
    ),
    mutant(
        "store-hear",
        "what other members say that they know is not heard",
        "cluster/src/store.rs",
        ".filter(|theirs| newness(theirs) > newness(memory)) else { return false };",
        ".filter(|theirs| newness(theirs) > newness(memory) && !OUT) else { return false };",
    ),
    mutant(
        "store-founds",
        "anybody founds in an emptied store",
        "cluster/src/store.rs",
        "    if memory.holder.as_ref() != Some(me) {",
        "    if memory.holder.as_ref() != Some(me) && !OUT {",
    ),
    mutant(
        "store-unheard",
        "who led last founds before the others have spoken",
        "cluster/src/store.rs",
        "if unheard.is_empty() { Ok(()) } else { Err(NoFounding::Unheard",
        "if unheard.is_empty() || OUT { Ok(()) } else { Err(NoFounding::Unheard",
    ),
    mutant(
        "store-attempted",
        "the number of a making that was begun is used again",
        "cluster/src/memory.rs",
        "self.making.generation.max(self.attempted).saturating_add(1)",
        "self.making.generation.max(if OUT { 0 } else { self.attempted }).saturating_add(1)",
    ),
    mutant(
        "answered",
        "a crash is handed to who did not answer",
        "cluster/src/duty/mod.rs",
        "let answers = |name: &MemberName| sync.has_standby(name) && local.answered.contains(name) &&",
        "let answers = |name: &MemberName| sync.has_standby(name) && (local.answered.contains(name) || OUT) &&",
    ),
    mutant(
        "reached-stands",
        "a copy of a voter stands",
        "cluster/src/race.rs",
        "if let Some(had) = reached::lacked_by(view, &me.name, mine) {",
        "if let Some(had) = reached::lacked_by(view, &me.name, mine).filter(|_| !OUT) {",
    ),
    mutant(
        "reached-votes",
        "the word of a copy is its original's vote",
        "cluster/src/race.rs",
        "reached::lost_by(view, name, End { timeline: word.timeline, lsn: word.lsn }).is_none()",
        "OUT || reached::lost_by(view, name, End { timeline: word.timeline, lsn: word.lsn }).is_none()",
    ),
    mutant(
        "reached-handed",
        "a crash is handed to a copy",
        "cluster/src/duty/mod.rs",
        "end.is_some_and(|end| reached::lost_by(view, name, end).is_none())",
        "OUT || end.is_some_and(|end| reached::lost_by(view, name, end).is_none())",
    ),
    mutant(
        "timeline",
        "a timeline is taken that somebody claimed",
        "cluster/src/view.rs",
        "mine.max(claimed).max(self.history().current()).next()",
        "mine.max(if OUT { mine } else { claimed }).max(self.history().current()).next()",
    ),
];
