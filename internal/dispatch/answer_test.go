package dispatch

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/board"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/store"
)

// TestWhatIsRefused: which answers of the forge end a check's sending, which try
// again without its texts, and which wait.
func TestWhatIsRefused(t *testing.T) {
	s, err := store.Open(t.Context(), t.TempDir()+"/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := &reporter{d: &Dispatcher{cfg: Config{Retry: time.Second, Store: s}, log: slog.New(slog.DiscardHandler)}, lane: &lane{}}
	for _, c := range []struct {
		code      int
		bare      bool
		status    ci.Status
		over      bool
		sent      ci.Status
		wantsBare bool
		waits     bool
	}{
		{0, false, ci.InProgress, false, ci.InProgress, false, false},
		{0, false, ci.Completed, true, ci.Completed, false, false},
		{422, false, ci.Completed, false, "", true, false},
		{400, false, ci.InProgress, false, "", true, false},
		{422, true, ci.Completed, true, "", true, false},
		{400, true, ci.Completed, true, "", true, false},
		{422, true, ci.InProgress, false, ci.InProgress, true, false},
		{404, false, ci.Completed, true, "", false, false},
		{404, false, ci.InProgress, false, ci.InProgress, false, false},
		{410, false, ci.Completed, true, "", false, false},
		{401, false, ci.Completed, false, "", false, true},
		{423, true, ci.Completed, false, "", true, true},
		{500, false, ci.Completed, false, "", false, true},
	} {
		var err error
		if c.code != 0 {
			err = &forge.Error{Status: c.code}
		}
		ch := &check{id: "x", bare: c.bare, tries: 2}
		r.sent(ch, forge.Check{Status: c.status}, err)
		if ch.over != c.over || ch.sent != c.sent || ch.bare != c.wantsBare || ch.after.IsZero() == c.waits {
			t.Errorf("%d (bare %v) to %s: %+v", c.code, c.bare, c.status, ch)
		}
		if tries := map[bool]int{true: 3, false: 2}[c.waits]; c.code != 0 && ch.tries != tries || c.code == 0 && ch.tries != 0 {
			t.Errorf("%d: %d tries", c.code, ch.tries)
		}
	}
}

// shared is a repository of which only the sharing of its workflows is asked.
type shared struct {
	forge.Repo
	visibility, level string
	seen, levels      error
}

func (s *shared) Visibility(context.Context) (string, error) { return s.visibility, s.seen }
func (s *shared) Shares(context.Context) (string, error)     { return s.level, s.levels }

// only is a forge that has nothing but one repository.
type only struct{ repo forge.Repo }

func (o only) Installation(context.Context, string, string) (int64, error) { return 1, nil }
func (o only) Repo(int64, string, string) (forge.Repo, error)              { return o.repo, nil }
func (o only) Delivered(context.Context, string, string, []byte, time.Time) (bool, error) {
	return false, nil
}

// TestMayRead: whose workflows a repository may call, and with which rights they are
// read.
func TestMayRead(t *testing.T) {
	for _, c := range []struct {
		name              string
		own               string // visibility of the caller
		other             string
		trust             trust
		visibility, level string
		seen, levels      error
		rights            bool
		err               string
	}{
		{name: "public", own: "public", other: "o/b", visibility: "public", rights: true},
		{name: "of somebody else", own: "private", other: "p/b", visibility: "public"},
		{name: "of a fork", own: "private", other: "o/b", trust: ofFork, visibility: "private", level: "user"},
		{name: "not served", own: "private", other: "o/unserved", visibility: "private", level: "user"},
		{name: "not installed", own: "private", other: "o/b", seen: &forge.Error{Status: 404}},
		{name: "cannot be asked", own: "private", other: "o/b", seen: &forge.Error{Status: 500}, err: "500"},
		{name: "private, user", own: "private", other: "O/b", visibility: "private", level: "user", rights: true},
		{name: "private, organization", own: "private", other: "o/b", visibility: "private", level: "organization", rights: true},
		{name: "private, enterprise", own: "private", other: "o/b", visibility: "private", level: "enterprise", rights: true},
		{name: "private, none", own: "private", other: "o/b", visibility: "private", level: "none", err: "does not let other repositories use its workflows"},
		{name: "private to public", own: "public", other: "o/b", visibility: "private", level: "user", err: "its workflows are for private repositories of o only"},
		{name: "private to internal", own: "internal", other: "o/b", visibility: "private", level: "user",
			err: "its workflows are for private repositories of o only"},
		{name: "internal to internal", own: "internal", other: "o/b", visibility: "internal", level: "enterprise", rights: true},
		{name: "internal to private", own: "private", other: "o/b", visibility: "internal", level: "organization", rights: true},
		{name: "internal to public", own: "public", other: "o/b", visibility: "internal", level: "organization",
			err: "its workflows are for internal repositories of o only"},
		{name: "no permission", own: "private", other: "o/b", visibility: "private", levels: &forge.Error{Status: 403}, err: "administration: read"},
		{name: "a rate limit", own: "private", other: "o/b", visibility: "private", levels: &forge.Error{Status: 403, Temporary: true}, err: "403"},
		{name: "an error", own: "private", other: "o/b", visibility: "private", levels: errors.New("no route"), err: "no route"},
	} {
		f := &shared{visibility: c.visibility, level: c.level, seen: c.seen, levels: c.levels}
		d := &Dispatcher{cfg: Config{Forge: only{f}, Policy: func(repository string) (config.Policy, bool) { return config.Policy{}, repository != "o/unserved" }}}
		var p payload
		p.Repository.FullName, p.Repository.Private, p.Repository.Visibility = "o/a", c.own != "public", c.own
		rights, err := d.mayRead(t.Context(), p, c.trust, c.other)
		if rights != c.rights || (err == nil) != (c.err == "") {
			t.Errorf("%s: %v %v", c.name, rights, err)
		}
		if err != nil && c.err != "403" && c.err != "500" && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
		if permission := err != nil && strings.Contains(err.Error(), "administration: read"); permission != (c.name == "no permission") {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestWorthAnotherTry: which events are worth another try, and how long they wait for it.
func TestWorthAnotherTry(t *testing.T) {
	d := &Dispatcher{cfg: Config{Retry: time.Second, GiveUp: time.Hour}}
	fresh, old := time.Now().Add(-time.Minute), time.Now().Add(-2*time.Hour)
	stopped, stop := context.WithCancel(t.Context())
	stop()
	for i, c := range []struct {
		ctx      context.Context
		received time.Time
		tries    int
		err      error
		again    bool
		least    time.Duration
	}{
		{t.Context(), fresh, 1, &forge.Error{Status: 502, Temporary: true}, true, time.Second},
		{t.Context(), fresh, 0, &forge.Error{Status: 502, Temporary: true}, true, time.Second},
		{t.Context(), fresh, 4, &forge.Error{Status: 502, Temporary: true}, true, 8 * time.Second},
		{t.Context(), fresh, 60, &forge.Error{Status: 502, Temporary: true}, true, 10 * time.Minute},
		{t.Context(), fresh, 1, &forge.Error{Status: 403, Temporary: true, RetryAfter: time.Minute}, true, time.Minute},
		{t.Context(), fresh, 1, &forge.Error{Status: 404}, false, 0},
		{t.Context(), old, 1, &forge.Error{Status: 502, Temporary: true}, false, 0},
		{t.Context(), fresh, 1, context.DeadlineExceeded, true, time.Second},
		{t.Context(), fresh, 1, errors.New("the disk is full"), true, time.Second},
		{t.Context(), fresh, 1, refuse("no"), false, 0},
		{stopped, old, 1, refuse("no"), true, 0},
	} {
		again, wait := d.again(c.ctx, store.StoredEvent{Event: ci.Event{Received: c.received}, Tries: c.tries}, c.err)
		if again != c.again || wait < c.least || wait > c.least*2 {
			t.Errorf("%d: %v after %v, want %v after %v", i, again, wait, c.again, c.least)
		}
	}
}

// TestCommitNames: what is a commit's full name.
func TestCommitNames(t *testing.T) {
	for name, want := range map[string]bool{
		strings.Repeat("0a", 20): true, strings.Repeat("f9", 32): true, strings.Repeat("0", 39): false, strings.Repeat("0", 41): false,
		strings.Repeat("0", 63): false,
		strings.Repeat("0", 65): false, "": false, strings.Repeat("0A", 20): false, strings.Repeat("0g", 20): false, strings.Repeat("0", 39) + "/": false,
	} {
		if validSHA(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	if status(&forge.Error{Status: 404}) != 404 || status(errors.New("x")) != 0 || status(nil) != 0 {
		t.Error("status")
	}
}

// TestWhere: a check's title names the step that failed, and no other; an annotation
// says as much of its place as is known.
func TestWhere(t *testing.T) {
	j := board.Job{Status: ci.Completed, Conclusion: ci.Failure, Reason: "the job's reason", Steps: []*board.Step{
		{Number: 1, Name: "fine", Conclusion: ci.Success}, {Number: 2, Name: "skipped", Conclusion: ci.Skipped},
	}}
	if got := title(&j, "failure"); got != "Failure: the job's reason" {
		t.Error(got)
	}
	for _, c := range []struct {
		step board.Step
		want string
	}{
		{board.Step{Number: 3, Name: "bad", Conclusion: ci.Failure, ExitCode: 7}, "Failure: step 3, bad: exit code 7"},
		{board.Step{Number: 3, Name: "late", Conclusion: ci.TimedOut, Reason: "out of time"}, "Failure: step 3, late: out of time"},
		{board.Step{Number: 3, Name: "lost", Conclusion: ci.Cancelled, Infrastructure: true, Reason: "lost"}, "Failure: step 3, lost: lost"},
		{board.Step{Number: 3, Name: "stopped", Conclusion: ci.Cancelled}, "Failure: the job's reason"},
	} {
		own := j
		own.Steps = append(own.Steps[:2:2], &c.step)
		if got := title(&own, "failure"); got != c.want {
			t.Errorf("%q, want %q", got, c.want)
		}
	}
	for want, n := range map[string]ci.Record{"f": {File: "f"}, "f:3": {File: "f", Line: 3}, "f:3:4": {File: "f", Line: 3, Column: 4},
		"g": {File: "g", Column: 4}} {
		if got := place(n); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
