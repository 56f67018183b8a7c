#!/usr/bin/env bash
# Installs enginerouter for one user: a virtual environment, two commands, a configuration, a systemd user service.
# A second run brings all of it up to date. See `./install.sh --help`.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./install.sh [--yes] [--no-service] [--dry-run]
       ./install.sh --uninstall [--yes] [--dry-run]
       ./install.sh --print-unit
       ./install.sh --demo [ARGUMENT...]

Without --demo it makes a virtual environment, installs enginerouter into it, links the commands `enginerouter` and
`routerctl`, writes a configuration from the engines that run on this machine (an existing one is kept), and starts
a systemd user service that survives your logout. No root. A second run updates; your configuration stays.

  --yes          ask nothing; so does a run without a terminal
  --no-service   no systemd unit; start `enginerouter` yourself
  --dry-run      say what would be done, and do nothing
  --print-unit   print the systemd unit, and do nothing
  --uninstall    stop and remove what this script made; configuration, state and logs stay
  --demo         into an environment beside this script, and run `enginerouter demo` with the arguments that follow:
                 two built-in engines, no GPU, no model
  --help         show this text

Variables:
  ENGINEROUTER_VENV      the virtual environment [~/.local/share/enginerouter/venv; with --demo .venv beside this script]
  ENGINEROUTER_CONFIG    the configuration file [~/.config/enginerouter/config.yaml]
  ENGINEROUTER_BIN       where the commands are linked [~/.local/bin]
  ENGINEROUTER_UNIT_DIR  where the unit goes [~/.config/systemd/user]
  ENGINEROUTER_SOURCE    what pip installs: a folder, a wheel, a URL [this checkout]
  PYTHON                 the Python to use, 3.11 or newer [the first of python3.13, 3.12, 3.11, python3, 3.14]
TEXT
}

die() {
    printf 'install.sh: %s\n' "$@" >&2
    exit 1
}

say() { printf 'install.sh: %s\n' "$*" >&2; }

misused() {
    printf 'install.sh: %s\n\n' "$1" >&2
    usage >&2
    exit 2
}

# --- what is wanted

action=install asks=1 service=1 dry=
demo_arguments=()
while (($#)); do
    case $1 in
        -y | --yes) asks= ;;
        --no-service) service= ;;
        --dry-run) dry=1 ;;
        --print-unit) action=print-unit ;;
        --uninstall) action=uninstall ;;
        --demo)
            action=demo
            shift
            demo_arguments=("$@")
            break
            ;;
        -h | --help)
            usage
            exit
            ;;
        *) misused "'$1' is not an option" ;;
    esac
    shift
done
[[ -t 0 && -t 2 ]] || asks=

# Through a pipe there is no file, and no checkout beside it.
here=
if [[ -n ${BASH_SOURCE[0]:-} && -f ${BASH_SOURCE[0]} ]]; then
    here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
    [[ -f $here/pyproject.toml ]] || here=
fi

if [[ $action == demo ]]; then
    [[ -n $here ]] || die "--demo needs a checkout: run install.sh from one"
    venv=${ENGINEROUTER_VENV:-$here/.venv}
else
    [[ -n ${HOME:-} ]] || die "HOME is not set; it says where the files of this user go"
    venv=${ENGINEROUTER_VENV:-${XDG_DATA_HOME:-$HOME/.local/share}/enginerouter/venv}
fi
config=${ENGINEROUTER_CONFIG:-${XDG_CONFIG_HOME:-${HOME:-}/.config}/enginerouter/config.yaml}
bin=${ENGINEROUTER_BIN:-${HOME:-}/.local/bin}
units=${ENGINEROUTER_UNIT_DIR:-${XDG_CONFIG_HOME:-${HOME:-}/.config}/systemd/user}
source=${ENGINEROUTER_SOURCE:-$here}
unit=$units/enginerouter.service
commands=(enginerouter routerctl)
unit_mark='# Written by enginerouter.'

