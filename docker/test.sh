#!/usr/bin/env bash
# test.sh: one node by its environment; both compose files from nothing: up, list, a switchover, a killed postmaster, a killed node, a node that is
# stopped; the pauses that a client of HAProxy sees; down. Writes what it measured into docs/docker.md. Needs what `make images` made, and the ports 5000 and 5001.
#   test.sh [environment] [plain] [citus]      all where nothing is named; citus is left out, and said, where its image is missing
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/common.sh
say() { printf '\n== %s (after %s s)\n' "$*" "$SECONDS"; }
PG_MAJOR=${PG_MAJOR:-15}
RUNS=${RUNS:-3}
find_docker
find_compose

exists() { "$DOCKER" image inspect "$1" >/dev/null 2>&1; }
for image in "pg_tenure:$PG_MAJOR" "pg_tenure-haproxy:$PG_MAJOR" pg_tenure-etcd; do exists "$image" || fail "the image $image is missing; hint: make images"; done
what=("$@")
if [ $# = 0 ]; then
  what=(environment plain)
  if exists "pg_tenure-citus:$PG_MAJOR"; then what+=(citus); else
    echo "images: NOT TESTED: compose-citus.yaml, as there is no image pg_tenure-citus:$PG_MAJOR; hint: make images CITUS_SOURCE=DIRECTORY"
  fi
fi

FILE=
compose() { "${COMPOSE[@]}" -f "$FILE" "$@"; }
down() {
  [ -z "$FILE" ] || compose down -v --remove-orphans >/dev/null 2>&1 || true
  "$DOCKER" rm --force --volumes tenure-test-etcd tenure-test-node >/dev/null 2>&1 || true
  "$DOCKER" network rm tenure-test >/dev/null 2>&1 || true
}
told() {
  local code=$?
  if [ "$code" != 0 ]; then
    "$DOCKER" logs --tail 60 tenure-test-node 2>/dev/null || true
  fi
  if [ "$code" != 0 ] && [ -n "$FILE" ]; then
    say "it failed: the last of what the containers said"
    compose logs --tail 25 2>&1 | tail -n 200 || true
  fi
  [ -n "${KEEP:-}" ] || down
  exit "$code"
}
trap told EXIT
trap 'exit 1' INT TERM HUP

inside() { "$DOCKER" exec -e PGPASSWORD=postgres -e PGCONNECT_TIMEOUT=5 demo-haproxy "$@"; }
sql() { inside psql -XqAt -h localhost -p "${PORT:-5000}" -U postgres -d "$DATABASE" -c "$1"; }
# wait_for SECONDS WHAT COMMAND...
wait_for() {
  local until=$((SECONDS + $1)) what=$2; shift 2
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $until ] || { inside tenure list 2>/dev/null || true; fail "no $what in time"; }
    sleep 0.3
  done
}
# The members' table says: so many leaders that run, so many standbys that stream.
whole() {
  local rows
  rows=$(inside tenure list --format tsv 2>/dev/null) || return 1
  [ "$(grep -c 'Leader.*running' <<<"$rows")" = "$LEADERS" ] && [ "$(grep -c 'streaming' <<<"$rows")" = "$STANDBYS" ]
}
healthy() { wait_for 180 "cluster with $LEADERS leaders and $STANDBYS standbys that stream" whole && wait_for 60 "writes through HAProxy" sql "SELECT 1"; }
leader() { inside tenure list --format json ${GROUP:+--group "$GROUP"} | python3 -c 'import json,sys; print(next(row["Member"] for row in json.load(sys.stdin) if row["Role"] == "Leader"))'; }

