#!/usr/bin/env bash
# How often a primary that is only busy is called sick (docs/sick-primary.md): pgbench as fast as it goes, with a checkpoint every 30 s, on the demo's cluster.
# false-alarms.sh [SECONDS]: prints what each member said of itself, and the count. sick_primary is at its default, observe.
# DEPOSITION=yes: in quorum mode with `deposition`, and with one process of the cluster that is not a postmaster frozen for 2 s in each half minute; counts the changes of leader too.
set -euo pipefail
cd "$(dirname "$0")/.."
export DEMO_DIR=${DEMO_DIR:-/tmp/pg_tenure-alarms} DEMO_OFFSET=${DEMO_OFFSET:-500}
SECONDS_LONG=${1:-900} PG_BIN=${PG_BIN:-/usr/lib/postgresql/15/bin}
PORTS=$((15431 + DEMO_OFFSET)),$((15432 + DEMO_OFFSET)),$((15433 + DEMO_OFFSET))
freezer=
trap 'test -z "$freezer" || kill "$freezer"; bash demo/demo.sh stop' EXIT
bash demo/demo.sh start >/dev/null
export PGHOST=127.0.0.1,127.0.0.1,127.0.0.1 PGPORT=$PORTS PGUSER=postgres PGPASSWORD=demo PGDATABASE=postgres PGTARGETSESSIONATTRS=read-write
tenure -c "$DEMO_DIR/n1/node.yml" edit-config --force -p checkpoint_timeout=30s -p max_wal_size=256MB -p checkpoint_completion_target=0.1 >/dev/null
freeze_one_after_the_other() {
    while sleep 28; do
        local found=() pid
        for pid in $(ls /proc | grep -E '^[0-9]+$'); do
            [[ $(readlink "/proc/$pid/cwd" 2>/dev/null) == "$DEMO_DIR"/* ]] || continue
            grep -qE '^postgres: |^tenure|/tenure' <(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) && found+=("$pid")
        done
        pid=${found[RANDOM % ${#found[@]}]}
        echo "froze for 2 s: $(tr '\0' ' ' <"/proc/$pid/cmdline")"
        kill -STOP "$pid" && sleep 2
        kill -CONT "$pid" || true
    done
}
said() { find "$DEMO_DIR" -name '*.log' -type f -exec cat {} + | grep -c "$1" || true; }
promoted=$(said 'promoted: timeline')
if [ -n "${DEPOSITION:-}" ]; then
    tenure -c "$DEMO_DIR/n1/node.yml" edit-config --force -s synchronous_mode=quorum -s deposition=on >/dev/null
    freeze_one_after_the_other &
    freezer=$!
fi
"$PG_BIN/pgbench" -i -q -s 20 2>/dev/null
"$PG_BIN/pgbench" -n -c 16 -j 2 -T "$SECONDS_LONG" | grep -E "number of transactions|tps|latency average"
"$PG_BIN/psql" -XqAt -c "SELECT 'checkpoints: ' || checkpoints_timed + checkpoints_req FROM pg_stat_bgwriter" || true
grep -h "is sick" "$DEMO_DIR"/n?.log | sed 's/^/said: /' || true
echo "called sick: $(cat "$DEMO_DIR"/n?.log | grep -c 'is sick' || true) times in $SECONDS_LONG s"
if [ -n "${DEPOSITION:-}" ]; then
    [ "$(said 'pg_tenure race:')" -gt 0 ] || { echo "no word of a lease worker in the logs below $DEMO_DIR: nothing was counted" >&2; exit 1; }
    echo "voters that spoke: $(said 'race: depose the leader'); called off: $(said 'race: call the deposition off')"
    echo "changes of leader: $(($(said 'promoted: timeline') - promoted)), of these by deposition: $(said 'race: take the leader key from the leader')"
fi
