#!/usr/bin/env bash
# What somebody meets on a machine that has nothing: a minimal root of this machine's own Debian release, with Rust bound in and the
# committed sources in it, runs `make WHAT` from cold. `fresh.sh demo` runs `make demo` and then `make demo-stop`.
#
# The root has mounts and processes of its own (namespaces), which the kernel takes down with the script, however it ends. Its network is
# the machine's, as packages come over it. What the machine needs to reach packages (sources, proxies, authorities, credentials, cargo's
# configuration) is copied in, so this works wherever `apt-get install` and `cargo fetch` do.
set -euo pipefail
cd "$(dirname "$0")/.."
TREE=$PWD
WHAT=${1:-demo}
ROOT=${FRESH_ROOT:-/var/tmp/pg_tenure-fresh}

say() { printf '\n== fresh: %s (after %s s)\n' "$*" "$SECONDS"; }
fail() { printf 'fresh: %s\n' "$*" >&2; exit 1; }

# The second half runs in the namespaces, as the first of their processes.
if [ "${FRESH_INSIDE:-}" = 1 ]; then
  mount --make-rprivate /
  for directory in proc dev dev/shm dev/pts tmp "$SYSROOT" "$CARGO_HOME" "$TREE"; do mkdir -p "$ROOT/$directory"; done
  chmod 1777 "$ROOT/tmp"
  mount -t proc proc "$ROOT/proc"
  # Devices one by one: what lies in the machine's /dev/shm is not this root's.
  for device in null zero full random urandom tty; do
    touch "$ROOT/dev/$device" && mount --bind "/dev/$device" "$ROOT/dev/$device"
  done
  ln -sfn /proc/self/fd "$ROOT/dev/fd"
  mount -t tmpfs -o mode=1777 tmpfs "$ROOT/dev/shm"
  mount --bind "$SYSROOT" "$ROOT/$SYSROOT" && mount -o remount,bind,ro "$ROOT/$SYSROOT"
  # Read from the machine's, written nowhere: cargo takes locks in its home, and what it downloads here is not kept.
  mkdir -p "$ROOT.cargo" && mount -t tmpfs tmpfs "$ROOT.cargo" && mkdir "$ROOT.cargo/upper" "$ROOT.cargo/work"
  mount -t overlay overlay -o "lowerdir=$CARGO_HOME,upperdir=$ROOT.cargo/upper,workdir=$ROOT.cargo/work" "$ROOT/$CARGO_HOME"
  if [ -n "$SHARED" ]; then
    mkdir -p "$ROOT/$TREE/target/release" "$TREE/target/release"
    mount --bind "$TREE/target/release" "$ROOT/$TREE/target/release"
  fi

  inside() { chroot "$ROOT" /usr/bin/env -C "$TREE" "$@"; }
  say "the packages that README asks for: make"
  inside apt-get -qq update
  inside env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 install -y --no-install-recommends make >/dev/null 2>&1
  say "make $WHAT"
  inside make "$WHAT"
  if [ "$WHAT" = demo ]; then
    say "make demo-stop"
    inside make demo-stop
    # As seen from the root's own /proc: nobody else's processes.
    left=$(grep -lxE 'postgres|tenure|etcd' "$ROOT"/proc/[0-9]*/comm 2>/dev/null || true)
    [ -z "$left" ] || fail "make demo-stop left processes: $left"
  fi
  exit
fi

[ "$(id -u)" = 0 ] || fail "needs root, for debootstrap and namespaces: sudo make fresh"
command -v debootstrap >/dev/null || fail "debootstrap is missing; hint: make fresh installs it"
SYSROOT=$(rustc --print sysroot)
[ "$SYSROOT" != /usr ] || fail "Rust lies in /usr, among everything else; it has to have a directory of its own, as rustup makes it"
CARGO_HOME=${CARGO_HOME:-${HOME:-/root}/.cargo}

exec 9>"$ROOT.lock"
flock -n 9 || fail "another make fresh uses $ROOT; hint: give this one a directory of its own: FRESH_ROOT=/var/tmp/other make fresh"
remove() { rm -rf --one-file-system "$ROOT" "$ROOT.cargo"; }
trap remove EXIT
trap 'exit 1' INT TERM HUP
remove
mkdir -p "$ROOT"

