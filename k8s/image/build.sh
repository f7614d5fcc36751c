#!/usr/bin/env bash
# Builds Weft's programs statically and puts each into an image FROM scratch. Needs no network but for crates.
#
#   k8s/image/build.sh                          weft-proxy, weft-control-plane and weft, as released
#   k8s/image/build.sh weft-proxy               this one only
#   PROFILE=dev k8s/image/build.sh              quickly, for tests
#   STEP=programs k8s/image/build.sh            only the programs; STEP=images: only the images, of programs made before
#   FROM=target/debug k8s/image/build.sh        of the programs there, as far as they are static (see static.sh)
#   ENGINE=docker k8s/image/build.sh            with BuildKit; the default is buildah
#
# Static, and yet no other target: `+crt-static` is given for the program itself and not for what it is made of. For all
# crates it cannot be had without a target of its own, because procedural macros are libraries that the compiler loads.
set -euo pipefail
cd "$(dirname "$0")/../.."

profile=${PROFILE:-release} step=${STEP:-all} engine=${ENGINE:-buildah}
out=${OUT:-target/images/$profile}
version=$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)
time=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}

# Where each program comes from and how its image is made: package and Containerfile.
declare -A package=([weft-proxy]=weft-proxy [weft-control-plane]=weft-control-plane [weft]=weft-cli)
declare -A recipe=([weft-proxy]=proxy [weft-control-plane]=control-plane [weft]=weft)

is_static() {
    [ -x "$1" ] && ! readelf --dynamic "$1" | grep -q NEEDED
}

program() {
    local name=$1 made=${FROM:-}/$1
    if ! is_static "$made"; then
        made=$(cargo rustc --quiet --locked --profile "$profile" --package "${package[$name]}" --bin "$name" \
            --message-format json-render-diagnostics -- -C target-feature=+crt-static |
            sed -n 's/.*"executable":"\([^"]*\)".*/\1/p')
        is_static "$made" || { echo "build.sh: $name is not static" >&2; exit 1; }
    fi
    mkdir -p "$out/$name"
    # Symbols stay, so that a backtrace has names; lines would double the size. Into a new file: the old one may be running.
    strip --strip-debug -o "$out/$name/$name.new" "$made"
    chmod 0555 "$out/$name/$name.new"
    mv "$out/$name/$name.new" "$out/$name/$name"
}

image() {
    local name=$1 tag="$1:$version" file="k8s/image/Containerfile.${recipe[$1]}"
    case $engine in
    # Nothing runs in it, so it needs no isolation; the commit's time makes the same program the same image.
    buildah) buildah build --quiet --isolation chroot --pull=never --timestamp "$time" --tag "$tag" --file "$file" "$out/$name" >/dev/null ;;
    *) "$engine" build --quiet --pull=false --tag "$tag" --file "$file" "$out/$name" >/dev/null ;;
    esac
    printf '%-28s %6.1f MB (%s)\n' "$tag" "$(stat -c %s "$out/$name/$name" | awk '{ print $1 / 1e6 }')" "$profile"
}

main() {
    local name
    for name in "$@"; do
        [ -n "${package[$name]:-}" ] || { echo "build.sh: there is no image $name; there are ${!package[*]}" >&2; exit 2; }
    done
    for name in "$@"; do
        [ "$step" = images ] || program "$name"
        [ "$step" = programs ] || image "$name"
    done
}

[ $# -gt 0 ] || set -- weft-proxy weft-control-plane weft
main "$@"
exit
