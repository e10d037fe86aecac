#!/usr/bin/env bash
# What the container runs. `arbiter [-c NAME=VALUE]...` (or nothing, or options only): writes the node's file from the environment and
# becomes the arbiter. Anything else is run as it is: `tenure list`, `bash`, `psql`.
#
# What people know from PostgreSQL's own image is read here: POSTGRES_PASSWORD, _USER, _DB, _INITDB_ARGS, each also as *_FILE, and
# /docker-entrypoint-initdb.d. PATRONI_* and TENURE_* count over the file: the arbiter reads them itself.
# Secrets go from the environment into a file that only we read: never into arguments, never into what is printed.
set -euo pipefail

fail() { printf 'entrypoint: %s\n' "$*" >&2; exit 1; }

case ${1:-arbiter} in
  arbiter) [ $# = 0 ] || shift ;;
  -*) ;;
  *) exec "$@" ;;
esac

OWN=/etc/tenure/tenure.yml     # a file of yours, mounted
MADE=/run/tenure/tenure.yml    # what runs, and what `tenure list` in this container finds
[ "$(id -u)" != 0 ] || fail "runs as root, which PostgreSQL refuses; hint: leave the image's user (postgres, 999) as it is"

# from_file NAME: NAME is what NAME_FILE's file says, as with PostgreSQL's own image.
from_file() {
  local name=$1 file=${1}_FILE
  [ -n "${!file:-}" ] || return 0
  [ -z "${!name:-}" ] || fail "$name and $file are both set; hint: give one of them"
  [ -r "${!file}" ] || fail "$file names ${!file}, which can't be read by user $(id -u)"
  export "$name=$(<"${!file}")"
  unset "$file"
}
for name in POSTGRES_PASSWORD POSTGRES_USER POSTGRES_DB POSTGRES_INITDB_ARGS; do from_file "$name"; done
while IFS= read -r name; do from_file "${name%_FILE}"; done < <(compgen -e | grep -E '^(PATRONI|TENURE)_[A-Z0-9_]+_(PASSWORD|USERNAME)_FILE$' || true)

# given NAME: TENURE_NAME, else PATRONI_NAME, in the order of the arbiter.
given() { local ours=TENURE_$1 theirs=PATRONI_$1; printf '%s' "${!ours:-${!theirs:-}}"; }

# A text for YAML, whatever stands in it.
quoted() {
  local text=$1
  [[ $text != *[$'\x01'-$'\x08'$'\x0b'-$'\x1f']* ]] || fail "a value in the environment has control characters"
  text=${text//\\/\\\\}; text=${text//\"/\\\"}; text=${text//$'\n'/\\n}; text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}

# The long options of POSTGRES_INITDB_ARGS, one a line; quotes are read as a shell's.
initdb_options() {
  local word words=() last=
  while IFS= read -r -d '' word; do words+=("$word"); done < <(xargs printf '%s\0' <<<"$1")
  for word in "${words[@]}"; do
    case $word in
      '') ;;
      --?*) [ -z "$last" ] || printf '%s\0' "$last"; last=${word#--} ;;
      -k) [ -z "$last" ] || printf '%s\0' "$last"; last=data-checksums ;;
      -*) fail "POSTGRES_INITDB_ARGS has the short option ${word:0:2}; hint: give its long name (initdb --help)" ;;
      *) [ -n "$last" ] && [[ $last != *=* ]] || fail "POSTGRES_INITDB_ARGS has a word that belongs to no option: ${word}"; last=$last=$word ;;
    esac
  done
  [ -z "$last" ] || printf '%s\0' "$last"
}

