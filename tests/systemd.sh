#!/usr/bin/env bash
# The units under systemd, as PID 1 of three machines: boot, restart, reload, journal, a killed and a hung arbiter, stop, reboot.
# `systemd.sh TARGET` takes the packages from TARGET/packages and the writer from TARGET/release; make systemd-test builds them.
# SUITE=trixie tries another Debian release than this machine's; KEEP=yes leaves the root for the next run.
set -euo pipefail
cd "$(dirname "$0")/.."
. tests/machines.sh
MAJOR=${PG_MAJOR:-15}
SUITE=${SUITE:-$(. /etc/os-release && echo "$VERSION_CODENAME")}
ROOT=$WORK/root-$SUITE
UNIT=tenure@demo

if [ "${MACHINES_INSIDE:-}" != 1 ]; then
  TARGET=${1:-target}
  machines_can_run
  mkdir -p "$WORK"
  exec 9>"$WORK.lock"
  flock -n 9 || fail "another make systemd-test uses $WORK; hint: MACHINES_DIR=/var/tmp/other"
  remove() { remove_groups; [ "${KEEP:-}" = yes ] || rm -rf --one-file-system "$WORK" "$WORK.lock"; }
  trap remove EXIT
  trap 'exit 1' INT TERM HUP
  for name in "${NODES[@]}"; do rm -rf --one-file-system "${WORK:?}/$name"; done
  if [ ! -e "$ROOT/etc/os-release" ]; then
    say "a root of $SUITE with PostgreSQL $MAJOR and etcd"
    make_root "$SUITE" "$ROOT"
    install_in "$ROOT" "postgresql-$MAJOR" etcd-server etcd-client
    without_debians_own "$ROOT" "$MAJOR"
  fi
  say "the packages of pg_tenure"
  install -D -m 755 "$TARGET/release/pause" "$WORK/pause"
  rm -rf "$ROOT/packages"
  cp -rL "$TARGET/packages" "$ROOT/packages"
  in_root "$ROOT" sh -c 'dpkg --purge pg-tenure >/dev/null 2>&1; true'
  install_in "$ROOT" --reinstall $(cd "$ROOT" && ls -t packages/pg-tenure_*.deb packages/postgresql-"$MAJOR"-pg-tenure_*.deb | awk -F _ '!seen[$1]++ { print "/" $0 }')
  code=0
  in_namespaces "$@" || code=$?
  [ "$code" = 0 ] || fail "see above"
  say "passed on $SUITE"
  exit
fi

mount --make-rprivate /
ip link set lo up
for number in 1 2 3; do
  machine "n$number" "$ROOT"
  node "$WORK/n$number/root" "$number"
  by_example "$WORK/n$number/root" "$number"
done

# since MOMENT NAME WORDS: the unit's journal has it since then.
said_since() { inside "$2" journalctl --no-pager -o cat -u "$UNIT" --since "$1" | grep -q -- "$3"; }
now() { inside n1 date '+%Y-%m-%d %H:%M:%S'; }
restarts() { property "$1" NRestarts; }
same_server() { [ "$(postmaster "$1")" = "$2" ] || fail "Postgres on $1 is process $(postmaster "$1"), was $2"; }
restarted() { [ "$(restarts "$1")" -gt "$2" ] && [ "$(property "$1" ActiveState)" = active ]; }
leads_other_than() { local other; other=$(leader) && [ "$other" != "$1" ]; }
export UNIT

say "boot of three machines brings the cluster up"
began=$(date +%s%N)
for name in "${NODES[@]}"; do boot "$name"; done
wait_for 180 "primary with two streaming standbys" healthy
ok "boot: a primary with two streaming standbys $((($(date +%s%N) - began) / 1000000)) ms after the first machine was switched on"
tool n1 list
inside n1 systemctl --version | head -n 1
echo "    Type=$(property n1 Type) WatchdogUSec=$(property n1 WatchdogUSec) KillMode=$(property n1 KillMode) RestartKillSignal=$(property n1 RestartKillSignal)"
inside n1 systemd-analyze --no-pager security "$UNIT" 2>/dev/null | tail -n 1 || true
refused=$(for name in "${NODES[@]}"; do inside "$name" journalctl --no-pager -o cat _PID=1 | grep -i 'reception only permitted\|failed to parse\|unknown .*key\|ignoring:' || true; done)
[ -z "$refused" ] || fail "systemd complains: $refused"

who=$(leader)
server=$(postmaster "$who")
say "systemctl reload $UNIT, on the leader $who"
moment=$(now)
inside "$who" systemctl reload "$UNIT"
wait_for 10 "reload" said_since "$moment" "$who" "reading /etc/tenure/demo.yml again"
[ "$(property "$who" ActiveState)" = active ] || fail "the unit is not active after a reload"
same_server "$who" "$server"
ok "systemctl reload: the file was read again"

