#!/usr/bin/env bash
# Generates package db for every store of the tree. A store is a folder with migrations/ (goose files, the schema) and
# queries.sql (or queries/); its code goes into db/ beside them. Nothing lists the stores: adding one is adding its folder.
# Each is done by itself, so one store's bad SQL keeps no other from its code.
#
# One SQL text serves SQLite and PostgreSQL. sqlc reads it as PostgreSQL, since its SQLite engine cannot parse $1. Times and
# numbers are BIGINT (int64), bytes BYTEA ([]byte), what may be absent sql.Null*.
#
# usage: tools/sqlc.sh SQLC [generate|diff|compile]        run from the repository's root
set -euo pipefail

sqlc=$1
config=sqlc.$$.yaml # in the root, since its paths count from where it is
trap 'rm -f "$config"' EXIT

stores=$(find services pkg internal -type d -name migrations -prune -printf '%h\n' 2>/dev/null | LC_ALL=C sort || true)
failed=0
for store in $stores; do
	queries=$store/queries.sql
	[ -e "$queries" ] || queries=$store/queries
	[ -e "$queries" ] || continue
	cat >"$config" <<-CONFIG
		version: "2"
		sql:
		  - schema: $store/migrations
		    queries: $queries
		    engine: postgresql
		    strict_function_checks: true
		    gen:
		      go:
		        package: db
		        out: $store/db
		        sql_package: database/sql
		        emit_interface: false
		        emit_empty_slices: true
		        initialisms: [id, uid, url]
	CONFIG
	"$sqlc" "${2:-generate}" --file "$config" --no-remote || { echo "sqlc: $store failed" >&2; failed=1; }
done
exit $failed
