// Package githubtest is a GitHub for tests, small and strict. It accepts what
// GitHub's REST description says and refuses the rest: a JWT that is not the
// App's own, in date and RS256; a token that is unknown, expired, or not allowed
// what is asked; a path that does not exist; a check run that lacks a field,
// ends twice or has too many annotations. Whatever a client does that a correct
// client would not is kept in Violations, which a test fails on.
package githubtest

import (
	"archive/tar"
	"compress/gzip"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Server is the fake GitHub.
type Server struct {
	*httptest.Server
	AppID        int64
	Installation int64

	key *rsa.PrivateKey

	mu         sync.Mutex
	repos      map[string]*repo
	tokens     map[string]token
	checks     map[int64]*Check
	nextCheck  int64
	violations []string
	narrowed   []map[string]string
	requests   []string
	fault      func(r *http.Request) *Fault
	changed    chan struct{}
	deliveries []delivery
	// noAdministration: the App was not granted administration: read.
	noAdministration bool
}

// delivery is one that the App's webhook was sent.
type delivery struct {
	id    int64
	guid  string
	event string
	body  []byte
}

// Fault is what the server answers instead.
type Fault struct {
	Status int
	Header map[string]string
	Body   string
	Hang   bool // answer nothing until the client gives up
}

type repo struct {
	trees   map[string]map[string]string // sha → path → content
	changes map[string][]string          // "base...head", or a sha → paths
	commits map[string]commit
	refs    map[string]string // heads/main → sha
	pulls   map[int][]string

	visibility string            // "" is public
	shares     string            // access_level; "" is none
	roles      map[string]string // login → admin, write, read
}

type commit struct {
	message string
	parents []string
	object  map[string]any // nil tells the message alone
}

type token struct {
	expires     time.Time
	permissions map[string]string
	repos       []string // nil is all
}

// Check is a check run as the server holds it.
type Check struct {
	ID          int64            `json:"id"`
	Repo        string           `json:"-"`
	Name        string           `json:"name"`
	HeadSHA     string           `json:"head_sha"`
	DetailsURL  string           `json:"details_url,omitempty"`
	ExternalID  string           `json:"external_id,omitempty"`
	Status      string           `json:"status"`
	Conclusion  string           `json:"conclusion,omitempty"`
	StartedAt   string           `json:"started_at,omitempty"`
	CompletedAt string           `json:"completed_at,omitempty"`
	Output      Output           `json:"output"`
	History     []string         `json:"-"` // statuses and conclusions in order
	Actions     []string         `json:"-"` // identifiers
	Annotations []map[string]any `json:"-"`
}

// Output is the text of a check run.
type Output struct {
	Title       string           `json:"title"`
	Summary     string           `json:"summary"`
	Text        string           `json:"text,omitempty"`
	Annotations []map[string]any `json:"annotations,omitempty"`
}

// New starts a server for one App with one installation.
func New() *Server {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	s := &Server{AppID: 4711, Installation: 815, key: key, repos: map[string]*repo{}, tokens: map[string]token{}, checks: map[int64]*Check{}, nextCheck: 1000,
		changed: make(chan struct{}, 1)}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /repos/{owner}/{repo}/installation", s.app(s.installation))
	mux.HandleFunc("POST /app/installations/{id}/access_tokens", s.app(s.accessToken))
	mux.HandleFunc("GET /app/installations/{id}", s.app(s.installed))
	mux.HandleFunc("GET /app/hook/deliveries", s.app(s.listDeliveries))
	mux.HandleFunc("GET /app/hook/deliveries/{id}", s.app(s.oneDelivery))
	mux.HandleFunc("GET /repos/{owner}/{repo}", s.repo("metadata", "read", s.about))
	mux.HandleFunc("GET /repos/{owner}/{repo}/actions/permissions/access", s.repo("administration", "read", s.access))
	mux.HandleFunc("GET /repos/{owner}/{repo}/collaborators/{user}/permission", s.repo("metadata", "read", s.role))
	mux.HandleFunc("GET /repos/{owner}/{repo}/git/ref/{ref...}", s.repo("contents", "read", s.ref))
	mux.HandleFunc("GET /repos/{owner}/{repo}/contents/{path...}", s.repo("contents", "read", s.contents))
	mux.HandleFunc("GET /repos/{owner}/{repo}/commits/{sha}", s.repo("contents", "read", s.commit))
	mux.HandleFunc("GET /repos/{owner}/{repo}/compare/{range}", s.repo("contents", "read", s.compare))
	mux.HandleFunc("GET /repos/{owner}/{repo}/pulls/{number}/files", s.repo("pull_requests", "read", s.pullFiles))
	mux.HandleFunc("GET /repos/{owner}/{repo}/tarball/{sha}", s.repo("contents", "read", s.tarball))
	mux.HandleFunc("POST /repos/{owner}/{repo}/check-runs", s.repo("checks", "write", s.createCheck))
	mux.HandleFunc("PATCH /repos/{owner}/{repo}/check-runs/{id}", s.repo("checks", "write", s.updateCheck))
	mux.HandleFunc("GET /repos/{owner}/{repo}/commits/{sha}/check-runs", s.repo("checks", "read", s.listChecks))
	mux.HandleFunc("GET /codeload/{owner}/{repo}/{sha}", s.codeload)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		// Nothing can be fetched by git here: a runner has to say so, and go on.
		if !strings.HasSuffix(r.URL.Path, "/info/refs") {
			s.violate("%s %s is no address of GitHub's that a runner needs", r.Method, r.URL.Path)
		}
		s.deny(w, http.StatusNotFound, "Not Found")
	})
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.requests = append(s.requests, r.Method+" "+r.URL.Path)
		fault := s.fault
		s.mu.Unlock()
		if fault != nil {
			if f := fault(r); f != nil {
				if f.Hang {
					// The end of a client is only noticed once its request is read.
					io.Copy(io.Discard, r.Body)
					<-r.Context().Done()
					return
				}
				for k, v := range f.Header {
					w.Header().Set(k, v)
				}
				w.Header().Set("Content-Type", "application/json")
				w.WriteHeader(f.Status)
				io.WriteString(w, f.Body)
				return
			}
		}
		mux.ServeHTTP(w, r)
	}))
	return s
}

