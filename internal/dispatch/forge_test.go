package dispatch

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/store"
)

// elsewhere is a repository of a forge that is not GitHub, with one workflow. What it
// does not have must not be asked for.
type elsewhere struct {
	forge.Repo
	mu     sync.Mutex
	away   bool // it does not answer, once
	tokens []map[string]string
	shown  []forge.Check
}

// thatForge is the forge of a repository.
type thatForge struct{ repo *elsewhere }

func (f thatForge) Installation(context.Context, string, string) (int64, error) { return 7, nil }

func (f thatForge) Repo(int64, string, string) (forge.Repo, error) { return f.repo, nil }

func (f thatForge) Delivered(context.Context, string, string, []byte, time.Time) (bool, error) {
	return false, nil
}

func (f *elsewhere) Workflows(_ context.Context, sha string) ([]forge.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.away {
		f.away = false
		return nil, &forge.Error{Forge: "Elsewhere", Op: "files", Status: http.StatusBadGateway, Temporary: true, Err: context.DeadlineExceeded}
	}
	if sha != pushed1 {
		return nil, &forge.Error{Forge: "Elsewhere", Op: "files", Status: http.StatusNotFound}
	}
	return []forge.File{{Path: ".github/workflows/ci.yml", Content: []byte(passes)}}, nil
}

func (f *elsewhere) File(_ context.Context, name, _ string) ([]byte, error) {
	return nil, &forge.Error{Forge: "Elsewhere", Op: "file " + name, Status: http.StatusNotFound}
}

func (f *elsewhere) Token(_ context.Context, permissions map[string]string) (string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.tokens = append(f.tokens, permissions)
	return "a token of elsewhere", nil
}

func (f *elsewhere) CreateCheck(_ context.Context, c forge.Check) (int64, error) {
	return 1, f.UpdateCheck(context.Background(), 1, c)
}

func (f *elsewhere) UpdateCheck(_ context.Context, _ int64, c forge.Check) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.shown = append(f.shown, c)
	return nil
}

// The server works with whatever is a forge: a push becomes a run, its job gets a token
// of that forge, its check is shown there, and what it did not answer is asked again.
func TestAnotherForge(t *testing.T) {
	there := &elsewhere{away: true}
	s := newSite(t, func(c *Config) { c.Forge = thatForge{there} })
	if e := s.deliver("push", s.push(nil)); e.State != store.EventDone || !strings.HasPrefix(e.Detail, "push: 1 run; ") || e.Tries != 2 {
		t.Fatalf("%s after %d tries: %s", e.State, e.Tries, e.Detail)
	}
	s.settled()
	s.until("the run has ended", func() bool { return s.runs()[0].Status == ci.Completed })
	if runs := s.runs(); len(runs) != 1 || runs[0].Conclusion != ci.Success {
		t.Errorf("%+v", runs)
	}
	there.mu.Lock()
	defer there.mu.Unlock()
	if len(there.tokens) != 1 || there.tokens[0]["contents"] != "read" {
		t.Errorf("tokens were made with %v", there.tokens)
	}
	if jobs := s.ran(); len(jobs) != 1 || jobs[0].token != "a token of elsewhere" {
		t.Errorf("%+v", jobs)
	}
	last := forge.Check{}
	if n := len(there.shown); n > 0 {
		last = there.shown[n-1]
	}
	if last.Name != "Small / one" || last.SHA != pushed1 || last.Conclusion != ci.Success {
		t.Errorf("the check at last: %+v", last)
	}
	if len(s.gh.Checks()) > 0 {
		t.Error("GitHub was told")
	}
}
