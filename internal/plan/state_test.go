package plan_test

import (
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/plan"
)

// jobs makes a workflow of jobs given as "id: {…}" lines, each with a step.
func jobs(lines ...string) files {
	var b strings.Builder
	b.WriteString("on: push\njobs:\n")
	for _, l := range lines {
		id, rest, _ := strings.Cut(l, ":")
		b.WriteString("  " + id + ":\n    runs-on: x\n    steps: [{run: echo}]\n")
		for kv := range strings.SplitSeq(strings.TrimSpace(rest), "; ") {
			if kv != "" {
				b.WriteString("    " + kv + "\n")
			}
		}
	}
	return one(b.String())
}

func TestReadiness(t *testing.T) {
	for _, c := range []struct {
		name string
		fs   files
		ends map[string]ci.Conclusion
		outs map[string]map[string]string
		log  []string
		want ci.Conclusion
	}{
		{
			name: "needs in order",
			fs:   jobs("c: needs: [a, b]", "a:", "b: needs: A"),
			log:  []string{"start a", "start b", "start c"},
			want: ci.Success,
		},
		{
			name: "a failure skips what needs it, however far away",
			fs:   jobs("a:", "b: needs: a", "c: needs: b", "d:"),
			ends: map[string]ci.Conclusion{"a": ci.Failure},
			log: []string{"start a", "start d",
				"skip b: it needs a, which failed", "skip c: it needs b, which was skipped"},
			want: ci.Failure,
		},
		{
			name: "a skipped ancestor skips though the direct need succeeded",
			fs:   jobs("a: if: false", "b: needs: a; if: always()", "c: needs: b"),
			log:  []string{"skip a: its condition is false: false", "start b", "skip c: it needs a, which was skipped"},
			want: ci.Success,
		},
		{
			name: "failure(), cancelled() and always()",
			fs: jobs("a:", "report: needs: a; if: failure()", "never: needs: a; if: cancelled()", "clean: needs: a; if: always()",
				"both: needs: a; if: success() || failure()", "other: if: failure()"),
			ends: map[string]ci.Conclusion{"a": ci.Failure},
			log: []string{"start a", "skip other: its condition is false: failure()",
				"start report", "skip never: its condition is false: cancelled()", "start clean", "start both"},
			want: ci.Failure,
		},
		{
			name: "failure() sees through jobs between",
			fs:   jobs("a:", "b: needs: a", "c: needs: b; if: failure()"),
			ends: map[string]ci.Conclusion{"a": ci.Failure},
			log:  []string{"start a", "skip b: it needs a, which failed", "start c"},
			want: ci.Failure,
		},
		{
			name: "status functions about named jobs",
			fs:   jobs("a:", "b:", "c: needs: [a, b]; if: success('b')", "d: needs: [a, b]; if: failure('b')"),
			ends: map[string]ci.Conclusion{"a": ci.Failure},
			log:  []string{"start a", "start b", "start c", "skip d: its condition is false: failure('b')"},
			want: ci.Failure,
		},
		{
			name: "results and outputs in conditions",
			fs: jobs("a: outputs: {go: x}", "b: needs: a; if: needs.a.outputs.go == 'yes'", "c: needs: a; if: needs.a.outputs.go == 'no'",
				"d: needs: a; if: always() && needs.a.result == 'success'", "e: needs: [b, c]; if: always() && needs.c.result == 'skipped'"),
			outs: map[string]map[string]string{"a": {"go": "yes"}},
			log: []string{"start a", "start b", "skip c: its condition is false: needs.a.outputs.go == 'no'", "start d",
				"start e"},
			want: ci.Success,
		},
		{
			name: "continue-on-error forgives",
			fs:   jobs("a: continue-on-error: true", "b: needs: a; if: needs.a.result == 'success'"),
			ends: map[string]ci.Conclusion{"a": ci.Failure},
			log:  []string{"start a", "start b"},
			want: ci.Success,
		},
		{
			name: "a timeout is a cancellation for those who need it, and a failure of the run",
			fs: jobs("a:", "b: needs: a; if: failure()", "c: needs: a; if: always() && needs.a.result == 'cancelled'", "d: needs: a",
				"e: needs: a; if: cancelled()"),
			ends: map[string]ci.Conclusion{"a": ci.TimedOut},
			log: []string{"start a", "skip b: its condition is false: failure()", "start c", "skip d: it needs a, which was cancelled",
				"skip e: its condition is false: cancelled()"},
			want: ci.Failure,
		},
		{
			name: "a timeout that may happen",
			fs:   jobs("a: continue-on-error: true", "b: needs: a"),
			ends: map[string]ci.Conclusion{"a": ci.TimedOut},
			log:  []string{"start a", "start b"},
			want: ci.Success,
		},
		{
			name: "fail-fast cancels the other cells",
			fs:   jobs("a: strategy: {matrix: {n: [1, 2, 3, 4]}, max-parallel: 2}", "b: needs: a"),
			ends: map[string]ci.Conclusion{"a (1)": ci.Failure},
			log: []string{"start a (1)", "start a (2)",
				"cancel a (2): fail-fast: a (1) failed", "conclude a (3) cancelled: fail-fast: a (1) failed", "conclude a (4) cancelled: fail-fast: a (1) failed",
				"skip b: it needs a, which failed"},
			want: ci.Failure,
		},
		{
			name: "no fail-fast, and max-parallel",
			fs:   jobs("a: strategy: {fail-fast: false, matrix: {n: [1, 2, 3]}, max-parallel: 1}", "b: needs: a; if: failure()"),
			ends: map[string]ci.Conclusion{"a (1)": ci.Failure},
			log:  []string{"start a (1)", "start a (2)", "start a (3)", "start b"},
			want: ci.Failure,
		},
		{
			name: "an experimental cell may fail",
			fs:   jobs("a: strategy: {matrix: {n: [1, 2], include: [{n: 1, exp: true}]}}; continue-on-error: ${{ matrix.exp || false }}", "b: needs: a"),
			ends: map[string]ci.Conclusion{"a (1)": ci.Failure},
			log:  []string{"start a (1)", "start a (2)", "start b"},
			want: ci.Success,
		},
		{
			name: "strategy of expressions",
			fs:   jobs("a: strategy: {fail-fast: \"${{ github.ref != 'refs/heads/main' }}\", max-parallel: \"${{ fromJSON('1') }}\", matrix: {n: [1, 2]}}"),
			ends: map[string]ci.Conclusion{"a (1)": ci.Failure},
			log:  []string{"start a (1)", "start a (2)"},
			want: ci.Failure,
		},
		{
			name: "a dynamic matrix",
			fs: jobs("a: outputs: {m: x}", "b: needs: a; strategy: {matrix: \"${{ fromJSON(needs.a.outputs.m) }}\"}; name: \"go ${{ matrix.go }}\"",
				"c: needs: b; strategy: {matrix: {v: \"${{ fromJSON(needs.b.outputs.none || '[7]') }}\"}}"),
			outs: map[string]map[string]string{"a": {"m": `{"go":["1.21","1.22"],"include":[{"go":"1.22","race":true}]}`}},
			log: []string{"start a", "expand b", "start b (1.21)", "start b (1.22)",
				"expand c", "start c (7)"},
			want: ci.Success,
		},
		{
			name: "a dynamic matrix that is none",
			fs:   jobs("a: outputs: {m: x}", "b: needs: a; strategy: {matrix: \"${{ fromJSON(needs.a.outputs.m) }}\"}", "c: needs: b"),
			outs: map[string]map[string]string{"a": {"m": `{"go":[]}`}},
			log: []string{"start a", "conclude b failure: (Line: 11, Col: 24): Error when evaluating 'strategy' for job 'b'. Matrix vector 'go' does not contain any values",
				"skip c: it needs b, which failed"},
			want: ci.Failure,
		},
		{
			name: "an invalid matrix of a job that is skipped",
			fs:   jobs("a: outputs: {m: x}", "b: needs: a; if: needs.a.outputs.m; strategy: {matrix: \"${{ fromJSON(needs.a.outputs.m) }}\"}"),
			log:  []string{"start a", "skip b: its condition is false: needs.a.outputs.m"},
			want: ci.Success,
		},
		{
			name: "everything excluded",
			fs:   jobs("a: strategy: {matrix: {n: [1], exclude: [{n: 1}]}}", "b: needs: a"),
			log:  []string{"skip a: every combination of its matrix is excluded", "skip b: it needs a, which was skipped"},
			want: ci.Skipped,
		},
		{
			name: "keys that cannot be evaluated fail the job",
			fs:   jobs("a:", "b: needs: a; timeout-minutes: ${{ needs.a.result }}", "c: needs: a; concurrency: ${{ needs.a.outputs.none }}"),
			log: []string{"start a", "conclude b failure: (Line: 10, Col: 22): Error when evaluating 'timeout-minutes' for job 'b'. Unexpected value 'success'",
				"conclude c failure: (Line: 15, Col: 18): Error when evaluating 'concurrency' for job 'c'. Concurrency group name cannot be empty"},
			want: ci.Failure,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := drive(t, build(t, c.fs))
			if c.ends != nil {
				d.ends = c.ends
			}
			if c.outs != nil {
				d.outputs = c.outs
			}
			got := d.run()
			equal(t, "log", d.log, c.log)
			if got != c.want {
				t.Errorf("the run ends with %q, want %q", got, c.want)
			}
		})
	}
}

