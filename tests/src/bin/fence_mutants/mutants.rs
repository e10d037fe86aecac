//! The guards of the fence, and how each is taken out.

/// One guard taken out.
pub struct Mutant {
    /// One word or two.
    pub name: &'static str,
    /// What the guard is for, for the table.
    pub guard: &'static str,
    /// Where.
    pub file: &'static str,
    /// What stands there.
    pub from: &'static str,
    /// What stands there instead.
    pub to: &'static str,
    /// Test file and test; every one has to fail.
    pub stories: &'static [(&'static str, &'static str)],
}

const FENCE: &str = "extension/src/fence/mod.rs";
const COMMIT: &str = "extension/src/fence/commit.rs";
const STANDBYS: &str = "extension/src/fence/standbys.rs";
const REACH: &str = "extension/src/fence/reach.rs";
const STATEMENT: &str = "extension/src/fence/statement.rs";
const SESSION: &str = "extension/src/fence/session.rs";
const RULE: &str = "cluster/src/fence.rs";
const TENURE: &str = "keeper/src/tenure.rs";
const RACE: &str = "keeper/src/race.rs";
const REGISTRATION: &str = "extension/src/shmem/registration.rs";
const UPSTREAM: &str = "extension/src/hold_back/upstream.rs";
const BY_SQL: &str = "extension/src/hold_back/by_sql.rs";
const PRESENCE: &str = "extension/src/shmem/presence.rs";
const KEEP: &str = "keeper/src/keep.rs";
const TURNS: &str = "keeper/src/turns.rs";
const HERE: &str = "extension/src/here.rs";
const INSTANCE: &str = "cluster/src/instance.rs";
const STORE: &str = "cluster/src/store.rs";
const STANDING: &str = "cluster/src/race.rs";
const MARK: &str = "cluster/src/mark.rs";
const DUTY: &str = "cluster/src/duty/mod.rs";

