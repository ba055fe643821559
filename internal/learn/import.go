package learn

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// Imported is an execution that another system ran: a run, a job, or a step.
type Imported struct {
	// Key tells it from all others of its repository, for good: what was imported
	// before is not learned from again. Of the steps of a job it is empty: they come and
	// go with it.
	Key string
	Execution
	Run    string // that it was part of: jobs that fail together have one
	Name   string // as shown
	Failed bool
	End    float64 // unix seconds
	// Seconds it took; negative: not known.
	Seconds float64
	Steps   []Imported // of a job, in their order
}

// ImportResult says what an import did.
type ImportResult struct {
	Repositories []string `json:"repositories"`
	Learned      int      `json:"learned"` // executions, steps among them
	Failures     int      `json:"failures"`
	Known        int      `json:"known"`           // were imported before
	Old          int      `json:"old,omitempty"`   // ended so long ago that nobody knows whether they were
	Other        int      `json:"other,omitempty"` // neither succeeded nor failed, or had not ended
}

// Add adds what another import did.
func (r *ImportResult) Add(o ImportResult) {
	for _, v := range o.Repositories {
		if !slices.Contains(r.Repositories, v) {
			r.Repositories = append(r.Repositories, v)
		}
	}
	slices.Sort(r.Repositories)
	r.Learned += o.Learned
	r.Failures += o.Failures
	r.Known += o.Known
	r.Old += o.Old
	r.Other += o.Other
}

// errImportOff is what an import gets where nothing is learned.
var errImportOff = errors.New("learn: nothing is learned here: learning is off")

// How many executions one transaction of an import takes in, and after how many those
// that are too old are looked for.
const (
	importBatch = 2000
	trimEvery   = 50 * importBatch
)

// Import learns from executions in the order of their ends, each once, however often
// it is imported. What an import that was broken off has learned stays.
func (l *Learner) Import(ctx context.Context, list []Imported) (ImportResult, error) {
	var res ImportResult
	if l.off() {
		return res, errImportOff
	}
	if _, err := l.Consume(ctx); err != nil {
		return res, err
	}
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b Imported) int { return cmp.Or(cmp.Compare(a.End, b.End), cmp.Compare(len(b.Job), len(a.Job))) })
	failed := map[string][]string{} // jobs of a run
	touched := map[string]bool{}
	for at := 0; at < len(list); at += importBatch {
		chunk := list[at:min(at+importBatch, len(list))]
		if ctx.Err() != nil {
			return res, context.Cause(ctx)
		}
		var did ImportResult
		l.mu.Lock()
		err := l.learn(ctx, func(tx *store.Learning) (int64, error) {
			did = ImportResult{}
			repositories := map[string]bool{}
			for i := range chunk {
				v := &chunk[i]
				fresh, old, err := tx.Import(v.Repo, v.Key, time.UnixMilli(int64(v.End*1000)))
				switch {
				case err != nil:
					return 0, err
				case old:
					did.Old++
					continue
				case !fresh:
					did.Known++
					continue
				}
				repositories[v.Repo], touched[v.Repo] = true, true
				l.takeIn(v, failed, &did)
			}
			l.model.Settle()
			did.Repositories = slices.Collect(maps.Keys(repositories))
			if last := at+importBatch >= len(list); last || at%trimEvery == 0 { // counting takes a while
				for repo := range touched {
					if err := tx.TrimImports(repo); err != nil {
						return 0, err
					}
				}
			}
			return tx.Cursor, nil
		})
		l.mu.Unlock()
		if err != nil {
			return res, fmt.Errorf("learn: import: %w", err)
		}
		res.Add(did)
	}
	return res, nil
}

// maxFailedRuns bounds the runs of an import whose failed jobs are remembered.
const maxFailedRuns = 10_000

