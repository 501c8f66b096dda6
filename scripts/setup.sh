# Set-up that scripts/serve and scripts/test share; bash sources it. Everything that it creates is in the repository:
#
#   .venv         the locked dependencies, with a stamp that records their lock file and Python. While the stamp
#                 matches, no set-up runs. It is built as .uv/venv and renamed, so it is always complete.
#   .uv/tool      uv, which creates .venv
#   .uv/python    a Python that uv downloaded, when the machine has no suitable one
#   .uv/newest    the newest releases of the dependencies, for scripts/test --newest
#   .uv/setup.log the output of the programs that the last set-up ran

uv_version=0.13.9
minors="13 14 12 15"  # minor versions of Python 3 to look for, the preferred one first
downloaded_python=3.13 # the version that uv downloads when none is found
install_python="install Python 3.12 or newer with venv (Debian 13, Ubuntu 24.04: sudo apt-get install python3-venv; \
Fedora: sudo dnf install python3), or set HUBCACHE_PYTHON to the path of one"
root="$(cd -P -- "${BASH_SOURCE[0]%/*}/.." && pwd)"
venv="$root/.venv"
work="$root/.uv"
newest_venv="$work/newest"
log="$work/setup.log"
stamp=hubcache-stamp

# Directories in which pyenv may have installed Pythons: the default one, and those of the shims on PATH, because sudo
# changes HOME.
pyenvs=("${PYENV_ROOT:-${HOME:-}/.pyenv}")
while read -r -d : entry; do
    if [[ $entry == */shims ]]; then pyenvs+=("${entry%/shims}"); fi
done <<<"$PATH:"

{ true <&0; } 2>/dev/null || exec </dev/null # the next file opened would get the descriptor of a closed standard input

say() { printf 'hubcache: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# elapsed: rewrite the last line of the terminal with the seconds that passed, until it is killed or this script ended.
elapsed() {
    local start=$SECONDS
    while sleep 1 && kill -0 $$ 2>/dev/null; do printf '\r  %d s' $((SECONDS - start)) >&2; done
}

# advice: print what the user can do about the error in the output of a failed program, which is standard input.
advice() {
    local output
    output=$(cat)
    shopt -s nocasematch
    case $output in
    *certificate?verify?failed* | *"invalid peer certificate"* | *UnknownIssuer* | *self?signed?certificate*)
        echo "the certificate is not trusted, perhaps because the network inspects TLS: set SSL_CERT_FILE to a PEM" \
            "file with its CA, or UV_SYSTEM_CERTS=1 when the system trusts that CA"
        ;;
    *"no space left"* | *"os error 28)"* | *"disk quota"*)
        echo "no space left: free 500 MB in $root, or set UV_CACHE_DIR to a directory on another disk"
        ;;
    *"permission denied"* | *"os error 13)"* | *"read-only file system"*)
        echo "no permission to write: run this as the owner of $root and of UV_CACHE_DIR (default ~/.cache/uv)"
        ;;
    *"dns error"* | *"failed to lookup"* | *"name resolution"* | *"could not resolve"* | *"failed to resolve"* | \
        *"connection refused"* | *unreachable* | *"timed out"* | *"tcp connect error"* | *"tunnel error"* | \
        *"error sending request"* | *"could not connect"*)
        echo "no connection: check the network, or set HTTPS_PROXY for a proxy, or UV_DEFAULT_INDEX for a package mirror"
        ;;
    esac
    shopt -u nocasematch
}

# step TEXT COMMAND...: run a command with its output in the log. On a terminal the elapsed seconds are shown. When the
# command fails, the last line printed says why, and what to do: the value of `next`, or what the output suggests.
step() {
    local text=$1 start reason hint ticker='' failed=''
    shift
    say "$text"
    mkdir -p "$work"
    start=$(wc -l 2>/dev/null <"$log" || echo 0)
    if [[ -t 2 ]]; then
        elapsed 9>&- &
        ticker=$!
    fi
    (cd "$root" && "$@") </dev/null >>"$log" 2>&1 || failed=1
    if [[ -n $ticker ]]; then
        kill "$ticker"
        wait "$ticker" 2>/dev/null || true
        printf '\r\033[K' >&2
    fi
    [[ -n $failed ]] || return 0
    reason=$(tail -n "+$((start + 1))" "$log" | grep -iE '^ *(error|E):' | tail -n 1 || true)
    hint=$(tail -n "+$((start + 1))" "$log" | advice)
    hint=${hint:+; $hint}${next:+; $next}
    fail "failed: $text: ${reason:-exit status not 0}${hint} (full output: $log)"
}

