package results

import (
	"bytes"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// caller speaks to a session without a network.
type caller struct {
	t *testing.T
	n *Session
}

func open(t *testing.T, s *Store, job Job) caller {
	t.Helper()
	job.Base = "http://10.0.2.2:80"
	if job.Scopes == nil {
		job.Scopes = []string{"refs/heads/main"}
	}
	n, err := s.Open(job)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return caller{t, n}
}

func job() Job { return Job{Repository: "me/it", Run: "run1", Attempt: 1, Key: "build"} }

func (c caller) serve(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	c.n.ServeHTTP(w, r)
	return w
}

// call calls a method; fields are name, value, …
func (c caller) call(method string, fields ...any) (status int, answer map[string]any) {
	c.t.Helper()
	m := map[string]any{}
	if strings.HasPrefix(method, "Artifact") {
		m["workflow_run_backend_id"] = c.n.job.Run
	}
	for i := 0; i < len(fields); i += 2 {
		m[fields[i].(string)] = fields[i+1]
	}
	b, err := json.Marshal(m)
	if err != nil {
		c.t.Fatal(err)
	}
	r := httptest.NewRequest("POST", twirp+method, bytes.NewReader(b))
	r.Header.Set("Authorization", "Bearer "+c.n.Token())
	r.Header.Set("Content-Type", "application/json")
	w := c.serve(r)
	if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
		c.t.Fatalf("%s: %v: %s", method, err, w.Body)
	}
	return w.Code, answer
}

func (c caller) blob(method, address, query string, body []byte, header ...string) *httptest.ResponseRecorder {
	address = strings.TrimPrefix(address, c.n.job.Base)
	r := httptest.NewRequest(method, address+query, bytes.NewReader(body))
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return c.serve(r)
}

// artifact uploads one.
func (c caller) artifact(name string, data []byte) (status int, answer map[string]any) {
	c.t.Helper()
	status, a := c.call("ArtifactService/CreateArtifact", "name", name, "version", 7)
	if status != 200 {
		return status, a
	}
	if w := c.blob("PUT", a["signed_upload_url"].(string), "", data, "x-ms-blob-type", "BlockBlob"); w.Code != 201 {
		return w.Code, map[string]any{"xml": w.Body.String()}
	}
	return c.call("ArtifactService/FinalizeArtifact", "name", name, "size", fmt.Sprint(len(data)), "hash", digestOf(data))
}

// cache saves an entry.
func (c caller) cache(key string, data []byte) (status int, answer map[string]any) {
	c.t.Helper()
	status, a := c.call("CacheService/CreateCacheEntry", "key", key, "version", "v1")
	if a["ok"] != true {
		return status, a
	}
	if w := c.blob("PUT", a["signed_upload_url"].(string), "", data, "x-ms-blob-type", "BlockBlob"); w.Code != 201 {
		return w.Code, map[string]any{"xml": w.Body.String()}
	}
	return c.call("CacheService/FinalizeCacheEntryUpload", "key", key, "version", "v1", "size_bytes", fmt.Sprint(len(data)))
}