// takeIn learns from one execution, as from one of our own. The caller holds the lock.
func (l *Learner) takeIn(v *Imported, failed map[string][]string, did *ImportResult) {
	var before []string
	for i := range v.Steps {
		s := &v.Steps[i]
		l.takeIn(s, failed, did)
		if s.Step != "" {
			l.ran(&s.Execution, stepState{name: s.Name, command: s.Name}, before, s.Failed, int64(s.End*1000))
			before = Remember(before, s.Step)
		}
	}
	did.Learned++
	if v.Failed {
		did.Failures++
	}
	l.model.Learn(l.model.Predict(v.Execution), v.Failed, v.End)
	if v.Seconds >= 0 {
		l.durations.Add(&v.Execution, nil, v.Seconds)
	}
	ms := int64(v.End * 1000)
	g := l.graphs.of(v.Repo)
	switch {
	case v.Unit == unitRun:
		g.Touch(nodeID(graph.Workflow, v.Repo, v.Workflow), "", v.Failed, ms)
		g.Touch(nodeID(graph.Repo, v.Repo), "", v.Failed, ms)
	case v.Unit == unitJob:
		id := nodeID(graph.Job, v.Repo, v.Workflow, v.Job)
		g.Touch(id, v.Name, v.Failed, ms)
		g.Link(id, graph.PartOf, nodeID(graph.Workflow, v.Repo, v.Workflow), v.Failed, ms)
		if !v.Failed || v.Run == "" {
			return
		}
		run := v.Repo + " " + v.Run
		for _, other := range failed[run] {
			if other != id {
				g.Link(id, graph.CoFailed, other, true, ms)
				g.Link(other, graph.CoFailed, id, true, ms)
			}
		}
		if len(failed[run]) < maxCoFailed && len(failed) < maxFailedRuns {
			failed[run] = append(failed[run], id)
		}
	case v.Key != "" && v.Step != "": // of a file that knows no jobs
		l.ran(&v.Execution, stepState{name: v.Name, command: v.Name}, nil, v.Failed, ms)
	}
}

// ReadCSV reads the executions of a file as [Eval] reads it, for [Learner.Import]:
// those of rows without a repository are repository's. other is how many rows cannot
// be learned from.
func ReadCSV(r io.Reader, repository string) (list []Imported, other int, err error) {
	rows, err := readOutcomes(r)
	if err != nil {
		return nil, 0, err
	}
	unit := unitOf(rows)
	times := map[[16]byte]int{}
	for i := range rows {
		row := &rows[i]
		if row.Repo == "" {
			row.Repo = repository
		}
		if row.Repo == "" {
			return nil, 0, fmt.Errorf("row %d: there is no repository: name it with --repository, or in a column repo", i)
		}
		row.Unit = unit
		v := Imported{Execution: row.Execution, Name: row.Step, Failed: row.failed, End: row.end, Seconds: row.duration}
		v.Step = graph.Command(row.Step)
		if a, ok := graph.ActionMajor(row.Step); ok {
			v.Action = a
		}
		// The same row twice in a file is two executions; the file twice is not.
		sum := sha256.Sum256(fmt.Appendf(nil, "%q %q %q %q %q %q %v %v %v %v %v", row.Repo, row.Workflow, row.Job, row.Step, row.Branch, row.Commit, row.Attempt,
			row.At, row.end, row.failed, row.duration))
		id := [16]byte(sum[:16])
		times[id]++
		v.Key = fmt.Sprintf("csv %x %d", id, times[id])
		list = append(list, v)
	}
	return list, 0, nil
}

// What GitHub's API says of runs, jobs and steps.
type (
	gitHubRun struct {
		ID           int64     `json:"id"`
		Name         string    `json:"name"`
		Path         string    `json:"path"`
		HeadBranch   string    `json:"head_branch"`
		HeadSHA      string    `json:"head_sha"`
		Event        string    `json:"event"`
		Status       string    `json:"status"`
		Conclusion   string    `json:"conclusion"`
		Attempt      int       `json:"run_attempt"`
		Created      time.Time `json:"created_at"`
		Started      time.Time `json:"run_started_at"`
		Updated      time.Time `json:"updated_at"`
		URL          string    `json:"url"`
		PullRequests []struct {
			Number int `json:"number"`
		} `json:"pull_requests"`
		Repository struct {
			FullName string `json:"full_name"`
		} `json:"repository"`
		Actor struct {
			Login string `json:"login"`
		} `json:"actor"`
	}
	gitHubStep struct {
		Name       string    `json:"name"`
		Number     int       `json:"number"`
		Status     string    `json:"status"`
		Conclusion string    `json:"conclusion"`
		Started    time.Time `json:"started_at"`
		Completed  time.Time `json:"completed_at"`
	}
	gitHubJob struct {
		ID         int64        `json:"id"`
		RunID      int64        `json:"run_id"`
		Attempt    int          `json:"run_attempt"`
		Workflow   string       `json:"workflow_name"`
		HeadBranch string       `json:"head_branch"`
		HeadSHA    string       `json:"head_sha"`
		URL        string       `json:"url"`
		RunURL     string       `json:"run_url"`
		Name       string       `json:"name"`
		Status     string       `json:"status"`
		Conclusion string       `json:"conclusion"`
		Started    time.Time    `json:"started_at"`
		Completed  time.Time    `json:"completed_at"`
		Runner     string       `json:"runner_name"`
		Steps      []gitHubStep `json:"steps"`
	}
)