absolute() { # a relative path means another place in a service
    local name
    for name in "$@"; do
        [[ ${!name} == /* ]] || printf -v "$name" '%s/%s' "$PWD" "${!name}"
    done
}
absolute venv config bin units unit
mark=.enginerouter-installed
# An environment that bears this file was made here, and is ours to remove.
marker=$venv/$mark

try() { # a command that changes something
    if [[ -n $dry ]]; then
        printf 'would run:' >&2
        printf ' %q' "$@" >&2
        printf '\n' >&2
    else
        "$@"
    fi
}

confirmed() { # question; without a terminal the answer is yes
    local answer
    [[ -n $asks && -z $dry ]] || return 0
    read -r -p "install.sh: $1 [Y/n] " answer || return 1
    [[ ${answer:-y} == [Yy]* ]]
}

# --- the environment

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

# Where Debian's python3-venv is missing, venv cannot bootstrap pip; virtualenv's zipapp can.
virtualenv_zipapp() { # python
    local zipapp
    zipapp=$(mktemp)
    if curl -fsSL --max-time 60 -o "$zipapp" https://bootstrap.pypa.io/virtualenv.pyz 2>/dev/null &&
        "$1" "$zipapp" --quiet "$venv" >/dev/null 2>&1; then
        rm -f "$zipapp"
        return 0
    fi
    rm -f "$zipapp"
    return 1
}

make_venv() {
    local python said version
    python=$(find_python)
    say "making a virtual environment in $venv with $("$python" --version)"
    [[ -z $dry ]] || return 0
    mkdir -p "$(dirname "$venv")"
    if ! said=$("$python" -m venv "$venv" 2>&1); then
        rm -rf "$venv"
        if ! virtualenv_zipapp "$python"; then
            rm -rf "$venv"
            version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
            die "$python could not make a virtual environment. It said:" "$said" \
                "On Debian and Ubuntu: 'sudo apt install python$version-venv', then run this again."
        fi
    fi
    echo 'made by install.sh; --uninstall removes this environment' >"$marker"
}

is_empty_folder() {
    [[ -d $1 && ! -L $1 && -z $(ls -A "$1") ]]
}

ready_venv() {
    if [[ ! -e $venv && ! -L $venv ]] || is_empty_folder "$venv"; then
        make_venv
    elif [[ ! -x $venv/bin/python ]]; then
        die "'$venv' is no working virtual environment; remove it, or set ENGINEROUTER_VENV to another folder"
    elif ! is_new_enough "$venv/bin/python"; then
        die "'$venv' is not of Python 3.11 or newer; remove it, or set ENGINEROUTER_VENV to another folder"
    fi
}

pip_install() { # pip's arguments...
    [[ -z $dry ]] || {
        try "$venv/bin/python" -m pip install "$@"
        return
    }
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then # uv makes environments without pip
        "$venv/bin/python" -m ensurepip >/dev/null 2>&1 || die "'$venv' has no pip, and ensurepip brings none:" \
            "remove it, and on Debian and Ubuntu 'sudo apt install python3-venv', then run this again"
    fi
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input "$@" </dev/null ||
        die "pip could not install enginerouter (what it said is above)." \
            "Without a package index nothing can be fetched: check the network, or set PIP_INDEX_URL."
}

# --- the demo

run_demo() {
    local now installed
    ready_venv
    # Editable: a `git pull` needs no new installation unless the dependencies changed.
    now="$here $(cksum <"$here/pyproject.toml")"
    installed=$venv/.enginerouter-demo
    if [[ ! -x $venv/bin/enginerouter || ! -f $installed || $(<"$installed") != "$now" ]]; then
        say "installing enginerouter into $venv"
        rm -f "$installed" # an interrupted installation must not count as done
        pip_install -e "$here"
        printf '%s\n' "$now" >"$installed"
    fi
    exec "$venv/bin/enginerouter" demo "${demo_arguments[@]}"
}

# --- the installation

install_package() {
    # Without a checkout only what was named is installed: a package index may have something else of this name.
    [[ -n $source ]] || die "there is no checkout beside this script: clone the repository and run its install.sh," \
        "or set ENGINEROUTER_SOURCE to what pip is to install: a folder, a wheel, a URL"
    ready_venv
    if [[ -x $venv/bin/python && ! -f $marker ]]; then
        say "'$venv' was not made by this script; it is used, and --uninstall will leave it"
    fi
    say "installing $source into $venv"
    pip_install --upgrade "$source"
}

is_ours_to_link() { # link: there is none, or it leads nowhere, or into an environment that was made here
    local to
    [[ -e $1 ]] || return 0
    [[ -L $1 ]] || return 1
    to=$(readlink "$1")
    [[ $to == "$venv"/bin/* || -f ${to%/bin/*}/$mark ]]
}

link_commands() {
    local name link
    try mkdir -p "$bin"
    for name in "${commands[@]}"; do
        link=$bin/$name
        [[ -n $dry || -x $venv/bin/$name ]] || continue
        if ! is_ours_to_link "$link"; then
            say "'$link' is somebody else's; it stays, and '$venv/bin/$name' is not linked"
        else
            try ln -sfn "$venv/bin/$name" "$link"
        fi
    done
    case ":$PATH:" in
        *":$bin:"*) ;;
        *) say "'$bin' is not on your PATH; add it, or call '$bin/enginerouter'" ;;
    esac
}

write_config() {
    local arguments=(init --config "$config")
    if [[ -e $config ]]; then
        say "'$config' is kept as it is"
        return
    fi
    try mkdir -p "$(dirname "$config")"
    [[ -n $asks ]] || arguments+=(--yes)
    if ! try "$venv/bin/enginerouter" "${arguments[@]}"; then
        say "no configuration was made from what runs here; writing an example to fill in"
        try "$venv/bin/enginerouter" init --example --config "$config"
    fi
}

print_unit() {
    local version
    version=$(systemctl --version 2>/dev/null | awk 'NR == 1 { print int($2) }') || true
    if [[ -x $venv/bin/enginerouter && -f $config ]]; then
        "$venv/bin/enginerouter" unit --config "$config" --systemd-version "${version:-0}"
    elif [[ -n $here ]]; then
        PYTHONPATH=$here/src "$(find_python)" -m enginerouter.service.unit \
            --executable "$venv/bin/enginerouter" --config "$config" --systemd-version "${version:-0}"
    else
        die "nothing is installed yet whose unit could be printed"
    fi
}

has_user_manager() {
    type -P systemctl >/dev/null && systemctl --user show-environment >/dev/null 2>&1
}

by_hand() {
    say "start it with: $bin/enginerouter --config $config"
}

linger() {
    local user said
    user=$(id -un)
    [[ $(loginctl show-user "$user" --property=Linger --value 2>/dev/null) != yes ]] || return 0
    if [[ -n $dry ]]; then
        try loginctl enable-linger "$user"
    elif ! said=$(loginctl enable-linger "$user" 2>&1 </dev/null) && ! sudo -n loginctl enable-linger "$user" 2>/dev/null; then
        say "the service ends when you log out, because lingering could not be enabled (${said:-no reason given});" \
            "as an administrator: loginctl enable-linger $user"
    fi
}

install_service() {
    local text
    if [[ -z $service ]]; then
        by_hand
        return
    fi
    if ! has_user_manager; then
        say "no systemd user manager answers here, so there is no service"
        by_hand
        return
    fi
    if ! confirmed "start it now, and at every boot, as a systemd user service?"; then
        by_hand
        return
    fi
    if [[ -e $unit ]] && ! grep -qF "$unit_mark" "$unit"; then
        die "'$unit' is not of this script's making; move it away, or use --no-service"
    fi
    if [[ -n $dry ]]; then
        say "would write $unit and start it"
        linger
        return
    fi
    text=$(print_unit) || die "the unit could not be made: see above"
    mkdir -p "$units"
    printf '%s\n' "$text" >"$unit"
    systemctl --user daemon-reload
    linger
    systemctl --user enable --quiet enginerouter.service
    # Ready means that its port answers: the unit is of a type that says so.
    if ! systemctl --user restart enginerouter.service; then
        journalctl --user -u enginerouter.service -n 20 --no-pager >&2 || true
        die "the service did not start (its last lines are above); 'enginerouter check --config $config' says more"
    fi
    say "the service runs: systemctl --user status enginerouter; journalctl --user -u enginerouter -f"
}

install_all() {
    install_package
    link_commands
    write_config
    install_service
    [[ -n $dry ]] || say "done: $("$venv/bin/enginerouter" --version), configuration '$config'"
}

# --- and away again

uninstall() {
    local name link
    confirmed "remove the service, the commands and '$venv'?" || exit 1
    if [[ -e $unit ]]; then
        if grep -qF "$unit_mark" "$unit"; then
            if has_user_manager; then
                try systemctl --user disable --quiet --now enginerouter.service || true
            fi
            try rm -f "$unit"
            ! has_user_manager || try systemctl --user daemon-reload
        else
            say "'$unit' is not of this script's making, and stays"
        fi
    fi
    for name in "${commands[@]}"; do
        link=$bin/$name
        if [[ -L $link && $(readlink "$link") == "$venv/bin/$name" ]]; then
            try rm -f "$link"
        elif [[ -e $link || -L $link ]]; then
            say "'$link' does not lead into '$venv', and stays"
        fi
    done
    if [[ -f $marker && -f $venv/pyvenv.cfg ]]; then
        try rm -rf "$venv"
    elif [[ -e $venv ]]; then
        say "'$venv' was not made by this script, and stays"
    fi
    if [[ -z ${ENGINEROUTER_VENV:-} ]] && is_empty_folder "$(dirname "$venv")"; then # made for it
        try rmdir "$(dirname "$venv")"
    fi
    say "removed; your configuration, state and logs stay in '$(dirname "$config")'"
}

case $action in
    demo) run_demo ;;
    print-unit) print_unit ;;
    uninstall) uninstall ;;
    install) install_all ;;
esac
