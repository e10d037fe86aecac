#!/usr/bin/env bash
# cross.sh ARCHITECTURE MAJOR: the library and the arbiter for another processor (arm64), compiled on this one, into the target directory's
# RUST_TARGET/release. `make cross ARCH=arm64` installs the compiler first. What apt fetches for the other processor is unpacked in the target directory: nothing
# of it is installed, and this machine's list of architectures stays as it is.
set -euo pipefail
cd "$(dirname "$0")/.."
ARCH=$1
MAJOR=$2
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
fail() { printf 'cross: %s\n' "$*" >&2; exit 1; }

case $ARCH in
  arm64) triple=aarch64-linux-gnu rust=aarch64-unknown-linux-gnu ;;
  *) fail "ARCH=$ARCH is not known; there is: arm64" ;;
esac
command -v "$triple-gcc" >/dev/null || fail "$triple-gcc is missing; hint: make cross installs it"
[ -d "$(rustc --print sysroot)/lib/rustlib/$rust" ] || rustup target add "$rust" ||
  fail "Rust's standard library for $rust can't be had; hint: rustup target add $rust"

# The server's headers are of a processor: pg_config.h has sizes and what the compiler can do.
place=$TARGET/$rust/postgresql-$MAJOR
if [ ! -e "$place/ready" ]; then
  rm -rf "$place"
  mkdir -p "$place/lists/partial" "$place/cache/archives/partial" "$place/download"
  printf '%s\n' "Dir::State::Lists \"$place/lists\";" "Dir::Cache \"$place/cache\";" "APT::Architecture \"$ARCH\";" "APT::Architectures { \"$ARCH\"; };" \
    'APT::Sandbox::User "root";' >"$place/apt.conf"
  (cd "$place/download" && export APT_CONFIG=$place/apt.conf && apt-get -qq update && apt-get -qq download "postgresql-server-dev-$MAJOR") ||
    fail "postgresql-server-dev-$MAJOR for $ARCH can't be had from where apt takes packages"
  dpkg-deb -x "$place"/download/postgresql-server-dev-"$MAJOR"_*.deb "$place/root"
  rm -rf "$place/lists" "$place/cache"
  touch "$place/ready"
fi
# This machine's pg_config, with the headers of the other one. Where files go to is the same on both.
printf '#!/bin/sh\n%s "$@" | sed "s#/usr/include/postgresql#%s/root/usr/include/postgresql#g"\n' "${PG_CONFIG:-/usr/lib/postgresql/$MAJOR/bin/pg_config}" "$place" >"$place/pg_config"
chmod 755 "$place/pg_config"

# pgrx looks for the includes of the clang that PostgreSQL was built with, which are this machine's.
variable=${rust//-/_}
upper=${variable^^}
export PGRX_PG_CONFIG_PATH=$place/pg_config PGRX_BINDGEN_NO_DETECT_INCLUDES=1
export "BINDGEN_EXTRA_CLANG_ARGS_$variable=-isystem $(clang --target=$triple -print-resource-dir)/include -isystem /usr/$triple/include"
export "CARGO_TARGET_${upper}_LINKER=$triple-gcc"
demo/compile.sh cargo build --locked --release --target "$rust" -p pg_tenure -p tenure-arbiter --lib --bin tenure --no-default-features --features "pg_tenure/pg$MAJOR"

machine() { LC_ALL=C readelf -h "$1" | sed -n 's/^ *Machine: *//p'; }
for file in libpg_tenure.so tenure; do
  echo "cross: $TARGET/$rust/release/$file, $(machine "$TARGET/$rust/release/$file"), $(($(stat -c %s "$TARGET/$rust/release/$file") / 1024)) KiB"
done
# Where there is an emulator: whether the arbiter runs at all. The library needs a server of that processor.
if emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64); then
  echo "cross: emulated, it says: $("$emulator" -L "/usr/$triple" "$TARGET/$rust/release/tenure" --version)"
else
  echo "cross: NOT RUN: no qemu-aarch64 here (Debian: qemu-user-static), so nothing was tried on an emulated processor"
fi
