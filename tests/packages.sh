#!/usr/bin/env bash
# The packages as an operator meets them, on clean roots of two Debian releases: lintian, install, three nodes with systemd as PID 1, an upgrade
# from one version to the next node by node while a client writes, remove and purge. `packages.sh [SUITE:MAJOR...]`, by default
# bookworm:15 trixie:17. Where the release is not this machine's, the library is built in a root of that release, with this machine's Rust.
# PACKAGES=DIRECTORY takes packages that are there (two versions) and builds none; KEEP=yes leaves the roots.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/machines.sh
NEXT=0.1.1~test
UNIT=tenure@demo
HERE=$(. /etc/os-release && echo "$VERSION_CODENAME")

# build SUITE MAJOR: both versions of both packages into $WORK/built-SUITE. The second has the same code and another number: what is shown
# is what an upgrade does to processes, files and clients.
build() {
  local suite=$1 major=$2 out=$WORK/built-$1
  mkdir -p "$out"
  if [ "$suite" = "$HERE" ]; then
    make build PG_MAJOR="$major"
    PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config DEB_OPTIONS=-Zgzip debian/packages.sh "$major" "$out"
    PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config DEB_OPTIONS=-Zgzip DEB_VERSION=$NEXT debian/packages.sh "$major" "$out"
    return
  fi
  local root=$WORK/build-$suite sysroot cargo
  sysroot=$(rustc --print sysroot)
  cargo=${CARGO_HOME:-$HOME/.cargo}
  if [ ! -e "$root/etc/os-release" ]; then make_root "$suite" "$root"; fi
  install_in "$root" "postgresql-$major" "postgresql-server-dev-$major" libclang-dev clang protobuf-compiler libprotobuf-dev pkg-config \
    build-essential debhelper make git
  cargo fetch --locked
  mkdir -p "$WORK/target-$suite"
  # What was committed and what was not: the tree as it is.
  systemd-nspawn --quiet --register=no --keep-unit --pipe -D "$root" --bind-ro="$sysroot" --bind="$cargo" --bind-ro="$PWD:/tree" --bind="$WORK/target-$suite:/target" \
    --bind="$out:/out" env PATH="$sysroot/bin:/usr/sbin:/usr/bin:/sbin:/bin" CARGO_HOME="$cargo" CARGO_NET_OFFLINE=true CARGO_TARGET_DIR=/target HOME=/root LC_ALL=C.UTF-8 \
    $(compgen -e | grep '^CARGO_PROFILE' | while read -r name; do echo "$name=${!name}"; done) \
    bash -ec "cd /tree; make build PG_MAJOR=$major; export DEB_OPTIONS=-Zgzip PG_CONFIG=/usr/lib/postgresql/$major/bin/pg_config
      debian/packages.sh $major /out; DEB_VERSION=$NEXT debian/packages.sh $major /out"
}

