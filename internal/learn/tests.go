package learn

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
	"github.com/hearth-ci/hearth/internal/suite"
)

// TestRun is an execution of tests: what a step printed of them, or what reports
// that a job left behind say.
type TestRun struct {
	Run        string // id
	Repository string
	Workflow   string // path of the file
	JobKey     string
	// Name and Command are the step's; both are empty for reports, which belong to the
	// job: which step wrote one is not known for sure.
	Name, Command string
	Branch        string
	Commit        string
	// Tree names the files that were tested, if that is known: what passed and failed
	// on one Tree did so without a change.
	Tree string
	// Signature is that of the failure that this explains, if there is one.
	Signature string
	// Stranger: whoever wrote it may teach nothing: what is known is said, and nothing
	// is taken in.
	Stranger bool
	// Green: the step succeeded, so that tests it does not name passed too.
	Green   bool
	Results []suite.Result
}

// maxTestNodes bounds what one execution adds to the graph.
const maxTestNodes = 50

// TestsRan takes in what became of tests, masked of secrets, and says what is known
// of those that failed, the ones that tell most first.
func (l *Learner) TestsRan(ctx context.Context, r TestRun) ([]ci.TestNote, error) {
	if l.off() {
		return nil, nil
	}
	step := stepIdentity(r.Name, r.Command)
	if len(r.Results) == 0 {
		if !r.Green || r.Stranger {
			return nil, nil
		}
		broken, err := l.store.BrokenTests(ctx, r.Repository, r.Workflow, r.JobKey, step)
		if err != nil || !broken {
			return nil, err
		}
	}
	now := l.opt.Now()
	in := store.TestRun{Repository: r.Repository, Workflow: r.Workflow, Job: r.JobKey, Step: step, Run: r.Run, SHA: r.Commit, Branch: r.Branch, Tree: r.Tree,
		At: now, Green: r.Green}
	for _, t := range r.Results {
		if t.Passed+t.Failed+t.Skipped > 0 {
			in.Outcomes = append(in.Outcomes, store.TestOutcome{ID: testID(&r, step, t.Name), Name: t.Name, Kind: string(t.Kind), Passed: t.Passed, Failed: t.Failed,
				Skipped: t.Skipped, Seconds: t.Seconds, Message: t.Message})
		}
	}
	add := l.store.AddTests
	if r.Stranger {
		add = l.store.KnownTests
	}
	failed, err := add(ctx, in)
	if err != nil {
		return nil, fmt.Errorf("learn: %w", err)
	}
	slices.SortStableFunc(failed, func(a, b store.Test) int { return cmp.Compare(weightOf(b), weightOf(a)) })
	if !r.Stranger {
		if err := l.testNodes(ctx, &r, step, failed, now); err != nil {
			return nil, fmt.Errorf("learn: %w", err)
		}
	}
	var out []ci.TestNote
	for _, t := range failed[:min(len(failed), ci.MaxExplainedTests)] {
		v := judge(t, &testRisk{}, now)
		out = append(out, ci.TestNote{Name: t.Name, Message: t.Message, Flaky: v.State == Flaky, Note: v.Why})
	}
	return out, nil
}

// weightOf orders failed tests: a single test says more than its package.
func weightOf(t store.Test) int {
	n := strings.Count(t.Name, "/")
	if strings.ContainsAny(t.Name, "/.:") {
		n++
	}
	if t.Message != "" {
		n += 100
	}
	return n
}

