#!/usr/bin/env bash
# Makes the images from nothing but this tree, Go, and Debian's packages: there is no registry in it.
#
# usage: deploy/image.sh redoubt | python | postgres
#
#   redoubt   the static binary FROM scratch: user 65532, CA bundle, an empty /var/lib/redoubt, no shell
#   python    Debian with python3 and the binary: what agents need
#   postgres  Debian's PostgreSQL
#
# REDOUBT_IMAGE_TAG    the tag of all three; without it dev
# REDOUBT_APT_SOURCES  file of apt sources for the Debian parts; without it this machine's
# REDOUBT_SUITE        Debian's release; without it bookworm
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

tag=${REDOUBT_IMAGE_TAG:-dev} suite=${REDOUBT_SUITE:-bookworm}
out=.gen/image
user=65532
mkdir -p "$out"

# label IMAGE: what the image was made of, empty without an image.
label() { docker image inspect --format '{{index .Config.Labels "redoubt.content"}}' "$1" 2>/dev/null || true; }

digest() { sha256sum "$@" | sha256sum | cut -c1-64; }

# binary: the static binary, the same for all images.
binary() {
	CGO_ENABLED=0 GOOS=linux go build -trimpath -ldflags='-s -w' -o "$out/redoubt" ./cmd/redoubt
	revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
}

labels() { # TITLE CONTENT
	printf '%s\n' "org.opencontainers.image.title=$1" "org.opencontainers.image.revision=$revision" "redoubt.content=$2"
}

image_redoubt() {
	binary
	local root=$out/root bundle=${SSL_CERT_FILE:-/etc/ssl/certs/ca-certificates.crt} content changes=() l
	rm -rf "$root" "$out/redoubt.tar"
	mkdir -p "$root/etc/ssl/certs" "$root/var/lib" "$out/state/redoubt" "$out/state/tmp"
	echo "redoubt:x:$user:$user:redoubt:/var/lib/redoubt:/" >"$root/etc/passwd"
	echo "redoubt:x:$user:" >"$root/etc/group"
	cp "$out/redoubt" "$root/redoubt"
	# For what speaks to others than the mesh: S3, OTLP. The mesh believes its own root alone.
	if [ -r "$bundle" ]; then cp -L "$bundle" "$root/etc/ssl/certs/ca-certificates.crt"; else echo "image.sh: no CA bundle on this machine, and none in the image" >&2; fi
	# The same files make the same tar.
	local same=(--sort=name --mtime=@0 --format=gnu --numeric-owner)
	tar "${same[@]}" --owner=0 --group=0 --mode='u=rwX,go=rX' -C "$root" -cf "$out/redoubt.tar" .
	tar "${same[@]}" --owner=$user --group=$user --mode=0700 -C "$out/state" --transform='s,^redoubt,./var/lib/redoubt,' -rf "$out/redoubt.tar" redoubt
	tar "${same[@]}" --owner=0 --group=0 --mode=1777 -C "$out/state" --transform='s,^tmp,./tmp,' -rf "$out/redoubt.tar" tmp
	content=$(digest "$out/redoubt.tar" deploy/image.sh)
	if [ "$(label "redoubt:$tag")" = "$content" ]; then
		echo "redoubt:$tag is as it should be"
		return
	fi
	while read -r l; do changes+=(--change "LABEL \"${l%%=*}\"=\"${l#*=}\""); done < <(labels redoubt "$content")
	docker import "${changes[@]}" --change "USER $user:$user" --change 'WORKDIR /var/lib/redoubt' --change 'ENTRYPOINT ["/redoubt"]' "$out/redoubt.tar" "redoubt:$tag" >/dev/null
	echo "redoubt:$tag made, $(($(stat -c %s "$out/redoubt.tar") / 1000000)) MB"
}