// Key is the App's private key in PEM form.
func (s *Server) Key() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(s.key)})
}

// Commit makes a commit of a repository; files are path → content.
func (s *Server) Commit(name, sha string, files map[string]string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).trees[sha] = files
}

// Describe gives a commit its message and parents.
func (s *Server) Describe(name, sha, message string, parents ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).commits[sha] = commit{message: message, parents: parents}
}

// Object says what a commit's object is, as the API tells it: tree, author, committer,
// message, verification.
func (s *Server) Object(name, sha string, object map[string]any, parents ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).commits[sha] = commit{parents: parents, object: object}
}

// Ref points a ref (refs/heads/main) to a commit.
func (s *Server) Ref(name, ref, sha string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).refs[strings.TrimPrefix(ref, "refs/")] = sha
}

// Changes says which paths differ: between "base...head", or in the commit sha.
func (s *Server) Changes(name, what string, paths ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).changes[what] = paths
}

// Pull says which paths a pull request changes.
func (s *Server) Pull(name string, number int, paths ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).pulls[number] = paths
}

// Hide makes a repository private or internal, whose workflows those may use that
// shares names: none, user, organization, enterprise.
func (s *Server) Hide(name, visibility, shares string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).visibility, s.of(name).shares = visibility, shares
}

// Role says what a user may do in a repository: admin, write, read.
func (s *Server) Role(name, login, role string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.of(name).roles[login] = role
}

// Send notes that the App's webhook was sent a body.
func (s *Server) Send(guid, event string, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deliveries = append(s.deliveries, delivery{int64(len(s.deliveries)) + 1, guid, event, body})
}

// WithholdAdministration takes the permission administration: read from the App.
func (s *Server) WithholdAdministration() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.noAdministration = true
}

func (s *Server) of(name string) *repo {
	r := s.repos[name]
	if r == nil {
		r = &repo{trees: map[string]map[string]string{}, changes: map[string][]string{}, commits: map[string]commit{}, refs: map[string]string{},
			pulls: map[int][]string{}, roles: map[string]string{}}
		s.repos[name] = r
	}
	return r
}

