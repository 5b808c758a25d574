# The only command that a newcomer types is one of these; each installs the
# Debian packages it needs if they are missing, and says so.

GO ?= go
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
# How long `make fuzz` gives each fuzz target.
FUZZTIME ?= 30s

# How many steps `make hostile` gives each device, over two transports with and
# without doorbells, and how many instructions it gives vcpu/soft.
STEPS ?= 40000000

# How many rounds of kill -9 and power cuts `make soak` makes of each kind.
ROUNDS ?= 1000

.PHONY: help demo test bench lint fuzz proofs hostile soak deps demo-deps

help:
	@echo 'make demo              boot Debian'\''s cloud kernel and run a command in it'
	@echo 'make test [V=1]        lint, and all tests: on this host, for arm64, with the race detector, on a nested KVM'
	@echo 'make bench [BENCH=X]   print the benchmark tables, and one line per figure; X picks one'
	@echo 'make lint              gofmt, go vet (for other systems too), staticcheck'
	@echo 'make fuzz [FUZZTIME=T] run every fuzz target for T (30s)'
	@echo 'make proofs            every kernel, transport and number of CPUs; ten rounds of kill -9; the stress script; a run on arm64; system code; hops between engines'
	@echo 'make soak [ROUNDS=N]   N rounds (1000) of each test that kills a process or cuts the power'
	@echo 'make hostile [STEPS=N] set a hostile driver on every virtio device, and a hostile guest on the CPU, for N steps'

demo: demo-deps
	$(GO) run ./examples/vmm run -- sh -c 'echo "hello from $$(uname -sr), running on $$(nproc) CPU(s)"'

test: deps
	$(GO) run ./internal/build/testall $(if $(V),-v)

bench: deps
	$(GO) run ./internal/bench $(BENCH)

lint:
	$(GO) run ./internal/build/testall -only lint

fuzz: deps
	$(GO) run ./internal/build/testall -only fuzz -fuzztime $(FUZZTIME)

proofs: deps
	$(GO) build -o bin/nestedexec ./internal/nestedkvm/nestedexec
	VMKIT_FULL=1 $(GO) test -timeout 60m -exec '$(CURDIR)/bin/nestedexec -cpus 1' -v -run 'TestBootMatrix|TestKill' ./examples/vmm
	VMKIT_FULL=1 $(GO) test -timeout 60m -v -run 'TestSoftStress' ./examples/vmm
	VMKIT_FULL=1 $(GO) test -timeout 30m -v -run 'TestARM64' ./vm
	VMKIT_FULL=1 $(GO) test -timeout 10m -exec '$(CURDIR)/bin/nestedexec -cpus 1' -v -run 'TestSystem$$' ./internal/x86diff
	VMKIT_FULL=1 $(GO) test -timeout 60m -exec '$(CURDIR)/bin/nestedexec -cpus 1' -v -run 'TestHop|TestUserChips' ./vm

hostile:
	VMKIT_HOSTILE_STEPS=$(STEPS) $(GO) test -timeout 0 -run Hostile ./vm/virtio ./disk ./netdev ./vcpu/soft

soak: deps
	VMKIT_SOAK=$(ROUNDS) $(GO) test -timeout 0 -parallel 8 -v -run 'Kill|PowerCut' ./disk/... ./stream/...

deps:
	@sh internal/build/deps.sh

demo-deps:
	@sh internal/build/deps.sh demo
