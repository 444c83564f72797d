#!/usr/bin/env bash
# Runs packages' tests as a user without rights, from root: what isolates runs differs between the two. Builds them as
# root, and runs them in a copy of the committed tree that the user can read.
#
# usage: tools/test-as-user.sh PACKAGES…
set -euo pipefail

[ "$(id -u)" = 0 ] || exec go test "$@"

dir=$(mktemp -d /tmp/redoubt-as-user.XXXXXX)
trap 'rm -rf "$dir"' EXIT
mkdir "$dir/tree" "$dir/home" "$dir/tmp"
git archive HEAD | tar -x -C "$dir/tree"
chown -R daemon "$dir/home" "$dir/tmp" "$dir/tree"
chmod 755 "$dir"

failed=0
while read -r path folder; do
	go test -c -o "$dir/test" "$path"
	[ -e "$dir/test" ] || continue
	chmod 755 "$dir/test"
	echo "as daemon: $path"
	(cd "$dir/tree/$folder" &&
		runuser -u daemon -- env -i PATH="$PATH" HOME="$dir/home" TMPDIR="$dir/tmp" USER=daemon CI="${CI:-}" \
			"$dir/test" -test.timeout 5m) || failed=1
	rm "$dir/test"
done < <(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}} {{.Dir}}{{end}}' "$@" | sed -n "s|$PWD/||p")
exit $failed
