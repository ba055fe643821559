package results

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Mode is what a job may do with caches: the workflow language's cache-mode.
type Mode string

// The modes. The zero Mode is ReadWrite.
const (
	ReadWrite Mode = "write"
	ReadOnly  Mode = "read"
	WriteOnly Mode = "write-only"
	NoCache   Mode = "none"
)

// Reads reports whether entries may be restored.
func (m Mode) Reads() bool { return m == "" || m == ReadWrite || m == ReadOnly }

// Writes reports whether entries may be saved.
func (m Mode) Writes() bool { return m == "" || m == ReadWrite || m == WriteOnly }

// Job is whom a session serves.
type Job struct {
	Repository string // owner/name
	Run        string // without a colon
	Attempt    int    // of the run, from 1
	Key        string // of the job, unique in its run
	// Scopes are the refs whose caches the job sees, its own first: it saves to that.
	Scopes []string
	Mode   Mode
	// Stranger is a fork's: its artifacts may fill half of what the repository has, so
	// that the repository's own jobs always find room.
	Stranger bool
	// Base is where the guest reaches the session: http://host:port.
	Base string
	// Until is when the token ends; zero is a day from now.
	Until time.Time
	// Secret, 32 bytes, and Begun make the token and the addresses of contents: a session
	// that is opened Again with those of an earlier one answers to what that one gave out.
	// Of it Until is the same, and its artifacts stay; uploads that were open are lost.
	// Without a Secret there is no other session like it.
	Secret []byte
	Begun  time.Time
	Again  bool
}

// Session is the service of one execution of a job.
type Session struct {
	store *Store
	job   Job
	dir   string // the repository's
	key   [32]byte
	token string

	mu      sync.Mutex
	closed  bool
	uploads map[string]*upload
	pending map[string]string // name of an artifact → upload
	staged  int64             // bytes of all uploads
	begun   int               // uploads in all
}

const (
	// maxUploads is how many uploads of a job may be open, maxBegun how many it may
	// begin in all.
	maxUploads = 64
	maxBegun   = 20_000

	uploadTime   = 6 * time.Hour // of an address that takes a content
	downloadTime = time.Hour     // of one that gives it
)

// Open begins a session. What an earlier execution of the same job left is removed:
// that one was lost, and its artifacts with it. Close it.
func (s *Store) Open(job Job) (*Session, error) {
	if job.Until.IsZero() {
		job.Until = s.now().Add(24 * time.Hour)
	}
	n := &Session{store: s, job: job, dir: filepath.Join(s.dir, repositoryDir(job.Repository)),
		uploads: map[string]*upload{}, pending: map[string]string{}}
	if len(job.Secret) == 0 {
		rand.Read(n.key[:]) // never fails
	} else if copy(n.key[:], job.Secret); len(job.Secret) != len(n.key) {
		return nil, fmt.Errorf("a session's secret has %d bytes, not %d", len(job.Secret), len(n.key))
	}
	if job.Begun.IsZero() {
		n.job.Begun = s.now()
	}
	if job.Again {
		n.token = n.issue()
		return n, nil
	}
	x, err := s.view(job.Repository)
	if err != nil {
		return nil, err
	}
	lost := func(a Artifact) bool { return a.Run == job.Run && a.Attempt == job.Attempt && a.Job == job.Key }
	for _, a := range x.Artifacts {
		if lost(a) {
			err := s.update(job.Repository, func(p *place) error {
				p.Artifacts = deleteArtifacts(p.Artifacts, lost)
				return nil
			})
			if err != nil {
				return nil, err
			}
			break
		}
	}
	n.token = n.issue()
	return n, nil
}

// Token is ACTIONS_RUNTIME_TOKEN.
func (n *Session) Token() string { return n.token }

// jobID is the job as the token and the answers name it: its key may hold anything.
func jobID(key string) string {
	sum := sha256.Sum256([]byte(key))
	return fmt.Sprintf("%x", sum[:16])
}

// issue makes the token. The packages want scp of it; others read ac, the scopes of
// caches with 1 for reading and 2 for writing.
func (n *Session) issue() string {
	type scope struct{ Scope, Permission any }
	var scopes []scope
	for i, ref := range n.job.Scopes {
		may := 0
		if n.job.Mode.Reads() {
			may |= 1
		}
		if i == 0 && n.job.Mode.Writes() {
			may |= 2
		}
		if may > 0 {
			scopes = append(scopes, scope{ref, may})
		}
	}
	ac, _ := json.Marshal(scopes) // strings and numbers
	now := n.job.Begun
	claims, _ := json.Marshal(map[string]any{
		"scp": "Actions.Results:" + n.job.Run + ":" + jobID(n.job.Key), "ac": string(ac),
		"iss": "hearth", "iat": now.Unix(), "nbf": now.Add(-time.Minute).Unix(), "exp": n.job.Until.Unix(),
	})
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(`{"alg":"HS256","typ":"JWT"}`)) + "." + enc.EncodeToString(claims)
	return text + "." + enc.EncodeToString(n.mac(text))
}