# debian IMAGE PACKAGES HOOK…: a Debian of these packages, without what a container does not need.
debian() {
	local image=$1 packages=$2 sources=${REDOUBT_APT_SOURCES:-} content options=() line
	shift 2
	command -v mmdebstrap >/dev/null || { echo "image.sh: mmdebstrap is missing: apt-get install mmdebstrap" >&2; return 1; }
	if [ -z "$sources" ]; then
		for sources in /etc/apt/sources.list.d/debian.sources /etc/apt/sources.list; do [ -s "$sources" ] && break; done
	fi
	# How this machine reaches its mirror, and whether it checks the age of what it gets there.
	while read -r line; do options+=("--aptopt=$line"); done < <(apt-config dump | grep -E '^Acquire::(Check-[A-Za-z-]+|https?::Proxy|Retries) ' || true)
	content=$( (printf '%s\n' "$suite" "$packages" "$@"; cat "$sources") | sha256sum | cut -c1-64)
	if [ "$(label "$image")" = "$content" ]; then
		echo "$image is as it should be"
		return
	fi
	mmdebstrap --quiet --variant=essential --include="$packages" "${options[@]}" "$@" \
		--dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/info/*' \
		"$suite" "$out/debian.tar" "$sources"
	docker import --change "LABEL redoubt.content=$content" "$out/debian.tar" "$image" >/dev/null
	rm -f "$out/debian.tar"
	echo "$image made"
}

# on BASE IMAGE TITLE FILES… : an image on a Debian, from the Dockerfile on standard input and files beside it.
on() {
	local base=$1 image=$2 title=$3 context=$out/context content args=() l
	shift 3
	rm -rf "$context" && mkdir -p "$context"
	cat >"$context/Dockerfile"
	cp "$@" "$context/"
	content=$( (label "$base"; cd "$context" && sha256sum -- *) | sha256sum | cut -c1-64)
	if [ "$(label "$image")" = "$content" ]; then
		echo "$image is as it should be"
		return
	fi
	while read -r l; do args+=(--label "$l"); done < <(labels "$title" "$content")
	docker build --quiet "${args[@]}" --tag "$image" "$context" >"$out/build.log" 2>&1 || { cat "$out/build.log" >&2; return 1; }
	echo "$image made"
}

image_python() {
	debian redoubt-debian-python:$suite python3,ca-certificates \
		--customize-hook='mkdir -p "$1/var/lib/agent"; chown 65533:65533 "$1/var/lib/agent"; chmod 0700 "$1/var/lib/agent"' \
		--customize-hook='echo "agent:x:65533:65533:agent:/tmp:/usr/sbin/nologin" >>"$1/etc/passwd"; echo "agent:x:65533:" >>"$1/etc/group"'
	binary
	on redoubt-debian-python:$suite "redoubt-python:$tag" redoubt-python "$out/redoubt" <<-EOF
		FROM redoubt-debian-python:$suite
		COPY redoubt /usr/bin/redoubt
		USER 65533:65533
		ENTRYPOINT ["/usr/bin/redoubt"]
	EOF
}

image_postgres() {
	debian redoubt-debian-postgres:$suite postgresql,openssl \
		--essential-hook='mkdir -p "$1/etc/postgresql-common"; echo "create_main_cluster = false" >"$1/etc/postgresql-common/createcluster.conf"' \
		--customize-hook='echo "database:x:65531:65531:database:/var/lib/database:/usr/sbin/nologin" >>"$1/etc/passwd"; echo "database:x:65531:" >>"$1/etc/group"' \
		--customize-hook='mkdir -p "$1/var/lib/database"; chown 65531:65531 "$1/var/lib/database"; chmod 0700 "$1/var/lib/database"'
	revision=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
	on redoubt-debian-postgres:$suite "redoubt-postgres:$tag" redoubt-postgres deploy/postgres.sh <<-EOF
		FROM redoubt-debian-postgres:$suite
		COPY postgres.sh /usr/bin/redoubt-postgres
		USER 65531:65531
		ENTRYPOINT ["/bin/bash", "/usr/bin/redoubt-postgres"]
	EOF
}

case ${1-} in
redoubt | python | postgres) "image_$1" ;;
*) sed -n '2,13s/^# \{0,1\}//p' "$0"; exit 2 ;;
esac
