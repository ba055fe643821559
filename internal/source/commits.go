package source

import (
	"context"
	"strings"

	"github.com/hearth-ci/hearth/internal/git"
)

// Change is a commit, or what is not committed, with the paths that it changes.
type Change struct {
	SHA     string // "": what is not committed
	Subject string
	Author  string // address
	Files   []string
	Lines   int // added and removed; -1: not counted
}

// maxChangePaths bounds the paths of a Change.
const maxChangePaths = 300

// Since lists what the working tree has since a commit: what is not committed, then
// its commits, the newest first, at most so many.
func (d *Dir) Since(ctx context.Context, since string, most int) (out []Change, err error) {
	r, err := git.Open(ctx, d.Root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	head := "HEAD"
	if d.At != "" {
		head = d.At // what lies in Root is something else
	} else if now, err := r.Changed(ctx, head); err == nil && len(now) > 0 {
		out = append(out, Change{Files: now[:min(len(now), maxChangePaths)], Lines: -1})
	}
	if !git.ObjectID(since) {
		return out, nil
	}
	shas, _ := r.Since(ctx, since, head, most)
	for _, sha := range shas {
		c := r.Commit(ctx, sha)
		subject, _, _ := strings.Cut(c.Message, "\n")
		v := Change{SHA: sha, Subject: subject, Author: c.Author.Email}
		if v.Files, v.Lines, err = r.Touched(ctx, sha, maxChangePaths); err != nil {
			return out, err
		}
		out = append(out, v)
	}
	return out, nil
}