# A release build that does not exist yet can be made in its place: `make test` then goes on from it instead of building the same again.
# Only where the tree is exactly what is committed, as cargo compares times: a file that was changed before would pass for built.
SHARED=
if [ ! -e target/release ] && [ -z "${CARGO_TARGET_DIR:-}${RUSTFLAGS:-}" ] && [ -z "$(git status --porcelain)" ]; then SHARED=yes; fi

CODENAME=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
# The source that apt itself would take this release from.
SOURCE=$(apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT)' 'Created-By: Packages' |
  awk -v name="$CODENAME" '$2 == name && $3 == "main" { print $1; exit }')
[ -n "$SOURCE" ] || fail "apt knows no source for ${CODENAME:-this system}; hint: look at /etc/apt/sources.list.d"
# debootstrap fetches by itself: it is told of apt's proxy.
for protocol in http https; do
  proxy=$(apt-config dump "Acquire::$protocol::Proxy" | sed -n 's/.* "\(..*\)";/\1/p')
  if [ -n "$proxy" ]; then export "${protocol}_proxy=$proxy"; fi
done

say "a minimal root of $CODENAME in $ROOT"
debootstrap --variant=minbase "$CODENAME" "$ROOT" "$SOURCE" >"$ROOT.log" 2>&1 || { tail -n 20 "$ROOT.log"; fail "debootstrap failed; its log is $ROOT.log"; }
rm -f "$ROOT.log"
# As apt is set up here: where from, through what, trusting whom.
rm -rf "$ROOT"/etc/apt/sources.list "$ROOT"/etc/apt/sources.list.d
for path in /etc/apt/sources.list /etc/apt/sources.list.d /etc/apt/keyrings /etc/apt/trusted.gpg.d /etc/apt/preferences.d /etc/apt/auth.conf \
  /etc/apt/auth.conf.d /usr/share/keyrings /etc/ssl/certs /etc/pip.conf /etc/resolv.conf /etc/hosts; do
  if [ -e "$path" ]; then mkdir -p "$ROOT${path%/*}" && cp -aLT "$path" "$ROOT$path" 2>/dev/null || true; fi
done
apt-config dump | grep '^Acquire::' | grep -v -e IndexTargets -e '""' >"$ROOT/etc/apt/apt.conf.d/00machine" || true
# No service manager runs here; packages ask this before they start a service.
printf '#!/bin/sh\nexit 101\n' >"$ROOT/usr/sbin/policy-rc.d" && chmod 755 "$ROOT/usr/sbin/policy-rc.d"
mkdir -p "$ROOT$TREE"
git -c "safe.directory=$TREE" archive HEAD | tar -x -C "$ROOT$TREE"

# The demo's ports, where something on this machine has them already.
free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
OFFSET=${DEMO_OFFSET:-}
for offset in 0 100 200 300 400 500; do
  [ -z "$OFFSET" ] || break
  for port in 12379 12380 15431 15432 15433 18001 18002 18003; do free $((port + offset)) || continue 2; done
  OFFSET=$offset
done

keep=()
while IFS= read -r name; do keep+=("$name=${!name}"); done < <(compgen -e | grep -E \
  '^(https?_proxy|no_proxy|HTTPS?_PROXY|NO_PROXY|SSL_CERT_(FILE|DIR)|CURL_CA_BUNDLE|REQUESTS_CA_BUNDLE|PIP_.*|CARGO_(HTTP|NET|REGISTRIES|SOURCE)_.*|PG_MAJOR)$' || true)
# SIGKILL of this script reaches unshare (pdeathsig), and unshare's end everything in the namespaces (kill-child).
code=0
setpriv --pdeathsig KILL unshare --mount --pid --ipc --fork --kill-child \
  env -i "${keep[@]}" PATH="$SYSROOT/bin:$CARGO_HOME/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" HOME="${HOME:-/root}" \
  CARGO_HOME="$CARGO_HOME" SYSROOT="$SYSROOT" ROOT="$ROOT" FRESH_ROOT="$ROOT" SHARED="$SHARED" DEMO_OFFSET="$OFFSET" FRESH_INSIDE=1 \
  bash "$TREE/tests/fresh.sh" "$WHAT" || code=$?
if [ -n "$SHARED" ] && [ -e target/release ]; then chown -R --reference=. target; fi
[ "$code" = 0 ] || fail "make $WHAT failed on a fresh $CODENAME (exit code $code)"
say "make $WHAT passed on a fresh $CODENAME"
