package main

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/config"
	"github.com/hearth-ci/hearth/internal/results"
	"github.com/hearth-ci/hearth/internal/store"
)

// TestArtifactsAndCaches is what somebody types who wants to have, or to be rid of,
// what runs have left.
func TestArtifactsAndCaches(t *testing.T) {
	env := map[string]string{"HEARTH_HOME": t.TempDir()}
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
	if err := dirs.Make(); err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), dirs.Database(), store.WithLogs(dirs.Logs()))
	if err != nil {
		t.Fatal(err)
	}
	run, _, err := s.CreateRun(t.Context(), ci.Run{Repository: "o/r", File: "ci.yml"}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	// A job has left an archive with a link out of it, a file, and a cache.
	session, err := resultsStore(dirs, config.DefaultRetention(),
		nil).Open(results.Job{Repository: "o/r", Run: run.ID, Attempt: 1, Key: "make", Scopes: []string{"refs/heads/main"}})
	if err != nil {
		t.Fatal(err)
	}
	call := func(method string, fields map[string]any) map[string]any {
		t.Helper()
		b, _ := json.Marshal(fields)
		r := httptest.NewRequest("POST", "/twirp/github.actions.results.api.v1."+method, bytes.NewReader(b))
		r.Header.Set("Authorization", "Bearer "+session.Token())
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		session.ServeHTTP(w, r)
		var answer map[string]any
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != 200 {
			t.Fatalf("%s: %d %s", method, w.Code, w.Body)
		}
		return answer
	}
	put := func(url any, data []byte) {
		t.Helper()
		r := httptest.NewRequest("PUT", url.(string), bytes.NewReader(data))
		r.Header.Set("x-ms-blob-type", "BlockBlob")
		w := httptest.NewRecorder()
		if session.ServeHTTP(w, r); w.Code != 201 {
			t.Fatal(w.Code, w.Body)
		}
	}
	artifact := func(name, kind string, data []byte) {
		t.Helper()
		about := map[string]any{"workflow_run_backend_id": run.ID, "name": name, "mime_type": kind}
		put(call("ArtifactService/CreateArtifact", about)["signed_upload_url"], data)
		about["size"] = len(data)
		call("ArtifactService/FinalizeArtifact", about)
	}
	var b bytes.Buffer
	z := zip.NewWriter(&b)
	f, _ := z.Create("bin/tool")
	f.Write([]byte("tool"))
	link := &zip.FileHeader{Name: "passwd"}
	link.SetMode(os.ModeSymlink | 0o777)
	f, _ = z.CreateHeader(link)
	f.Write([]byte("/etc/passwd"))
	z.Close()
	artifact("tools", "", b.Bytes())
	artifact("report.html", "text/html", []byte("<p>report"))
	put(call("CacheService/CreateCacheEntry", map[string]any{"key": "deps-1", "version": "v"})["signed_upload_url"], []byte("deps"))
	call("CacheService/FinalizeCacheEntryUpload", map[string]any{"key": "deps-1", "version": "v", "size_bytes": "4"})

	code, out, errs := hearth("artifacts", "last")
	if code != 0 || !strings.Contains(out, "report.html  9 B") || !strings.Contains(out, "sha256:") {
		t.Errorf("%d %s %s", code, out, errs)
	}
	if code, out, _ := hearth("show", "last"); code != 0 || !strings.Contains(out, "  report.html, 9 B, by make") {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := hearth("artifacts", "last", "--json"); code != 0 || strings.Count(out, "\n") != 2 || !strings.Contains(out, `"name":"tools"`) {
		t.Errorf("%d %s", code, out)
	}
	dir := filepath.Join(t.TempDir(), "got")
	code, out, errs = hearth("artifacts", run.ID, "--download", dir)
	if code != 0 || !strings.Contains(errs, `left out: "passwd"`) {
		t.Errorf("%d %s %s", code, out, errs)
	}
	for name, want := range map[string]string{"tools/bin/tool": "tool", "report.html/report.html": "<p>report"} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s: %q %v", name, got, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "tools/passwd")); err == nil {
		t.Error("the link was made")
	}
	if code, _, errs := hearth("artifacts", run.ID, "tools", "-d", dir); code != 3 || !strings.Contains(errs, "is there already") {
		t.Errorf("over what is there: %d %s", code, errs)
	}
	if code, _, errs := hearth("artifacts", run.ID, "none"); code != 2 || !strings.Contains(errs, "it has tools, report.html") {
		t.Errorf("one that is not there: %d %s", code, errs)
	}

	if code, out, _ := hearth("cache", "list"); code != 0 || !strings.Contains(out, "o/r         main    deps-1  4 B") {
		t.Errorf("%d %s", code, out)
	}
	if code, out, _ := hearth("cache", "list", "-r", "o/other", "--json"); code != 0 || out != "" {
		t.Errorf("%d %s", code, out)
	}
	if code, _, _ := hearth("cache", "rm"); code != 2 {
		t.Errorf("rm of nothing: %d", code)
	}
	if code, _, errs := hearth("cache", "rm", "deps-1", "deps-2"); code != 2 || !strings.Contains(errs, "removed 1, 4 B") ||
		!strings.Contains(errs, "no entry with key deps-2") {
		t.Errorf("%d %s", code, errs)
	}
	if _, out, _ := hearth("cache", "list"); out != "" {
		t.Errorf("still there: %s", out)
	}
	if code, out, errs := hearth("gc", "--artifacts", "1h"); code != 0 {
		t.Errorf("%d %s %s", code, out, errs)
	}
}
