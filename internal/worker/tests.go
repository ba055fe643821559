package worker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hearth-ci/hearth/internal/archive"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/engine"
	"github.com/hearth-ci/hearth/internal/guest"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/mask"
	"github.com/hearth-ci/hearth/internal/plan"
	"github.com/hearth-ci/hearth/internal/suite"
	"github.com/hearth-ci/hearth/internal/workflow"
)

// ReportPatterns are where test reports are looked for in any case, in the workspace
// and in artifacts, as filters of paths have them.
var ReportPatterns = []string{"**/junit*.xml", "**/*junit.xml", "**/TEST-*.xml", "**/test-results*.xml", "**/test-report*.xml", "**/*-test-results/*.xml"}

// Below these directories nothing is a report of this run: what others left there is.
const notReports = `-name .git -o -name node_modules -o -name vendor -o -name testdata -o -name fixtures -o -name .venv`

// What is read of a job's reports.
const (
	maxReports      = 200
	maxReportBytes  = 64 << 20 // together
	maxReportList   = 4 << 20
	maxArtifact     = 64 << 20
	maxUnzipped     = 256 << 20 // passed over or read, together
	reportTime      = 20 * time.Second
	maxScannedSteps = 64
)

// GuestFiles is what is needed of a machine to find reports in it.
type GuestFiles interface {
	Exec(ctx context.Context, cmd guest.Cmd) (guest.Exit, error)
	ReadFile(ctx context.Context, path string, max int64) ([]byte, error)
}

// tests finds out what became of single tests in one job, and tells the learner. A
// nil *tests does nothing.
type tests struct {
	runner   *Runner
	job      *plan.Job
	mask     *mask.Set
	guest    func() GuestFiles // nil: there is no looking for reports
	patterns workflow.Patterns
	stranger bool

	mu   sync.Mutex
	scan map[int]*suite.Scanner

	// Of the job's own goroutine:
	read  map[string]string // reports that were read, by name: when written, and how large
	bytes int64
	told  suite.Set // what they said
}

func (r *Runner) newTests(job *plan.Job, stranger bool, masked *mask.Set, g func() GuestFiles) *tests {
	if r.Mode() == learn.Off {
		return nil
	}
	ps, _ := workflow.ParsePatterns(append(append([]string(nil), ReportPatterns...), r.Tests...)) // those of settings were checked there
	return &tests{runner: r, job: job, mask: masked, guest: g, patterns: ps, stranger: stranger, scan: map[int]*suite.Scanner{}, read: map[string]string{}}
}

// line takes in a line that a step printed.
func (t *tests) line(step int, text string) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.scan[step]
	if s == nil {
		if len(t.scan) >= maxScannedSteps {
			return
		}
		s = &suite.Scanner{}
		t.scan[step] = s
	}
	s.Line(text)
}

// stepEnded tells the learner what an attempt at a step said of tests. What is known
// of those that failed comes back.
func (t *tests) stepEnded(ctx context.Context, s engine.StepInfo, green bool, signature string) []ci.TestNote {
	if t == nil {
		return nil
	}
	t.mu.Lock()
	scan := t.scan[s.Number]
	delete(t.scan, s.Number)
	t.mu.Unlock()
	set := &suite.Set{}
	if scan != nil {
		set = scan.Set()
	}
	var notes []ci.TestNote
	if signature != "" {
		reports := t.reports(ctx)
		set.Without(reports)
		notes = t.tell(ctx, learn.TestRun{Signature: signature, Results: reports.Results()})
	}
	if green || set.Len() > 0 {
		notes = append(notes, t.tell(ctx, learn.TestRun{Name: s.Name, Command: s.Command, Signature: signature, Green: green, Results: set.Results()})...)
	}
	return notes[:min(len(notes), ci.MaxExplainedTests)]
}

// jobEnded reads what the job left behind, while its machine is still there.
func (t *tests) jobEnded(ctx context.Context) {
	if t == nil {
		return
	}
	set := t.reports(ctx)
	uploaded := t.artifacts()
	uploaded.Without(&t.told)
	set.Add(uploaded)
	t.tell(ctx, learn.TestRun{Results: set.Results()})
}

func (t *tests) tell(ctx context.Context, run learn.TestRun) []ci.TestNote {
	r := t.runner
	run.Stranger = t.stranger
	run.Run, run.Repository, run.Workflow, run.JobKey, run.Branch, run.Commit = r.RunID, r.Repository, r.File, t.job.Key, r.Ref, r.SHA
	if r.Tree != nil {
		run.Tree = r.Tree()
	}
	if t.mask != nil { // reports come from files, which nothing has masked yet
		for i := range run.Results {
			run.Results[i].Name, run.Results[i].Message = t.mask.Field(run.Results[i].Name), t.mask.Field(run.Results[i].Message)
		}
	}
	notes, err := r.Learn.TestsRan(ctx, run)
	if err != nil { // learning is never in the way of a job
		r.Log.Error("learning from tests", "job", t.job.Key, "err", err)
	}
	return notes
}

