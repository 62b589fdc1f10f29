#!/usr/bin/env bash
# Starts a training job on a GKE cluster of TPUs through xpk (pip install xpk), and returns:
#   bash launch/gke.sh --cluster C --workload sft-1 --tpu v5p-256 --image IMAGE \
#     -- train sft --workdir /mnt/shared/run
# IMAGE holds jaxasa with jax[tpu] (`jaxasa` on its PATH). Options: --slices N (1); --project P;
# --zone Z; --restarts N (5), by the cluster, for exit code 75 and xpk's defaults (127 and above:
# lost machines); --dry_run.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/job.sh"

usage="usage: gke.sh --cluster C --workload NAME --tpu TYPE --image IMAGE [--slices N] \
[--project P] [--zone Z] [--restarts N] [--dry_run] -- JAXASA_ARGUMENTS"
cluster='' workload='' tpu='' image='' slices=1 project='' zone='' restarts=5
parse_options "$usage" cluster workload tpu image slices project zone restarts -- "$@"
need cluster workload tpu image

inside="JAXASA_COORDINATOR=auto JAX_PLATFORMS=tpu,cpu jaxasa $(quoted "${jaxasa[@]}")"
command=(xpk workload create "--cluster=$cluster" "--workload=$workload" "--tpu-type=$tpu"
    "--num-slices=$slices" "--docker-image=$image" ${project:+"--project=$project"}
    ${zone:+"--zone=$zone"} "--max-restarts=$restarts" --restart-on-exit-codes=75
    "--command=$inside")
quoted "${command[@]}" && echo
[[ -n $dry_run ]] || exec "${command[@]}"