func (n *Session) mac(text string) []byte {
	h := hmac.New(sha256.New, n.key[:])
	h.Write([]byte(text))
	return h.Sum(nil)
}

// Close ends the session: uploads that were not finished go, and so do the keys of
// caches that were reserved for them.
func (n *Session) Close() error {
	n.mu.Lock()
	n.closed = true
	uploads := n.uploads
	n.uploads, n.pending = map[string]*upload{}, map[string]string{}
	n.mu.Unlock()
	var errs []error
	reserved := false
	for _, u := range uploads {
		errs = append(errs, u.discard())
		reserved = reserved || u.cache
	}
	if reserved {
		errs = append(errs, n.store.update(n.job.Repository, func(p *place) error {
			p.Caches = deleteCaches(p.Caches, func(c Cache) bool { return c.Upload != "" && uploads[c.Upload] != nil })
			return nil
		}))
	}
	return errors.Join(errs...)
}

const twirp = "/twirp/github.actions.results.api.v1."

// ServeHTTP answers the guest.
func (n *Session) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch method, ok := strings.CutPrefix(r.URL.Path, twirp); {
	case ok:
		n.call(w, r, method)
	case strings.HasPrefix(r.URL.Path, blobRoot):
		n.blob(w, r)
	default:
		http.NotFound(w, r)
	}
}

// call answers a Twirp method.
func (n *Session) call(w http.ResponseWriter, r *http.Request, method string) {
	answer, err := n.method(r, method)
	status := http.StatusOK
	if err != nil {
		var told *refusal
		if !errors.As(err, &told) {
			n.store.log.Error("results", "method", method, "repository", n.job.Repository, "run", n.job.Run, "err", err)
			told = &refusal{internalError, "the runner could not do it; its log says why"}
		}
		status, answer = told.code.status, map[string]any{"code": told.code.name, "msg": told.msg}
	}
	b, err := json.Marshal(answer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(b) // who is gone is gone
}

func (n *Session) method(r *http.Request, method string) (any, error) {
	if r.Method != http.MethodPost {
		return nil, refuse(badRoute, "%s is no way to call a method: POST is", r.Method)
	}
	token, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	if !bearer || subtle.ConstantTimeCompare([]byte(token), []byte(n.token)) != 1 {
		return nil, refuse(unauthenticated, "the token is not this job's")
	}
	if n.store.now().After(n.job.Until) {
		return nil, refuse(unauthenticated, "the token has expired")
	}
	if kind, _, _ := strings.Cut(r.Header.Get("Content-Type"), ";"); strings.TrimSpace(kind) != "application/json" {
		return nil, refuse(malformed, "want application/json: other forms of Twirp are not spoken here")
	}
	b, err := io.ReadAll(io.LimitReader(r.Body, maxRequest+1))
	if err != nil {
		return nil, refuse(malformed, "reading the request: %v", err)
	}
	if len(b) > maxRequest {
		return nil, refuse(invalidArgument, "the request has more than %d KiB", maxRequest>>10)
	}
	m, err := parseMessage(b)
	if err != nil {
		return nil, err
	}
	switch method {
	case "ArtifactService/CreateArtifact":
		return n.createArtifact(m)
	case "ArtifactService/FinalizeArtifact":
		return n.finalizeArtifact(m)
	case "ArtifactService/ListArtifacts":
		return n.listArtifacts(m)
	case "ArtifactService/GetSignedArtifactURL":
		return n.artifactURL(m)
	case "ArtifactService/DeleteArtifact":
		return n.deleteArtifact(m)
	case "CacheService/CreateCacheEntry":
		return n.createCache(m)
	case "CacheService/FinalizeCacheEntryUpload":
		return n.finalizeCache(m)
	case "CacheService/GetCacheEntryDownloadURL":
		return n.cacheURL(m)
	}
	return nil, refuse(badRoute, "there is no method %.100q here", method)
}

// begin opens an upload.
func (n *Session) begin(cache bool) (*upload, error) {
	if err := n.store.room(n.dir, 0); err != nil {
		return nil, refuse(resourceExhausted, "%v", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return nil, refuse(unauthenticated, "the job has ended")
	case len(n.uploads) >= maxUploads:
		return nil, refuse(resourceExhausted, "the job has %d uploads that are not finished", maxUploads)
	case n.begun >= maxBegun:
		return nil, refuse(resourceExhausted, "the job has begun %d uploads", maxBegun)
	}
	n.begun++
	u := &upload{id: newID(), session: n, cache: cache, blocks: map[string]int64{}}
	u.dir = filepath.Join(n.dir, "uploads", u.id)
	if err := os.Mkdir(u.dir, 0o700); err != nil {
		return nil, err
	}
	n.uploads[u.id] = u
	return u, nil
}

// end forgets an upload and what it has on the disk.
func (n *Session) end(u *upload) error {
	n.mu.Lock()
	delete(n.uploads, u.id)
	n.mu.Unlock()
	return u.discard()
}

func (n *Session) upload(id string) *upload {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.uploads[id]
}
