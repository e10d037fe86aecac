#!/usr/bin/env bash
# The recipes of docs/routing.md for keepalived and vip-manager, run as they stand: two nodes, each in a network of its own, on one bridge; a third
# host asks by ARP who has the address. Needs root, what `make demo` needs, keepalived and iputils-arping; vip-manager where VIP_MANAGER names one of 2.x.
# routing/run.sh keepalived|vip-manager
set -euo pipefail
cd "$(dirname "$0")/../.."
[ "$(id -u)" = 0 ] || { echo "routing: needs root, for network namespaces" >&2; exit 1; }

DIR=${DIR:-/tmp/pg_tenure-routing} RECIPE=${1:-keepalived} ADDRESS=10.77.0.100
PG_BIN=${PG_BIN:-/usr/lib/postgresql/15/bin}
in_() { local where=$1; shift; ip netns exec "rt_$where" "$@"; }
as_postgres() { setpriv --reuid postgres --regid postgres --init-groups env "HOME=$DIR" "$@"; }
end() {
  local process
  for process in /proc/[0-9]*; do
    case "$(readlink "$process/cwd" 2>/dev/null)" in "$DIR"/*) kill -KILL "${process#/proc/}" 2>/dev/null || true ;; esac
  done
  for where in n1 n2 etcd third; do ip netns del "rt_$where" 2>/dev/null || true; done
  ip link del rt_bridge 2>/dev/null || true
  [ -n "${KEEP:-}" ] || rm -rf "$DIR"
}
trap end EXIT
end
mkdir -p "$DIR"; chmod 755 "$DIR"

ip link add rt_bridge type bridge; ip link set rt_bridge up
number=1
for where in n1 n2 etcd third; do
  ip netns add "rt_$where"
  ip link add "rt$number" type veth peer name eth0 netns "rt_$where"
  ip link set "rt$number" master rt_bridge up
  in_ "$where" ip link set lo up; in_ "$where" ip link set eth0 up
  in_ "$where" ip address add "10.77.0.$number/24" dev eth0
  number=$((number + 1))
done

launch() { # WHERE NAME COMMAND...: in a directory of its own
  local where=$1 name=$2; shift 2
  mkdir -p "$DIR/$name"; chown postgres "$DIR/$name"
  (cd "$DIR/$name" && exec ip netns exec "rt_$where" setsid "$@" >>"$DIR/$name.log" 2>&1 </dev/null) &
}
launch etcd etcd setpriv --reuid postgres --regid postgres --init-groups etcd --data-dir "$DIR/etcd/data" \
  --listen-client-urls http://10.77.0.3:2379 --advertise-client-urls http://10.77.0.3:2379 \
  --listen-peer-urls http://127.0.0.1:2380 --unsafe-no-fsync
install -m 755 "$(command -v tenure)" "$DIR/tenure"
for node in 1 2; do
  mkdir -p "$DIR/n$node"; chown postgres "$DIR/n$node"
  cat >"$DIR/n$node/node.yml" <<YAML
scope: routing
name: n$node
restapi: {listen: "0.0.0.0:8008", connect_address: "10.77.0.$node:8008"}
etcd3: {hosts: "10.77.0.3:2379"}
bootstrap:
  dcs: {ttl: 5, loop_wait: 1, retry_timeout: 1}
postgresql:
  listen: "*:5432"
  connect_address: 10.77.0.$node:5432
  data_dir: $DIR/n$node/data
  bin_dir: $PG_BIN
  authentication:
    superuser: {username: postgres, password: x}
    replication: {username: replicator, password: x}
  pg_hba: ["local all all trust", "host all all 10.77.0.0/24 scram-sha-256", "host replication all 10.77.0.0/24 scram-sha-256"]
  parameters: {unix_socket_directories: $DIR/n$node}
YAML
  launch "n$node" "n$node" setpriv --reuid postgres --regid postgres --init-groups "$DIR/tenure" arbiter "$DIR/n$node/node.yml"
done
tenure() { in_ n1 "$DIR/tenure" -c "$DIR/n1/node.yml" "$@"; }
leader() { tenure list --format tsv 2>/dev/null | awk '/Leader.*running/ {for (i = 1; i <= NF; i++) if ($i ~ /^n[12]$/) print $i}'; }
healthy() { [ -n "$(leader)" ] && tenure list --format tsv | grep -q 'Replica.*streaming'; }
for _ in $(seq 150); do if healthy; then break; fi; sleep 0.4; done
healthy || { tail -n 20 "$DIR"/n?.log; exit 1; }

# The recipe itself, out of the page: what stands between its fences.
recipe() { awk -v first="^# $1:" '$0 ~ first {on = 1} on && /^```/ {exit} on' docs/routing.md; }
for node in 1 2; do
  case $RECIPE in
    keepalived)
      # keepalived runs scripts as this user, and only those that nobody else may change.
      { printf 'global_defs {\n    script_user root\n    enable_script_security\n}\n'; recipe keepalived | sed "s/10.0.0.100/$ADDRESS/"; } >"$DIR/keepalived$node.conf"
      launch "n$node" "keepalived$node" keepalived --dont-fork --log-console --vrrp --use-file "$DIR/keepalived$node.conf" --pid "$DIR/k$node.pid" --vrrp_pid "$DIR/v$node.pid" ;;
    vip-manager)
      recipe vip-manager | sed "s/10.0.0.100/$ADDRESS/; s/SCOPE/routing/; s/10.0.0.1:2379/10.77.0.3:2379/; s/trigger-value: n1/trigger-value: n$node/" >"$DIR/vip$node.yml"
      launch "n$node" "vip$node" "${VIP_MANAGER:-vip-manager}" --config "$DIR/vip$node.yml" ;;
    *) echo "routing: keepalived or vip-manager" >&2; exit 1 ;;
  esac
done

# Who has it, as a third host sees it.
holders() { in_ third arping -c 1 -w 1 -I eth0 "$ADDRESS" 2>/dev/null | grep -oE '\[[0-9A-Fa-f:]+\]' | sort -u | wc -l; }
holds() { in_ "$1" ip address show dev eth0 | grep -q "$ADDRESS/"; }
moved_to() { # NODE: within half a minute; prints the milliseconds, and how often two had it
  local began two=0; began=$(date +%s%N)
  until holds "$1" && in_ third env PGPASSWORD=x "$PG_BIN/psql" -XqAt "host=$ADDRESS user=postgres dbname=postgres connect_timeout=1" -c 'SELECT pg_is_in_recovery()' 2>/dev/null | grep -qx f; do
    if [ "$(holders)" -gt 1 ]; then two=$((two + 1)); fi
    if [ $((($(date +%s%N) - began) / 1000000000)) -gt 60 ]; then echo "the address does not come to $1"; tail -n 20 "$DIR"/{keepalived,vip}*.log 2>/dev/null; exit 1; fi
    sleep 0.1
  done
  echo "$2: the address is on $1 and takes writes after $((($(date +%s%N) - began) / 1000000)) ms; seen on two hosts $two times"
}
first=$(leader); other=$([ "$first" = n1 ] && echo n2 || echo n1)
moved_to "$first" "$RECIPE, at the start"
tenure switchover --force >/dev/null
moved_to "$other" "$RECIPE, a switchover"
for _ in $(seq 100); do if healthy; then break; fi; sleep 0.4; done
kill -KILL "$(head -1 "$DIR/$other/data/postmaster.pid")" $(pgrep -f "arbiter $DIR/$other/node.yml") 
moved_to "$first" "$RECIPE, the leader's server and arbiter are killed"
