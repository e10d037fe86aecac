#!/usr/bin/env bash
# images.sh: builds every image, and says how large they are. CITUS_SOURCE=DIRECTORY: the one with Citus too.
set -euo pipefail
cd "$(dirname "$0")/.."
. docker/common.sh

PG_MAJOR=${PG_MAJOR:-15}
# The Debian that has this major by itself; with another one PostgreSQL's own archive is asked.
case $PG_MAJOR in 17) of_major=trixie ;; *) of_major=bookworm ;; esac
DEBIAN=${DEBIAN:-$of_major}
ETCD_DEBIAN=${ETCD_DEBIAN:-trixie}
RUST=${RUST:-1.95}
find_docker

[ -z "${CITUS_SOURCE:-}" ] || [ -e "$CITUS_SOURCE/src/backend/distributed/citus.control" ] ||
  fail "CITUS_SOURCE=$CITUS_SOURCE is no source of Citus: it has no src/backend/distributed/citus.control"
docker/base.sh debian "$DEBIAN"
docker/base.sh rust "$RUST" "$DEBIAN"
docker/base.sh debian "$ETCD_DEBIAN"

arguments=(--build-arg "PG_MAJOR=$PG_MAJOR" --build-arg "DEBIAN=$DEBIAN" --build-arg "ETCD_DEBIAN=$ETCD_DEBIAN" --build-arg "RUST=$RUST")
for name in http_proxy https_proxy no_proxy CARGO_PROFILE_RELEASE_{OPT_LEVEL,LTO,CODEGEN_UNITS}; do [ -z "${!name:-}" ] || arguments+=(--build-arg "$name"); done

# image TARGET TAG [REMARK]
image() {
  say "$2${3:+ ($3)}"
  "$DOCKER" build ${QUIET:+--quiet} -f docker/Dockerfile --target "$1" --tag "$2" "${arguments[@]}" .
}
image postgresql "pg_tenure-postgresql:$PG_MAJOR"
image node "pg_tenure:$PG_MAJOR" "the first time the release build takes 7 to 10 minutes on 2 cores"
image haproxy "pg_tenure-haproxy:$PG_MAJOR"
image etcd pg_tenure-etcd
if [ -n "${CITUS_SOURCE:-}" ]; then
  say "pg_tenure-citus:$PG_MAJOR from $CITUS_SOURCE"
  "$DOCKER" build ${QUIET:+--quiet} -f docker/Dockerfile.citus --tag "pg_tenure-citus:$PG_MAJOR" --build-arg "PG_MAJOR=$PG_MAJOR" "$CITUS_SOURCE"
fi
docker/sizes.sh
