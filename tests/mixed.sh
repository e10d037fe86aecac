#!/usr/bin/env bash
# mixed.sh COMMIT: a build of that commit and one of this checkout, in every mix, and the rolling upgrade of the one to the other under load;
# docs/mixed-versions.md gets what was seen. mixed.sh report: only writes that again. Both builds are kept in MIXED_DIR and used again.
set -euo pipefail
cd "$(dirname "$0")/.."
DIR=${MIXED_DIR:-/var/tmp/pg_tenure-mixed}
MAJOR=${PG_MAJOR:-15}
TARGET=$(realpath -m "${CARGO_TARGET_DIR:-target}")
fail() { printf 'mixed: %s\n' "$*" >&2; exit 1; }
git() { command git -c "safe.directory=$PWD" -c "safe.directory=$DIR/tree" "$@"; }
release() { sed -n "s/^default_version = '\(.*\)'/\1/p" "$1/extension/pg_tenure.control"; }
keep() { # TREE TARGET NAME COMMIT
  local to=$DIR/$3
  rm -rf "$to" && mkdir -p "$to"
  cp "$2/release/tenure" "$to/tenure" && cp "$2/release/libpg_tenure.so" "$to/pg_tenure.so"
  cp "$1"/extension/pg_tenure.control "$1"/sql/pg_tenure--*.sql "$to/"
  chmod -R a+rX "$to"
  echo "$4" >"$to/commit"
}

report() {
  local page=docs/mixed-versions.md part
  part=$(mktemp)
  {
    echo "Old: $(cat "$DIR/old/commit"). New: $(cat "$DIR/new/commit"). $(cat "$DIR/machine")"
    echo
    echo '| mode | leader | standby | switchover away, pause | failover away, pause | writes acknowledged | lost | doubled |'
    echo '|---|---|---|---|---|---|---|---|'
    # Two lines of each mix become one row, four where both members are alike (the longer pause); none is there unless the story passed.
    cat "$DIR"/seen/mix-*.tsv | awk -F '\t' '{ mix = $2 " | " $3 " | " $4; if ($6 / 1000 > of[mix, $5]) of[mix, $5] = $6 / 1000; n[mix] += $7
        if ($5 == "switchover") switched[mix] += $8; else failed[mix] += $8; twice[mix] += $9 }
      END { for (mix in n) printf "| %s | %.1f s | %.1f s | %d | %d, %d | %d |\n", mix, of[mix, "switchover"], of[mix, "failover"], n[mix], switched[mix], failed[mix], twice[mix] }' | sort
    echo
    echo '| mode | step of the rolling upgrade, three nodes | longest pause | writes acknowledged | refused | unknown | lost | doubled |'
    echo '|---|---|---|---|---|---|---|---|'
    cat "$DIR"/seen/rolling-*.tsv | awk -F '\t' '{ printf "| %s | %s | %.2f s | %d | %d | %d | %d | %d |\n", $2, $3, $4 / 1000, $5, $6, $7, $8, $9 }'
    if grep -q . "$DIR/failed"; then echo; sed 's/^/* failed: /' "$DIR/failed"; fi
  } >"$part"
  awk -v part="$part" '/^<!-- mixed -->$/ { print; print ""; while ((getline line < part) > 0) print line; skip = 1 }
    /^<!-- end of mixed -->$/ { print ""; skip = 0 } !skip { print }' "$page" >"$part.page"
  cat "$part.page" >"$page"
  rm -f "$part" "$part.page"
}

[ "${1:-}" = report ] && { report; exit; }
[ -n "${1:-}" ] || fail "which commit is the older one? hint: make mixed OLD=COMMIT"
[ -x "$TARGET/release/tenure" ] || fail "this checkout is not built; hint: make build"
mkdir -p "$DIR/seen"
old=$(git rev-parse --short "$1^{commit}")
old="$old of $(git log -1 --format=%cs "$old")"
if [ "$(cat "$DIR/old/commit" 2>/dev/null)" != "$old" ]; then
  echo "mixed: a build of $old"
  [ -e "$DIR/tree" ] || git worktree add --quiet --force --detach "$DIR/tree" "${old%% *}"
  git -C "$DIR/tree" checkout --quiet --force --detach "${old%% *}"
  # Two builds of one number of release could not be told apart, and ALTER EXTENSION would find nothing to do.
  now=$(release .)
  if [ "$(release "$DIR/tree")" = "$now" ]; then
    lower=0.0.9
    (cd "$DIR/tree" && sed -i "0,/^version = \"$now\"/s//version = \"$lower\"/" Cargo.toml && sed -i "s/$now/$lower/" extension/pg_tenure.control &&
      mv "sql/pg_tenure--$now.sql" "sql/pg_tenure--$lower.sql")
  fi
  # Not --locked: the lock file names this workspace's own number.
  (cd "$DIR/tree" && CARGO_TARGET_DIR=$DIR/target cargo build --release -p pg_tenure -p tenure-arbiter --no-default-features --features "pg_tenure/pg$MAJOR")
  keep "$DIR/tree" "$DIR/target" old "$old"
fi
keep . "$TARGET" new "$(git rev-parse --short HEAD) of $(git log -1 --format=%cs)"

rm -f "$DIR"/seen/*
nproc=$(nproc) load=$(cut -d ' ' -f 1 /proc/loadavg)
MIXED_OLD=$DIR/old MIXED_NEW=$DIR/new MIXED_INTO=$DIR/seen cargo nextest run --locked -p tenure-tests --test mixed ${STORY:+-- $STORY} 2>&1 | tee "$DIR/log" || true
grep -q '^ *Summary' "$DIR/log" || fail "the stories did not run"
echo "PostgreSQL $MAJOR, $(date -u +%F), $nproc processors, load $load at the beginning and $(cut -d ' ' -f 1 /proc/loadavg) at the end." >"$DIR/machine"
sed -n 's/^ *\(FAIL\|TIMEOUT\) \[[^]]*\] *\(([^)]*) \)\?tenure-tests::mixed //p' "$DIR/log" | sort -u >"$DIR/failed"
report
echo "mixed: docs/mixed-versions.md is written"
[ ! -s "$DIR/failed" ] || fail "$(wc -l <"$DIR/failed") stories failed; the log is $DIR/log"
