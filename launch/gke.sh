#!/usr/bin/env bash
# A run on one TPU slice of a GKE cluster, as a JobSet. Needs kubectl, pointed at the cluster, and the JobSet controller.
#   launch/gke.sh --name NAME --type ACCELERATOR --topology AxB --image IMAGE [options] FLAGS…
# FLAGS go to clips_jax.main; --workdir on gs://. IMAGE holds this checkout in /clips_jax and what it needs.
#   --type           the node pool's: tpu-v5-lite-podslice, tpu-v5p-slice, tpu-v6e-slice, tpu-v4-podslice
#   --topology       such as 16x16
#   --chips-per-host default 4
#   --restarts N     default 20
#   --dry-run        prints the manifest, applies nothing
# Logs: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME.  End: kubectl delete jobset NAME
# With XPK the same run is: xpk workload create --workload NAME --tpu-type v5litepod-256 --docker-image IMAGE --command …
set -euo pipefail
cd "$(dirname "$0")/.."

name='' type='' topology='' image='' per_host=4 restarts=20 dry_run=''
while [[ ${1:-} == -* ]]; do
  case "$1" in
  --name) name=$2 && shift 2 ;;
  --type) type=$2 && shift 2 ;;
  --topology) topology=$2 && shift 2 ;;
  --image) image=$2 && shift 2 ;;
  --chips-per-host) per_host=$2 && shift 2 ;;
  --restarts) restarts=$2 && shift 2 ;;
  --dry-run) dry_run=yes && shift ;;
  --help) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit 2 ;;
  *) break ;; # the first flag of clips_jax.main
  esac
done
fail() {
  echo "launch/gke.sh: $1; see launch/gke.sh --help" >&2
  exit 2
}
[[ $name =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || fail "--name: lower-case letters, digits and dashes, at most 40"
[ -n "$type" ] || fail "--type is missing"
[[ $topology =~ ^[0-9]+(x[0-9]+)+$ ]] || fail "--topology: such as 16x16"
[ -n "$image" ] || fail "--image is missing"
[ $# -gt 0 ] || fail "the flags of clips_jax.main are missing"

chips=$((${topology//x/*}))
((chips % per_host == 0)) || fail "--topology: $chips chips do not divide over hosts of $per_host"
run="cd /clips_jax && source launch/xla_flags.sh tpu && exec python -m clips_jax.main --distributed$(printf ' %q' "$@")"
quoted="'${run//\'/\'\'}'" # a YAML string in single quotes
escape() { printf '%s' "$1" | sed 's/[&|\\]/\\&/g'; }
manifest=$(sed -e "s|\bNAME\b|$name|" -e "s|\bRESTARTS\b|$restarts|" -e "s|\bHOSTS\b|$((chips / per_host))|" \
  -e "s|\bACCELERATOR\b|$type|" -e "s|\bTOPOLOGY\b|$topology|" -e "s|\bIMAGE\b|$(escape "$image")|" \
  -e "s|\bCHIPS\b|$per_host|" -e "s|\bCOMMAND\b|$(escape "$quoted")|" launch/jobset.yaml)
if [ -n "$dry_run" ]; then
  echo "$manifest"
else
  kubectl apply -f - <<<"$manifest"
fi