// testNodes makes tests that fail nodes of the graph: a test that never fails is
// counters in the store and nothing else. Those that are nodes count what they pass.
func (l *Learner) testNodes(ctx context.Context, r *TestRun, step string, failed []store.Test, now time.Time) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	ms := now.UnixMilli()
	x := Execution{Repo: r.Repository, Workflow: r.Workflow, Job: r.JobKey, Step: step}
	of := nodeID(graph.Job, r.Repository, r.Workflow, r.JobKey)
	if step != "" {
		of = graph.ID(graph.Step, place(&x))
	}
	node := func(name string) string { return nodeID(graph.Test, r.Repository, r.Workflow, r.JobKey, name) }
	known := l.graphs[r.Repository]
	if known == nil && len(failed) == 0 {
		return nil
	}
	return l.learn(ctx, func(tx *store.Learning) (int64, error) {
		g := l.graphs.of(r.Repository)
		for _, t := range r.Results {
			if id := node(t.Name); t.Failed == 0 && t.Passed > 0 && g.Node(id) != nil {
				g.Touch(id, "", false, ms)
			}
		}
		var before []string
		for _, t := range failed[:min(len(failed), maxTestNodes)] {
			id := node(t.Name)
			g.Touch(id, t.Message, true, ms)
			g.Link(id, graph.PartOf, of, true, ms)
			if r.Signature != "" {
				g.Link(id, graph.FailedWith, graph.ID(graph.Signature, r.Signature), true, ms)
			}
			for _, other := range before {
				g.Link(id, graph.CoFailed, other, true, ms)
				g.Link(other, graph.CoFailed, id, true, ms)
			}
			if len(before) < maxCoFailed {
				before = append(before, id)
			}
		}
		return tx.Cursor, nil
	})
}

// testID tells tests apart: by where they run and what they are called.
func testID(r *TestRun, step, name string) string {
	h := fnv.New128a()
	for _, s := range []string{r.Repository, r.Workflow, r.JobKey, step, name} {
		fmt.Fprintf(h, "%d %s\n", len(s), s)
	}
	return fmt.Sprintf("%x", h.Sum(nil))
}

// TestState is what is thought of a test.
type TestState string

// The states of a test.
const (
	Stable  TestState = "stable"  // it has not failed lately
	Failing TestState = "failing" // it fails, and nothing speaks for chance
	Flaky   TestState = "flaky"   // it passed and failed on the same files
	Suspect TestState = "suspect" // it comes and goes, but never on the same files
)

// JudgedTest is a test with what is thought of it.
type JudgedTest struct {
	store.Test
	State TestState `json:"state"`
	Why   string    `json:"why,omitempty"`
	PFail float64   `json:"p_fail"` // when it runs next
	// Quarantine is whether it should be kept from failing builds until somebody has
	// looked at it, and Skip how its runner leaves it out.
	Quarantine bool   `json:"quarantine,omitempty"`
	Skip       string `json:"skip,omitempty"`
	// Evidence is at which commits it failed, the newest first; of flaky ones.
	Evidence []store.TestFailure `json:"evidence,omitempty"`
}

// How long a flake is held against a test, and when it is in the way.
const (
	flakeMemory    = 30 * 24 * time.Hour
	brokenRow      = 3   // failures in a row: broken, whatever it was before
	quarantineRate = .02 // failures, of what it ended as lately
)