// GitHubDump collects what GitHub's API said of workflow runs and their jobs
// (/actions/runs, /actions/runs/ID/jobs): several answers, in several files, in any
// order.
type GitHubDump struct {
	runs map[int64]gitHubRun
	jobs map[int64]gitHubJob
}

// Read adds a stream of JSON values: answers, single runs or jobs, or lists of them.
// It reports how many runs and jobs there were.
func (d *GitHubDump) Read(r io.Reader) (n int, err error) {
	if d.runs == nil {
		d.runs, d.jobs = map[int64]gitHubRun{}, map[int64]gitHubJob{}
	}
	dec := json.NewDecoder(r)
	for {
		var v json.RawMessage
		if err := dec.Decode(&v); errors.Is(err, io.EOF) {
			return n, nil
		} else if err != nil {
			return n, fmt.Errorf("it is no JSON of GitHub's API: %w", err)
		}
		some, err := d.add(v)
		if err != nil {
			return n, err
		}
		n += some
	}
}

func (d *GitHubDump) add(v json.RawMessage) (n int, err error) {
	if v = bytes.TrimSpace(v); len(v) > 0 && v[0] == '[' {
		var list []json.RawMessage
		if err := json.Unmarshal(v, &list); err != nil {
			return 0, fmt.Errorf("it is no JSON of GitHub's API: %w", err)
		}
		for _, e := range list {
			some, err := d.add(e)
			if err != nil {
				return n, err
			}
			n += some
		}
		return n, nil
	}
	var answer struct {
		Runs  []gitHubRun     `json:"workflow_runs"`
		Jobs  []gitHubJob     `json:"jobs"`
		RunID int64           `json:"run_id"`
		Path  string          `json:"path"`
		Steps json.RawMessage `json:"steps"`
	}
	if err := json.Unmarshal(v, &answer); err != nil {
		return 0, fmt.Errorf("it is no JSON of GitHub's API: %w", err)
	}
	switch {
	case answer.RunID != 0 || answer.Steps != nil:
		var j gitHubJob
		if err := json.Unmarshal(v, &j); err != nil {
			return 0, fmt.Errorf("it is no job of GitHub's API: %w", err)
		}
		answer.Jobs = append(answer.Jobs, j)
	case answer.Path != "":
		var r gitHubRun
		if err := json.Unmarshal(v, &r); err != nil {
			return 0, fmt.Errorf("it is no run of GitHub's API: %w", err)
		}
		answer.Runs = append(answer.Runs, r)
	}
	for _, r := range answer.Runs {
		if was, ok := d.runs[r.ID]; !ok || was.Attempt <= r.Attempt {
			d.runs[r.ID] = r
		}
		n++
	}
	for _, j := range answer.Jobs {
		d.jobs[j.ID] = j
		n++
	}
	return n, nil
}

var gitHubURL = regexp.MustCompile(`/repos/([^/]+/[^/]+)/actions/`)

