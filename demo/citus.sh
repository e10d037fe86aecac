#!/usr/bin/env bash
# A Citus cluster on loopback: etcd, three coordinators, two worker groups of two, a switchover of one under load.
# `citus.sh start`, `citus.sh stop`.
set -euo pipefail
cd "$(dirname "$0")/.."

DIR=${DEMO_CITUS_DIR:-/tmp/pg_tenure-demo-citus}
TARGET=${TENURE_TARGET:-target}
PG_BIN=${PG_BIN:-/usr/lib/postgresql/${PG_MAJOR:-15}/bin}
OFFSET=${DEMO_OFFSET:-0} # moves every port, where something else listens on these
PG_PORT=$((15441 + OFFSET)) # and the next six
REST_PORT=$((18011 + OFFSET))
ETCD_PORT=$((12389 + OFFSET))
ETCD_PEER_PORT=$((12390 + OFFSET))
PASSWORD=demo
DATABASE=app
NODES=(w2b w2a w1b w1a c3 c2 c1)
FILE=$DIR/c1/node.yml # the one that commands are given
MEMBERS=(c1:0 c2:0 c3:0 w1a:1 w1b:1 w2a:2 w2b:2) # name:group
COORDINATOR_PORTS=$PG_PORT,$((PG_PORT + 1)),$((PG_PORT + 2))
HOSTS=127.0.0.1:$PG_PORT,127.0.0.1:$((PG_PORT + 1)),127.0.0.1:$((PG_PORT + 2))
CONNECTION="postgresql://postgres:$PASSWORD@$HOSTS/$DATABASE?target_session_attrs=read-write"

. demo/common.sh

configuration() {
  local number=$1 name=$2 group=$3
  cat <<YAML
scope: demo
namespace: /service
name: $name

citus:
  group: $group                # 0 coordinates; 1, 2, ... hold the shards
  database: $DATABASE

restapi:
  listen: 127.0.0.1:$((REST_PORT + number))
  connect_address: 127.0.0.1:$((REST_PORT + number))

etcd3:
  hosts: 127.0.0.1:$ETCD_PORT

bootstrap:
  dcs:                      # each group's dynamic configuration, once it exists: tenure show-config --group $group
    ttl: 10
    loop_wait: 5
    retry_timeout: 2
    postgresql:
      use_pg_rewind: true
      use_slots: true
  initdb:
    - encoding: UTF8
    - data-checksums

postgresql:
  listen: 127.0.0.1:$((PG_PORT + number))
  connect_address: 127.0.0.1:$((PG_PORT + number))
  data_dir: $DIR/$name/data
  bin_dir: $PG_BIN
  pgpass: $DIR/$name/pgpass
  authentication:
    superuser: {username: postgres, password: $PASSWORD}
    replication: {username: replicator, password: $PASSWORD}
    rewind: {username: rewinder, password: $PASSWORD}
  pg_hba:
    - local all all scram-sha-256
    - host all all 127.0.0.1/32 scram-sha-256
    - host replication replicator 127.0.0.1/32 scram-sha-256
  parameters:
    unix_socket_directories: $DIR/$name
    shared_buffers: 32MB
    citus.node_conninfo: sslmode=prefer   # one machine: there is no certificate here
YAML
}

sql() { "$PG_BIN/psql" -XqAt -P pager=off -d "$CONNECTION" -c "$1"; }
# Three primaries and four secondaries, and every standby streams.
all_registered() {
  local rows
  [ "$(sql "SELECT count(*) FILTER (WHERE noderole = 'primary'), count(*) FILTER (WHERE noderole = 'secondary') FROM pg_dist_node" 2>/dev/null)" = "3|4" ] || return 1
  rows=$(tenure list --format tsv 2>/dev/null) || return 1
  [ "$(grep -c 'Leader.*running' <<<"$rows")" = 3 ] && [ "$(grep -c 'streaming' <<<"$rows")" = 4 ]
}

start() {
  [ ! -e "$DIR" ] || stop
  [ -e "$("$PG_BIN/pg_config" --pkglibdir)/citus.so" ] ||
    fail "the PostgreSQL in $PG_BIN has no Citus (citus.so); hint: install Citus for this version, docs/citus.md says which was tried"
  local ports=() number
  for number in 0 1 2 3 4 5 6; do ports+=($((PG_PORT + number)) $((REST_PORT + number))); done
  can_start "make demo-citus" "$ETCD_PORT" "$ETCD_PEER_PORT" "${ports[@]}"
  start_etcd

  say "three coordinators and two groups of two workers from empty directories, Postgres on ports $PG_PORT to $((PG_PORT + 6))"
  local began member
  began=$(date +%s%N)
  number=0
  for member in "${MEMBERS[@]}"; do
    configuration $number "${member%:*}" "${member#*:}" | launch_node "${member%:*}"
    number=$((number + 1))
  done
  wait_for 120 "cluster whose pg_dist_node names every node" all_registered
  echo "seven nodes, all in pg_dist_node, after $((($(date +%s%N) - began) / 1000000)) ms"

  say "tenure list"
  tenure list
  say "SELECT * FROM pg_dist_node, through the coordinator"
  "$PG_BIN/psql" -Xq -P pager=off -d "$CONNECTION" -c "SELECT nodeid, groupid, nodename, nodeport, noderole, metadatasynced FROM pg_dist_node ORDER BY groupid, noderole"
  say "SELECT * FROM tenure.status(), through the coordinator"
  "$PG_BIN/psql" -Xq -P pager=off -d "$CONNECTION" -c "SELECT * FROM tenure.status()"

  say "a distributed table"
  sql "CREATE TABLE written(id bigint, at timestamptz DEFAULT now()); SELECT create_distributed_table('written', 'id')"

  say "tenure switchover --group 2 --force, under a writer that inserts through the coordinator every 10 ms"
  live "cluster whose pg_dist_node names every node" all_registered \
    under_load --ports "$COORDINATOR_PORTS" --database "$DATABASE" -- switchover --group 2 --force

  farewell
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) fail "usage: citus.sh start|stop" ;;
esac
