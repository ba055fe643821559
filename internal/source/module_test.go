package source

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/git"
	"github.com/hearth-ci/hearth/internal/git/gittest"
)

// nested is a repository with a submodule lib that has a submodule deep.
func nested(t *testing.T) *Dir {
	t.Helper()
	top := t.TempDir()
	for _, n := range []string{"deep", "lib", "app"} {
		gittest.Git(t, "", "init", "-q", "-b", "main", top+"/"+n)
		gittest.Write(t, top+"/"+n+"/"+n+".txt", n)
		gittest.Git(t, top+"/"+n, "add", "-A")
		gittest.Git(t, top+"/"+n, "commit", "-qm", n)
	}
	add := func(in, what string) {
		gittest.Git(t, top+"/"+in, "-c", "protocol.file.allow=always", "submodule", "add", "-q", "../"+what, "mods/"+what)
		gittest.Git(t, top+"/"+in, "commit", "-qm", "with "+what)
	}
	add("lib", "deep")
	add("app", "lib")
	gittest.Git(t, top+"/app", "-c", "protocol.file.allow=always", "submodule", "update", "-q", "--init", "--recursive")
	return &Dir{Root: top + "/app", Repository: "octo/app", Server: "https://github.com", Branch: "main"}
}

// asked is a request that notes the submodules.
func asked(req action.CheckoutRequest) (action.CheckoutRequest, *[]git.Module) {
	var found []git.Module
	req.Modules = func(m []git.Module) { found = m }
	return req, &found
}

func TestModules(t *testing.T) {
	d := nested(t)
	req, top := asked(action.CheckoutRequest{Depth: 1})
	checkout(t, d, req)
	if len(*top) != 1 || (*top)[0].Path != "mods/lib" || (*top)[0].Name != "mods/lib" || (*top)[0].URL != "https://github.com/octo/lib" ||
		(*top)[0].SHA != gittest.Git(t, d.Root+"/mods/lib", "rev-parse", "HEAD") {
		t.Fatalf("%+v", *top)
	}
	// As it lies there, changes included; its own submodules with addresses of their own.
	gittest.Write(t, d.Root+"/mods/lib/lib.txt", "changed")
	gittest.Write(t, d.Root+"/mods/lib/.env", "TOKEN=hunter2")
	req, in := asked(action.CheckoutRequest{Depth: 1, Within: *top})
	dir, sha := checkout(t, d, req)
	if got := gittest.Tree(t, dir); got["lib.txt"] != "changed" || got[".env"] != "" || sha != (*top)[0].SHA || gittest.Git(t, dir, "rev-parse", "HEAD") != sha {
		t.Errorf("%v %s", got, sha)
	}
	if len(*in) != 1 || (*in)[0].URL != "https://github.com/octo/deep" {
		t.Fatalf("%+v", *in)
	}
	dir, _ = checkout(t, d, action.CheckoutRequest{Depth: 1, Within: append(*top, (*in)...)})
	if got := gittest.Tree(t, dir); got["deep.txt"] != "deep" {
		t.Errorf("%v", got)
	}
	// Of another commit, its own commit of the submodule.
	before := gittest.Git(t, d.Root, "rev-parse", "HEAD")
	gittest.Git(t, d.Root+"/mods/lib", "commit", "-qam", "changed")
	gittest.Git(t, d.Root, "commit", "-qam", "newer lib")
	req, found := asked(action.CheckoutRequest{Depth: 1, Ref: before})
	checkout(t, d, req)
	if len(*found) != 1 || (*found)[0].SHA != (*top)[0].SHA {
		t.Fatalf("%+v", *found)
	}
	dir, sha = checkout(t, d, action.CheckoutRequest{Depth: 1, Ref: before, Within: *found})
	if got := gittest.Tree(t, dir); got["lib.txt"] != "lib" || sha != (*top)[0].SHA {
		t.Errorf("%v %s", got, sha)
	}
	// What is checked out differs from what the commit names: told.
	gittest.Git(t, d.Root+"/mods/lib", "checkout", "-q", "HEAD^")
	req, notes := said(action.CheckoutRequest{Depth: 1, Within: []git.Module{{Path: "mods/lib", SHA: gittest.Git(t, d.Root, "rev-parse", "HEAD:mods/lib")}}})
	if _, sha = checkout(t, d, req); sha != (*top)[0].SHA || len(*notes) != 1 || !strings.Contains((*notes)[0], "is at "+sha+" in the working tree") {
		t.Errorf("%s %q", sha, *notes)
	}
	// A commit that is not there, a submodule that was never fetched.
	for _, m := range []git.Module{{Path: "mods/lib", SHA: strings.Repeat("ab", 20)}, {Path: "mods", SHA: sha}, {Path: "nothing", SHA: sha}} {
		if _, err := d.Checkout(t.Context(), action.CheckoutRequest{Ref: before, Within: []git.Module{m}}, io.Discard); !errors.Is(err, action.ErrNotHere) {
			t.Errorf("%+v: %v", m, err)
		}
	}
}

