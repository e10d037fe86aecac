# What the demos share; to be sourced. A script that does has set DIR, TARGET, PG_BIN, ETCD_PORT, ETCD_PEER_PORT, PASSWORD, CONNECTION,
# NODES (the nodes' names, in the order in which they end) and FILE (the node's file that commands are given).
# shellcheck shell=bash disable=SC2154

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Postgres refuses to run as root: everything of the demo runs as postgres then, else as the user who calls.
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
  for name in "${NODES[@]}" etcd; do end "$name"; done
  local left
  left=$(processes)
  # shellcheck disable=SC2086 # a list of pids
  [ -z "$left" ] || kill -KILL $left 2>/dev/null || true
  rm -rf "$DIR"
  echo "demo: ended, $DIR is removed"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds.
wait_for() {
  local seconds=$1 what=$2 tries; shift 2
  tries=$((seconds * 10))
  for _ in $(seq $tries); do
    if "$@"; then return 0; fi
    for name in etcd "${NODES[@]}"; do
      if [ -f "$DIR/$name.pid" ] && [ ! -d "/proc/$(cat "$DIR/$name.pid")" ]; then
        tail -n 20 "$DIR/$name.log" >&2
        fail "$name ended while the demo waited for $what; its log is $DIR/$name.log"
      fi
    done
    sleep 0.1
  done
  for name in "${NODES[@]}"; do tail -n 10 "$DIR/$name.log" >&2; done
  fail "no $what within $seconds s; the logs are $DIR/*.log"
}
etcd_answers() { ETCDCTL_API=3 etcdctl --endpoints "127.0.0.1:$ETCD_PORT" endpoint health >/dev/null 2>&1; }

# can_start COMMAND PORT...: nothing listens there, and what is needed is built.
can_start() {
  local command=$1 port program; shift
  for port in "$@"; do
    free_port "$port" || fail "port $port is taken: end what listens there (ss -ltnp shows it), or move the demo: $command DEMO_OFFSET=100"
  done
  for program in "$TARGET/release/tenure" "$TARGET/release/pause" "$PG_BIN/postgres"; do
    [ -x "$program" ] || fail "$program is missing; hint: $command builds and installs everything"
  done
}

start_etcd() {
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
}

# launch_node NAME: from the file $DIR/NAME/node.yml that is on standard input.
launch_node() {
  local name=$1
  install -d -m 700 -o "$OWNER" "$DIR/$name"
  install -m 600 -o "$OWNER" /dev/stdin "$DIR/$name/node.yml"
  launch "$name" "$DIR/$name" "$DIR/bin/tenure" arbiter "$DIR/$name/node.yml"
}

tenure() { "${AS_OWNER[@]}" "$DIR/bin/tenure" -c "$FILE" "$@"; }

# under_load PAUSE'S OPTIONS... -- TENURE'S ARGUMENTS...: runs the command while a client inserts every 10 ms, and prints the longest pause.
under_load() {
  local options=()
  while [ "$1" != -- ]; do options+=("$1"); shift; done
  shift
  "${AS_OWNER[@]}" "$DIR/bin/pause" "${options[@]}" --password "$PASSWORD" -- "$DIR/bin/tenure" -c "$FILE" "$@" ||
    fail "the switchover did not succeed; the logs are $DIR/*.log"
}

# live WHAT CHECK COMMAND...: runs the command while `tenure list -W` shows what becomes of the members (on a terminal in one place, else a line
# for each change), until the check succeeds; then what the writer saw.
live() {
  local what=$1 check=$2 watcher failed=; shift 2
  "${AS_OWNER[@]}" "$DIR/bin/tenure" -c "$FILE" list -W & watcher=$!
  ("$@") >"$DIR/live.out" 2>&1 || failed=yes
  [ -n "$failed" ] || wait_for 60 "$what" "$check"
  sleep 1 # the last picture
  kill "$watcher" 2>/dev/null || true
  wait "$watcher" 2>/dev/null || true
  if [ -n "$failed" ]; then cat "$DIR/live.out" >&2; exit 1; fi
  grep -E '^(The writer|Write pause)' "$DIR/live.out"
}

farewell() {
  say "the cluster keeps running"
  cat <<TEXT
connect:        psql '$CONNECTION'
operate:        tenure -c $FILE list
a node's file:  $FILE
logs:           $DIR/*.log
end it:         make demo-stop
TEXT
}
