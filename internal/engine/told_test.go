package engine

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/command"
)

// TestRetriesEnd: whoever wants a step repeated for ever gets it repeated
// MaxAttempts-1 times, and only a step that failed.
func TestRetriesEnd(t *testing.T) {
	b := newBench(t, "\n      - run: exit 1\n")
	h := &retrier{left: 1000}
	b.job.Hooks = h
	if res := b.run(); res.Conclusion != ci.Failure || res.Steps[0].Attempts != MaxAttempts || len(h.labels) != MaxAttempts {
		t.Errorf("%+v %q", res, h.labels)
	}
	b = newBench(t, "\n      - run: exit 0\n")
	h = &retrier{left: 1000}
	b.job.Hooks = h
	if res := b.run(); res.Conclusion != ci.Success || len(h.labels) != 1 {
		t.Errorf("%+v %q", res, h.labels)
	}
}

// TestBackgroundIsTold: what a step that waits or cancels says, what it ends with,
// and what that does to the job.
func TestBackgroundIsTold(t *testing.T) {
	background := "\n      - {id: one, background: true, run: 'exit %d'}\n      - {id: two, background: true, run: 'exit 0'}\n"
	for _, c := range []struct {
		steps string
		exit  int
		told  []string
		ends  []string // of the steps that wait, then of the job
	}{
		{"      - wait: [one]\n", 0, []string{"Waiting for background step(s) to complete: one\n"}, []string{"success", "success"}},
		{"      - wait: [one]\n", 1, []string{"Waiting for background step(s) to complete: one\n"}, []string{"failure", "failure"}},
		{"      - wait: [two]\n", 1, []string{"to complete: two\n"}, []string{"success", "failure"}},
		{"      - {wait: [one], continue-on-error: true}\n", 1, []string{"to complete: one\n"}, []string{"success", "success"}},
		{"      - wait: [two, one]\n", 0, []string{"Finished waiting for background step(s)."}, []string{"success", "success"}},
		{"      - wait-all:\n", 0, []string{"to complete: one, two\n"}, []string{"success", "success"}},
		{"      - wait-all:\n      - wait-all:\n", 0, []string{"No background steps remaining to wait for."}, []string{"success", "success", "success"}},
	} {
		b := newBench(t, fmt.Sprintf(background, c.exit)+c.steps)
		res := b.run()
		var ends []string
		for _, r := range b.all() {
			if r.Type == ci.StepFinished && r.Step > 2 {
				ends = append(ends, string(r.Conclusion))
			}
		}
		ends = append(ends, string(res.Conclusion))
		if !slices.Equal(ends, c.ends) {
			t.Errorf("%q with %d: %q, want %q\n%s", c.steps, c.exit, ends, c.ends, b.log())
		}
		for _, want := range c.told {
			if !strings.Contains(b.log()+"\n", want) {
				t.Errorf("%q: no word of %q in\n%s", c.steps, want, b.log())
			}
		}
	}
}

// TestTooMuchIsTold: what a step sets beyond what may be kept fails it, with the
// reason in the log.
func TestTooMuchIsTold(t *testing.T) {
	b := newBench(t, "      - run: 'true'\n")
	r := &run{hard: t.Context(), job: b.job}
	x := &execution{r: r, ctx: t.Context(), state: map[string]string{}}
	x.commands = command.NewProcessor(command.Options{})
	x.listen()
	r.kept = maxKept - 4
	x.setOutput("a", "b")
	x.saveState("c", "d")
	if x.failed {
		t.Errorf("as much as may be kept is too much:\n%s", b.log())
	}
	x.setEnv(strings.Repeat("n", 200), "")
	if !x.failed || !strings.Contains(b.log(), "'"+strings.Repeat("n", 100)+"…' is too much: the steps of a job may set at most 50 MiB") {
		t.Errorf("%v:\n%s", x.failed, b.log())
	}
}

// TestOutputsToTheByte: a job hands on what its outputs may have, and not a byte
// more; what holds a secret stays.
func TestOutputsToTheByte(t *testing.T) {
	src := `jobs:
  test:
    runs-on: ubuntu-latest
    outputs: {a: "${{ steps.s.outputs.a }}", b: "${{ steps.s.outputs.b }}", none: "${{ steps.s.outputs.none }}"}
    steps:
      - id: s
        run: |
          echo "a=$(head -c %d /dev/zero | tr '\0' x)" >> $GITHUB_OUTPUT
          echo b=my-secret-value >> $GITHUB_OUTPUT
`
	for _, more := range []int{0, 1} {
		b := newBench(t, fmt.Sprintf(src, ci.MaxOutput+more))
		b.job.Secrets = map[string]string{"S": "my-secret-value"}
		res := b.run()
		if more == 0 && (res.Conclusion != ci.Success || len(res.Outputs["a"]) != ci.MaxOutput) || more == 1 &&
			(res.Conclusion != ci.Failure || res.Outputs["a"] != "") {
			t.Errorf("%d more: %s, %d bytes\n%.2000s", more, res.Conclusion, len(res.Outputs["a"]), b.log())
		}
		if _, ok := res.Outputs["b"]; ok {
			t.Error("a secret was handed on")
		}
		var told strings.Builder
		for _, r := range b.all() {
			if r.Type == ci.AnnotationRec {
				told.WriteString(r.Level + ": " + r.Message + "\n")
			}
		}
		if !strings.Contains(told.String(), "warning: Skip output 'b' since it may contain secret.") ||
			strings.Contains(told.String(), fmt.Sprintf("has %d bytes; at most", ci.MaxOutput+1)) != (more == 1) {
			t.Errorf("%d more:\n%s", more, told.String())
		}
	}
}
