#!/usr/bin/env bash
# Submits a run to SLURM: one process per GPU, joined by jax.distributed.
#   launch/slurm.sh [options] FLAGS…              FLAGS go to clips_jax.main; --workdir on a disk that all nodes share
# Options (first):
#   --nodes N        default 1                    --gpus N           per node, default 8
#   --cpus N         per GPU, default 12          --time T           default 24:00:00
#   --partition P, --account A                    default: the cluster's own
#   --name NAME      of the job, default clips    --dry-run          prints the job, submits nothing
# 120 s before the time limit, and when the job is preempted, the run saves and exits with 75; the job is then queued
# again and resumes. Run `source launch/environment.sh requirements.txt` and `.venv/bin/pip install "jax[cuda12]==0.10.2"`
# (the jax of requirements.txt) once before, on a node that has the shared disk.
set -euo pipefail
cd "$(dirname "$0")/.."

nodes=1 gpus=8 cpus=12 time=24:00:00 name=clips dry_run='' extra=()
while [[ ${1:-} == -* ]]; do
  case "$1" in
  --nodes) nodes=$2 && shift 2 ;;
  --gpus) gpus=$2 && shift 2 ;;
  --cpus) cpus=$2 && shift 2 ;;
  --time) time=$2 && shift 2 ;;
  --name) name=$2 && shift 2 ;;
  --partition | --account) extra+=("#SBATCH $1=$2") && shift 2 ;;
  --dry-run) dry_run=yes && shift ;;
  --help) sed -n '2,11s/^# \{0,1\}//p' "$0" && exit 2 ;;
  *) break ;; # the first flag of clips_jax.main
  esac
done
if [ $# -eq 0 ]; then
  echo "launch/slurm.sh: the flags of clips_jax.main are missing; see launch/slurm.sh --help" >&2
  exit 2
fi

job=$(
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=$name
#SBATCH --nodes=$nodes
#SBATCH --ntasks-per-node=$gpus
#SBATCH --gpus-per-node=$gpus
#SBATCH --cpus-per-task=$cpus
#SBATCH --time=$time
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=$name-%j.log
$(printf '%s\n' "${extra[@]}")
set -uo pipefail
cd $(printf '%q' "$PWD") || exit 1
source launch/xla_flags.sh gpu
# Processes that lose a peer end by themselves; the rest are ended 300 s after the first.
srun --label --wait=300 .venv/bin/python -m clips_jax.main --distributed$(printf ' %q' "$@")
code=\$?
# Preempted, a lost peer, or killed: queue it again, 20 times at most.
if { [ "\$code" -eq 75 ] || [ "\$code" -ge 129 ]; } && [ "\${SLURM_RESTART_COUNT:-0}" -lt 20 ]; then
  scontrol requeue "\$SLURM_JOB_ID"
fi
exit "\$code"
EOF
)
if [ -n "$dry_run" ]; then
  echo "$job"
else
  sbatch <<<"$job"
fi
