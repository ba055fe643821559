# Hearth: make help
SHELL := /bin/bash
GO ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
GOFLAGS_BUILD := -trimpath -ldflags '-s -w -X main.version=$(VERSION)'
export CGO_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help build deps demo test pictures test-all test-firecracker firecracker check bench fuzz mutate clean

help: ## What can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

build: ## bin/hearth and bin/hearth-guest, static
	$(GO) build $(GOFLAGS_BUILD) -o bin/ ./cmd/hearth ./cmd/hearth-guest

deps: ## Install what is missing of Debian's packages (root or sudo)
	@scripts/deps run

demo: deps build ## Run examples/tally in microVMs: the whole of Hearth in one go
	bin/hearth image build
	bin/hearth run -C examples/tally

pictures: ## The pictures of the README and docs, from the pages themselves over a made past
	HEARTH_PICTURES=$(CURDIR)/docs/pictures $(GO) test -count=1 -run 'TestPictures' ./internal/front

test: build ## Everything a fresh machine can run, real microVMs included
	@scripts/deps test
	-@scripts/axe
	$(MAKE) firecracker
	$(GO) test -timeout 30m $$($(GO) list ./... | grep -v /vm/firecracker$$)
	$(GO) test -timeout 30m ./internal/vm/firecracker # by itself: a machine in a machine is lost where others take the processor

test-firecracker: build firecracker ## The driver suite and a workflow on real Firecracker
	$(GO) test -count=1 -timeout 20m -v -run 'TestFirecracker' ./internal/vm/firecracker/...

test-all: ## The slow tests too
	HEARTH_SLOW=1 $(GO) test -timeout 120m ./...

firecracker: ## Fetch and verify a Firecracker binary for the tests
	@scripts/firecracker

check: ## What every commit passes: format, vet, fix, tidy, staticcheck, layers
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo 'gofmt -w the files above'; exit 1; }
	$(GO) vet ./...
	$(GO) fix -diff ./...
	$(GO) mod tidy -diff
	$(GO) tool -modfile=tools.mod staticcheck ./...
	$(GO) test -run 'TestLayers' .

bench: build ## The figures, as tables
	-bin/hearth bench vm
	-bin/hearth bench learn
	-bin/hearth bench serve
	$(GO) test -run '^$$' -bench . -benchmem ./internal/expr ./internal/workflow ./internal/plan ./internal/graph ./internal/learn
	$(GO) test -run '^$$' -bench PushToCheck -benchtime 10x ./internal/dispatch

FUZZTIME ?= 30s
fuzz: ## Every fuzzer for FUZZTIME (default 30s)
	@scripts/fuzz $(FUZZTIME)

MUTATE ?= 40
SEED ?= 1
mutate: ## What the tests of the deciding packages would miss, MUTATE=40 changes each, SEED=1 of them (half an hour)
	$(GO) run ./scripts/mutate -n $(MUTATE) -seed $(SEED) -skip postgresql ./internal/plan ./internal/engine ./internal/worker ./internal/queue ./internal/store \
		./internal/dispatch ./internal/mask
	$(GO) run ./scripts/mutate -n $(MUTATE) -seed $(SEED) -file policy ./internal/network

clean: ## Remove what was built here (images stay: hearth image rm --all)
	rm -rf bin
