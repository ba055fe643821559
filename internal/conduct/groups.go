package conduct

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/hearth-ci/hearth/internal/plan"
)

// Groups are the concurrency groups of one process: of each, one holder at a
// time. A group is of a scope, a repository: the same name in another one is
// another group. Letters' case does not count. With queue "single" the newest one waits and those that waited before
// are cancelled; with "max" all wait in order.
type Groups struct {
	mu sync.Mutex
	m  map[groupKey]*group
}

type groupKey struct{ scope, name string } // in lower case

type group struct {
	holder  *holder
	waiting []*holder
}

type holder struct {
	cancel func(reason string)
	turn   chan struct{} // closed when it holds the group
	out    chan string   // gets the reason when it is cancelled while it waits
}

// NewGroups returns an empty set of groups.
func NewGroups() *Groups { return &Groups{m: map[groupKey]*group{}} }

// place is a place in a group: held, or in the line.
type place struct {
	g   *Groups
	key groupKey
	me  *holder // nil is no group
}

// enter takes a place in the group of a scope, behind those that came before. It never
// waits. cancel is called, at most once, when a newcomer with cancel-in-progress
// wants the holder to stop.
func (g *Groups) enter(scope string, want plan.Group, cancel func(reason string)) place {
	if want.Name == "" {
		return place{}
	}
	key := groupKey{strings.ToLower(scope), strings.ToLower(want.Name)}
	var once sync.Once
	me := &holder{
		cancel: func(reason string) { once.Do(func() { cancel(reason) }) },
		turn:   make(chan struct{}),
		out:    make(chan string, 1),
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	gr := g.m[key]
	if gr == nil {
		gr = &group{}
		g.m[key] = gr
	}
	if gr.holder == nil {
		gr.holder = me
		close(me.turn)
	} else {
		if want.Queue != "max" {
			for _, w := range gr.waiting {
				w.out <- fmt.Sprintf("a newer one waits for the concurrency group %q", want.Name)
			}
			gr.waiting = nil
		}
		if want.CancelInProgress {
			gr.holder.cancel(fmt.Sprintf("a newer one took the concurrency group %q", want.Name))
		}
		gr.waiting = append(gr.waiting, me)
	}
	return place{g, key, me}
}

// held reports whether it is the place's turn.
func (p place) held() bool {
	if p.me == nil {
		return true
	}
	select {
	case <-p.me.turn:
		return true
	default:
		return false
	}
}

// wait waits for the place's turn and holds the group until release is called.
// The error says why the group was not to be had.
func (p place) wait(ctx context.Context) (release func(), err error) {
	if p.me == nil {
		return func() {}, nil
	}
	release = sync.OnceFunc(func() { p.g.release(p.key, p.me) })
	select {
	case <-p.me.turn:
		return release, nil
	case reason := <-p.me.out:
		return nil, errors.New(reason)
	case <-ctx.Done():
		release()
		return nil, context.Cause(ctx)
	}
}

// Hold waits for the group and holds it until release is called: see
// [Groups.enter] for cancel. The error says why the group was not to be had.
func (g *Groups) Hold(ctx context.Context, scope string, want plan.Group, cancel func(reason string)) (release func(), err error) {
	return g.enter(scope, want, cancel).wait(ctx)
}

// release gives the group to the next one, or takes a waiting one out.
func (g *Groups) release(key groupKey, me *holder) {
	g.mu.Lock()
	defer g.mu.Unlock()
	gr := g.m[key]
	if gr == nil {
		return
	}
	if gr.holder != me {
		for i, w := range gr.waiting {
			if w == me {
				gr.waiting = append(gr.waiting[:i], gr.waiting[i+1:]...)
				return
			}
		}
		return
	}
	if len(gr.waiting) == 0 {
		delete(g.m, key)
		return
	}
	gr.holder, gr.waiting = gr.waiting[0], gr.waiting[1:]
	close(gr.holder.turn)
}
