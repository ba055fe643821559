package action

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/workflow"
)

func TestParseRef(t *testing.T) {
	for _, c := range []struct{ in, kind, want string }{
		{"actions/checkout@v4", "remote", "actions/checkout@v4"},
		{"o/r/sub/dir@refs/heads/main", "remote", "o/r/sub/dir@refs/heads/main"},
		{"./a/b", "local", "./a/b"},
		{"./", "local", "./"},
		{"$/x", "own", "$/x"},
		{"docker://alpine:3", "docker", "docker://alpine:3"},
	} {
		r, err := ParseRef(c.in)
		kind := map[Kind]string{Remote: "remote", Local: "local", Own: "own", Docker: "docker"}[r.Kind]
		if err != nil || kind != c.kind || r.String() != c.want {
			t.Errorf("%s: %s %s %v", c.in, kind, r, err)
		}
	}
	for in, want := range map[string]string{"./a/../b/.": "b", "o/r/a/../b@v1": "b", "./.github/../x": "x"} {
		if r, err := ParseRef(in); err != nil || r.Path != want {
			t.Errorf("%s: %q, %v", in, r.Path, err)
		}
	}
	for _, bad := range []string{
		"./a/../../x", "./..", "o/r/a/../..@v1", "", "checkout@v4", "o/r", "o/r@", "o/r@v1@v2", "./../x", "o/r/../../x@v1", "docker://", "-o/r@v1",
		"o/r@--upload-pack=x", "o/r@a..b", "o/..@v1", "o/r@a b", "$/../x", "o/r@x\ny",
	} {
		if r, err := ParseRef(bad); err == nil {
			t.Errorf("%q became %s", bad, r)
		}
	}
}

func TestParse(t *testing.T) {
	a, diags := Parse("action.yml", "", []byte(`
name: Mine
author: me
branding: {icon: x}
inputs:
  who:
    description: whom to greet
    required: true
    default: ${{ github.actor }}
  old: {deprecationMessage: gone}
  bare:
outputs:
  greeting:
    value: ${{ steps.s.outputs.x }}
runs:
  using: composite
  steps:
    - id: s
      run: echo x=hi >> $GITHUB_OUTPUT
      shell: bash
    - uses: o/r@v1
      if: always()
      with: {a: "${{ inputs.who }}"}
`))
	if workflow.Errors(diags) {
		t.Fatal(diags)
	}
	if a.Using != "composite" || len(a.Inputs) != 3 || !a.Input("WHO").Required || a.Input("old").Deprecation != "gone" || len(a.Steps) != 2 ||
		a.Steps[1].Uses != "o/r@v1" || a.Outputs[0].Value == nil {
		t.Errorf("%+v", a)
	}
	a, diags = Parse("action.yml", "", []byte("runs:\n  using: node20\n  main: dist/index.js\n  post: dist/post.js\n  post-if: success()\n"))
	if workflow.Errors(diags) || a.Node() != 20 || a.PostIf == nil || a.PreIf != nil {
		t.Errorf("%+v %v", a, diags)
	}
	for _, c := range []struct{ in, want string }{
		{"name: x\n", "Required property is missing: runs"},
		{"runs: {using: composite, steps: [{run: x}]}\n", "Required property is missing: shell"},
		{"runs: {using: ruby, main: x}\n", "'using: ruby' is not supported"},
		{"runs: {using: node20, main: ../../x}\n", "leads out of the action"},
		{"runs: {using: node20, main: x, extra: 1}\n", "Unexpected value 'extra'"},
		{"runs: {using: composite, steps: [{run: x, shell: bash, if: secrets.x}]}\n", "Unrecognized named-value: 'secrets'"},
		{"[]", "A sequence was not expected"},
		{"\tx", ""},
	} {
		_, diags := Parse("action.yml", "", []byte(c.in))
		var all []string
		for _, d := range diags {
			all = append(all, d.String())
		}
		if !workflow.Errors(diags) || !strings.Contains(strings.Join(all, "\n"), c.want) {
			t.Errorf("%q: %v", c.in, all)
		}
	}
}

