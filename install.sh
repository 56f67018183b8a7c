#!/usr/bin/env bash
# Runs enginerouter's demo from a checkout: makes a virtual environment, installs this folder into it, and
# starts `enginerouter demo`. See `./install.sh --help`.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./install.sh --demo [ARGUMENT...]

  --demo    make a virtual environment, install enginerouter from this folder into it, and run
            `enginerouter demo` with the arguments that follow. Needs Python 3.11 or newer and a
            package index; no GPU, no model, no root. A second run installs nothing unless the
            dependencies changed.
  --help    show this text

Variables:
  ENGINEROUTER_VENV   where the virtual environment goes; default: .venv beside this script
  PYTHON              the Python to make it with; default: the first of python3.13, python3.12,
                      python3.11, python3, python3.14 that runs and is 3.11 or newer

The installer for daily use (service, configuration, updates) comes with a later version.
TEXT
}

die() {
    printf 'install.sh: %s\n' "$@" >&2
    exit 1
}

case ${1:-} in
    --demo) shift ;;
    -h | --help)
        usage
        exit
        ;;
    '')
        usage >&2
        exit 2
        ;;
    *)
        printf "install.sh: '%s' is not known yet: only --demo is; the full installer comes later.\n\n" "$1" >&2
        usage >&2
        exit 2
        ;;
esac

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=${ENGINEROUTER_VENV:-$here/.venv}
[[ -f $here/pyproject.toml ]] || die "there is no pyproject.toml in '$here'; run it from a checkout of enginerouter"

is_new_enough() { # really run it: a name on PATH may be a stub that only says "not installed"
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local name
    if [[ -n ${PYTHON:-} ]]; then
        is_new_enough "$PYTHON" || die "PYTHON is '$PYTHON', which is not Python 3.11 or newer"
        printf '%s\n' "$PYTHON"
        return
    fi
    for name in python3.13 python3.12 python3.11 python3 python3.14; do
        if is_new_enough "$name"; then
            printf '%s\n' "$name"
            return
        fi
    done
    die "Python 3.11 or newer is needed, and none of python3.13, python3.12, python3.11, python3 is that." \
        "Install one, for example: 'sudo apt install python3 python3-venv' (Debian 12, Ubuntu 24.04 or newer)," \
        "'sudo dnf install python3.12', 'brew install python@3.13'; or set PYTHON to its path."
}

make_venv() {
    local python said version
    python=$(find_python)
    echo "install.sh: making a virtual environment in $venv with $("$python" --version)" >&2
    if ! said=$("$python" -m venv "$venv" 2>&1); then
        rm -rf "$venv"
        version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        die "$python could not make a virtual environment. It said:" "$said" \
            "On Debian and Ubuntu: 'sudo apt install python$version-venv', then run this again."
    fi
}

rmdir "$venv" 2>/dev/null || true # only if it is empty
if [[ ! -e $venv && ! -L $venv ]]; then
    make_venv
elif [[ ! -x $venv/bin/python ]]; then
    die "'$venv' is no working virtual environment; remove it, or set ENGINEROUTER_VENV to another folder"
elif ! is_new_enough "$venv/bin/python"; then
    die "'$venv' is not of Python 3.11 or newer; remove it, or set ENGINEROUTER_VENV to another folder"
fi

# Editable: a `git pull` needs no new installation unless the dependencies changed.
installed=$venv/.enginerouter-installed
now="$here $(cksum <"$here/pyproject.toml")"
if [[ ! -x $venv/bin/enginerouter || ! -f $installed || $(<"$installed") != "$now" ]]; then
    echo "install.sh: installing enginerouter into $venv" >&2
    rm -f "$installed" # an interrupted installation must not count as done
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # uv makes environments without pip
        "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || die "'$venv' has no pip, and ensurepip brings none:" \
            "remove it, and on Debian and Ubuntu 'sudo apt install python3-venv', then run this again"
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input -e "$here" </dev/null ||
        die "pip could not install enginerouter (what it said is above)." \
            "Without a package index nothing can be fetched: check the network, or set PIP_INDEX_URL."
    printf '%s\n' "$now" >"$installed"
fi

exec "$venv/bin/enginerouter" demo "$@"
