package results

import (
	"bytes"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// What one job was given opens nothing of another's, and nothing for long.
func TestAttackAnotherJobsToken(t *testing.T) {
	now := time.Now()
	s := New(Config{Dir: t.TempDir(), Now: func() time.Time { return now }})
	mine := open(t, s, job())
	mine.artifact("secret", []byte("secret"))
	_, a := mine.call("ArtifactService/GetSignedArtifactURL", "name", "secret")
	down := a["signed_url"].(string)
	_, a = mine.call("ArtifactService/CreateArtifact", "name", "other")
	up := a["signed_upload_url"].(string)

	theirs := job()
	theirs.Run = "run2"
	c := open(t, s, theirs)
	if status, _ := c.call("ArtifactService/ListArtifacts", "workflow_run_backend_id", "run1"); status != 403 {
		t.Errorf("listing another run: %d", status)
	}
	if status, _ := c.call("ArtifactService/GetSignedArtifactURL", "workflow_run_backend_id", "run1", "name", "secret"); status != 403 {
		t.Errorf("another run's artifact: %d", status)
	}
	if status, _ := c.call("ArtifactService/GetSignedArtifactURL", "name", "secret"); status != 404 {
		t.Errorf("another run's artifact as its own: %d", status)
	}
	if w := c.blob("GET", down, "", nil); w.Code != 403 {
		t.Errorf("another job's address: %d", w.Code)
	}
	if w := c.blob("PUT", up, "", []byte("x"), "x-ms-blob-type", "BlockBlob"); w.Code != 403 {
		t.Errorf("another job's address for writing: %d", w.Code)
	}
	for _, token := range []string{"", "Bearer ", "Bearer " + mine.n.Token(), "bearer " + c.n.Token(), "Bearer " + c.n.Token() + "x",
		"Bearer eyJhbGciOiJub25lIn0." + strings.Split(c.n.Token(), ".")[1] + "."} {
		r := httptest.NewRequest("POST", twirp+"ArtifactService/ListArtifacts", strings.NewReader(`{"workflow_run_backend_id":"run2"}`))
		r.Header.Set("Content-Type", "application/json")
		r.Header.Set("Authorization", token)
		if w := c.serve(r); w.Code != 401 {
			t.Errorf("token %.30q: %d", token, w.Code)
		}
	}
	// An address says what it is for: no part of it can be changed.
	for _, forged := range []string{
		strings.Replace(up, "sp=w", "sp=r", 1), strings.Replace(down, "sp=r", "sp=w", 1), strings.Replace(down, "se=", "se=9", 1),
		strings.Replace(down, "secret.zip", "other.zip", 1), strings.Replace(down, "application%2Fzip", "text%2Fhtml", 1),
		strings.Replace(down, "/results/blobs/", "/results/blobs/../../", 1), strings.Split(down, "&sig=")[0],
	} {
		if forged == down || forged == up {
			t.Fatalf("nothing was changed in %s", down)
		}
		if w := mine.blob("GET", forged, "", nil); w.Code != 403 {
			t.Errorf("%s: %d", forged, w.Code)
		}
	}
	now = now.Add(downloadTime + time.Minute)
	if w := mine.blob("GET", down, "", nil); w.Code != 403 {
		t.Errorf("an address after its time: %d", w.Code)
	}
	now = now.Add(48 * time.Hour)
	if status, _ := mine.call("ArtifactService/ListArtifacts"); status != 401 {
		t.Errorf("a token after its time: %d", status)
	}
}

// A branch's caches reach nobody but itself: not the branch that a pull request goes
// to, and what may only be read is not written, whatever the guest asks for.
func TestAttackCacheOfAnotherBranch(t *testing.T) {
	s := New(Config{Dir: t.TempDir()})
	pull := job()
	pull.Scopes = []string{"refs/pull/1/merge", "refs/heads/main"}
	open(t, s, pull).cache("deps", []byte("poison"))
	if got := open(t, s, job()).restored("deps", "d"); got != "" {
		t.Errorf("main restores %q of a pull request", got)
	}
	other := job()
	other.Repository = "me/other"
	if got := open(t, s, other).restored("deps"); got != "" {
		t.Errorf("another repository restores %q", got)
	}
	open(t, s, job()).cache("good", []byte("good"))
	pull.Mode = ReadOnly
	c := open(t, s, pull)
	if _, a := c.call("CacheService/CreateCacheEntry", "key", "x", "version", "v1",
		"metadata", map[string]any{"scope": []any{map[string]any{"scope": "refs/heads/main", "permission": "3"}}}); a["ok"] != false {
		t.Errorf("written by who may read: %v", a)
	}
	if c.restored("good") != "good" {
		t.Error("a pull request does not see its base branch's")
	}
	pull.Mode = NoCache
	if c := open(t, s, pull); c.restored("good") != "" {
		t.Error("restored by who may not")
	}
}

// Names and keys go into paths, headers, terminals and pages: what could mean
// something there is refused.
func TestAttackNamesOfArtifacts(t *testing.T) {
	c := open(t, New(Config{Dir: t.TempDir()}), job())
	for _, name := range []string{"", ".", "..", "../x", `a\b`, "a/b", "a:b", "a\x00b", "a\nb", "a\x1b[0m", `a"b`,
		"a|b", "a*", "a?", "<a>", strings.Repeat("a", 256), "a\xff", strings.Repeat("a", 1<<17)} {
		if status, a := c.artifact(name, []byte("x")); status != 400 {
			t.Errorf("%.40q: %d %v", name, status, a)
		}
	}
	for _, key := range []string{"", "a,b", strings.Repeat("ä", 513)} {
		if status, _ := c.cache(key, []byte("x")); status != 400 {
			t.Errorf("key %.40q: %d", key, status)
		}
	}
	if status, _ := c.call("CacheService/GetCacheEntryDownloadURL", "key", "k", "version", "v1", "restore_keys",
		strings.Fields("a b c d e f g h i")); status != 200 {
		t.Errorf("ten keys: %d", status)
	}
	if status, _ := c.call("CacheService/GetCacheEntryDownloadURL", "key", "k", "version", "v1", "restore_keys",
		strings.Fields("a b c d e f g h i j")); status != 400 {
		t.Errorf("eleven keys: %d", status)
	}
	if status, _ := c.cache(strings.Repeat("ä", 512), []byte("x")); status != 200 {
		t.Errorf("a key of 512 characters: %d", status)
	}
}

// Nothing that a job sends can fill the disk or the memory.
func TestAttackBounds(t *testing.T) {
	s := New(Config{Dir: t.TempDir(), Limits: Limits{Item: 1000, JobArtifacts: 3, ArtifactBytes: 1800}})
	c := open(t, s, job())
	_, a := c.call("ArtifactService/CreateArtifact", "name", "large")
	up := a["signed_upload_url"].(string)
	if w := c.blob("PUT", up, "", make([]byte, 1001), "x-ms-blob-type", "BlockBlob"); w.Code != 413 {
		t.Errorf("more than one may have: %d", w.Code)
	}
	for i, want := range []int{201, 201, 413} {
		if w := c.blob("PUT", up, "&comp=block&blockid="+b64(string(rune('a'+i))), make([]byte, 400)); w.Code != want {
			t.Errorf("block %d: %d", i, w.Code)
		}
	}
	// A block that is named again and again.
	list := "<BlockList>" + strings.Repeat("<Latest>"+b64("a")+"</Latest>", 3) + "</BlockList>"
	if w := c.blob("PUT", up, "&comp=blocklist", []byte(list)); w.Code != 413 {
		t.Errorf("a list of more than one may have: %d", w.Code)
	}
	// A length that is a lie costs nothing.
	r := httptest.NewRequest("PUT", strings.TrimPrefix(up, c.n.job.Base)+"&comp=block&blockid="+b64("z"), bytes.NewReader([]byte("x")))
	r.ContentLength = 1 << 40
	if w := c.serve(r); w.Code != 413 {
		t.Errorf("a length beyond any: %d", w.Code)
	}
	for _, name := range []string{"a", "b", "c"} { // the third is beyond the repository's bytes
		status, a := c.artifact(name, bytes.Repeat([]byte(name), 900))
		if want := map[bool]int{true: 403, false: 200}[name == "c"]; status != want {
			t.Errorf("%s: %d %v", name, status, a)
		}
	}
	other := job()
	other.Repository = "me/other"
	d := open(t, s, other)
	for i, name := range []string{"a", "b", "c", "d"} {
		if status, _ := d.artifact(name, []byte(name)); status == 200 != (i < 3) {
			t.Errorf("artifact %d: %d", i+1, status)
		}
	}
	other.Key = "open"
	d = open(t, s, other)
	last := 0
	for i := range maxUploads + 1 {
		last, _ = d.call("CacheService/CreateCacheEntry", "key", strings.Repeat("k", i+1), "version", "v1")
	}
	if last != 429 {
		t.Errorf("upload %d: %d", maxUploads+1, last)
	}
	// Keys that a repository's jobs have reserved.
	busy := New(Config{Dir: t.TempDir()})
	err := busy.update("me/it", func(p *place) error {
		for i := range 1000 {
			p.Caches = append(p.Caches, Cache{ID: p.next(), Scope: "refs/heads/main", Key: fmt.Sprint(i), Version: "v1",
				Upload: newID(), Until: time.Now().Add(time.Hour)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if status, _ := open(t, busy, job()).call("CacheService/CreateCacheEntry", "key", "k", "version", "v1"); status != 429 {
		t.Errorf("the key after a thousand: %d", status)
	}
	// A disk that is nearly full.
	full := New(Config{Dir: t.TempDir(), Limits: Limits{Free: 1 << 60}})
	if status, _ := open(t, full, job()).artifact("a", []byte("a")); status != 429 {
		t.Errorf("a disk without room: %d", status)
	}
}

// A fork's jobs cannot take the room of the repository's own.
func TestAttackForkFillsArtifacts(t *testing.T) {
	s := New(Config{Dir: t.TempDir(), Limits: Limits{ArtifactBytes: 100}})
	fork := job()
	fork.Stranger = true
	c := open(t, s, fork)
	for i, want := range []int{200, 200, 403} {
		if status, a := c.artifact(fmt.Sprint(i), bytes.Repeat([]byte{byte(i)}, 25)); status != want {
			t.Errorf("a fork's artifact %d: %d %v", i, status, a)
		}
	}
	own := job()
	own.Run = "run2"
	if status, a := open(t, s, own).artifact("own", make([]byte, 50)); status != 200 {
		t.Errorf("the repository's own: %d %v", status, a)
	}
}

func FuzzBlockList(f *testing.F) {
	f.Add([]byte("<?xml version=\"1.0\" encoding=\"utf-8\"?><BlockList><Latest>YQ==</Latest></BlockList>"))
	f.Add([]byte("<BlockList><BlockList/></BlockList>"))
	f.Add([]byte("<BlockList><Latest><Latest>YQ==</Latest></Latest>"))
	f.Fuzz(func(t *testing.T, b []byte) {
		ids, err := parseBlockList(bytes.NewReader(b))
		if err != nil {
			return
		}
		for _, id := range ids {
			if id == "" || len(id) > maxBlockID {
				t.Errorf("id %q", id)
			}
		}
	})
}

// Whatever is asked, the answer is one, and never the runner's own fault.
func FuzzRequest(f *testing.F) {
	f.Add("ArtifactService/CreateArtifact",
		[]byte(`{"workflow_run_backend_id":"run1","name":"a","expires_at":"2026-01-02T03:04:05.000Z","version":7,"mime_type":"application/zip"}`))
	f.Add("ArtifactService/FinalizeArtifact", []byte(`{"workflowRunBackendId":"run1","name":"a","size":"12","hash":"sha256:0"}`))
	f.Add("ArtifactService/ListArtifacts", []byte(`{"workflow_run_backend_id":"run1","id_filter":"1"}`))
	f.Add("CacheService/CreateCacheEntry", []byte(`{"key":"k","version":"v"}`))
	f.Add("CacheService/FinalizeCacheEntryUpload", []byte(`{"key":"k","version":"v","size_bytes":1}`))
	f.Add("CacheService/GetCacheEntryDownloadURL", []byte(`{"key":"k","version":"v","restore_keys":["a","b"]}`))
	s := New(Config{Dir: f.TempDir()})
	n, err := s.Open(Job{Repository: "me/it", Run: "run1", Attempt: 1, Key: "build", Scopes: []string{"refs/heads/main"}, Base: "http://10.0.2.2"})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		r := httptest.NewRequest("POST", "/", bytes.NewReader(body))
		r.URL.Path = twirp + method
		r.Header.Set("Authorization", "Bearer "+n.Token())
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		n.ServeHTTP(w, r)
		if w.Code == 500 || w.Body.Len() == 0 {
			t.Errorf("%d %s", w.Code, w.Body)
		}
	})
}
