package main

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/registry"
	"github.com/hearth-ci/hearth/internal/registry/registrytest"
	"github.com/hearth-ci/hearth/internal/retention"
	"github.com/hearth-ci/hearth/internal/store"
)

// TestGC is what somebody types who wants their disk back.
func TestGC(t *testing.T) {
	home := t.TempDir()
	env := map[string]string{"HEARTH_HOME": home}
	hearth := func(args ...string) (code int, out, errs string) {
		t.Helper()
		var o, e bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &o, err: &e, getenv: func(k string) string { return env[k] }}
		code = a.main(t.Context(), args)
		return code, o.String(), e.String()
	}
	dirs, err := config.FindDirs(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	record := func(repository string, ended time.Duration) string {
		t.Helper()
		s, err := store.Open(t.Context(), dirs.Database(), store.WithLogs(dirs.Logs()))
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		at := time.Now().Add(-ended)
		run, _, err := s.CreateRun(t.Context(), ci.Run{Repository: repository, File: "ci.yml", Created: at}, []ci.Job{{Key: "j", Job: "j"}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		r, err := s.Recorder(context.Background(), run.ID)
		if err != nil {
			t.Fatal(err)
		}
		for range 30_000 {
			r.Emit(ci.Record{Time: at, Type: ci.LogLine, Job: "j", Step: 1, Text: strings.Repeat("x", 100)})
		}
		r.Emit(ci.Record{Time: at, Type: ci.RunFinished, Conclusion: ci.Success})
		if err := r.Close(); err != nil {
			t.Fatal(err)
		}
		return run.ID
	}
	old, fresh := record("o/r", 100*24*time.Hour), record("o/r", 3*time.Hour)
	mirror := filepath.Join(serveActions(dirs), "actions", "checkout.git")
	if err := os.MkdirAll(mirror, 0o700); err != nil {
		t.Fatal(err)
	}
	past := time.Now().Add(-40 * 24 * time.Hour)
	if err := os.Chtimes(mirror, past, past); err != nil {
		t.Fatal(err)
	}
	code, out, errs := hearth("gc", "--dry-run")
	if code != 0 || !strings.Contains(out, "would remove  run     "+old+" of o/r") || !strings.Contains(out, "it ended more than 90d ago") ||
		!strings.Contains(out, "actions/checkout") || strings.Contains(out, fresh) {
		t.Fatalf("%d %s %s", code, out, errs)
	}
	for _, args := range [][]string{{"gc", "--age", "yesterday"}, {"gc", "--bytes", "5"}, {"gc", "now"}} {
		if code, _, errs := hearth(args...); code != exitUsage || errs == "" {
			t.Errorf("%v: %d %s", args, code, errs)
		}
	}
	code, out, errs = hearth("gc", "--json")
	var r retention.Report
	if err := json.Unmarshal([]byte(out), &r); code != 0 || err != nil || len(r.Removed) != 2 || r.Freed < 3_000_000 || r.Kept.Runs != 1 {
		t.Fatalf("%d %s %s %v", code, out, errs, err)
	}
	if _, err := os.Stat(filepath.Join(dirs.Logs(), old)); err == nil {
		t.Error("the logs of the old run are still there")
	}
	if _, err := os.Stat(mirror); err == nil {
		t.Error("the mirror is still there")
	}
	if code, out, _ := hearth("runs"); code != 0 || strings.Contains(out, old) || !strings.Contains(out, fresh) {
		t.Errorf("%d %s", code, out)
	}
	// Settings: a file, the environment over it, a flag over that.
	file := filepath.Join(home, "hearth.json")
	if err := os.WriteFile(file, []byte(`{"retention": {"age": "2h"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		env  string
		args []string
		goes bool
	}{
		{"", nil, false}, {"", []string{"--config", file}, true}, {"5h", []string{"--config", file}, false},
		{"5h", []string{"--config", file, "--age", "1h"}, true}, {"1h", nil, true}, {"1h", []string{"--age", "1d"}, false},
	} {
		env["HEARTH_RETENTION_AGE"] = c.env
		code, out, errs := hearth(append([]string{"gc", "-n"}, c.args...)...)
		if code != 0 || strings.Contains(out, fresh) != c.goes {
			t.Errorf("%+v: %d %s %s", c, code, out, errs)
		}
	}
}

// TestContainersCache is what somebody types who wants to know what pulled images take,
// and does not want it.
func TestContainersCache(t *testing.T) {
	env := map[string]string{"HEARTH_HOME": t.TempDir()}
	hearth := func(want int, args ...string) string {
		t.Helper()
		var out bytes.Buffer
		a := &app{in: strings.NewReader(""), out: &out, err: &out, getenv: func(k string) string { return env[k] }}
		if code := a.main(t.Context(), args); code != want {
			t.Errorf("%v: exit code %d\n%s", args, code, out.String())
		}
		return out.String()
	}
	dirs, err := config.FindDirs(func(k string) string { return env[k] })
	if err != nil {
		t.Fatal(err)
	}
	r := registrytest.New()
	defer r.Close()
	r.Put("test/a", "1", nil, registrytest.Layer(map[string][]byte{"/a": bytes.Repeat([]byte("a"), 3<<20)}))
	c, err := openRegistry(dirs, map[string]registry.Upstream{"docker.io": {URL: r.URL}}, config.DefaultRetention(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	var layer string
	pull := func() {
		t.Helper()
		s, err := c.Session(registry.SessionConfig{})
		if err != nil {
			t.Fatal(err)
		}
		for at := range r.Content {
			req := httptest.NewRequest(http.MethodGet, "/v2/docker.io/"+at, nil)
			w := httptest.NewRecorder()
			s.ServeHTTP(w, req)
			if w.Code != http.StatusOK {
				t.Fatalf("%s: %d %s", at, w.Code, w.Body)
			}
			if w.Body.Len() > 3<<20 {
				layer = at[strings.LastIndex(at, "/")+1:]
			}
		}
	}
	pull()
	if out := hearth(0, "cache", "list", "--containers"); !strings.Contains(out, "docker.io  "+layer+"  3 MB") {
		t.Error(out)
	}
	env["HEARTH_RETENTION_CONTAINER_BYTES"] = "1MiB"
	if out := hearth(0, "gc", "--dry-run"); !strings.Contains(out, "would remove  container  "+layer+" from docker.io") {
		t.Error(out)
	}
	hearth(0, "gc")
	if out := hearth(0, "cache", "list", "--containers", "--json"); strings.Contains(out, layer) || !strings.Contains(out, `"registry":"docker.io"`) {
		t.Error(out)
	}
	pull()
	if out := hearth(0, "cache", "rm", "--containers", layer); !strings.Contains(out, "removed 1, 3 MB") {
		t.Error(out)
	}
	if out := hearth(2, "cache", "rm", "--containers", layer); !strings.Contains(out, "nothing is kept of "+layer) {
		t.Error(out)
	}
	hearth(0, "cache", "rm", "--containers", "--all")
	if out := hearth(0, "cache", "list", "--containers"); !strings.Contains(out, "nothing of container images") {
		t.Error(out)
	}
}
