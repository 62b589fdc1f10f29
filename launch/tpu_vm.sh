#!/usr/bin/env bash
# Runs a training job on all workers of an existing Cloud TPU VM. Install jaxasa on each worker:
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command='git clone URL jaxasa &&
#     cd jaxasa && python3 -m venv .venv && .venv/bin/pip install -e . "jax[tpu]"'
#   bash launch/tpu_vm.sh --tpu NAME --zone ZONE -- train sft --workdir /mnt/shared/run
# Options: --project P; --folder DIR of jaxasa on the workers (default jaxasa in the home folder);
# --restarts N (5) and --pause SECONDS (30) for exit code 75; --dry_run.
set -euo pipefail
source "$(dirname -- "${BASH_SOURCE[0]}")/job.sh"

usage="usage: tpu_vm.sh --tpu NAME --zone ZONE [--project P] [--folder DIR] [--restarts N] \
[--pause SECONDS] [--dry_run] -- JAXASA_ARGUMENTS"
tpu='' zone='' project='' folder=jaxasa restarts=5 pause=30
parse_options "$usage" tpu zone project folder restarts pause -- "$@"
need tpu zone

remote="cd $(quoted "$folder") && JAXASA_COORDINATOR=auto JAX_PLATFORMS=tpu,cpu \
.venv/bin/jaxasa $(quoted "${jaxasa[@]}")"
command=(gcloud compute tpus tpu-vm ssh "$tpu" "--zone=$zone" ${project:+"--project=$project"}
    --worker=all "--command=$remote")
quoted "${command[@]}" && echo
[[ -n $dry_run ]] || run_with_restarts "${command[@]}"
