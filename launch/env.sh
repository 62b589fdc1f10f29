# Sourced by local.sh and test.sh: finds Python, creates .venv in the repository, installs jaxasa.
# Sets $root and $venv. Messages go to stderr.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

fail() {
    printf 'jaxasa: %s\n' "$@" >&2
    exit 1
}

# Prints the path of the first Python of at least 3.11. If there is none, lists the versions found.
find_python() {
    local name path version versions=""
    for name in python3 python3.11 python3.12 python3.13 python3.14; do
        path=$(command -v "$name") || continue
        # A command may exist but fail to run (pyenv shims, dangling links).
        version=$("$path" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
        if "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$path"
            return
        fi
        versions="$versions${versions:+, }$name is $version"
    done
    fail "Python 3.11 or newer is needed; ${versions:-no python3 is installed}." \
        "Debian 12 or newer, Ubuntu 24.04 or newer: sudo apt install python3 python3-venv" \
        "Ubuntu 22.04: sudo apt install python3.11 python3.11-venv"
}

# make_environment [EXTRAS]: creates .venv with jaxasa and the extras ("test,parity"), unless it is
# up to date.
# A stamp file records pyproject.toml and the repository path; pip runs only if these changed.
make_environment() {
    local extra=${1:-} python stamp quiet=
    stamp="$(cksum <"$root/pyproject.toml") $root"
    if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "$python has no venv module." \
                "Install it: sudo apt install python3-venv (or python3.X-venv for another python3.X)"
        echo "creating $venv with $python" >&2
        "$python" -m venv --clear "$venv" || fail "$python -m venv failed; is the disk full?"
    fi
    # An environment with the extras of the tests also serves if none is needed.
    if [[ -z $extra && $(cat "$venv"/stamp-test* 2>/dev/null) == "$stamp" ]] ||
        [[ $(cat "$venv/stamp-$extra" 2>/dev/null) == "$stamp" ]]; then
        return
    fi
    echo "installing jaxasa${extra:+ [$extra]} into $venv (takes minutes the first time)" >&2
    rm -f "$venv"/stamp-*
    [[ -t 2 ]] || quiet=-q
    "$venv/bin/python" -m pip install --disable-pip-version-check $quiet -e "$root${extra:+[$extra]}" ||
        fail "pip could not install jaxasa (its message is above)." \
            "It needs network access to a package index: see PIP_INDEX_URL and HTTPS_PROXY." \
            "Fix this and run the same command again; finished work is kept."
    printf '%s\n' "$stamp" >"$venv/stamp-$extra"
}

# use_tcmalloc: preloads tcmalloc, if it is installed. XLA on the CPU allocates and frees buffers
# all the time, and glibc's malloc is slow at that while other threads prepare batches.
use_tcmalloc() {
    local name rest
    [[ -z ${LD_PRELOAD:-} ]] || return 0
    while read -r name rest; do
        if [[ $name == libtcmalloc_minimal.so.4 || $name == libtcmalloc.so.4 ]]; then
            # Keep freed memory in the process, as core/cpu.py configures glibc's malloc.
            export LD_PRELOAD=${rest##*=> } TCMALLOC_RELEASE_RATE=${TCMALLOC_RELEASE_RATE:-0}
            return
        fi
    done < <(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null)
}

# Default to the CPU: if the variable is unset, JAX searches for accelerators and warns about each
# that it cannot use.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
