package learn_test

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/store/storetest"
)

// Two repositories on one server. One is private, with a history of failures,
// fixes, retries and lessons; whoever owns the other runs the same steps and
// prints the same lines, to be told about the first: "seen before, 4 times, last
// ended by <sha> (<subject>)" was the answer, with the private commit and its
// subject, on a check that anybody reads.
func TestAttackMemoryOfAnotherRepository(t *testing.T) {
	storetest.Each(t, func(t *testing.T, open func() *store.Store) {
		s := open()
		victim := newWorld(t, s, learn.Options{})
		victim.repo = "private/victim"
		n := 0
		run := func(w *world, sha string, fail bool, log ...string) ran {
			n++
			return w.run(fmt.Sprintf("%s%034d", sha, n), "refs/heads/"+w.repo, 1, fail, log...)
		}
		victim.steps = []string{"actions/checkout@v4", "make everything", "curl https://deploy.victim.internal"}
		for range 2 {
			run(victim, "secret", false, "fine")
			for range 4 {
				run(victim, "secret", true, assertion...)
			}
		}
		run(victim, "secret", false, "fine") // ended by a commit, with a subject
		run(victim, "secret", true, assertion...)
		known := run(victim, "secret", true, assertion...)
		if known.explain.Seen == 0 || known.explain.FixedBy == "" || known.explain.Lesson == "" {
			t.Fatalf("the victim itself has no history to tell: %+v", known.explain)
		}
		sigs, err := s.Signatures(t.Context(), victim.repo, 10)
		if err != nil || len(sigs) != 1 {
			t.Fatalf("%+v, %v", sigs, err)
		}

		attacker := newWorld(t, open(), learn.Options{})
		attacker.repo, attacker.now, attacker.steps = "public/attacker", victim.now, victim.steps
		var told []any
		for i := range 3 {
			r := run(attacker, "public", true, assertion...)
			if r.explain.Seen != i {
				t.Errorf("failure %d of the attacker was seen %d times before", i+1, r.explain.Seen)
			}
			if r.explain.FixedBy != "" || r.explain.Fix != "" {
				t.Errorf("what ended it elsewhere: %+v", r.explain)
			}
			sum, err := attacker.l.Summary(t.Context(), r.id)
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, r, r.forecast, r.explain, r.decision, sum, sum.Lines())
			ps, err := s.Predictions(t.Context(), r.id)
			if err != nil {
				t.Fatal(err)
			}
			told = append(told, ps)
		}
		for _, c := range victim.steps {
			related, err := attacker.l.Related(t.Context(), attacker.repo, c, 20)
			if err != nil {
				t.Fatal(err)
			}
			next, err := attacker.l.Next(t.Context(), "public/other", 20, c)
			if err != nil || len(next) != 0 {
				t.Errorf("a repository without runs knows what comes after %q: %v, %v", c, next, err)
			}
			told = append(told, related)
		}
		similar, err := attacker.l.Similar(t.Context(), attacker.repo, sigs[0].ID, 20)
		if err != nil {
			t.Fatal(err)
		}
		mine, err := s.Signatures(t.Context(), attacker.repo, 10)
		if err != nil || len(mine) != 1 || mine[0].Seen != 3 {
			t.Errorf("%+v, %v", mine, err)
		}
		lessons, err := s.Lessons(t.Context(), attacker.repo, attacker.now)
		if err != nil {
			t.Fatal(err)
		}
		rep, err := attacker.l.Report(t.Context(), attacker.repo)
		if err != nil || rep.Runs.N != 3 {
			t.Errorf("a report over %d runs, %v", rep.Runs.N, err)
		}
		told = append(told, similar, mine, lessons)
		b, err := json.Marshal(told)
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"private", "victim/", known.id, "secret0", "subject of secret"} {
			if strings.Contains(strings.ReplaceAll(string(b), "deploy.victim.internal", ""), word) {
				t.Errorf("the attacker is told of %q", word)
			}
		}
		// And the other way: what the attacker did counts nothing for the victim.
		after, err := s.Signature(t.Context(), victim.repo, sigs[0].ID)
		if err != nil || after.Seen != sigs[0].Seen || after.FixedBy != sigs[0].FixedBy {
			t.Errorf("the victim's signature was changed: %+v, before %+v, %v", after, sigs[0], err)
		}
	})
}

