#!/usr/bin/env bash
# Takes one guard out at a time, by its build tag, and looks whether the matrix, or the search for canaries, notices in the cells that are about it. A
# mutant whose cells stay green is a hole in the tests: then this ends with 1. Other cells may go red too.
set -uo pipefail
cd "$(dirname "$0")/.."

# Of the matrix, services of each kind: with tokens of users and of runs, called by services alone, and without a token. All of it takes a minute a mutant.
part='^(TestMatrix|TestTwelveOperations|TestSealedForOneThing)$/^((Secret|Run|Metric|Ingest|Token)Service|[a-z].*)$'

out=$(mktemp)
trap 'rm -f "$out"' EXIT
tried=0 caught=0

# mutant TAG PACKAGE CELL… : each CELL is an extended regular expression for the name of a failed test of the package.
mutant() {
	local tag=$1 package=$2 cell missed=0 run=.
	[ "$package" != matrix ] || run=$part
	shift 2
	tried=$((tried + 1))
	if go test -count=1 -timeout 5m -tags "$tag" -v -run "$run" "./test/e2e/$package" >"$out" 2>&1; then
		echo "mutant $tag: NOT CAUGHT, everything is green"
		return
	fi
	if ! grep -q -- '^--- FAIL' "$out"; then
		echo "mutant $tag: did not run to its end:"
		tail -20 "$out"
		return
	fi
	for cell in "$@"; do
		local n
		n=$(grep -cE -- "--- FAIL: $cell \(" "$out")
		echo "mutant $tag: $n red for $cell"
		[ "$n" -gt 0 ] || missed=1
	done
	if [ $missed = 0 ]; then
		caught=$((caught + 1))
		echo "mutant $tag: caught"
	else
		echo "mutant $tag: NOT CAUGHT in all of its cells; what is red:"
		grep -A2 -- '--- FAIL' "$out" | head -20
	fi
}

echo "mutants: without any, all is green"
if ! { go test -count=1 -timeout 5m -run "$part" ./test/e2e/matrix && go test -count=1 -timeout 5m ./test/e2e/canary; } >"$out" 2>&1; then
	echo "it is not: no mutant proves anything"
	tail -40 "$out"
	exit 1
fi
mutant redoubt_break_audience matrix \
	'TestMatrix/.*/token_for_another_service' 'TestMatrix/.*/token_for_this_service_from_outside' "TestMatrix/.*/service_with_the_caller's_own_token"
mutant redoubt_break_authorize matrix \
	'TestMatrix/.*/stranger' 'TestMatrix/.*/reader' 'TestMatrix/.*/contributor' 'TestMatrix/.*/run_token_of_another_run' 'TestMatrix/uses/.*' 'TestTwelveOperations/.*/reader'
mutant redoubt_break_peer matrix \
	'TestMatrix/.*/service_[a-z]+' 'TestMatrix/.*/operator'
mutant redoubt_break_aad matrix \
	'TestSealedForOneThing/a_data_key_of_another_service' 'TestSealedForOneThing/a_page_of_.*'
mutant redoubt_break_encryption canary \
	'TestCanaries/secret_name' 'TestCanaries/metric_name' 'TestCanaries/script_line'

echo "mutants: $tried tried, $caught caught"
[ "$tried" = "$caught" ]
