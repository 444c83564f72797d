#!/usr/bin/env bash
# Runs a command with an S3 server of its own: versitygw over a temporary folder, by https with a root made for it, on a port of loopback that
# was free, gone afterwards. The command finds it in
#   REDOUBT_TEST_S3              s3://bucket?endpoint=…&region=…, a bucket that is there
#   REDOUBT_TEST_S3_CREDENTIALS  the file with its key
#   REDOUBT_TEST_S3_ROOT         the root to believe, as PEM
#   REDOUBT_TEST_S3_SERVER       the program, for tests that kill servers of their own (certificate and key: server.pem, server.key beside the root)
# Needs .bin/versitygw and .bin/certs (make s3-tools).
#
# usage: tools/with-s3.sh COMMAND…
set -euo pipefail

bin=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.bin
for tool in versitygw certs; do
	[ -x "$bin/$tool" ] || { echo "with-s3: no $bin/$tool: make s3-tools" >&2; exit 1; }
done

umask 077
dir=$(mktemp -d /tmp/redoubt-s3.XXXXXX)
server=
stop() {
	[ -z "$server" ] || { kill "$server" && wait "$server"; } >/dev/null 2>&1 || true
	rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT TERM

"$bin/certs" "$dir"
mkdir -p "$dir/store/redoubt"
access=test$RANDOM secret=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
printf 'access_key_id: %s\nsecret_access_key: %s\n' "$access" "$secret" >"$dir/credentials.yaml"

for _ in 1 2 3 4 5; do
	port=$((20000 + RANDOM % 10000))
	# The key is in the server's environment, not in its command line, which everyone on the machine can read.
	ROOT_ACCESS_KEY=$access ROOT_SECRET_KEY=$secret "$bin/versitygw" --port "127.0.0.1:$port" --cert "$dir/server.pem" --key "$dir/server.key" --region us-east-1 \
		--keep-alive --quiet posix "$dir/store" >"$dir/server.log" 2>&1 &
	server=$!
	for _ in $(seq 100); do
		kill -0 "$server" 2>/dev/null || break
		if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			export REDOUBT_TEST_S3="s3://redoubt?endpoint=https://127.0.0.1:$port&region=us-east-1"
			export REDOUBT_TEST_S3_CREDENTIALS=$dir/credentials.yaml REDOUBT_TEST_S3_ROOT=$dir/root.pem REDOUBT_TEST_S3_SERVER=$bin/versitygw
			"$@"
			exit
		fi
		sleep 0.1
	done
	wait "$server" || true
done
cat "$dir/server.log" >&2
exit 1
