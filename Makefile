# pg_tenure: thin verbs; CI uses the same ones.
#   make demo      a cluster of three on this machine, with a switchover under load (make demo-stop ends it)
#   make demo-citus   the same of a Citus cluster: three coordinators, two worker groups of two (where Citus is installed)
#   make test      every test; installs what is missing
#   make fresh     what a newcomer meets: make demo from cold in a minimal Debian (WHAT=test: the tests instead)
#   make packages  pg-tenure and postgresql-NN-pg-tenure (PG_MAJOR) for this Debian, into target/packages
#   make cross     the library and the arbiter for another processor (ARCH=arm64), compiled here
#   make images    container images (CITUS_SOURCE=DIRECTORY: with Citus too); make images-test: both compose files, measured
#   make matrix    the core stories on PostgreSQL 14 to 18 and two versions of etcd (MAJORS="17 18": those only); docs/versions.md
#   make mixed OLD=COMMIT   a build of that commit beside this one in every mix, and the upgrade under load; docs/mixed-versions.md
#   make bench-compare RUNS=3   pg_tenure beside Patroni, by turns, on this machine (COMPARE=long: and pg_auto_failover): docs/performance.md and its chart; 15 minutes
#   make bench-scale   what 100 and 300 clusters of three cost one etcd, without Postgres: docs/scale.md; five minutes
#   make noise MINUTES=60   an hour of noise without a fault, and how often it was taken for one; docs/noise.md
#   make install   the extension into the local PostgreSQL, `tenure` onto the PATH

PG_MAJOR  ?= 15
# Debian's place, whether PostgreSQL is there yet or `setup` has still to install it.
PG_BIN    ?= /usr/lib/postgresql/$(PG_MAJOR)/bin
PG_CONFIG ?= $(PG_BIN)/pg_config
PREFIX    ?= /usr/local
TARGET    := $(or $(CARGO_TARGET_DIR),target)
SUDO      := $(shell [ "$$(id -u)" = 0 ] || echo sudo)

export PG_BIN PG_MAJOR DEMO_OFFSET CITUS_SOURCE RUNS
export PGRX_PG_CONFIG_PATH := $(PG_CONFIG)
# No terminal: Debian's packages must not ask.
APT := $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0

# libprotobuf-dev: protobuf-compiler only recommends the files that every .proto includes.
PACKAGES := postgresql-$(PG_MAJOR) postgresql-server-dev-$(PG_MAJOR) etcd-server etcd-client \
            libclang-dev clang protobuf-compiler libprotobuf-dev pkg-config build-essential
# What stories work with besides.
TESTED_WITH := pgbackrest barman python3-venv haproxy pgbouncer strace zsh fish libcap2-bin
PATRONI_PACKAGES := patroni[etcd3,psycopg3]==4.1.5 psycopg-binary check_patroni==2.2.0
# As root the tests run Patroni as user postgres, who may not be able to read the checkout, nor a Python in root's home.
PATRONI_AT  := $(if $(SUDO),$(TARGET),/opt/pg_tenure-tests)/patroni

# The product is built in release, once, for tests, demo and installation alike. What the benchmarks and the storm need is built for them
# only: no feature of a dependency differs between the two commands, so nothing is compiled twice. The crates of the arbiter and the
# tests are compiled again in dev for unit tests; the extension (pgrx takes minutes) never is.
FEATURES := --no-default-features --features pg_tenure/pg$(PG_MAJOR)
PRODUCT  := -p pg_tenure -p tenure-arbiter -p tenure-writer
RELEASE  := cargo build --locked --release
UNIT     := --locked --workspace --exclude pg_tenure

.PHONY: help setup setup-tests patroni build tools install packages packages-test systemd-test demo demo-citus demo-stop test fresh matrix unit e2e lint bench poolers drivers sick false-alarms bench-fence fence-mutants fuzz storm docs clean

help:
	@sed -n 's/^#   //p' Makefile

# $(call installed,PACKAGES): installs only what is missing; a complete machine is not touched.
define installed
@missing=$$(for package in $(1); do \
    dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || echo $$package; done); \
if [ -n "$$missing" ]; then \
    echo "setup: install" $$missing; \
    said=$$(mktemp); \
    { $(APT) update && $(APT) install -y --no-install-recommends $$missing; } >$$said 2>&1 || \
    { tail -n 20 $$said; echo "setup: these packages are needed and can't be installed:" $$missing; exit 1; }; \
    rm -f $$said; \
