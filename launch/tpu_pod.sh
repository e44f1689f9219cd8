#!/usr/bin/env bash
# A TPU pod slice by queued resources, and a run on all its workers. Needs gcloud, logged in.
#   launch/tpu_pod.sh [options] create            asks for the slice and returns; `status` says when it is there
#   launch/tpu_pod.sh [options] status
#   launch/tpu_pod.sh [options] install           copies this checkout to every worker and installs what it needs
#   launch/tpu_pod.sh [options] run FLAGS…        python -m clips_jax.main --distributed FLAGS… on every worker
#   launch/tpu_pod.sh [options] delete
# Options (before the command):
#   --name NAME        of the slice (required)        --zone ZONE        such as us-west4-a (required)
#   --type TYPE        such as v5litepod-256, v5p-256, v6e-256 (create)
#   --runtime VERSION  image of the workers (create; default: by --type)
#   --project ID       default: gcloud's own          --spot             cheaper, may be taken away
#   --dry-run          prints the gcloud commands, runs nothing
# `run` starts a worker again when it is preempted or loses a peer (launch/restart.sh); put --workdir on gs://.
set -euo pipefail
cd "$(dirname "$0")/.."

name='' zone='' type='' runtime='' dry_run='' project=() spot=()
while [[ ${1:-} == -* ]]; do
  case "$1" in
  --name) name=$2 && shift 2 ;;
  --zone) zone=$2 && shift 2 ;;
  --type) type=$2 && shift 2 ;;
  --runtime) runtime=$2 && shift 2 ;;
  --project) project=(--project "$2") && shift 2 ;;
  --spot) spot=(--spot) && shift ;;
  --dry-run) dry_run=yes && shift ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "$0" && exit 2 ;;
  esac
done
fail() {
  echo "launch/tpu_pod.sh: $1; see launch/tpu_pod.sh --help" >&2
  exit 2
}
[ -n "$name" ] || fail "--name is missing"
[ -n "$zone" ] || fail "--zone is missing"

gcloud() { # prints it in a dry run
  if [ -n "$dry_run" ]; then
    printf 'gcloud'
    printf ' %q' "$@"
    echo
  else
    command gcloud "$@"
  fi
}
queued() { gcloud compute tpus queued-resources "$@" --zone "$zone" "${project[@]}"; }
workers() { gcloud compute tpus tpu-vm ssh "$name" --worker=all --zone "$zone" "${project[@]}" --command "$1"; }

action=${1:-}
[ $# -eq 0 ] || shift
case "$action" in
create)
  [ -n "$type" ] || fail "--type is missing"
  if [ -z "$runtime" ]; then
    case "$type" in
    v5litepod*) runtime=v2-alpha-tpuv5-lite ;;
    v5p*) runtime=v2-alpha-tpuv5 ;;
    v6e*) runtime=v2-alpha-tpuv6e ;;
    v4*) runtime=tpu-ubuntu2204-base ;;
    *) fail "--runtime is missing, and not known for $type" ;;
    esac
  fi
  queued create "$name" --node-id "$name" --accelerator-type "$type" --runtime-version "$runtime" "${spot[@]}"
  ;;
status) queued describe "$name" --format 'value(state.state)' ;;
delete) queued delete "$name" --force --quiet ;;
install)
  archive=$(mktemp)
  trap 'rm -f "$archive"' EXIT
  git archive --format=tar.gz --output="$archive" HEAD
  gcloud compute tpus tpu-vm scp "$archive" "$name:clips_jax.tar.gz" --worker=all --zone "$zone" "${project[@]}"
  workers "mkdir -p clips_jax && tar -xzf clips_jax.tar.gz -C clips_jax && cd clips_jax && \
source launch/environment.sh requirements.txt && .venv/bin/pip install --quiet '$(sed -n 's/^jax==/jax[tpu]==/p' requirements.txt)'"
  ;;
run)
  [ $# -gt 0 ] || fail "run: the flags of clips_jax.main are missing"
  workers "cd clips_jax && source launch/xla_flags.sh tpu && \
launch/restart.sh .venv/bin/python -m clips_jax.main --distributed$(printf ' %q' "$@")"
  ;;
*) fail "the command is missing: create, status, install, run or delete" ;;
esac
