#!/usr/bin/env bash
# Drivers through a switchover and a failover of the demo's cluster: what each is told, its longest pause, and what is missing (docs/routing.md).
# Needs what `make demo` needs, python3-psycopg2, python3-psycopg, libpostgresql-jdbc-java, a JRE and ecj; for pgx golang-go and
# golang-github-jackc-pgx-v4-dev.
set -euo pipefail
cd "$(dirname "$0")/../.."

export DEMO_DIR=${DEMO_DIR:-/tmp/pg_tenure-drivers} DEMO_OFFSET=${DEMO_OFFSET:-300}
PORTS=$((15431 + DEMO_OFFSET)),$((15432 + DEMO_OFFSET)),$((15433 + DEMO_OFFSET))
HOSTS=127.0.0.1,127.0.0.1,127.0.0.1
JDBC=$(sed "s/\([0-9]*\)/127.0.0.1:\1/g" <<<"$PORTS")
FILE=$DEMO_DIR/n1/node.yml
PSQL=(/usr/lib/postgresql/15/bin/psql -XqAt "host=$HOSTS port=$PORTS user=postgres password=demo dbname=postgres target_session_attrs=read-write")
trap 'bash demo/demo.sh stop' EXIT
bash demo/demo.sh start
classes=$(mktemp -d)
ecj -proc:none -source 11 -target 11 -d "$classes" tests/drivers/Writer.java
drivers=3
if [ -d /usr/share/gocode/src/github.com/jackc/pgx/v4 ] && command -v go >/dev/null; then
  GO111MODULE=off GOPATH=/usr/share/gocode GOCACHE=$classes/cache go build -o "$classes/pgx" tests/drivers/writer.go
  drivers=4
fi
"${PSQL[@]}" -c "CREATE TABLE drivers(driver text, key int, PRIMARY KEY (driver, key))"

writers() { # SECONDS
  /usr/bin/python3 tests/drivers/writers.py psycopg2 "$HOSTS" "$PORTS" "$1" &
  /usr/bin/python3 tests/drivers/writers.py psycopg3 "$HOSTS" "$PORTS" "$1" &
  java -cp "$classes:/usr/share/java/postgresql.jar" Writer "$JDBC" "$1" &
  if [ -x "$classes/pgx" ]; then "$classes/pgx" "$HOSTS" "$PORTS" "$1" & fi
}
# Until each of them has written for a while.
all_write() {
  until [ "$("${PSQL[@]}" -c "SELECT count(*) FROM (SELECT FROM drivers GROUP BY driver HAVING count(*) > 50) d" 2>/dev/null)" = "$drivers" ]; do sleep 0.2; done
}
missing() {
  "${PSQL[@]}" -F ' ' -c "SELECT driver, 'rows', count(*), 'missing', max(key) - count(*) FROM drivers GROUP BY driver ORDER BY 1; TRUNCATE drivers"
}

echo "== a switchover"
writers 30
all_write
tenure -c "$FILE" switchover --force >/dev/null
wait
missing
echo "== the leader's postmaster is killed"
writers 40
all_write
leader=$(tenure -c "$FILE" list --format tsv | awk '/Leader/ {for (i = 1; i <= NF; i++) if ($i ~ /^n[123]$/) print $i}')
kill -KILL "$(head -1 "$DEMO_DIR/$leader/data/postmaster.pid")"
wait
missing
rm -rf "$classes"
