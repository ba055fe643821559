package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hearth-ci/hearth/internal/git/gittest"
)

// runs is `hearth ARGS`, in this process, with a home of its own.
func runs(t *testing.T, args ...string) (code int, out, errs string) {
	t.Helper()
	home := t.TempDir()
	var o, e bytes.Buffer
	a := &app{in: strings.NewReader(""), out: &o, err: &e, getenv: func(name string) string {
		if name == "HEARTH_HOME" {
			return home
		}
		return os.Getenv(name)
	}}
	return a.main(t.Context(), args), o.String(), e.String()
}

// looking are the ways to look at a project that run nothing.
var looking = [][]string{{"run", "-l"}, {"run", "-n"}, {"run", "-g"}, {"run", "--explain-triggers"}}

// `hearth run -C sub` of a plain clone, and even `-l`, took a directory of tracked
// files that looks like a bare repository for one, and ran what its config named.
func TestAttackFindingTheProject(t *testing.T) {
	for name, build := range map[string]func(p *gittest.Trap, dir string) (sub string){
		"embedded bare repository": func(p *gittest.Trap, dir string) string {
			p.Bare(dir + "/origin/sub")
			gittest.Git(t, "", "init", "-q", "-b", "main", dir+"/origin")
			gittest.Git(t, dir+"/origin", "-c", "core.attributesFile=/dev/null", "add", "-A")
			gittest.Git(t, dir+"/origin", "commit", "-qm", "all of it is tracked")
			gittest.Git(t, dir, "clone", "-q", "origin", "clone")
			for _, n := range []string{"objects", "refs/heads"} {
				if _, err := os.Stat(dir + "/clone/sub/" + n); err != nil {
					t.Fatal(err)
				}
			}
			return dir + "/clone/sub"
		},
		"repository": func(p *gittest.Trap, dir string) string {
			gittest.Repository(t, dir)
			p.Arm(dir+"/.git", "")
			return dir
		},
		"below a repository": func(p *gittest.Trap, dir string) string {
			gittest.Repository(t, dir)
			p.Arm(dir+"/.git", "")
			return dir + "/sub"
		},
		"a .git that points elsewhere": func(p *gittest.Trap, dir string) string {
			p.Bare(dir + "/evil")
			for n, text := range gittest.Files {
				gittest.Write(t, dir+"/x/"+n, text)
			}
			gittest.Write(t, dir+"/x/.git", "gitdir: ../evil\n")
			return dir + "/x"
		},
		"submodule": func(p *gittest.Trap, dir string) string {
			gittest.Repository(t, dir)
			gittest.Repository(t, dir+"/s")
			gittest.Git(t, dir, "-c", "advice.addEmbeddedRepo=false", "add", "s")
			gittest.Git(t, dir, "commit", "-qm", "submodule")
			p.Arm(dir+"/s/.git", "")
			return dir
		},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := gittest.New(t), t.TempDir()
			sub := build(p, dir)
			p.Runs() // of git while it was built
			for _, args := range looking {
				code, out, errs := runs(t, append(args, "-C", sub)...)
				if code != 0 || !strings.Contains(out+errs, "ci.yml") {
					t.Errorf("%v: %d\n%s%s", args, code, out, errs)
				}
			}
		})
	}
}

// Going up from where the user stands, what another user put there is not a project
// of theirs: a /tmp/.github/workflows would be run for whoever works below /tmp.
func TestAttackProjectAbove(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	t.Setenv("HOME", t.TempDir())
	p, above := gittest.New(t), t.TempDir()
	gittest.Repository(t, above)
	p.Arm(above+"/.git", "")
	below := filepath.Join(above, "mine", "deep")
	gittest.Write(t, below+"/f", "x")
	find := func() string {
		t.Helper()
		project, err := findProject(t.Context(), below)
		if err != nil {
			t.Fatal(err)
		}
		return project.root
	}
	if got := find(); got != above {
		t.Errorf("one's own above is not found: %s", got)
	}
	for _, theirs := range [][]string{{".git", ".github"}, {".git", ".github/workflows"}} {
		for _, n := range theirs {
			if err := os.Lchown(filepath.Join(above, n), 12345, 12345); err != nil {
				t.Fatal(err)
			}
		}
		if got := find(); got != below {
			t.Errorf("%v of another user: the project is %s", theirs, got)
		}
		for _, n := range theirs {
			os.Lchown(filepath.Join(above, n), 0, 0)
		}
	}
	// Named itself, it is refused, and git's remedy is what helps.
	os.Lchown(above+"/.git", 12345, 12345)
	code, _, errs := runs(t, "run", "-l", "-C", above)
	if code != exitUsage || !strings.Contains(errs, "git config --global --add safe.directory "+above) {
		t.Errorf("%d %s", code, errs)
	}
	gittest.Write(t, os.Getenv("HOME")+"/.gitconfig", "[safe]\n\tdirectory = "+above+"\n")
	if code, out, errs := runs(t, "run", "-l", "-C", above); code != 0 {
		t.Errorf("%d %s%s", code, out, errs)
	}
}

// Secrets that every user of the host can read are no secrets.
func TestAttackReadableSecrets(t *testing.T) {
	dir := t.TempDir()
	for n, text := range gittest.Files {
		gittest.Write(t, dir+"/"+n, text)
	}
	for _, file := range []string{".secrets", "my.secrets", "prod"} {
		gittest.Write(t, dir+"/"+file, "TOKEN=hunter2\n")
	}
	args := []string{"run", "-l", "-C", dir, "--secret-file", dir + "/my.secrets", "--environment-secret-file", "prod=" + dir + "/prod"}
	for _, c := range []struct {
		mode os.FileMode
		args []string
		want []string
	}{
		{0o644, args[:4], []string{".secrets"}}, {0o640, args, []string{"my.secrets", "prod"}}, {0o602, args, []string{"my.secrets", "prod"}},
		{0o600, args, nil}, {0o400, args[:4], nil},
	} {
		for _, file := range []string{".secrets", "my.secrets", "prod"} {
			os.Chmod(dir+"/"+file, c.mode)
		}
		code, _, errs := runs(t, c.args...)
		if code != 0 || strings.Count(errs, "warning") != len(c.want) || strings.Contains(errs, "hunter2") {
			t.Errorf("%o %v: %d %q", c.mode, c.args, code, errs)
		}
		for _, file := range c.want {
			if !strings.Contains(errs, "chmod 600 "+dir+"/"+file+"\n") {
				t.Errorf("%o: no word of %s: %q", c.mode, file, errs)
			}
		}
	}
}
