package results

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// toolkitDir is where scripts/toolkit puts GitHub's packages.
func toolkitDir(t *testing.T) string {
	t.Helper()
	dir := os.Getenv("HEARTH_TOOLKIT")
	if dir == "" {
		cache, err := os.UserCacheDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(cache, "hearth", "toolkit")
	}
	want, err := os.ReadFile(filepath.Join("testdata", "toolkit", "package.json"))
	if err != nil {
		t.Fatal(err)
	}
	if have, err := os.ReadFile(filepath.Join(dir, "package.json")); err != nil || !bytes.Equal(have, want) {
		t.Skip("SKIPPED, NOT TESTED: GitHub's own packages are not there, or are others: run scripts/toolkit")
	}
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("SKIPPED, NOT TESTED: there is no node: apt-get install nodejs")
	}
	return dir
}

type answer struct {
	OK        bool
	Error     string
	ID        json.Number
	Size      int64
	Digest    string
	Key       string
	Mismatch  bool   `json:"digestMismatch"`
	Path      string `json:"downloadPath"`
	Artifacts []struct {
		Name, Digest string
		ID, Size     int64
	}
	Artifact struct {
		Name, Digest string
		ID, Size     int64
	}
	Log string `json:"-"`
}

// serve opens a session and serves it on loopback.
func serve(t *testing.T, s *Store, job Job) (*Session, string) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	job.Base = "http://" + server.Listener.Addr().String()
	n, err := s.Open(job)
	if err != nil {
		t.Fatal(err)
	}
	server.Config.Handler = n
	server.Start()
	t.Cleanup(func() {
		server.Close()
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n, job.Base
}

// driver is a Node process with the packages, which does one thing after another.
type driver struct {
	in  io.Writer
	out *bufio.Reader
}

func startDriver(t *testing.T, dir string) *driver {
	t.Helper()
	c := exec.Command("node", filepath.Join(dir, "drive.mjs"))
	c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + t.TempDir(), "RUNNER_TEMP=" + t.TempDir(),
		"GITHUB_SERVER_URL=https://github.com", "ACTIONS_CACHE_SERVICE_V2=true", "RUNNER_DEBUG=1"}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	c.Stderr = os.Stderr
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	watchdog := time.AfterFunc(4*time.Minute, func() { c.Process.Kill() })
	t.Cleanup(func() {
		in.Close()
		if err := c.Wait(); err != nil {
			t.Errorf("node: %v", err)
		}
		watchdog.Stop()
	})
	return &driver{in, bufio.NewReader(out)}
}

// do has the packages do something, as an action of the job.
func (d *driver) do(t *testing.T, n *Session, workspace string, env map[string]string, verb ...string) answer {
	t.Helper()
	env = maps.Clone(env)
	env["GITHUB_WORKSPACE"], env["ACTIONS_RESULTS_URL"], env["ACTIONS_RUNTIME_TOKEN"] = workspace, n.job.Base+"/", n.Token()
	b, err := json.Marshal(map[string]any{"env": env, "cwd": workspace, "do": verb})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(d.in, "%s\n", b); err != nil {
		t.Fatal(err)
	}
	var a answer
	for {
		line, err := d.out.ReadString('\n')
		if err != nil {
			t.Fatalf("%v: %v\n%s", verb, err, a.Log)
		}
		if text, ok := strings.CutPrefix(line, "ANSWER "); ok {
			if err := json.Unmarshal([]byte(text), &a); err != nil {
				t.Fatalf("%v: %v: %s", verb, err, text)
			}
			return a
		}
		a.Log += line
	}
}

func write(t *testing.T, name string, data []byte) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(name), 0o755), os.WriteFile(name, data, 0o644)); err != nil {
		t.Fatal(err)
	}
}

func same(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ", a, b)
	}
}

// GitHub's packages, as they come from npm, in the versions that actions bundle now
// and a year ago.
func TestToolkit(t *testing.T) {
	d := startDriver(t, toolkitDir(t))
	for _, v := range []struct{ artifact, cache string }{{"6", "6"}, {"2", "4"}} {
		env := map[string]string{"DRIVE_ARTIFACT": v.artifact, "DRIVE_CACHE": v.cache}
		t.Run("artifacts with version "+v.artifact, func(t *testing.T) { toolkitArtifacts(t, d, env) })
		t.Run("caches with version "+v.cache, func(t *testing.T) { toolkitCaches(t, d, env) })
	}
}