// Executions are the runs and jobs of the dump that succeeded or failed; other is how
// many did neither. Of one that does not say whose it is, it is repository's. A job is
// told apart by its name, which is what Hearth calls it too where a workflow gives jobs
// no names, and its workflow by the path of the file if the job's run is there.
func (d *GitHubDump) Executions(repository string) (list []Imported, other int, err error) {
	whose := func(full string, urls ...string) (string, error) {
		for _, u := range urls {
			if m := gitHubURL.FindStringSubmatch(u); m != nil && full == "" {
				full = m[1]
			}
		}
		if full = cmp.Or(full, repository); full == "" {
			return "", errors.New("it does not say whose runs these are: name the repository with --repository")
		}
		return full, nil
	}
	for _, r := range d.runs {
		failed, counts := verdict(ci.Conclusion(r.Conclusion), false)
		if r.Status != "completed" || !counts {
			other++
			continue
		}
		repo, err := whose(r.Repository.FullName, r.URL)
		if err != nil {
			return nil, 0, err
		}
		start := r.Started
		if start.IsZero() {
			start = r.Created
		}
		list = append(list, Imported{Key: fmt.Sprintf("github run %d %d", r.ID, max(r.Attempt, 1)), Name: r.Name, Run: fmt.Sprint(r.ID), Failed: failed,
			Execution: Execution{Unit: unitRun, Repo: repo, Workflow: r.file(), Branch: r.ref(), Commit: r.HeadSHA, Attempt: max(r.Attempt, 1), At: unix(start),
				Change: Change{Author: r.Actor.Login}},
			End: unix(r.Updated), Seconds: r.Updated.Sub(start).Seconds()})
	}
	for _, j := range d.jobs {
		failed, counts := verdict(ci.Conclusion(j.Conclusion), false)
		if j.Status != "completed" || !counts || j.Completed.IsZero() {
			other++
			continue
		}
		r := d.runs[j.RunID]
		repo, err := whose(r.Repository.FullName, j.URL, j.RunURL)
		if err != nil {
			return nil, 0, err
		}
		x := Execution{Unit: unitJob, Repo: repo, Workflow: cmp.Or(r.file(), j.Workflow), Job: j.Name, Branch: r.ref(), Commit: cmp.Or(j.HeadSHA, r.HeadSHA),
			Attempt: max(j.Attempt, r.Attempt, 1), Host: j.Runner, At: unix(j.Started)}
		if r.ID == 0 && j.HeadBranch != "" {
			x.Branch = "refs/heads/" + j.HeadBranch
		}
		v := Imported{Key: fmt.Sprintf("github job %d", j.ID), Name: j.Name, Run: fmt.Sprint(j.RunID), Failed: failed, Execution: x, End: unix(j.Completed),
			Seconds: j.Completed.Sub(j.Started).Seconds()}
		for _, s := range j.Steps {
			failed, counts := verdict(ci.Conclusion(s.Conclusion), false)
			command := gitHubCommand(s.Name)
			if !counts || command == "" || s.Completed.IsZero() {
				continue
			}
			y := x
			y.Unit, y.Step, y.At = unitStep, graph.Command(command), unix(s.Started)
			if a, ok := graph.ActionMajor(command); ok {
				y.Action = a
			}
			v.Steps = append(v.Steps, Imported{Name: command, Failed: failed, Execution: y, End: unix(s.Completed), Seconds: s.Completed.Sub(s.Started).Seconds()})
		}
		list = append(list, v)
	}
	// Maps have no order, and equal ends keep this one.
	slices.SortFunc(list, func(a, b Imported) int { return strings.Compare(a.Key, b.Key) })
	return list, other, nil
}

