package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// Anybody can install a public App. A server that served whatever is delivered ran
// the workflows of strangers, with its secrets.
func TestAttackRepositoryThatNobodyNamed(t *testing.T) {
	serves := func(c Config, name string) bool { _, ok := c.Policy(name); return ok }
	if serves(Default(), "octo/app") || serves(Config{Repositories: Repositories{}}, "octo/app") {
		t.Error("without repositories, one is served")
	}
	c := Config{Repositories: Repositories{"acme/app": {}, "octo/*": {}}}
	for name, want := range map[string]bool{
		"acme/app": true, "ACME/App": true, "octo/any": true, "acme/other": false, "mallory/app": false, "acme/app/x": false, "acme": false, "": false,
		"octo/..": false, "octo/*": false, "*": false, "acme-evil/app": false, "octo/a b": false, "/app": false, "octo/": false,
	} {
		if serves(c, name) != want {
			t.Errorf("%q: served %v", name, !want)
		}
	}
	if !serves(Config{Repositories: Repositories{"*": {}}}, "mallory/app") {
		t.Error("* does not mean all")
	}
	all := Default()
	all.AppID, all.AppKeyFile, all.WebhookSecret = 1, "x", "y"
	if err := all.Validate(); err == nil || !strings.Contains(err.Error(), `["*"]`) {
		t.Errorf("an App without repositories: %v", err)
	}
}

// A fork never has more than its repository, whatever is set where.
func TestAttackForkAboveItsRepository(t *testing.T) {
	c := Config{CPUs: 2, MemoryMiB: 1024, Repositories: Repositories{
		"*":        {Fork: Limits{Network: "none", MaxTimeout: Duration(time.Hour), CPUs: 8, MemoryMiB: 1 << 14, Machines: 9}},
		"acme/*":   {Limits: Limits{Machines: 2, MaxTimeout: Duration(10 * time.Minute)}},
		"acme/app": {Limits: Limits{Network: "public", CPUs: 4}},
	}}
	p, _ := c.Policy("acme/app")
	if p.Fork.Network.String() != "none" || p.Fork.MaxTimeout != 10*time.Minute || p.Fork.CPUs != 4 || p.Fork.MemoryMiB != 1024 || p.Fork.Machines != 2 ||
		p.Own.CPUs != 4 {
		t.Errorf("%+v", p)
	}
	if p, _ := c.Policy("octo/app"); p.Own.MaxTimeout != 6*time.Hour || p.Own.Machines != 0 || p.Fork.Machines != 9 || p.Fork.CPUs != 2 {
		t.Errorf("%+v", p)
	}
}

// One flat file gave every repository's jobs everybody's secrets.
func TestAttackSecretsOfAnother(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o700)
	for name, text := range map[string]string{
		"org/acme": "ONE=acme\nTWO=acme", "org/mallory": "ONE=mallory", "repo/acme/app": "two='app'\n# remark\nexport THREE=\"a\nb\"", "repo/mallory/app": "FOUR=4",
		"env/acme/app/Production": "TWO=production", "env/acme/app/production%2Feu": "TWO=eu", "env/mallory/app/production": "TWO=theirs",
		"dependabot/repo/acme/app": "ONE=bot",
	} {
		put(t, dir, name, text)
	}
	v, err := ReadValues(dir, true)
	if err != nil {
		t.Fatal(err)
	}
	same := func(what string, got map[string]string, want string) {
		t.Helper()
		var b strings.Builder
		for _, k := range []string{"ONE", "TWO", "THREE", "FOUR"} {
			if s, ok := got[k]; ok {
				b.WriteString(k + "=" + s + " ")
			}
		}
		if b.String() != want || len(got) != strings.Count(want, "=") {
			t.Errorf("%s: %v", what, got)
		}
	}
	same("acme/app", v.Of("Acme/APP"), "ONE=acme TWO=app THREE=a\nb ")
	same("acme/other", v.Of("acme/other"), "ONE=acme TWO=acme ")
	same("mallory/app", v.Of("mallory/app"), "ONE=mallory FOUR=4 ")
	same("nobody's", v.Of("other/app"), "")
	same("production", v.Environments("acme/App")["production"], "TWO=production ")
	same("production/eu", v.Environments("acme/app")["production/eu"], "TWO=eu ")
	same("another's environment", v.Environments("acme/app")["../../mallory/app/production"], "")
	same("no environment", v.Environments("acme/other")["production"], "")
	same("Dependabot's", v.Dependabot("acme/app"), "ONE=bot ")
	same("Dependabot's elsewhere", v.Dependabot("mallory/app"), "")
	var none *Values
	same("without a directory", none.Of("acme/app"), "")
	// What is handed out is the caller's.
	v.Of("acme/app")["ONE"] = "x"
	v.Environments("acme/app")["production"]["TWO"] = "x"
	same("acme/app again", v.Of("acme/app"), "ONE=acme TWO=app THREE=a\nb ")
	same("production again", v.Environments("acme/app")["production"], "TWO=production ")
}

// Files of secrets that every user of the host may read: they are refused, with
// what mends it.
func TestAttackSecretsThatOthersRead(t *testing.T) {
	for name, c := range map[string]struct {
		change func(dir string)
		says   string
	}{
		"a file for all":     {func(dir string) { os.Chmod(filepath.Join(dir, "org/acme"), 0o644) }, "chmod -R go= "},
		"a file for a group": {func(dir string) { os.Chmod(filepath.Join(dir, "org/acme"), 0o640) }, "chmod -R go= "},
		"a directory":        {func(dir string) { os.Chmod(filepath.Join(dir, "org"), 0o711) }, "chmod -R go= "},
		"the directory":      {func(dir string) { os.Chmod(dir, 0o755) }, "chmod -R go= "},
		"a way out":          {func(dir string) { os.Symlink("/etc/passwd", filepath.Join(dir, "org", "root")) }, "escapes"},
		"twice":              {func(dir string) { os.WriteFile(filepath.Join(dir, "org", "ACME"), nil, 0o600) }, "other letters' case"},
		"misplaced":          {func(dir string) { os.WriteFile(filepath.Join(dir, "secrets"), []byte("A=b"), 0o600) }, "none of org/OWNER"},
		"no line":            {func(dir string) { os.WriteFile(filepath.Join(dir, "org", "x"), []byte("A=b\nhunter2"), 0o600) }, "line 2: want NAME=value"},
		"no name":            {func(dir string) { os.WriteFile(filepath.Join(dir, "org", "x"), []byte("A-B=hunter2"), 0o600) }, "line 1: a name has"},
		"GitHub's name":      {func(dir string) { os.WriteFile(filepath.Join(dir, "org", "x"), []byte("GITHUB_TOKEN=hunter2"), 0o600) }, "line 1: a name has"},
		"too long":           {func(dir string) { os.WriteFile(filepath.Join(dir, "org", "x"), make([]byte, 2<<20), 0o600) }, "more than"},
		"another's": {func(dir string) {
			if os.Getuid() != 0 {
				t.Skip("only root can give files away")
			}
			os.Chown(filepath.Join(dir, "org", "acme"), 4711, 4711)
		}, "another user"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			os.Chmod(dir, 0o700)
			put(t, dir, "org/acme", "A=hunter2")
			c.change(dir)
			config := Default()
			config.SecretsDir = dir
			if err := config.Validate(); err == nil || !strings.Contains(err.Error(), c.says) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%v", err)
			}
		})
	}
}
