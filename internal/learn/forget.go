package learn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/hearth-ci/hearth/internal/graph"
	"github.com/hearth-ci/hearth/internal/store"
)

// ForgetResult counts what was, or would be, forgotten.
type ForgetResult struct {
	store.Forgotten
	Nodes    int `json:"nodes"`    // of the graph, with their edges
	Counters int `json:"counters"` // of the models: outcomes, durations, retries
}

// ForgetOptions change [Learner.Forget].
type ForgetOptions struct {
	// Text forgets what says it, instead of the whole repository: a command, a test, a
	// commit, a line. It is looked for as a part of names and texts, as it is written
	// and as commands are told apart.
	Text string
	// KeepRuns leaves runs on record, which may say what is forgotten.
	KeepRuns bool
	// DryRun only counts.
	DryRun bool
}

// minForget is how long a text has to be: a shorter one stands nearly everywhere.
const minForget = 3

// maxBranches bounds the branches whose counters are forgotten with a step.
const maxBranches = 10_000

var errDryRun = errors.New("this was a dry run")

// ErrRunsGoOn: a repository with runs that have not completed is not forgotten.
var ErrRunsGoOn = errors.New("runs of it have not completed")

// Forget removes what is known of a repository, or what of it says a text, and what
// hangs on that: nodes with their edges, failures with their signatures and lessons,
// predictions, decisions, tests, templates, counters, and the runs on record that say
// it. The database is written anew, so that its file has none of it any more; other
// processes forget it before they learn the next time. What stays are numbers in which
// it cannot be told from others: the counts of everything, and the weights of models.
func (l *Learner) Forget(ctx context.Context, repository string, o ForgetOptions) (ForgetResult, error) {
	var res ForgetResult
	if l == nil {
		return res, nil
	}
	if repository == "" {
		return res, errors.New("learn: forget: no repository is named")
	}
	f := store.Forget{Repository: repository, Runs: !o.KeepRuns}
	if text := strings.TrimSpace(o.Text); text != "" {
		if len(text) < minForget {
			return res, fmt.Errorf("learn: %q stands nearly everywhere: name more of it", text)
		}
		f.Texts = []string{text}
		if c := graph.Command(text); len(c) >= minForget && c != text {
			f.Texts = append(f.Texts, c)
		}
	}
	if !l.off() {
		if _, err := l.Consume(ctx); err != nil { // what is on record now teaches no more later
			return res, err
		}
	}
	branches, err := l.store.Branches(ctx, repository, maxBranches)
	if err != nil {
		return res, fmt.Errorf("learn: %w", err)
	}
	var runs []string
	if f.Runs {
		unfinished, err := l.store.Unfinished(ctx)
		if err != nil {
			return res, fmt.Errorf("learn: %w", err)
		}
		for _, r := range unfinished {
			if r.Repository == repository {
				return res, fmt.Errorf("learn: forget %s: %w", repository, ErrRunsGoOn)
			}
		}
		if runs, err = l.store.RunsToForget(ctx, f); err != nil {
			return res, fmt.Errorf("learn: %w", err)
		}
		if !o.DryRun {
			if err := l.store.ForgetRuns(ctx, runs); err != nil {
				return res, fmt.Errorf("learn: %w", err)
			}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	err = l.learn(ctx, func(tx *store.Learning) (int64, error) {
		res.Forgotten, err = tx.ForgetRows(f)
		if err != nil {
			return 0, err
		}
		l.epoch = tx.Epoch
		if len(f.Texts) == 0 {
			res.Nodes, res.Counters = l.forgetRepository(repository)
		} else if res.Nodes, res.Counters, err = l.forgetTexts(tx, &f, branches); err != nil {
			return 0, err
		}
		if o.DryRun {
			return 0, errDryRun
		}
		// Others read what they know anew.
		return tx.Cursor, tx.Save(store.Knowledge{}, tx.Cursor)
	})
	res.Runs = len(runs)
	switch {
	case errors.Is(err, errDryRun):
		return res, nil
	case err != nil:
		return res, fmt.Errorf("learn: forget: %w", err)
	}
	l.reset()
	if err := l.store.Rewrite(ctx); err != nil {
		return res, fmt.Errorf("learn: forget: %w", err)
	}
	return res, nil
}

// drop takes keys out of a map of counters.
func drop[V any](m map[uint64]V, dirty map[uint64]struct{}, gone func(key uint64, v V) bool) (n int) {
	maps.DeleteFunc(m, func(key uint64, v V) bool {
		if !gone(key, v) {
			return false
		}
		n++
		if dirty != nil {
			dirty[key] = struct{}{}
		}
		return true
	})
	return n
}

// forgetRepository takes what is a repository's own out of memory. The caller resets
// memory afterwards: what is counted beside is not kept right.
func (l *Learner) forgetRepository(repository string) (nodes, counters int) {
	owner := ownerOf(repository)
	if g := l.graphs[repository]; g != nil {
		nodes, _ = g.Len()
		delete(l.graphs, repository) // its rows are gone
	}
	counters = l.forgetCounters(func(o uint64, _ uint64) bool { return o == owner })
	counters += l.forgetLevels(func(v *level) bool { return v.Repo == repository })
	mine := func(key string) bool { repo, _ := ofRecordKey(key); return repo == repository }
	maps.DeleteFunc(l.greens, func(key string, _ []logRef) bool { return mine(key) })
	maps.DeleteFunc(l.templates.byID, func(key string, _ *template) bool { return mine(key) })
	maps.DeleteFunc(l.flakes.examples, func(key string, _ *flakeExample) bool { return mine(key) })
	return nodes, counters
}

// forgetCounters drops the counters of whom gone says.
func (l *Learner) forgetCounters(gone func(owner, key uint64) bool) (n int) {
	m := l.model
	mark := func(set *map[uint64]struct{}) map[uint64]struct{} {
		if *set == nil {
			*set = map[uint64]struct{}{}
		}
		return *set
	}
	n += drop(m.counters, mark(&m.dirty.counters), func(key uint64, c *counter) bool { return gone(c.owner, key) })
	n += drop(m.kin, mark(&m.dirty.kin), func(key uint64, k *kinship) bool { return gone(k.owner, key) })
	n += drop(l.durations.m, mark(&l.durations.dirty.keys), func(key uint64, w *window) bool { return gone(w.owner, key) })
	n += drop(l.retries.m, mark(&l.retries.dirty), func(key uint64, r *retried) bool { return gone(r.owner, key) })
	return n
}

// forgetLevels drops what is remembered of changes of level.
func (l *Learner) forgetLevels(gone func(*level) bool) int {
	return drop(l.shifts.m, l.shifts.dirty, func(_ uint64, v *level) bool { return gone(v) })
}

// forgetTexts takes what says a text out of memory, and what hangs on it.
func (l *Learner) forgetTexts(tx *store.Learning, f *store.Forget, branches []string) (nodes, counters int, err error) {
	says := func(s ...string) bool {
		return slices.ContainsFunc(s, func(s string) bool {
			return slices.ContainsFunc(f.Texts, func(text string) bool { return strings.Contains(strings.ToLower(s), strings.ToLower(text)) })
		})
	}
	keys := map[uint64]bool{}
	forget := func(x Execution) {
		k := keysOf(&x)
		if x.Step != "" {
			keys[k.level[levelStep]] = true
		} else {
			keys[k.level[levelJob]] = true
		}
		for _, b := range append([]string{""}, branches...) {
			x.Branch = b
			k := keysOf(&x)
			keys[k.level[levelBranch]] = true
		}
	}
	if g := l.graphs[f.Repository]; g != nil {
		var gone []string
		for n := range g.All() {
			if says(n.ID, n.Text) {
				gone = append(gone, n.ID)
			}
		}
		for _, id := range gone {
			if kind, name, _ := strings.Cut(id, ":"); kind == string(graph.Step) {
				if p := strings.SplitN(name, placeMark, 4); len(p) == 4 {
					forget(Execution{Repo: p[0], Workflow: p[1], Job: p[2], Step: p[3]})
				}
			}
			g.Remove(id)
		}
		nodes = len(gone)
		// A failure that nothing fails with any more hung on what is gone.
		left, err := tx.Signatures(f.Repository)
		if err != nil {
			return 0, 0, err
		}
		gone = gone[:0]
		for n := range g.Nodes(graph.Signature) {
			if !left[graph.Name(n.ID)] {
				gone = append(gone, n.ID)
			}
		}
		for _, id := range gone {
			g.Remove(id)
		}
		nodes += len(gone)
		for id := range l.flakes.examples {
			if repo, sig := ofRecordKey(id); repo == f.Repository && !left[sig] {
				delete(l.flakes.examples, id)
				l.flakes.dirty[id] = struct{}{}
			}
		}
	}
	counters = l.forgetCounters(func(_, key uint64) bool { return keys[key] })
	counters += l.forgetLevels(func(v *level) bool {
		return v.Repo == f.Repository && says(string(marshal(v)), v.Workflow, v.Job, v.Step)
	})
	for key := range keys {
		id := recordKey(f.Repository, strconv.FormatUint(key, 16))
		delete(l.greens, id)
		l.greensNew[id] = struct{}{}
	}
	for id, t := range l.templates.byID {
		if t.repo == f.Repository && says(strings.Join(t.tokens, " "), t.salt) {
			delete(l.templates.byID, id)
			l.templates.dirty[id] = struct{}{}
		}
	}
	return nodes, counters, nil
}
