#!/bin/sh
# Installs what ManiSkill needs to render on the CPU of a Debian machine, and proves it by rendering one frame.
#
#   make cpu-rendering                          (or: sh scripts/cpu-rendering.sh .venv/bin/python)
#
# Run it as root or as a user who may use sudo; run it again at will: what is there is left alone. SAPIEN renders
# with Vulkan; on a CPU that is Mesa's lavapipe, from Mesa 24.3 on. Debian 12 is older, so there it is taken from
# Debian's own backports, through the mirror that this machine already uses.
set -eu

PYTHON=${1:-python3}
MESA_NEEDED=24.3
LOCK_SECONDS=600
SOURCES=/etc/apt/sources.list.d

say() { printf 'cpu-rendering: %s\n' "$*"; }
fail() { printf 'cpu-rendering: %s\n' "$*" >&2; exit 1; }

if [ "$(id -u)" -eq 0 ]; then
    as_root() { "$@"; }
elif command -v sudo >/dev/null 2>&1; then
    as_root() { sudo "$@"; }
else
    as_root() { fail "needs root: run it as root, or install sudo."; }
fi

# Renders a red box; fails unless the picture shows it, and nothing beside it.
render_one_frame() {
    command -v "$PYTHON" >/dev/null || { echo "there is no $PYTHON to render with: run make install."; return 1; }
    "$PYTHON" -W ignore - <<'PYTHON_END'
import sys

try:
    import sapien
except ModuleNotFoundError:
    sys.exit("SAPIEN is not installed in this Python: run pip install 'torchrl-flow[maniskill]', then this again.")
except ImportError as error:
    sys.exit(f"import sapien failed: {error}")
try:
    systems = [sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(sapien.Device("cpu"))]
    scene = sapien.Scene(systems)
    scene.set_ambient_light([0.5, 0.5, 0.5])
    builder = scene.create_actor_builder()
    builder.add_box_visual(half_size=[0.1, 0.1, 0.1], material=[1.0, 0.0, 0.0])
    builder.build_static(name="box").set_pose(sapien.Pose([1, 0, 0]))
    camera = scene.add_camera(name="camera", width=64, height=64, fovy=1.0, near=0.01, far=10)
    scene.update_render()
    camera.take_picture()
    picture = camera.get_picture("Color")
except RuntimeError as error:
    sys.exit(f"SAPIEN cannot render: {error}")
box, beside = picture[32, 32], picture[0, 0]
if not (box[0] > 0.1 > box[1] and box[3] == 1 and beside[3] == 0):
    sys.exit(f"SAPIEN rendered a wrong picture: {box} at the box and {beside} beside it.")
PYTHON_END
}

mesa_version() { dpkg-query -W -f '${Version}' mesa-vulkan-drivers 2>/dev/null || true; }
mesa_is_new_enough() { [ -n "$(mesa_version)" ] && dpkg --compare-versions "$(mesa_version)" ge "$MESA_NEEDED"; }

# Prints a source for SUITE-backports, made from the machine's own source for SUITE: same mirror, same key.
backports_source() {
    suite=$1
    for file in "$SOURCES"/*.sources; do
        [ -e "$file" ] || continue
        grep -v '^#' "$file" | awk -v suite="$suite" '
            BEGIN { RS = ""; FS = "\n" }
            {
                found = 0
                for (i = 1; i <= NF; i++) {
                    count = split($i, words, /[ \t]+/)
                    if (tolower(words[1]) == "suites:") {
                        for (j = 2; j <= count; j++) if (words[j] == suite) found = 1
                        $i = "Suites: " suite "-backports"
                    }
                }
                if (found) { for (i = 1; i <= NF; i++) print $i; exit }
            }'
    done
}

# The same for the older format, one line a source.
backports_list() {
    suite=$1
    for file in /etc/apt/sources.list "$SOURCES"/*.list; do
        [ -e "$file" ] || continue
        sed -n "s/^\(deb[[:space:]].*[[:space:]]\)$suite\([[:space:]].*\)\$/\1$suite-backports\2/p" "$file"
    done | head -n 1
}

add_backports() {
    suite=$1
    if grep -rqs "^[^#]*$suite-backports" /etc/apt/sources.list "$SOURCES"; then
        return
    fi
    source=$(backports_source "$suite" | sed '/^$/q')
    target=$SOURCES/$suite-backports.sources
    if [ -z "$source" ]; then
        source=$(backports_list "$suite")
        target=$SOURCES/$suite-backports.list
    fi
    [ -n "$source" ] || fail "found no apt source for $suite under /etc/apt to make one for $suite-backports of."
    say "adding $target"
    printf '%s\n' "$source" | as_root tee "$target" >/dev/null
}

# Runs apt-get, and waits where another program, such as unattended-upgrades, holds a lock. apt-get itself waits for
# dpkg's locks alone, not for those of the package lists and archives: there it is tried again.
apt() {
    deadline=$(($(date +%s) + LOCK_SECONDS))
    while ! messages=$(
        as_root env LC_ALL=C DEBIAN_FRONTEND=noninteractive apt-get -o "DPkg::Lock::Timeout=$LOCK_SECONDS" "$@" 2>&1 >/dev/null
    ); do
        case $messages in
        *"Could not get lock"* | *"Unable to lock"* | *"Unable to acquire"*) ;;
        *) fail_apt "$1" ;;
        esac
        [ "$(date +%s)" -lt "$deadline" ] || fail_apt "$1"
        say "another program holds apt's lock; waiting"
        sleep 5
    done
}
fail_apt() {
    printf '%s\n' "$messages" >&2
    fail "apt-get $1 failed, see above."
}

install() { apt install -y -q --no-install-recommends "$@"; }

if why=$(render_one_frame 2>&1); then
    say "SAPIEN renders on the CPU already; nothing to do."
    exit 0
fi

command -v apt-get >/dev/null 2>&1 ||
    fail "this is not a Debian machine: install Mesa's Vulkan drivers (lavapipe, $MESA_NEEDED or later), libX11 and libGL yourself."
codename=$(. /etc/os-release && printf '%s' "${VERSION_CODENAME:-}")

say "reading the package lists"
apt update -q
say "installing libx11-6 libgl1 libglib2.0-0 libvulkan1"
install libx11-6 libgl1 libglib2.0-0 libvulkan1
if ! mesa_is_new_enough; then
    say "installing mesa-vulkan-drivers"
    if [ "$codename" = bookworm ]; then
        add_backports bookworm
        apt update -q
        install -t bookworm-backports mesa-vulkan-drivers
    else
        install mesa-vulkan-drivers
    fi
fi
mesa_is_new_enough ||
    fail "mesa-vulkan-drivers is $(mesa_version) and rendering needs $MESA_NEEDED or later: this release of Debian or Ubuntu is too old."

if why=$(render_one_frame 2>&1); then
    say "done: SAPIEN rendered a frame with Mesa $(mesa_version)."
else
    fail "Mesa $(mesa_version) is installed, but: $why"
fi
