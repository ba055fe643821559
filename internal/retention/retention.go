// Package retention removes what is kept no longer: runs with their records and
// logs, deliveries, mirrors of actions, artifacts, caches, layers of container
// images, points in time, images and templates. What goes and what
// stays is config.Retention; how it is removed is the affair of the package that
// keeps it, in an order in which a process may die at any moment and the next
// pass goes on. This package chooses.
//
// # What never goes
//
// A run that has not completed, or has only just. A run from which nothing has
// been learned yet, while learning is on. A delivery that is not handled, or
// whose runs go on. A mirror, an image or a template that somebody uses: those
// say so by locks. What is learned: counters, signatures, the graph, lessons
// have bounds of their own; of predictions old ones become sums.
//
// # Whose runs go
//
// Limits by age, number and bytes are a repository's own: its oldest runs go,
// whatever others have. Where all together take too much, the repository that
// takes most loses its oldest, again and again, so that nobody pushes out
// anybody's runs but their own.
//
// # In a server
//
// [Keeper.Run] makes a pass now and then, at no fixed time, since several servers
// may share a database. A pass removes a bounded number of runs; where there is
// more, the next one follows soon. Every transaction is small: others write
// between them.
package retention

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/image"
	"github.com/hearth-ci/hearth/internal/learn"
	"github.com/hearth-ci/hearth/internal/point"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
)

// Keeper removes what is beyond its limits.
type Keeper struct {
	Store   *store.Store
	Learn   *learn.Learner // nil and off: nobody waits for records
	Images  string         // directory; "" is none
	Actions []string       // directories of mirrors
	Results *results.Store // artifacts and caches; nil is none
	// Containers is the directory of container images' layers; "" is none.
	Containers string
	Points     *point.Store // nil is none
	Limits     config.Retention
	Log        *slog.Logger
	Now        func() time.Time // nil: time.Now
}

// Item is something that was removed.
type Item struct {
	// Kind is run, delivery, payload (of a delivery that stays), action, artifact,
	// cache, upload (that nobody goes on with), container (a layer), point, image, layer, template, package,
	// leftover, machine or database.
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Repository string `json:"repository,omitempty"`
	Bytes      int64  `json:"bytes"`
	Why        string `json:"why"`
}

// Report says what a pass removed, or would.
type Report struct {
	DryRun  bool   `json:"dry_run"`
	Removed []Item `json:"removed"`
	Freed   int64  `json:"freed"` // bytes of all of them
	// Kept is what remains of runs.
	Kept struct {
		Runs  int   `json:"runs"`
		Bytes int64 `json:"bytes"`
	} `json:"kept"`
	Notes []string `json:"notes,omitempty"` // what could not be removed, and why
	More  bool     `json:"more"`            // AtMost was reached
}

func (r *Report) add(i Item) {
	r.Removed = append(r.Removed, i)
	r.Freed += i.Bytes
}

// Options of one pass.
type Options struct {
	DryRun bool // say what would go
	AtMost int  // runs; 0 is all
	// Wait is how long to wait for who builds an image; 0: as long as it takes.
	Wait time.Duration
	// Anew says that the database may be written anew if it cannot shrink
	// otherwise: see [store.Store.Shrink].
	Anew bool
}

const (
	// settled is how long ago a run must have ended: who waits for its end still
	// reads it, and its checks are being reported.
	settled = 10 * time.Minute
	// again is how long a delivery may come again; its id is known until then.
	again = 4 * 24 * time.Hour
	// keepPredictions is how many predictions of a repository stay as they were
	// made: as many as a report looks at.
	keepPredictions = 20_000
)

func (k *Keeper) now() time.Time {
	if k.Now != nil {
		return k.Now()
	}
	return time.Now()
}

// Pass removes what is beyond the limits, and reports it; also with an error,
// which names what could not be done: the rest was.
func (k *Keeper) Pass(ctx context.Context, o Options) (*Report, error) {
	r := &Report{DryRun: o.DryRun, Removed: []Item{}}
	var errs []error
	for _, part := range []func(context.Context, Options, *Report) error{k.runs, k.events, k.learned, k.actions, k.results,
		k.containers, k.points, k.images, k.database} {
		if ctx.Err() != nil {
			break
		}
		if err := part(ctx, o, r); err != nil {
			errs = append(errs, err)
		}
	}
	if ctx.Err() != nil {
		errs = []error{context.Cause(ctx)}
	}
	return r, errors.Join(errs...)
}