# measure WHAT COMMAND...: the command runs out here while the writer writes through HAProxy, every 10 ms. Adds to PAUSES and LOST.
RESULTS=()
PAUSES=()
measure() {
  local what=$1 writer ended=0; shift
  inside rm -f /tmp/writes /tmp/enough
  # The writer's own command tells us that it writes, and waits until we are done. The writer then looks for every row that was acknowledged.
  inside pause --ports 5000 --database "$DATABASE" -- sh -c 'touch /tmp/writes; until [ -e /tmp/enough ]; do sleep 0.1; done' >"$WORK/pause" 2>&1 &
  writer=$!
  writes() { inside test -e /tmp/writes || ! kill -0 "$writer"; }
  wait_for 60 "writer" writes
  kill -0 "$writer" 2>/dev/null || { cat "$WORK/pause"; fail "the writer ended before it was measured: $what"; }
  "$@"
  inside touch /tmp/enough
  wait "$writer" || ended=$?
  echo "$what:"
  sed 's/^/  /' "$WORK/pause"
  healthy
  grep -q '^Acknowledged: ' "$WORK/pause" || fail "the writer did not come to its end after: $what"
  PAUSES+=("$(sed -n 's/^Write pause: \([0-9]*\) ms$/\1/p' "$WORK/pause")")
  LOST=$((LOST + $(sed -n 's/^Acknowledged: .*lost: \([0-9]*\);.*/\1/p' "$WORK/pause")))
  [ "$ended" = 0 ] || [ "$LOST" != 0 ] || fail "rows are there twice after: $what"
}
# result WHAT: the pauses since the last one as a line.
result() {
  local sorted
  sorted=$(printf '%s\n' "${PAUSES[@]}" | sort -n)
  RESULTS+=("| $TITLE | $1 | $(sed -n "$(((${#PAUSES[@]} + 1) / 2))p" <<<"$sorted") | $(paste -sd' ' <<<"$sorted") | $LOST | $(cut -d' ' -f1 /proc/loadavg) |")
  PAUSES=()
  LOST=0
}
LOST=0

switchover() { inside patronictl switchover ${GROUP:+--group "$GROUP"} --force; }
kill_postmaster() { "$DOCKER" exec "demo-$1" bash -c 'kill -KILL "$(head -n 1 "$PGDATA/postmaster.pid")"'; sleep 3; }
kill_node() { "$DOCKER" kill --signal KILL "demo-$1" >/dev/null; sleep 16; "$DOCKER" start "demo-$1" >/dev/null; }
stop_node() { "$DOCKER" stop --time 60 "demo-$1" >/dev/null; "$DOCKER" start "demo-$1" >/dev/null; }

story() {
  local began=$SECONDS run victim
  say "$FILE up"
  down
  compose up -d 2>&1 | tail -n 3
  healthy
  echo "$((LEADERS + STANDBYS)) members after $((SECONDS - began)) s, images made before"
  say "patronictl list"
  inside patronictl list
  say "etcdctl get --keys-only --prefix /service/demo"
  inside etcdctl get --keys-only --prefix /service/demo | grep . >"$WORK/keys"
  cat "$WORK/keys"
  "$1"
  say "switchover under load"
  for run in $(seq "$RUNS"); do measure "switchover $run" switchover; done
  [ "$LOST" = 0 ] || fail "$LOST acknowledged rows are missing after planned switchovers"
  result "switchover"
  if [ -n "$GROUP" ]; then
    say "table pg_dist_node names the new primary of group $GROUP"
    wait_for 30 "row of the new primary in pg_dist_node" named
    dist_node
  fi
  say "docker stop of the leader: SIGTERM hands over"
  victim=$(leader)
  measure "docker stop of $victim" stop_node "$victim"
  [ "$LOST" = 0 ] || fail "$LOST acknowledged rows are missing after a stop"
  "$DOCKER" logs "demo-$victim" 2>&1 | grep -i 'hand' | tail -n 3
  result "docker stop of the leader"
  say "the leader's postmaster killed"
  victim=$(leader)
  measure "postmaster of $victim killed" kill_postmaster "$victim"
  result "postmaster killed (kill -9)"
  say "the leader's container killed"
  victim=$(leader)
  measure "container of $victim killed" kill_node "$victim"
  result "container killed (docker kill)"
  inside patronictl list
  say "down"
  compose down -v 2>&1 | tail -n 3
  FILE=
}

plain_words() {
  say "psql -h localhost -p 5000 and 5001"
  [ "$(sql "SELECT pg_is_in_recovery()")" = f ] || fail "port 5000 does not lead to the primary"
  [ "$(PORT=5001 sql "SELECT pg_is_in_recovery()")" = t ] || fail "port 5001 does not lead to a standby"
  say "patronictl query -c, in a node"
  "$DOCKER" exec demo-node1 patronictl query -c 'SELECT current_user' -d postgres
  sql "CREATE TABLE IF NOT EXISTS written(id bigint, at timestamptz DEFAULT now())"
  say "no secret in a command line or a log"
  for node in node1 node2 node3; do
    if "$DOCKER" exec "demo-$node" bash -c 'cat /proc/[0-9]*/cmdline | tr "\0" " "' | grep -q -e replicate$ -e 'password='; then fail "a command line of $node has a secret"; fi
    if "$DOCKER" logs "demo-$node" 2>&1 | grep -qw replicate; then fail "the log of $node has a secret"; fi
  done
}

citus_words() {
  wait_for 60 "rows of seven nodes in pg_dist_node" all_registered
  for key in /service/demo/0/leader /service/demo/1/leader /service/demo/2/leader /service/demo/0/members/coord1 /service/demo/2/members/work2-2; do
    grep -qx "$key" "$WORK/keys" || fail "etcd has no key $key"
  done
  say "psql -h localhost -p 5000 -U postgres -d citus: table pg_dist_node"
  dist_node
  sql "CREATE TABLE written(id bigint, at timestamptz DEFAULT now()); SELECT create_distributed_table('written', 'id')"
  [ "$(PORT=5001 sql "SELECT pg_is_in_recovery()")" = f ] || fail "port 5001 does not lead to a worker's primary"
}
dist_node() { inside psql -X -h localhost -p 5000 -U postgres -d citus -P pager=off -c "TABLE pg_dist_node"; }
named() { [ "$(sql "SELECT nodename FROM pg_dist_node WHERE groupid = $GROUP AND noderole = 'primary'")" = "$(leader)" ]; }
all_registered() { [ "$(sql "SELECT count(*) FILTER (WHERE noderole = 'primary'), count(*) FILTER (WHERE noderole = 'secondary') FROM pg_dist_node")" = "3|4" ]; }

# What PostgreSQL's own image takes from its environment, in a container whose root can't be written.
environment() {
  local secret=tell-nobody-4711 said
  # refused WORDS OPTIONS...: a container that ends with these words.
  refused() {
    local words=$1; shift
    said=$("$DOCKER" run --rm "$@" 2>&1) && fail "a node was started with: $*"
    [[ $said == *"$words"* ]] || fail "expected \"$words\", found: $said"
    echo "$said"
  }
  say "what is refused"
  local demo=(-e PATRONI_SCOPE=t -e PATRONI_ETCD3_HOSTS=e:2379)
  refused "no cluster is named" "pg_tenure:$PG_MAJOR"
  refused "no etcd is named" -e PATRONI_SCOPE=t "pg_tenure:$PG_MAJOR"
  refused "the superuser has no password" "${demo[@]}" "pg_tenure:$PG_MAJOR"
  refused "both set" "${demo[@]}" -e POSTGRES_PASSWORD=x -e POSTGRES_PASSWORD_FILE=/x "pg_tenure:$PG_MAJOR"
  refused "short option" "${demo[@]}" -e POSTGRES_PASSWORD=x -e "POSTGRES_INITDB_ARGS=-E UTF8" "pg_tenure:$PG_MAJOR"
  refused "runs as root" --user 0 "${demo[@]}" "pg_tenure:$PG_MAJOR"

  say "a node by POSTGRES_* and files, its root read-only"
  mkdir "$WORK/initdb.d" "$WORK/secrets"
  printf '%s' "$secret" >"$WORK/secrets/password"
  echo "CREATE TABLE by_sql(id int); INSERT INTO by_sql VALUES (1);" >"$WORK/initdb.d/1.sql"
  echo "CREATE TABLE by_gz AS SELECT * FROM by_sql;" | gzip >"$WORK/initdb.d/2.sql.gz"
  # shellcheck disable=SC2016 # for the shell in the container
  printf '#!/bin/bash\nset -e\npsql -v ON_ERROR_STOP=1 -U "$POSTGRES_USER" -d "$POSTGRES_DB" <<<"CREATE TABLE by_script AS TABLE by_gz"\n' >"$WORK/initdb.d/3.sh"
  chmod -R a+rX "$WORK" && chmod a+x "$WORK/initdb.d/3.sh"
  "$DOCKER" network create tenure-test >/dev/null
  "$DOCKER" run -d --name tenure-test-etcd --network tenure-test --network-alias e -e ETCD_LISTEN_CLIENT_URLS=http://0.0.0.0:2379 \
    -e ETCD_ADVERTISE_CLIENT_URLS=http://e:2379 pg_tenure-etcd >/dev/null
  "$DOCKER" run -d --name tenure-test-node --network tenure-test --hostname n1 --read-only --tmpfs /tmp --tmpfs /run/tenure:mode=0700,uid=999 \
    --tmpfs /run/postgresql:uid=999 -v "$WORK/initdb.d:/docker-entrypoint-initdb.d:ro" -v "$WORK/secrets:/run/secrets:ro" "${demo[@]}" \
    -e POSTGRES_PASSWORD_FILE=/run/secrets/password -e POSTGRES_USER=owner -e POSTGRES_DB=shop \
    -e "POSTGRES_INITDB_ARGS=--locale=C --wal-segsize 4" "pg_tenure:$PG_MAJOR" arbiter -c work_mem=7MB -c "log_line_prefix=it's %m " >/dev/null
  in_shop() { "$DOCKER" exec -e PGPASSWORD="$secret" tenure-test-node psql -XqAt -h 127.0.0.1 -U owner -d shop -c "$1"; }
  wait_for 120 "table by_script" in_shop "SELECT count(*) FROM by_script"
  said=$(in_shop "SELECT current_setting('work_mem'), current_setting('log_line_prefix'), current_setting('wal_segment_size'), datcollate, (SELECT count(*) FROM by_script) FROM pg_database WHERE datname = 'shop'")
  [ "$said" = "7MB|it's %m |4MB|C|1" ] || fail "expected 7MB|it's %m |4MB|C|1, found $said"
  if "$DOCKER" exec tenure-test-node psql -XqAt -w -U owner -d shop -c "SELECT 1" >/dev/null 2>&1; then fail "the socket lets the superuser in without a password"; fi
  "$DOCKER" exec tenure-test-node /usr/local/lib/tenure/health.sh || fail "HEALTHCHECK's command fails on a node that serves"
  # shellcheck disable=SC2016 # for the shell in the container
  if "$DOCKER" exec -e SECRET="$secret" tenure-test-node bash -c 'cat /proc/[0-9]*/cmdline | tr "\0" " " | grep -q -- "$SECRET"'; then fail "a command line has the password"; fi
  # shellcheck disable=SC2016
  if "$DOCKER" exec tenure-test-node bash -c 'cat /proc/[0-9]*/environ | tr "\0" "\n" | grep -v ^HOSTNAME | grep -q tell-nobody' 2>/dev/null; then fail "the environment of a process has the password"; fi
  if "$DOCKER" logs tenure-test-node 2>&1 | grep -q -- "$secret"; then fail "the log has the password"; fi
  # shellcheck disable=SC2016
  said=$("$DOCKER" exec tenure-test-node bash -c 'cat /proc/1/comm; id -u')
  [[ $said == tini$'\n'999* ]] || fail "expected tini as process 1 and user 999, found $said"
  say "the postmaster is killed again and again: no zombie is taken for it"
  for _ in 1 2 3; do
    # shellcheck disable=SC2016
    "$DOCKER" exec tenure-test-node bash -c 'kill -KILL "$(head -n 1 "$PGDATA/postmaster.pid")"'
    sleep 1
    wait_for 60 "server after its postmaster was killed" in_shop "CREATE TABLE IF NOT EXISTS after_kill(id int); INSERT INTO after_kill VALUES (1)"
  done
  say "the container is killed and started: the pid in postmaster.pid belongs to somebody else by then, or to nobody"
  "$DOCKER" kill tenure-test-node >/dev/null && "$DOCKER" start tenure-test-node >/dev/null
  wait_for 120 "server after its container was killed" in_shop "INSERT INTO after_kill VALUES (2)"
  [ "$(in_shop "SELECT count(*) FROM by_sql")" = 1 ] || fail "the founding's scripts ran twice"
  "$DOCKER" logs tenure-test-node 2>&1 | grep 'founded:'
  down
}

WORK=$(mktemp -d)
for kind in "${what[@]}"; do
  case $kind in
    environment) environment; continue ;;
    plain) FILE=docker/compose.yaml DATABASE=postgres GROUP='' LEADERS=1 STANDBYS=2 TITLE=compose.yaml ;;
    citus) FILE=docker/compose-citus.yaml DATABASE=citus GROUP=2 LEADERS=3 STANDBYS=4 TITLE="compose-citus.yaml, worker group 2" ;;
    *) fail "usage: test.sh [environment] [plain] [citus]" ;;
  esac
  story "${kind}_words"
done

say "measured"
{
  echo "$(date -u +%F), PostgreSQL $PG_MAJOR, $(nproc) cores, docker $("$DOCKER" version --format '{{.Server.Version}}')."
  echo
  echo "| | what | pause, median, ms | each run, ms | acknowledged rows missing | load average then |"
  echo "|---|---|---|---|---|---|"
  printf '%s\n' "${RESULTS[@]}"
  echo
  docker/sizes.sh
} | tee "$WORK/measured"
if [ "${what[*]}" = "environment plain citus" ] || [ -n "${WRITE:-}" ]; then
  awk -v with="$WORK/measured" '/^<!-- measured -->$/ {print; while ((getline line < with) > 0) print line; skip = 1} /^<!-- end -->$/ {skip = 0} !skip || /^<!-- end -->$/ {if ($0 !~ /^<!-- measured -->$/) print}' \
    docs/docker.md >"$WORK/page" && cat "$WORK/page" >docs/docker.md
  echo "written into docs/docker.md"
fi
rm -rf "$WORK"
