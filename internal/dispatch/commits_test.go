package dispatch

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/hearth-ci/hearth/internal/forge"
)

// line is a forge's repository whose commits are numbered, each the parent of the next.
type line struct{ forge.Repo }

func (line) Commit(_ context.Context, sha string) (forge.Commit, error) {
	n := 0
	if _, err := fmt.Sscan(sha, &n); err != nil {
		return forge.Commit{}, errors.New("no such commit")
	}
	c := forge.Commit{SHA: sha, Message: "subject " + sha + "\n\nbody", Author: forge.Person{Email: "a@example.org"}}
	if n > 1 {
		c.Parents = []string{fmt.Sprint(n - 1), "other"}
	}
	return c, nil
}

func (line) CommitFiles(_ context.Context, sha string) ([]string, bool, error) {
	return []string{"f" + sha}, true, nil
}

func TestCommitsOf(t *testing.T) {
	for _, c := range []struct {
		head, since string
		want        int
	}{{"9", "6", 3}, {"9", "9", 0}, {"3", "unknown", 3}, {"99", "1", askedCommits}} {
		got, err := commitsOf(line{}, c.head)(t.Context(), c.since)
		if err != nil || len(got) != c.want {
			t.Fatalf("from %s to %s: %+v, %v", c.since, c.head, got, err)
		}
		if c.want > 0 && (got[0].SHA != c.head || got[0].Subject != "subject "+c.head || got[0].Files[0] != "f"+c.head || got[0].Lines != -1) {
			t.Errorf("%+v", got[0])
		}
	}
	if _, err := commitsOf(line{}, "x")(t.Context(), "1"); err == nil {
		t.Error("a forge that does not answer is no error")
	}
}