func (k *Keeper) runs(ctx context.Context, o Options, r *Report) error {
	if !o.DryRun {
		// What a process that died has begun.
		if err := k.Store.FinishRemovals(ctx); err != nil {
			return err
		}
	}
	learned, err := k.Learn.Learned(ctx)
	if err != nil {
		return err
	}
	all, err := k.Store.CompletedRuns(ctx)
	if err != nil {
		return err
	}
	going := choose(all, k.Limits, k.now(), learned)
	r.Kept.Runs = len(all)
	for _, v := range all {
		r.Kept.Bytes += v.Bytes
	}
	for i, c := range going {
		if o.AtMost > 0 && i == o.AtMost {
			r.More = true
			break
		}
		if ctx.Err() != nil {
			break
		}
		if !o.DryRun {
			err := k.Store.RemoveRun(ctx, c.ID)
			if errors.Is(err, store.ErrNotFound) {
				continue // another process was first
			}
			if err == nil {
				err = k.Store.FinishRemovals(ctx)
			}
			if err == nil && k.Results != nil {
				err = k.Results.RemoveRun(c.Repository, c.ID)
			}
			if err == nil && k.Points != nil {
				err = k.removePoints(ctx, c.ID)
			}
			if err != nil {
				return err
			}
		}
		r.add(Item{"run", c.ID, c.Repository, c.Bytes, c.why})
		r.Kept.Runs--
		r.Kept.Bytes -= c.Bytes
	}
	return nil
}

type chosen struct {
	store.KeptRun
	why string
}

// choose says which of the runs, which are sorted by their end, go: the oldest
// first. learned is the cursor up to which everything was learned from.
func choose(all []store.KeptRun, l config.Retention, now time.Time, learned int64) []chosen {
	why := make([]string, len(all))
	may := func(v store.KeptRun) bool { return now.Sub(v.Finished) > settled && v.Cursor <= learned }
	type owner struct {
		runs  []int // the oldest first
		bytes int64 // of those that stay
		next  int   // the first of runs that may still go
	}
	owners := map[string]*owner{}
	var total int64
	for i, v := range all {
		w := owners[v.Repository]
		if w == nil {
			w = &owner{}
			owners[v.Repository] = w
		}
		w.runs = append(w.runs, i)
	}
	for _, w := range owners {
		kept, full := 0, false
		for _, i := range slices.Backward(w.runs) {
			v := all[i]
			// What is older than one that there is no room for goes too.
			full = full || l.RepositoryBytes > 0 && kept > 0 && w.bytes+v.Bytes > int64(l.RepositoryBytes)
			reason := ""
			switch {
			case l.Age > 0 && now.Sub(v.Finished) > time.Duration(l.Age):
				reason = fmt.Sprintf("it ended more than %v ago", l.Age)
			case l.Runs > 0 && kept >= l.Runs:
				reason = fmt.Sprintf("%d newer runs of the repository are kept", kept)
			case full:
				reason = fmt.Sprintf("the repository's runs take more than %v", l.RepositoryBytes)
			}
			if reason != "" && may(v) {
				why[i] = reason
				continue
			}
			kept++
			w.bytes += v.Bytes
		}
		total += w.bytes
	}
	for l.Bytes > 0 && total > int64(l.Bytes) {
		var most *owner
		for _, w := range owners {
			for w.next < len(w.runs) && (why[w.runs[w.next]] != "" || !may(all[w.runs[w.next]])) {
				w.next++
			}
			if w.next < len(w.runs) && (most == nil || w.bytes > most.bytes) {
				most = w
			}
		}
		if most == nil {
			break // what is left may not go
		}
		i := most.runs[most.next]
		why[i] = fmt.Sprintf("all runs take more than %v, and this repository's most", l.Bytes)
		most.bytes -= all[i].Bytes
		total -= all[i].Bytes
	}
	var out []chosen
	for i, reason := range why {
		if reason != "" {
			out = append(out, chosen{all[i], reason})
		}
	}
	return out
}

