package main

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
)

// TestServeForgets: a server removes by itself what is kept no longer, and stops
// in order while it may be at it.
func TestServeForgets(t *testing.T) {
	if os.Getenv("HEARTH_SLOW") == "" {
		t.Skip("a minute: set HEARTH_SLOW=1; the passes themselves are tested in internal/retention")
	}
	p := newPlace(t, "on: push\njobs: {}\n")
	t.Setenv("HEARTH_RETENTION_EVERY", "1m")
	t.Setenv("HEARTH_RETENTION_IMAGES", "0")
	t.Setenv("HEARTH_RETENTION_IMAGE_BYTES", "0")
	mirror := filepath.Join(p.home, "cache", "serve", "actions", "old", "action.git")
	if err := os.MkdirAll(mirror, 0o700); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-40 * 24 * time.Hour)
	if err := os.Chtimes(mirror, past, past); err != nil {
		t.Fatal(err)
	}
	gh := githubtest.New()
	defer gh.Close()
	s := p.serve(gh)
	for until := time.Now().Add(3 * time.Minute); ; time.Sleep(time.Second) {
		if _, err := os.Stat(mirror); os.IsNotExist(err) {
			break
		}
		if time.Now().After(until) {
			t.Fatalf("the mirror is still there\n%s", s.said())
		}
	}
	if code := s.end(syscall.SIGTERM); code != 0 && code != exitCancelled {
		t.Errorf("it ended with %d\n%s", code, s.said())
	}
	t.Log(s.said())
}
