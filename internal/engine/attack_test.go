package engine

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/text"
)

// shown are all the texts in a value, as people see them: without what is cleaned
// away, and without what nobody sees.
func shown(t testing.TB, v any) []string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(b, &tree); err != nil {
		t.Fatal(err)
	}
	var out []string
	var walk func(any)
	add := func(s string) {
		for _, cleaned := range []string{text.Clean(s), strings.ReplaceAll(s, "\n", "")} {
			var scan text.Scanner
			var seen []byte
			for b := []byte(cleaned); len(b) > 0; {
				n, class := scan.Next(b, true)
				if class != text.Unseen && class != text.Dropped {
					seen = append(seen, b[:n]...)
				}
				b = b[n:]
			}
			out = append(out, string(seen))
		}
	}
	walk = func(v any) {
		switch v := v.(type) {
		case string:
			add(v)
		case []any:
			for _, e := range v {
				walk(e)
			}
		case map[string]any:
			for k, e := range v {
				add(k)
				walk(e)
			}
		}
	}
	walk(tree)
	return out
}

// hidden puts into s what hides nothing from who reads it.
func hidden(rnd *rand.Rand, s string) string {
	what := []string{"\x1b[31m", "\x1b[0m\x1b[K", "\x01", "\b", "\x7f", "\x1b]0;t\x07", "\u200b", "\u202e", "\u009b1m", "\x1b(B", "\ufeff\u00ad", "\x1bc"}
	var b strings.Builder
	for _, r := range s {
		for rnd.IntN(4) == 0 {
			b.WriteString(what[rnd.IntN(len(what))])
		}
		b.WriteRune(r)
	}
	return b.String()
}

// FuzzSinks has a job put its secret, encoded and in disguise, everywhere a job can
// put text: no record, result or hook may show it.
//
// Text was masked first and cleaned for display later, so `grep --color=always`
// printed secrets in clear, and names of outputs were not masked at all.
func FuzzSinks(f *testing.F) {
	f.Add("hunter2-hunter3", uint64(1))
	f.Add("correct horse battery", uint64(2))
	f.Add("AKIA/7+x@@", uint64(3))
	f.Fuzz(func(t *testing.T, secret string, random uint64) {
		// What a shell, which gets it unquoted too, takes for text.
		const harmless = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 +/_.@-"
		if len(secret) < 6 || len(secret) > 200 || strings.TrimSpace(secret) != secret {
			return
		}
		if strings.ContainsFunc(secret, func(r rune) bool { return !strings.ContainsRune(harmless, r) }) {
			return
		}
		rnd := rand.New(rand.NewPCG(random, 7))
		forms := []string{secret, strings.ToUpper(secret), hex.EncodeToString([]byte(secret)), base64.StdEncoding.EncodeToString([]byte(secret)),
			base64.StdEncoding.EncodeToString([]byte(base64.StdEncoding.EncodeToString([]byte(secret))))}
		d := func() string { return hidden(rnd, forms[rnd.IntN(len(forms))]) }
		var out strings.Builder
		fmt.Fprintf(&out, "text %s\n", d())
		fmt.Fprintf(&out, "::group::%s\n::endgroup::\n", d())
		fmt.Fprintf(&out, "::error file=%s,title=%s::%s\n", strings.NewReplacer("=", "%3D", ":", "%3A").Replace(d()), d(), d())
		fmt.Fprintf(&out, "::warning::%s%%0Aand %s\n", d(), d())
		fmt.Fprintf(&out, "::debug::%s\n", d())
		fmt.Fprintf(&out, "::set-output name=%s::%s\n", strings.ReplaceAll(d(), "=", ""), d())
		fmt.Fprintf(&out, "::unknown %s\n", d())
		fmt.Fprintf(&out, "::stop-commands::%s\n%s\n", d(), d())
		files := map[string]string{
			"out": out.String(),
			"env": fmt.Sprintf("A_%d<<E-O-F\n%s\nE-O-F\n", rnd.IntN(9), d()), "output": fmt.Sprintf("x%s=%s\n", strings.ReplaceAll(d(), "=", ""), d()),
			"summary": "# " + d() + "\n", "bad": fmt.Sprintf("%s<<\n", strings.ReplaceAll(d(), "=", "")),
		}
		b := newBench(t, `
jobs:
  test:
    runs-on: x
    outputs:
      o: ${{ steps.a.outputs.x }}
      p: ${{ format('{0}', env.DISGUISED) }}
    steps:
      - id: a
        name: names ${{ env.DISGUISED }}
        run: |
          cat "$FILES/out"; cat "$FILES/out" >&2
          cat "$FILES/env" >> "$GITHUB_ENV"; cat "$FILES/output" >> "$GITHUB_OUTPUT"; cat "$FILES/summary" >> "$GITHUB_STEP_SUMMARY"
      - run: |
          echo '${{ env.DISGUISED }}'
          cat "$FILES/bad" >> "$GITHUB_OUTPUT"
      - if: always()
        run: exit 1 # ${{ env.DISGUISED }}
      - if: always()
        run: 'true'
        working-directory: ${{ env.DISGUISED }}
      - if: always() && fromJSON(env.DISGUISED)
        run: 'true'
`)
		dir := t.TempDir()
		for name, s := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(s), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		b.job.Secrets = map[string]string{"KEY": secret}
		b.job.Env = map[string]string{"FILES": dir, "DISGUISED": strings.NewReplacer("\x00", "", "\n", "").Replace(hidden(rnd, secret))}
		b.job.Runner.Debug = true
		res := b.run()
		for _, s := range append(shown(t, b.all()), shown(t, res)...) {
			for _, form := range forms {
				if strings.Contains(s, form) {
					t.Fatalf("%q shows in %q", form, s)
				}
			}
		}
	})
}

