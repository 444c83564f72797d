// Command attacks runs what strangers, thieves, the dismissed, and hostile runs and issuers try, and says at the end what was tried and what
// was let in: a line for each list of attacks, and a total (A1 to A6, B1, D10; goal 34).
//
// The suites are tests like others; each prints "attack: NAME: tried N, accepted M", or honoured, and its seed where it has one. A suite that
// fails, that prints no such line, or one whose M is not 0, ends the command with 1.
//
// usage: go run ./test/attacks [-tier all|ci] [-only REGEXP] [-seed N]
//
// The tier "ci" leaves out what `make test` has in full, and is done in some ninety seconds on two cores.
package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// suite is one run of go test.
type suite struct {
	name, pkg, run string
	ci             bool     // of the tier "ci" too
	env, ciEnv     []string // in place of env in the tier "ci"
}

var suites = []suite{
	{name: "forged tokens and proofs, at the verifier", pkg: "./pkg/authn", run: "^TestForged"},
	{name: "forged tokens, at every service", pkg: "./test/e2e/forged", run: "^TestForgedEverywhere$", ci: true, env: []string{"ATTACK_FULL=1"}},
	{name: "the OpenID provider and foreign issuers", pkg: "./services/identity", run: "^TestAttack"},
	{name: "stolen run tokens, no way up", pkg: "./test/e2e", run: "^(TestAttackStolenRunToken|TestAttackGrace|TestNoWayUp|TestHiddenIsAbsent)$"},
	{name: "what was revoked", pkg: "./test/e2e", run: "^TestRevokedIsRevoked$", ci: true, env: []string{"REVOKE_ROUNDS=25"}, ciEnv: []string{"REVOKE_ROUNDS=10"}},
	{name: "canaries", pkg: "./test/e2e/canary", run: "^(TestSearch|TestCanaries)$", ci: true, env: []string{"ATTACK_FULL=1"}},
	{name: "a hostile run", pkg: "./test/e2e/hostile", run: "^TestHostileRun$"},
	{name: "the gateway's edge", pkg: "./test/e2e/attack", run: "^TestAttacks$", ci: true, env: []string{"ATTACK_SECONDS=5"}, ciEnv: []string{"ATTACK_SECONDS=1"}},
}

// said is the line of a list of attacks.
var said = regexp.MustCompile(`attack: (.+): tried (\d+), (accepted|honoured) (\d+)(?:, seed (\d+))?`)

type row struct {
	suite, name, verb, seed string
	tried, in               int
}

func main() {
	tier := flag.String("tier", "all", "all, or ci for what make test has not in full")
	only := flag.String("only", "", "only suites whose name matches this regular expression")
	seed := flag.Uint64("seed", 0, "of what is random; 0 is the time, and is printed")
	flag.Parse()
	pattern, err := regexp.Compile(*only)
	if err != nil || *tier != "all" && *tier != "ci" || flag.NArg() > 0 {
		fmt.Fprintln(os.Stderr, "attacks: -tier is all or ci, -only a regular expression, and nothing follows")
		os.Exit(2)
	}
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	var rows []row
	var failed, ran int
	begun := time.Now()
	for _, s := range suites {
		if *tier == "ci" && !s.ci || !pattern.MatchString(s.name) {
			continue
		}
		ran++
		fmt.Printf("=== %s\n", s.name)
		start := time.Now()
		got, err := s.try(*tier, *seed)
		if err == nil && len(got) == 0 {
			err = fmt.Errorf("it says nothing of what it tried")
		}
		if err != nil {
			failed++
			fmt.Printf("--- FAILED: %s: %v\n", s.name, err)
		}
		fmt.Printf("--- %s: %d s\n", s.name, int(time.Since(start).Seconds()))
		rows = append(rows, got...)
	}
	var tried, in int
	fmt.Printf("\n%-44s %-44s %9s %9s  %s\n", "suite", "attacks", "tried", "let in", "seed")
	for _, r := range rows {
		tried, in = tried+r.tried, in+r.in
		fmt.Printf("%-44s %-44s %9d %9d  %s\n", r.suite, r.name, r.tried, r.in, r.seed)
	}
	fmt.Printf("attacks: %d suites in %d s, %d lists, tried %d, accepted or honoured %d, suites failed %d, seed %d\n", ran, int(time.Since(begun).Seconds()), len(rows), tried, in, failed, *seed)
	if ran == 0 || failed > 0 || in > 0 {
		os.Exit(1)
	}
}

// try runs the suite, prints what matters of it as it comes, and gives its lines.
func (s suite) try(tier string, seed uint64) ([]row, error) {
	env := s.env
	if tier == "ci" && s.ciEnv != nil {
		env = s.ciEnv
	}
	cmd := exec.CommandContext(context.Background(), "go", "test", "-count=1", "-timeout", "20m", "-v", "-run", s.run, s.pkg)
	cmd.Env = append(append(os.Environ(), "ATTACK_SEED="+strconv.FormatUint(seed, 10)), env...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	var rows []row
	red := false // what a failed test said follows its name
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		line := lines.Text()
		if m := said.FindStringSubmatch(line); m != nil {
			r := row{suite: s.name, name: strings.TrimPrefix(m[1], "Test"), verb: m[3], seed: m[5]}
			r.tried, _ = strconv.Atoi(m[2])
			r.in, _ = strconv.Atoi(m[4])
			rows = append(rows, r)
		}
		text := strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(text, "=== "), strings.HasPrefix(text, "--- PASS"):
			red = false
		case strings.HasPrefix(text, "--- FAIL"):
			red = true
		}
		if red || said.MatchString(line) || strings.HasPrefix(line, "FAIL") || strings.HasPrefix(line, "ok") || strings.HasPrefix(line, "panic:") || strings.Contains(line, "_test.go:") {
			fmt.Println(line)
		}
	}
	return rows, cmd.Wait()
}
