#!/usr/bin/env bash
# sizes.sh: the images, in MB, and what ours add to bare Debian with PostgreSQL. Fails where a node adds more than 60 MB.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/common.sh
find_docker
PG_MAJOR=${PG_MAJOR:-15}
MOST=60

bytes() { "$DOCKER" image inspect --format '{{.Size}}' "$1" 2>/dev/null || echo 0; }
bare=$(bytes "pg_tenure-postgresql:$PG_MAJOR")
[ "$bare" -gt 0 ] || fail "there are no images; hint: make images"
echo "| image | MB | more than bare Debian + PostgreSQL $PG_MAJOR |"
echo "|---|---|---|"
for image in "pg_tenure-postgresql:$PG_MAJOR" "pg_tenure:$PG_MAJOR" "pg_tenure-haproxy:$PG_MAJOR" "pg_tenure-citus:$PG_MAJOR" pg_tenure-etcd; do
  size=$(bytes "$image")
  [ "$size" -gt 0 ] || continue
  more="$(((size - bare) / 1000000)) MB"
  case $image in *-postgresql:*) more="(bare)" ;; *-etcd) more="(Debian only)" ;; esac
  echo "| $image | $((size / 1000000)) | $more |"
done
more=$((($(bytes "pg_tenure:$PG_MAJOR") - bare) / 1000000))
[ "$more" -le "$MOST" ] || fail "a node's image is $more MB larger than bare Debian with PostgreSQL; at most $MOST was the aim"
