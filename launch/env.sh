# Sourced by local.sh and test.sh: finds Python, makes .venv in the repository, installs jaxasa.
# Sets $root and $venv. Messages go to stderr.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
venv=$root/.venv

fail() {
    printf 'jaxasa: %s\n' "$@" >&2
    exit 1
}

# Prints the path of the first Python of at least 3.11; otherwise says what was found.
find_python() {
    local name path version found=""
    for name in python3 python3.11 python3.12 python3.13 python3.14; do
        path=$(command -v "$name") || continue
        # A name may be there and not run (pyenv's shims, dangling links).
        version=$("$path" -c 'import platform; print(platform.python_version())' 2>/dev/null) || continue
        if "$path" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$path"
            return
        fi
        found="$found${found:+, }$name is $version"
    done
    fail "Python 3.11 or newer is needed; ${found:-no python3 is installed}." \
        "Debian 12 or newer, Ubuntu 24.04 or newer: sudo apt install python3 python3-venv" \
        "Ubuntu 22.04: sudo apt install python3.11 python3.11-venv"
}

# make_environment [EXTRA]: .venv with jaxasa and the extra, if it is not there yet.
# The stamp holds what the installation depends on; pip runs only when that has changed.
make_environment() {
    local extra=${1:-} python want quiet=
    want="$(cksum <"$root/pyproject.toml") $root"
    if [[ ! -x $venv/bin/python ]] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
        python=$(find_python)
        "$python" -c 'import venv, ensurepip' 2>/dev/null ||
            fail "$python has no venv module." \
                "Install it: sudo apt install python3-venv (or python3.X-venv for another python3.X)"
        echo "making $venv with $python" >&2
        "$python" -m venv --clear "$venv" || fail "$python -m venv failed; is there room on the disk?"
    fi
    # An environment with the test extra also serves without it.
    if [[ -z $extra && $(cat "$venv/stamp-test" 2>/dev/null) == "$want" ]] ||
        [[ $(cat "$venv/stamp-$extra" 2>/dev/null) == "$want" ]]; then
        return
    fi
    echo "installing jaxasa${extra:+ [$extra]} into $venv (some minutes the first time)" >&2
    rm -f "$venv"/stamp-*
    [[ -t 2 ]] || quiet=-q
    "$venv/bin/python" -m pip install --disable-pip-version-check $quiet -e "$root${extra:+[$extra]}" ||
        fail "pip could not install jaxasa (its message is above)." \
            "It needs the network, or a package index that it can reach: see PIP_INDEX_URL and HTTPS_PROXY." \
            "Run this again when that is mended; what is done is kept."
    printf '%s\n' "$want" >"$venv/stamp-$extra"
}

# use_tcmalloc: what runs from here on allocates by tcmalloc, where it is installed. XLA on the CPU
# takes and gives back memory all the time, which glibc is slow at beside threads that mix scenes.
use_tcmalloc() {
    local name rest
    [[ -z ${LD_PRELOAD:-} ]] || return 0
    while read -r name rest; do
        if [[ $name == libtcmalloc_minimal.so.4 || $name == libtcmalloc.so.4 ]]; then
            # Freed memory stays with the process, as jaxasa has it of glibc, too.
            export LD_PRELOAD=${rest##*=> } TCMALLOC_RELEASE_RATE=${TCMALLOC_RELEASE_RATE:-0}
            return
        fi
    done < <(PATH=$PATH:/usr/sbin:/sbin ldconfig -p 2>/dev/null)
}

# The CPU, unless the caller asks for another platform: an unset variable would make JAX
# search for accelerators and warn about each that it cannot use.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
