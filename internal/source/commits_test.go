package source

import (
	"slices"
	"strings"
	"testing"
)

// TestSince: what a tree has since a commit is what is not committed, and its commits
// with what each changes.
func TestSince(t *testing.T) {
	d := repository(t)
	first := strings.TrimSpace(run(t, d.Root, "git", "rev-parse", "HEAD~1"))
	got, err := d.Since(t.Context(), first, 10)
	if err != nil || len(got) != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	if now := got[0]; now.SHA != "" || now.Lines != -1 || !slices.Contains(now.Files, "a.txt") || !slices.Contains(now.Files, "a file\nwith newline") ||
		slices.Contains(now.Files, "x.o") {
		t.Errorf("what is not committed: %+v", now)
	}
	if c := got[1]; len(c.SHA) != 40 || c.Subject != "second" || !slices.Equal(c.Files, []string{"a.txt"}) || c.Lines != 2 ||
		!strings.Contains(c.Author, "@") {
		t.Errorf("%+v", c)
	}
	// A tag's run has nothing to do with the working tree.
	d.At = "refs/tags/v1"
	if got, err := d.Since(t.Context(), first, 10); err != nil || len(got) != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	d.At = ""
	if got, err := d.Since(t.Context(), "--output=/tmp/x", 10); err != nil || len(got) != 1 {
		t.Errorf("what is no commit: %+v, %v", got, err)
	}
}
