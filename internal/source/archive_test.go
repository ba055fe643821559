package source

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/cgi"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/git/gittest"
)

// github is a repository as GitHub hands it out.
func github(t *testing.T, root string) *Archive {
	t.Helper()
	field := func(format string) string { return gittest.Git(t, root, "log", "-1", "--format="+format) }
	sha := field("%H")
	when, err := time.Parse(time.RFC3339, field("%aI"))
	if err != nil {
		t.Fatal(err)
	}
	who := git.Person{Name: "t", Email: "t@x", When: when.UTC()}
	return &Archive{SHA: sha, Branch: "main", Repository: "octo/hello", Server: "https://github.com",
		Open: func(context.Context, string) (io.ReadCloser, error) {
			cmd := exec.Command("git", "archive", "--prefix=octo-hello-abc/", sha)
			cmd.Dir = root
			out, err := cmd.Output()
			var b bytes.Buffer
			z := gzip.NewWriter(&b)
			z.Write(out)
			z.Close()
			return io.NopCloser(&b), err
		},
		Commit: func(context.Context, string) (*git.Commit, error) {
			return &git.Commit{SHA: sha, Tree: field("%T"), Parents: strings.Fields(field("%P")), Author: who, Committer: who, Message: field("%B")}, nil
		}}
}

// said is a request that notes what is said.
func said(req action.CheckoutRequest) (action.CheckoutRequest, *[]string) {
	var all []string
	req.Note = func(s string) { all = append(all, s) }
	return req, &all
}

// HEAD in the machine is GITHUB_SHA, the very commit, though an archive holds no
// commit; it used to be another one.
func TestArchiveIsTheCommit(t *testing.T) {
	t.Setenv("TZ", "Asia/Kathmandu")
	root := t.TempDir()
	gittest.Git(t, "", "init", "-q", "-b", "main", root)
	write(t, root+"/sub/a.txt", "text\r\n")
	write(t, root+"/run.sh", "#!/bin/sh\n")
	exec.Command("chmod", "755", root+"/run.sh").Run()
	exec.Command("ln", "-s", "sub/a.txt", root+"/link").Run()
	write(t, root+"/a \"name\"\\\n.txt", "x")
	gittest.Git(t, root, "add", "-A")
	for _, parents := range []string{"", "1"} {
		gittest.Git(t, root, "commit", "-q", "--allow-empty", "-m", "first\n\nof "+parents)
		a := github(t, root)
		req, notes := said(action.CheckoutRequest{Depth: 1})
		dir, sha := checkout(t, a, req)
		if got := run(t, dir, "git", "rev-parse", "HEAD"); got != a.SHA || sha != a.SHA || len(*notes) != 0 {
			t.Errorf("HEAD is %s and not %s, said %q", got, a.SHA, *notes)
		}
		if got := run(t, dir, "git", "rev-parse", "--is-shallow-repository"); got != map[string]string{"": "false", "1": "true"}[parents] {
			t.Errorf("with parent %q: shallow is %s", parents, got)
		}
		if got := run(t, dir, "git", "status", "--porcelain", "--branch"); got != "## main...origin/main" {
			t.Errorf("status: %s", got)
		}
		run(t, dir, "git", "fsck", "--no-progress", "--strict")
	}
	// What GitHub changes in archives, or does not say, is told.
	for name, c := range map[string]func(a *Archive){
		"attributes": func(a *Archive) {
			write(t, root+"/.gitattributes", "run.sh export-ignore\n")
			gittest.Git(t, root, "add", "-A")
			gittest.Git(t, root, "commit", "-q", "-m", "x")
			*a = *github(t, root)
		},
		"no answer": func(a *Archive) {
			a.Commit = func(context.Context, string) (*git.Commit, error) { return nil, errors.New("503") }
		},
		"another":     func(a *Archive) { a.SHA = strings.Repeat("ab", 20) },
		"not told of": func(a *Archive) { a.Commit = nil },
		"other content": func(a *Archive) {
			was, _ := a.Commit(t.Context(), "")
			was.Message = "lie"
			a.Commit = func(context.Context, string) (*git.Commit, error) { return was, nil }
		},
	} {
		a := github(t, root)
		open := a.Open
		c(a)
		if name != "attributes" {
			a.Open = open
		}
		req, notes := said(action.CheckoutRequest{Depth: 1})
		dir, sha := checkout(t, a, req)
		if got := run(t, dir, "git", "rev-parse", "HEAD"); got == a.SHA || sha != a.SHA || len(*notes) != 1 ||
			!strings.Contains((*notes)[0], "HEAD is "+got+" and not "+a.SHA) {
			t.Errorf("%s: HEAD is %s, %q", name, got, *notes)
		}
		if got := run(t, dir, "git", "status", "--porcelain"); got != "" {
			t.Errorf("%s: status: %s", name, got)
		}
	}
}