// judge says what is thought of a test.
func judge(t store.Test, risk *testRisk, now time.Time) JudgedTest {
	v := JudgedTest{Test: t, State: Stable, PFail: risk.predict(t.Name, t.Recent, t.Passed, t.Failed)}
	if t.Failed == 0 {
		return v
	}
	row := len(t.Recent) - len(strings.TrimRight(t.Recent, "F"))
	fails, isolated := strings.Count(t.Recent, "F"), strings.Count(t.Recent, "PFP")
	rate := float64(fails) / float64(max(len(t.Recent), 1))
	of := fmt.Sprintf("it failed %d of %d times", t.Failed, t.Failed+t.Passed)
	switch {
	case t.Mixed > 0 && now.Sub(t.LastFailed) <= flakeMemory && row < max(brokenRow, 2*t.Mixed):
		v.State = Flaky
		v.Why = fmt.Sprintf("%s; of the %s that it failed at it passed at %d, on the same files", of, plural(t.Commits, "commit"), t.Mixed)
		v.Quarantine = (t.Mixed > 1 || t.Commits > 1) && rate >= quarantineRate
	case row > 0:
		v.State = Failing
		v.Why = of
		if row > 1 {
			v.Why += fmt.Sprintf(", the last %d in a row", row)
		} else if isolated > 1 && rate < .5 {
			v.State = Suspect
			v.Why += ", by itself each time, but never passed where it failed"
		}
	case isolated > 1 && rate < .5 && now.Sub(t.LastFailed) <= flakeMemory:
		v.State = Suspect
		v.Why = of + ", by itself each time, but never passed where it failed"
	}
	if v.Quarantine {
		v.Skip = skipFlag(t)
	}
	return v
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// skipFlag is how the test's runner leaves it out; "" where that is not known.
func skipFlag(t store.Test) string {
	switch suite.Kind(t.Kind) {
	case suite.Go:
		i := strings.LastIndexByte(t.Name, '.')
		if slash := strings.Index(t.Name[i+1:], "/"); i > 0 && slash != 0 && strings.HasPrefix(t.Name[i+1:], "Test") {
			parts := strings.Split(t.Name[i+1:], "/")
			for j, p := range parts {
				parts[j] = "^" + quoteMeta(p) + "$"
			}
			return "go test -skip '" + strings.Join(parts, "/") + "' " + t.Name[:i]
		}
	case suite.Pytest:
		return "pytest --deselect '" + strings.ReplaceAll(t.Name, "'", `'\''`) + "'"
	}
	return ""
}

func quoteMeta(s string) string {
	var b strings.Builder
	for _, r := range s {
		if strings.ContainsRune(`\.+*?()|[]{}^$'`, r) {
			if r == '\'' {
				b.WriteByte('.')
				continue
			}
			b.WriteByte('\\')
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Tests lists what is thought of tests of a repository, the ones to look at first;
// with all also those that have never failed. "" as in [Learner.Related].
func (l *Learner) Tests(ctx context.Context, repository string, all bool) ([]JudgedTest, error) {
	if l.off() {
		return nil, nil
	}
	list, err := l.store.Tests(ctx, repository, !all, maxListed)
	if err != nil {
		return nil, fmt.Errorf("learn: %w", err)
	}
	now := l.opt.Now()
	risk := risksOf(list)
	out := make([]JudgedTest, 0, len(list))
	for _, t := range list {
		v := judge(t, risk, now)
		if v.State == Flaky {
			if v.Evidence, err = l.store.TestFailures(ctx, t.Repository, t.ID, 5); err != nil {
				return nil, fmt.Errorf("learn: %w", err)
			}
		}
		out = append(out, v)
	}
	rank := map[TestState]int{Flaky: 0, Failing: 1, Suspect: 2, Stable: 3}
	slices.SortStableFunc(out, func(a, b JudgedTest) int {
		return cmp.Or(cmp.Compare(flagOf(!a.Quarantine), flagOf(!b.Quarantine)), cmp.Compare(rank[a.State], rank[b.State]), cmp.Compare(b.PFail, a.PFail))
	})
	return out, nil
}

// maxListed bounds a list of tests.
const maxListed = 20_000

func flagOf(b bool) int {
	if b {
		return 1
	}
	return 0
}

// testRisk says how likely tests are to fail when they run next, from how each ended
// the last times (P and F, the newest last) and how often in all. What has just
// happened counts as much as failures persist here: where a test that failed mostly
// fails again, the last outcome is nearly all, and where failures come singly the
// rate over its life is. A test that nobody has seen is as its neighbours are, those
// of its file or package.
type testRisk struct {
	failed, again float64 // failures after which there was another outcome, and of those that failed again
	groups        map[string]*[2]float64
	slow, quick   float64 // of the tests that failed, those that took longer or shorter than the median of all
}

// tie orders tests of one risk, by the seconds that they take: the longer ones first
// where those are what fails here, as mostly they are, else the shorter ones.
func (r *testRisk) tie(x, y float64) int {
	if r.slow >= r.quick {
		return cmp.Compare(y, x)
	}
	return cmp.Compare(x, y)
}

// took takes in that a test that failed takes so long, where median is usual.
func (r *testRisk) took(seconds, median float64) {
	switch {
	case seconds <= 0 || median <= 0:
	case seconds > median:
		r.slow++
	case seconds < median:
		r.quick++
	}
}

// The half-lives in outcomes, and what each counts for; the last is the whole life.
var riskHalfLives = [...]float64{1, 8, 30}

const (
	riskPrior   = 2.0
	newTestRisk = .05
)

// pair takes in that a test ended twice in a row.
func (r *testRisk) pair(first, second byte) {
	if first == 'F' {
		r.failed++
		if second == 'F' {
			r.again++
		}
	}
}

// count takes in how a test ended, for its neighbours.
func (r *testRisk) count(name string, passed, failed float64) {
	if r.groups == nil {
		r.groups = map[string]*[2]float64{}
	}
	k := groupOf(name)
	g := r.groups[k]
	if g == nil {
		g = &[2]float64{}
		r.groups[k] = g
	}
	g[0] += passed + failed
	g[1] += failed
}

// groupOf is the file, class or package of a test.
func groupOf(name string) string {
	if i := strings.LastIndexAny(name, ".:/#"); i > 0 {
		return name[:i]
	}
	return ""
}

// add takes in what is known of a test.
func (r *testRisk) add(t *store.Test) {
	for i := 1; i < len(t.Recent); i++ {
		r.pair(t.Recent[i-1], t.Recent[i])
	}
	r.count(t.Name, float64(t.Passed), float64(t.Failed))
}

func (r *testRisk) predict(name, recent string, passed, failed int) float64 {
	if passed+failed == 0 {
		p := newTestRisk
		if g := r.groups[groupOf(name)]; g != nil {
			p = (g[1] + riskPrior*newTestRisk) / (g[0] + riskPrior)
		}
		return p
	}
	persists := min(max(((r.again+2)/(r.failed+8)-.3)/.4, 0), 1)
	last := .1 + .4*persists
	out := (.6 - last) * logit((float64(failed)+riskPrior*newTestRisk)/(float64(passed+failed)+riskPrior))
	for i, w := range [...]float64{last, .2, .2} {
		keep := math.Exp2(-1 / riskHalfLives[i])
		n, f := 0.0, 0.0
		for j := range len(recent) {
			n, f = n*keep+1, f*keep
			if recent[j] == 'F' {
				f++
			}
		}
		out += w * logit((f+riskPrior*newTestRisk)/(n+riskPrior))
	}
	return sigmoid(out)
}

// TestRank is a test of a list in the order in which to run it.
type TestRank struct {
	Name    string  `json:"name"`
	PFail   float64 `json:"p_fail"`
	Seconds float64 `json:"seconds,omitempty"`
	Seen    int     `json:"seen"` // times it passed or failed
}

// Order puts tests of a repository in the order in which to run them, so that what
// fails fails early: by how likely each is to fail, and of equals by how long they take.
// Tests of one name that run in several places count as the likeliest of them. With
// no names all that are known are ordered.
func (l *Learner) Order(ctx context.Context, repository string, names []string) ([]TestRank, error) {
	known := map[string]TestRank{}
	risk := &testRisk{}
	if !l.off() {
		list, err := l.store.Tests(ctx, repository, false, maxListed)
		if err != nil {
			return nil, fmt.Errorf("learn: %w", err)
		}
		risk = risksOf(list)
		for _, t := range list {
			r := TestRank{Name: t.Name, PFail: risk.predict(t.Name, t.Recent, t.Passed, t.Failed), Seconds: t.Seconds, Seen: t.Passed + t.Failed}
			if was, ok := known[t.Name]; !ok || r.PFail > was.PFail {
				known[t.Name] = r
			}
		}
	}
	var out []TestRank
	if len(names) == 0 {
		for _, r := range known {
			out = append(out, r)
		}
		slices.SortFunc(out, func(a, b TestRank) int { return cmp.Compare(a.Name, b.Name) })
	}
	for _, n := range names {
		r, ok := known[n]
		if !ok {
			r = TestRank{Name: n, PFail: risk.predict(n, "", 0, 0)}
		}
		out = append(out, r)
	}
	slices.SortStableFunc(out, func(a, b TestRank) int {
		return cmp.Or(cmp.Compare(round(b.PFail), round(a.PFail)), risk.tie(a.Seconds, b.Seconds))
	})
	return out, nil
}

func risksOf(list []store.Test) *testRisk {
	r := &testRisk{}
	seconds := make([]float64, len(list))
	for i := range list {
		r.add(&list[i])
		seconds[i] = list[i].Seconds
	}
	middle := medianOf(seconds)
	for i := range list {
		if list[i].Failed > 0 {
			r.took(list[i].Seconds, middle)
		}
	}
	return r
}

// medianOf sorts what it is given.
func medianOf(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return v[len(v)/2]
}

// round makes equals of what differs by less than anybody knows.
func round(p float64) float64 {
	v, _ := strconv.ParseFloat(strconv.FormatFloat(p, 'g', 4, 64), 64)
	return v
}
