# Sourced by tpu_vm.sh, gke.sh and slurm.sh: option parsing, quoting, restarts.
# Each of these scripts is called as SCRIPT [OPTIONS] -- JAXASA_ARGUMENTS, for `train STAGE` only:
# other commands are not distributed, so every process would do all of the work. Example:
#   bash launch/slurm.sh --nodes 2 -- train sft --workdir /shared/run --gin.SftStage.steps=1000
# With --dry_run a script prints its command, quoted for a shell, and runs nothing.
#
# shellcheck disable=SC2034,SC2154  # variables go to and come from the script that sources this
#
# Every process must see the same --workdir, a path (not gs://) in a file system that can rename
# folders: NFS, Filestore, Lustre, or Cloud Storage FUSE if the bucket has a hierarchical namespace
# or is mounted with rename-dir-limit above the number of files of a checkpoint.

# Exit codes after which the same command resumes: 75 (preempted, checkpoint saved), and 128 and
# above except 130 (killed by a signal: a host was lost, and JAX aborts the processes that wait for it).
is_resumable() { (($1 == 75 || ($1 >= 128 && $1 != 130))); }

stop() {
    echo "${0##*/}: $1" >&2
    exit 2
}

# parse_options USAGE NAME... -- ARGUMENTS: sets a variable for each --NAME VALUE, dry_run, and
# the array `jaxasa` of the arguments after the second "--".
parse_options() {
    local usage=$1 name known=" "
    shift
    while [[ $1 != -- ]]; do
        known+="$1 "
        shift
    done
    shift
    dry_run=
    while (($#)) && [[ $1 != -- ]]; do
        name=${1#--}
        case $1 in
        --help) printf '%s\n' "$usage" && exit 0 ;;
        --dry_run) dry_run=1 && shift && continue ;;
        --*) ;;
        *) stop "$1: expected an option, or -- before the arguments of jaxasa" ;;
        esac
        [[ $known == *" $name "* ]] || stop "$1: no such option, expected one of${known// / --}dry_run"
        (($# > 1)) || stop "$1: expected a value after it"
        printf -v "$name" '%s' "$2"
        shift 2
    done
    (($# > 1)) || stop "expected -- and the arguments of jaxasa after the options; $usage"
    shift
    jaxasa=("$@")
}

need() {
    local name
    for name in "$@"; do
        [[ -n ${!name:-} ]] || stop "--$name is missing"
    done
}

# Prints the arguments as one line, quoted so that a shell reads them back unchanged.
quoted() {
    local line
    printf -v line '%q ' "$@"
    printf '%s' "${line% }"
}

# Runs a command, and restarts it up to $restarts times while its exit code is resumable.
run_with_restarts() {
    local try code
    for ((try = 0; ; try++)); do
        code=0
        "$@" || code=$?
        if ! is_resumable "$code"; then
            ((code == 0)) || echo "${0##*/}: ended with exit code $code" >&2
            exit "$code"
        elif ((try == restarts)); then
            echo "${0##*/}: exit code $code after $restarts restarts; run the same command to resume" >&2
            exit "$code"
        fi
        echo "${0##*/}: exit code $code, restart $((try + 1)) of $restarts in $pause s" >&2
        sleep "$pause"
    done
}
