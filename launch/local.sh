#!/usr/bin/env bash
# Runs training in N processes on this machine, joined by jax.distributed, as a pod does. Flags after N go to
# clips_jax.main:
#   launch/local.sh [--devices D] [--restarts R] [--dry-run] N --config configs/demo.py --workdir runs/demo
#   --devices D    pretend that each process has D CPU devices (default: what is there)
#   --restarts R   start all again, at most R times, when a process exits with 75 or dies by a signal (default 3)
#   --dry-run      print the commands, run nothing
# Lines carry the number of their process. The first process that fails ends the others, and its exit code is the
# script's. SIGTERM and Ctrl-C go to all processes, which save and stop; then nothing is restarted.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

devices='' restarts=3 dry_run=''
while [[ ${1:-} == -* ]]; do
  case "$1" in
  --devices) devices=$2 && shift 2 ;;
  --restarts) restarts=$2 && shift 2 ;;
  --dry-run) dry_run=yes && shift ;;
  *) sed -n '2,9s/^# \{0,1\}//p' "$0" && exit 2 ;;
  esac
done
count=${1:-}
if ! [[ $count =~ ^[1-9][0-9]*$ ]]; then
  echo "launch/local.sh: N, the number of processes, is missing; see launch/local.sh --help" >&2
  exit 2
fi
shift

if [ -n "${VIRTUAL_ENV:-}" ]; then
  python=$VIRTUAL_ENV/bin/python
elif [ -n "$dry_run" ]; then
  python=.venv/bin/python
else
  source launch/environment.sh requirements.txt
  python=.venv/bin/python
fi
source launch/xla_flags.sh cpu
if [ -n "$devices" ]; then
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi
command=("$python" -u -m clips_jax.main --distributed "$@")

if [ -n "$dry_run" ]; then
  for ((i = 0; i < count; i++)); do
    echo "${devices:+XLA_FLAGS=\"$XLA_FLAGS\" }JAX_COORDINATOR_ADDRESS=localhost:FREE_PORT JAX_NUM_PROCESSES=$count" \
      "JAX_PROCESS_ID=$i ${command[*]}"
  done
  exit
fi

stopping='' pids=() killer=''
# shellcheck disable=SC2329 # called by the traps
forward() {
  stopping=yes
  for pid in "${pids[@]}"; do kill "-$1" "$pid" 2>/dev/null; done
}
trap 'forward TERM' TERM
trap 'forward INT' INT

# Ends the processes that are left: they get time to notice by themselves, then SIGTERM, then SIGKILL.
end_after() {
  (
    trap - TERM INT
    sleep "$1"
    kill -TERM "${@:2}" 2>/dev/null
    sleep 20
    kill -KILL "${@:2}" 2>/dev/null
  ) >/dev/null 2>&1 & # who reads our output must not wait for the sleeping one
  killer=$!
}

# Starts N processes and waits for all; the result is the exit code of the first that failed.
run_once() {
  local port status=0
  port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("localhost", 0)); print(s.getsockname()[1])')
  pids=() killer=''
  for ((i = 0; i < count; i++)); do
    JAX_COORDINATOR_ADDRESS=localhost:$port JAX_NUM_PROCESSES=$count JAX_PROCESS_ID=$i \
      "${command[@]}" > >(sed -u "s/^/[$i] /") 2> >(sed -u "s/^/[$i] /" >&2) &
    pids+=($!)
  done
  while [ ${#pids[@]} -gt 0 ]; do
    wait -n "${pids[@]}" 2>/dev/null # also ends when a trapped signal arrives
    local left=()
    for pid in "${pids[@]}"; do
      if kill -0 "$pid" 2>/dev/null; then
        left+=("$pid")
      else
        wait "$pid"
        local code=$?
        [ "$code" -eq 0 ] || [ "$status" -ne 0 ] || status=$code
      fi
    done
    pids=("${left[@]}")
    if [ "$status" -ne 0 ] && [ -z "$killer" ] && [ ${#pids[@]} -gt 0 ]; then
      # After 75 all are on their way out and may still be saving.
      end_after "$([ "$status" -eq 75 ] && echo 120 || echo 5)" "${pids[@]}"
    fi
  done
  [ -z "$killer" ] || kill "$killer" 2>/dev/null
  return "$status"
}

while :; do
  run_once
  status=$?
  if [ -n "$stopping" ] || { [ "$status" -ne 75 ] && [ "$status" -lt 129 ]; } || [ "$restarts" -le 0 ]; then
    exit "$status"
  fi
  restarts=$((restarts - 1))
  echo "local.sh: exit code $status, starting all again ($restarts restarts left)" >&2
  sleep 1
done
