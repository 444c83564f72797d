# What one does with this tree. CI (.ci/run) calls the same targets. `make` alone prints them.
#
# Tools are built from tools/go.mod into .bin, once per change of tools/go.sum; nothing is taken from PATH but Go, and git
# where a target compares. Needs a module cache that is warm, or the network to warm it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

BIN := .bin
# What generates from proto/.
PLUGINS := $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc $(BIN)/protoc-gen-grpc-gateway $(BIN)/protoc-gen-openapiv2
GOTEST ?= go test
# Packages whose concurrency the race detector watches. A pattern that matches nothing yet is skipped.
RACE ?= ./pkg/... ./internal/agent/... ./internal/node/... ./internal/layering/... ./services/...

##@ Everyday

.PHONY: help
help: ## print this
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-z-]*:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: build
build: ## the one binary, into .bin/redoubt, without the tables of debuggers
	go build -trimpath -ldflags='-s -w' -o $(BIN)/redoubt ./cmd/redoubt

.PHONY: demo
demo: ## the walk, from sign-in to a trained model and back, in one command
	go run ./cmd/redoubt demo

.PHONY: demo-s3
demo-s3: s3-tools ## the same with every blob in a bucket of an S3 server of its own
	tools/with-s3.sh bash -c 'go run ./cmd/redoubt demo --blobs "$$REDOUBT_TEST_S3&prefix=demo" --blobs-credentials "$$REDOUBT_TEST_S3_CREDENTIALS" --blobs-root "$$REDOUBT_TEST_S3_ROOT" && \
		echo "objects in the bucket: $$(find "$$(dirname "$$REDOUBT_TEST_S3_ROOT")/store/redoubt/demo" -type f | wc -l)"'

.PHONY: fmt
fmt: $(BIN)/golangci-lint $(BIN)/buf thirdparty ## format Go and protos
	$(BIN)/golangci-lint fmt

.PHONY: clean
clean: ## remove what was built and printed; generated Go stays, since it is committed
	rm -rf $(BIN) .gen cover

##@ Tests

.PHONY: test
test: ## every test that needs no network, no root and no Docker
	$(GOTEST) -timeout 6m ./...

.PHONY: test-race
test-race: ## the concurrent packages under the race detector, without what is long and has nothing at the same time (RACE=… to choose, PART=0/2 half of them)
	CGO_ENABLED=1 $(GOTEST) -race -short -timeout 15m $$(go list -e -f '{{if .GoFiles}}{{.ImportPath}}{{end}}' $(RACE) | awk -v part="$${PART:-0/1}" 'BEGIN {split(part, p, "/")} NF && k++ % p[2] == p[1]')

.PHONY: proc
proc: ## installations of real processes: walked while certificates rotate, killed, started cold (PROC_SECONDS of each walk and of the kills; RUN and SKIP to choose)
	PROC_SECONDS=$${PROC_SECONDS:-60} $(GOTEST) -timeout 30m -count=1 -v -run '$(or $(RUN),.)' $(if $(SKIP),-skip '$(SKIP)') ./test/proc

.PHONY: rotate
rotate: ## leaves of 10 s, a root of 60 s, signing keys of 30 s, by the clock, under load over all services: nothing may fail (ROTATE_SECONDS, 600); identity killed at each phase
	ROTATE_SECONDS=$${ROTATE_SECONDS:-600} $(GOTEST) -timeout 60m -count=1 -v -run '$(or $(RUN),^TestRotate)' ./test/proc

.PHONY: hosts
hosts: ## an installation of a plan: each process at an address of its own, its etcd lost in part and in whole, started cold
	PROC_SECONDS=1 $(GOTEST) -timeout 10m -count=1 -v -run '^TestHosts' ./test/proc

# What test/fault needs: the program with a clock that can be set off, and the suite itself.
.PHONY: fault-binaries
fault-binaries:
	@mkdir -p $(BIN)
	go build -tags redoubt_fault_clock -o $(BIN)/redoubt-fault ./cmd/redoubt
	go build -o $(BIN)/fault ./test/fault

.PHONY: fault
fault: fault-binaries $(if $(FAULT_POSTGRES),s3-tools) ## many processes on namespaces of their own, hurt under load and judged (root on Linux; FAULT_SECONDS, FAULT_SEED, FAULT_CASES, FAULT_POSTGRES=1; FAULT_KEEP=FOLDER keeps logs)
	FAULT_NETNS=1 $(GOTEST) -count=1 ./test/fault/...
	$(BIN)/fault -binary $(BIN)/redoubt-fault -seconds $${FAULT_SECONDS:-0} -seed $${FAULT_SEED:-0} -cases "$${FAULT_CASES:-}" $(if $(FAULT_POSTGRES),-postgres -s3 $(abspath $(BIN)/versitygw)) -keep "$${FAULT_KEEP:-}"

