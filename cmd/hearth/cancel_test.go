package main

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/store"
)

// What is to end is noted where the server that drives it looks; what cannot be ended
// is said.
func TestCancel(t *testing.T) {
	home := t.TempDir()
	t.Setenv("HEARTH_HOME", home)
	s, err := store.Open(t.Context(), home+"/state/hearth.db")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	stored := func(r ci.Run) ci.Run {
		t.Helper()
		r.Repository, r.File = "o/r", "ci.yml"
		r, _, err := s.CreateRun(t.Context(), r, nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	served, own := stored(ci.Run{EventID: "e"}), stored(ci.Run{})
	over := stored(ci.Run{EventID: "e", Status: ci.Completed, Conclusion: ci.Success})
	for _, c := range []struct {
		id, says string
		code     int
	}{
		{served.ID, "is to end", 0},
		{own.ID, "Ctrl-C", 2},
		{over.ID, "has ended", 2},
		{ci.NewID(), "there is no run", 2},
	} {
		var out, said bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &said, getenv: os.Getenv}
		if code := a.main(t.Context(), []string{"cancel", c.id}); code != c.code || !strings.Contains(said.String(), c.says) {
			t.Errorf("%s: %d %s", c.says, code, said.String())
		}
	}
	all, err := s.Cancelled(t.Context())
	if err != nil || len(all) != 1 || !strings.HasPrefix(all[served.ID], "cancelled by ") {
		t.Errorf("%v %v", all, err)
	}
}