umask 077
rm -f "$MADE"
if [ -e "$OWN" ]; then
  [ -r "$OWN" ] || fail "$OWN can't be read by user $(id -u); hint: chown 999, or mode 0644 where it has no secret"
  [ $# = 0 ] || fail "parameters as arguments ($1 ...) go with a file that is made here; $OWN is yours: write them there"
  ln -s "$OWN" "$MADE"
  exec tenure arbiter "$MADE"
fi

address=$(hostname)
name=$(given NAME); name=${name:-$address}
scope=$(given SCOPE)
[ -n "$scope" ] || fail "no cluster is named; hint: PATRONI_SCOPE=demo, the same on every node"
[ -n "$(given ETCD3_HOSTS)$(given ETCD3_HOST)$(given ETCD3_URL)$(given ETCD_HOSTS)$(given ETCD_HOST)$(given ETCD_URL)" ] ||
  fail "no etcd is named; hint: PATRONI_ETCD3_HOSTS=etcd1:2379,etcd2:2379,etcd3:2379"
superuser=$(given SUPERUSER_USERNAME); superuser=${superuser:-${POSTGRES_USER:-postgres}}
password=$(given SUPERUSER_PASSWORD); password=${password:-${POSTGRES_PASSWORD:-}}
[ -n "$password" ] || fail "the superuser has no password; hint: POSTGRES_PASSWORD or POSTGRES_PASSWORD_FILE, the same on every node"
# Where no replication user is given there is one secret less: the superuser replicates.
replicator=$(given REPLICATION_USERNAME) replicator_password=$(given REPLICATION_PASSWORD)
if [ -z "$replicator_password" ]; then
  [ -z "$replicator" ] || [ "$replicator" = "$superuser" ] || fail "the user $replicator has no password; hint: PATRONI_REPLICATION_PASSWORD"
  replicator=$superuser replicator_password=$password
fi
data_dir=$(given POSTGRESQL_DATA_DIR); data_dir=${data_dir:-$PGDATA}
mkdir -p "$data_dir" 2>/dev/null || fail "$data_dir can't be made by user $(id -u); hint: its volume has to be owned by 999 (chown 999:999), or writable for its group (fsGroup: 999)"
[ -w "$data_dir" ] || fail "$data_dir can't be written by user $(id -u); hint: chown -R 999:999"
chmod 700 "$data_dir"
[ -z "${POSTGRES_HOST_AUTH_METHOD:-}" ] ||
  echo "entrypoint: POSTGRES_HOST_AUTH_METHOD is not read: rules other than scram-sha-256 are given in a file of yours ($OWN)" >&2
[ -z "${POSTGRES_INITDB_WALDIR:-}" ] ||
  echo "entrypoint: POSTGRES_INITDB_WALDIR is not read: WAL stays in the data directory ($data_dir)" >&2

parameters=()
while [ $# -gt 0 ]; do
  case $1 in
    -c) shift; parameters+=("${1:-}") ;;
    -c?*) parameters+=("${1#-c}") ;;
    --?*=*) parameters+=("${1#--}") ;;
    *) fail "the argument $1 is unknown; usage: arbiter [-c NAME=VALUE]..." ;;
  esac
  [[ ${parameters[-1]} == [a-zA-Z_]*=* ]] || fail "\"${parameters[-1]}\" is no NAME=VALUE"
  shift
done

{
  echo "# Made by the container's entrypoint from its environment, at each start."
  echo "scope: $(quoted "$scope")"
  echo "name: $(quoted "$name")"
  echo "restapi:"
  echo "  listen: 0.0.0.0:8008"
  echo "  connect_address: $(quoted "$address:8008")"
  echo "bootstrap:"
  echo "  dcs: {ttl: 10, loop_wait: 5, retry_timeout: 2, postgresql: {use_pg_rewind: true, use_slots: true}}"
  echo "  initdb:"
  echo "    - encoding: UTF8"
  echo "    - data-checksums"
  initdb_options "${POSTGRES_INITDB_ARGS:-}" | while IFS= read -r -d '' option; do echo "    - $(quoted "$option")"; done
  echo "  post_bootstrap: /usr/local/lib/tenure/founded.sh"
  echo "postgresql:"
  echo "  listen: 0.0.0.0:5432"
  echo "  connect_address: $(quoted "$address:5432")"
  echo "  data_dir: $(quoted "$data_dir")"
  echo "  bin_dir: /usr/lib/postgresql/$PG_MAJOR/bin"
  echo "  pgpass: /run/tenure/pgpass"
  echo "  server_log: /dev/stderr"
  echo "  use_unix_socket: true"
  echo "  authentication:"
  echo "    superuser: {username: $(quoted "$superuser"), password: $(quoted "$password")}"
  echo "    replication: {username: $(quoted "$replicator"), password: $(quoted "$replicator_password")}"
  echo "  pg_hba:"
  for rule in "local all all scram-sha-256" "host all all all scram-sha-256" "host replication \"$replicator\" all scram-sha-256"; do
    echo "    - $(quoted "$rule")"
  done
  if [ ${#parameters[@]} -gt 0 ]; then
    echo "  parameters:"
    for parameter in "${parameters[@]}"; do echo "    $(quoted "${parameter%%=*}"): $(quoted "${parameter#*=}")"; done
  fi
} >"$MADE"

# The founding reads these (founded.sh), without the password.
export POSTGRES_USER=$superuser POSTGRES_DB=${POSTGRES_DB:-$superuser}
unset POSTGRES_PASSWORD {PATRONI,TENURE}_{SUPERUSER,REPLICATION}_PASSWORD
exec tenure arbiter "$MADE"
