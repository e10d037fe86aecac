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
NODES=(n3 n2 n1)
FILE=$DIR/n1/node.yml # the one that commands are given
CONNECTION="postgresql://postgres:$PASSWORD@$HOSTS/postgres?target_session_attrs=read-write"

. demo/common.sh

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
    - local all all scram-sha-256
    - host all all 127.0.0.1/32 scram-sha-256
    - host replication replicator 127.0.0.1/32 scram-sha-256
  parameters:
    unix_socket_directories: $DIR/$name

tags:
  failover_priority: $((4 - number))
YAML
}


all_healthy() {
  local rows
  rows=$(tenure list --format tsv 2>/dev/null) || return 1
  [ "$(grep -c 'Leader.*running' <<<"$rows")" = 1 ] && [ "$(grep -c 'Replica.*streaming' <<<"$rows")" = 2 ]
}

start() {
  [ ! -e "$DIR" ] || stop
  can_start "make demo" "$ETCD_PORT" "$ETCD_PEER_PORT" "${PG_PORTS[@]}" "${REST_PORTS[@]}"
  start_etcd

  say "three nodes from empty directories, Postgres on ports ${PG_PORTS[*]}"
  local began
  began=$(date +%s%N)
  for number in 1 2 3; do
    configuration $number | launch_node "n$number"
  done
  wait_for 60 "primary with two streaming standbys" all_healthy
  echo "three members after $((($(date +%s%N) - began) / 1000000)) ms"

  say "tenure list"
  tenure list
  say "SELECT * FROM tenure.status()"
  "$PG_BIN/psql" -Xq -P pager=off -d "$CONNECTION" -c "SELECT * FROM tenure.status()"

  say "tenure switchover --force, under a writer that inserts every 10 ms"
  live "primary with two streaming standbys" all_healthy \
    under_load --ports "$(IFS=,; echo "${PG_PORTS[*]}")" -- switchover --force

  farewell
}

case ${1:-} in
  start) start ;;
  stop) stop ;;
  *) fail "usage: demo.sh start|stop" ;;
esac
