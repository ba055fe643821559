package engine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/action"
	"github.com/hearth-ci/hearth/internal/ci"
	"github.com/hearth-ci/hearth/internal/expr"
	"github.com/hearth-ci/hearth/internal/git/gittest"
	"github.com/hearth-ci/hearth/internal/source"
)

// superproject is a directory of repositories, as a server: o/app with the submodule lib, that
// has the submodule deep; and what checks out of it.
func superproject(t *testing.T, b *bench) (top string, src *source.Dir) {
	t.Helper()
	top = t.TempDir()
	for _, n := range []string{"deep", "lib", "app"} {
		gittest.Git(t, "", "init", "-q", "-b", "main", top+"/o/"+n)
		gittest.Git(t, top+"/o/"+n, "config", "uploadpack.allowAnySHA1InWant", "true")
		gittest.Write(t, top+"/o/"+n+"/"+n+".txt", n+"\n")
		gittest.Git(t, top+"/o/"+n, "add", "-A")
		gittest.Git(t, top+"/o/"+n, "commit", "-qm", n)
	}
	for _, m := range [][2]string{{"lib", "deep"}, {"app", "lib"}} {
		in := top + "/o/" + m[0]
		gittest.Git(t, in, "-c", "protocol.file.allow=always", "submodule", "add", "-q", "../"+m[1], m[1])
		gittest.Git(t, in, "commit", "-qm", "with "+m[1])
		gittest.Git(t, in, "tag", "v1")
	}
	server := "file://" + top
	gh := b.job.Run.GitHub.AsMap().Clone()
	gh.Set("server_url", expr.String(server))
	gh.Set("repository", expr.String("o/app"))
	b.job.Run.GitHub = expr.Object(gh)
	b.job.Actions = action.NewResolver(action.Config{Dir: t.TempDir(), Server: server})
	src = &source.Dir{Root: top + "/o/app", Repository: "o/app", Server: server, Branch: "main"}
	b.job.Source = src
	return top, src
}

// Submodules come from where they are: the working tree, the server, or by the
// machine's own git; each is one for git afterwards.
func TestCheckoutSubmodules(t *testing.T) {
	for name, local := range map[string]bool{"of the working tree": true, "of the server": false} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t, `
      - uses: actions/checkout@v4
        with: {submodules: true}
      - run: cat lib/lib.txt; ls lib/deep | wc -l; git submodule status | cut -c1; git -C lib log --format=%s | head -1; git status --porcelain
      - uses: actions/checkout@v4
        with: {submodules: recursive, path: all, fetch-depth: 0}
      - run: cat all/lib/deep/deep.txt; git -C all submodule status --recursive | wc -l; git -C all status --porcelain; ls all/.git/modules/lib/modules
      - uses: actions/checkout@v4
        with: {repository: o/lib, submodules: true, path: other}
      - run: cat other/deep/deep.txt
      - uses: actions/checkout@v4
      - run: ls lib | wc -l
`)
			_, src := superproject(t, b)
			want := "lib\n"
			if local {
				gittest.Git(t, src.Root, "-c", "protocol.file.allow=always", "submodule", "update", "-q", "--init", "--recursive")
			} else {
				gittest.Git(t, src.Root, "submodule", "deinit", "-q", "-f", "--all")
			}
			if res := b.run(); res.Conclusion != ci.Success {
				t.Fatalf("%s\n%s", steps(res), b.log())
			}
			b.wantOutput(want + "0\n \nwith deep\n" + "deep\n2\ndeep\n" + "deep\n" + "0\n")
			if got := strings.Count(b.log(), "from the working tree"); got != map[bool]int{true: 3, false: 0}[local] {
				t.Errorf("%d from the working tree:\n%s", got, b.log())
			}
		})
	}
}

// What no .gitmodules names, and what is not to be had, fails the step as it does on
// GitHub.
func TestCheckoutSubmodulesThatFail(t *testing.T) {
	b := newBench(t, `
      - id: gone
        uses: actions/checkout@v4
        continue-on-error: true
        with: {submodules: true}
      - uses: actions/checkout@v4
        continue-on-error: true
        with: {submodules: true, ref: unnamed}
      - uses: actions/checkout@v4
        continue-on-error: true
        with: {github-server-url: "https://example.com"}
      - uses: actions/checkout@v4
        with: {submodules: true, ref: none}
`)
	top, src := superproject(t, b)
	gittest.Git(t, src.Root, "submodule", "deinit", "-q", "-f", "--all")
	gittest.Git(t, src.Root, "checkout", "-q", "-b", "unnamed")
	gittest.Git(t, src.Root, "config", "-f", ".gitmodules", "--remove-section", "submodule.lib")
	gittest.Git(t, src.Root, "commit", "-qam", "unnamed")
	gittest.Git(t, src.Root, "checkout", "-q", "-b", "none", "main")
	gittest.Git(t, src.Root, "config", "-f", ".gitmodules", "submodule.lib.update", "none")
	gittest.Git(t, src.Root, "commit", "-qam", "none")
	gittest.Git(t, src.Root, "checkout", "-q", "main")
	os.RemoveAll(filepath.Join(src.Root, ".git/modules"))
	os.RemoveAll(filepath.Join(top, "o/lib"))
	res := b.run()
	b.wantSteps(res, "1 Run actions/checkout@v4 failure/success", "2 Run actions/checkout@v4 failure/success", "3 Run actions/checkout@v4 failure/success",
		"4 Run actions/checkout@v4 success")
	for i, want := range []string{"Submodule path 'lib' (file://", "fatal: no submodule mapping found in .gitmodules for path 'lib'",
		"github-server-url https://example.com is another server"} {
		if !strings.Contains(res.Steps[i].Reason, want) {
			t.Errorf("%q", res.Steps[i].Reason)
		}
	}
}

