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
test-race: ## the concurrent packages under the race detector (RACE=… to choose)
	CGO_ENABLED=1 $(GOTEST) -race -timeout 15m $$(go list -e -f '{{if .GoFiles}}{{.ImportPath}}{{end}}' $(RACE))

.PHONY: proc
proc: ## installations of real processes: walked while certificates rotate, killed, started cold (PROC_SECONDS of each walk and of the kills)
	PROC_SECONDS=$${PROC_SECONDS:-60} $(GOTEST) -timeout 30m -count=1 -v ./test/proc

.PHONY: test-postgres
test-postgres: ## the store suites against a PostgreSQL of their own (needs its programs; no root)
	@packages=$$(go list -f '{{.ImportPath}} {{join .TestImports " "}} {{join .XTestImports " "}}' ./... | awk '/ .*\/pkg\/sqldb\/sqldbtest/ {print $$1}'); \
	[ -n "$$packages" ] || { echo "no package's tests import pkg/sqldb/sqldbtest"; exit 1; }; \
	tools/with-postgres.sh $(GOTEST) -timeout 10m -count=1 $$packages

.PHONY: browser
browser: ## the console's pages in headless Chromium (needs chromium; REDOUBT_SCREENSHOTS=FOLDER leaves pictures)
	$(GOTEST) -timeout 10m -count=1 -v ./test/e2e/console

.PHONY: mutants
mutants: ## take the guards out one by one, and see that the matrix notices
	test/mutants.sh

.PHONY: layering
layering: ## who may import whom, package comments, links in the docs
	$(GOTEST) -count=1 ./internal/layering

.PHONY: bench
bench: ## figures, each beside a peer in the same run
	cd bench && go run .

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

# The protos that ours import, printed from their Go modules.
.PHONY: thirdparty
thirdparty: .gen/third_party/.stamp
.gen/third_party/.stamp: $(BIN)/thirdparty
	$(BIN)/thirdparty .gen/third_party
	@touch $@
