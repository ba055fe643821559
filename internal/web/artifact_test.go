package web

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
)

type shelf []Artifact

func (s shelf) Artifacts(context.Context, ci.Run) ([]Artifact, error) { return s, nil }

func (s shelf) OpenArtifact(_ context.Context, _ ci.Run, id int64) (Artifact, io.ReadSeekCloser, error) {
	for _, a := range s {
		if a.ID == id {
			return a, nopCloser{bytes.NewReader([]byte("<script>alert(1)</script>"))}, nil
		}
	}
	return Artifact{}, nil, ErrNotFound
}

type nopCloser struct{ io.ReadSeeker }

func (nopCloser) Close() error { return nil }

// A run's page links to its artifacts, and what a machine made is a file to keep: no
// browser shows it, whatever it is called.
func TestAttackArtifactAsPage(t *testing.T) {
	m := &memory{changed: make(chan struct{}, 1)}
	m.runs = []ci.Run{{ID: ci.NewID(), Workflow: "CI", Event: "push", Repository: "o/r", Ref: "refs/heads/main", Status: ci.Completed, Conclusion: ci.Success,
		Created: time.Now()}}
	mux := http.NewServeMux()
	New(Config{Source: m, Artifacts: shelf{{ID: 7, Name: "<b>page.html", Job: "make\x1b[31m", File: "<b>page.html", Size: 25}},
		Log: slog.New(slog.DiscardHandler)}).Register(mux)
	s := httptest.NewServer(mux)
	defer s.Close()
	at := s.URL + "/runs/" + m.runs[0].ID
	_, page := get(t, at)
	if !strings.Contains(page, `/artifacts/7" download>&lt;b&gt;page.html</a> <span class="dim">25 B, by make</span>`) {
		t.Errorf("the page:\n%s", page)
	}
	resp, body := get(t, at+"/artifacts/7")
	h := resp.Header
	if resp.StatusCode != 200 || !strings.HasPrefix(h.Get("Content-Disposition"), "attachment;") || h.Get("Content-Type") != "application/octet-stream" ||
		h.Get("X-Content-Type-Options") != "nosniff" || !strings.HasPrefix(body, "<script>") {
		t.Errorf("%d %v %q", resp.StatusCode, h, body)
	}
	for _, other := range []string{"8", "x", "-1", "7/../8"} {
		if resp, _ := get(t, at+"/artifacts/"+other); resp.StatusCode != 404 {
			t.Errorf("artifact %s: %d", other, resp.StatusCode)
		}
	}
	if resp, _ := get(t, s.URL+"/runs/"+ci.NewID()+"/artifacts/7"); resp.StatusCode != 404 {
		t.Errorf("of another run: %d", resp.StatusCode)
	}
}