func (k *Keeper) events(ctx context.Context, o Options, r *Report) error {
	all, err := k.Store.HandledEvents(ctx)
	if err != nil {
		return err
	}
	l, now := k.Limits, k.now()
	count, bytes := map[string]int{}, map[string]int64{}
	var remove, empty []string
	var items []Item
	for _, e := range slices.Backward(all) { // the newest first
		old := now.Sub(e.Received)
		why := ""
		switch {
		case l.Events > 0 && old > time.Duration(l.Events):
			why = fmt.Sprintf("it came more than %v ago", l.Events)
		case l.EventCount > 0 && count[e.Repository] >= l.EventCount && old > again:
			why = fmt.Sprintf("%d newer deliveries of the repository are kept", l.EventCount)
		}
		if why != "" {
			remove = append(remove, e.ID)
			items = append(items, Item{"delivery", e.ID, e.Repository, e.Bytes, why})
			continue
		}
		count[e.Repository]++
		if l.EventBytes > 0 && e.Bytes > 0 && bytes[e.Repository]+e.Bytes > int64(l.EventBytes) && old > settled {
			empty = append(empty, e.ID)
			items = append(items, Item{"payload", e.ID, e.Repository, e.Bytes, fmt.Sprintf("the repository's deliveries take more than %v", l.EventBytes)})
			continue
		}
		bytes[e.Repository] += e.Bytes
	}
	if !o.DryRun {
		if err := k.Store.RemoveEvents(ctx, remove); err != nil {
			return err
		}
		if err := k.Store.EmptyEvents(ctx, empty); err != nil {
			return err
		}
	}
	slices.Reverse(items)
	for _, i := range items {
		r.add(i)
	}
	return nil
}

// learned keeps the tables of what was learned within their bounds.
func (k *Keeper) learned(ctx context.Context, o Options, _ *Report) error {
	if o.DryRun {
		return nil
	}
	for {
		n, err := k.Store.FoldPredictions(ctx, keepPredictions)
		if err != nil {
			return err
		}
		if n == 0 {
			return k.Store.DropExpiredLessons(ctx, k.now())
		}
	}
}

func (k *Keeper) actions(ctx context.Context, o Options, r *Report) error {
	var errs []error
	for _, dir := range k.Actions {
		removed, err := action.Trim(ctx, dir, action.Limits{Unused: time.Duration(k.Limits.Actions), Bytes: int64(k.Limits.ActionBytes), DryRun: o.DryRun})
		for _, m := range removed {
			r.add(Item{Kind: "action", Name: m.Name, Bytes: m.Bytes, Why: m.Why})
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("mirrors of actions: %w", err))
		}
	}
	return errors.Join(errs...)
}

// results removes artifacts that have expired and caches that nobody uses.
func (k *Keeper) results(ctx context.Context, o Options, r *Report) error {
	if k.Results == nil {
		return nil
	}
	removed, err := k.Results.Sweep(ctx, results.SweepOptions{Unused: time.Duration(k.Limits.Caches), Bytes: int64(k.Limits.ResultBytes), DryRun: o.DryRun})
	for _, v := range removed {
		r.add(Item{v.Kind, v.Name, v.Repository, v.Bytes, v.Why})
	}
	if err != nil {
		return fmt.Errorf("artifacts and caches: %w", err)
	}
	return nil
}

// containers removes layers that nobody pulls any more.
func (k *Keeper) containers(_ context.Context, o Options, r *Report) error {
	if k.Containers == "" {
		return nil
	}
	removed, err := registry.Trim(k.Containers,
		registry.Limits{Unused: time.Duration(k.Limits.Containers), Bytes: int64(k.Limits.ContainerBytes), DryRun: o.DryRun})
	for _, v := range removed {
		r.add(Item{Kind: "container", Name: v.Digest + " from " + v.Registry, Bytes: v.Bytes, Why: v.Why})
	}
	if err != nil {
		return fmt.Errorf("layers of container images: %w", err)
	}
	return nil
}

// removePoints removes a run's points with it.
func (k *Keeper) removePoints(ctx context.Context, run string) error {
	all, err := k.Points.Of(ctx, run)
	for _, m := range all {
		err = errors.Join(err, k.Points.Remove(m.ID))
	}
	return err
}