// Fail makes the server answer a request otherwise; nil ends it.
func (s *Server) Fail(f func(r *http.Request) *Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// Checks returns copies of all check runs, by id.
func (s *Server) Checks() []Check {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []Check
	for _, c := range s.checks {
		d := *c
		d.History = slices.Clone(c.History)
		d.Annotations = slices.Clone(c.Annotations)
		out = append(out, d)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

// Changed receives after check runs have changed.
func (s *Server) Changed() <-chan struct{} { return s.changed }

// Tokens lists the permissions of every token handed out that was narrowed down.
func (s *Server) Tokens() []map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.narrowed)
}

// Violations is what clients did that they should not have.
func (s *Server) Violations() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.violations)
}

// Requests is every request so far: "GET /repos/…".
func (s *Server) Requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.requests)
}

func (s *Server) violate(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.violations = append(s.violations, fmt.Sprintf(format, args...))
}

func (s *Server) deny(w http.ResponseWriter, status int, message string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]string{"message": message, "documentation_url": "https://docs.github.com/rest"})
}

func (s *Server) answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func bearer(r *http.Request) string {
	scheme, t, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "bearer") && !strings.EqualFold(scheme, "token") {
		return ""
	}
	return t
}

// app admits only the App itself, by its JWT.
func (s *Server) app(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		claims := jwt.RegisteredClaims{}
		_, err := jwt.ParseWithClaims(bearer(r), &claims, func(*jwt.Token) (any, error) { return &s.key.PublicKey, nil },
			jwt.WithValidMethods([]string{"RS256"}), jwt.WithIssuer(strconv.FormatInt(s.AppID, 10)), jwt.WithExpirationRequired(), jwt.WithIssuedAt())
		if err != nil {
			s.deny(w, http.StatusUnauthorized, "A JSON web token could not be decoded")
			return
		}
		if claims.IssuedAt == nil || claims.ExpiresAt.Sub(claims.IssuedAt.Time) > 10*time.Minute+time.Minute {
			s.deny(w, http.StatusUnauthorized, "'Expiration time' claim ('exp') is too far in the future")
			return
		}
		next(w, r)
	}
}

// repo admits a token that may do what is asked with the repository.
func (s *Server) repo(scope, access string, next func(http.ResponseWriter, *http.Request, *repo)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		name := r.PathValue("owner") + "/" + r.PathValue("repo")
		s.mu.Lock()
		t, ok := s.tokens[bearer(r)]
		found := s.repos[name]
		s.mu.Unlock()
		switch {
		case !ok || time.Now().After(t.expires):
			s.deny(w, http.StatusUnauthorized, "Bad credentials")
		case found == nil, t.repos != nil && !slices.Contains(t.repos, r.PathValue("repo")):
			s.deny(w, http.StatusNotFound, "Not Found")
		case t.permissions[scope] != access && t.permissions[scope] != "write":
			if scope != "administration" { // which an App may lack, and only then be told
				s.violate("%s %s needs %s: %s", r.Method, r.URL.Path, scope, access)
			}
			s.deny(w, http.StatusForbidden, "Resource not accessible by integration")
		default:
			next(w, r, found)
		}
	}
}

