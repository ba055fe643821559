package git

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/hearth-ci/hearth/internal/git/gittest"
)

// told is what GitHub tells of a commit: its object taken apart, times without
// their zones, no line end after the message.
func told(t *testing.T, sha, object string) *Commit {
	t.Helper()
	header, message, _ := strings.Cut(object, "\n\n")
	c := &Commit{SHA: sha, Message: strings.TrimRight(message, "\n")}
	person := func(s string) Person {
		name, rest, _ := strings.Cut(s, " <")
		email, at, _ := strings.Cut(rest, "> ")
		n, err := strconv.ParseInt(strings.Fields(at)[0], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		return Person{name, email, time.Unix(n, 0).UTC()}
	}
	before, rest, signed := strings.Cut(header, "\ngpgsig ")
	for line := range strings.SplitSeq(before, "\n") {
		switch k, v, _ := strings.Cut(line, " "); k {
		case "tree":
			c.Tree = v
		case "parent":
			c.Parents = append(c.Parents, v)
		case "author":
			c.Author = person(v)
		case "committer":
			c.Committer = person(v)
		}
	}
	if signed {
		c.Signature, c.Payload = strings.ReplaceAll(rest, "\n ", "\n"), before+"\n\n"+message
	}
	return c
}

func TestCommitMadeAnew(t *testing.T) {
	dir := t.TempDir()
	gittest.Repository(t, dir)
	tree, parent := gittest.Git(t, dir, "rev-parse", "HEAD^{tree}"), gittest.Git(t, dir, "rev-parse", "HEAD")
	who := func(zone string) string { return "Jörg Ä <j@x> 1700000000 " + zone }
	const signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n wsBcBAABCAAQBQJ\n =abcd\n -----END PGP SIGNATURE-----\n"
	for name, c := range map[string]struct {
		object string
		can    bool
	}{
		"plain":              {fmt.Sprintf("tree %s\nparent %s\nauthor %s\ncommitter %s\n\nmessage\n\nof lines\n", tree, parent, who("+0000"), who("+0000")), true},
		"first":              {fmt.Sprintf("tree %s\nauthor %s\ncommitter %s\n\nm\n", tree, who("-0700"), who("-0700")), true},
		"merge, two zones":   {fmt.Sprintf("tree %s\nparent %s\nparent %[2]s\nauthor %s\ncommitter %s\n\nm\n", tree, parent, who("+0545"), who("-0330")), true},
		"no line end":        {fmt.Sprintf("tree %s\nparent %s\nauthor %s\ncommitter %s\n\nm", tree, parent, who("+1300"), who("+0000")), true},
		"signed":             {fmt.Sprintf("tree %s\nparent %s\nauthor %s\ncommitter %s\n%s\nm\n", tree, parent, who("+0100"), who("+0200"), signature), true},
		"signed by GitHub":   {fmt.Sprintf("tree %s\nparent %s\nauthor %s\ncommitter %s\n%s \n\nm", tree, parent, who("+0100"), who("+0200"), signature), true},
		"an unknown header":  {fmt.Sprintf("tree %s\nparent %s\nauthor %s\ncommitter %s\nencoding latin1\n\nm\n", tree, parent, who("+0000"), who("+0000")), false},
		"an impossible zone": {fmt.Sprintf("tree %s\nparent %s\nauthor %s\ncommitter %s\n\nm\n", tree, parent, who("+0001"), who("+0000")), false},
	} {
		sha, err := At(dir+"/.git").Adopt(t.Context(), []byte(c.object))
		if err != nil {
			t.Fatal(err)
		}
		object, err := told(t, sha, c.object).Object()
		if c.can && (err != nil || string(object) != c.object) || !c.can && !errors.Is(err, ErrNotRebuilt) {
			t.Errorf("%s: %v\n%s", name, err, object)
		}
	}
}

func TestZones(t *testing.T) {
	if len(zones) != 1+14*4+12*4 || len(slices.Compact(slices.Sorted(slices.Values(zones)))) != len(zones) || zones[0] != "+0000" ||
		!slices.Contains(zones, "+0545") || !slices.Contains(zones, "-0930") {
		t.Errorf("%d zones: %v", len(zones), zones)
	}
}

// A repository of any size can stand behind a `uses:` or a fetch-depth: 0; it filled
// the disk of the host, until ten minutes were over.
func TestAttackEndlessFetch(t *testing.T) {
	dir := t.TempDir()
	gittest.Repository(t, dir)
	d, err := Init(filepath.Join(t.TempDir(), "x"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	done := make(chan struct{})
	most := d.size() + 1000
	go func() {
		defer close(done)
		d.watch(cancel, most, nil)
	}()
	if err := os.WriteFile(filepath.Join(d.path, "objects", "incoming"), make([]byte, 2000), 0o600); err != nil {
		t.Fatal(err)
	}
	<-done
	if err := d.fetch(ctx, cancel, dir, 1000, nil, []string{"main"}); err != ErrTooLarge {
		t.Errorf("%v", err)
	}
	if err := d.Fetch(t.Context(), Remote{URL: "file://" + dir}, nil, "main"); err != nil {
		t.Errorf("one of ordinary size: %v", err)
	}
}

// Addresses that are programs, or hosts over transports that run some.
func TestAttackAddresses(t *testing.T) {
	p := gittest.New(t)
	d, err := Init(filepath.Join(t.TempDir(), "x"), "", "")
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []string{"ext::" + p.Program, "ssh://-oProxyCommand=" + p.Program + "/x", "git@host:x/y", "-u" + p.Program, "fd::7", "/etc",
		"git://host/x", ""} {
		if err := d.Fetch(t.Context(), Remote{URL: u}, nil, "HEAD"); err == nil || !strings.Contains(err.Error(), "no address") {
			t.Errorf("%q: %v", u, err)
		}
		// Nor when a call got as far as git.
		if _, err := d.Over("https").Run(t.Context(), "fetch", "--", u, "HEAD"); err == nil {
			t.Errorf("%q was fetched", u)
		}
	}
}

// What a tree calls its files never names one of the repository's own.
func TestAttackNamesInTrees(t *testing.T) {
	dir := t.TempDir()
	gittest.Repository(t, dir)
	d := At(dir + "/.git")
	blob := gittest.Git(t, dir, "rev-parse", "HEAD:a.txt")
	for _, name := range []string{".git", ".GIT", "..", "."} {
		var out strings.Builder
		if err := d.stream(t.Context(), strings.NewReader("100644 blob "+blob+"\t"+name+"\x00"), &out, "mktree", "-z"); err != nil {
			continue // git itself makes none
		}
		if _, err := d.Tree(t.Context(), strings.TrimSpace(out.String())); err == nil {
			t.Errorf("a tree with a file %q was taken", name)
		}
	}
}

// Where a config of somebody's were read after all, the settings of every command
// stand above it. (Filters, textconv and includes have names of their own, and
// cannot be switched off: that is what views are for.)
func TestAttackSettings(t *testing.T) {
	for name, c := range map[string]struct {
		config string // TRAP is the program
		args   []string
	}{
		"fsmonitor":     {"[core]\n\tfsmonitor = TRAP\n", []string{"diff", "--name-only"}},
		"hooks":         {"", []string{"update-ref", "refs/heads/new", "HEAD"}},
		"external diff": {"[diff]\n\texternal = TRAP\n", []string{"diff", "HEAD^^", "HEAD"}},
		"ext":           {"[protocol]\n\tallow = always\n[protocol \"ext\"]\n\tallow = always\n", []string{"fetch", "ext::TRAP"}},
		"promisor": {"[extensions]\n\tpartialClone = o\n[remote \"o\"]\n\turl = ext::TRAP\n\tpromisor = true\n[core]\n\trepositoryformatversion = 1\n[protocol]\n\tallow = always\n",
			[]string{"cat-file", "-p", strings.Repeat("1", 40)}},
		"ssh":       {"[core]\n\tsshCommand = TRAP\n[remote \"o\"]\n\turl = ssh://host/x\n", []string{"fetch", "o"}},
		"signature": {"[gpg]\n\tprogram = TRAP\n[log]\n\tshowSignature = true\n", []string{"log", "-1", "signed"}},
		"editor":    {"[core]\n\teditor = TRAP\n", []string{"commit", "--allow-empty", "--edit", "-m", "x"}},
	} {
		t.Run(name, func(t *testing.T) {
			p, dir := gittest.New(t), t.TempDir()
			gittest.Repository(t, dir)
			gittest.Git(t, dir, "commit", "-q", "--allow-empty", "-m", "third")
			gittest.Write(t, dir+"/sub/b.txt", "third\n")
			gittest.Git(t, dir, "-c", "core.attributesFile=/dev/null", "commit", "-qam", "fourth")
			at := At(dir + "/.git").on(dir)
			object := gittest.Git(t, dir, "cat-file", "commit", "HEAD")
			signed, err := at.Adopt(t.Context(), []byte(strings.Replace(object, "\n\n",
				"\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n x\n -----END PGP SIGNATURE-----\n\n", 1)))
			if err != nil {
				t.Fatal(err)
			}
			gittest.Git(t, dir, "tag", "signed", signed)
			os.Remove(dir + "/.gitattributes")
			p.Arm(dir+"/.git", "")
			config := func(s string) string { return strings.ReplaceAll(s, "TRAP", p.Program) }
			gittest.Write(t, dir+"/.git/config", "[core]\n\trepositoryformatversion = 0\n[user]\n\tname = x\n\temail = y\n"+config(c.config))
			args := append([]string(nil), c.args...)
			for i := range args {
				args[i] = config(args[i])
			}
			cmd := exec.Command("git", args...)
			cmd.Dir = dir
			cmd.Run()
			if len(p.Runs()) == 0 {
				t.Fatal("an ordinary git does not run it")
			}
			at.Run(t.Context(), args...)
		})
	}
}

// The attributes of a tree have no say in what has changed: with one of them the
// host's iconv ran with any encoding that the tree named.
func TestAttackEncodings(t *testing.T) {
	dir := t.TempDir()
	gittest.Git(t, "", "init", "-q", "-b", "main", dir)
	gittest.Write(t, dir+"/a", "text")
	gittest.Git(t, dir, "add", "a")
	gittest.Git(t, dir, "commit", "-qm", "first")
	parent := gittest.Git(t, dir, "rev-parse", "HEAD")
	gittest.Write(t, dir+"/.gitattributes", "a working-tree-encoding=UTF-16LE\n")
	gittest.Git(t, dir, "add", ".gitattributes")
	gittest.Git(t, dir, "commit", "-qm", "second")
	gittest.Write(t, dir+"/a", "t\x00e\x00x\x00t\x00") // to a git that converts: not changed
	r, err := Open(t.Context(), dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	changed, err := r.Changed(t.Context(), parent)
	if err != nil || !slices.Contains(changed, "a") || !slices.Contains(changed, ".gitattributes") {
		t.Errorf("%q %v", changed, err)
	}
	// The name in a commit's header is one for iconv, too.
	object := gittest.Git(t, dir, "cat-file", "commit", "HEAD")
	sha, err := At(dir+"/.git").Adopt(t.Context(), []byte(strings.Replace(object, "\n\n", "\nencoding UTF-16LE\n\n", 1)+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c := r.Commit(t.Context(), sha); c.Message != "second" || c.Author.Name != "t" || c.Author.When.IsZero() || len(c.Parents) != 1 || c.Tree == "" {
		t.Errorf("%+v", c)
	}
}

// The promise of the package is worth nothing if another runs git by itself.
func TestAttackNobodyElseRunsGit(t *testing.T) {
	top := "../.."
	places, runs := 0, regexp.MustCompile(`exec\.\w+\([^"]*"(?:[^"]*/)?git[-"]`)
	err := filepath.WalkDir(top, func(name string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(top, name)
		if e.IsDir() && (strings.HasPrefix(e.Name(), ".") && name != top || e.Name() == "gittest") {
			return filepath.SkipDir
		}
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return nil
		}
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if runs.MatchString(line) {
				if places++; rel != "internal/git/git.go" {
					t.Errorf("%s runs git: %s", rel, strings.TrimSpace(line))
				}
			}
		}
		return nil
	})
	if err != nil || places != 1 {
		t.Errorf("%d places run git: %v", places, err)
	}
}