.PHONY: fault-mutants
fault-mutants: fault-binaries ## put bugs in on purpose, one by one, and see that the fault suite finds each (root on Linux)
	BIN=$(BIN) test/fault/mutants.sh

.PHONY: proc-storage
proc-storage: s3-tools ## an installation of processes with rows in PostgreSQL over TLS and blobs in a bucket, a run through it, PostgreSQL killed
	tools/with-s3.sh tools/with-postgres.sh --tls $(GOTEST) -timeout 10m -count=1 -v -run TestStorageOverTheWire ./test/proc

.PHONY: scale
scale: ## what grows, at full size, with figures: 10^6 metrics in a run, 10^5 files and a file at the limit in a snapshot (some minutes, 4 GiB of memory)
	REDOUBT_SCALE=full $(GOTEST) -timeout 60m -count=1 -v ./test/scale

.PHONY: test-postgres
test-postgres: s3-tools ## the store suites against a PostgreSQL of their own, and over TLS; it is killed, and as root filled (needs its programs; PART=0/2 half of them)
	@packages=$$(go list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./... | awk -v part="$${PART:-0/1}" 'BEGIN {split(part, p, "/")} / .*\/pkg\/sqldb\/sqldbtest/ && k++ % p[2] == p[1] {print $$1}'); \
	[ -n "$$packages" ] || { echo "no package's tests import pkg/sqldb/sqldbtest"; exit 1; }; \
	tools/with-postgres.sh $(GOTEST) -timeout 10m -count=1 $$packages; \
	REDOUBT_TEST_POSTGRES_ALONE=1 tools/with-postgres.sh --tls $(GOTEST) -timeout 10m -count=1 -p 1 ./pkg/sqldb/...

.PHONY: test-replicas
test-replicas: s3-tools ## services that run twice on PostgreSQL, under load: restarted in turn, killed, their leaders killed, tokens revoked (needs PostgreSQL's programs; no root)
	tools/with-s3.sh tools/with-postgres.sh $(GOTEST) -timeout 10m -count=1 -v -run '^TestReplicated' ./test/proc

.PHONY: test-s3
test-s3: s3-tools ## the blob store's suite on an S3 server of its own, which is killed, cut off and filled (as root also: a full disk)
	tools/with-s3.sh $(GOTEST) -timeout 10m -count=1 ./pkg/blob

.PHONY: conformance
conformance: ## the gateway under others' clients: grpc-go's interoperability cases, h2spec, grpcurl, grpc_health_probe (a module of its own)
	cd test/conformance && $(GOTEST) -timeout 10m -count=1 -v .

.PHONY: federation
federation: ## guests whose home is a provider of others: Dex, in a module of its own
	cd test/federation && $(GOTEST) -timeout 10m -count=1 -v .

.PHONY: attack
attack: ## everything that strangers, thieves and the dismissed try, with what was tried and let in at the end (TIER=ci: what make test has not; ONLY; ATTACK_SEED)
	go run ./test/attacks -tier $${TIER:-all} -only "$${ONLY:-}" -seed $${ATTACK_SEED:-0}

.PHONY: canary
canary: ## secrets in every field of every request, form and page, well and badly, looked for in logs, traces, metrics, files and errors (some minutes)
	ATTACK_FULL=1 $(GOTEST) -timeout 20m -count=1 -v -run '^(TestSearch|TestCanaries)$$' ./test/e2e/canary | grep -vE '^ *(=== RUN|--- PASS)'

.PHONY: attack-edge
attack-edge: ## attack the gateway in every way beside a good client (ATTACK_SECONDS of each, ATTACK_SEED)
	ATTACK_SECONDS=$${ATTACK_SECONDS:-5} $(GOTEST) -timeout 10m -count=1 -v ./test/e2e/attack

.PHONY: attack-revoke
attack-revoke: ## tokens, accounts, memberships and roles revoked under load: what is honoured after the call returned (REVOKE_ROUNDS of each)
	REVOKE_ROUNDS=$${REVOKE_ROUNDS:-25} $(GOTEST) -timeout 20m -count=1 -v -run '^TestRevokedIsRevoked$$' ./test/e2e

