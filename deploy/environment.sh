# Sourced by deploy/demo and deploy/test: makes this checkout's own virtual environment, .venv, from the lock, and only when the lock has changed.

say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# as_root COMMAND...: runs it as root where that needs no password; otherwise returns 1.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; elif sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}

# Prints the Python to use: 3.11, or else one that pyproject.toml allows. Where a machine has several of one version, the quickest: one that was
# built without profile-guided optimization takes half as long again for what this is made of (Debian's are built with it, pyenv's are not).
find_python() {
    local name path took best least
    for name in python3.11 python3.12 python3.13 python3; do
        best='' least=''
        while IFS= read -r path; do
            took=$("$path" deploy/quickness.py 2>/dev/null) || continue
            if [ -z "$least" ] || [ $((took * 10)) -lt $((least * 9)) ]; then best=$path least=$took; fi
        done < <(type -ap "$name")
        if [ -n "$best" ]; then
            printf '%s\n' "$best"
            return
        fi
    done
    return 1
}

# Shows how far pip is, from its output, and leaves the rest in .venv/install.log.
show_progress() {
    local line count=0 started=$SECONDS all
    all=$(grep -c '^[a-z0-9]' deploy/requirements.lock)
    while IFS= read -r line; do
        printf '%s\n' "$line" >>.venv/install.log
        case $line in
        Collecting*) count=$((count + 1)) ;;
        Installing*) say "  installing what was fetched ($((SECONDS - started)) s)" ;;
        esac
        if [ "${line%% *}" = Collecting ] && [ $((count % 15)) = 0 ]; then say "  $count of about $all packages ($((SECONDS - started)) s)"; fi
    done
}

make_environment() {
    local python started=$SECONDS wanted
    wanted=$(cat deploy/requirements.lock pyproject.toml | sha256sum)
    if [ "$(cat .venv/lock 2>/dev/null)" = "$wanted" ] && .venv/bin/python -c '' 2>/dev/null; then return; fi
    python=$(find_python) || fail "Python 3.11 is missing (Debian and Ubuntu: apt-get install python3.11 python3.11-venv; or https://www.python.org/downloads/)"
    say "making the virtual environment .venv with $("$python" --version), $python (once)"
    "$python" -m venv --clear .venv ||
        fail "$python cannot make a virtual environment (Debian and Ubuntu: apt-get install python3-venv, as the message above says)"
    : >.venv/install.log
    .venv/bin/python -m pip install --disable-pip-version-check --require-hashes -r deploy/requirements.lock 2>&1 | show_progress ||
        { tail -n 20 .venv/install.log >&2; fail "the packages could not be installed; all of pip's output is in .venv/install.log"; }
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --no-build-isolation --no-deps --editable . >>.venv/install.log 2>&1 ||
        { tail -n 20 .venv/install.log >&2; fail "Holdfast itself could not be installed; all of pip's output is in .venv/install.log"; }
    printf '%s\n' "$wanted" >.venv/lock
    say "the virtual environment is ready ($((SECONDS - started)) s)"
}

# What the checks need and the demo does not, on top: who starts from an empty machine is not to wait for twice as many packages.
add_checks() {
    local wanted started=$SECONDS
    wanted=$(sha256sum <deploy/checks.lock)
    if [ "$(cat .venv/checks.lock 2>/dev/null)" = "$wanted" ]; then return; fi
    say "adding what the checks need to .venv"
    .venv/bin/python -m pip install --disable-pip-version-check --quiet --require-hashes --no-deps -r deploy/checks.lock >>.venv/install.log 2>&1 ||
        { tail -n 20 .venv/install.log >&2; fail "what the checks need could not be installed; all of pip's output is in .venv/install.log"; }
    printf '%s\n' "$wanted" >.venv/checks.lock
    say "the checks have what they need ($((SECONDS - started)) s)"
}
