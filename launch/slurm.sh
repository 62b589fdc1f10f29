#!/usr/bin/env bash
# Submits a training job on GPUs to SLURM, one process per GPU. The .venv of this repository must
# hold jaxasa and jax[cuda13]:
#   bash launch/slurm.sh --nodes 4 --gpus 8 -- train sft --workdir /shared/run
# Options: --nodes N (1); --gpus N per node (8); --cpus N per process (8); --time, --partition,
# --account of sbatch; --name of the job; --restarts N (5): requeues the job after exit code 75
# (SLURM sends SIGTERM 120 s before the time limit, and jaxasa saves a checkpoint); --dry_run.
set -euo pipefail
here=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
source "$here/job.sh"

usage="usage: slurm.sh [--nodes N] [--gpus N] [--cpus N] [--time T] [--partition P] [--account A] \
[--name NAME] [--restarts N] [--dry_run] -- JAXASA_ARGUMENTS"

# Inside the allocation: runs the job step, and requeues the job if the exit code is resumable.
if [[ ${1:-} == --inside ]]; then
    restarts=$2
    shift 2
    code=0
    export JAXASA_COORDINATOR=auto JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
    # From SLURM 22.05 on, srun does not inherit --cpus-per-task: each process would get one core.
    srun --label --kill-on-bad-exit=1 \
        ${SLURM_CPUS_PER_TASK:+"--cpus-per-task=$SLURM_CPUS_PER_TASK"} \
        "$here/../.venv/bin/jaxasa" "$@" || code=$?
    if is_resumable "$code" && ((${SLURM_RESTART_COUNT:-0} < restarts)); then
        echo "slurm.sh: exit code $code, restart $((${SLURM_RESTART_COUNT:-0} + 1)) of $restarts" >&2
        exec scontrol requeue "$SLURM_JOB_ID"
    fi
    echo "slurm.sh: ended with exit code $code" >&2
    exit "$code"
fi

nodes=1 gpus=8 cpus=8 time='' partition='' account='' name=jaxasa restarts=5
parse_options "$usage" nodes gpus cpus time partition account name restarts -- "$@"

inside="bash $(quoted "$here/slurm.sh" --inside "$restarts" "${jaxasa[@]}")"
command=(sbatch "--job-name=$name" "--nodes=$nodes" "--ntasks-per-node=$gpus"
    "--gpus-per-node=$gpus" "--cpus-per-task=$cpus" ${time:+"--time=$time"}
    ${partition:+"--partition=$partition"} ${account:+"--account=$account"}
    --requeue --open-mode=append --signal=TERM@120 "--output=$name-%j.log" "--wrap=$inside")
quoted "${command[@]}" && echo
[[ -n $dry_run ]] || exec "${command[@]}"