// Whatever .gitmodules says, it is text: it may name programs as addresses and as
// updates, names and paths that lead out of the tree, includes.
func TestAttackModulesFile(t *testing.T) {
	p, root := gittest.New(t), t.TempDir()
	gittest.Repository(t, root)
	secret := gittest.Git(t, root, "rev-parse", "HEAD")
	var config strings.Builder
	config.WriteString("[include]\n\tpath = " + root + "/evil.inc\n")
	gittest.Write(t, root+"/evil.inc", "[submodule \"inc\"]\n\tpath = inc\n\turl = https://evil/inc\n")
	paths := []string{"ext", "file", "option", "up", "inc", "nl", "plain"}
	for _, n := range paths {
		gittest.Git(t, root, "update-index", "--add", "--cacheinfo", "160000,"+secret+","+n)
	}
	for name, lines := range map[string]string{
		"ext": "path = ext\n\turl = ext::" + p.Program + "\n\tupdate = !" + p.Program, "file": "path = file\n\turl = file:///etc",
		"option": "path = option\n\turl = --upload-pack=" + p.Program, "../../up": "path = up\n\turl = https://x/y/z",
		"gone": "path = ../../etc\n\turl = https://x/y/z", "nl": "path = nl\n\turl = \"https://x/y\\n[core]\\nsshCommand=" + p.Program + "\"",
		"plain": "path = plain\n\turl = ../plain\n\tupdate = none",
	} {
		config.WriteString(fmt.Sprintf("[submodule %q]\n\t%s\n", name, lines))
	}
	gittest.Write(t, root+"/.gitmodules", config.String())
	gittest.Git(t, root, "add", "-A", ".gitmodules")
	gittest.Git(t, root, "commit", "-qm", "hostile")
	for _, n := range paths {
		os.MkdirAll(root+"/"+n, 0o755)
	}
	for _, ref := range []string{"", secret, gittest.Git(t, root, "rev-parse", "HEAD")} {
		req, found := asked(action.CheckoutRequest{Depth: 1, Ref: ref})
		d := &Dir{Root: root, Repository: "o/r", Branch: "main"}
		checkout(t, d, req)
		if ref == secret {
			if len(*found) != 0 {
				t.Errorf("%+v", *found)
			}
			continue
		}
		if len(*found) != len(paths) {
			t.Errorf("%q: %+v", ref, *found)
		}
		for _, m := range *found {
			if named := m.Path != "up" && m.Path != "inc"; (m.Name != "") != named || m.Skip != (m.Path == "plain") {
				t.Errorf("%+v", m)
			}
			if owner, name, ok := git.OnServer("https://github.com", m.URL); ok != (m.Path == "plain") || ok && owner+"/"+name != "o/plain" {
				t.Errorf("%+v is on the server: %v", m, ok)
			}
			if _, err := d.Checkout(t.Context(), action.CheckoutRequest{Within: []git.Module{m}}, io.Discard); !errors.Is(err, action.ErrNotHere) {
				t.Errorf("%+v: %v", m, err)
			}
		}
	}
}

