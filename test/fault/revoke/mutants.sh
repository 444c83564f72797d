#!/usr/bin/env bash
# Switches one rule of the fence off at a time, in a program that is built for that, and looks whether the check finds it: it has to end with a
# violation that is about the rule. Prints which were found and which were missed; ends with 1 if any was missed.
#
# usage: test/fault/revoke/mutants.sh [RULE…]
set -uo pipefail
cd "$(dirname "$0")/../../.."

export FAULT_NAME=${FAULT_NAME:-}f
bin=${BIN:-.bin} seconds=${FENCE_SECONDS:-40} out=$(mktemp)
trap 'rm -f "$out" "$bin/redoubt-broken-fence"' EXIT
[ "$(id -u)" = 0 ] || { echo "fence-mutants: skipped: it needs root"; exit 0; }
go build -tags "redoubt_fault_clock redoubt_break_fence" -o "$bin/redoubt-broken-fence" ./cmd/redoubt || exit 1
found=() missed=() skipped=() wanted=("$@")

# mutant RULE WHAT VIOLATION ARGUMENT…: the violation is an extended regular expression.
mutant() {
	local rule=$1 what=$2 violation=$3 start=$SECONDS
	shift 3
	[ ${#wanted[@]} = 0 ] || [[ " ${wanted[*]} " == *" $rule "* ]] || return 0
	"$bin/fence" -binary "$bin/redoubt-broken-fence" -broken "slow,$rule" -first -seconds "$seconds" -goal 0 "$@" >"$out" 2>&1
	if grep -q '^fence: skipped:' "$out"; then
		skipped+=("$rule: $(sed -n 's/^fence: skipped: //p' "$out" | head -1)")
	elif grep -qE "^fence: VIOLATION: .*($violation)" "$out"; then
		found+=("$rule: $what: found after $((SECONDS - start)) s")
		grep -E "^fence: VIOLATION: .*($violation)" "$out" | head -2
	else
		missed+=("$rule: $what")
		grep -E '^fence: ' "$out" | tail -25
	fi
}

# passes BROKEN WHAT ARGUMENT…: nothing may be found.
passes() {
	local broken=$1 what=$2 start=$SECONDS
	shift 2
	if "$bin/fence" -binary "$bin/redoubt-broken-fence" -broken "$broken" -seconds "$seconds" -goal 0 "$@" >"$out" 2>&1; then
		if grep -q '^fence: skipped:' "$out"; then
			skipped+=("$broken: $(sed -n 's/^fence: skipped: //p' "$out" | head -1)")
			return
		fi
		found+=("$broken: $what nothing is found, in $((SECONDS - start)) s")
	else
		missed+=("$broken: $what something is found")
	fi
	grep -E '^fence: ' "$out" | tail -25
}

honoured='honoured after the call had returned|committed after|cannot be put in an order'
# With every rule on the same program, as slow as the others, has to pass.
if [ ${#wanted[@]} = 0 ]; then
	passes slow 'with every rule on' -windows 1
	passes slow,noidle 'with every rule on, on PostgreSQL, and no clock that ends a transaction' -faults stop -at keyvault -windows 2 -postgres -kinds token,user,role,group
fi

mutant wait 'a change waits for nobody' "$honoured" -faults none
mutant apply 'published before the state has come' "$honoured" -faults none
mutant quiesce 'published before the views are swapped and empty (r3)' "$honoured" -faults none
mutant stream 'a stream is decided once (r5)' 'told on the open stream' -faults none -kinds token,user,role,group
mutant grant 'what is given is not waited for' 'refused, though given|cannot be put in an order' -faults none -kinds role
mutant repeat 'a repetition returns at once (r9)' 'the repetition returned' -faults stop -windows 3 -kinds token,user,role,group
mutant check 'what was decided is not looked at before it takes effect (r4)' "answered late|$honoured" -faults stop -windows 4 -postgres -kinds token,user,role,group
mutant noidle,row 'the row of who is gone stays, and no clock ends its transaction (r4; SIGSTOP on PostgreSQL)' "answered late|$honoured" -faults stop -at keyvault -windows 6 -postgres -kinds token,user,role,group

[ ${#found[@]} = 0 ] || printf 'fence-mutants: found   %s\n' "${found[@]}"
[ ${#skipped[@]} = 0 ] || printf 'fence-mutants: skipped %s\n' "${skipped[@]}"
[ ${#missed[@]} = 0 ] || printf 'fence-mutants: MISSED  %s\n' "${missed[@]}"
echo "fence-mutants: $((${#found[@]} + ${#missed[@]})) tried, ${#found[@]} found"
[ ${#missed[@]} = 0 ]
