# Machines with systemd as PID 1, for systemd.sh and packages.sh; to be sourced. Each is a container of systemd-nspawn on an overlay of one
# root. All share a network of their own that has nothing but loopback, so they differ by ports: of Postgres 15431 to 15433, of REST 18001 to
# 18003, of etcd 12379, 22379 and 32379.
# shellcheck shell=bash

NAME=$(basename "$0" .sh)
WORK=${MACHINES_DIR:-/var/tmp/pg_tenure-$NAME}
PASSWORD=of-a-test
PORTS=15431,15432,15433
NODES=(n1 n2 n3)

say() { printf '\n== %s: %s (after %s s)\n' "$NAME" "$*" "$SECONDS"; }
fail() { printf '%s: FAILED: %s\n' "$NAME" "$*" >&2; exit 1; }
ok() { printf 'ok: %s\n' "$*"; }

machines_can_run() {
  [ "$(id -u)" = 0 ] || fail "needs root, for debootstrap and systemd-nspawn: sudo make $NAME-test"
  local program
  for program in debootstrap systemd-nspawn unshare nsenter; do
    command -v "$program" >/dev/null || fail "$program is missing; hint: make $NAME-test installs it"
  done
}

# Without a service manager: a command in a root, with the machine's network, for packages.
# What nspawn says of its own tidying where systemd is not PID 1 is of no interest.
in_root() {
  local root=$1; shift
  systemd-nspawn --quiet --register=no --keep-unit --pipe -D "$root" "$@" 2> >(grep -v 'Attempted to remove disk file system' >&2)
}

# make_root SUITE DIRECTORY: a minimal Debian with systemd, which gets its packages as this machine does.
make_root() {
  local suite=$1 root=$2 source path protocol proxy
  source=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' | awk '$2 == "main" && $1 !~ /security/ { print $1; exit }')
  [ -n "$source" ] || fail "apt knows no source; hint: look at /etc/apt/sources.list.d"
  for protocol in http https; do
    proxy=$(apt-config dump "Acquire::$protocol::Proxy" | sed -n 's/.* "\(..*\)";/\1/p')
    if [ -n "$proxy" ]; then export "${protocol}_proxy=$proxy"; fi
  done
  debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,ca-certificates,locales,procps "$suite" "$root" "$source" >"$root.log" 2>&1 || {
    tail -n 20 "$root.log" >&2
    fail "debootstrap of $suite failed"
  }
  for path in /etc/apt/keyrings /etc/apt/trusted.gpg.d /etc/apt/auth.conf /etc/apt/auth.conf.d /usr/share/keyrings /etc/ssl/certs; do
    if [ -e "$path" ]; then mkdir -p "$root${path%/*}" && cp -aL --update=none "$path" "$root${path%/*}/" 2>/dev/null || true; fi
  done
  apt-config dump | grep '^Acquire::' | grep -v -e IndexTargets -e '""' >"$root/etc/apt/apt.conf.d/00machine" || true
  in_root "$root" apt-get -qq update
}

# install_in ROOT PACKAGE...
install_in() {
  local root=$1; shift
  in_root "$root" env DEBIAN_FRONTEND=noninteractive LC_ALL=C.UTF-8 apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends "$@" >"$WORK/apt.log" 2>&1 || {
    tail -n 20 "$WORK/apt.log" >&2
    fail "these packages can't be installed: $*"
  }
}

# etcd and Postgres as Debian starts them by themselves are not wanted.
without_debians_own() {
  local root=$1 major=$2
  if [ -e "$root/etc/postgresql/$major/main" ]; then in_root "$root" pg_dropcluster "$major" main; fi
  systemctl --root="$root" --quiet disable etcd.service postgresql.service 2>/dev/null || true
}

# node ROOT NUMBER: a machine of its own, with a member of etcd; the arbiter's file is to follow.
node() {
  local root=$1 number=$2 client=${2}2379 peer=${2}2380 group
  group=$(awk -F : '$1 == "postgres" { print $3 }' "$root/etc/group")
  install -m 0640 -g "$group" /dev/stdin "$root/etc/tenure/etcd.env" <<ENV
ETCD_NAME=e$number
ETCD_LISTEN_CLIENT_URLS=http://127.0.0.1:$client
ETCD_ADVERTISE_CLIENT_URLS=http://127.0.0.1:$client
ETCD_LISTEN_PEER_URLS=http://127.0.0.1:$peer
ETCD_INITIAL_ADVERTISE_PEER_URLS=http://127.0.0.1:$peer
ETCD_INITIAL_CLUSTER=e1=http://127.0.0.1:12380,e2=http://127.0.0.1:22380,e3=http://127.0.0.1:32380
ETCD_INITIAL_CLUSTER_STATE=new
ENV
  systemctl --root="$root" --quiet enable tenure-etcd.service tenure@demo.service
  echo "n$number" >"$root/etc/hostname"
  mkdir -p "$root/var/log/journal"
  # Without one this were its first boot, where systemd enables everything.
  tr -d - </proc/sys/kernel/random/uuid >"$root/etc/machine-id"
}