// The job's timeout and its cancellation have to work while its output is being
// looked at: a matcher kept the runner in one line, deaf to both.
func TestAttackMatcherKeepsTheJob(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    timeout-minutes: 0.02
    steps:
      - run: |
          python3 - > m.json <<'X'
          import json
          re = "(?:x?x?){900}" + "(?:x?x?){300}" + "y"
          print(json.dumps({"problemMatcher": [{"owner": "m%d" % i, "pattern": [{"regexp": re, "message": 0}]} for i in range(4)]}))
          X
          echo "::add-matcher::m.json"
          while :; do head -c 1700 /dev/zero | tr '\0' x; echo; done
`)
	began := time.Now()
	res := b.run()
	if res.Conclusion != ci.TimedOut {
		t.Errorf("%s: %s\n%.2000s", res.Conclusion, res.Reason, b.log())
	}
	if d := time.Since(began); d > time.Minute {
		t.Errorf("it took %v", d)
	}
}

// What a step still prints when the job is over becomes nothing.
func TestAttackOutputAfterTheEnd(t *testing.T) {
	over, end := context.WithCancelCause(t.Context())
	records := 0
	r := &run{hard: over, job: Job{Emit: ci.SinkFunc(func(ci.Record) { records++ })}}
	x := &execution{r: r, ctx: t.Context()}
	x.commands = command.NewProcessor(command.Options{})
	x.listen()
	end(errHardTimeout)
	if n, err := x.streams[0].Write([]byte("line\nline\n")); n != 0 || !errors.Is(err, errHardTimeout) || records != 0 {
		t.Errorf("%d bytes, %v, %d records", n, err, records)
	}
}

// A file of 4 MiB made the next step's start more than the guest's protocol takes:
// "the machine was lost", as if it had been our fault.
func TestAttackCommandFiles(t *testing.T) {
	for _, c := range []struct{ script, want string }{
		{`head -c 4194304 /dev/zero | tr '\0' x | sed 's/^/A=/' >> "$GITHUB_ENV"`, "GITHUB_ENV names has 4194306 bytes; at most 1048576 are possible"},
		{`(printf A=; head -c 200000 /dev/zero | tr '\0' x; echo) >> "$GITHUB_ENV"`, "The environment variable 'A' has 200000 bytes; at most 131069 are possible."},
		{`head -c 2000000 /dev/zero | tr '\0' x >> "$GITHUB_PATH"`, "GITHUB_PATH names has 2000000 bytes"},
		{`head -c 2000000 /dev/zero | tr '\0' x >> "$GITHUB_STATE"`, "GITHUB_STATE names has 2000000 bytes"},
		{`for i in 1 2 3; do printf a$i=; head -c 14000000 /dev/zero | tr '\0' x; echo; done >> "$GITHUB_OUTPUT"`,
			"GITHUB_OUTPUT names has 42000012 bytes; at most 8388608 are possible"},
		{`(printf a=; head -c 1048577 /dev/zero | tr '\0' x; echo) >> "$GITHUB_OUTPUT"`, "The output 'a' has 1048577 bytes; at most 1048576 are possible."},
		{`printf '::set-output name=a::'; head -c 1048577 /dev/zero | tr '\0' x`, "The output 'a' has 1048577 bytes; at most 1048576 are possible."},
		{`printf '::save-state name=a::'; head -c 200000 /dev/zero | tr '\0' x`, "The state 'a' has 200000 bytes"},
	} {
		b := newBench(t, "      - run: |\n          "+c.script+"\n      - if: always()\n        run: echo after\n")
		res := b.run()
		if res.Conclusion != ci.Failure || res.Steps[0].Outcome != ci.Failure || res.Steps[0].Infrastructure || res.Steps[1].Outcome != ci.Success {
			t.Errorf("%s: %+v", c.script, res.Steps)
		}
		if !strings.Contains(b.log(), c.want) {
			t.Errorf("%s: no %q in:\n%.3000s", c.script, c.want, b.log())
		}
		if !strings.Contains(res.Steps[0].Reason, c.want) {
			t.Errorf("%s: the step's reason is %q, want %q", c.script, res.Steps[0].Reason, c.want)
		}
	}
}

// The same by way of many that are each allowed, and of expressions: the step that
// cannot be started fails, and says why.
func TestAttackEnvironment(t *testing.T) {
	b := newBench(t, `
      - run: for i in 1 2 3 4 5 6 7; do for k in A B; do printf $k$i=; head -c 100000 /dev/zero | tr '\0' x; echo; done; done | head -c 1000000 >> "$GITHUB_ENV"
      - run: echo too much
        env:
          MORE: ${{ env.A1 }}
          MOST: ${{ env.B1 }}
      - if: always()
        env:
          ONE: ${{ env.A1 }}${{ env.A1 }}
        run: echo too long
      - if: always()
        env: {A1: '', A2: '', A3: ''}
        run: echo enough
`)
	res := b.run()
	for i, want := range []string{"", "its environment has 1", "its environment variable 'ONE' has 200004 bytes", ""} {
		s := res.Steps[i]
		if s.Infrastructure || !strings.Contains(s.Reason, want) || (want != "") != (s.Outcome == ci.Failure) {
			t.Errorf("step %d: %s, %q\n%.2000s", i+1, s.Outcome, s.Reason, "")
		}
	}
}

// What is asked of the machine is more than its protocol takes: the step fails, and
// the machine is not lost.
func TestAttackRequest(t *testing.T) {
	b := newBench(t, `
      - id: a
        run: (printf a=; head -c 1000000 /dev/zero | tr '\0' x; echo) >> "$GITHUB_OUTPUT"
      - working-directory: ${{ steps.a.outputs.a }}${{ steps.a.outputs.a }}${{ steps.a.outputs.a }}${{ steps.a.outputs.a }}${{ steps.a.outputs.a }}
        run: echo no
      - if: always()
        run: echo after
`)
	res := b.run()
	if s := res.Steps[1]; s.Outcome != ci.Failure || s.Infrastructure || !strings.HasPrefix(s.Reason, "An error occurred trying to start process") ||
		res.Steps[2].Outcome != ci.Success {
		t.Errorf("%s: %.300q", s.Outcome, s.Reason)
	}
}

// An output arrives whole at other jobs, however much of it a record shows: it was
// cut at 64 KiB, in silence, since the record had the same map.
func TestAttackOutputsAreNotCut(t *testing.T) {
	b := newBench(t, `
jobs:
  test:
    runs-on: x
    outputs:
      whole: ${{ steps.a.outputs.a }}
    steps:
      - id: a
        run: (printf a=; head -c 1048576 /dev/zero | tr '\0' x; echo) >> "$GITHUB_OUTPUT"
`)
	res := b.run()
	if n := len(res.Outputs["whole"]); n != 1<<20 || res.Conclusion != ci.Success {
		t.Errorf("%d bytes arrived of %d; %s\n%.1000s", n, 1<<20, res.Conclusion, b.log())
	}
	for _, r := range b.all() {
		if r.Type == ci.JobFinished && len(r.Outputs["whole"]) != 1<<20 {
			t.Errorf("job.finished has %d bytes", len(r.Outputs["whole"]))
		}
		if r.Type == ci.StepFinished && len(r.Outputs["a"]) > 70<<10 {
			t.Errorf("step.finished has %d bytes", len(r.Outputs["a"]))
		}
	}
}

// Outputs beyond GitHub's limits fail the job, with a sentence; those of a run are
// counted together.
func TestAttackOutputs(t *testing.T) {
	const src = `
jobs:
  test:
    runs-on: x
    outputs:
      small: ${{ steps.a.outputs.a }}
      large: ${{ steps.a.outputs.a }}${{ steps.a.outputs.a }}
    steps:
      - id: a
        run: (printf a=; head -c 600000 /dev/zero | tr '\0' x; echo) >> "$GITHUB_OUTPUT"
`
	b := newBench(t, src)
	res := b.run()
	if want := "The job's output 'large' has 1200000 bytes; an output can have at most 1048576."; res.Conclusion != ci.Failure || res.Reason != want ||
		len(res.Outputs) != 1 {
		t.Errorf("%s: %q; %d outputs", res.Conclusion, res.Reason, len(res.Outputs))
	}
	b = newBench(t, strings.ReplaceAll(src, "}}${{ steps.a.outputs.a }}", "}}"))
	b.job.Handed = &plan.Allowance{}
	b.job.Handed.Take(ci.MaxRunOutputs - 1_000_000)
	res = b.run()
	if res.Conclusion != ci.Failure || !strings.HasPrefix(res.Reason, "The outputs of the run's jobs have more than 50 MiB with 'large'") ||
		len(res.Outputs) != 1 {
		t.Errorf("%s: %q; %d outputs", res.Conclusion, res.Reason, len(res.Outputs))
	}
}

// Many steps, each within its limits, together are not.
func TestAttackKept(t *testing.T) {
	r := &run{hard: t.Context(), job: Job{Emit: ci.SinkFunc(func(ci.Record) {})}}
	b := newBench(t, "      - run: 'true'\n")
	r.job.Plan = b.job.Plan
	x := &execution{r: r, ctx: t.Context(), state: map[string]string{}}
	x.commands = command.NewProcessor(command.Options{})
	x.listen()
	value := strings.Repeat("x", 1_000_000)
	for i := range 200 {
		x.setOutput(fmt.Sprintf("o%d", i), value)
		x.saveState(fmt.Sprintf("s%d", i), value[:100_000])
		x.setEnv(fmt.Sprintf("e%d", i), value[:100_000])
	}
	sum := 0
	for _, m := range []map[string]string{x.outputs.m, x.state, x.newEnv.m} {
		for _, v := range m {
			sum += len(v)
		}
	}
	if !x.failed || sum > maxKept {
		t.Errorf("failed %v, %d bytes kept", x.failed, sum)
	}
}

// What cannot be masked ends the step before it is printed, in a script, in a
// composite action and in a JavaScript action.
func TestAttackUnmaskable(t *testing.T) {
	b := newBench(t, `
      - run: |
          mkdir -p act js
          cat > act/action.yml <<'X'
          name: a
          runs: {using: composite, steps: [{shell: bash, run: "$FILES/mask"}]}
          X
          printf 'name: j\nruns: {using: node20, main: m.js}\n' > js/action.yml
          echo 'require("child_process").execFileSync(process.env.FILES + "/mask", {stdio: "inherit"})' > js/m.js
      - if: always()
        run: $FILES/mask
      - if: always()
        uses: ./act
      - if: always()
        uses: ./js
`)
	dir := t.TempDir()
	script := "#!/bin/sh\nprintf '::add-mask::'; head -c 70000 /dev/zero | tr '\\0' q; echo; echo the-value-itself; sleep 30\n"
	if err := os.WriteFile(filepath.Join(dir, "mask"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	b.job.Env = map[string]string{"FILES": dir}
	began := time.Now()
	res := b.run()
	for _, s := range res.Steps[1:] {
		if s.Outcome != ci.Failure || s.Infrastructure {
			t.Errorf("%s: %s %s", s.Name, s.Outcome, s.Reason)
		}
	}
	if strings.Contains(b.output(), "the-value-itself") || strings.Count(b.log(), "longer than 64 KiB") != 3 {
		t.Errorf("%.3000s", b.log())
	}
	if d := time.Since(began); d > 80*time.Second {
		t.Errorf("the steps went on for %v", d)
	}
}
