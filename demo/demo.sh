#!/usr/bin/env bash
# A cluster of three on loopback: etcd, three nodes, a switchover under load. `demo.sh start`, `demo.sh stop`.
set -euo pipefail
cd "$(dirname "$0")/.."

DIR=${DEMO_DIR:-/tmp/pg_tenure-demo}
TARGET=${TENURE_TARGET:-target}
PG_BIN=${PG_BIN:-/usr/lib/postgresql/${PG_MAJOR:-15}/bin}
OFFSET=${DEMO_OFFSET:-0} # moves every port, where something else listens on these
PG_PORTS=($((15431 + OFFSET)) $((15432 + OFFSET)) $((15433 + OFFSET)))
REST_PORTS=($((18001 + OFFSET)) $((18002 + OFFSET)) $((18003 + OFFSET)))
ETCD_PORT=$((12379 + OFFSET))
ETCD_PEER_PORT=$((12380 + OFFSET))
PASSWORD=demo
HOSTS=127.0.0.1:${PG_PORTS[0]},127.0.0.1:${PG_PORTS[1]},127.0.0.1:${PG_PORTS[2]}
CONNECTION="postgresql://postgres:$PASSWORD@$HOSTS/postgres?target_session_attrs=read-write"

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Postgres refuses to run as root: everything of the demo runs as postgres then, else as whoever calls.
if [ "$(id -u)" = 0 ]; then
  OWNER=postgres
  AS_OWNER=(setpriv --reuid postgres --regid postgres --init-groups env "HOME=$DIR")
else
  OWNER=$(id -un)
  AS_OWNER=(env)
fi

# Starts a program in the background, in its own directory, its output in a log, its pid in a file.
launch() {
  local name=$1 home=$2; shift 2
  # exec, so that the pid is the program's own.
  (cd "$home" && exec "${AS_OWNER[@]}" setsid "$@" >>"$DIR/$name.log" 2>&1 </dev/null) &
  echo $! >"$DIR/$name.pid"
}