if [ "${MACHINES_INSIDE:-}" != 1 ]; then
  machines_can_run
  command -v lintian >/dev/null || fail "lintian is missing; hint: make packages-test installs it"
  mkdir -p "$WORK"
  exec 9>"$WORK.lock"
  flock -n 9 || fail "another make packages-test uses $WORK; hint: MACHINES_DIR=/var/tmp/other"
  remove() { remove_groups; [ "${KEEP:-}" = yes ] || rm -rf --one-file-system "$WORK" "$WORK.lock"; }
  trap remove EXIT
  trap 'exit 1' INT TERM HUP
  [ $# -gt 0 ] || set -- bookworm:15 trixie:17
  for pair in "$@"; do
    suite=${pair%:*} major=${pair#*:} root=$WORK/root-${pair%:*}
    if [ -n "${PACKAGES:-}" ]; then built=$PACKAGES; else
      say "$suite: two versions of the packages"
      build "$suite" "$major"
      built=$WORK/built-$suite
    fi
    say "$suite: lintian"
    lintian --allow-root --fail-on error "$built"/pg-tenure_0.1.0-1_*.deb "$built/postgresql-$major-pg-tenure"_0.1.0-1_*.deb || fail "lintian has errors"
    ok "lintian: no error"
    if [ ! -e "$root/etc/os-release" ]; then
      say "$suite: a clean root"
      make_root "$suite" "$root"
    fi
    say "$suite: apt install ./pg-tenure_*.deb ./postgresql-$major-pg-tenure_*.deb"
    mkdir -p "$root/packages" "$root/etc/postgresql-common/createcluster.d"
    echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.d/no-main.conf"
    cp "$built"/pg-tenure_*.deb "$built/postgresql-$major-pg-tenure"_*.deb "$root/packages/"
    (cd "$root/packages" && for deb in *'~'*.deb; do mv "$deb" "${deb//\~/-}"; done)
    install_in "$root" /packages/pg-tenure_0.1.0-1_amd64.deb "/packages/postgresql-$major-pg-tenure_0.1.0-1_amd64.deb" etcd-server etcd-client
    [ ! -e "$root/etc/postgresql/$major/main" ] || fail "Debian made a cluster main all the same"
    systemctl --root="$root" --quiet disable etcd.service postgresql.service 2>/dev/null || true
    install -D -m 755 "${PAUSE:-${CARGO_TARGET_DIR:-target}/release/pause}" "$WORK/pause"
    MAJOR=$major SUITE=$suite in_namespaces "$@" || fail "see above"
    for name in "${NODES[@]}"; do rm -rf --one-file-system "${WORK:?}/$name"; done
    say "$suite: passed"
  done
  exit
fi

mount --make-rprivate /
ip link set lo up
for number in 1 2 3; do
  machine "n$number" "$WORK/root-$SUITE"
  node "$WORK/n$number/root" "$number"
done
say "$SUITE: tenure init on n1, tenure init --like on the others"
in_root "$WORK/n1/root" tenure init /etc/tenure/demo.yml --scope demo --name n1 --address 127.0.0.1 \
  --etcd 127.0.0.1:12379,127.0.0.1:22379,127.0.0.1:32379
for number in 2 3; do
  install -m 600 "$WORK/n1/root/etc/tenure/demo.yml" "$WORK/n$number/root/root/demo.yml"
  in_root "$WORK/n$number/root" tenure init /etc/tenure/demo.yml --like /root/demo.yml --name "n$number" --address "127.0.0.$number" >/dev/null
done
PORTS=127.0.0.1:5432,127.0.0.2:5432,127.0.0.3:5432
PASSWORD=$(awk '/superuser:/ { found = 1 } found && /password:/ { print $2; exit }' "$WORK/n1/root/etc/tenure/demo.yml")

version() { inside "$1" dpkg-query -W -f '${Version}' "$2"; }
# The file that a process runs from, or has loaded, is still the one in its place.
runs_what_is_installed() { ! inside "$1" ls -l "/proc/$(property "$1" MainPID)/exe" | grep -q deleted; }
library_is_current() { ! inside "$1" grep -q 'pg_tenure.so.*deleted' "/proc/$(postmaster "$1")/maps"; }
upgrade() {
  local name server
  for name in "${NODES[@]}"; do
    server=$(postmaster "$name")
    inside "$name" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends \
      "/packages/pg-tenure_$NEXT_FILE.deb" "/packages/postgresql-$MAJOR-pg-tenure_$NEXT_FILE.deb" >"$WORK/$name/apt.log" 2>&1 || { cat "$WORK/$name/apt.log"; return 1; }
    [ "$(postmaster "$name")" = "$server" ] || fail "the upgrade of $name restarted Postgres"
    wait_for 60 "healthy cluster after the upgrade of $name" healthy
    runs_what_is_installed "$name" || fail "$name: the old arbiter still runs"
  done
}
new_library() {
  tool n1 restart demo -r replica --force
  wait_for 60 "healthy cluster" healthy
  local old; old=$(leader)
  tool n1 switchover --force
  wait_for 60 "healthy cluster" healthy
  tool n1 restart demo "$old" --force
  wait_for 60 "healthy cluster" healthy
}
NEXT_FILE=${NEXT//\~/-}_amd64
export -f version runs_what_is_installed library_is_current upgrade new_library
export NEXT_FILE UNIT

say "$SUITE: three nodes"
for name in "${NODES[@]}"; do boot "$name"; done
wait_for 180 "primary with two streaming standbys" healthy
tool n1 list
inside n1 systemctl --version | head -n 1
ok "Type=$(property n1 Type), $(version n1 pg-tenure), PostgreSQL $(inside n1 "/usr/lib/postgresql/$MAJOR/bin/postgres" --version)"
[ "$(inside n1 stat -c '%U:%G %a' /etc/tenure)" = "root:postgres 750" ] || fail "/etc/tenure is $(inside n1 stat -c '%U:%G %a' /etc/tenure)"
readable=$(inside n1 setpriv --reuid nobody --regid nogroup --clear-groups grep -rl "$PASSWORD" /etc /usr/share/pg-tenure /run/tenure /var/lib 2>/dev/null || true)
[ -z "$readable" ] || fail "the password is readable for everybody in: $readable"
ok "/etc/tenure is root:postgres 0750; nobody else reads a password"
before=$(inside n1 sha256sum /etc/tenure/demo.yml)

say "$SUITE: systemctl reload waits where systemd can"
inside n1 systemctl reload "$UNIT"
[ "$(property n1 ActiveState)" = active ] || fail "not active after a reload"
ok "systemctl reload"

say "$SUITE: upgrade to $NEXT, node by node"
under_load upgrade upgrade
for name in "${NODES[@]}"; do [ "$(version "$name" pg-tenure)" = "$NEXT" ] || fail "$name has $(version "$name" pg-tenure)"; done
[ "$(inside n1 sha256sum /etc/tenure/demo.yml)" = "$before" ] || fail "the upgrade changed the configuration"
ok "apt install of $NEXT on three nodes: Postgres ran on everywhere, new arbiters adopted it, the configuration is as it was"
for name in "${NODES[@]}"; do ! library_is_current "$name" || fail "$name has the new library without a restart: this check can't fail"; done
say "$SUITE: the new library: standbys, a switchover, the old leader"
under_load restart new_library
for name in "${NODES[@]}"; do library_is_current "$name" || fail "$name has the old library loaded"; done
ok "three servers run with the new library"

who=$(leader)
say "$SUITE: apt remove on the leader $who, under load; then purge"
under_load remove inside "$who" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 remove -y pg-tenure
! inside "$who" pgrep -x postgres >/dev/null || fail "Postgres runs without an arbiter"
other=n1; [ "$who" != n1 ] || other=n2
wait_for 30 "other leader" tool "$other" list
ok "apt remove: handed over to $(leader), Postgres stopped"
inside "$who" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 purge -y pg-tenure "postgresql-$MAJOR-pg-tenure"
inside "$who" test -f "/var/lib/postgresql/$MAJOR/demo/PG_VERSION" || fail "purge took the data"
inside "$who" test -f /etc/tenure/demo.yml || fail "purge took the node's file"
left=$(inside "$who" find /usr -xdev \( -name '*tenure*' -o -name '*pg_tenure*' \) ! -path '*/packages/*' | head)
[ -z "$left" ] || fail "purge left: $left"
ok "apt purge: the data and /etc/tenure are there, nothing of the packages is"
for name in "${NODES[@]}"; do inside "$name" systemctl poweroff || true; done
gone() { ! kill -0 "$(cat "$WORK/$1/nspawn")" 2>/dev/null; }
for name in "${NODES[@]}"; do wait_for 120 "$name to be off" gone "$name"; done
