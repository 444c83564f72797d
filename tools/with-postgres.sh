#!/usr/bin/env bash
# Runs a command with a PostgreSQL of its own: made in a temporary folder, on a port of loopback that was free, gone
# afterwards. The command finds it in REDOUBT_TEST_POSTGRES, a URL of a role that may create schemas and databases.
# Needs PostgreSQL's programs (Debian: postgresql); started by root it runs the server as user postgres.
#
# With --tls the server takes TLS alone, with a certificate from a root of its own, and a password (SCRAM); the URL says verify-full. Then
#   REDOUBT_TEST_POSTGRES_TLS      is the folder with root.pem, other.pem (a root that has signed nothing), server.pem and server.key
# and always
#   REDOUBT_TEST_POSTGRES_CONTROL  is a program that stops, kills and starts the server: CONTROL stop|kill|start.
# A test that hurts the server wants it alone: whoever runs one package at a time says so with REDOUBT_TEST_POSTGRES_ALONE=1.
# Needs .bin/certs for it (make s3-tools).
#
# usage: tools/with-postgres.sh [--tls] COMMAND…
set -euo pipefail

tls=
if [ "${1:-}" = --tls ]; then
	tls=yes
	shift
fi
bin=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort -V | tail -1 || true)
if [ -z "$bin" ]; then
	initdb=$(command -v initdb) || { echo "with-postgres: no initdb here: apt-get install postgresql" >&2; exit 1; }
	bin=$(dirname "$(readlink -f "$initdb")")
fi
certs=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.bin/certs
[ -z "$tls" ] || [ -x "$certs" ] || { echo "with-postgres: no $certs: make s3-tools" >&2; exit 1; }

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

from=$PWD
cd "$dir" # the server's user may not read the working directory
auth=(--auth trust) password=
if [ -n "$tls" ]; then
	password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
	(umask 077 && echo "$password" >"$dir/password")
	mkdir -m 700 "$dir/tls"
	"$certs" "$dir/tls"
	[ ${#as[@]} = 0 ] || chown -R postgres "$dir/tls" "$dir/password"
	auth=(--auth scram-sha-256 --pwfile "$dir/password")
fi
"${as[@]}" "$bin/initdb" --pgdata "$dir/data" --username redoubt "${auth[@]}" --encoding UTF8 --locale C.UTF-8 >"$dir/initdb.log" 2>&1 ||
	{ cat "$dir/initdb.log" >&2; exit 1; }
settings="-c listen_addresses=127.0.0.1 -c unix_socket_directories=$dir -c max_connections=200"
if [ -n "$tls" ]; then
	settings="$settings -c ssl=on -c ssl_cert_file=$dir/tls/server.pem -c ssl_key_file=$dir/tls/server.key -c ssl_min_protocol_version=TLSv1.3"
	printf 'hostssl all all 127.0.0.1/32 scram-sha-256\n' >"$dir/data/pg_hba.conf"
fi
for _ in 1 2 3 4 5; do
	port=$((20000 + RANDOM % 10000))
	cat >"$dir/control" <<-END
		#!/usr/bin/env bash
		set -euo pipefail
		cd "$dir"
		case \$1 in
		start) ${as[*]} "$bin/pg_ctl" --pgdata "$dir/data" --log "$dir/server.log" --silent --wait --options "$settings -c port=$port" start </dev/null ;;
		stop) ${as[*]} "$bin/pg_ctl" --pgdata "$dir/data" --mode fast --silent --wait stop ;;
		kill) # the whole of it, at once, as a power cut does
			leader=\$(head -1 "$dir/data/postmaster.pid")
			kill -9 "\$leader" \$(ps -o pid= --ppid "\$leader") 2>/dev/null || true
			while [ -d "/proc/\$leader" ]; do sleep 0.05; done ;;
		*) exit 64 ;;
		esac
	END
	chmod 755 "$dir/control"
	if "$dir/control" start; then
		export REDOUBT_TEST_POSTGRES_CONTROL=$dir/control
		if [ -n "$tls" ]; then
			chmod 755 "$dir" # the root's certificate is read by who connects
			export REDOUBT_TEST_POSTGRES="postgres://redoubt:$password@127.0.0.1:$port/postgres?sslmode=verify-full&sslrootcert=$dir/tls/root.pem"
			export REDOUBT_TEST_POSTGRES_TLS=$dir/tls
		else
			export REDOUBT_TEST_POSTGRES="postgres://redoubt@127.0.0.1:$port/postgres?sslmode=disable"
		fi
		cd "$from"
		"$@"
		exit
	fi
done
cat "$dir/server.log" >&2
exit 1
