package github

import (
	"context"
	"strings"
	"unicode/utf8"

	gh "github.com/google/go-github/v88/github"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge"
)

// Limits of GitHub's check runs.
const (
	maxCheckText   = 65535 // bytes of summary, and of text
	maxAnnotations = 50    // a request
)

// CreateCheck makes a check run and returns its id.
func (r *Repo) CreateCheck(ctx context.Context, c forge.Check) (int64, error) {
	var id int64
	batches := batch(c.Annotations)
	err := r.app.try(ctx, "create check "+c.Name, func() error {
		opts := gh.CreateCheckRunOptions{Name: cut(c.Name, 200), HeadSHA: c.SHA, Status: new(string(c.Status)), Output: output(c, batches[0])}
		if c.DetailsURL != "" {
			opts.DetailsURL = &c.DetailsURL
		}
		if c.ExternalID != "" {
			opts.ExternalID = &c.ExternalID
		}
		if !c.Started.IsZero() {
			opts.StartedAt = &gh.Timestamp{Time: c.Started}
		}
		if c.Status == ci.Completed {
			opts.Conclusion, opts.CompletedAt = new(string(c.Conclusion)), &gh.Timestamp{Time: c.Completed}
		}
		opts.Actions = actions(c)
		run, _, err := r.client.Checks.CreateCheckRun(ctx, r.owner, r.name, opts)
		id = run.GetID()
		return err
	})
	if err != nil {
		return 0, err
	}
	for _, b := range batches[1:] {
		if err := r.update(ctx, id, c, b); err != nil {
			return id, err
		}
	}
	return id, nil
}

// UpdateCheck changes a check run.
func (r *Repo) UpdateCheck(ctx context.Context, id int64, c forge.Check) error {
	for _, b := range batch(c.Annotations) {
		if err := r.update(ctx, id, c, b); err != nil {
			return err
		}
	}
	return nil
}

func (r *Repo) update(ctx context.Context, id int64, c forge.Check, annotations []forge.Annotation) error {
	return r.app.try(ctx, "update check "+c.Name, func() error {
		opts := gh.UpdateCheckRunOptions{Name: cut(c.Name, 200), Status: new(string(c.Status)), Output: output(c, annotations)}
		if c.DetailsURL != "" {
			opts.DetailsURL = &c.DetailsURL
		}
		if c.Status == ci.Completed {
			opts.Conclusion, opts.CompletedAt = new(string(c.Conclusion)), &gh.Timestamp{Time: c.Completed}
		}
		opts.Actions = actions(c)
		_, _, err := r.client.Checks.UpdateCheckRun(ctx, r.owner, r.name, id, opts)
		return err
	})
}

// FindCheck looks for a check run of ours by its external id, so that a server
// that died between making one and noting it does not make a second.
func (r *Repo) FindCheck(ctx context.Context, sha, name, externalID string) (id int64, err error) {
	err = r.app.try(ctx, "find check "+name, func() error {
		list, _, err := r.client.Checks.ListCheckRunsForRef(ctx, r.owner, r.name, sha,
			&gh.ListCheckRunsOptions{CheckName: &name, ListOptions: gh.ListOptions{PerPage: 100}})
		if err != nil {
			return err
		}
		for _, c := range list.CheckRuns {
			if c.GetExternalID() == externalID {
				id = c.GetID()
			}
		}
		return nil
	})
	return id, err
}

func actions(c forge.Check) []*gh.CheckRunAction {
	var out []*gh.CheckRunAction
	for _, a := range c.Actions {
		out = append(out, &gh.CheckRunAction{Label: a.Label, Description: a.Description, Identifier: a.Identifier})
	}
	return out
}

func batch(all []forge.Annotation) [][]forge.Annotation {
	all = all[:min(len(all), 1000)]
	out := [][]forge.Annotation{nil}
	for len(all) > 0 {
		n := min(len(all), maxAnnotations)
		if out[0] == nil {
			out[0] = all[:n]
		} else {
			out = append(out, all[:n])
		}
		all = all[n:]
	}
	return out
}

func output(c forge.Check, annotations []forge.Annotation) *gh.CheckRunOutput {
	if c.Title == "" {
		return nil
	}
	summary := c.Summary
	if summary == "" {
		summary = c.Title
	}
	o := &gh.CheckRunOutput{Title: new(cut(c.Title, 250)), Summary: new(cut(summary, maxCheckText))}
	if c.Text != "" {
		o.Text = new(cut(c.Text, maxCheckText))
	}
	for _, a := range annotations {
		if a.Path == "" || a.Message == "" {
			continue
		}
		level := map[string]string{"error": "failure", "warning": "warning"}[a.Level]
		if level == "" {
			level = "notice"
		}
		start := max(a.StartLine, 1)
		end := max(a.EndLine, start)
		g := &gh.CheckRunAnnotation{Path: &a.Path, StartLine: &start, EndLine: &end, AnnotationLevel: &level, Message: new(cut(a.Message, 60<<10))}
		if a.Title != "" {
			g.Title = new(cut(a.Title, 250))
		}
		if start == end && a.StartCol > 0 { // GitHub refuses columns across lines
			g.StartColumn = new(a.StartCol)
			g.EndColumn = new(max(a.EndCol, a.StartCol))
		}
		o.Annotations = append(o.Annotations, g)
	}
	return o
}

// cut shortens s to n bytes, not within a character.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	const mark = "…"
	s = s[:n-len(mark)]
	for len(s) > 0 && !utf8.ValidString(s[max(0, len(s)-4):]) && !utf8.RuneStart(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return strings.ToValidUTF8(s, "") + mark
}