free_port() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# Everything of the demo has its working directory in $DIR, so nothing else is ever touched.
ours() { case "$(readlink "/proc/$1/cwd" 2>/dev/null || true)" in "$DIR"/*) return 0 ;; *) return 1 ;; esac; }
processes() {
  local process
  for process in /proc/[0-9]*; do
    if ours "${process#/proc/}"; then echo "${process#/proc/}"; fi
  done
}

# Ends the process of a pid file, if it is still one of ours, and waits for it; a planned stop for an arbiter.
end() {
  local name=$1 pid
  pid=$(cat "$DIR/$name.pid" 2>/dev/null) || return 0
  ours "$pid" || return 0
  kill -TERM "$pid" 2>/dev/null || return 0
  for _ in $(seq 300); do
    [ -d "/proc/$pid" ] || return 0
    sleep 0.1
  done
}

stop() {
  [ -d "$DIR" ] || return 0
  # Standbys first would make the last one wait for nobody; all at once would fail over: one after another, etcd last.
  for name in n3 n2 n1 etcd; do end "$name"; done
  local left
  left=$(processes)
  # shellcheck disable=SC2086 # a list of pids
  [ -z "$left" ] || kill -KILL $left 2>/dev/null || true
  rm -rf "$DIR"
  echo "demo: ended, $DIR is removed"
}

configuration() {
  local number=$1 name=n$1 pg=${PG_PORTS[$1-1]} rest=${REST_PORTS[$1-1]}
  cat <<YAML
scope: demo
namespace: /service
name: $name

restapi:
  listen: 127.0.0.1:$rest
  connect_address: 127.0.0.1:$rest

etcd3:
  hosts: 127.0.0.1:$ETCD_PORT

bootstrap:
  dcs:                      # the dynamic configuration, once the cluster exists: tenure show-config
    ttl: 10
    loop_wait: 5
    retry_timeout: 2
    maximum_lag_on_failover: 1048576
    postgresql:
      use_pg_rewind: true
      use_slots: true
  initdb:
    - encoding: UTF8
    - data-checksums

postgresql:
  listen: 127.0.0.1:$pg
  connect_address: 127.0.0.1:$pg
  data_dir: $DIR/$name/data
  bin_dir: $PG_BIN
  pgpass: $DIR/$name/pgpass
  authentication:
    superuser: {username: postgres, password: $PASSWORD}
    replication: {username: replicator, password: $PASSWORD}
    rewind: {username: rewinder, password: $PASSWORD}
  pg_hba:
    - local all all trust
    - host all all 127.0.0.1/32 scram-sha-256
    - host replication replicator 127.0.0.1/32 scram-sha-256
  parameters:
    unix_socket_directories: $DIR/$name

tags:
  failover_priority: $((4 - number))
YAML
}

tenure() { "${AS_OWNER[@]}" "$DIR/bin/tenure" -c "$DIR/n1/node.yml" "$@"; }

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
  local seconds=$1 what=$2 tries; shift 2
  tries=$((seconds * 10))
  for _ in $(seq $tries); do
    if "$@"; then return 0; fi
    for name in etcd n1 n2 n3; do
      if [ -f "$DIR/$name.pid" ] && [ ! -d "/proc/$(cat "$DIR/$name.pid")" ]; then
        tail -n 20 "$DIR/$name.log" >&2
        fail "$name ended while the demo waited for $what; its log is $DIR/$name.log"
      fi
    done
    sleep 0.1
  done
  tail -n 10 "$DIR"/n?.log >&2
  fail "no $what within $seconds s; the logs are $DIR/*.log"
}
etcd_answers() { ETCDCTL_API=3 etcdctl --endpoints "127.0.0.1:$ETCD_PORT" endpoint health >/dev/null 2>&1; }
all_healthy() {
  local rows
  rows=$(tenure list --format tsv 2>/dev/null) || return 1
  [ "$(grep -c 'Leader.*running' <<<"$rows")" = 1 ] && [ "$(grep -c 'Replica.*streaming' <<<"$rows")" = 2 ]
}

start() {
  [ ! -e "$DIR" ] || stop
  for port in "$ETCD_PORT" "$ETCD_PEER_PORT" "${PG_PORTS[@]}" "${REST_PORTS[@]}"; do
    free_port "$port" || fail "port $port is taken: end what listens there (ss -ltnp shows it), or move the demo: make demo DEMO_OFFSET=100"
  done
  for program in "$TARGET/release/tenure" "$TARGET/release/pause" "$PG_BIN/postgres"; do
    [ -x "$program" ] || fail "$program is missing; hint: make demo builds and installs everything"
  done

  say "etcd on port $ETCD_PORT"
  # The programs go where the user postgres can run them: a checkout under /root is closed to it.
  install -d -m 755 "$DIR" "$DIR/bin"
  install -m 755 "$TARGET/release/tenure" "$TARGET/release/pause" "$DIR/bin/"
  install -d -m 700 -o "$OWNER" "$DIR/etcd"
  launch etcd "$DIR/etcd" etcd --name demo --data-dir data --logger zap --log-level warn \
    --listen-client-urls "http://127.0.0.1:$ETCD_PORT" --advertise-client-urls "http://127.0.0.1:$ETCD_PORT" \
    --listen-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" --initial-advertise-peer-urls "http://127.0.0.1:$ETCD_PEER_PORT" \
    --initial-cluster "demo=http://127.0.0.1:$ETCD_PEER_PORT"
  wait_for 20 "answer from etcd" etcd_answers

  say "three nodes from empty directories, Postgres on ports ${PG_PORTS[*]}"
  local began
  began=$(date +%s%N)
  for number in 1 2 3; do
    install -d -m 700 -o "$OWNER" "$DIR/n$number"
    configuration $number >"$DIR/n$number/node.yml"
    chown "$OWNER" "$DIR/n$number/node.yml"
    chmod 600 "$DIR/n$number/node.yml"
    launch "n$number" "$DIR/n$number" "$DIR/bin/tenure" arbiter "$DIR/n$number/node.yml"
  done
  wait_for 60 "primary with two streaming standbys" all_healthy
  echo "three members after $((($(date +%s%N) - began) / 1000000)) ms"

  say "tenure list"
  tenure list
  say "SELECT * FROM tenure.status()"
  "$PG_BIN/psql" -Xq -P pager=off -d "$CONNECTION" -c "SELECT * FROM tenure.status()"

  say "tenure switchover --force, under a writer that inserts every 10 ms"
  "${AS_OWNER[@]}" "$DIR/bin/pause" --ports "$(IFS=,; echo "${PG_PORTS[*]}")" --password "$PASSWORD" -- \
    "$DIR/bin/tenure" -c "$DIR/n1/node.yml" switchover --force ||
    fail "the switchover did not succeed; the logs are $DIR/*.log"
  wait_for 60 "primary with two streaming standbys" all_healthy
  tenure list

  say "the cluster keeps running"
  cat <<TEXT
connect:        psql '$CONNECTION'
operate:        tenure -c $DIR/n1/node.yml list
a node's file:  $DIR/n1/node.yml
logs:           $DIR/*.log
end it:         make demo-stop
TEXT
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) fail "usage: demo.sh start|stop" ;;
esac
