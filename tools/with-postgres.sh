#!/usr/bin/env bash
# Runs a command with a PostgreSQL of its own: made in a temporary folder, on a port of loopback that was free, gone
# afterwards. The command finds it in REDOUBT_TEST_POSTGRES, a URL of a role that may create schemas and databases.
# Needs PostgreSQL's programs (Debian: postgresql); started by root it runs the server as user postgres.
#
# usage: tools/with-postgres.sh COMMAND…
set -euo pipefail

bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
if [ -z "$bin" ]; then
	initdb=$(command -v initdb) || { echo "with-postgres: no initdb here: apt-get install postgresql" >&2; exit 1; }
	bin=$(dirname "$(readlink -f "$initdb")")
fi

dir=$(mktemp -d /tmp/redoubt-postgres.XXXXXX)
as=()
if [ "$(id -u)" = 0 ]; then
	chown postgres "$dir"
	as=(runuser -u postgres --)
fi
stop() {
	"${as[@]}" "$bin/pg_ctl" --pgdata "$dir/data" --mode immediate --silent stop >/dev/null 2>&1 || true
	rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT TERM

cd "$dir" # the server's user may not read the working directory
"${as[@]}" "$bin/initdb" --pgdata "$dir/data" --username redoubt --auth trust --encoding UTF8 --locale C.UTF-8 >"$dir/initdb.log" 2>&1 ||
	{ cat "$dir/initdb.log" >&2; exit 1; }
for _ in 1 2 3 4 5; do
	port=$((20000 + RANDOM % 10000))
	if "${as[@]}" "$bin/pg_ctl" --pgdata "$dir/data" --log "$dir/server.log" --silent --wait \
		--options "-c listen_addresses=127.0.0.1 -c port=$port -c unix_socket_directories=$dir -c max_connections=200" start; then
		export REDOUBT_TEST_POSTGRES="postgres://redoubt@127.0.0.1:$port/postgres?sslmode=disable"
		cd "$OLDPWD"
		"$@"
		exit
	fi
done
cat "$dir/server.log" >&2
exit 1