// A hostile .gitmodules has the host fetch from an address, or run a program, that it
// names: what is not on the run's server is the machine's to fetch.
func TestAttackSubmoduleAddresses(t *testing.T) {
	for _, address := range []string{"ext::TRAP", "file:///etc", "-oProxyCommand=TRAP", "--upload-pack=TRAP", "ssh://-oProxyCommand=TRAP/x",
		"http://169.254.169.254/x/y", "https://127.0.0.1:1/o/r", "TOP/../elsewhere", "../../../elsewhere/secret"} {
		b := newBench(t, "      - uses: actions/checkout@v4\n        with: {submodules: recursive}\n")
		top, src := superproject(t, b)
		p := gittest.New(t)
		gittest.Git(t, src.Root, "submodule", "deinit", "-q", "-f", "--all")
		os.RemoveAll(src.Root + "/.git/modules")
		address = strings.NewReplacer("TRAP", p.Program, "TOP", "file://"+top).Replace(address)
		gittest.Git(t, src.Root, "config", "-f", ".gitmodules", "submodule.lib.url", address)
		gittest.Git(t, src.Root, "config", "-f", ".gitmodules", "submodule.lib.update", "!"+p.Program)
		gittest.Git(t, src.Root, "commit", "-qam", "hostile")
		res := b.run()
		if res.Conclusion != ci.Failure || !strings.Contains(res.Steps[0].Reason, "Submodule path 'lib'") && !strings.Contains(res.Steps[0].Reason, "git exit") {
			t.Errorf("%s: %s %q\n%s", address, res.Conclusion, res.Steps[0].Reason, b.log())
		}
	}
}

// What only a token may read does not go through the mirrors, which are everybody's:
// the machine's git asks for it.
func TestCheckoutWithAToken(t *testing.T) {
	const token = "ghs_0123456789abcdefABCDEF"
	server, bare := forge(t, token)
	src, git := repository(t)
	git("push", "-q", bare, "HEAD:refs/heads/main", "v1", "HEAD^:refs/heads/side")
	gittest.Git(t, src.Root, "update-index", "--add", "--cacheinfo", "160000,"+git("rev-parse", "v1")+",private")
	gittest.Write(t, src.Root+"/.gitmodules", "[submodule \"private\"]\n\tpath = private\n\turl = ../r\n")
	git("add", ".gitmodules")
	os.Mkdir(src.Root+"/private", 0o755)
	git("commit", "-qm", "submodule")
	b := newBench(t, `
      - uses: actions/checkout@v4
        with: {repository: o/r, token: "${{ secrets.T }}"}
      - run: cat main.txt; git branch --show-current; git log --format=%s; git tag; git rev-parse --is-shallow-repository
      - uses: actions/checkout@v4
        id: v1
        with: {repository: o/r, token: "${{ secrets.T }}", ref: v1, fetch-tags: true, path: tag, persist-credentials: false}
      - run: cd tag; cat main.txt; git branch --show-current | wc -c; git tag; git rev-parse HEAD | grep -qx "${{ steps.v1.outputs.commit }}"; grep -c include .git/config
        continue-on-error: true
      - uses: actions/checkout@v4
        with: {repository: o/r, token: "${{ secrets.T }}", ref: side, fetch-depth: 0, path: side}
      - run: cd side; git branch --show-current; git branch -r; git tag
      - uses: actions/checkout@v4
        with: {repository: o/r, path: none}
        continue-on-error: true
      - uses: actions/checkout@v4
        with: {repository: o/r, token: "${{ secrets.T }}", ref: "--upload-pack=x", path: none}
        continue-on-error: true
      - uses: actions/checkout@v4
        with: {submodules: true, token: "${{ secrets.T }}", path: own}
      - run: cat own/private/main.txt; git -C own submodule status | cut -c1
`)
	src.Repository, src.Server = "o/mine", server
	b.job.Secrets = map[string]string{"T": token}
	b.job.Source, b.job.Actions = src, action.NewResolver(action.Config{Dir: t.TempDir(), Server: server})
	gh := b.job.Run.GitHub.AsMap().Clone()
	gh.Set("server_url", expr.String(server))
	gh.Set("repository", expr.String("o/mine"))
	b.job.Run.GitHub = expr.Object(gh)
	res := b.run()
	if res.Conclusion != ci.Success || res.Steps[6].Outcome != ci.Failure || res.Steps[7].Outcome != ci.Failure {
		t.Errorf("%s\n%s", steps(res), b.log())
	}
	b.wantOutput("two\nmain\nsecond\ntrue\n" + "one\n0\nv1\n0\n" + "side\n  origin/main\n  origin/side\nv1\n" + "one\n \n")
	if strings.Contains(b.log(), token) {
		t.Error("the token is shown")
	}
}