// What an action runs may be anywhere in its repository, and nowhere else.
func TestPathsOfTheRepository(t *testing.T) {
	for _, c := range []struct {
		dir, path string
		ok        bool
	}{
		{"init", "../lib/init.js", true}, {"a/b", "../../dist/x.js", true}, {"a/b", "../../../x.js", false},
		{"", "dist/../x.js", true}, {"", "../x.js", false}, {"init", "../../x.js", false}, {"init", "/etc/passwd", false}, {"init", "..", true},
	} {
		for _, key := range []string{"main", "pre", "post"} {
			src := "runs: {using: node20, " + key + ": " + c.path + "}\n"
			if key != "main" {
				src = "runs: {using: node20, main: x, " + key + ": " + c.path + "}\n"
			}
			if _, diags := Parse("action.yml", c.dir, []byte(src)); workflow.Errors(diags) == c.ok {
				t.Errorf("%s %s in %q: %v", key, c.path, c.dir, diags)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("runs: {using: composite, steps: [{run: x, shell: bash}]}"))
	f.Fuzz(func(t *testing.T, src []byte) {
		if a, diags := Parse("action.yml", "", src); a == nil && !workflow.Errors(diags) {
			t.Error("neither an action nor an error")
		}
	})
}

// command runs git for the test.
func command(t *testing.T, dir string, args ...string) string {
	t.Helper()
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GIT_CONFIG_GLOBAL=/dev/null", "GIT_AUTHOR_NAME=t", "GIT_AUTHOR_EMAIL=t@x", "GIT_COMMITTER_NAME=t", "GIT_COMMITTER_EMAIL=t@x")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return strings.TrimSpace(string(out))
}

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	p := filepath.Join(dir, name)
	os.MkdirAll(filepath.Dir(p), 0o755)
	if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

// server is a directory that stands in for GitHub: server/owner/repo.
func server(t *testing.T) (url, repo string) {
	t.Helper()
	dir := t.TempDir()
	repo = filepath.Join(dir, "o", "r")
	os.MkdirAll(repo, 0o755)
	command(t, repo, "init", "-q", "-b", "main")
	command(t, repo, "config", "uploadpack.allowAnySHA1InWant", "true")
	write(t, repo, "action.yml", "runs: {using: node20, main: main.js}\n")
	write(t, repo, "sub/action.yaml", "runs: {using: node24, main: main.js}\n")
	write(t, repo, "main.js", "one\n")
	command(t, repo, "add", ".")
	command(t, repo, "commit", "-q", "-m", "one")
	command(t, repo, "tag", "v1")
	command(t, repo, "checkout", "-q", "-b", "v1/x")
	command(t, repo, "checkout", "-q", "main")
	return "file://" + dir, repo
}

func TestResolve(t *testing.T) {
	url, repo := server(t)
	cache := t.TempDir()
	r := NewResolver(Config{Dir: cache, Server: url, Fresh: 1})
	resolve := func(r *Resolver, uses string) (*Tree, error) {
		t.Helper()
		ref, err := ParseRef(uses)
		if err != nil {
			t.Fatal(err)
		}
		return r.Resolve(t.Context(), ref)
	}
	sha := command(t, repo, "rev-parse", "HEAD")
	for _, uses := range []string{"o/r@v1", "o/r@main", "o/r@v1/x", "o/r@" + sha} {
		tree, err := resolve(r, uses)
		if err != nil || tree.SHA != sha {
			t.Fatalf("%s: %+v %v", uses, tree, err)
		}
	}
	tree, _ := resolve(r, "o/r@v1")
	if file, src, err := tree.Load(t.Context(), "sub"); err != nil || file != "sub/action.yaml" || !bytes.Contains(src, []byte("node24")) {
		t.Errorf("%s %s %v", file, src, err)
	}
	if _, _, err := tree.Load(t.Context(), "none"); !isInput(err) {
		t.Errorf("no action there: %v", err)
	}
	if got := untar(t, func(w io.Writer) error { return tree.Tar(t.Context(), w) }); got["main.js"] != "one\n" || len(got) != 3 {
		t.Errorf("%v", got)
	}
	// A branch moves on; what is known is used when nobody answers.
	write(t, repo, "main.js", "two\n")
	command(t, repo, "commit", "-q", "-am", "two")
	now := command(t, repo, "rev-parse", "HEAD")
	if tree, err := resolve(r, "o/r@main"); err != nil || tree.SHA != now {
		t.Errorf("%+v %v", tree, err)
	}
	offline := NewResolver(Config{Dir: cache, Server: url, Offline: true})
	if tree, err := resolve(offline, "o/r@main"); err != nil || tree.SHA != now {
		t.Errorf("offline: %+v %v", tree, err)
	}
	away := NewResolver(Config{Dir: cache, Server: "https://127.0.0.1:1", Fresh: 1})
	if tree, err := resolve(away, "o/r@main"); err != nil || tree.SHA != now || tree.Note == "" {
		t.Errorf("unreachable, but known: %+v %v", tree, err)
	}
	for uses, want := range map[string]string{
		"o/r@v9":      "unable to find version `v9`",
		"o/missing@1": "Repository not found: o/missing",
	} {
		if _, err := resolve(r, uses); !isInput(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", uses, err)
		}
	}
	if _, err := resolve(offline, "o/other@v1"); !isInput(err) || !strings.Contains(err.Error(), "offline") {
		t.Errorf("offline, unknown: %v", err)
	}
	if _, err := resolve(NewResolver(Config{Dir: t.TempDir(), Server: "https://127.0.0.1:1"}), "o/r@v1"); !isInput(err) {
		t.Errorf("unreachable: %v", err)
	}
	over := NewResolver(Config{Dir: t.TempDir(), Offline: true, Overrides: map[string]string{"o/r@v1": repo}})
	tree, err := resolve(over, "o/r@v1")
	if err != nil || tree.Note == "" {
		t.Fatal(err)
	}
	if got := untar(t, func(w io.Writer) error { return tree.Tar(t.Context(), w) }); got["main.js"] != "two\n" || len(got) != 3 {
		t.Errorf("%v", got)
	}
	if _, err := tree.ReadFile(t.Context(), "../../etc/passwd", 100); err == nil {
		t.Error("a name led out of the directory")
	}
}

func isInput(err error) bool {
	_, ok := errors.AsType[*InputError](err)
	return ok
}

// untar is the regular files of an archive; those of .git are left out.
func untar(t *testing.T, fn func(io.Writer) error) map[string]string {
	t.Helper()
	var b bytes.Buffer
	if err := fn(&b); err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	r := tar.NewReader(&b)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg && !strings.HasPrefix(h.Name, ".git/") {
			data, _ := io.ReadAll(r)
			out[h.Name] = string(data)
		}
	}
}

// unpack is a checkout in a directory.
func unpack(t *testing.T, fn func(io.Writer) error) string {
	t.Helper()
	var b bytes.Buffer
	if err := fn(&b); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("tar", "xf", "-", "-C", dir)
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	return dir
}

func TestCheckoutOfAnotherRepository(t *testing.T) {
	url, repo := server(t)
	sha := command(t, repo, "rev-parse", "HEAD")
	r := NewResolver(Config{Dir: t.TempDir(), Server: url})
	command(t, repo, "branch", "-f", "side")
	command(t, repo, "tag", "-f", "other")
	for _, c := range []struct {
		req          CheckoutRequest
		branch, tags string
	}{
		{CheckoutRequest{Depth: 1}, "main", ""}, {CheckoutRequest{Depth: 1}, "main", ""}, // from the mirror
		{CheckoutRequest{Ref: "v1", Depth: 1}, "", "v1"}, {CheckoutRequest{Ref: "refs/tags/v1", Depth: 1}, "", "v1"}, {CheckoutRequest{Ref: sha, Depth: 1}, "", ""},
		{CheckoutRequest{Ref: "side", Depth: 1, Tags: true}, "side", "other v1"}, {CheckoutRequest{Ref: "main"}, "main", "other v1"},
	} {
		req := c.req
		var got string
		dir := unpack(t, func(w io.Writer) (err error) {
			got, err = r.Checkout(t.Context(), "o", "r", req, w)
			return err
		})
		if got != sha || command(t, dir, "rev-parse", "HEAD") != sha {
			t.Errorf("%+v: %s", req, got)
		}
		branch, tags := command(t, dir, "branch", "--show-current"), strings.Join(strings.Fields(command(t, dir, "tag")), " ")
		if branch != c.branch || tags != c.tags {
			t.Errorf("%+v: on %q, tags %q", req, branch, tags)
		}
	}
	if _, err := r.Checkout(t.Context(), "o", "none", CheckoutRequest{}, io.Discard); !isInput(err) {
		t.Errorf("no such repository: %v", err)
	}
}

// A packed tree is read without being unpacked: files by their names, bounded, and the
// whole as it was.
func TestPacked(t *testing.T) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []tar.Header{{Name: "pax_global_header", Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}},
		{Name: "dir/", Typeflag: tar.TypeDir}, {Name: "dir/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "./dir/action.yml", Typeflag: tar.TypeReg, Size: 5}, {Name: "large", Typeflag: tar.TypeReg, Size: 9}} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Write([]byte("name: too long")[:h.Size])
	}
	w.Close()
	tree := Packed("acme/x", "v1", "abc", "", bytes.NewReader(b.Bytes()))
	for range 2 {
		if got, err := tree.ReadFile(t.Context(), "dir/action.yml", 5); string(got) != "name:" || err != nil {
			t.Errorf("%q, %v", got, err)
		}
	}
	for _, name := range []string{"dir/link", "dir", "none", "../large"} {
		if _, err := tree.ReadFile(t.Context(), name, 100); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := tree.ReadFile(t.Context(), "large", 8); err == nil || errors.Is(err, os.ErrNotExist) {
		t.Errorf("too large: %v", err)
	}
	var out bytes.Buffer
	if err := tree.Tar(t.Context(), &out); err != nil || !bytes.Equal(out.Bytes(), b.Bytes()) {
		t.Errorf("%d bytes of %d, %v", out.Len(), b.Len(), err)
	}
}