func TestOutputsOfAMatrix(t *testing.T) {
	r := build(t, jobs("a: strategy: {matrix: {n: [1, 2, 3]}}; outputs: {x: x, y: y}", "b: needs: a"))
	d := drive(t, r)
	d.outputs = map[string]map[string]string{"a (1)": {"x": "one", "y": ""}, "a (2)": {"x": "two", "y": ""}, "a (3)": {"x": "", "y": ""}}
	var needs expr.Value
	for !d.s.Done() {
		for _, a := range d.s.Next() {
			d.running = append(d.running, a.Job.Key)
			if a.Job.ID == "b" {
				needs = a.Needs
			}
		}
		d.finish()
	}
	if got := needs.JSON(); strings.Join(strings.Fields(got), "") != `{"a":{"result":"success","outputs":{"x":"two","y":""}}}` {
		t.Errorf("needs is %s", got)
	}
}

func TestCancel(t *testing.T) {
	r := build(t, jobs("a:", "keep: if: always()", "b: needs: a", "clean: needs: a; if: always()", "on: needs: a; if: cancelled()",
		"m: strategy: {max-parallel: 1, matrix: {n: [1, 2]}}"))
	d := drive(t, r)
	d.on["a"] = func(s *plan.State) { s.Cancel("by hand") }
	got := d.run()
	equal(t, "log", d.log, []string{
		"start a", "start keep", "start m (1)",
		"cancel a: the run was cancelled", "cancel m (1): the run was cancelled",
		"conclude m (2) cancelled: the run was cancelled",
		"skip b: the run was cancelled", "start clean", "start on",
	})
	if got != ci.Cancelled {
		t.Errorf("the run ends with %q", got)
	}
	if c := d.s.JobConclusion("keep"); c != ci.Success {
		t.Errorf("keep ends with %q", c)
	}
}

func TestMisuse(t *testing.T) {
	s := plan.NewState(build(t, jobs("a:", "b: needs: a")))
	for _, err := range []error{s.Started("a"), s.Finished("a", ci.Success, nil), s.Finished("zzz", ci.Success, nil), s.Started("zzz")} {
		if err == nil {
			t.Error("reported before Next")
		}
	}
	if n := len(s.Next()); n != 1 {
		t.Fatalf("%d actions", n)
	}
	if n := len(s.Next()); n != 0 {
		t.Errorf("a second Next repeats %d actions", n)
	}
	if err := s.Finished("a", "maybe", nil); err == nil {
		t.Error("took a conclusion that is none")
	}
	if err := s.Finished("a", ci.Success, nil); err != nil {
		t.Error(err)
	}
	if err := s.Finished("a", ci.Failure, nil); err == nil {
		t.Error("a job ended twice")
	}
	if c := s.Conclusion(); c != "" {
		t.Errorf("concluded early with %q", c)
	}
}