# What test/fault/revoke needs.
.PHONY: fence-binaries
fence-binaries:
	@mkdir -p $(BIN)
	go build -tags redoubt_fault_clock -o $(BIN)/redoubt-fault ./cmd/redoubt
	go build -o $(BIN)/fence ./test/fault/revoke

.PHONY: attack-fence
attack-fence: fence-binaries ## rights taken away from many processes under load and faults: what is honoured after the call returned (root on Linux; FENCE_ROUNDS or FENCE_SECONDS, FENCE_RATE, FENCE_KINDS, FENCE_FAULTS, FENCE_SEED, FENCE_POSTGRES=1)
	$(GOTEST) -count=1 ./test/fault/revoke
	$(BIN)/fence -binary $(BIN)/redoubt-fault -rounds $${FENCE_ROUNDS:-1000} -seconds $${FENCE_SECONDS:-0} -rate $${FENCE_RATE:-500} -kinds "$${FENCE_KINDS:-}" -faults "$${FENCE_FAULTS:-}" -goal $${FENCE_GOAL:-1s} -seed $${FENCE_SEED:-0} $(if $(FENCE_POSTGRES),-postgres) -keep "$${FENCE_KEEP:-}"

.PHONY: attack-fence-mutants
attack-fence-mutants: fence-binaries ## switch the fence's rules off one by one, and see that attack-fence finds each (root on Linux)
	BIN=$(BIN) test/fault/revoke/mutants.sh

.PHONY: interop
interop: ## of these, grpc-go's interoperability cases alone
	cd test/conformance && $(GOTEST) -timeout 10m -count=1 -v -run TestInterop .

.PHONY: backup-scale
backup-scale: ## a large installation backed up under load and restored: how fast, and how long changes wait (BACKUP_ROWS)
	BACKUP_ROWS=$${BACKUP_ROWS:-1000000} $(GOTEST) -timeout 30m -count=1 -v -run TestScale ./test/backup

.PHONY: browser
browser: ## the console's pages, and security keys on the sign-in pages, in headless Chromium (needs chromium; REDOUBT_SCREENSHOTS=FOLDER leaves pictures)
	$(GOTEST) -timeout 10m -count=1 -v ./test/e2e/console ./test/e2e/passkeys

.PHONY: clients
clients: $(BIN)/buf thirdparty ## clients in Python, C++, Java and Go: generated, built, and run against an installation (examples/clients/README.md)
	$(MAKE) -j$$(nproc) -C examples/clients all
	REDOUBT_CLIENTS=1 $(GOTEST) -timeout 10m -count=1 -v ./test/clients

.PHONY: clients-typescript
clients-typescript: $(BIN)/buf thirdparty ## TypeScript from proto/, checked by tsc (needs npm's registry)
	@mkdir -p .gen/typescript
	@timeout 60 npm install --silent --no-audit --no-fund --fetch-retries=0 --prefix .gen/typescript @bufbuild/protoc-gen-es@2 @bufbuild/protobuf@2 typescript@5 || \
		{ echo "skipped: npm's registry cannot be reached, or there is no npm"; exit 0; }; \
	$(BIN)/buf generate --template examples/clients/buf.gen.ts.yaml -o .gen/typescript && \
	.gen/typescript/node_modules/.bin/tsc --noEmit --strict --target es2022 --module nodenext --skipLibCheck $$(find .gen/typescript/src -name '*.ts')

.PHONY: mutants
mutants: ## take the guards out one by one, and see that the matrix notices
	test/mutants.sh

.PHONY: mutate
mutate: ## take the checks of tokens, proofs, factors and the edge out one by one, and see that their tests notice (ONLY: a regular expression; PART=0/4: a quarter)
	go run ./test/mutate -only "$${ONLY:-}" -part "$${PART:-0/1}"

.PHONY: layering
layering: ## who may import whom, package comments, links in the docs
	$(GOTEST) -count=1 ./internal/layering

.PHONY: bench
bench: ## figures, each beside a peer in the same run
	cd bench && go run .

##@ Containers (docs/compose.md)

.PHONY: image
image: ## the image of the services: the static binary FROM scratch (REDOUBT_IMAGE_TAG; without it dev)
	deploy/image.sh redoubt

.PHONY: image-python
image-python: ## the image of agents: Debian with python3 and the binary (needs mmdebstrap)
	deploy/image.sh python