/// All of them.
pub const MUTANTS: &[Mutant] = &[
    Mutant {
        name: "store-went-back",
        guard: "what an etcd says that went back is not believed",
        file: STORE,
        from: "    if view.revision < memory.revision {",
        to: "    if false && view.revision < memory.revision {",
        stories: &[("lost_store", "a_lease_that_a_restored_etcd_renews_keeps_no_fence_open")],
    },
    Mutant {
        name: "doubted-lease",
        guard: "a lease that an etcd renews which is not believed opens no fence",
        file: KEEP,
        from: "if self.host.page().lease() == held.grant.lease.0 && !self.doubts() {",
        to: "if self.host.page().lease() == held.grant.lease.0 {",
        stories: &[("lost_store", "a_lease_that_a_restored_etcd_renews_keeps_no_fence_open")],
    },
    Mutant {
        name: "self-test",
        guard: "where what is read of the standbys can't be true, the fence closes",
        file: "cluster/src/confirmed.rs",
        from: "find(|(_, read)| **read > look.flushed)",
        to: "find(|(_, read)| false && **read > look.flushed)",
        stories: &[("fence_standby", "where_the_fence_would_read_something_else_it_stays_closed")],
    },
    Mutant {
        name: "pre-commit",
        guard: "before commit: past the deadline it is refused",
        file: COMMIT,
        from: "    admit(page, what, Began::WithItsTransaction);",
        to: "    if what != \"commit\" { admit(page, what, Began::WithItsTransaction); }",
        stories: &[
            ("fence_commit", "a_commit_past_the_deadline_waits_is_refused_and_leaves_nothing"),
            ("fence_commit", "a_sequence_gives_no_new_range_outside_the_lease"),
            ("fence_commit", "a_drain_lets_end_what_began_before_and_holds_what_begins_after"),
        ],
    },
    Mutant {
        name: "pre-prepare",
        guard: "before PREPARE TRANSACTION: the same",
        file: COMMIT,
        from: "    admit(page, what, Began::WithItsTransaction);",
        to: "    if what == \"commit\" { admit(page, what, Began::WithItsTransaction); }",
        stories: &[("fence_commit", "nothing_is_prepared_past_the_deadline")],
    },
    Mutant {
        name: "session-ends",
        guard: "a commit whose session is ended while it waits does not pass",
        file: COMMIT,
        from: "Waited::SessionEnds => error::refused_at_end(what),",
        to: "Waited::SessionEnds => {}",
        stories: &[("fence_commit", "a_commit_that_waits_when_its_session_is_ended_is_refused_and_not_unknown")],
    },
    Mutant {
        name: "wait",
        guard: "a renewal within tenure.fence_wait is only latency",
        file: COMMIT,
        from: "page.wait_renewed_or_end(now + guc::fence_wait(), |now| match verdict(now) {",
        to: "page.wait_renewed_or_end(now, |now| match verdict(now) {",
        stories: &[
            ("fence_commit", "a_renewal_in_time_is_only_latency"),
            ("fence_commit", "a_commit_past_the_deadline_waits_is_refused_and_leaves_nothing"),
        ],
    },
    Mutant {
        name: "commit-prepared",
        guard: "COMMIT PREPARED, which has no xid",
        file: STATEMENT,
        from: "TRANS_STMT_COMMIT_PREPARED => \"commit the prepared transaction\",",
        to: "TRANS_STMT_COMMIT_PREPARED => return false,",
        stories: &[
            ("fence_commit", "a_prepared_transaction_is_committed_inside_the_lease_only"),
            ("fence_standby", "a_cancelled_end_of_a_prepared_transaction_never_acknowledges"),
        ],
    },
    Mutant {
        name: "rollback-prepared",
        guard: "ROLLBACK PREPARED, which has no xid",
        file: STATEMENT,
        from: "TRANS_STMT_ROLLBACK_PREPARED => \"roll back the prepared transaction\",",
        to: "TRANS_STMT_ROLLBACK_PREPARED => return false,",
        stories: &[
            ("fence_commit", "a_prepared_transaction_is_rolled_back_inside_the_lease_only"),
            ("fence_standby", "a_cancelled_end_of_a_prepared_transaction_never_acknowledges"),
        ],
    },
    Mutant {
        name: "late-xid",
        guard: "an xid drawn behind the look before the commit (NOTIFY)",
        file: COMMIT,
        from: "pending.two_phase_end.is_some() || has_xid());",
        to: "pending.two_phase_end.is_some());",
        stories: &[("fence_commit", "an_xid_that_is_drawn_while_committing_is_seen_afterwards")],
    },
    Mutant {
        name: "late-xid-filter",
        guard: "the same in the look before the guard",
        file: COMMIT,
        from: "XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => has_xid() || ",
        to: "XACT_EVENT_COMMIT | XACT_EVENT_PREPARE => ",
        stories: &[("fence_commit", "an_xid_that_is_drawn_while_committing_is_seen_afterwards")],
    },
    Mutant {
        name: "acknowledge-deadline",
        guard: "durable, and the deadline has passed meanwhile: cut",
        file: COMMIT,
        from: "    if !may_acknowledge(fence, now) {\n        return Some",
        to: "    if false {\n        return Some",
        stories: &[
            ("fence_standby", "a_commit_whose_deadline_passes_while_it_waits_is_cut"),
            ("fence_commit", "an_xid_that_is_drawn_while_committing_is_seen_afterwards"),
        ],
    },
    Mutant {
        name: "acknowledge-standby",
        guard: "durable, and the standbys have not confirmed: cut",
        file: COMMIT,
        from: "    (!confirmed).then(",
        to: "    (!confirmed && false).then(",
        stories: &[
            ("fence_standby", "a_wait_for_a_standby_that_is_cancelled_never_acknowledges"),
            ("fence_standby", "a_cancelled_prepare_never_acknowledges"),
            ("fence_standby", "a_cancelled_end_of_a_prepared_transaction_never_acknowledges"),
            ("fence_standby", "statement_timeout_never_makes_an_acknowledgement"),
        ],
    },
    Mutant {
        name: "after-prepare",
        guard: "the same after PREPARE TRANSACTION",
        file: COMMIT,
        from: "XACT_EVENT_PREPARE => after_commit(prepared_end),",
        to: "XACT_EVENT_PREPARE => restore_synchronous_commit(PENDING.take()),",
        stories: &[
            ("fence_standby", "a_cancelled_prepare_never_acknowledges"),
            ("fence_standby", "a_commit_whose_deadline_passes_while_it_waits_is_cut"),
        ],
    },
    Mutant {
        name: "after-two-phase",
        guard: "the same after COMMIT PREPARED and ROLLBACK PREPARED",
        file: COMMIT,
        from: "    pending.two_phase_end = Some(unsafe { pg_sys::XactLastRecEnd });",
        to: "    pending.writes |= unsafe { pg_sys::XactLastRecEnd } == 1;",
        stories: &[
            ("fence_standby", "a_cancelled_end_of_a_prepared_transaction_never_acknowledges"),
            ("fence_standby", "a_commit_whose_deadline_passes_while_it_waits_is_cut"),
        ],
    },
    Mutant {
        name: "struck-standby",
        guard: "who is let go because no standby is named any more is acknowledged, not cut",
        file: STANDBYS,
        from: "if status & 1 == 0 { standbys_named() } else { status & 2 != 0 }",
        to: "standbys_named() || status == u8::MAX",
        stories: &[("fence_standby", "who_waits_when_the_last_standby_is_struck_from_the_list_is_acknowledged")],
    },
    Mutant {
        name: "unlogged",
        guard: "what wrote no WAL is neither awaited nor cut",
        file: COMMIT,
        from: "pending.wrote_wal = unsafe { pg_sys::XactLastRecEnd } != 0;",
        to: "pending.wrote_wal = unsafe { pg_sys::XactLastRecEnd } != 1;",
        stories: &[("fence_standby", "what_no_standby_ever_gets_is_not_awaited")],
    },
    Mutant {
        name: "raise",
        guard: "synchronous_commit is raised to tenure.minimum_synchronous_commit",
        file: COMMIT,
        from: "    raise_synchronous_commit();\n    let mut pending",
        to: "    let mut pending",
        stories: &[("fence_standby", "no_session_lowers_synchronous_commit_below_the_clusters_least")],
    },
    Mutant {
        name: "named-since",
        guard: "where standbys were named since the statement began too",
        file: COMMIT,
        from: "if below && (standbys_named() || standbys_awaited()) {",
        to: "if below && standbys_named() {",
        stories: &[("fence_standby", "one_long_call_waits_for_standbys_that_were_named_since_it_began")],
    },
    Mutant {
        name: "outside",
        guard: "what acts outside of its transaction is judged before it acts",
        file: STATEMENT,
        from: "                    admit(page, what, Began::WithItsTransaction);\n                }\n                false",
        to: "                    let _ = (page, what);\n                }\n                false",
        stories: &[
            ("fence_outside", "databases_and_tablespaces_are_touched_inside_the_lease_only"),
            ("fence_outside", "a_publisher_hears_nothing_of_what_is_refused"),
        ],
    },
    Mutant {
        name: "upstream-standbys",
        guard: "a publisher hears of what the standbys have",
        file: UPSTREAM,
        from: "may_acknowledge_now() && flushed_by_standbys().is_none_or(|confirmed| confirmed >= end)",
        to: "may_acknowledge_now() && flushed_by_standbys().is_none_or(|confirmed| confirmed <= end || confirmed > end)",
        stories: &[("fence_logical", "a_subscription_confirms_upstream_only_what_the_standbys_have")],
    },
    Mutant {
        name: "upstream-deadline",
        guard: "and inside the lease only",
        file: UPSTREAM,
        from: "may_acknowledge_now() && flushed_by_standbys()",
        to: "(may_acknowledge_now() || end > 0) && flushed_by_standbys()",
        stories: &[("fence_logical", "a_subscription_confirms_upstream_inside_the_lease_only")],
    },
    Mutant {
        name: "by-sql",
        guard: "who reads a slot by SQL waits for the standbys",
        file: BY_SQL,
        from: "if decodes && !REFUSED.get() {",
        to: "if decodes && REFUSED.get() {",
        stories: &[("fence_logical", "who_reads_a_slot_by_sql_sees_no_commit_that_waits")],
    },
    Mutant {
        name: "drain-time",
        guard: "a drain ends after its time",
        file: RULE,
        from: "self.mode == Mode::Draining && now < self.draining_until",
        to: "self.mode == Mode::Draining && now >= self.draining_since",
        stories: &[("fence_commit", "a_drain_ends_with_its_time_and_with_its_session")],
    },
    Mutant {
        name: "wall-clock",
        guard: "a wall clock that jumps ahead closes until the next renewal",
        file: RULE,
        from: "if gained > WALL_TOLERANCE { now + gained } else { now }",
        to: "if gained > WALL_TOLERANCE && at_renewal_ns == 1 { now + gained } else { now }",
        stories: &[("fence_commit", "a_wall_clock_that_jumps_ahead_closes_until_the_next_renewal")],
    },
    Mutant {
        name: "drain-session",
        guard: "and with its session",
        file: PRESENCE,
        from: "        page.undrain_of(own_pid());\n",
        to: "",
        stories: &[("fence_commit", "a_drain_ends_with_its_time_and_with_its_session")],
    },
    Mutant {
        name: "gate-session",
        guard: "a closed gate ends with its session",
        file: PRESENCE,
        from: "        page.open_gate_of(own_pid());\n",
        to: "",
        stories: &[("fence_gate", "who_waits_at_the_gate_can_be_cancelled_and_the_gate_opens_by_itself")],
    },
    Mutant {
        name: "restore",
        guard: "and only for the transaction",
        file: COMMIT,
        from: "if let Some(session) = pending.changed_from {",
        to: "if let Some(session) = pending.changed_from.filter(|_| false) {",
        stories: &[("fence_standby", "no_session_lowers_synchronous_commit_below_the_clusters_least")],
    },
    Mutant {
        name: "exiting",
        guard: "a session's end waits for neither lease nor standby",
        file: COMMIT,
        from: "    unsafe { pg_sys::proc_exit_inprogress }",
        to: "    unsafe { pg_sys::proc_exit_inprogress && false }",
        stories: &[("fence_commit", "a_session_ends_without_a_lease"), ("fence_standby", "what_no_standby_ever_gets_is_not_awaited")],
    },
    Mutant {
        name: "background",
        guard: "processes without a client are judged too: autovacuum, logical apply",
        file: FENCE,
        from: "filter(|page| under_postmaster && page.mode()",
        to: "filter(|page| under_postmaster && unsafe { !pg_sys::MyProcPort.is_null() } && page.mode()",
        stories: &[
            ("fence_commit", "autovacuum_commits_inside_the_lease_only"),
            ("fence_commit", "a_subscription_applies_inside_the_lease_only"),
        ],
    },
    Mutant {
        name: "parallel",
        guard: "parallel workers are not judged, their leader is",
        file: COMMIT,
        from: "    if ours {\n        judged_event(event);",
        to: "    if event == XACT_EVENT_PARALLEL_PRE_COMMIT && has_xid() {\n        judged_event(XACT_EVENT_PRE_COMMIT);\n    } else if ours {\n        judged_event(event);",
        stories: &[("fence_commit", "a_parallel_query_in_a_writing_transaction_is_judged_once")],
    },
    Mutant {
        name: "start-closed",
        guard: "after a crash the page is closed until the lease is taken up again",
        file: REGISTRATION,
        from: "{ Mode::Unmanaged } else { Mode::Closed }",
        to: "{ Mode::Unmanaged } else { Mode::Unmanaged }",
        stories: &[("fence_commit", "after_a_crash_the_fence_is_closed_until_the_lease_is_taken_up_again")],
    },
    Mutant {
        name: "drain-before",
        guard: "a drain lets end what began before it",
        file: RULE,
        from: "Mode::Draining if began < page.draining_since => Verdict::Pass,",
        to: "Mode::Draining if began < page.draining_since => Verdict::Wait,",
        stories: &[("fence_commit", "a_drain_lets_end_what_began_before_and_holds_what_begins_after")],
    },
    Mutant {
        name: "drain-after",
        guard: "and holds what begins after",
        file: RULE,
        from: "        Mode::Draining => Verdict::Wait,\n    }",
        to: "        Mode::Draining => Verdict::Pass,\n    }",
        stories: &[("fence_commit", "a_drain_lets_end_what_began_before_and_holds_what_begins_after")],
    },
    Mutant {
        name: "drain-prepared",
        guard: "and lets prepared transactions be ended",
        file: COMMIT,
        from: "(Began::Earlier, _) => Moment::default(),",
        to: "(Began::Earlier, _) => now,",
        stories: &[("fence_commit", "a_drain_lets_end_what_began_before_and_holds_what_begins_after")],
    },
    Mutant {
        name: "drain-deadline",
        guard: "and ends with the deadline",
        file: RULE,
        from: "        Mode::Draining if now >= page.deadline => Verdict::Wait,\n",
        to: "",
        stories: &[("fence_commit", "a_drain_ends_with_the_deadline_too")],
    },
    Mutant {
        name: "read-only",
        guard: "new sessions of a closed server start read-only",
        file: SESSION,
        from: "    set_read_only(c\"on\");\n    MADE_READ_ONLY.set(true);",
        to: "",
        stories: &[
            ("fence_session", "a_client_that_wants_to_write_walks_on"),
            ("fence_session", "a_pooled_session_writes_again_once_the_fence_is_open"),
        ],
    },
    Mutant {
        name: "reopen",
        guard: "a pooled session becomes writable again",
        file: SESSION,
        from: "    if MADE_READ_ONLY.get() && may_acknowledge(page.fence(), page.fence_moment(boottime())) {",
        to: "    if MADE_READ_ONLY.get() && page.term() < 0 {",
        stories: &[("fence_session", "a_pooled_session_writes_again_once_the_fence_is_open")],
    },
    Mutant {
        name: "fence-reads",
        guard: "tenure.fence_reads: queries",
        file: STATEMENT,
        from: "        recovered::hold(page);\n        if fenced {",
        to: "        recovered::hold(page);\n        if fenced && page.term() < 0 {",
        stories: &[("fence_session", "with_fence_reads_no_table_is_read_past_the_deadline")],
    },
    Mutant {
        name: "fence-reads-copy",
        guard: "tenure.fence_reads: COPY TO",
        file: STATEMENT,
        from: "                recovered::hold(page);\n                if guc::fence_reads() {",
        to: "                recovered::hold(page);\n                if guc::fence_reads() && page.term() < 0 {",
        stories: &[("fence_session", "with_fence_reads_no_table_is_copied_out_past_the_deadline")],
    },
    Mutant {
        name: "recovered-start",
        guard: "a restart begins with something to confirm",
        file: REGISTRATION,
        from: "            (*page).recovered_to.store(Recovered::NOT_LOOKED, SeqCst);\n",
        to: "",
        stories: &[
            ("fence_standby", "after_a_crash_nobody_sees_what_the_standby_does_not_have"),
            ("fence_standby", "after_a_crash_giving_the_standby_up_lets_readers_go"),
        ],
    },
    Mutant {
        name: "recovered-query",
        guard: "queries wait until it is confirmed",
        file: STATEMENT,
        from: "        recovered::hold(page);\n        if fenced {",
        to: "        if fenced {",
        stories: &[("fence_standby", "after_a_crash_giving_the_standby_up_lets_readers_go")],
    },
    Mutant {
        name: "recovered-copy",
        guard: "and COPY TO",
        file: STATEMENT,
        from: "                recovered::hold(page);\n                if guc::fence_reads() {",
        to: "                if guc::fence_reads() {",
        stories: &[("fence_standby", "after_a_crash_nobody_sees_what_the_standby_does_not_have")],
    },
    Mutant {
        name: "recovered-query-filter",
        guard: "the same in the look before the guard",
        file: STATEMENT,
        from: "guc::fence_reads() || page.recovered() != Recovered::Settled)",
        to: "guc::fence_reads() || page.term() < 0)",
        stories: &[("fence_standby", "after_a_crash_giving_the_standby_up_lets_readers_go")],
    },
    Mutant {
        name: "copy-filter",
        guard: "the same for COPY TO",
        file: STATEMENT,
        from: "            pg_sys::NodeTag::T_CopyStmt => !(*node.cast::<pg_sys::CopyStmt>()).is_from,",
        to: "            pg_sys::NodeTag::T_CopyStmt => false,",
        stories: &[("fence_session", "with_fence_reads_no_table_is_copied_out_past_the_deadline")],
    },
    Mutant {
        name: "recovered-confirmed",
        guard: "until the standbys have it, not merely until they are connected",
        file: "extension/src/recovered.rs",
        from: "confirmed >= end)",
        to: "confirmed >= end.min(0))",
        stories: &[("fence_standby", "after_a_crash_nobody_sees_what_the_standby_does_not_have")],
    },
    Mutant {
        name: "recovered-look",
        guard: "standbys named later have nothing to do with it: the lease worker looks at the start",
        file: HERE,
        from: "        recovered::look(page());\n",
        to: "",
        stories: &[("fence_standby", "standbys_named_after_the_start_hold_no_reader")],
    },
    Mutant {
        name: "let-go",
        guard: "who is let go before the flag is taken back is no cancelled wait (SyncRepLock)",
        file: COMMIT,
        from: "        wait_for_sync_rep_lock();\n",
        to: "",
        stories: &[("fence_standby", "who_is_let_go_before_the_flag_is_taken_back_is_acknowledged")],
    },
    Mutant {
        name: "promise-leader",
        guard: "failsafe_mode: who leads promises nothing",
        file: TENURE,
        from: "        if leads || self.taking.load(SeqCst) != 0 {",
        to: "        if self.taking.load(SeqCst) != 0 {",
        stories: &[("failsafe", "who_has_promised_does_not_take_the_key")],
    },
    Mutant {
        name: "promise-take",
        guard: "failsafe_mode: who has promised does not take the key",
        file: RACE,
        from: "        host.change(|page| page.begin_taking(now)).then_some(Taking(host))",
        to: "        host.change(|page| page.begin_taking(now));\n        Some(Taking(host))",
        stories: &[("failsafe", "who_has_promised_does_not_take_the_key")],
    },
    Mutant {
        name: "promise-late",
        guard: "failsafe_mode: a key that comes late opens no page while a promise binds",
        file: TURNS,
        from: "unknown || cluster::failsafe::keeps_closed(page.is_promised(now), page.term(), leads_in.0)",
        to: "unknown || cluster::failsafe::keeps_closed(page.is_promised(now), page.term(), page.term())",
        stories: &[("failsafe", "who_has_promised_opens_no_fence_with_a_key_that_came_late")],
    },
    Mutant {
        name: "instance",
        guard: "a name that another instance goes by is left alone",
        file: INSTANCE,
        from: "(Some(theirs), Some(ours)) if theirs != ours => {",
        to: "(Some(theirs), Some(ours)) if theirs != ours && theirs == ours => {",
        stories: &[("copies", "a_lease_worker_leaves_a_name_alone_that_another_instance_took")],
    },
    Mutant {
        name: "restarted-voter",
        guard: "a standby that does not know the end of its WAL says nothing",
        file: STANDING,
        from: "    if !me.end_known && !me.primary {",
        to: "    if !me.end_known && !me.primary && me.streaming {",
        stories: &[("voters", "a_voter_that_restarts_speaks_only_when_it_knows_all_that_it_confirmed")],
    },
    Mutant {
        name: "gate-copy",
        guard: "Citus: COPY FROM waits while a planned change of a worker is under way, and is waited for",
        file: REACH,
        from: "T_CopyStmt => (*node.cast::<pg_sys::CopyStmt>()).is_from,",
        to: "T_CopyStmt => false,",
        stories: &[
            ("fence_gate", "a_closed_gate_holds_what_begins_and_counts_what_is_under_way"),
            ("fence_gate", "who_waits_at_the_gate_can_be_cancelled_and_the_gate_opens_by_itself"),
        ],
    },
    Mutant {
        name: "mark",
        guard: "data of a cluster is never unmanaged",
        file: MARK,
        from: "    match mark {\n        None if settings.scope.is_empty()",
        to: "    match mark.filter(|_| !settings.scope.is_empty()) {\n        None if settings.scope.is_empty()",
        stories: &[("by_hand", "a_deposed_leader_that_is_started_by_hand_acknowledges_nothing")],
    },
    Mutant {
        name: "foreign-server",
        guard: "a server that does not load the library is stopped by the arbiter that finds it",
        file: MARK,
        from: "        None => Some(\"the library pg_tenure is not loaded in it, so nothing fences its commits\".to_owned()),",
        to: "        None => None,",
        stories: &[("by_hand", "a_server_without_the_library_is_stopped_by_the_arbiter_that_finds_it")],
    },
    Mutant {
        name: "answered",
        guard: "who is given the key has answered just now",
        file: DUTY,
        from: "sync.has_standby(name) && local.answered.contains(name);",
        to: "sync.has_standby(name);",
        stories: &[
            ("voters", "in_synchronous_mode_a_crash_is_not_handed_over_to_a_silent_standby"),
            ("voters", "in_quorum_mode_a_crash_is_not_handed_over_to_silent_voters"),
        ],
    },
];