say "systemctl restart $UNIT, on the leader $who"
main=$(property "$who" MainPID)
under_load restart inside "$who" systemctl restart "$UNIT"
same_server "$who" "$server"
[ "$(property "$who" MainPID)" != "$main" ] || fail "the arbiter is the same process"
wait_for 60 "healthy cluster" healthy
[ "$(leader)" = "$who" ] || fail "the leader changed"
ok "systemctl restart: a new arbiter adopted Postgres (process $server), which ran on, and leads"

say "the journal's fields"
entry=$(inside "$who" journalctl --no-pager -o json --output-fields=MEMBER,SCOPE,TERM,PRIORITY,MESSAGE -n 1 "MEMBER=$who" SCOPE=demo PRIORITY=6 _SYSTEMD_UNIT=$UNIT.service)
echo "    $entry"
grep -q "\"MEMBER\":\"$who\"" <<<"$entry" || fail "no entry of $who at priority 6"
term=$(tool "$who" list --format json >/dev/null && inside "$who" journalctl --no-pager -o json -u "$UNIT" | grep -o '"TERM":"[^"]*"' | tail -n 1)
[ -n "$term" ] || fail "no entry has a TERM"
warned=$(inside "$who" journalctl --no-pager -o cat -p warning -u "$UNIT" "MEMBER=$who" | wc -l)
ok "journalctl MEMBER=$who SCOPE=demo PRIORITY=6 has entries, the last one of $term; -p warning shows $warned"

say "SIGKILL of the arbiter on the leader $who"
before=$(restarts "$who")
killed() { inside "$1" systemctl kill --kill-whom=main -s KILL "$UNIT"; wait_for 30 "new arbiter" restarted "$1" "$2"; }
export -f killed restarted restarts
under_load SIGKILL killed "$who" "$before"
same_server "$who" "$server"
[ "$(leader)" = "$who" ] || fail "the leader changed"
ok "systemctl kill -s KILL: restarted by systemd, Postgres ran on"

say "a hung arbiter (SIGSTOP) on the leader $who"
before=$(restarts "$who")
moment=$(now)
began=$(date +%s%N)
hung() { inside "$1" systemctl kill --kill-whom=main -s STOP "$UNIT"; wait_for 60 "watchdog to act" restarted "$1" "$2"; }
export -f hung
under_load SIGSTOP hung "$who" "$before"
inside "$who" journalctl --no-pager -o cat --since "$moment" _PID=1 | grep -i watchdog | sed 's/^/    /' || fail "it was not the watchdog"
same_server "$who" "$server"
ok "systemctl kill -s STOP: the watchdog had a new arbiter after $((($(date +%s%N) - began) / 1000000)) ms (the writer's 2 s included), Postgres ran on"
wait_for 60 "healthy cluster" healthy

say "systemctl stop $UNIT, on the leader $who"
under_load stop inside "$who" systemctl stop "$UNIT"
leads_other_than "$who" || fail "leadership was not handed over"
[ "$(property "$who" Result)" = success ] || fail "the unit ended with $(property "$who" Result)"
! inside "$who" pgrep -x postgres >/dev/null || fail "Postgres still runs"
inside "$who" journalctl --no-pager -o cat -u "$UNIT" | grep 'leadership handed over' | tail -n 1 | sed 's/^/    /'
ok "systemctl stop: handed over to $(leader), Postgres stopped"
inside "$who" systemctl start "$UNIT"
wait_for 60 "healthy cluster" healthy

who=$(leader)
say "systemctl reboot of the leader's machine, $who (with its member of etcd)"
first=$(first_process "$who")
rebooted() {
  inside "$1" systemctl reboot || true
  wait_for 120 "$1 to be another boot" another_boot "$1" "$2"
  wait_for 120 "healthy cluster" healthy
}
another_boot() { local first; first=$(first_process "$1"); [ -n "$first" ] && [ "$first" != "$2" ] && is_up "$1"; }
export -f rebooted another_boot
under_load reboot rebooted "$who" "$first"
[ "$(leader)" != "$who" ] || fail "$who leads again: leadership was not handed over"
inside "$who" journalctl --no-pager -o cat -b -1 -u "$UNIT" | grep 'leadership handed over' | sed 's/^/    /' || fail "its last boot knows of no hand-over"
ok "systemctl reboot: handed over, and $who is back as a standby"

say "systemctl poweroff of all"
for name in "${NODES[@]}"; do inside "$name" systemctl poweroff || true; done
gone() { ! kill -0 "$(cat "$WORK/$1/nspawn")" 2>/dev/null; }
for name in "${NODES[@]}"; do wait_for 120 "$name to be off" gone "$name"; done
ok "three machines are off"
