#!/usr/bin/env bash
# Makes and runs the installation of docker-compose.yml. docs/compose.md describes it.
#
# usage: deploy/compose.sh up | demo | memory | hostile | down [--volumes] | …    what is none of these goes to docker-compose as it is
#
# POSTGRES=1            on PostgreSQL, with two instances of identity, telemetry and the gateway; a project of its own
# COMPOSE_PROJECT_NAME  what containers and volumes are named after; without it redoubt, or redoubt-postgres
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

bootstrap=bootstrap
if [ -n "${POSTGRES-}" ]; then
	export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-redoubt-postgres} COMPOSE_PROFILES=postgres
	bootstrap=bootstrap-postgres
fi
export COMPOSE_PROJECT_NAME=${COMPOSE_PROJECT_NAME:-redoubt} REDOUBT_IMAGE_TAG=${REDOUBT_IMAGE_TAG:-dev}
out=.gen/compose
readonly total_mib=1024 service_mib=64

if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
c() { "${compose[@]}" "$@"; }

say() { echo "compose: $*"; }

# healthy [SECONDS]: waits until every container that has a check is healthy.
healthy() {
	local end=$((SECONDS + ${1:-120})) ill
	while :; do
		ill=$(docker ps --all --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --filter label=com.docker.compose.oneoff=False --format '{{.Names}} {{.Status}}' |
			grep -v '(healthy)$' | grep -v ' Created$' || true)
		[ -n "$ill" ] || return 0
		if [ $SECONDS -ge $end ]; then
			echo "$ill" >&2
			c logs --tail 20 >&2
			return 1
		fi
		sleep 1
	done
}

up() {
	docker version --format '{{.Server.Version}}' >/dev/null || { say "no Docker engine answers" >&2; return 1; }
	deploy/image.sh redoubt
	deploy/image.sh python
	[ -z "${POSTGRES-}" ] || deploy/image.sh postgres
	mkdir -p "$out"
	# A volume takes its owner from the image, when the container of its process is made: so these come first, and what fills them after.
	c up --no-start 2>&1 | grep -v -E '^(Creating|Recreating) ' || true
	if [ -z "$(operator ca.pem 2>/dev/null)" ]; then
		say "making the installation"
		if [ -n "${POSTGRES-}" ]; then database; fi
		c run --rm $bootstrap
	fi
	local not='agent|bootstrap|bootstrap-postgres|credential'
	[ -n "${POSTGRES-}" ] || not="$not|postgres|.*-b" # 1.29 lists what belongs to no profile that is on
	c up -d $(c config --services | grep -v -x -E "$not") 2>/dev/null
	healthy 120
	c run --rm credential
	c up -d 2>/dev/null
	healthy 60
	mkdir -p "$out"
	operator ca.pem >"$out/ca.pem"
	(umask 077 && operator admin.password >"$out/admin.password.new" && mv "$out/admin.password.new" "$out/admin.password")
	say "ready at https://127.0.0.1:${REDOUBT_PORT:-8443}; next:"
	echo "  redoubt login --server https://127.0.0.1:${REDOUBT_PORT:-8443} --ca $out/ca.pem --user admin --password-stdin <$out/admin.password"
}

# database: starts PostgreSQL, and makes in it what the services need.
database() {
	c up -d postgres 2>/dev/null
	local id end=$((SECONDS + 60))
	id=$(c ps -q postgres)
	until [ "$(docker inspect --format '{{.State.Health.Status}}' "$id")" = healthy ]; do
		[ $SECONDS -lt $end ] || { c logs postgres >&2; return 1; }
		sleep 1
	done
	docker exec "$id" cat /var/lib/database/tls/root.pem >"$out/postgres-root.pem"
	c run --rm $bootstrap bootstrap --plan /plan.yaml --data /var/lib/redoubt --sql
	operator postgres.sql | docker exec -i "$id" psql -q -h /tmp -U database -d redoubt -v ON_ERROR_STOP=1 -f -
}

# operator FILE: a file of the operator's volume.
operator() {
	docker run --rm --network none --user 65532:65532 --read-only --cap-drop ALL --entrypoint cat -v "${COMPOSE_PROJECT_NAME}_bootstrap:/operator:ro" "redoubt-python:$REDOUBT_IMAGE_TAG" "/operator/$1"
}

demo() {
	local begun=$SECONDS
	up
	.gen/image/redoubt demo --server https://127.0.0.1:8443 --ca "$out/ca.pem" --password-file "$out/admin.password"
	healthy 30
	docker ps --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --format 'table {{.Names}}\t{{.Status}}'
	say "from images to the end of the walk in $((SECONDS - begun)) s"
}

# memory: what the containers hold: as docker stats counts, all of them at most 1 GiB; and, of each service, its process's own memory at most
# 64 MiB. The difference are pages of files, the binary's above all, which the kernel takes back: one copy for every container where Docker keeps files with
# fuse-overlayfs, one for all with overlay2.
memory() {
	local those id service pid own
	those=$(docker ps --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" --format '{{.ID}} {{.Label "com.docker.compose.service"}}')
	[ -n "$those" ] || { say "nothing runs" >&2; return 1; }
	{
		while read -r id service; do
			pid=$(docker inspect --format '{{.State.Pid}}' "$id")
			own=$(awk '/^RssAnon:/ {print $2}' "/proc/$pid/status")
			echo "$id own $service $own"
		done <<<"$those"
		docker stats --no-stream --format '{{.Container}} all {{.MemUsage}}' $(awk '{print $1}' <<<"$those")
	} | awk -v most=$service_mib -v limit=$total_mib '
		$2 == "own" { name[$1] = $3; own[$1] = $4 / 1024; next }
		{ n = $3; sub(/[A-Za-z]+$/, "", n); if ($3 ~ /GiB/) n *= 1024; if ($3 ~ /KiB/) n /= 1024
		  service = name[$1]; sum += n; over = ""; count++
		  if (own[$1] <= 0 || own[$1] > most && service !~ /^(etcd-[0-9]|agent|postgres)$/) { over = "  OVER " most " MiB"; bad = 1 }
		  printf "%-16s %8.1f MiB, its own %6.1f MiB%s\n", service, n, own[$1], over | "sort" }
		END { close("sort"); printf "%-16s %8.1f MiB of %d\n", "all " count, sum, limit; exit bad || sum > limit || count == 0 }'
}

# hostile: a run that tries everything, in the agent's container.
hostile() {
	REDOUBT_COMPOSE_PROJECT=$COMPOSE_PROJECT_NAME REDOUBT_COMPOSE_SERVER=https://127.0.0.1:${REDOUBT_PORT:-8443} \
		REDOUBT_COMPOSE_CA=$PWD/$out/ca.pem REDOUBT_COMPOSE_PASSWORD_FILE=$PWD/$out/admin.password \
		go test ./test/e2e/hostile -count=1 -run '^TestContainerIsNoWeaker$' -v | grep -v -E '^(=== | +--- PASS)'
}

case ${1-} in
up | demo | memory | hostile) "$1" ;;
down)
	shift
	c down --remove-orphans "$@"
	case " $* " in *" --volumes "* | *" -v "*) rm -rf "$out" ;; esac
	;;
"") sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2 ;;
*) c "$@" ;;
esac
