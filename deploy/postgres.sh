#!/bin/bash
# The PostgreSQL of docker-compose.yml: made at the first start in /var/lib/database, with a root of its own for TLS. Passwords over TLS 1.3
# only; its superuser is whoever is this user in this container, and nobody over the network.
#
# DATABASE_HOST  the name that clients verify; without it postgres
set -euo pipefail
umask 077
dir=/var/lib/database
bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -1)
host=${DATABASE_HOST:-postgres}

mkdir -p "$dir/tls"
cd "$dir/tls"
if [ ! -s root.pem ]; then
	openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj "/CN=PostgreSQL of this installation" \
		-addext basicConstraints=critical,CA:true,pathlen:0 -addext keyUsage=critical,keyCertSign -keyout root.key -out root.new 2>/dev/null
	mv root.new root.pem
fi
# A certificate for each start.
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$host" -keyout server.key -out /tmp/server.csr 2>/dev/null
openssl x509 -req -in /tmp/server.csr -CA root.pem -CAkey root.key -days 397 -out server.pem 2>/dev/null \
	-extfile <(printf 'subjectAltName=DNS:%s\nbasicConstraints=critical,CA:false\nkeyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth\n' "$host")

if [ ! -s "$dir/data/complete" ]; then
	rm -rf "$dir/data"
	"$bin/initdb" --pgdata "$dir/data" --username database --auth reject --encoding UTF8 --locale C.UTF-8 --data-checksums >/tmp/initdb.log 2>&1 || { cat /tmp/initdb.log >&2; exit 1; }
	cat >"$dir/data/pg_hba.conf" <<-EOF
		local   all all      peer
		hostssl all database all reject
		hostssl redoubt all  all scram-sha-256
	EOF
	cat >>"$dir/data/postgresql.conf" <<-EOF
		listen_addresses = '*'
		unix_socket_directories = '/tmp'
		ssl = on
		ssl_cert_file = '$dir/tls/server.pem'
		ssl_key_file = '$dir/tls/server.key'
		ssl_min_protocol_version = 'TLSv1.3'
		password_encryption = 'scram-sha-256'
		max_connections = 200
		shared_buffers = 64MB
		log_timezone = 'UTC'
		timezone = 'UTC'
	EOF
	"$bin/pg_ctl" --pgdata "$dir/data" --silent --wait --options "-c listen_addresses=" --log /tmp/first.log start || { cat /tmp/first.log >&2; exit 1; }
	"$bin/createdb" -h /tmp -U database -E UTF8 -T template0 redoubt
	"$bin/pg_ctl" --pgdata "$dir/data" --silent --wait stop
	echo yes >"$dir/data/complete"
fi
exec "$bin/postgres" -D "$dir/data"
