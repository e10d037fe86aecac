#!/usr/bin/env bash
# What a primary that is sick costs, ours and Patroni's: two nodes, synchronous, the first one's data on a disk of its own; a writer goes on all the while.
# sick.sh tenure|patroni hang|slow|eio|full|slots|cpu [SECONDS]: prints after how long another member leads, or that none does within SECONDS.
set -euo pipefail
cd "$(dirname "$0")/.."
[ "$(id -u)" = 0 ] || { echo "sick: needs root, for a disk in a file" >&2; exit 1; }
WHO=$1 FAULT=$2 SECONDS_MOST=${3:-60}
DIR=${DIR:-/tmp/pg_tenure-sick} PG_BIN=${PG_BIN:-/usr/lib/postgresql/15/bin} PATRONI=${PATRONI:-/opt/pg_tenure-tests/patroni/bin}
E=13379 P1=16431 P2=16432 R1=19001 R2=19002
as_postgres=(setpriv --reuid postgres --regid postgres --init-groups env "HOME=$DIR" PGPASSWORD=demo)
end() {
  local process
  fsfreeze -u "$DIR/disk" 2>/dev/null || true
  for process in /proc/[0-9]*; do
    case "$(readlink "$process/cwd" 2>/dev/null)" in "$DIR"/*) kill -KILL "${process#/proc/}" 2>/dev/null || true ;; esac
  done
  sleep 1
  umount -l "$DIR/disk" 2>/dev/null || true
  [ -n "${KEEP:-}" ] || rm -rf "$DIR"
}
trap end EXIT
end
mkdir -p "$DIR/disk" "$DIR/n1" "$DIR/n2" "$DIR/etcd" "$DIR/clients"
truncate -s 4G "$DIR/image"; mkfs.ext4 -q -F -m 0 "$DIR/image"; mount -o loop "$DIR/image" "$DIR/disk"; mkdir "$DIR/disk/d"
printf 0 >"$DIR/flush"
cc -shared -fPIC -o "$DIR/flush.so" tests/src/flush.c -ldl
chmod 755 "$DIR"; chown -R postgres "$DIR/disk" "$DIR/n1" "$DIR/n2" "$DIR/etcd" "$DIR/clients"
launch() { local home=$1; shift; (cd "$home" && exec setsid "${as_postgres[@]}" "$@" >>"$home.log" 2>&1 </dev/null) & }
launch "$DIR/etcd" etcd --data-dir "$DIR/etcd/data" --listen-client-urls http://127.0.0.1:$E --advertise-client-urls http://127.0.0.1:$E --listen-peer-urls http://127.0.0.1:$((E + 1)) --unsafe-no-fsync
install -m 755 "$(command -v tenure)" "$DIR/tenure"
node() { # NUMBER PORT REST DATA
  cat >"$DIR/n$1.yml" <<YAML
scope: sick
name: n$1
restapi: {listen: "127.0.0.1:$3", connect_address: "127.0.0.1:$3"}
etcd3: {hosts: "127.0.0.1:$E"}
bootstrap:
  dcs: {ttl: 20, loop_wait: 1, retry_timeout: 3, synchronous_mode: true, sick_primary: act, sick_primary_pause: 5, postgresql: {use_pg_rewind: true}}
postgresql:
  listen: 127.0.0.1:$2
  connect_address: 127.0.0.1:$2
  data_dir: $4
  bin_dir: $PG_BIN
  pgpass: $DIR/n$1/pgpass
  authentication:
    superuser: {username: postgres, password: demo}
    replication: {username: replicator, password: demo}
    rewind: {username: rewinder, password: demo}
  pg_hba: ["local all all trust", "host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"]
  parameters: {unix_socket_directories: $DIR/n$1, max_connections: 40}
YAML
  if [ "$WHO" = patroni ]; then launch "$DIR/n$1" env LD_PRELOAD="$5" STORY_FLUSH="$DIR/flush" "$PATRONI/patroni" "$DIR/n$1.yml"
  else launch "$DIR/n$1" env LD_PRELOAD="$5" STORY_FLUSH="$DIR/flush" "$DIR/tenure" arbiter "$DIR/n$1.yml"; fi
}
key() { ETCDCTL_API=3 etcdctl --endpoints 127.0.0.1:$E get --print-value-only "/service/sick/$1" 2>/dev/null; }
wait_for() { for _ in $(seq 300); do if "$@"; then return; fi; sleep 0.4; done; tail -n 20 "$DIR"/n?.log; exit 1; }
primary_answers() { "${as_postgres[@]}" "$PG_BIN/psql" -XqAt "host=127.0.0.1 port=$P1 user=postgres dbname=postgres" -c 'SELECT 1' >/dev/null 2>&1 && [ "$(key leader)" = n1 ]; }
synchronous() { [[ "$(key sync)" == *'"sync_standby":"n2"'* ]]; }
sleep 1
node 1 $P1 $R1 "$DIR/disk/d/data" "$DIR/flush.so"
wait_for primary_answers
node 2 $P2 $R2 "$DIR/n2/data" ""
wait_for synchronous
sleep 15
fault() {
  case $FAULT in
    hang) fsfreeze -f "$DIR/disk" ;;
    slow) printf 3000 >"$DIR/flush" ;;
    eio) printf EIO >"$DIR/flush" ;;
    # Three hundredths of one processor for all of the first node. CGROUP: a group of the cpu controller that this may make one below.
    cpu)
      mkdir -p "$CGROUP/sick"
      if [ -e "$CGROUP/sick/cpu.max" ]; then echo "3000 100000" >"$CGROUP/sick/cpu.max"; else echo 100000 >"$CGROUP/sick/cpu.cfs_period_us"; echo 3000 >"$CGROUP/sick/cpu.cfs_quota_us"; fi
      for process in /proc/[0-9]*; do
        case "$(readlink "$process/cwd" 2>/dev/null)" in "$DIR/n1"* | "$DIR/disk"*) echo "${process#/proc/}" >"$CGROUP/sick/cgroup.procs" 2>/dev/null || true ;; esac
      done ;;
    full) fallocate -l $(($(df --output=avail -B1 "$DIR/disk" | tail -1) - 200 * 1048576)) "$DIR/disk/filler" ;;
    slots) for _ in $(seq 60); do (cd "$DIR/clients" && exec "${as_postgres[@]}" bash -c "while ! $PG_BIN/psql -Xq 'host=127.0.0.1 port=$P1 user=postgres dbname=postgres' -c 'SELECT pg_sleep(1000)'; do sleep 0.5; done") >/dev/null 2>&1 & done ;;
  esac
  local began; began=$(date +%s%N)
  while [ "$(key leader)" != n2 ]; do
    if [ $((($(date +%s%N) - began) / 1000000000)) -ge "$SECONDS_MOST" ]; then echo "$WHO, $FAULT: n1 still leads after $SECONDS_MOST s ($(key leader))"; break; fi
    sleep 0.1
  done
  if [ "$(key leader)" = n2 ]; then echo "$WHO, $FAULT: n2 leads after $((($(date +%s%N) - began) / 1000000)) ms"; fi
  sleep 5
  fsfreeze -u "$DIR/disk" 2>/dev/null || true
  if [ -d "$CGROUP/sick" ]; then while read -r process; do echo "$process" >"$CGROUP/cgroup.procs" 2>/dev/null || true; done <"$CGROUP/sick/cgroup.procs"; fi
  printf 0 >"$DIR/flush"; rm -f "$DIR/disk/filler"
  sleep 5
}
CGROUP=${CGROUP:-$(if [ -d /sys/fs/cgroup/cpu ]; then echo /sys/fs/cgroup/cpu; else echo /sys/fs/cgroup; fi)}
export -f fault key; export CGROUP WHO FAULT SECONDS_MOST DIR E P1 PG_BIN
declare -p as_postgres >"$DIR/words"
install -m 755 "${PAUSE:-target/release/pause}" "$DIR/pause"
PGPASSWORD=demo "$DIR/pause" --ports $P1,$P2 -- bash -c ". $DIR/words; fault"
