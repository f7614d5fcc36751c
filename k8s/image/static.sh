#!/usr/bin/env bash
# For RUSTC_WRAPPER: links the programs that go into images statically, and leaves everything else alone. So one build of the
# whole workspace makes tests and what images hold; see build.sh for why the flag cannot simply be set for all.
program= kind= test=
arguments=("$@")
for ((i = 1; i < $#; i++)); do
    case ${arguments[i]} in
    --crate-name) program=${arguments[i + 1]} ;;
    --crate-type) kind=${arguments[i + 1]} ;;
    --test) test=1 ;;
    esac
done
case $kind$test:$program in
bin:weft_proxy | bin:weft_control_plane | bin:weft) exec "$@" -C target-feature=+crt-static ;;
*) exec "$@" ;;
esac
