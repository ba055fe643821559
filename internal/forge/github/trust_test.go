package github

import (
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/forge"
)

// A token of the whole installation would let what is read for one repository
// come out of another one of the same owner.
func TestAttackReadOfAnotherRepository(t *testing.T) {
	ctx := t.Context()
	s, _, r := server(t)
	s.Commit("octo/other", sha, map[string]string{"secret.yml": "x"})
	if _, err := r.File(ctx, "main.go", sha); err != nil {
		t.Fatal(err)
	}
	r.name = "other" // as if something had got mixed up
	var e *forge.Error
	if _, err := r.File(ctx, "secret.yml", sha); !errors.As(err, &e) || e.Status != http.StatusNotFound {
		t.Errorf("a token for octo/hello reads octo/other: %v", err)
	}
}

func TestAskedBeforeTrusting(t *testing.T) {
	ctx := t.Context()
	s, app, r := server(t)
	if v, err := r.Visibility(ctx); err != nil || v != "public" {
		t.Errorf("%q, %v", v, err)
	}
	s.Hide("octo/hello", "internal", "organization")
	if v, err := r.Visibility(ctx); err != nil || v != "internal" {
		t.Errorf("%q, %v", v, err)
	}
	if v, err := r.Shares(ctx); err != nil || v != "organization" {
		t.Errorf("%q, %v", v, err)
	}
	s.Role("octo/hello", "maintainer", "write")
	for login, want := range map[string]bool{"maintainer": true, "passer-by": false, "../x": false} {
		if may, err := r.MayWrite(ctx, login); err != nil || may != want {
			t.Errorf("%s may write: %v, %v", login, may, err)
		}
	}

	since := time.Now().Add(-time.Hour)
	body := []byte(`{"ref":"refs/heads/main","n":1}`)
	for _, guid := range []string{"d1", "d2", "d3", "d4", "d5"} {
		s.Send(guid, "push", body)
	}
	for _, c := range []struct {
		guid, event, body string
		want              bool
	}{
		{"d1", "push", `{"n": 1, "ref": "refs/heads/main"}`, true},
		{"d5", "push", string(body), true},
		{"d1", "workflow_dispatch", string(body), false},
		{"d1", "push", `{"ref":"refs/heads/main","n":2}`, false},
		{"d6", "push", string(body), false},
	} {
		if got, err := app.Delivered(ctx, c.guid, c.event, []byte(c.body), since); err != nil || got != c.want {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
}