# by_example ROOT NUMBER: the example that the package brings, with a test's addresses and password.
by_example() {
  local root=$1 number=$2 group
  group=$(awk -F : '$1 == "postgres" { print $3 }' "$root/etc/group")
  sed -e "s/^name: n1/name: n$number/" -e "s/10.0.0.1:8008/127.0.0.1:1800$number/" -e "s/10.0.0.1,127.0.0.1:5432/127.0.0.1:1543$number/" \
    -e "s/10.0.0.1:5432/127.0.0.1:1543$number/" -e 's/10.0.0.0\/24/127.0.0.1\/32/' -e "s/CHANGE-ME/$PASSWORD/" \
    -e 's/10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379/' "$root/usr/share/pg-tenure/node.yml" |
    install -m 0640 -g "$group" /dev/stdin "$root/etc/tenure/demo.yml"
  ! grep -q '10\.0\.0\|CHANGE-ME' "$root/etc/tenure/demo.yml" || fail "the package's example has changed, and this script not with it"
}

# machine NAME ROOT: its own file system above the root.
machine() {
  local name=$1 root=$2
  mkdir -p "$WORK/$name/upper" "$WORK/$name/work" "$WORK/$name/root"
  mount -t overlay overlay -o "lowerdir=$root,upperdir=$WORK/$name/upper,workdir=$WORK/$name/work" "$WORK/$name/root"
}

# Switches it on. It has groups of processes of its own below this machine's.
boot() {
  local name=$1 hierarchy
  (
    for hierarchy in /sys/fs/cgroup/systemd /sys/fs/cgroup/unified /sys/fs/cgroup; do
      [ -e "$hierarchy/cgroup.procs" ] || continue
      mkdir -p "$hierarchy/pg_tenure-$NAME-$name"
      echo "$BASHPID" >"$hierarchy/pg_tenure-$NAME-$name/cgroup.procs"
    done
    # A machine that reboots ends nspawn with this code, and expects to be started again.
    code=133
    while [ "$code" = 133 ]; do
      systemd-nspawn --quiet --register=no --keep-unit --boot --console=pipe --machine="$name" -D "$WORK/$name/root" </dev/null >>"$WORK/$name/console" 2>&1 &
      echo $! >"$WORK/$name/nspawn"
      code=0
      wait $! || code=$?
    done
  ) &
  wait_for 60 "$name to boot" is_up "$name"
}
# systemd in it answers.
is_up() { case $(inside "$1" systemctl is-system-running 2>/dev/null) in running | degraded | starting) return 0 ;; *) return 1 ;; esac; }
first_process() { pgrep -P "$(cat "$WORK/$1/nspawn" 2>/dev/null || echo 0)" -x systemd | head -n 1; }

# inside NAME COMMAND...
inside() {
  local name=$1 first; shift
  first=$(first_process "$name")
  [ -n "$first" ] || return 1
  nsenter -t "$first" --mount --uts --ipc --pid --net -- env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 "$@"
}

wait_for() {
  local seconds=$1 what=$2 end; shift 2
  end=$((SECONDS + seconds))
  while [ "$SECONDS" -lt "$end" ]; do
    if "$@"; then return 0; fi
    sleep 0.2
  done
  local name
  for name in "${NODES[@]}"; do
    printf -- '-- %s\n' "$name" >&2
    inside "$name" journalctl --no-pager -n 12 -o cat -u 'tenure@demo' >&2 || tail -n 12 "$WORK/$name/console" >&2
  done
  fail "no $what within $seconds s"
}

tool() { inside "$1" tenure -c /etc/tenure/demo.yml "${@:2}"; }
healthy() {
  local rows name
  for name in "${NODES[@]}"; do
    rows=$(tool "$name" list --format tsv 2>/dev/null) || continue
    [ "$(grep -c 'Leader.*running' <<<"$rows")" = 1 ] && [ "$(grep -c 'Replica.*streaming' <<<"$rows")" = 2 ] && return 0
  done
  return 1
}
leader() {
  local name
  for name in "${NODES[@]}"; do
    tool "$name" list --format tsv 2>/dev/null | awk -F '\t' '/Leader/ { print $2; found = 1 } END { exit !found }' && return
  done
  return 1
}
property() { inside "$1" systemctl show -P "$2" tenure@demo; }
postmaster() { inside "$1" head -n 1 "/var/lib/postgresql/$MAJOR/demo/postmaster.pid"; }

# under_load WHAT COMMAND...: runs a command while a client inserts every 10 ms; an acknowledged row that is not there ends the test.
under_load() {
  local what=$1 said; shift
  export -f inside first_process is_up wait_for fail healthy tool leader property postmaster
  export WORK NAME MAJOR
  said=$("$WORK/pause" --ports "$PORTS" --password "$PASSWORD" -- bash -c 'NODES=(n1 n2 n3); "$@"' _ "$@" 2>&1) || { printf '%s\n' "$said" >&2; fail "$what"; }
  grep -v '^$' <<<"$said" | sed 's/^/    /'
}

# The machines' groups of processes, once they are off.
remove_groups() { find /sys/fs/cgroup -depth -type d -path "*/pg_tenure-$NAME-*" -exec rmdir {} + 2>/dev/null || true; }

# Of its own kind once more, in namespaces that the kernel takes down with it, however it ends.
in_namespaces() {
  MACHINES_INSIDE=1 setpriv --pdeathsig KILL unshare --mount --pid --net --fork --kill-child --mount-proc bash "$0" "$@"
}
