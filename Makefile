# Twill's tasks. `make` alone lists them.
#
# demo and test do all that a Debian machine with Rust and Go needs, packages included. What takes
# long is kept in the user's cache, so that a fresh clone finds it again.

SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help demo test fuzz smoke e2e conformance lint bench bench-kind dist images manifests clean prepare benched

CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/twill
DENY_VERSION := 0.20.2
DENY := $(CACHE)/tools/bin/cargo-deny
TARGET := x86_64-unknown-linux-gnu
CNI_TARGET := x86_64-unknown-linux-musl
STEP := integration/step
DIST := --profile dist --target $(TARGET)
CNI_DIST := --profile dist --target $(CNI_TARGET) -p cni-plugin
STATIC := -C target-feature=+crt-static -C strip=symbols -C link-arg=-Wl,-z,pack-relative-relocs
IPTABLES := $(CACHE)/iptables-$(firstword $(shell cksum manifests/image/iptables)).tar
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)

help:
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1|\2/p' $(MAKEFILE_LIST) | while IFS='|' read -r target what; do printf '  make %-11s %s\n' "$$target" "$$what"; done

demo: prepare ## A packet's whole way, each line read from the kernel (MODE=iptables: with kube-proxy's chains; KEEP=1 leaves the lab standing)
	@$(STEP) "building Twill" cargo build --release --workspace --bins
	@target/release/lab demo $(if $(KEEP),--keep) $(if $(MODE),--mode $(MODE))

test: prepare ## All tests: unit, property, end to end with real packets, and an installation on a kind cluster
	@$(STEP) "building the binaries" cargo build --workspace --bins
	@$(STEP) "building the tests" cargo test --workspace --no-run
	@target/debug/lab prepare
	@$(STEP) "testing" cargo test --workspace
	@$(MAKE) --no-print-directory smoke

fuzz: prepare ## What strangers write, mangled: each parser for a bounded time (DURATION=10 seconds each)
	@fuzz/run $(or $(DURATION),10)

# One after another: a box of Docker's has room for one cluster.
KIND_TEST := cargo test --workspace --test kind -- --nocapture --test-threads=1

# Its binaries are what is shipped but for the compiler's effort: that takes five times as long.
smoke: prepare ## An installation on a kind cluster: hello-world, restart, upgrade, uninstall
	@integration/kind/prepare
	@RUSTFLAGS="$(STATIC)" $(STEP) "building static binaries" cargo build --profile smoke --target $(TARGET) -p cni-plugin -p flanneld -p proxy -p cli --bins
	@mkdir -p target/images/smoke && manifests/image/build target/$(TARGET)/smoke $(VERSION) target/images/smoke/twill.tar
	@$(STEP) "building the test" cargo test --workspace --test kind --no-run
	@TWILL_BINARIES=$(CURDIR)/target/$(TARGET)/smoke TWILL_IMAGES=$(CURDIR)/target/images/smoke $(STEP) "installing on a kind cluster" $(KIND_TEST) smoke

e2e: images ## Clusters made by kind: install, restart, upgrade, uninstall; pods and nodes that come and go
	@integration/kind/prepare
	@$(STEP) "building the test" cargo test --workspace --test kind --no-run
	@mkdir -p target/e2e
	@$(STEP) "testing on kind clusters" bash -o pipefail -c '$(KIND_TEST) 2>&1 | tee target/e2e/log'; status=$$?; integration/kind/summary target/e2e/log; exit $$status

conformance: images ## The Kubernetes project's own network tests, on a kind cluster (FOCUS=… for some); reports in target/conformance
	@integration/kind/prepare
	@integration/kind/conformance target/conformance

lint: prepare $(DENY) ## Formatting, clippy without warnings, shellcheck, bans and licences of dependencies
	@$(STEP) "formatting" cargo fmt --all --check
	@$(STEP) "formatting of the fuzz targets" cargo fmt --manifest-path fuzz/Cargo.toml --check
	@$(STEP) "clippy" cargo clippy --workspace --all-targets -- -D warnings
	@$(STEP) "clippy of the kind cluster's test" cargo clippy --workspace --test kind -- -D warnings
	@integration/prepare "shellcheck shellcheck to check the scripts"
	@$(STEP) "scripts" shellcheck $$(grep -rlE '^#!.*bash' .ci fuzz integration manifests)
	@$(STEP) "dependencies" $(DENY) check bans licenses sources