fi
endef

setup:
	$(call installed,$(PACKAGES))
	@command -v cargo >/dev/null || { echo "setup: no cargo; install Rust 1.95 or newer (rustup)"; exit 1; }

setup-tests: setup
	$(call installed,$(TESTED_WITH))

# Patroni, patronictl and check_patroni, for the stories on compatibility and on moving over; they skip, loudly, where it can't be had.
patroni: setup-tests
	@[ -x $(PATRONI_AT)/bin/patronictl -a -x $(PATRONI_AT)/bin/check_patroni ] || { \
	    echo "setup: Patroni into $(PATRONI_AT)"; umask 022; \
	    /usr/bin/python3 -m venv $(PATRONI_AT) && \
	    $(PATRONI_AT)/bin/pip install --quiet $(foreach p,$(PATRONI_PACKAGES),'$(p)'); } || \
	    { rm -rf $(PATRONI_AT); echo "setup: no Patroni here; the stories that need it will skip"; }

# pg_auto_failover, for bench-compare; where Debian has none for this PostgreSQL the run says so and goes on.
.PHONY: auto-failover
auto-failover: setup
	-$(call installed,pg-auto-failover-cli postgresql-$(PG_MAJOR)-auto-failover)
	@command -v pg_autoctl >/dev/null || echo "setup: no pg_auto_failover here; make bench-compare leaves it out and says so"

build: setup
	@demo/compile.sh $(RELEASE) $(PRODUCT) $(FEATURES)

# The benchmarks and the storm.
tools: install
	@demo/compile.sh $(RELEASE) $(PRODUCT) -p tenure-tests $(FEATURES)