// restored is the key of the entry that is found, "" if none is.
func (c caller) restored(key string, restore ...string) string {
	c.t.Helper()
	_, a := c.call("CacheService/GetCacheEntryDownloadURL", "key", key, "version", "v1", "restore_keys", restore)
	k, _ := a["matched_key"].(string)
	return k
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func TestBlob(t *testing.T) {
	s := New(Config{Dir: t.TempDir()})
	c := open(t, s, job())
	_, a := c.call("ArtifactService/CreateArtifact", "name", "it")
	up := a["signed_upload_url"].(string)
	for _, b := range []string{"two", "one", "three"} {
		if w := c.blob("PUT", up, "&comp=block&blockid="+b64(b), []byte(b)); w.Code != 201 {
			t.Fatalf("block: %d %s", w.Code, w.Body)
		}
	}
	list := "<?xml version=\"1.0\"?><BlockList><Latest>" + b64("one") + "</Latest><Uncommitted>" + b64("two") + "</Uncommitted></BlockList>"
	w := c.blob("PUT", up, "&comp=blocklist", []byte(list))
	if w.Code != 201 || w.Header().Get("ETag") == "" {
		t.Fatalf("list: %d %s", w.Code, w.Body)
	}
	if status, a := c.call("ArtifactService/FinalizeArtifact", "name", "it", "size", "6"); status != 200 || a["ok"] != true {
		t.Fatal(a)
	}
	if entries, _ := os.ReadDir(filepath.Join(c.n.dir, "uploads")); len(entries) != 0 {
		t.Error("the upload's directory has remained")
	}
	if c.n.staged != 0 {
		t.Errorf("%d bytes are still counted as under way", c.n.staged)
	}
	_, a = c.call("ArtifactService/GetSignedArtifactURL", "name", "it")
	down := a["signed_url"].(string)
	if w := c.blob("GET", down, "", nil); w.Code != 200 || w.Body.String() != "onetwo" || w.Header().Get("Content-Type") != "application/zip" ||
		w.Header().Get("Content-Disposition") != "attachment; filename=it.zip" || w.Header().Get("x-ms-blob-type") != "BlockBlob" {
		t.Errorf("%d %q %v", w.Code, w.Body, w.Header())
	}
	if w := c.blob("HEAD", down, "", nil); w.Code != 200 || w.Header().Get("Content-Length") != "6" || w.Body.Len() != 0 {
		t.Errorf("%d %v", w.Code, w.Header())
	}
	for _, header := range []string{"Range", "x-ms-range"} {
		if w := c.blob("GET", down, "", nil, header, "bytes=2-3"); w.Code != 206 || w.Body.String() != "et" || w.Header().Get("Content-Range") != "bytes 2-3/6" {
			t.Errorf("%s: %d %q %v", header, w.Code, w.Body, w.Header())
		}
	}
	if w := c.blob("GET", down, "", nil, "If-Match", `"another"`); w.Code != 412 {
		t.Errorf("If-Match: %d", w.Code)
	}
	if w := c.blob("PUT", down, "", []byte("x"), "x-ms-blob-type", "BlockBlob"); w.Code != 403 ||
		!strings.Contains(w.Body.String(), "<Code>AuthorizationPermissionMismatch</Code>") ||
		w.Header().Get("x-ms-error-code") != "AuthorizationPermissionMismatch" {
		t.Errorf("writing by an address for reading: %d %s", w.Code, w.Body)
	}
	if w := c.blob("PUT", up, "", []byte("x"), "x-ms-blob-type", "BlockBlob"); w.Code != 404 {
		t.Errorf("writing after the end: %d", w.Code)
	}
}

// What arrived is what was sent, or nothing.
func TestDamaged(t *testing.T) {
	c := open(t, New(Config{Dir: t.TempDir()}), job())
	_, a := c.call("ArtifactService/CreateArtifact", "name", "it")
	up := a["signed_upload_url"].(string)
	if w := c.blob("PUT", up, "", []byte("data"), "x-ms-blob-type", "BlockBlob", "Content-MD5", b64("0123456789abcdef")); w.Code != 400 {
		t.Errorf("another MD5: %d", w.Code)
	}
	if status, _ := c.call("ArtifactService/FinalizeArtifact", "name", "it", "size", "4"); status != 404 {
		t.Errorf("nothing arrived: %d", status)
	}
	for _, id := range []string{"", "!", b64(strings.Repeat("x", maxBlockID+1))} {
		if w := c.blob("PUT", up, "&comp=block&blockid="+url.QueryEscape(id), []byte("data")); w.Code != 400 {
			t.Errorf("block id %.20q: %d", id, w.Code)
		}
	}
	short := httptest.NewRequest("PUT", strings.TrimPrefix(up, c.n.job.Base), strings.NewReader("da"))
	short.ContentLength = 4
	short.Header.Set("x-ms-blob-type", "BlockBlob")
	if w := c.serve(short); w.Code != 400 {
		t.Errorf("a body that ends too soon: %d", w.Code)
	}
	sum := md5.Sum([]byte("data"))
	if w := c.blob("PUT", up, "", []byte("data"), "x-ms-blob-type", "BlockBlob", "Content-MD5", b64(string(sum[:]))); w.Code != 201 {
		t.Fatal(w.Code)
	}
	if status, _ := c.call("ArtifactService/FinalizeArtifact", "name", "it", "size", "5"); status != 400 {
		t.Errorf("another size: %d", status)
	}
	if status, _ := c.call("ArtifactService/FinalizeArtifact", "name", "it", "size", "4", "hash", digestOf([]byte("date"))); status != 400 {
		t.Errorf("another digest: %d", status)
	}
	if status, _ := c.call("ArtifactService/FinalizeArtifact", "name", "it", "size", "4", "hash", digestOf([]byte("data"))); status != 200 {
		t.Errorf("as it is: %d", status)
	}
	r := httptest.NewRequest("PUT", up+"&comp=block&blockid="+b64("x"), io.MultiReader(strings.NewReader("x")))
	r.ContentLength = -1
	_, a = c.call("ArtifactService/CreateArtifact", "name", "it2")
	up = strings.TrimPrefix(a["signed_upload_url"].(string), c.n.job.Base)
	r = httptest.NewRequest("PUT", up+"&comp=block&blockid="+b64("x"), io.MultiReader(strings.NewReader("x")))
	r.ContentLength = -1
	if w := c.serve(r); w.Code != http.StatusLengthRequired {
		t.Errorf("without a length: %d", w.Code)
	}
}

// What cannot be read is refused as the author's fault, in Twirp's words.
func TestMalformed(t *testing.T) {
	c := open(t, New(Config{Dir: t.TempDir()}), job())
	for _, q := range []struct {
		verb, method, kind, body string
		status                   int
		code                     string
	}{
		{"POST", "ArtifactService/ListArtifacts", "application/json", "{", 400, "malformed"},
		{"POST", "ArtifactService/ListArtifacts", "application/json", `{"workflow_run_backend_id":7}`, 400, "malformed"},
		{"POST", "ArtifactService/ListArtifacts", "application/json", `{"workflow_run_backend_id":"run1","id_filter":"x"}`, 400, "malformed"},
		{"POST", "ArtifactService/CreateArtifact", "application/json", `{"workflow_run_backend_id":"run1","name":"a","expires_at":"soon"}`, 400, "malformed"},
		{"POST", "ArtifactService/ListArtifacts", "application/protobuf", "", 400, "malformed"},
		{"POST", "ArtifactService/ListArtifacts", "application/json", strings.Repeat(" ", maxRequest+1), 400, "invalid_argument"},
		{"GET", "ArtifactService/ListArtifacts", "application/json", "{}", 404, "bad_route"},
		{"POST", "ArtifactService/Nothing", "application/json", "{}", 404, "bad_route"},
	} {
		r := httptest.NewRequest(q.verb, twirp+q.method, strings.NewReader(q.body))
		r.Header.Set("Authorization", "Bearer "+c.n.Token())
		r.Header.Set("Content-Type", q.kind)
		w := c.serve(r)
		var answer struct{ Code, Msg string }
		if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil || w.Code != q.status || answer.Code != q.code || answer.Msg == "" {
			t.Errorf("%s %s %.30q: %d %+v %v", q.verb, q.method, q.body, w.Code, answer, err)
		}
	}
}

// A name is taken once in an attempt; a job that was lost and is executed again
// begins anew; an attempt sees those before it.
func TestArtifactsOfAttempts(t *testing.T) {
	s := New(Config{Dir: t.TempDir()})
	first := open(t, s, job())
	first.artifact("it", []byte("first"))
	if status, _ := first.artifact("it", []byte("second")); status != 409 {
		t.Errorf("a name twice: %d", status)
	}
	other := job()
	other.Key = "other"
	if status, _ := open(t, s, other).artifact("it", []byte("second")); status != 409 {
		t.Errorf("by another job: %d", status)
	}
	if status, a := open(t, s, job()).artifact("it", []byte("again")); status != 200 {
		t.Errorf("by the job executed again: %d %v", status, a)
	}
	next := job()
	next.Attempt = 2
	c := open(t, s, next)
	if status, a := c.artifact("it", []byte("attempt 2")); status != 200 {
		t.Errorf("in the next attempt: %d %v", status, a)
	}
	_, a := c.call("ArtifactService/ListArtifacts", "name_filter", "it")
	if n := len(a["artifacts"].([]any)); n != 2 {
		t.Errorf("%d artifacts are seen", n)
	}
	_, a = c.call("ArtifactService/GetSignedArtifactURL", "name", "it")
	if w := c.blob("GET", a["signed_url"].(string), "", nil); w.Body.String() != "attempt 2" {
		t.Errorf("downloaded: %q", w.Body)
	}
	next.Run = "run2"
	_, a = open(t, s, next).call("ArtifactService/ListArtifacts")
	if n := len(a["artifacts"].([]any)); n != 0 {
		t.Errorf("another run sees %d", n)
	}
}

// What others than GitHub's packages read of the token: BuildKit wants to know which
// scopes of caches it may read (1) and write (2).
func TestTokenNamesScopes(t *testing.T) {
	for mode, want := range map[Mode]string{
		ReadWrite: `[{"Scope":"refs/heads/topic","Permission":3},{"Scope":"refs/heads/main","Permission":1}]`,
		ReadOnly:  `[{"Scope":"refs/heads/topic","Permission":1},{"Scope":"refs/heads/main","Permission":1}]`,
		WriteOnly: `[{"Scope":"refs/heads/topic","Permission":2}]`,
		NoCache:   `null`,
	} {
		j := job()
		j.Mode, j.Scopes = mode, []string{"refs/heads/topic", "refs/heads/main"}
		parts := strings.Split(open(t, New(Config{Dir: t.TempDir()}), j).n.Token(), ".")
		b, err := base64.RawURLEncoding.DecodeString(parts[1])
		if err != nil {
			t.Fatal(err)
		}
		var claims struct{ AC, SCP string }
		if err := json.Unmarshal(b, &claims); err != nil || claims.AC != want || !strings.HasPrefix(claims.SCP, "Actions.Results:run1:") {
			t.Errorf("%s: %+v %v", mode, claims, err)
		}
	}
}

func TestFind(t *testing.T) {
	now := time.Now()
	all := []Cache{
		{Scope: "main", Version: "v", Key: "go-1-x", Created: now},
		{Scope: "main", Version: "v", Key: "go-1", Created: now.Add(time.Second)},
		{Scope: "main", Version: "v", Key: "go-2", Created: now.Add(2 * time.Second)},
		{Scope: "topic", Version: "v", Key: "go-1-y", Created: now},
		{Scope: "topic", Version: "w", Key: "go-1", Created: now},
		{Scope: "topic", Version: "v", Key: "go-1", Created: now, Upload: "under way"},
	}
	for _, c := range []struct {
		scopes, keys, want string
	}{
		{"main", "go-1", "go-1"},             // the key itself
		{"main", "go-1-", "go-1-x"},          // what begins with it
		{"main", "go-", "go-2"},              // the newest
		{"main", "no go-1 go-", "go-1"},      // restore keys in their order
		{"topic main", "go-1", "go-1-y"},     // its own branch first, whatever the others have
		{"topic main", "go-2", "go-2"},       // then the default branch
		{"topic main", "go-2 go-", "go-1-y"}, // restore keys too are looked for in one after the other
		{"other", "go-1 go-", ""},
		{"main", "GO-1", ""},
	} {
		keys := strings.Fields(c.keys)
		got := ""
		if i := find(all, strings.Fields(c.scopes), "v", keys[0], keys[1:]); i >= 0 {
			got = all[i].Key
		}
		if got != c.want {
			t.Errorf("%s in %s: %q, want %q", c.keys, c.scopes, got, c.want)
		}
	}
}

func TestEviction(t *testing.T) {
	now := time.Now()
	s := New(Config{Dir: t.TempDir(), Limits: Limits{CacheBytes: 30}, Now: func() time.Time { now = now.Add(time.Second); return now }})
	c := open(t, s, job())
	for _, k := range []string{"a", "b", "c"} {
		if status, a := c.cache(k, []byte(k+"123456789")); status != 200 {
			t.Fatal(a)
		}
	}
	if c.restored("a") != "a" { // used: b is the oldest now
		t.Fatal("a is gone")
	}
	if status, a := c.cache("d", []byte("d123456789")); status != 200 {
		t.Fatal(a)
	}
	if got := c.restored("a") + c.restored("b") + c.restored("c") + c.restored("d"); got != "acd" {
		t.Errorf("kept: %s", got)
	}
	if blobs(t, s, "me/it") != 3 {
		t.Error("the content of what went is still there")
	}
	if status, _ := c.cache("e", make([]byte, 31)); status != 400 {
		t.Errorf("more than all may have: %d", status)
	}
}

// A key is reserved by who uploads first, and free again when that job ends.
func TestReservation(t *testing.T) {
	s := New(Config{Dir: t.TempDir()})
	first := open(t, s, job())
	if _, a := first.call("CacheService/CreateCacheEntry", "key", "k", "version", "v1"); a["ok"] != true {
		t.Fatal(a)
	}
	other := job()
	other.Key = "other"
	c := open(t, s, other)
	if status, _ := c.cache("k", []byte("x")); status != 409 {
		t.Errorf("reserved twice: %d", status)
	}
	if c.restored("k") != "" {
		t.Error("an entry is seen before it is there")
	}
	if err := first.n.Close(); err != nil {
		t.Fatal(err)
	}
	if status, a := c.cache("k", []byte("x")); status != 200 || c.restored("k") != "k" {
		t.Errorf("after the first job's end: %d %v", status, a)
	}
}

func TestSweep(t *testing.T) {
	now := time.Now()
	dir := t.TempDir()
	s := New(Config{Dir: dir, Now: func() time.Time { return now }})
	c := open(t, s, job())
	c.artifact("a", []byte("aaaa"))
	if _, a := c.call("ArtifactService/CreateArtifact", "name", "short", "expires_at", now.Add(24*time.Hour).UTC().Format(time.RFC3339)); a["ok"] != true {
		t.Fatal(a)
	} else if w := c.blob("PUT", a["signed_upload_url"].(string), "", []byte("short"), "x-ms-blob-type", "BlockBlob"); w.Code != 201 {
		t.Fatal(w.Body)
	}
	c.call("ArtifactService/FinalizeArtifact", "name", "short", "size", "5")
	c.cache("k", []byte("kkkkkk"))
	// What processes left that died: a content that nobody names, and an upload.
	write(t, filepath.Join(c.n.dir, "blobs", strings.Repeat("0", 64)), []byte("left"))
	write(t, filepath.Join(c.n.dir, "uploads", "dead", "block"), []byte("left"))
	long := now.Add(-48 * time.Hour)
	if err := os.Chtimes(filepath.Join(c.n.dir, "uploads", "dead"), long, long); err != nil {
		t.Fatal(err)
	}
	sweep := func(o SweepOptions) string {
		t.Helper()
		gone, err := s.Sweep(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, g := range gone {
			names = append(names, g.Kind+" "+g.Name)
		}
		return strings.Join(names, ", ")
	}
	if got := sweep(SweepOptions{Unused: 7 * 24 * time.Hour}); got != "upload dead" {
		t.Errorf("swept: %s", got)
	}
	if blobs(t, s, "me/it") != 3 {
		t.Error("the content that nobody names is still there, or another went")
	}
	now = now.Add(8 * 24 * time.Hour)
	if got := sweep(SweepOptions{Unused: 7 * 24 * time.Hour, DryRun: true}); got != "artifact short, cache k" {
		t.Errorf("would be swept: %s", got)
	}
	if got := sweep(SweepOptions{Unused: 7 * 24 * time.Hour}); got != "artifact short, cache k" {
		t.Errorf("swept: %s", got)
	}
	if blobs(t, s, "me/it") != 1 {
		t.Error("contents of what went are still there")
	}
	// Of two repositories the one that takes most loses.
	other := job()
	other.Repository = "me/other"
	open(t, s, other).artifact("o", []byte("oo"))
	if got := sweep(SweepOptions{Bytes: 5}); got != "artifact a" {
		t.Errorf("swept: %s", got)
	}
	if err := s.RemoveRun("me/other", "run1"); err != nil {
		t.Fatal(err)
	}
	if left, err := s.Artifacts("me/other", ""); err != nil || len(left) != 0 {
		t.Error(left, err)
	}
}

// Stores in several processes are stores that share a directory and nothing else.
func TestManyProcesses(t *testing.T) {
	dir := t.TempDir()
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			s := New(Config{Dir: dir})
			j := job()
			j.Key = fmt.Sprint("job", i)
			c := open(t, s, j)
			for k := range 10 {
				if status, a := c.artifact(fmt.Sprintf("a%d-%d", i, k), []byte("same")); status != 200 {
					t.Error(a)
				}
				c.cache(fmt.Sprint("k", k), []byte{byte(i)})
			}
		})
	}
	wg.Wait()
	s := New(Config{Dir: dir})
	a, err := s.Artifacts("me/it", "run1")
	if err != nil || len(a) != 40 {
		t.Errorf("%d artifacts, %v", len(a), err)
	}
	ids := map[int64]bool{}
	for _, x := range a {
		ids[x.ID] = true
	}
	if len(ids) != 40 {
		t.Errorf("%d ids", len(ids))
	}
	k, err := s.Caches("ME/it")
	if err != nil || len(k) != 10 {
		t.Errorf("%d entries, %v", len(k), err)
	}
}