.PHONY: image-postgres
image-postgres: ## the image of the database of docker-compose.yml (needs mmdebstrap)
	deploy/image.sh postgres

.PHONY: compose-up
compose-up: ## make the images and an installation in containers, and start it (POSTGRES=1: on PostgreSQL)
	deploy/compose.sh up

.PHONY: compose-demo
compose-demo: ## the same, and the walk on it
	deploy/compose.sh demo

.PHONY: compose-memory
compose-memory: ## what its containers hold, against what they may
	deploy/compose.sh memory

.PHONY: compose-hostile
compose-hostile: ## a run in its agent's container that tries everything
	deploy/compose.sh hostile

.PHONY: compose-down
compose-down: ## stop and remove its containers (V=1: what they keep, too)
	deploy/compose.sh down $(if $(V),--volumes)

##@ Contracts and checks

.PHONY: gen
gen: $(PLUGINS) $(BIN)/sqlc thirdparty ## generate Go and the OpenAPI document from proto/, and Go from the stores' SQL
	@exec 9>.gen/lock && flock 9 && \
	tools/gen-proto.sh .gen/go && tools/replace-tree.sh .gen/go/gen gen && \
	tools/sqlc.sh $(BIN)/sqlc

.PHONY: gen-check
gen-check: ## generated code is what the sources say
	tools/gen-check.sh

.PHONY: lint
lint: $(BIN)/golangci-lint $(BIN)/buf thirdparty ## golangci-lint over the Go, buf over the protos
	$(BIN)/buf lint proto
	$(BIN)/golangci-lint run

.PHONY: breaking
breaking: $(BIN)/buf thirdparty ## the contracts break nobody who uses proto/redoubt.binpb's
	$(BIN)/buf breaking proto --against proto/redoubt.binpb

.PHONY: protoset
protoset: $(BIN)/buf thirdparty ## the contracts as a descriptor set, for tools without reflection: .bin/redoubt.protoset
	$(BIN)/buf build proto -o $(BIN)/redoubt.protoset#format=binpb

.PHONY: image-proto
image-proto: $(BIN)/buf thirdparty ## make the present contracts the ones that breaking compares with
	$(BIN)/buf build proto -o proto/redoubt.binpb

# --- tools

$(BIN)/buf: PKG = github.com/bufbuild/buf/cmd/buf
$(BIN)/golangci-lint: PKG = github.com/golangci/golangci-lint/v2/cmd/golangci-lint
$(BIN)/protoc-gen-go: PKG = google.golang.org/protobuf/cmd/protoc-gen-go
$(BIN)/protoc-gen-go-grpc: PKG = google.golang.org/grpc/cmd/protoc-gen-go-grpc
$(BIN)/protoc-gen-grpc-gateway: PKG = github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-grpc-gateway
$(BIN)/protoc-gen-openapiv2: PKG = github.com/grpc-ecosystem/grpc-gateway/v2/protoc-gen-openapiv2
$(BIN)/sqlc: PKG = github.com/sqlc-dev/sqlc/cmd/sqlc
$(BIN)/thirdparty: PKG = ./thirdparty
$(BIN)/thirdparty: tools/thirdparty/main.go

$(PLUGINS) $(BIN)/golangci-lint $(BIN)/sqlc $(BIN)/thirdparty: tools/go.mod tools/go.sum
	@mkdir -p $(BIN)
	cd tools && CGO_ENABLED=0 go build -mod=readonly -ldflags='-s -w' -o ../$@ $(PKG)
	@touch $@

# For tests: an S3 server, from a module of its own, and certificates for servers of others.
.PHONY: s3-tools
s3-tools: $(BIN)/versitygw $(BIN)/certs
$(BIN)/versitygw: tools/s3/go.mod tools/s3/go.sum
	@mkdir -p $(BIN)
	cd tools/s3 && CGO_ENABLED=0 go build -mod=readonly -ldflags='-s -w' -o ../../$@ github.com/versity/versitygw/cmd/versitygw
	@touch $@
$(BIN)/certs: tools/certs/main.go
	@mkdir -p $(BIN)
	cd tools && CGO_ENABLED=0 go build -mod=readonly -ldflags='-s -w' -o ../$@ ./certs

# The protos that ours import, printed from their Go modules.
.PHONY: thirdparty
thirdparty: .gen/third_party/.stamp
.gen/third_party/.stamp: $(BIN)/thirdparty
	$(BIN)/thirdparty .gen/third_party
	@touch $@
