#!/usr/bin/env bash
# Builds the program with one bug put in on purpose at a time, by its build tag, and looks whether the fault suite finds it: it has to end
# with a violation that is about the bug. Prints which were found and which were missed; ends with 1 if any was missed.
#
# usage: test/fault/mutants.sh [TAG…]
set -uo pipefail
cd "$(dirname "$0")/../.."

export FAULT_NAME=m
bin=${BIN:-.bin} seconds=${FAULT_SECONDS:-150} out=$(mktemp)
trap 'rm -f "$out"' EXIT
[ "$(id -u)" = 0 ] || { echo "fault-mutants: skipped: the fault suite needs root"; exit 0; }
found=() missed=()

# mutant TAG WHAT CASES VIOLATION: the violation is an extended regular expression.
mutant() {
	local tag=$1 what=$2 cases=$3 violation=$4 start=$SECONDS
	shift 4
	[ ${#wanted[@]} = 0 ] || [[ " ${wanted[*]} " == *" $tag "* ]] || return 0
	if ! go build -tags "redoubt_fault_clock redoubt_break_$tag" -o "$bin/redoubt-broken" ./cmd/redoubt; then
		missed+=("$tag: does not build")
		return
	fi
	"$bin/fault" -binary "$bin/redoubt-broken" -first -seconds "$seconds" -cases "$cases" "$@" >"$out" 2>&1
	if grep -qE "^fault: VIOLATION: .*($violation)" "$out"; then
		found+=("$tag: $what: found after $((SECONDS - start)) s")
		grep -E "^fault: VIOLATION: .*($violation)" "$out" | head -2
	else
		missed+=("$tag: $what")
		grep -E '^fault: ' "$out" | tail -15
	fi
}

wanted=("$@")
mutant commit 'a change is acknowledged before it is committed' kill 'acknowledged is|then read as|then not there'
mutant audit 'the record is written after the change, in a transaction of its own' kill 'does not stand in the log'
mutant relay 'the activity log takes again what it has' kill,stop 'stands in the log (twice|[0-9]+ times)'
mutant batch 'metrics take a batch again that they have' kill 'metric .*acknowledged is'
mutant start 'a run is handed out without having left the queue' kill 'carried out [0-9]+ times'
rm -f "$bin/redoubt-broken"

printf 'fault-mutants: found   %s\n' "${found[@]}"
[ ${#missed[@]} = 0 ] || printf 'fault-mutants: MISSED  %s\n' "${missed[@]}"
echo "fault-mutants: $((${#found[@]} + ${#missed[@]})) tried, ${#found[@]} found"
[ ${#missed[@]} = 0 ]
