#!/usr/bin/env bash
# compile.sh COMMAND...: runs a build by cargo and says what goes on in a few lines instead of one for each crate: on a terminal one line
# that moves, else one every 20 s. Warnings and errors pass through as they are.
set -uo pipefail

began=$SECONDS
crates=0
crate=
told=$SECONDS
spoke=
[ -t 1 ] && terminal=yes || terminal=

total=$(grep -c '^name = ' Cargo.lock)
tell() {
  [ "$crates" -gt 0 ] || return 0
  if [ -z "$spoke" ]; then
    echo "build: the extension, the arbiter and the demo's client, optimised; the first time this takes 7 to 10 minutes on 2 cores, later seconds"
    spoke=yes
  fi
  local line="build: $crates of at most $total crates begun after $((SECONDS - began)) s, now $crate"
  if [ -n "$terminal" ]; then printf '\r\033[K%s' "$line"; else echo "$line"; fi
  told=$SECONDS
}

"$@" 2>&1 | {
  while :; do
    line=
    # A silent build is waited for 20 s at a time, so that it can be said that it goes on.
    if IFS= read -r -t 20 line; then
      case $line in
        *Compiling\ *) crates=$((crates + 1)); crate=${line##*Compiling }; crate=${crate%% *}
          if [ -n "$terminal" ] || [ -z "$spoke" ] || [ $((SECONDS - told)) -ge 20 ]; then tell; fi ;;
        *Downloading\ * | *Downloaded\ * | *Updating\ * | *Finished\ * | *Locking\ * | *Blocking\ *) ;;
        *) [ -z "$terminal" ] || [ -z "$spoke" ] || printf '\r\033[K'
          printf '%s\n' "$line" ;;
      esac
    elif [ $? -gt 128 ]; then
      tell
    else
      break
    fi
  done
  if [ -n "$spoke" ]; then
    [ -z "$terminal" ] || printf '\r\033[K'
    echo "build: done after $((SECONDS - began)) s"
  fi
}
exit "${PIPESTATUS[0]}"
