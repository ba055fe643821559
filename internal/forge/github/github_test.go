package github

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/forge"
	"github.com/hearth-ci/hearth/internal/forge/github/githubtest"
)

var sha = githubtest.SHA("one")

func server(t *testing.T) (*githubtest.Server, *App, *Repo) {
	t.Helper()
	s := githubtest.New()
	t.Cleanup(func() {
		s.Close()
		for _, v := range s.Violations() {
			t.Errorf("GitHub would not have it: %s", v)
		}
	})
	s.Commit("octo/hello", sha, map[string]string{
		".github/workflows/ci.yml":         "on: push\n",
		".github/workflows/old.yaml":       "on: push\n",
		".github/workflows/README.md":      "no workflow",
		".github/workflows/deep/inner.yml": "too deep",
		"main.go":                          "package main\n",
	})
	app, err := New(Config{BaseURL: s.URL, AppID: s.AppID, Key: s.Key(), Sleep: func(context.Context, time.Duration) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	r, err := app.Repo(s.Installation, "octo", "hello")
	if err != nil {
		t.Fatal(err)
	}
	return s, app, r.(*Repo)
}

func TestReading(t *testing.T) {
	ctx := context.Background()
	s, app, r := server(t)
	id, err := app.Installation(ctx, "octo", "hello")
	if err != nil || id != s.Installation {
		t.Errorf("installation %d, %v", id, err)
	}
	files, err := r.Workflows(ctx, sha)
	if err != nil || len(files) != 2 || files[0].Path != ".github/workflows/ci.yml" || string(files[0].Content) != "on: push\n" {
		t.Errorf("%q, %v", files, err)
	}
	s.Commit("octo/hello", githubtest.SHA("bare"), map[string]string{"x": "y"})
	if files, err := r.Workflows(ctx, githubtest.SHA("bare")); err != nil || len(files) != 0 {
		t.Errorf("a commit without workflows: %q, %v", files, err)
	}
	s.Changes("octo/hello", "a...b", "main.go", "docs/x.md")
	if files, known, err := r.ChangedFiles(ctx, "a", "b"); err != nil || !known || len(files) != 2 {
		t.Errorf("%q %v %v", files, known, err)
	}
	var many []string
	for i := range 250 {
		many = append(many, fmt.Sprintf("f%d", i))
	}
	s.Pull("octo/hello", 7, many...)
	if files, known, err := r.PullFiles(ctx, 7); err != nil || !known || len(files) != 250 {
		t.Errorf("%d files, %v, %v", len(files), known, err)
	}
	body, err := r.Tarball(ctx, sha)
	if err != nil {
		t.Fatal(err)
	}
	defer body.Close()
	z, err := gzip.NewReader(body)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for a := tar.NewReader(z); ; {
		h, err := a.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		found = found || strings.HasSuffix(h.Name, "/main.go")
	}
	if !found {
		t.Error("no main.go in the archive")
	}
	token, err := r.Token(ctx, map[string]string{"contents": "read", "id-token": "write"})
	if err != nil || !strings.HasPrefix(token, "ghs_") {
		t.Errorf("token %q, %v", token, err)
	}
	// More than the App was granted: what of it was.
	if _, err := r.Token(ctx, map[string]string{"contents": "write", "packages": "read", "pull-requests": "read"}); err != nil {
		t.Error(err)
	}
	if all := s.Tokens(); fmt.Sprint(all[len(all)-1]) != "map[contents:read metadata:read pull_requests:read]" {
		t.Errorf("tokens %v", all)
	}
	s.Ref("octo/hello", "refs/heads/main", sha)
	s.Describe("octo/hello", sha, "first\n\nbody", "p1")
	if got, err := r.Resolve(ctx, "refs/heads/main"); err != nil || got != sha {
		t.Errorf("main is at %s, %v", got, err)
	}
	if c, err := r.Commit(ctx, sha); err != nil || c.Message != "first\n\nbody" || len(c.Parents) != 1 || c.Parents[0] != "p1" {
		t.Errorf("commit %+v, %v", c, err)
	}
}

func TestChecks(t *testing.T) {
	ctx := context.Background()
	s, _, r := server(t)
	var notes []forge.Annotation
	for i := range 120 {
		notes = append(notes, forge.Annotation{Path: "main.go", StartLine: i + 1, Level: "error", Message: "bad", StartCol: 2})
	}
	c := forge.Check{Name: "ci / build", SHA: sha, DetailsURL: "http://h/r", ExternalID: "x1", Status: ci.Queued, Title: "queued"}
	id, err := r.CreateCheck(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if found, err := r.FindCheck(ctx, sha, c.Name, "x1"); err != nil || found != id {
		t.Errorf("found %d, %v", found, err)
	}
	c.Status, c.Title = ci.InProgress, "running"
	if err := r.UpdateCheck(ctx, id, c); err != nil {
		t.Fatal(err)
	}
	c.Status, c.Conclusion, c.Completed, c.Title, c.Annotations = ci.Completed, ci.Failure, time.Now(), "failed", notes
	c.Summary = strings.Repeat("é", 70_000)
	if err := r.UpdateCheck(ctx, id, c); err != nil {
		t.Fatal(err)
	}
	got := s.Checks()
	if len(got) != 1 || strings.Join(got[0].History, " ") != "queued in_progress completed:failure" || len(got[0].Annotations) != 120 {
		t.Errorf("%+v", got)
	}
}

func TestGitHubFails(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		name      string
		fault     githubtest.Fault
		status    int
		temporary bool
		calls     int
		says      string
	}{
		{"401", githubtest.Fault{Status: 401, Body: `{"message":"Bad credentials"}`}, 401, false, 1, "clock"},
		{"403", githubtest.Fault{Status: 403, Body: `{"message":"Resource not accessible by integration"}`}, 403, false, 1, "permission"},
		{"403 rate limit", githubtest.Fault{Status: 403,
			Header: map[string]string{"X-RateLimit-Limit": "5000", "X-RateLimit-Remaining": "0",
				"X-RateLimit-Reset": fmt.Sprint(time.Now().Add(30 * time.Minute).Unix())}, Body: `{"message":"API rate limit exceeded"}`}, 403, true, 1, "rate limit"},
		{"404", githubtest.Fault{Status: 404, Body: `{"message":"Not Found"}`}, 404, false, 1, "installed"},
		{"422", githubtest.Fault{Status: 422, Body: `{"message":"Validation Failed","errors":[{"resource":"x","field":"y","code":"invalid"}]}`}, 422, false, 1,
			"Validation"},
		{"500", githubtest.Fault{Status: 500, Body: `oops`}, 500, true, maxTries, "500"},
		{"503 then nothing readable", githubtest.Fault{Status: 503, Body: "\xff\x00"}, 503, true, maxTries, "503"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, _, r := server(t)
			calls := 0
			s.Fail(func(req *http.Request) *githubtest.Fault {
				if strings.HasSuffix(req.URL.Path, "/access_tokens") {
					return nil
				}
				calls++
				return &c.fault
			})
			_, err := r.File(ctx, "main.go", sha)
			var e *forge.Error
			if !errors.As(err, &e) || e.Status != c.status || e.Temporary != c.temporary || !strings.Contains(err.Error(), c.says) {
				t.Errorf("%#v", err)
			}
			if calls != c.calls {
				t.Errorf("%d calls, want %d", calls, c.calls)
			}
		})
	}
	t.Run("nothing", func(t *testing.T) {
		s, _, r := server(t)
		s.Fail(func(*http.Request) *githubtest.Fault { return &githubtest.Fault{Hang: true} })
		ctx, cancel := context.WithTimeoutCause(ctx, 100*time.Millisecond, errors.New("no answer"))
		defer cancel()
		if _, err := r.File(ctx, "main.go", sha); err == nil || !strings.Contains(err.Error(), "no answer") {
			t.Errorf("%v", err)
		}
	})
	t.Run("then it recovers", func(t *testing.T) {
		s, _, r := server(t)
		calls := 0
		s.Fail(func(req *http.Request) *githubtest.Fault {
			if calls++; calls < 3 {
				return &githubtest.Fault{Status: 502}
			}
			return nil
		})
		if b, err := r.File(ctx, "main.go", sha); err != nil || string(b) != "package main\n" {
			t.Errorf("%q %v", b, err)
		}
	})
	t.Run("token refused", func(t *testing.T) {
		s, _, r := server(t)
		s.Fail(func(req *http.Request) *githubtest.Fault {
			return &githubtest.Fault{Status: 401, Body: `{"message":"no"}`}
		})
		_, err := r.File(ctx, "main.go", sha)
		var e *forge.Error
		if !errors.As(err, &e) || e.Status != 401 || strings.Contains(err.Error(), "Bearer") {
			t.Errorf("%v", err)
		}
	})
}

func TestBadNames(t *testing.T) {
	_, app, _ := server(t)
	for _, n := range []string{"", "..", "a/b", "a b", "a?b"} {
		if _, err := app.Repo(1, "octo", n); err == nil {
			t.Errorf("%q was accepted", n)
		}
	}
	if _, err := New(Config{BaseURL: "https://x", AppID: 1, Key: []byte("nonsense")}); err == nil {
		t.Error("a key that is none was accepted")
	}
}