// A directory of a tree says that it is the working tree of another repository of the
// user's, or lies behind a link, and comes into the machine as a submodule.
func TestAttackModuleOfAnotherRepository(t *testing.T) {
	outside := t.TempDir()
	gittest.Repository(t, outside+"/private")
	sha := gittest.Git(t, outside+"/private", "rev-parse", "HEAD")
	for name, build := range map[string]func(root string){
		"a gitdir file":  func(root string) { gittest.Write(t, root+"/s/.git", "gitdir: "+outside+"/private/.git\n") },
		"a relative one": func(root string) { gittest.Write(t, root+"/s/.git", "gitdir: ../.git/modules/../../../private/.git\n") },
		"a linked .git":  func(root string) { os.Mkdir(root+"/s", 0o755); os.Symlink(outside+"/private/.git", root+"/s/.git") },
		"a link":         func(root string) { os.Symlink(outside+"/private", root+"/s") },
		"the repository": func(root string) { gittest.Write(t, root+"/s/.git", "gitdir: "+root+"/.git\n") },
		"a common one": func(root string) {
			os.MkdirAll(root+"/.git/modules", 0o755)
			os.MkdirAll(root+"/s", 0o755)
			gittest.Git(t, "", "init", "-q", "--separate-git-dir="+root+"/.git/modules/s", root+"/s")
			gittest.Write(t, root+"/.git/modules/s/commondir", outside+"/private/.git\n")
		},
		"a linked directory of them": func(root string) {
			os.MkdirAll(root+"/.git/modules", 0o755)
			os.Symlink(outside+"/private/.git", root+"/.git/modules/s")
			gittest.Write(t, root+"/s/.git", "gitdir: ../.git/modules/s\n")
		},
	} {
		root := filepath.Join(outside, "public "+name)
		gittest.Repository(t, root)
		build(root)
		for _, at := range []string{"s", "../private", root + "/../private", "s/../../private", ".git", ""} {
			for _, ref := range []string{"", "v1"} {
				d := &Dir{Root: root, Branch: "main"}
				_, err := d.Checkout(t.Context(), action.CheckoutRequest{Ref: ref, Within: []git.Module{{Path: at, SHA: sha}}}, io.Discard)
				if !errors.Is(err, action.ErrNotHere) {
					t.Errorf("%s, %q: %v", name, at, err)
				}
			}
		}
	}
}

// large is a repository with a file in Git LFS, and the content of that.
func large(t *testing.T) (d *Dir, oid, content string) {
	t.Helper()
	content = strings.Repeat("large ", 1000)
	h := sha256.Sum256([]byte(content))
	oid = hex.EncodeToString(h[:])
	root := t.TempDir()
	gittest.Git(t, "", "init", "-q", "-b", "main", root)
	gittest.Write(t, root+"/a.bin", fmt.Sprintf("version https://git-lfs.github.com/spec/v1\noid sha256:%s\nsize %d\n", oid, len(content)))
	gittest.Write(t, root+"/.lfsconfig", "[lfs]\n\turl = http://169.254.169.254/latest\n")
	gittest.Git(t, root, "add", "-A")
	gittest.Git(t, root, "commit", "-qm", "large")
	return &Dir{Root: root, Repository: "o/r", Branch: "main"}, oid, content
}

func TestLFSOfThisHost(t *testing.T) {
	d, oid, content := large(t)
	d.Server = "http://127.0.0.1:1"
	gittest.Write(t, d.Root+"/.git/lfs/objects/"+oid[:2]+"/"+oid[2:4]+"/"+oid, content)
	for _, ref := range []string{"", gittest.Git(t, d.Root, "rev-parse", "HEAD")} {
		req, notes := said(action.CheckoutRequest{Depth: 1, Ref: ref, LFS: true})
		dir, _ := checkout(t, d, req)
		if got := gittest.Tree(t, dir)["a.bin"]; got != content || len(*notes) != 0 {
			t.Errorf("%.60q, said %q", got, *notes)
		}
	}
	// Not asked for: the pointer, and it is said.
	req, notes := said(action.CheckoutRequest{Depth: 1})
	dir, _ := checkout(t, d, req)
	if got := gittest.Tree(t, dir)["a.bin"]; !strings.HasPrefix(got, "version ") || len(*notes) != 1 {
		t.Errorf("%.60q, said %q", got, *notes)
	}
}