func (s *Server) installation(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	found := s.repos[r.PathValue("owner")+"/"+r.PathValue("repo")]
	s.mu.Unlock()
	if found == nil {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	s.answer(w, http.StatusOK, map[string]any{"id": s.Installation, "app_id": s.AppID})
}

// permissions are what the installation was granted.
func (s *Server) permissions() map[string]string {
	out := map[string]string{"metadata": "read", "contents": "read", "checks": "write", "pull_requests": "read", "statuses": "write", "administration": "read"}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.noAdministration {
		delete(out, "administration")
	}
	return out
}

func (s *Server) about(w http.ResponseWriter, r *http.Request, rp *repo) {
	s.mu.Lock()
	visibility := rp.visibility
	s.mu.Unlock()
	if visibility == "" {
		visibility = "public"
	}
	name := r.PathValue("owner") + "/" + r.PathValue("repo")
	s.answer(w, http.StatusOK, map[string]any{"id": 1, "name": r.PathValue("repo"), "full_name": name, "private": visibility != "public",
		"visibility": visibility})
}

func (s *Server) access(w http.ResponseWriter, r *http.Request, rp *repo) {
	s.mu.Lock()
	visibility, level := rp.visibility, rp.shares
	s.mu.Unlock()
	if visibility == "" || visibility == "public" {
		s.deny(w, http.StatusUnprocessableEntity, "Access policy only applies to internal and private repositories.")
		return
	}
	if level == "" {
		level = "none"
	}
	s.answer(w, http.StatusOK, map[string]any{"access_level": level})
}

func (s *Server) role(w http.ResponseWriter, r *http.Request, rp *repo) {
	s.mu.Lock()
	role := rp.roles[r.PathValue("user")]
	s.mu.Unlock()
	if role == "" {
		role = "read" // of a public repository, everybody
	}
	s.answer(w, http.StatusOK, map[string]any{"permission": role, "role_name": role, "user": map[string]any{"login": r.PathValue("user")}})
}

// listDeliveries pages by twos, so that a client has to follow the cursor.
func (s *Server) listDeliveries(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	all := slices.Clone(s.deliveries)
	s.mu.Unlock()
	slices.Reverse(all)
	from, _ := strconv.Atoi(strings.TrimPrefix(r.URL.Query().Get("cursor"), "v1_"))
	from = min(max(from, 0), len(all))
	to := min(from+2, len(all))
	if to < len(all) {
		w.Header().Set("Link", fmt.Sprintf(`<%s%s?cursor=v1_%d>; rel="next"`, s.URL, r.URL.Path, to))
	}
	out := []map[string]any{}
	for _, d := range all[from:to] {
		out = append(out, map[string]any{"id": d.id, "guid": d.guid, "event": d.event, "delivered_at": time.Now().UTC().Format(time.RFC3339), "status": "OK",
			"status_code": 202})
	}
	s.answer(w, http.StatusOK, out)
}

func (s *Server) oneDelivery(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range s.deliveries {
		if strconv.FormatInt(d.id, 10) == r.PathValue("id") {
			s.answer(w, http.StatusOK, map[string]any{"id": d.id, "guid": d.guid, "event": d.event, "request": map[string]any{"payload": json.RawMessage(d.body)}})
			return
		}
	}
	s.deny(w, http.StatusNotFound, "Not Found")
}

func (s *Server) installed(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("id") != strconv.FormatInt(s.Installation, 10) {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	s.answer(w, http.StatusOK, map[string]any{"id": s.Installation, "app_id": s.AppID, "permissions": s.permissions()})
}

func (s *Server) ref(w http.ResponseWriter, r *http.Request, rp *repo) {
	s.mu.Lock()
	sha := rp.refs[r.PathValue("ref")]
	s.mu.Unlock()
	if sha == "" {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	s.answer(w, http.StatusOK, map[string]any{"ref": "refs/" + r.PathValue("ref"), "object": map[string]any{"type": "commit", "sha": sha}})
}

func (s *Server) accessToken(w http.ResponseWriter, r *http.Request) {
	if r.PathValue("id") != strconv.FormatInt(s.Installation, 10) {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	var body struct {
		Repositories []string          `json:"repositories"`
		Permissions  map[string]string `json:"permissions"`
	}
	if b, _ := io.ReadAll(io.LimitReader(r.Body, 1<<20)); len(strings.TrimSpace(string(b))) > 0 && string(b) != "null\n" {
		if err := json.Unmarshal(b, &body); err != nil {
			s.violate("access token: %v in %s", err, b)
			s.deny(w, http.StatusBadRequest, "Problems parsing JSON")
			return
		}
	}
	granted := s.permissions()
	if body.Repositories == nil {
		s.violate("a token for all repositories of the installation was asked for")
	}
	s.mu.Lock()
	for _, name := range body.Repositories {
		known := false
		for full := range s.repos {
			_, have, _ := strings.Cut(full, "/")
			known = known || strings.EqualFold(have, name)
		}
		if !known {
			s.mu.Unlock()
			s.deny(w, http.StatusUnprocessableEntity, "There is at least one repository that does not exist or is not accessible to the parent installation.")
			return
		}
	}
	s.mu.Unlock()
	for scope, access := range body.Permissions {
		if granted[scope] != access && granted[scope] != "write" {
			s.deny(w, http.StatusUnprocessableEntity, "The permissions requested are not granted to this installation.")
			return
		}
	}
	if body.Permissions != nil {
		granted = body.Permissions
	}
	b := make([]byte, 18)
	rand.Read(b)
	t := "ghs_" + base64.RawURLEncoding.EncodeToString(b)
	s.mu.Lock()
	if body.Permissions != nil {
		s.narrowed = append(s.narrowed, granted)
	}
	s.tokens[t] = token{time.Now().Add(time.Hour), granted, body.Repositories}
	s.mu.Unlock()
	s.answer(w, http.StatusCreated, map[string]any{"token": t, "expires_at": time.Now().Add(time.Hour).UTC().Format(time.RFC3339), "permissions": granted})
}

func (s *Server) tree(w http.ResponseWriter, r *http.Request, rp *repo, sha string) map[string]string {
	if len(sha) != 40 || strings.Trim(sha, "0123456789abcdef") != "" {
		s.violate("%s %s asks for %q, which is no exact sha", r.Method, r.URL.Path, sha)
		s.deny(w, http.StatusNotFound, "No commit found for the ref "+sha)
		return nil
	}
	s.mu.Lock()
	t := rp.trees[sha]
	s.mu.Unlock()
	if t == nil {
		s.deny(w, http.StatusNotFound, "No commit found for the ref "+sha)
	}
	return t
}

func (s *Server) contents(w http.ResponseWriter, r *http.Request, rp *repo) {
	t := s.tree(w, r, rp, r.URL.Query().Get("ref"))
	if t == nil {
		return
	}
	p := r.PathValue("path")
	if text, ok := t[p]; ok {
		s.answer(w, http.StatusOK, map[string]any{"type": "file", "encoding": "base64", "size": len(text), "name": path.Base(p), "path": p,
			"content": base64.StdEncoding.EncodeToString([]byte(text))})
		return
	}
	var list []map[string]any
	for name, text := range t {
		if rest, ok := strings.CutPrefix(name, p+"/"); ok && !strings.Contains(rest, "/") {
			list = append(list, map[string]any{"type": "file", "size": len(text), "name": rest, "path": name})
		}
	}
	if list == nil {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	s.answer(w, http.StatusOK, list)
}

func files(paths []string) []map[string]any {
	out := []map[string]any{}
	for _, p := range paths {
		out = append(out, map[string]any{"filename": p, "status": "modified"})
	}
	return out
}

func (s *Server) commit(w http.ResponseWriter, r *http.Request, rp *repo) {
	sha := r.PathValue("sha")
	if s.tree(w, r, rp, sha) == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	c := rp.commits[sha]
	parents := []map[string]any{}
	for _, p := range c.parents {
		parents = append(parents, map[string]any{"sha": p})
	}
	object := c.object
	if object == nil {
		object = map[string]any{"message": c.message}
	}
	s.answer(w, http.StatusOK, map[string]any{"sha": sha, "commit": object, "parents": parents, "files": files(rp.changes[sha])})
}

func (s *Server) compare(w http.ResponseWriter, r *http.Request, rp *repo) {
	s.mu.Lock()
	paths, ok := rp.changes[r.PathValue("range")]
	s.mu.Unlock()
	if !ok {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	s.answer(w, http.StatusOK, map[string]any{"status": "ahead", "files": files(paths)})
}

func (s *Server) pullFiles(w http.ResponseWriter, r *http.Request, rp *repo) {
	n, err := strconv.Atoi(r.PathValue("number"))
	s.mu.Lock()
	paths, ok := rp.pulls[n]
	s.mu.Unlock()
	if err != nil || !ok {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	per, _ := strconv.Atoi(r.URL.Query().Get("per_page"))
	page, _ := strconv.Atoi(r.URL.Query().Get("page"))
	per, page = max(min(per, 100), 1), max(page, 1)
	from := min((page-1)*per, len(paths))
	to := min(from+per, len(paths))
	if to < len(paths) {
		w.Header().Set("Link", fmt.Sprintf(`<%s%s?per_page=%d&page=%d>; rel="next"`, s.URL, r.URL.Path, per, page+1))
	}
	s.answer(w, http.StatusOK, files(paths[from:to]))
}

func (s *Server) tarball(w http.ResponseWriter, r *http.Request, rp *repo) {
	if s.tree(w, r, rp, r.PathValue("sha")) == nil {
		return
	}
	w.Header().Set("Location", fmt.Sprintf("%s/codeload/%s/%s/%s?token=once", s.URL, r.PathValue("owner"), r.PathValue("repo"), r.PathValue("sha")))
	w.WriteHeader(http.StatusFound)
}

func (s *Server) codeload(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "" {
		s.violate("the installation token was sent to the download host")
	}
	s.mu.Lock()
	rp := s.repos[r.PathValue("owner")+"/"+r.PathValue("repo")]
	var t map[string]string
	if rp != nil {
		t = rp.trees[r.PathValue("sha")]
	}
	s.mu.Unlock()
	if t == nil || r.URL.Query().Get("token") != "once" {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	w.Header().Set("Content-Type", "application/x-gzip")
	z := gzip.NewWriter(w)
	a := tar.NewWriter(z)
	root := fmt.Sprintf("%s-%s-%s/", r.PathValue("owner"), r.PathValue("repo"), r.PathValue("sha")[:7])
	a.WriteHeader(&tar.Header{Typeflag: tar.TypeXGlobalHeader, Name: "pax_global_header", PAXRecords: map[string]string{"comment": r.PathValue("sha")}})
	a.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: root, Mode: 0o775})
	names := make([]string, 0, len(t))
	for n := range t {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		mode := int64(0o664)
		if strings.HasSuffix(n, ".sh") {
			mode = 0o775
		}
		a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: root + n, Mode: mode, Size: int64(len(t[n])), ModTime: time.Unix(1_700_000_000, 0)})
		io.WriteString(a, t[n])
	}
	a.Close()
	z.Close()
}

type checkBody struct {
	Name        *string             `json:"name"`
	HeadSHA     *string             `json:"head_sha"`
	DetailsURL  *string             `json:"details_url"`
	ExternalID  *string             `json:"external_id"`
	Status      *string             `json:"status"`
	Conclusion  *string             `json:"conclusion"`
	StartedAt   *string             `json:"started_at"`
	CompletedAt *string             `json:"completed_at"`
	Output      *Output             `json:"output"`
	Actions     []map[string]string `json:"actions"`
}

func (s *Server) readCheck(w http.ResponseWriter, r *http.Request) (b checkBody, ok bool) {
	dec := json.NewDecoder(io.LimitReader(r.Body, 4<<20))
	dec.DisallowUnknownFields()
	refuse := func(format string, args ...any) {
		why := fmt.Sprintf(format, args...)
		s.violate("check run: %s", why)
		s.deny(w, http.StatusUnprocessableEntity, "Invalid request.\n\n"+why)
	}
	if err := dec.Decode(&b); err != nil {
		refuse("%v", err)
		return b, false
	}
	if b.Status != nil && !slices.Contains([]string{"queued", "in_progress", "completed"}, *b.Status) {
		refuse("status %q", *b.Status)
		return b, false
	}
	if b.Status != nil && *b.Status == "completed" && b.Conclusion == nil {
		refuse("completed without a conclusion")
		return b, false
	}
	if b.Conclusion != nil && !slices.Contains([]string{"action_required", "cancelled", "failure", "neutral", "success", "skipped", "timed_out"}, *b.Conclusion) {
		refuse("conclusion %q", *b.Conclusion)
		return b, false
	}
	for _, at := range []*string{b.StartedAt, b.CompletedAt} {
		if at != nil {
			if _, err := time.Parse(time.RFC3339, *at); err != nil {
				refuse("time %q", *at)
				return b, false
			}
		}
	}
	if len(b.Actions) > 3 {
		refuse("%d actions", len(b.Actions))
		return b, false
	}
	for _, a := range b.Actions {
		for k, most := range map[string]int{"label": 20, "description": 40, "identifier": 20} {
			if len(a[k]) == 0 || len(a[k]) > most {
				refuse("an action's %s %q", k, a[k])
				return b, false
			}
		}
	}
	if o := b.Output; o != nil {
		if o.Title == "" || o.Summary == "" {
			refuse("output without a title or a summary")
			return b, false
		}
		if len(o.Summary) > 65535 || len(o.Text) > 65535 {
			refuse("output too long: %d, %d bytes", len(o.Summary), len(o.Text))
			return b, false
		}
		if len(o.Annotations) > 50 {
			refuse("%d annotations in one request", len(o.Annotations))
			return b, false
		}
		for _, a := range o.Annotations {
			for _, k := range []string{"path", "start_line", "end_line", "annotation_level", "message"} {
				if a[k] == nil {
					refuse("annotation without %s", k)
					return b, false
				}
			}
			if l := a["annotation_level"]; l != "notice" && l != "warning" && l != "failure" {
				refuse("annotation level %v", l)
				return b, false
			}
			if a["start_line"] != a["end_line"] && a["start_column"] != nil {
				refuse("columns across lines")
				return b, false
			}
		}
	}
	return b, true
}

func (s *Server) createCheck(w http.ResponseWriter, r *http.Request, rp *repo) {
	b, ok := s.readCheck(w, r)
	if !ok {
		return
	}
	if b.Name == nil || *b.Name == "" || b.HeadSHA == nil {
		s.violate("check run without name or head_sha")
		s.deny(w, http.StatusUnprocessableEntity, "Invalid request.\n\n\"name\", \"head_sha\" weren't supplied.")
		return
	}
	if s.tree(w, r, rp, *b.HeadSHA) == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nextCheck++
	c := &Check{ID: s.nextCheck, Repo: r.PathValue("owner") + "/" + r.PathValue("repo"), Name: *b.Name, HeadSHA: *b.HeadSHA, Status: "queued"}
	s.checks[c.ID] = c
	s.apply(c, b)
	s.answer(w, http.StatusCreated, c)
}

func (s *Server) updateCheck(w http.ResponseWriter, r *http.Request, _ *repo) {
	b, ok := s.readCheck(w, r)
	if !ok {
		return
	}
	id, _ := strconv.ParseInt(r.PathValue("id"), 10, 64)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.checks[id]
	if c == nil || c.Repo != r.PathValue("owner")+"/"+r.PathValue("repo") {
		s.deny(w, http.StatusNotFound, "Not Found")
		return
	}
	if c.Status == "completed" && b.Status != nil && *b.Status != "completed" {
		s.violations = append(s.violations, fmt.Sprintf("check %s went from completed to %s", c.Name, *b.Status))
	}
	if c.Status == "completed" && b.Conclusion != nil && *b.Conclusion != c.Conclusion {
		s.violations = append(s.violations, fmt.Sprintf("check %s ended twice: %s, then %s", c.Name, c.Conclusion, *b.Conclusion))
	}
	s.apply(c, b)
	s.answer(w, http.StatusOK, c)
}

func (s *Server) apply(c *Check, b checkBody) {
	set := func(to *string, from *string) {
		if from != nil {
			*to = *from
		}
	}
	set(&c.Name, b.Name)
	set(&c.DetailsURL, b.DetailsURL)
	set(&c.ExternalID, b.ExternalID)
	set(&c.Status, b.Status)
	set(&c.Conclusion, b.Conclusion)
	set(&c.StartedAt, b.StartedAt)
	set(&c.CompletedAt, b.CompletedAt)
	if b.Output != nil {
		c.Annotations = append(c.Annotations, b.Output.Annotations...)
		c.Output = *b.Output
		c.Output.Annotations = nil
	}
	if b.Actions != nil {
		c.Actions = nil
		for _, a := range b.Actions {
			c.Actions = append(c.Actions, a["identifier"])
		}
	}
	state := c.Status
	if c.Conclusion != "" {
		state += ":" + c.Conclusion
	}
	if n := len(c.History); n == 0 || c.History[n-1] != state {
		c.History = append(c.History, state)
	}
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

func (s *Server) listChecks(w http.ResponseWriter, r *http.Request, _ *repo) {
	s.mu.Lock()
	defer s.mu.Unlock()
	list := []*Check{}
	for _, c := range s.checks {
		if c.HeadSHA == r.PathValue("sha") && (r.URL.Query().Get("check_name") == "" || c.Name == r.URL.Query().Get("check_name")) {
			list = append(list, c)
		}
	}
	s.answer(w, http.StatusOK, map[string]any{"total_count": len(list), "check_runs": list})
}

// SHA makes a commit name out of any text, for tests.
func SHA(text string) string {
	b := make([]byte, 20)
	copy(b, text)
	return hex.EncodeToString(b)
}