bench: prepare benched ## The figures of the README, beside the programs that Twill replaces
	@$(STEP) "benchmarks" cargo bench --package integration
	@$(STEP) "one change of a Service's endpoints" cargo bench --package proxy --bench pipeline
	@$(STEP) "a trace among 10,000 Services" cargo bench --package cli --bench trace
	@$(STEP) "one more peer" cargo bench --package flanneld --bench one_more

# The program that measures is not what is measured: the one of tests does.
bench-kind: images ## Twill beside flannel, the reference plugins and kube-proxy, on clusters made by kind
	@integration/kind/prepare
	@$(STEP) "building the benchmark" cargo bench --profile dev --package integration --bench kind --no-run
	@$(STEP) "measuring on kind clusters" cargo bench --profile dev --package integration --bench kind

# twill-cni by itself: beside the daemons its libraries would have features that it does without. It is linked with musl,
# because it is started for each pod: glibc asks the processor some thirty questions (CPUID) at each start, of which a
# virtual machine has to answer each one.
dist: prepare ## The static binaries of the image, in target/x86_64-unknown-linux-gnu/dist
	@rustup target list --installed | grep -q $(CNI_TARGET) || $(STEP) "installing Rust's libraries for $(CNI_TARGET)" rustup target add $(CNI_TARGET)
	@RUSTFLAGS="$(STATIC)" $(STEP) "building the static twill-cni" cargo build $(CNI_DIST) --bins
	@RUSTFLAGS="$(STATIC)" $(STEP) "building the other static binaries" cargo build $(DIST) -p flanneld -p proxy -p cli --bins
	@cp target/$(CNI_TARGET)/dist/twill-cni target/$(TARGET)/dist/
	@cd target/$(TARGET)/dist && ls -l --block-size=K twill-cni flanneld twill-proxy twill

# What the benchmarks run: the static binaries, a program of bare netlink calls, and the lab (which
# is not measured) beside them.
benched: dist
	@RUSTFLAGS="$(STATIC)" $(STEP) "building the bare netlink calls" cargo build $(CNI_DIST) --example bare-attach
	@mkdir -p target/$(TARGET)/dist/examples && cp target/$(CNI_TARGET)/dist/examples/bare-attach target/$(TARGET)/dist/examples/
	@$(STEP) "building the lab" cargo build --release -p integration --bin lab
	@cp -u target/release/lab target/$(TARGET)/dist/

images: dist $(IPTABLES) ## The images of the DaemonSets, to load into a cluster's nodes: target/images/twill.tar, one with iptables, and what they are made of
	@manifests/image/build target/$(TARGET)/dist $(VERSION) target/images/twill.tar
	@manifests/image/build target/$(TARGET)/dist $(VERSION)-iptables target/images/twill-iptables.tar $(IPTABLES)
	@manifests/image/sbom $(VERSION) target/images/twill.cdx.json

$(IPTABLES):
	@integration/prepare "mmdebstrap mmdebstrap to take iptables from Debian"
	@$(STEP) "taking iptables from Debian (once)" manifests/image/iptables $@

manifests: ## manifests/twill.yaml, the single file to apply, from manifests/base
	@cd manifests && { echo '# Made by `make manifests` from base/: change it there.'; for file in $$(sed -n 's/^  - //p' base/kustomization.yaml); do echo '---'; cat base/$$file; done; } >twill.yaml

clean: ## Remove what was built here (the cache stays)
	cargo clean

prepare:
	@integration/prepare

$(DENY):
	@$(STEP) "building cargo-deny $(DENY_VERSION) (once)" cargo install --quiet --locked --root $(CACHE)/tools cargo-deny@$(DENY_VERSION)