func toolkitArtifacts(t *testing.T, d *driver, env map[string]string) {
	s := New(Config{Dir: t.TempDir()})
	job := Job{Repository: "me/it", Run: "run1", Attempt: 1, Key: "build"}
	n, _ := serve(t, s, job)
	work := t.TempDir()
	big := make([]byte, 20<<20) // three blocks
	rand.Read(big)
	write(t, filepath.Join(work, "out", "deep", "big"), big)
	write(t, filepath.Join(work, "out", "ä b.txt"), []byte("hello\n"))

	up := d.do(t, n, work, env, "upload", "logs of 1", filepath.Join(work, "out"), "5")
	if !up.OK || up.ID.String() != "1" || up.Size < 20<<20 || len(up.Digest) != 64 {
		t.Fatalf("uploaded: %+v", up)
	}
	if strings.Contains(up.Log, "::add-mask::") == false {
		t.Error("the package has not masked the signature: signed_upload_url is not where it looks")
	}
	again := d.do(t, n, work, env, "upload", "logs of 1", filepath.Join(work, "out"))
	if again.OK || !strings.Contains(again.Error, "(409) Conflict: an artifact with this name already exists on the workflow run") {
		t.Errorf("a second one of the name: %+v", again)
	}
	if a := d.do(t, n, work, env, "upload", "bad:name", filepath.Join(work, "out")); a.OK {
		t.Error("a name with a colon was taken")
	}

	// Another job of the run.
	job.Key = "test"
	n, _ = serve(t, s, job)
	list := d.do(t, n, work, env, "list")
	if !list.OK || len(list.Artifacts) != 1 || list.Artifacts[0].Name != "logs of 1" ||
		list.Artifacts[0].Digest != "sha256:"+up.Digest || list.Artifacts[0].Size != up.Size {
		t.Fatalf("listed: %+v", list)
	}
	got := filepath.Join(work, "got")
	if down := d.do(t, n, work, env, "download", "logs of 1", got); !down.OK || down.Mismatch {
		t.Fatalf("downloaded: %+v", down)
	}
	same(t, filepath.Join(work, "out", "deep", "big"), filepath.Join(got, "deep", "big"))
	same(t, filepath.Join(work, "out", "ä b.txt"), filepath.Join(got, "ä b.txt"))
	if a := d.do(t, n, work, env, "get", "none"); a.OK || !strings.Contains(a.Error, "ArtifactNotFound") {
		t.Errorf("one that is not there: %+v", a)
	}
	if a := d.do(t, n, work, env, "remove", "logs of 1"); !a.OK {
		t.Errorf("removed: %+v", a)
	}
	if list := d.do(t, n, work, env, "list"); len(list.Artifacts) != 0 {
		t.Errorf("listed after removal: %+v", list)
	}
	if blobs(t, s, job.Repository) != 0 {
		t.Error("the removed artifact's content is still on the disk")
	}

	if env["DRIVE_ARTIFACT"] != "2" { // files without an archive came later
		file := filepath.Join(work, "out", "größe.txt")
		write(t, file, []byte("as it is"))
		if a := d.do(t, n, work, env, "uploadFile", file); !a.OK {
			t.Fatalf("a single file: %+v\n%s", a, a.Log)
		}
		if a := d.do(t, n, work, env, "download", "größe.txt", got); !a.OK || a.Mismatch {
			t.Fatalf("a single file back: %+v", a)
		}
		same(t, file, filepath.Join(got, "größe.txt"))
	}
}

func blobs(t *testing.T, s *Store, repository string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(s.dir, repositoryDir(repository), "blobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	return len(entries)
}

func toolkitCaches(t *testing.T, d *driver, env map[string]string) {
	s := New(Config{Dir: t.TempDir()})
	job := Job{Repository: "me/it", Run: "run1", Attempt: 1, Key: "build", Scopes: []string{"refs/heads/main"}}
	n, _ := serve(t, s, job)
	work := t.TempDir()
	dep := make([]byte, 9<<20) // more than the 4 MiB of a download's part
	rand.Read(dep)
	write(t, filepath.Join(work, "deps", "one"), dep)

	if a := d.do(t, n, work, env, "restore", "go-1", "", "deps"); !a.OK || a.Key != "" {
		t.Fatalf("nothing is there: %+v", a)
	}
	if a := d.do(t, n, work, env, "save", "go-1", "deps"); !a.OK || a.ID.String() != "1" {
		t.Fatalf("saved: %+v\n%s", a, a.Log)
	}
	if a := d.do(t, n, work, env, "save", "go-1", "deps"); !a.OK || a.ID.String() != "-1" || !strings.Contains(a.Log, "another job may be creating this cache") {
		t.Errorf("saved twice: %+v\n%s", a, a.Log)
	}

	// A branch sees the default branch's, and saves its own.
	branch := job
	branch.Run, branch.Scopes = "run2", []string{"refs/heads/topic", "refs/heads/main"}
	n, _ = serve(t, s, branch)
	other := t.TempDir()
	if a := d.do(t, n, other, env, "restore", "go-2", "none- go-", "deps"); !a.OK || a.Key != "go-1" {
		t.Fatalf("restored: %+v\n%s", a, a.Log)
	}
	same(t, filepath.Join(work, "deps", "one"), filepath.Join(other, "deps", "one"))
	if a := d.do(t, n, other, env, "lookup", "go-1", "other"); a.Key != "" {
		t.Errorf("of other paths, which is another version: %+v", a)
	}
	if a := d.do(t, n, other, env, "save", "go-3", "deps"); !a.OK || a.ID.String() != "2" {
		t.Fatalf("saved: %+v\n%s", a, a.Log)
	}

	// The default branch does not see the branch's.
	n, _ = serve(t, s, job)
	if a := d.do(t, n, other, env, "lookup", "go-3", "deps"); a.Key != "" {
		t.Errorf("the default branch sees a branch's: %+v", a)
	}

	// A job that may only read.
	branch.Mode = ReadOnly
	n, _ = serve(t, s, branch)
	if a := d.do(t, n, other, env, "save", "go-4", "deps"); !a.OK || a.ID.String() != "-1" ||
		env["DRIVE_CACHE"] == "6" && !strings.Contains(a.Log, "cache write denied") {
		t.Errorf("saved by who may read: %+v\n%s", a, a.Log)
	}
	if a := d.do(t, n, other, env, "lookup", "go-3", "deps"); a.Key != "go-3" {
		t.Errorf("looked up: %+v", a)
	}
	branch.Mode = WriteOnly
	n, _ = serve(t, s, branch)
	if a := d.do(t, n, other, env, "lookup", "go-3", "deps"); a.Key != "" || !strings.Contains(a.Log, "cache read denied") {
		t.Errorf("looked up by who may only write: %+v\n%s", a, a.Log)
	}
}
