#!/usr/bin/env bash
# Runs once in a cluster's life, on the node that founds it, before the others copy it: the database POSTGRES_DB, then the files of
# /docker-entrypoint-initdb.d by name, with the meaning that they have in PostgreSQL's own image. One that fails undoes the founding.
set -euo pipefail

say() { printf 'founded: %s\n' "$*"; }

# Workers of a Citus cluster get their objects from the coordinator.
group=${TENURE_CITUS_GROUP:-${PATRONI_CITUS_GROUP:-0}}
[ "$group" = 0 ] || exit 0

# The arbiter gives the address as conninfo, and the password by PGPASSFILE. Scripts say `psql -U "$POSTGRES_USER" -d "$POSTGRES_DB"`.
export PGHOST=/var/run/postgresql PGUSER=$POSTGRES_USER
PGPORT=$(sed -E "s/.*port='?([0-9]+)'?.*/\1/" <<<"$1")
export PGPORT

if [ "$(psql -XqAt --no-password -d postgres -v name="$POSTGRES_DB" <<<"SELECT count(*) FROM pg_database WHERE datname = :'name'")" = 0 ]; then
  say "database $POSTGRES_DB"
  psql -Xq --no-password -v ON_ERROR_STOP=1 -d postgres -v name="$POSTGRES_DB" <<<'CREATE DATABASE :"name"'
fi

# What scripts of PostgreSQL's own image call.
docker_process_sql() { psql -X --no-password --no-psqlrc -v ON_ERROR_STOP=1 -d "$POSTGRES_DB" "$@"; }

shopt -s nullglob
for file in /docker-entrypoint-initdb.d/*; do
  case $file in
    *.sh)
      say "$file"
      # shellcheck disable=SC1090 # whatever is mounted there
      if [ -x "$file" ]; then "$file"; else . "$file"; fi
      ;;
    *.sql) say "$file"; docker_process_sql -f "$file" ;;
    *.sql.gz) say "$file"; gunzip -c "$file" | docker_process_sql ;;
    *.sql.xz) say "$file"; xzcat "$file" | docker_process_sql ;;
    *.sql.zst) say "$file"; zstd -dc "$file" | docker_process_sql ;;
    *) say "$file is passed over: neither *.sh nor *.sql, *.sql.gz, *.sql.xz, *.sql.zst" ;;
  esac
done
