-- What CREATE EXTENSION pg_tenure runs: the schema, the functions, who may call them.
\echo Use "CREATE EXTENSION pg_tenure" to load this file. \quit

-- Created here rather than named in the control file: a schema that somebody else made beforehand is
-- an error instead of a trap, and DROP EXTENSION takes it along.
CREATE SCHEMA tenure;
COMMENT ON SCHEMA tenure IS 'pg_tenure: status of the cluster, and commands to it';
CREATE SCHEMA tenure_internal;
COMMENT ON SCHEMA tenure_internal IS 'pg_tenure: what the arbiter calls, and nobody else';

-- Those who may act, and those who may besides configure the cluster. A role belongs to the whole server, so it may be there already, and it
-- stays.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'tenure_operator') THEN
        CREATE ROLE tenure_operator NOLOGIN;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'tenure_admin') THEN
        CREATE ROLE tenure_admin NOLOGIN;
    END IF;
END
$$;
GRANT tenure_operator TO tenure_admin;

-- Reading ---------------------------------------------------------------------------------------------
-- All from shared memory: no waiting, no etcd. Parallel-restricted, because what changes by the
-- millisecond should be read once.

CREATE FUNCTION tenure.lease(
    OUT scope text, OUT name text, OUT fence text, OUT term bigint, OUT lease text,
    OUT deadline_left interval, OUT worker_pid integer, OUT arbiter_attached boolean, OUT etcd_age interval,
    OUT commits_waited bigint, OUT commits_refused bigint, OUT commits_cut bigint, OUT draining_for interval,
    OUT fencing_token bigint)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 1 AS 'MODULE_PATHNAME', 'lease_wrapper';
COMMENT ON FUNCTION tenure.lease() IS 'this server''s lease and fence: open, expired, draining, closed or unmanaged';

CREATE FUNCTION tenure.status(
    OUT member text, OUT host text, OUT port integer, OUT role text, OUT state text, OUT timeline integer,
    OUT receive_lsn pg_lsn, OUT receive_lag bigint, OUT replay_lsn pg_lsn, OUT replay_lag bigint,
    OUT tags jsonb, OUT pending_restart boolean, OUT pending_restart_reason jsonb, OUT scheduled_restart jsonb,
    OUT age interval, OUT citus_group integer)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 3 AS 'MODULE_PATHNAME', 'status_wrapper';
COMMENT ON FUNCTION tenure.status() IS 'the cluster''s members as last seen in etcd, and how long ago that was; lags in bytes; on a Citus coordinator those of all groups';

CREATE FUNCTION tenure.config() RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'config_wrapper';
COMMENT ON FUNCTION tenure.config() IS 'the cluster''s dynamic configuration as last seen in etcd';