// reports reads the test reports in the workspace that were not read before.
func (t *tests) reports(ctx context.Context) *suite.Set {
	set := &suite.Set{}
	if t.guest == nil {
		return set
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	layout := t.runner.Layout
	if layout.Workspace == "" {
		layout = engine.DefaultLayout(t.runner.Repository)
	}
	g := t.guest()
	list := listing{max: maxReportList}
	_, err := g.Exec(ctx, guest.Cmd{Dir: layout.Workspace, Stdout: &list, Timeout: reportTime,
		Argv: []string{"/bin/sh", "-c",
			`find . -type d \( ` + notReports + ` \) -prune -o -type f -size -` + strconv.Itoa(suite.MaxReport>>10) + `k -printf '%T@ %s %P\0'`}})
	if err != nil && !errors.Is(err, errListing) {
		t.runner.Log.Debug("no test reports: the workspace could not be listed", "job", t.job.Key, "err", err)
		return set
	}
	for rec := range strings.SplitSeq(list.String(), "\x00") {
		written, rest, _ := strings.Cut(rec, " ")
		size, name, ok := strings.Cut(rest, " ")
		n, err := strconv.ParseInt(size, 10, 64)
		if !ok || err != nil || n < 0 || !fs.ValidPath(name) || !t.matches(name) || t.read[name] == written+" "+size || len(t.read) >= maxReports ||
			t.bytes+n > maxReportBytes {
			continue
		}
		t.read[name] = written + " " + size
		t.bytes += n
		b, err := g.ReadFile(ctx, path.Join(layout.Workspace, name), min(n, suite.MaxReport))
		if err != nil {
			t.runner.Log.Debug("a test report could not be read", "job", t.job.Key, "err", err)
			continue
		}
		t.report(set, name, bytes.NewReader(b))
	}
	t.told.Add(set)
	return set
}

func (t *tests) matches(name string) bool {
	in, _ := t.patterns.Match(name)
	return in
}

// report reads one report into a set.
func (t *tests) report(set *suite.Set, name string, r io.Reader) {
	var one suite.Set
	if path.Ext(name) == ".xml" {
		if err := one.JUnit(r); err != nil {
			t.runner.Log.Debug("a test report could not be read", "job", t.job.Key, "err", err)
		}
	} else {
		var s suite.Scanner
		b, _ := io.ReadAll(io.LimitReader(r, suite.MaxReport))
		for line := range strings.Lines(string(b)) {
			s.Line(strings.TrimRight(line, "\r\n"))
		}
		one = *s.Set()
	}
	set.Add(&one)
}

var errEnough = errors.New("enough was read")

// artifacts reads the test reports among the artifacts of the job.
func (t *tests) artifacts() *suite.Set {
	set, r := &suite.Set{}, t.runner
	uploads := r.Uploads
	if uploads == nil {
		if r.Results == nil {
			return set
		}
		uploads = r.Results
	}
	list, err := uploads.Artifacts(r.Repository, r.RunID)
	if err != nil {
		r.Log.Debug("no test reports: artifacts cannot be listed", "job", t.job.Key, "err", err)
		return set
	}
	unzipped := int64(maxUnzipped)
	for _, a := range list {
		if a.Job != t.job.Key || a.Attempt != max(r.Attempt, 1) || !a.Zip() || a.Size > maxArtifact {
			continue
		}
		f, err := uploads.OpenArtifact(r.Repository, a)
		if err != nil {
			continue
		}
		err = archive.EachZipped(f, a.Size, func(name string, in io.Reader) error {
			if !t.matches(name) {
				return nil
			}
			if len(t.read) >= maxReports || unzipped <= 0 {
				return errEnough
			}
			t.read[fmt.Sprintf("artifact %d %s", a.ID, name)] = ""
			counted := &io.LimitedReader{R: in, N: min(unzipped, suite.MaxReport+1)}
			was := counted.N
			t.report(set, name, counted)
			unzipped -= was - counted.N
			return nil
		})
		f.Close()
		if err != nil && !errors.Is(err, errEnough) {
			r.Log.Debug("an artifact could not be looked into", "job", t.job.Key, "err", err)
		}
	}
	return set
}

// listing holds so many bytes of a list that a machine sends.
type listing struct {
	strings.Builder
	max int
}

var errListing = errors.New("the list is too long")

func (l *listing) Write(p []byte) (int, error) {
	if l.Len()+len(p) > l.max {
		return 0, errListing
	}
	return l.Builder.Write(p)
}
