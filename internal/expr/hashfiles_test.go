package expr

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

func hashOf(contents ...string) string {
	if len(contents) == 0 {
		return ""
	}
	all := sha256.New()
	for _, c := range contents {
		one := sha256.Sum256([]byte(c))
		all.Write(one[:])
	}
	return hex.EncodeToString(all.Sum(nil))
}

func TestHashFiles(t *testing.T) {
	// Every file holds its own name, so that what was hashed can be listed.
	fsys := fstest.MapFS{}
	for _, name := range []string{
		"go.sum", "a/go.sum", "a/b/go.sum", "a/b/x.lock", "a/.hidden/go.sum", "package-lock.json", "[x].txt",
		"foo/bar.txt", "foo/baz/qux.txt", "foo2", "z.sum/inner",
	} {
		fsys[name] = &fstest.MapFile{Data: []byte(name), Mode: 0o644}
	}
	for _, c := range []struct {
		patterns string // separated by spaces
		want     string
	}{
		{"go.sum", "go.sum"},
		{"./go.sum", "go.sum"},
		{"**/go.sum", "a/.hidden/go.sum a/b/go.sum a/go.sum go.sum"},
		{"**/*.sum", "a/.hidden/go.sum a/b/go.sum a/go.sum go.sum z.sum/inner"},
		{"*.sum", "go.sum z.sum/inner"},
		{"a", "a/.hidden/go.sum a/b/go.sum a/b/x.lock a/go.sum"},
		{"a/**", "a/.hidden/go.sum a/b/go.sum a/b/x.lock a/go.sum"},
		{"a/*", "a/.hidden/go.sum a/b/go.sum a/b/x.lock a/go.sum"},
		{"a/ !a/b", "a/.hidden/go.sum a/go.sum"},
		{"**/go.sum !a/** a/b/*", "a/b/go.sum a/b/x.lock go.sum"},
		{"!go.sum", ""},
		{"!!go.sum", "go.sum"},
		{"go.sum !**", ""},
		{"foo2/", ""},
		{"foo/ba?.txt", "foo/bar.txt"},
		{"foo/ba[!z].txt", "foo/bar.txt"},
		{"[[]x].txt", "[x].txt"},
		{"package-lock.json go.sum", "package-lock.json go.sum"},
		{"/w/s/go.sum", "go.sum"},
		{"/w/go.sum", ""},
		{"/w/s", "[x].txt a/.hidden/go.sum a/b/go.sum a/b/x.lock a/go.sum foo/bar.txt foo/baz/qux.txt foo2 go.sum package-lock.json z.sum/inner"},
		{"nothing-here", ""},
	} {
		got, err := HashFiles(fsys, "/w/s", strings.Fields(c.patterns))
		if err != nil || got != hashOf(strings.Fields(c.want)...) {
			t.Errorf("%s: %s, %v", c.patterns, got, err)
		}
	}
	if got, err := HashFiles(fsys, "", []string{"# all\n\n  **/go.sum \n!a/**"}); err != nil || got != hashOf("go.sum") {
		t.Errorf("lines: %s, %v", got, err)
	}
	for _, bad := range []string{"../x", "a/./b", "!", "--what"} {
		if _, err := HashFiles(fsys, "", []string{bad}); err == nil {
			t.Errorf("%s: no error", bad)
		}
	}
}

func TestHashFilesLinks(t *testing.T) {
	dir := t.TempDir()
	os.MkdirAll(filepath.Join(dir, "real"), 0o755)
	os.WriteFile(filepath.Join(dir, "real", "f"), []byte("f"), 0o644)
	for link, to := range map[string]string{"dirlink": "real", "filelink": "real/f", "broken": "nowhere", "real/loop": ".."} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	fsys := os.DirFS(dir)
	if _, err := HashFiles(fsys, "", []string{"**"}); err == nil || !strings.Contains(err.Error(), "broken is a symbolic link that leads nowhere") {
		t.Errorf("a dangling link: %v", err)
	}
	if got, err := HashFiles(fsys, "", []string{"**", "!broken"}); err != nil || got != hashOf("f", "f") {
		t.Errorf("not following: %s, %v", got, err) // filelink, real/f
	}
	if got, err := HashFiles(fsys, "", []string{"--follow-symbolic-links", "**"}); err != nil || len(got) != 64 || got == hashOf("f", "f") {
		t.Errorf("following: %s, %v", got, err)
	}
}
