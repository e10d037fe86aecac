#!/usr/bin/env bash
# packages.sh MAJOR DIRECTORY: pg-tenure and postgresql-MAJOR-pg-tenure from what was built, into DIRECTORY. `make packages` builds first.
# DEB_VERSION=0.1.1~test gives them another version than debian/changelog does, DEB_OPTIONS=-Zgzip other options to dpkg-deb.
set -euo pipefail
cd "$(dirname "$0")/.."
MAJOR=$1
OUT=$2
TARGET=${CARGO_TARGET_DIR:-target}
PG_CONFIG=${PG_CONFIG:-/usr/lib/postgresql/$MAJOR/bin/pg_config}

# dpkg-buildpackage writes beside its tree: it gets a copy of what it needs.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/tree/built/extension" "$OUT"
cp -a debian "$work/tree/"
cp "$TARGET/release/tenure" "$work/tree/built/"
cp "$TARGET/release/libpg_tenure.so" "$work/tree/built/pg_tenure.so"
cp extension/pg_tenure.control sql/pg_tenure--*.sql "$work/tree/built/extension/"
cp CHANGELOG.md "$work/tree/"
cp docs/install.md "$work/tree/debian/"
sed "s/@LIBRARIES@/postgresql-$MAJOR-pg-tenure/" debian/control.in >"$work/tree/debian/control"
sed "s/@MAJOR@/$MAJOR/g" debian/control.library >>"$work/tree/debian/control"
sed -i "s/@MAJOR@/$MAJOR/g" "$work/tree/debian/node.yml"
for package in pg-tenure "postgresql-$MAJOR-pg-tenure"; do
  printf '# Not from Debian: there is no bug to close.\n%s: initial-upload-closes-no-bugs\n' "$package" >"$work/tree/debian/$package.lintian-overrides"
done
if [ -n "${DEB_VERSION:-}" ]; then
  { printf 'pg-tenure (%s) stable; urgency=medium\n\n  * A version of its own.\n\n' "$DEB_VERSION"
    printf ' -- The pg_tenure authors <pg-tenure@users.noreply.github.com>  %s\n\n' "$(date -R)"
    cat debian/changelog; } >"$work/tree/debian/changelog"
fi
export TENURE_MAJOR=$MAJOR TENURE_DEB_OPTIONS=${DEB_OPTIONS:-}
TENURE_PKGLIBDIR=$("$PG_CONFIG" --pkglibdir)
TENURE_SHAREDIR=$("$PG_CONFIG" --sharedir)
export TENURE_PKGLIBDIR TENURE_SHAREDIR
(cd "$work/tree" && dpkg-buildpackage --build=binary --no-sign --no-check-builddeps) >"$work/log" 2>&1 || {
  tail -n 30 "$work/log" >&2
  echo "packages: the build of the packages failed" >&2
  exit 1
}
for package in "$work"/*.deb; do
  install -m 644 "$package" "$OUT/"
  echo "packages: $OUT/$(basename "$package"), $(($(stat -c %s "$package") / 1024)) KiB"
done