// lfsServer answers as GitHub's LFS API does.
func lfsServer(t *testing.T, token, oid, content string) *httptest.Server {
	var srv *httptest.Server
	srv = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/o/r.git/info/lfs/objects/batch":
			if user, password, _ := r.BasicAuth(); token != "" && (user != "x-access-token" || password != token) {
				w.WriteHeader(http.StatusForbidden)
				io.WriteString(w, `{"message":"Resource not accessible"}`)
				return
			}
			var ask struct {
				Operation string
				Objects   []struct{ OID string }
			}
			if err := json.NewDecoder(r.Body).Decode(&ask); err != nil || ask.Operation != "download" || len(ask.Objects) != 1 ||
				r.Header.Get("Accept") != "application/vnd.git-lfs+json" {
				t.Errorf("%v %+v", err, ask)
				return
			}
			if ask.Objects[0].OID != oid {
				fmt.Fprintf(w, `{"objects":[{"oid":%q,"error":{"code":404,"message":"Object does not exist"}}]}`, ask.Objects[0].OID)
				return
			}
			fmt.Fprintf(w, `{"objects":[{"oid":%q,"actions":{"download":{"href":"%s/blob?signature=s3cret","header":{"X-Signed":"yes"}}}}]}`, oid, srv.URL)
		case "/blob":
			if r.Header.Get("X-Signed") != "yes" || r.Header.Get("Authorization") != "" {
				t.Errorf("headers %v", r.Header)
			}
			io.WriteString(w, content)
		default:
			t.Errorf("asked for %s", r.URL)
		}
	}))
	t.Cleanup(srv.Close)
	return srv
}

func TestLFSOfTheServer(t *testing.T) {
	d, oid, content := large(t)
	d.Server = lfsServer(t, "tok", oid, content).URL
	dir, _ := checkout(t, d, action.CheckoutRequest{Depth: 1, LFS: true, Token: "tok"})
	if got := gittest.Tree(t, dir)["a.bin"]; got != content {
		t.Errorf("%.60q", got)
	}
	for name, c := range map[string]struct {
		oid, token, want string
	}{
		"no token": {oid, "", "403 Resource not accessible"}, "no object": {strings.Repeat("0", 64), "tok", "404 Object does not exist"},
	} {
		d.Server = lfsServer(t, "tok", c.oid, content).URL
		_, err := d.Checkout(t.Context(), action.CheckoutRequest{Depth: 1, LFS: true, Token: c.token}, io.Discard)
		if _, input := errors.AsType[*action.InputError](err); !input || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "a.bin") {
			t.Errorf("%s: %v", name, err)
		}
	}
	d.Server, d.Repository = "", ""
	_, err := d.Checkout(t.Context(), action.CheckoutRequest{Depth: 1, LFS: true}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "no server to ask") {
		t.Error(err)
	}
}

// A pointer's object may be another than it says, on this host by a link or on a
// server; a tree's .lfsconfig names an address of this host's network.
func TestAttackLFSObjects(t *testing.T) {
	d, oid, content := large(t)
	secret := t.TempDir() + "/secret"
	gittest.Write(t, secret, strings.Repeat("s", len(content)))
	at := d.Root + "/.git/lfs/objects/" + oid[:2] + "/" + oid[2:4] + "/" + oid
	for name, arrange := range map[string]func(){
		"a link":           func() { os.Symlink(secret, at) },
		"a linked folder":  func() { os.Remove(filepath.Dir(at)); os.Symlink(filepath.Dir(secret), filepath.Dir(at)) },
		"other content":    func() { gittest.Write(t, at, strings.Repeat("s", len(content))) },
		"a lying server":   func() { d.Server = lfsServer(t, "", oid, strings.Repeat("s", len(content))).URL },
		"a longer content": func() { d.Server = lfsServer(t, "", oid, content[:len(content)-1]).URL },
	} {
		os.RemoveAll(d.Root + "/.git/lfs")
		os.MkdirAll(filepath.Dir(at), 0o755)
		d.Server = "http://127.0.0.1:1" // nobody is there; .lfsconfig's would be asked in vain
		arrange()
		_, err := d.Checkout(t.Context(), action.CheckoutRequest{Depth: 1, LFS: true}, io.Discard)
		if _, input := errors.AsType[*action.InputError](err); !input || strings.Contains(err.Error(), "169.254") || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
