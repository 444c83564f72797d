#!/usr/bin/env bash
# Generates everything anew beside the tree and says what differs from what is committed. Changes nothing.
set -euo pipefail

make --no-print-directory .bin/buf .bin/protoc-gen-go .bin/protoc-gen-go-grpc .bin/protoc-gen-grpc-gateway .bin/protoc-gen-openapiv2 .bin/sqlc thirdparty
tools/gen-proto.sh .gen/check
if ! diff -ru gen .gen/check/gen; then
	echo "gen-check: gen/ is not what proto/ says: run make gen, and commit gen/" >&2
	exit 1
fi
if ! tools/sqlc.sh .bin/sqlc diff; then
	echo "gen-check: a store's db/ is not what its SQL says: run make gen, and commit it" >&2
	exit 1
fi
if [ -n "$(git status --porcelain --untracked-files=all -- gen ':(glob)**/internal/store/db/**')" ] && [ -n "${CI:-}" ]; then
	git status --short --untracked-files=all -- gen ':(glob)**/internal/store/db/**' >&2
	echo "gen-check: generated code is not committed" >&2
	exit 1
fi
echo "gen-check: generated code is up to date"
