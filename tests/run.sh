#!/usr/bin/env bash
# Runs every Rust test and, if some fail, says at the very end which and why: the log before it is long.
set -uo pipefail
cd "$(dirname "$0")/.."
log=$(mktemp)
trap 'rm -f "$log"' EXIT

# What plays on a real cluster is run by its own command, never by the way.
unset KUBECONFIG
# All binaries are built before the first test runs.
export WEFT_TEST_BINARIES_BUILT=1
# They are linked as images hold them, so that the tests of images need no build of their own.
export RUSTC_WRAPPER=${RUSTC_WRAPPER:-$PWD/k8s/image/static.sh}
cargo test --workspace --no-fail-fast 2>&1 | tee "$log"
status=${PIPESTATUS[0]}
if [ "$status" -ne 0 ]; then
    echo
    echo "What failed, once more:"
    # The harness prints what a failed test said under a heading with its name; the reason stands at the end of that, before
    # a backtrace.
    awk -v most=8 '
        function told(   i) { for (i = kept > most ? kept - most : 0; i < kept; i++) print line[i]; kept = 0 }
        /^---- .* ----$/ { told(); print; part = 1; next }
        /^failures:$/ || /^test result:/ { told(); part = 0 }
        /^ +[0-9]+: / || /^ +at / || /^Stack backtrace:/ || /^stack backtrace:/ || /^note: / { next }
        part && NF { line[kept++] = substr($0, 1, 400) }
    ' "$log"
    grep -E '^error' "$log"
fi
exit "$status"
