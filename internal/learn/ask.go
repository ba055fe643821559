package learn

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// CommandForecast is what is expected of a command, whoever runs it next.
type CommandForecast struct {
	Command string `json:"command"` // as it is told apart from others
	ci.Prediction
	Places   []CommandPlace `json:"places,omitempty"`   // the steps that run it, the most run first
	Failures []string       `json:"failures,omitempty"` // what it failed with, the most frequent first
}

// CommandPlace is a step that runs a command, with what is expected of it there.
type CommandPlace struct {
	Repository string `json:"repository"`
	Workflow   string `json:"workflow"`
	Job        string `json:"job"`
	ci.Prediction
}

const (
	maxPlaces   = 50 // of a forecast
	maxFailures = 3
)

// PredictCommand says how a command will fare in a repository, from the steps that
// have run it, or where none has, from what runs there otherwise; "" as in
// [Learner.Related].
func (l *Learner) PredictCommand(ctx context.Context, repository, command string) (CommandForecast, error) {
	f := CommandForecast{Command: graph.Command(command)}
	if f.Command == "" {
		return f, fmt.Errorf("learn: %q is no command", command)
	}
	if l.off() {
		return f, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return f, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	at := float64(l.opt.Now().UnixMilli()) / 1000
	failures := map[string]float64{}
	for repo, g := range l.graphs {
		if repository != "" && repo != repository {
			continue
		}
		for n := range g.Nodes(graph.Step) {
			p := strings.SplitN(graph.Name(n.ID), placeMark, 4)
			if len(p) != 4 || p[3] != f.Command {
				continue
			}
			_, expected := l.foretell(Execution{Repo: p[0], Workflow: p[1], Job: p[2], Step: p[3], At: at})
			f.Places = append(f.Places, CommandPlace{p[0], p[1], p[2], expected})
			for _, e := range g.Out(n.ID) {
				if s := g.Node(e.Dst); e.Rel == graph.FailedWith && s != nil && s.Text != "" {
					failures[s.Text] += e.Count()
				}
			}
		}
	}
	slices.SortFunc(f.Places, func(a, b CommandPlace) int {
		return cmp.Or(cmp.Compare(b.Seen, a.Seen), cmp.Compare(a.Repository, b.Repository), cmp.Compare(a.Workflow, b.Workflow), cmp.Compare(a.Job, b.Job))
	})
	f.Places = f.Places[:min(len(f.Places), maxPlaces)]
	f.Failures = slices.SortedFunc(maps.Keys(failures), func(a, b string) int {
		return cmp.Or(cmp.Compare(failures[b], failures[a]), cmp.Compare(a, b))
	})
	f.Failures = f.Failures[:min(len(f.Failures), maxFailures)]
	switch len(f.Places) {
	case 0:
		_, f.Prediction = l.foretell(Execution{Repo: repository, Step: f.Command, At: at})
		f.Seen = 0
	case 1:
		f.Prediction = f.Places[0].Prediction
	default:
		f.Prediction = together(f.Places)
	}
	return f, nil
}

// together is the forecast of a command that runs in several places: theirs, by how
// often each has run.
func together(places []CommandPlace) (p ci.Prediction) {
	var ms, n float64
	for _, v := range places {
		w := float64(max(v.Seen, 1))
		p.PFail += w * v.PFail
		ms += w * float64(v.ExpectedMS)
		n += w
		p.Seen += v.Seen
	}
	p.PFail, p.ExpectedMS = p.PFail/n, int64(ms/n)
	p.Low, p.High = wilson(p.PFail, n, 1.645)
	p.Reasons = append([]string{fmt.Sprintf("it runs in %d places", len(places))}, places[0].Reasons...)
	p.Reasons = p.Reasons[:min(len(p.Reasons), 3)]
	return p
}

// Counts are what was counted of the steps of a repository, or with Repository ""
// of all.
type Counts struct {
	Repository      string `json:"repository"`
	Successes       int64  `json:"successes"`
	Failures        int64  `json:"failures"`
	SuccessPatterns int    `json:"success_patterns"` // commands that have succeeded
	FailurePatterns int    `json:"failure_patterns"` // signatures of failures
	Lessons         int    `json:"lessons"`
}

// Count counts what was learned of each repository, or of one, and in all, which
// comes first.
func (l *Learner) Count(ctx context.Context, repository string) ([]Counts, error) {
	if l.off() {
		return nil, nil
	}
	lessons, err := l.Lessons(ctx, repository) // consumes
	if err != nil {
		return nil, err
	}
	of := map[string]int{}
	for _, v := range lessons {
		of[v.Repository]++
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []Counts
	var all Counts
	for _, repo := range slices.Sorted(maps.Keys(l.graphs)) {
		if repository != "" && repo != repository {
			continue
		}
		c := Counts{Repository: repo, Lessons: of[repo]}
		keys := keysOf(&Execution{Repo: repo})
		if k := l.model.at(&keys, levelRepo); k != nil {
			c.Successes, c.Failures = k.seen-k.fails, k.fails
		}
		for n := range l.graphs[repo].Nodes(graph.Cmd) {
			if n.OK > 0 {
				c.SuccessPatterns++
			}
		}
		for range l.graphs[repo].Nodes(graph.Signature) {
			c.FailurePatterns++
		}
		out = append(out, c)
		all.Successes += c.Successes
		all.Failures += c.Failures
		all.SuccessPatterns += c.SuccessPatterns
		all.FailurePatterns += c.FailurePatterns
		all.Lessons += c.Lessons
	}
	return append([]Counts{all}, out...), nil
}

// Lesson is what the record keeps of one.
type Lesson = store.Lesson

// Lessons lists the lessons of a repository that hold, the newest first; "" as in
// [Learner.Related].
func (l *Learner) Lessons(ctx context.Context, repository string) ([]Lesson, error) {
	if l.off() {
		return nil, nil
	}
	if _, err := l.Consume(ctx); err != nil {
		return nil, err
	}
	out, err := l.store.Lessons(ctx, repository, l.opt.Now())
	if err != nil {
		return nil, fmt.Errorf("learn: %w", err)
	}
	return out, nil
}
