#!/usr/bin/env bash
# base.sh: makes the images that the Dockerfiles start from, under their public names, where docker has none and can't fetch it.
#   base.sh debian SUITE         debian:SUITE-slim, by debootstrap, without documentation and translations, as the public one is
#   base.sh rust VERSION SUITE   rust:VERSION-slim-SUITE, of that Debian and this machine's own Rust
# On a machine that reaches a registry it pulls them and does nothing else. Making them needs root (debootstrap).
set -euo pipefail
. "$(dirname "$0")/common.sh"
find_docker

# There already, or fetched. Why it was not is said: what comes next may need more than this machine has.
had() {
  local patience=() said
  "$DOCKER" image inspect "$1" >/dev/null 2>&1 && return
  [ "${IMAGES_OFFLINE:-}" = 1 ] && return 1
  say "pull $1"
  # macOS has no `timeout`.
  if command -v timeout >/dev/null; then patience=(timeout 600); fi
  said=$(${patience[@]+"${patience[@]}"} "$DOCKER" pull --quiet "$1" 2>&1) && return
  say "pull $1 failed: ${said##*$'\n'}"
  return 1
}

WORK=
clean() { [ -z "$WORK" ] || rm -rf --one-file-system "$WORK"; }
trap clean EXIT
trap 'exit 1' INT TERM HUP

# Where apt itself takes Debian from, so that this works wherever `apt-get install` does.
source_of_debian() {
  local uri
  uri=$(apt-get indextargets --format '$(REPO_URI) $(COMPONENT) $(ORIGIN)' 'Created-By: Packages' 2>/dev/null |
    awk '$2 == "main" && $3 == "Debian" { print $1; exit }')
  printf '%s' "$uri"
}

debian() {
  local suite=$1 image=debian:$1-slim root source script=()
  had "$image" && return
  say "$image can't be pulled: make it by debootstrap"
  [ "$(id -u)" = 0 ] || fail "debootstrap needs root; hint: sudo make images"
  command -v debootstrap >/dev/null || fail "debootstrap is missing; hint: apt-get install debootstrap"
  source=$(source_of_debian)
  WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/pg_tenure-base.XXXXXX")
  root=$WORK/root
  # A suite that came after this machine's debootstrap is made as Debian's others are.
  [ -e "/usr/share/debootstrap/scripts/$suite" ] || script=(/usr/share/debootstrap/scripts/sid)
  debootstrap --variant=minbase "$suite" "$root" ${source:+"$source"} "${script[@]}" >"$WORK/log" 2>&1 || { tail -n 20 "$WORK/log"; fail "debootstrap $suite failed"; }
  # What the public slim image leaves out as well.
  cat >"$root/etc/dpkg/dpkg.cfg.d/docker" <<'X'
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
path-exclude /usr/share/man/*
force-unsafe-io
X
  find "$root/usr/share/doc" -type f -not -name copyright -delete
  find "$root/usr/share/locale" -mindepth 1 -maxdepth 1 -not -name locale.alias -exec rm -r {} +
  rm -rf "$root"/usr/share/{man,info}/* "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/log/*.log
  printf 'APT::Install-Recommends "true";\nAcquire::Languages "none";\nAcquire::GzipIndexes "true";\n' >"$root/etc/apt/apt.conf.d/docker"
  # Packages must not start services in a build.
  printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" && chmod 755 "$root/usr/sbin/policy-rc.d"
  # Security updates, where the machine has them for this very suite.
  if [ "$suite" = "$(. /etc/os-release && echo "${VERSION_CODENAME:-}")" ]; then
    apt-get indextargets --format 'deb $(REPO_URI) $(RELEASE) main' 'Created-By: Packages' |
      grep -E " $suite(-updates|-security)? main\$" | grep -i debian | sort -u >"$root/etc/apt/sources.list" || true
  fi
  tar -C "$root" --numeric-owner --exclude=./dev/* --exclude=./proc/* --exclude=./sys/* -c . |
    "$DOCKER" import --change 'CMD ["bash"]' - "$image" >/dev/null
  clean
  WORK=
  say "$image made"
}

rust() {
  local version=$1 suite=$2 image=rust:$1-slim-$2 sysroot host other without=()
  had "$image" && return
  say "$image can't be pulled: make it of debian:$suite-slim and this machine's Rust"
  debian "$suite"
  command -v rustc >/dev/null || fail "no rustc here to make $image of; hint: install Rust $version by rustup"
  sysroot=$(rustc --print sysroot)
  [ "$sysroot" != /usr ] || fail "Rust lies in /usr, among everything else; it has to have a directory of its own, as rustup makes it"
  case $(rustc --version) in
    "rustc $version."*) ;;
    *) say "the image is called $image and has this machine's $(rustc --version)" ;;
  esac
  WORK=$(mktemp -d "${TMPDIR:-/var/tmp}/pg_tenure-base.XXXXXX")
  mkdir -p "$WORK/context/authorities" "$WORK/context/cargo"
  # Authorities that this machine trusts, and cargo's configuration: without them crates may be out of reach. They stay in the builder.
  cp -L /etc/ssl/certs/ca-certificates.crt "$WORK/context/authorities/" 2>/dev/null || true
  cp -L "${CARGO_HOME:-$HOME/.cargo}"/config.toml "$WORK/context/cargo/" 2>/dev/null || true
  mkdir "$WORK/context/rust"
  # Without what it has to compile for other machines.
  host=$(rustc -vV | sed -n 's/^host: //p')
  for other in "$sysroot"/lib/rustlib/*/lib; do
    other=${other%/lib}
    if [ "${other##*/}" != "$host" ]; then without+=("--exclude=./lib/rustlib/${other##*/}"); fi
  done
  tar -C "$sysroot" --exclude=./share --exclude=./lib/rustlib/src --exclude=./etc "${without[@]}" -c . | tar -C "$WORK/context/rust" -x
  cat >"$WORK/context/Dockerfile" <<X
FROM debian:$suite-slim
COPY rust /usr/local/rust
COPY cargo /usr/local/cargo
COPY authorities /etc/ssl/certs
ENV CARGO_HOME=/usr/local/cargo PATH=/usr/local/cargo/bin:/usr/local/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
X
  "$DOCKER" build --quiet --tag "$image" "$WORK/context" >/dev/null
  clean
  WORK=
  say "$image made"
}

case ${1:-} in
  debian) debian "${2:?a suite}" ;;
  rust) rust "${2:?a version}" "${3:?a suite}" ;;
  *) fail "usage: base.sh debian SUITE | rust VERSION SUITE" ;;
esac
