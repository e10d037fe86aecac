#!/usr/bin/env bash
# How often a primary that is only busy is called sick (docs/sick-primary.md): pgbench as fast as it goes, with a checkpoint every 30 s, on the demo's cluster.
# false-alarms.sh [SECONDS]: prints what each member said of itself, and the count. sick_primary is at its default, observe.
set -euo pipefail
cd "$(dirname "$0")/.."
export DEMO_DIR=${DEMO_DIR:-/tmp/pg_tenure-alarms} DEMO_OFFSET=${DEMO_OFFSET:-500}
SECONDS_LONG=${1:-900} PG_BIN=${PG_BIN:-/usr/lib/postgresql/15/bin}
PORTS=$((15431 + DEMO_OFFSET)),$((15432 + DEMO_OFFSET)),$((15433 + DEMO_OFFSET))
trap 'bash demo/demo.sh stop' EXIT
bash demo/demo.sh start >/dev/null
export PGHOST=127.0.0.1,127.0.0.1,127.0.0.1 PGPORT=$PORTS PGUSER=postgres PGPASSWORD=demo PGDATABASE=postgres PGTARGETSESSIONATTRS=read-write
tenure -c "$DEMO_DIR/n1/node.yml" edit-config --force -p checkpoint_timeout=30s -p max_wal_size=256MB -p checkpoint_completion_target=0.1 >/dev/null
"$PG_BIN/pgbench" -i -q -s 20 2>/dev/null
"$PG_BIN/pgbench" -n -c 16 -j 2 -T "$SECONDS_LONG" | grep -E "number of transactions|tps|latency average"
"$PG_BIN/psql" -XqAt -c "SELECT 'checkpoints: ' || checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter" || true
grep -h "is sick" "$DEMO_DIR"/n?.log | sed 's/^/said: /' || true
echo "called sick: $(cat "$DEMO_DIR"/n?.log | grep -c 'is sick' || true) times in $SECONDS_LONG s"