install: build
	@set -e; lib=$$($(PG_CONFIG) --pkglibdir); share=$$($(PG_CONFIG) --sharedir)/extension; \
	as=$$([ -w "$$lib" ] && [ -w "$$share" ] && [ -w $(PREFIX)/bin ] || echo "$(SUDO)"); \
	$$as install -m 755 $(TARGET)/release/libpg_tenure.so "$$lib/pg_tenure.so"; \
	$$as install -m 644 extension/pg_tenure.control sql/pg_tenure--*.sql "$$share/"; \
	$$as install -D -m 755 $(TARGET)/release/tenure $(PREFIX)/bin/tenure; \
	made=$$(mktemp -d); tenure=$(TARGET)/release/tenure; \
	$$tenure man $$made/man; $$tenure completion bash > $$made/tenure; \
	$$tenure completion zsh > $$made/_tenure; $$tenure completion fish > $$made/tenure.fish; \
	$$as install -d $(PREFIX)/share/man/man1; $$as install -m 644 $$made/man/*.1 $(PREFIX)/share/man/man1/; \
	$$as install -D -m 644 $$made/tenure $(PREFIX)/share/bash-completion/completions/tenure; \
	$$as install -D -m 644 $$made/_tenure $(PREFIX)/share/zsh/site-functions/_tenure; \
	$$as install -D -m 644 $$made/tenure.fish $(PREFIX)/share/fish/vendor_completions.d/tenure.fish; \
	rm -r $$made; \
	echo "install: $$lib/pg_tenure.so, $$share/pg_tenure.control, $(PREFIX)/bin/tenure"

packages: build
	$(call installed,debhelper)
	@PG_CONFIG=$(PG_CONFIG) debian/packages.sh $(PG_MAJOR) $(TARGET)/packages

# For another processor: into $(TARGET)/aarch64-unknown-linux-gnu/release.
ARCH ?= arm64
.PHONY: cross
cross: setup
	$(call installed,gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
	@PG_CONFIG=$(PG_CONFIG) debian/cross.sh $(ARCH) $(PG_MAJOR)

demo: install
	@TENURE_TARGET=$(TARGET) demo/demo.sh start

demo-citus: install
	@TENURE_TARGET=$(TARGET) demo/citus.sh start

demo-stop:
	@demo/demo.sh stop
	@demo/citus.sh stop

# One run, one summary: unit tests of every crate but the extension, then the stories on real servers.
test: install patroni
	@if cargo nextest --version >/dev/null 2>&1; then \
	    cargo nextest run $(UNIT); \
	elif cargo install --locked cargo-nextest; then \
	    cargo nextest run $(UNIT); \
	else \
	    echo "test: no cargo-nextest; the stories run one after another"; \
	    cargo test $(UNIT) -- --test-threads=1; \
	fi

# docker/: needs a docker with BuildKit; debootstrap and root only where the public base images can't be pulled. docs/docker.md.
.PHONY: images images-test
images:
	@docker/images.sh

# Ports 5000 and 5001; ten minutes. RUNS=3 switchovers each.
images-test:
	@docker/test.sh

# Needs root for debootstrap and namespaces.
fresh:
	$(call installed,debootstrap)
	@$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" tests/fresh.sh $(or $(WHAT),demo)

# Debian's packages as an operator meets them, in roots with systemd as PID 1; each needs root, and packages over the network.
systemd-test: packages
	$(call installed,debootstrap systemd-container)
	@$(SUDO) env "PATH=$$PATH" tests/systemd.sh $(TARGET)

packages-test:
	$(call installed,debootstrap systemd-container debhelper lintian)
	@$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" tests/packages.sh

# Restartable; needs root for debootstrap and namespaces, and the network for packages (tests/matrix.sh).
matrix: setup-tests
	$(call installed,debootstrap python3-pip)
	@$(SUDO) env "PATH=$$PATH" "HOME=$$HOME" tests/matrix.sh $(MAJORS)

# Two builds of pg_tenure in one cluster (tests/mixed.sh); STORY="quorum rolling" are those only. A build takes ten minutes, the stories forty.
.PHONY: mixed
mixed: install
	@tests/mixed.sh $(OLD)

unit: setup
	cargo nextest run $(UNIT) -E 'not (package(tenure-tests) and kind(test))'

# make e2e STORY=failover: one theme, or part of a story's name.
e2e: install patroni
	cargo nextest run --locked -p tenure-tests $(STORY)

lint: setup
	cargo fmt --all --check
	cargo run --locked --quiet -p tenure-house
	cargo clippy --locked --workspace --all-targets $(FEATURES) -- -D warnings
	@command -v cargo-deny >/dev/null || cargo install --locked --quiet cargo-deny || true
	@if ! command -v cargo-deny >/dev/null; then \
	    echo "lint: SKIPPED: no cargo-deny here and none can be installed; licences, bans and advisories were NOT checked"; \
	else \
	    cargo deny --log-level error check bans licenses sources || exit 1; \
	    if cargo deny --log-level off fetch db 2>/dev/null || ls $${CARGO_HOME:-$$HOME/.cargo}/advisory-dbs/*/crates >/dev/null 2>&1; then \
	        cargo deny --log-level error --offline check advisories; \
	    else \
	        echo "lint: SKIPPED: no database of advisories is at hand and none can be fetched; advisories were NOT checked"; \
	    fi; \
	fi

# The status page in a headless Chromium: target/page-shots/*.png, to be looked at; two minutes.
.PHONY: page-shots
page-shots: tools
	$(call installed,chromium fonts-dejavu-core)
	$(TARGET)/release/page_shots $(TARGET)/page-shots

# make poolers: 20 switchovers and 5 restarts of the primary under pgbench through PgBouncer, an arbiter killed in the tenth, then candidates and etcd frozen; five minutes.
poolers: install
	SWITCHOVERS=20 RESTARTS=5 KILL_AT=10 cargo nextest run --locked -p tenure-tests --profile poolers --test poolers --no-capture

# Drivers through a switchover and a failover, what each is told and its longest pause; then keepalived's recipe; a minute each.
# Packages: python3-psycopg2 python3-psycopg libpostgresql-jdbc-java default-jre-headless ecj keepalived iputils-arping
drivers: install
	bash tests/drivers/run.sh
	bash tests/routing/run.sh keepalived

# make sick WHO=tenure FAULT=hang: what a primary costs whose disk hangs (slow: flushes of 3 s; full: 200 MB left; slots: none free); WHO=patroni for theirs. As root.
WHO ?= tenure
FAULT ?= hang
sick: tools patroni
	PAUSE=$(TARGET)/release/pause bash tests/sick.sh $(WHO) $(FAULT)