// A template that loosens tells of the line that loosened it: whoever prints
// guesses at a private line sees in "<*>" which words were right.
func TestAttackTemplateAsOracle(t *testing.T) {
	tmpl := learn.NewTemplates(0)
	tmpl.Match("private/victim", "error: cannot reach host alpha.internal as root", "test")
	if _, text := tmpl.Match("public/attacker", "error: cannot reach host beta.internal as root", "test"); strings.Contains(text, "<*>") {
		t.Errorf("loosened by another repository's line: %q", text)
	}
}

// A step that fails without a word had one signature for everybody and every
// exit code: "seen before, 300 times", and it was retried because another's
// passed.
func TestAttackSilentFailure(t *testing.T) {
	s, err := store.Open(t.Context(), filepath.Join(t.TempDir(), "hearth.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	w := newWorld(t, s, learn.Options{})
	seen := map[string]string{}
	n := 0
	for _, repo := range []string{"o/a", "o/b"} {
		for _, command := range []string{"make lint", "make docs"} {
			for _, code := range []int{1, 2, 137} {
				w.repo, w.code, w.steps = repo, code, []string{command}
				what := fmt.Sprintf("%s in %s with %d", command, repo, code)
				for i := range 2 {
					n++
					sha, branch := main(n)
					r := w.run(sha, branch, 1, true)
					if r.explain.Seen != i || !strings.Contains(r.explain.Text, fmt.Sprintf("exit code %d", code)) {
						t.Errorf("%s, time %d: %+v", what, i+1, r.explain)
					}
					if was := seen[repo+r.explain.Signature]; was != "" && was != what {
						t.Errorf("%s has the signature of %s", what, was)
					}
					seen[repo+r.explain.Signature] = what
				}
			}
		}
	}
}

// One repository prints another error each time, without end: what others are
// known by must not make room for it, and what it fills is bounded.
func TestAttackFloodOfSignatures(t *testing.T) {
	tmpl := learn.NewTemplates(100)
	flakes := learn.NewFlakes(100)
	ids := map[string]string{}
	for i := range 30 {
		line := strings.Repeat(fmt.Sprintf("victim%d ", i), 1+i%7)
		ids[line], _ = tmpl.Match("o/victim", line, "")
		flakes.Add("o/victim", ids[line], learn.FlakyFailure{Words: []uint32{uint32(i)}})
		flakes.Label("o/victim", ids[line], true)
	}
	for i := range 5000 {
		id, _ := tmpl.Match("o/flood", strings.Repeat(fmt.Sprintf("flood%d ", i), 1+i%50), "")
		flakes.Add("o/flood", id, learn.FlakyFailure{Words: []uint32{uint32(1000 + i)}})
	}
	if n := tmpl.Len("o/victim"); n < 28 {
		t.Errorf("%d of the victim's 30 templates are left", n)
	}
	if n := tmpl.Len("o/victim") + tmpl.Len("o/flood"); n > 100 {
		t.Errorf("%d templates", n)
	}
	left := 0
	for i := range 30 {
		if flakes.Predict(learn.FlakyFailure{Class: learn.ClassOther, Words: []uint32{uint32(i)}}) > .5 {
			left++
		}
	}
	if left < 28 {
		t.Errorf("%d of the victim's 30 examples are left", left)
	}
}

// The counters' keys are hashes of names that a workflow chooses. Numbers of a
// repository are read and counted by that repository alone, whatever the key.
func TestAttackFloodOfCounters(t *testing.T) {
	m := learn.NewModel(2000)
	at := 0.0
	once := func(repo, step string, failed bool) {
		at++
		e := m.Predict(learn.Execution{Repo: repo, Workflow: "w", Job: "j", Step: step, Branch: "main", At: at})
		m.Learn(e, failed, at+.5)
		m.Settle()
	}
	for i := range 100 {
		for range 3 {
			once("o/victim", fmt.Sprint("step ", i), true)
		}
	}
	for i := range 10_000 {
		once("o/flood", fmt.Sprint("flood ", i), false)
	}
	left := 0
	for i := range 100 {
		if e := m.Predict(learn.Execution{Repo: "o/victim", Workflow: "w", Job: "j", Step: fmt.Sprint("step ", i), Branch: "main", At: at}); e.Seen == 3 {
			left++
		}
	}
	if left < 90 {
		t.Errorf("%d of the victim's 100 steps are still known", left)
	}
}
