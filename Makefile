# Each target is one command that does its own set-up.

.PHONY: demo test bench images lint setup

# A whole mesh on this machine: control plane, a shop of small services with real sidecars, load.
demo:
	cargo run --quiet --profile quick --package weft-cli --bin weft -- demo $(ARGS)

# Everything: lints, unit and property tests, the mesh in one process, network namespaces, the browser.
test: setup lint
	tests/run.sh
	npm --prefix control-plane/dashboard test

# weft-proxy beside Envoy, HAProxy and nginx in one run. ARGS="--rounds 3 --proto h1" narrows it.
bench:
	cargo bench --package weft-tests --bench sidecar -- $(ARGS)

# weft-proxy, weft-control-plane and weft, static and FROM scratch. ARGS=weft-proxy builds one; ENGINE=docker uses BuildKit.
images:
	k8s/image/build.sh $(ARGS)

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

# Debian's packages that tests talk to; says what it installs, does nothing when all are there.
setup:
	@tests/setup.sh