func unix(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

func (r *gitHubRun) file() string {
	file, _, _ := strings.Cut(r.Path, "@")
	return cmp.Or(file, r.Name)
}

func (r *gitHubRun) ref() string {
	switch {
	case len(r.PullRequests) > 0 && strings.HasPrefix(r.Event, "pull_request") && r.Event != "pull_request_target":
		return fmt.Sprintf("refs/pull/%d/merge", r.PullRequests[0].Number)
	case r.HeadBranch != "":
		return "refs/heads/" + r.HeadBranch
	}
	return ""
}

// gitHubCommand is what a step ran, as far as its name says: GitHub calls a step
// without a name "Run " and what it runs. The runner's own steps ran nothing.
func gitHubCommand(name string) string {
	switch {
	case name == "Set up job", name == "Complete job", name == "Initialize containers", name == "Stop containers",
		strings.HasPrefix(name, "Post "), strings.HasPrefix(name, "Pre "), strings.HasPrefix(name, "Set up runner"):
		return ""
	}
	return strings.TrimPrefix(name, "Run ")
}

// What is read of a directory of logs.
const maxImportedLogs = 20_000

// ImportLogs learns from the failed logs of a directory: NAME.log of jobs that failed,
// or what GitHub's archives have (files of which those with an error in them failed).
// A labels.csv as [EvalFlaky] reads it says more: which job each log (logs/ID.log) is
// of, when, and whether the failure was flaky. Each log teaches once.
func (l *Learner) ImportLogs(ctx context.Context, dir, repository, workflow string) (ImportResult, error) {
	var res ImportResult
	if l.off() {
		return res, errImportOff
	}
	type entry struct {
		id, job, file string
		at            time.Time
		labelled      bool
		flaky         bool
	}
	var list []entry
	if rows, err := readFlaky(filepath.Join(dir, "labels.csv")); err == nil {
		for _, r := range rows {
			e := entry{id: r.id, job: r.job, file: filepath.Join(dir, "logs", r.id+".log"), labelled: true, flaky: r.flaky}
			for _, form := range []string{time.RFC3339Nano, "2006-01-02 15:04:05", time.DateOnly} {
				if at, err := time.Parse(form, r.created); err == nil {
					e.at = at
					break
				}
			}
			list = append(list, e)
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return res, err
	} else {
		err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			ext := filepath.Ext(p)
			if !d.Type().IsRegular() || ext != ".log" && ext != ".txt" || len(list) >= maxImportedLogs {
				return nil
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			rel, err := filepath.Rel(dir, p)
			if err != nil {
				return err
			}
			name := logNumber.ReplaceAllString(strings.TrimSuffix(filepath.Base(p), ext), "")
			list = append(list, entry{id: filepath.ToSlash(rel), job: name, file: p, at: info.ModTime()})
			return nil
		})
		if err != nil {
			return res, err
		}
		slices.SortStableFunc(list, func(a, b entry) int { return a.at.Compare(b.at) })
	}
	if len(list) == 0 {
		return res, fmt.Errorf("%s has no *.log, no *.txt and no labels.csv", dir)
	}
	for _, e := range list {
		if ctx.Err() != nil {
			return res, context.Cause(ctx)
		}
		lines, err := readLog(e.file)
		if err != nil {
			return res, err
		}
		if filepath.Ext(e.file) == ".txt" && !slices.ContainsFunc(lines, func(s string) bool { return strings.Contains(s, "##[error]") }) {
			res.Other++
			continue
		}
		sum := sha256.Sum256([]byte(strings.Join(lines, "\n")))
		run := fmt.Sprintf("import %x", sum[:12])
		fresh, old := false, false
		l.mu.Lock()
		err = l.learn(ctx, func(tx *store.Learning) (int64, error) {
			var err error
			fresh, old, err = tx.Import(repository, "log "+run+" "+e.id, time.UnixMilli(max(e.at.UnixMilli(), 1)))
			return tx.Cursor, err
		})
		l.mu.Unlock()
		switch {
		case err != nil:
			return res, fmt.Errorf("learn: import: %w", err)
		case old:
			res.Old++
			continue
		case !fresh:
			res.Known++
			continue
		}
		known, err := l.Explain(ctx, Failure{Run: run, Repository: repository, Workflow: workflow, JobKey: e.job, Step: 1, Name: e.job, Attempt: 1, ExitCode: 1,
			Lines: lines, At: e.at})
		if err != nil {
			return res, err
		}
		if e.labelled {
			l.mu.Lock()
			err = l.learn(ctx, func(tx *store.Learning) (int64, error) {
				l.flakes.Label(repository, known.Signature, e.flaky)
				return tx.Cursor, tx.CountRetry(repository, known.Signature, e.flaky)
			})
			l.mu.Unlock()
			if err != nil {
				return res, fmt.Errorf("learn: import: %w", err)
			}
		}
		res.Add(ImportResult{Repositories: []string{repository}, Learned: 1, Failures: 1})
	}
	return res, nil
}

var logNumber = regexp.MustCompile(`^\d+_`)

// IsGitHubDump reports whether what follows looks like JSON.
func IsGitHubDump(r *bufio.Reader) bool {
	b, _ := r.Peek(512)
	b = bytes.TrimLeft(bytes.TrimPrefix(b, []byte("\ufeff")), " \t\r\n")
	return len(b) > 0 && (b[0] == '{' || b[0] == '[')
}