// fetch-depth and fetch-tags were ignored without a word.
func TestArchiveWithHistory(t *testing.T) {
	out, err := exec.Command("git", "--exec-path").Output()
	if err != nil {
		t.Fatal(err)
	}
	backend := filepath.Join(strings.TrimSpace(string(out)), "git-http-backend")
	top := t.TempDir()
	root := top + "/octo/hello"
	gittest.Repository(t, root)
	gittest.Git(t, root, "config", "uploadpack.allowAnySHA1InWant", "true")
	handler := &cgi.Handler{Path: backend, Env: []string{"GIT_PROJECT_ROOT=" + top, "GIT_HTTP_EXPORT_ALL=1", "GIT_CONFIG_GLOBAL=/dev/null"}, Stderr: io.Discard}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, password, _ := r.BasicAuth(); password != "tok" {
			w.Header().Set("WWW-Authenticate", "Basic")
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		handler.ServeHTTP(w, r)
	}))
	defer srv.Close()
	a := github(t, root)
	token := "tok"
	a.Server, a.Token = srv.URL, func(context.Context) (string, error) { return token, nil }
	for _, c := range []struct {
		req          action.CheckoutRequest
		commits      string
		tags, remote string
	}{
		{action.CheckoutRequest{Depth: 0}, "2", "v1", "origin/main origin/side"},
		{action.CheckoutRequest{Depth: 2}, "2", "", "origin/main"},
		{action.CheckoutRequest{Depth: 1, Tags: true}, "1", "v1", "origin/main"},
		{action.CheckoutRequest{Depth: 0, Ref: a.SHA}, "2", "v1", "origin/main origin/side"},
	} {
		req, notes := said(c.req)
		dir, sha := checkout(t, a, req)
		got := []string{run(t, dir, "git", "rev-list", "--count", "HEAD"), run(t, dir, "git", "tag"),
			strings.Join(strings.Fields(run(t, dir, "git", "for-each-ref", "--format=%(refname:short)", "refs/remotes")), " ")}
		if sha != a.SHA || run(t, dir, "git", "rev-parse", "HEAD") != a.SHA || strings.Join(got, "|") != strings.Join([]string{c.commits, c.tags, c.remote}, "|") {
			t.Errorf("%+v: %q", c.req, got)
		}
		whole(t, gittest.Tree(t, dir), "")
		for _, n := range *notes {
			if !strings.Contains(n, "Git LFS") {
				t.Errorf("%+v: %s", c.req, n)
			}
		}
		if b, _ := exec.Command("grep", "-rF", "tok", dir+"/.git").Output(); bytes.Contains(b, []byte("tok\n")) {
			t.Errorf("the token is in the machine: %s", b)
		}
	}
	// An archive that is not the commit: that is fetched.
	write(t, root+"/.gitattributes", "a.txt export-ignore\n")
	gittest.Git(t, root, "-c", "core.attributesFile=/dev/null", "commit", "-qam", "attributes")
	was := a
	a = github(t, root)
	a.Server, a.Token = was.Server, was.Token
	req, notes := said(action.CheckoutRequest{Depth: 1})
	dir, _ := checkout(t, a, req)
	if gittest.Tree(t, dir)["a.txt"] == "" || run(t, dir, "git", "rev-parse", "HEAD") != a.SHA || run(t, dir, "git", "rev-list", "--count", "HEAD") != "1" ||
		len(*notes) != 1 {
		t.Errorf("%v %q", gittest.Tree(t, dir), *notes)
	}
	a = was
	// It cannot be had: said, and the commit comes as ever.
	for name, change := range map[string]func(){
		"a bad token": func() { token = "other" }, "no answer": func() { srv.Close() }, "no token": func() { a.Token = nil },
	} {
		_ = name
		change()
		req, notes := said(action.CheckoutRequest{Depth: 0, Tags: true})
		dir, _ := checkout(t, a, req)
		if got := run(t, dir, "git", "rev-list", "--count", "HEAD"); got != "1" || len(*notes) == 0 ||
			!strings.Contains((*notes)[0], "fetch-depth: 0, fetch-tags: true") {
			t.Errorf("%s: %s commits, %q", name, got, *notes)
		}
		if strings.Contains(strings.Join(*notes, ""), token) && token != "" && token != "tok" {
			t.Errorf("%s: the token is in %q", name, *notes)
		}
	}
}