// points removes points that are old, and those that there is no room for.
func (k *Keeper) points(ctx context.Context, o Options, r *Report) error {
	if k.Points == nil {
		return nil
	}
	removed, err := k.Points.Trim(ctx, o.DryRun)
	for _, v := range removed {
		r.add(Item{Kind: "point", Name: v.Name, Bytes: v.Bytes, Why: v.Why})
	}
	if err != nil {
		return fmt.Errorf("points: %w", err)
	}
	return nil
}

func (k *Keeper) images(ctx context.Context, o Options, r *Report) error {
	if k.Images == "" {
		return nil
	}
	waiting := ctx
	if o.Wait > 0 {
		var cancel context.CancelFunc
		waiting, cancel = context.WithTimeoutCause(ctx, o.Wait, errBusy)
		defer cancel()
	}
	removed, err := image.GC(waiting, k.Images, image.Limits{Unused: time.Duration(k.Limits.Images), Bytes: int64(k.Limits.ImageBytes), DryRun: o.DryRun})
	for _, v := range removed {
		r.add(Item{Kind: v.Kind, Name: v.Name, Bytes: v.Bytes, Why: v.Why})
	}
	if errors.Is(err, errBusy) {
		r.Notes = append(r.Notes, "images were left as they are: "+errBusy.Error())
		return nil
	}
	if err != nil {
		return fmt.Errorf("images: %w", err)
	}
	return nil
}

var errBusy = errors.New("an image is being built")

func (k *Keeper) database(ctx context.Context, o Options, r *Report) error {
	space, err := k.Store.Space(ctx)
	if err != nil {
		return err
	}
	if o.DryRun {
		return nil // what the runs above take is counted with them
	}
	// A little room is for rows to come, and not worth the work.
	if space.Free < max(4<<20, space.Used/50) {
		return nil
	}
	n, err := k.Store.Shrink(ctx, o.Anew)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil { // the rows are gone; others may be writing just now
		r.Notes = append(r.Notes, fmt.Sprintf("the database's file did not become shorter: %v", err))
		return nil
	}
	if n > 0 {
		// Not counted again: it is what the rows took.
		r.Notes = append(r.Notes, fmt.Sprintf("the database's file became %d MiB shorter", n>>20))
	} else {
		r.Notes = append(r.Notes, fmt.Sprintf("%d MiB in the database's file are free for rows to come; `hearth gc` writes it anew while no server runs",
			space.Free>>20))
	}
	return nil
}

// How a server works.
const (
	runsAtOnce = 200
	pause      = 10 * time.Second // between passes while there is more
	imageWait  = 5 * time.Second
)

// Run makes passes until ctx is done: the first one soon, then each after
// Limits.Every, give or take a tenth. 0 makes none.
func (k *Keeper) Run(ctx context.Context) {
	every := time.Duration(k.Limits.Every)
	if every <= 0 {
		return
	}
	for next := jitter(min(every, 5*time.Minute)); ; {
		t := time.NewTimer(next)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
		next = jitter(every)
		r, err := k.Pass(ctx, Options{AtMost: runsAtOnce, Wait: imageWait})
		if ctx.Err() != nil {
			return
		}
		if r.More {
			next = min(pause, next)
		}
		if err != nil {
			k.Log.Error("not everything that is kept no longer could be removed; trying again", "err", err)
		}
		for _, n := range r.Notes {
			k.Log.Debug("retention", "reason", n)
		}
		if len(r.Removed) > 0 {
			k.Log.Info("removed what is kept no longer", "removed", len(r.Removed), "kind", Kinds(r.Removed), "bytes", r.Freed, "runs_kept", r.Kept.Runs,
				"run_bytes_kept", r.Kept.Bytes)
		}
	}
}

// jitter is d give or take a tenth.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(max(d/5, 1))
}

// Kind is how much of a kind there is.
type Kind struct {
	Name  string
	Count int
	Bytes int64
}

// Kinds adds items up by kind, in the order of their names.
func Kinds(items []Item) []Kind {
	var out []Kind
	for _, v := range items {
		i := slices.IndexFunc(out, func(k Kind) bool { return k.Name == v.Kind })
		if i < 0 {
			i = len(out)
			out = append(out, Kind{Name: v.Kind})
		}
		out[i].Count++
		out[i].Bytes += v.Bytes
	}
	slices.SortFunc(out, func(a, b Kind) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// String is the kind with its count.
func (k Kind) String() string { return fmt.Sprintf("%d×%s", k.Count, k.Name) }