# Descriptor 9 is the lock: a service that a package starts must not inherit it.
apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=120 install --no-install-recommends "$@" 9>&-
}

# try COMMAND: if it is a Python that runs and has the modules that mitmproxy and diskcache need, set python to its
# resolved path.
try() {
    python=$("$1" -I -c 'if True:
        import os, sys
        sys.version_info >= (3, 12) or sys.exit(1)
        import sqlite3, ssl
        print(os.path.realpath(sys.executable))' 2>/dev/null </dev/null)
}

# Set python to the one to use, or to nothing when there is none. A name on PATH may not run: pyenv puts a shim there for
# each version that it has, and a shim works only while its version is selected.
find_python() {
    local minor directory candidate
    if [[ -n ${HUBCACHE_PYTHON:-} ]]; then
        try "$HUBCACHE_PYTHON" ||
            fail "HUBCACHE_PYTHON=$HUBCACHE_PYTHON is not a Python >= 3.12 that runs and has ssl and sqlite3; unset it to use" \
                "another, or name another"
        return
    fi
    for minor in $minors; do try "python3.$minor" && return; done
    try python3 && return
    for minor in $minors; do
        for directory in "${pyenvs[@]}"; do
            for candidate in "$directory"/versions/*/bin/"python3.$minor"; do
                try "$candidate" && return
            done
        done
    done
    python=
}

# find_host MODULE: set host to any Python that has the module; it is used only to install uv.
find_host() {
    local candidate
    for candidate in ${python:+"$python"} python3 /usr/bin/python3; do
        host=$("$candidate" -I -c "if True:
            import sys, $1
            sys.version_info >= (3, 8) or sys.exit(1)
            print(sys.executable)" 2>/dev/null </dev/null) && return
    done
    return 1
}

# Set uv to a uv of version $uv_version, and install it when needed. Debian and Ubuntu ship Python without ensurepip and
# pip.
ensure_uv() {
    local host requirement="uv==$uv_version" installed
    uv="$work/tool/bin/uv"
    choose_certificates
    installed=$("$uv" --version 2>/dev/null || true)
    [[ $installed == "uv $uv_version" || $installed == "uv $uv_version "* ]] && return
    rm -rf "$work/tool"
    if ! find_host ensurepip && ! find_host pip; then
        if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
            [[ -n $python ]] || command -v python3 >/dev/null || fail "no Python found: $install_python"
            fail "Python has neither venv nor pip; install python3-venv (sudo apt-get install python3-venv)"
        fi
        step "reading the package lists" apt-get -q update
        step "installing python3-venv" apt_install python3-venv
        [[ -n $python ]] || find_python
        find_host ensurepip || fail "python3-venv is installed, but no Python has ensurepip"
    fi
    if find_host ensurepip; then
        step "creating an environment for uv" "$host" -I -m venv "$work/tool"
        step "installing uv" "$work/tool/bin/python" -I -m pip --no-input install --no-user "$requirement"
    else
        find_host pip
        step "installing uv" "$host" -I -m pip --no-input install --no-user --target "$work/tool" "$requirement"
    fi
}

# Use a cache in .uv when the user has no home directory, or one that cannot be written.
choose_uv_cache() {
    local base="${XDG_CACHE_HOME:-${HOME:+$HOME/.cache}}"
    local usual="${UV_CACHE_DIR:-${base:+$base/uv}}"
    if [[ -n $usual ]] && mkdir -p "$usual" 2>/dev/null && [[ -w $usual ]]; then return; fi
    export UV_CACHE_DIR="$work/cache"
}

# uv does not read pip's configuration: use the package index that is set there, unless uv has one of its own.
choose_index() {
    local index="${PIP_INDEX_URL:-}"
    [[ -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]] || return 0
    [[ -n $index ]] || index=$("$work/tool/bin/python" -I -m pip config get global.index-url 2>/dev/null || true)
    [[ -z $index ]] || export UV_DEFAULT_INDEX="$index"
}

lock_hash() {
    local line
    line=$(sha256sum "$root/uv.lock")
    printf %s "${line%% *}"
}

# Lines of the stamp: hash of uv.lock, group, resolved path of Python, and the value of HUBCACHE_PYTHON.
write_stamp() {
    local real
    real=$(readlink -f "$work/venv/bin/python")
    printf '%s\n' "$(lock_hash)" "$1" "$real" "${HUBCACHE_PYTHON:-}" >"$work/venv/$stamp"
}

read_stamp() {
    made=()
    if [[ -r $venv/$stamp ]]; then mapfile -t made <"$venv/$stamp"; fi
    ((${#made[@]} == 4))
}

# pip does not read SSL_CERT_FILE, but uv does.
choose_certificates() {
    if [[ -n ${SSL_CERT_FILE:-} && -z ${PIP_CERT:-} ]]; then export PIP_CERT="$SSL_CERT_FILE"; fi
}

# includes GROUP OTHER: whether an environment made for a group has all packages of another one. Each of serve, fleet-demo
# and dev has those of the ones before.
includes() {
    case $1/$2 in dev/* | fleet-demo/serve) return 0 ;; esac
    [[ $1 == "$2" ]]
}

# ready GROUP: whether .venv can be used for the group.
ready() {
    local made
    if [[ ! -x $venv/bin/python ]] || ! read_stamp; then return 1; fi
    [[ ${made[0]} == "$(lock_hash)" && ${made[2]} == "$(readlink -f "$venv/bin/python")" ]] || return 1
    includes "${made[1]}" "$1" || return 1
    [[ -z ${HUBCACHE_PYTHON:-} || $HUBCACHE_PYTHON == "${made[2]}" || $HUBCACHE_PYTHON == "${made[3]}" ]]
}

# make_venv GROUP: build the environment in .uv; it replaces .venv after all steps succeeded.
make_venv() {
    local group=$1 python uv made export=(--frozen --no-dev)
    : >"$log"
    if read_stamp && includes "${made[1]}" "$group"; then group=${made[1]}; fi
    case $group in
    dev) export=(--locked --group dev) ;; # an outdated lock file is an error
    fleet-demo) export+=(--group fleet-demo) ;;
    esac
    rm -rf "$work/venv" "$work/replaced"
    find_python
    ensure_uv
    choose_uv_cache
    if [[ -z $python ]]; then
        export UV_PYTHON_INSTALL_DIR="$work/python"
        next=$install_python step "no Python >= 3.12 found: downloading $downloaded_python" \
            "$uv" python install --no-bin "$downloaded_python"
        python=$("$uv" python find --managed-python "$downloaded_python") ||
            fail "uv does not find the Python that it downloaded"
    fi
    step "making .venv with $python" "$uv" venv --relocatable --python "$python" "$work/venv"
    # With --locked, uv needs a Python; without --python it may not find this one and download another.
    step "reading uv.lock" "$uv" export "${export[@]}" --python "$work/venv/bin/python" --no-emit-project \
        --output-file "$work/requirements.txt"
    choose_index
    step "installing the locked dependencies" "$uv" pip sync --require-hashes --compile-bytecode \
        --python "$work/venv/bin/python" "$work/requirements.txt"
    write_stamp "$group"
    if [[ -e $venv || -L $venv ]]; then mv "$venv" "$work/replaced"; fi
    mv "$work/venv" "$venv"
    rm -rf "$work/replaced"
}

# prepare_newest: create .uv/newest with the newest releases that pyproject.toml permits, and print those that differ
# from .venv. Neither uv.lock nor .venv is changed.
prepare_newest() {
    local uv python="$venv/bin/python"
    mkdir -p "$work"
    lock
    ensure_uv
    choose_uv_cache
    choose_index
    step "making .uv/newest" "$uv" venv --clear --python "$python" "$newest_venv"
    step "installing the newest releases" "$uv" pip install --upgrade --compile-bytecode \
        --python "$newest_venv/bin/python" --requirements pyproject.toml --group dev
    diff <("$uv" pip freeze -q --python "$python") <("$uv" pip freeze -q --python "$newest_venv/bin/python") |
        sed -n 's/^</locked:/p; s/^>/newest:/p' | sort -k 2 >&2 || true
    exec 9>&-
}

# Hold the lock on .uv as descriptor 9. The programs started below inherit it, so that one that outlives this script is
# not disturbed by the next start.
lock() {
    exec 9>"$work/lock"
    if ! flock -n 9; then
        say "waiting for another set-up to end"
        flock 9
    fi
}

# prepare GROUP: create .venv unless it is ready. GROUP is `serve`, `fleet-demo` or `dev`.
prepare() {
    local trouble hint
    ready "$1" && return
    trouble=$({ mkdir -p "$work" && : >>"$work/lock"; } 2>&1) || true
    [[ -n $trouble || -w $root ]] || trouble="permission denied"
    if [[ -n $trouble ]]; then
        hint=$(advice <<<"$trouble")
        fail "cannot set up in $root: ${hint:-$trouble}"
    fi
    lock
    ready "$1" || make_venv "$1"
    exec 9>&-
}

# run_hubcache ARGUMENT...: replace this process by the command line (addon/hubcache/cli).
run_hubcache() {
    export PYTHONPATH="$root/addon${PYTHONPATH:+:$PYTHONPATH}"
    exec "$venv/bin/python" -m hubcache.cli "$@"
}