CREATE FUNCTION tenure.history(
    OUT timeline integer, OUT lsn pg_lsn, OUT reason text, OUT at timestamptz, OUT new_leader text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 10 AS 'MODULE_PATHNAME', 'history_wrapper';
COMMENT ON FUNCTION tenure.history() IS 'the promotions this cluster went through';

CREATE FUNCTION tenure.events(OUT at timestamptz, OUT kind text, OUT term bigint, OUT event text, OUT cause text)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 100 AS 'MODULE_PATHNAME', 'events_wrapper';
COMMENT ON FUNCTION tenure.events() IS 'what was decided on this server since it started, when and why';

CREATE FUNCTION tenure.timings(
    OUT timing text, OUT at_most_seconds double precision, OUT count bigint, OUT total_seconds double precision)
RETURNS SETOF record
LANGUAGE c VOLATILE PARALLEL RESTRICTED ROWS 40 AS 'MODULE_PATHNAME', 'timings_wrapper';
COMMENT ON FUNCTION tenure.timings() IS 'how many renewals of the lease, commits held at the fence, and races took at most so long since the server started';

-- The one that waits: for what this server replays. Declared with pg_lsn, which the library takes as the 64 bits it is.

CREATE FUNCTION tenure.wait_for_lsn(lsn pg_lsn, timeout interval DEFAULT '30 seconds') RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'wait_for_lsn_wrapper';
COMMENT ON FUNCTION tenure.wait_for_lsn(pg_lsn, interval)
    IS 'wait until this server has replayed (as primary: flushed) up to there; false where that takes longer. The next statement then sees it';

-- Views for monitoring: what is above, by names that a query tool lists.

CREATE VIEW tenure.members AS SELECT * FROM tenure.status();
COMMENT ON VIEW tenure.members IS 'as tenure.status()';

CREATE VIEW tenure.health AS
WITH own AS (SELECT * FROM tenure.status() WHERE citus_group IS NOT DISTINCT FROM nullif(current_setting('tenure.group'), '-1')::integer)
SELECT l.scope, l.name AS member, l.fence, l.term, l.deadline_left, l.etcd_age, l.arbiter_attached,
    (SELECT m.member FROM own m WHERE m.role IN ('Leader', 'Standby Leader')) AS leader,
    s.members, s.streaming, s.synchronous, s.pending_restarts, s.greatest_replay_lag,
    coalesce((tenure.config() -> 'pause')::boolean, false) AS paused,
    l.commits_waited, l.commits_refused, l.commits_cut
FROM tenure.lease() l,
    (SELECT count(*) AS members, count(*) FILTER (WHERE m.state IN ('streaming', 'in archive recovery')) AS streaming,
        count(*) FILTER (WHERE m.role IN ('Sync Standby', 'Quorum Standby')) AS synchronous,
        count(*) FILTER (WHERE m.pending_restart) AS pending_restarts, max(m.replay_lag) AS greatest_replay_lag
     FROM own m) s;
COMMENT ON VIEW tenure.health IS 'one row for monitoring: this server''s fence and lease, and its cluster (of Citus: its group) in numbers (lag in bytes)';

CREATE VIEW tenure.version AS
SELECT current_setting('tenure.library_version', true) AS library, current_setting('tenure.library_speech', true) AS speech,
    (SELECT e.extversion FROM pg_extension e WHERE e.extname = 'pg_tenure') AS extension,
    (SELECT a.default_version FROM pg_available_extensions a WHERE a.name = 'pg_tenure') AS installed;
COMMENT ON VIEW tenure.version IS 'releases here: of the library that the server has loaded (and the form of keys and calls that it speaks), of these SQL objects, and of what is installed on this host';

-- Acting ----------------------------------------------------------------------------------------------
-- The lease worker writes the request to etcd; these wait for its answer. citus_group: on a Citus coordinator, which group's;
-- its own where none is given.

CREATE FUNCTION tenure.switchover(candidate text DEFAULT NULL, scheduled_at timestamptz DEFAULT NULL,
    citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'switchover_wrapper';
COMMENT ON FUNCTION tenure.switchover(text, timestamptz, integer) IS 'hand leadership over in a planned way, at once or at a given time';

CREATE FUNCTION tenure.failover(candidate text, citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'failover_wrapper';
COMMENT ON FUNCTION tenure.failover(text, integer) IS 'give leadership to a member, also where there is no leader';

CREATE FUNCTION tenure.pause(citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'pause_wrapper';
COMMENT ON FUNCTION tenure.pause(integer) IS 'stop automatic failover (maintenance)';

CREATE FUNCTION tenure.resume(citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'resume_wrapper';
COMMENT ON FUNCTION tenure.resume(integer) IS 'resume automatic failover';

CREATE FUNCTION tenure.set_config(patch jsonb, citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_config_wrapper';
COMMENT ON FUNCTION tenure.set_config(jsonb, integer) IS 'change the dynamic configuration by a merge patch (null removes), checked before it is stored';

-- The next ones leave a request in etcd, where the member's arbiter finds it; one that nobody takes up is gone after 30 s.

CREATE FUNCTION tenure.restart(member text DEFAULT NULL, only_pending boolean DEFAULT false,
    citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'restart_wrapper';
COMMENT ON FUNCTION tenure.restart(text, boolean, integer) IS 'restart a member''s server, this one''s where none is named; only_pending: only where a setting waits for it';

CREATE FUNCTION tenure.reload(member text DEFAULT NULL, citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'reload_wrapper';
COMMENT ON FUNCTION tenure.reload(text, integer) IS 'make a member, this one where none is named, read its files again';

CREATE FUNCTION tenure.reinit(member text, citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'reinit_wrapper';
COMMENT ON FUNCTION tenure.reinit(text, integer) IS 'replace a standby''s data by a new copy';

CREATE FUNCTION tenure.replay_until(member text, until timestamptz, citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'replay_until_wrapper';
COMMENT ON FUNCTION tenure.replay_until(text, timestamptz, integer) IS 'let a delayed standby replay what was committed up to a time, and stop there';

CREATE FUNCTION tenure.replay_pause(member text, citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'replay_pause_wrapper';
COMMENT ON FUNCTION tenure.replay_pause(text, integer) IS 'let a standby stop its replay where it is';

CREATE FUNCTION tenure.replay_resume(member text, citus_group integer DEFAULT NULL) RETURNS text
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'replay_resume_wrapper';
COMMENT ON FUNCTION tenure.replay_resume(text, integer) IS 'let a standby''s replay go on, by the delay of its tag';

-- For the arbiter --------------------------------------------------------------------------------------

CREATE FUNCTION tenure_internal.attach_arbiter() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'attach_arbiter_wrapper';
COMMENT ON FUNCTION tenure_internal.attach_arbiter() IS 'called by the arbiter: this session is its own, until it ends';
CREATE FUNCTION tenure_internal.standbys_awaited() RETURNS boolean
LANGUAGE c VOLATILE PARALLEL RESTRICTED AS 'MODULE_PATHNAME', 'standbys_awaited_wrapper';
COMMENT ON FUNCTION tenure_internal.standbys_awaited() IS 'called by the arbiter: do commits of this server wait for standbys by now, as its checkpointer has told the backends?';

CREATE FUNCTION tenure_internal.describe(described text) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'describe_wrapper';
COMMENT ON FUNCTION tenure_internal.describe(text) IS 'called by the arbiter: what the member key is to say besides, as settings that wait for a restart';

CREATE FUNCTION tenure_internal.drain(most_ms integer) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'drain_wrapper';
COMMENT ON FUNCTION tenure_internal.drain(integer) IS 'called by the arbiter: hold new writing transactions for a switchover, for at most so long (a minute) and no longer than this session lives';

CREATE FUNCTION tenure_internal.undrain() RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'undrain_wrapper';
COMMENT ON FUNCTION tenure_internal.undrain() IS 'called by the arbiter: the switchover was called off, who waits goes on';

CREATE FUNCTION tenure_internal.seal() RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'seal_wrapper';
COMMENT ON FUNCTION tenure_internal.seal() IS 'called by the arbiter: nobody commits here any more until this server is started again, as another one is to go on from its last commit';

CREATE FUNCTION tenure_internal.close_gate(most_ms integer, reads boolean, patience_ms integer) RETURNS integer
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'close_gate_wrapper';
COMMENT ON FUNCTION tenure_internal.close_gate(integer, boolean, integer)
    IS 'called by the arbiter of a Citus node: hold new distributed statements for at most so long, and no longer than this session lives; how many transactions were still under way after patience_ms';

CREATE FUNCTION tenure_internal.await_gate(reads boolean, patience_ms integer) RETURNS integer
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'await_gate_wrapper';
COMMENT ON FUNCTION tenure_internal.await_gate(boolean, integer)
    IS 'called by the arbiter of a Citus node before it closes the gate: wait for transactions that do distributed work by now, while others begin; how many have not ended after patience_ms';

CREATE FUNCTION tenure_internal.open_gate() RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'open_gate_wrapper';
COMMENT ON FUNCTION tenure_internal.open_gate() IS 'called by the arbiter of a Citus node: distributed statements go on';

CREATE FUNCTION tenure_internal.promise(until_boottime_ns bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'promise_wrapper';
COMMENT ON FUNCTION tenure_internal.promise(bigint) IS 'called by the arbiter in failsafe_mode: do not take the leader key until then';

CREATE FUNCTION tenure_internal.end_promise(until_boottime_ns bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'end_promise_wrapper';
COMMENT ON FUNCTION tenure_internal.end_promise(bigint) IS 'called by the arbiter: the leader that was promised this holds its key for longer than that';

CREATE FUNCTION tenure_internal.extend_lease(until_boottime_ns bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'extend_lease_wrapper';
COMMENT ON FUNCTION tenure_internal.extend_lease(bigint) IS 'called by the arbiter in failsafe_mode: every member has promised not to race until then';

CREATE FUNCTION tenure_internal.note_slots(publication text) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'note_slots_wrapper';
COMMENT ON FUNCTION tenure_internal.note_slots(text) IS 'called by the arbiter of the leader: what the lease worker publishes of its slots';

CREATE FUNCTION tenure_internal.copy_slot(name text, plugin text, database oid, two_phase boolean, restart_lsn bigint,
    confirmed_flush_lsn bigint, catalog_xmin bigint) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'copy_slot_wrapper';
COMMENT ON FUNCTION tenure_internal.copy_slot(text, text, oid, boolean, bigint, bigint, bigint)
    IS 'called by the arbiter of a standby: a temporary copy of a logical slot of the primary; false where its WAL is not here';

CREATE FUNCTION tenure_internal.keep_slot(name text) RETURNS void
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'keep_slot_wrapper';
COMMENT ON FUNCTION tenure_internal.keep_slot(text) IS 'called by the arbiter of a standby: this session''s temporary copy was shown to be safe and becomes permanent';

CREATE FUNCTION tenure_internal.log_running_transactions() RETURNS bigint
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'log_running_transactions_wrapper';
COMMENT ON FUNCTION tenure_internal.log_running_transactions() IS 'called by the arbiter of the primary: a record at which copies of logical slots can become consistent';

-- Rights -----------------------------------------------------------------------------------------------
-- Nothing for PUBLIC. Those for the arbiter check for a superuser besides.

REVOKE ALL ON SCHEMA tenure, tenure_internal FROM PUBLIC;
REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tenure, tenure_internal FROM PUBLIC;
GRANT SELECT ON tenure.members, tenure.health, tenure.version TO pg_monitor, tenure_operator;
GRANT USAGE ON SCHEMA tenure TO pg_monitor, tenure_operator;
GRANT EXECUTE ON FUNCTION tenure.lease(), tenure.status(), tenure.config(), tenure.history(), tenure.events(), tenure.timings(),
    tenure.wait_for_lsn(pg_lsn, interval)
    TO pg_monitor, tenure_operator;
GRANT EXECUTE ON FUNCTION tenure.switchover(text, timestamptz, integer), tenure.failover(text, integer), tenure.pause(integer), tenure.resume(integer),
    tenure.restart(text, boolean, integer), tenure.reload(text, integer), tenure.reinit(text, integer),
    tenure.replay_until(text, timestamptz, integer), tenure.replay_pause(text, integer), tenure.replay_resume(text, integer)
    TO tenure_operator;
GRANT EXECUTE ON FUNCTION tenure.set_config(jsonb, integer) TO tenure_admin;