# make false-alarms FOR=900: how often a primary under pgbench at full load, with a checkpoint every 30 s, is called sick.
FOR ?= 900
false-alarms: install
	bash tests/false-alarms.sh $(FOR)

# make bench RUNS=3 MEASURES="switchover by-hand"
RUNS ?= 5
bench: tools
	$(TARGET)/release/bench $(RUNS) $(MEASURES)

# The same faults by turns to pg_tenure, Patroni 4.1.5 and (in the long form) Debian's pg_auto_failover, written to docs/performance.md and .svg; on a quiet machine. As root also with a node cut off.
# make bench-compare RUNS=3 ends within a quarter of an hour; COMPARE=long is everything (RUNS=3: two hours); COMPARE="long cut agent": those events only;
# COMPARE="long haproxy": only what is measured through HAProxy (direct: only without).
.PHONY: bench-compare
bench-compare: tools patroni auto-failover
	$(TARGET)/release/bench compare $(RUNS) $(COMPARE)

# What many clusters cost one etcd: the lease worker's own loops, without Postgres, written to docs/scale.md; on a quiet machine.
# make bench-scale SCALE="10 settle=5 for=20 into=/tmp": another number of groups, shorter, written elsewhere.
.PHONY: bench-scale
bench-scale: tools
	$(TARGET)/release/scale $(SCALE)

# The fence's cost on pgbench, against a server without it: instructions under valgrind, then time in short rounds; ten minutes.
bench-fence: tools
	$(TARGET)/release/fence_cost

# Each guard of the fence taken out in a copy, one after another: a story has to fail each time (docs/fence-proof.md).
# make fence-mutants MUTANTS="prepare copy"
fence-mutants: setup
	cargo run --locked -p tenure-tests --bin fence_mutants -- $(MUTANTS)

# Draws the tables of ARCHITECTURE.md from the files' first sentences.
.PHONY: map
map:
	cargo run --locked --quiet -p tenure-house -- --write

docs: setup
	cargo doc --locked --workspace --no-deps $(FEATURES)

clean: demo-stop
	cargo clean

# make sim SEED=7 replays one seed; make sim RUNS=1000 STEPS=40 tries fresh ones; FORGETS=yes draws stores that go back, too, COPIES=yes copies of disks, WISHES=yes what operators ask for, FOUNDS=yes the founding itself, CRASHES=yes servers that crash in place.
.PHONY: sim
STEPS ?= 25
sim:
	cargo run --quiet --locked --release -p tenure-sim -- $(if $(SEED),--seed $(SEED)) --steps $(STEPS) $(if $(FORGETS),--forgets) $(if $(COPIES),--copies) $(if $(WISHES),--wishes) $(if $(FOUNDS),--founds) $(if $(CRASHES),--crashes) --runs $(if $(SEED),1,$(RUNS))

# make sim-mutants MUTANTS="quorum lease": takes guards out one at a time, and the simulation has to notice each (docs/simulation.md).
.PHONY: sim-mutants
sim-mutants:
	cargo run --quiet --locked --release -p tenure-sim --bin sim_mutants -- $(MUTANTS)

# make fuzz MINUTES=10: whatever may stand in etcd's keys, in a node's file, in a request of REST or on its socket
fuzz:
	@end=$$(($$(date +%s) + 60 * $(or $(MINUTES),10))); while [ $$(date +%s) -lt $$end ]; do \
	    PROPTEST_CASES=3000 cargo nextest run --locked -p tenure-arbiter -E 'test(fuzz_tests)' || exit 1; done

# make storm SEED=7 MINUTES=5 SYNC=false: faults over a real cluster and a verdict, docs/storm.md
storm: tools
	$(TARGET)/release/storm $(if $(SEED),seed=$(SEED)) $(if $(MINUTES),minutes=$(MINUTES)) $(if $(SYNC),sync=$(SYNC)) $(STORM)

# make noise SEED=7 MINUTES=60 NOISE="deposition=false": CPU hogged, packets lost and late, etcd compacted and moved, processes frozen, and whether a leader changed over it; as root, docs/noise.md
# NOISE="proof=true" MINUTES=3: with a frozen node and a sick one in between, which has to be counted (exit code 1)
.PHONY: noise
noise: tools
	$(TARGET)/release/noise $(if $(SEED),seed=$(SEED)) $(if $(MINUTES),minutes=$(MINUTES)) $(NOISE)
