#!/usr/bin/env bash
# Runs a command again when it ends with the exit code "restart me" (75), or by a signal that nobody here sent:
#   launch/restart.sh [--times N] COMMAND…          N: restarts in a row, 20 by default; an hour's run ends a row
# A run saves before it exits with 75 (preemption, a lost peer, a hang), and the same command resumes it. Any other exit
# code is passed on: an error in a config would only happen again. SIGTERM and SIGINT go to the command; no restart then.
set -uo pipefail
times=20 healthy=${RESTART_HEALTHY_SECONDS:-3600}
if [ "${1:-}" = --times ]; then
  times=$2
  shift 2
fi
if [ $# -eq 0 ] || [ "$1" = --help ]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  exit 2
fi

left=$times stopping='' child=''
# shellcheck disable=SC2329 # called by the traps
forward() {
  stopping=yes
  [ -z "$child" ] || kill "-$1" "$child" 2>/dev/null
}
trap 'forward TERM' TERM
trap 'forward INT' INT

while :; do
  began=$SECONDS
  "$@" &
  child=$!
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a trapped signal ends `wait` early
    wait "$child"
    code=$?
  done
  [ $((SECONDS - began)) -lt "$healthy" ] || left=$times
  if [ -n "$stopping" ] || { [ "$code" -ne 75 ] && [ "$code" -lt 129 ]; } || [ "$left" -le 0 ]; then
    exit "$code"
  fi
  left=$((left - 1))
  echo "restart.sh: exit code $code, starting again ($left restarts left)" >&2
  sleep 1
done
