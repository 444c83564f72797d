#!/usr/bin/env bash
# Makes folder OLD equal to folder NEW, touching only files that differ: builds that run meanwhile never see it empty.
#
# usage: tools/replace-tree.sh NEW OLD
set -euo pipefail

new=$1 old=$2
mkdir -p "$old"
(cd "$new" && find . -type f -print0) | while IFS= read -r -d '' file; do
	cmp -s "$new/$file" "$old/$file" && continue
	mkdir -p "$(dirname "$old/$file")"
	cp "$new/$file" "$old/$file.tmp" && mv "$old/$file.tmp" "$old/$file"
done
(cd "$old" && find . -type f -print0) | while IFS= read -r -d '' file; do
	[ -e "$new/$file" ] || rm "$old/$file"
done
find "$old" -mindepth 1 -type d -empty -delete
