package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/hearth-ci/hearth/internal/network"
)

// SessionConfig says whom a session serves.
type SessionConfig struct {
	// Policy is the machine's. What it may not reach it does not get images from,
	// but those that Session.Via names.
	Policy network.Policy
	// Stranger has none of the host's credentials: a fork's job.
	Stranger bool
}

// Session is the registry of one machine. It is an http.Handler for [Port] of the
// gateway. Safe for concurrent use.
type Session struct {
	cache    *Cache
	stranger bool
	own      func(ctx context.Context, network, address string) (net.Conn, error) // what the machine may reach
	named    func(ctx context.Context, network, address string) (net.Conn, error) // what its workflow names
	slots    chan struct{}

	mu        sync.Mutex
	logins    map[string][2]string // by registry
	images    map[string]bool      // host/name of those that the workflow names
	upstreams map[string]*upstream // by registry, and whether the workflow names the image
	seen      map[string]int64     // host/name@digest that manifests name → size
}

// Bounds of one session.
const (
	maxRequests  = 16
	maxSeen      = 20_000
	maxUpstreams = 100
	maxName      = 255
)

// Session begins one.
func (c *Cache) Session(cfg SessionConfig) (*Session, error) {
	own, err := cfg.Policy.Dialer()
	if err != nil {
		return nil, err
	}
	wide := cfg.Policy
	wide.Mode = network.Public
	named, err := wide.Dialer()
	if err != nil {
		return nil, err
	}
	return &Session{cache: c, stranger: cfg.Stranger, own: own, named: named, slots: make(chan struct{}, maxRequests), logins: map[string][2]string{},
		images: map[string]bool{}, upstreams: map[string]*upstream{}, seen: map[string]int64{}}, nil
}

// Services is a session as what a machine finds on its gateway, for a machine that has
// nothing else there. It needs no Close: its connections end when nobody uses them.
func (c *Cache) Services(cfg SessionConfig) (map[uint16]http.Handler, error) {
	s, err := c.Session(cfg)
	if err != nil {
		return nil, err
	}
	return map[uint16]http.Handler{Port: s}, nil
}

// Login gives the session credentials for a registry ("" is Docker Hub), which come
// before the host's own. The machine does not learn them.
func (s *Session) Login(host, user, password string) {
	host = canonical(cmp.Or(host, dockerHub))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logins[host] = [2]string{user, password}
	for key, u := range s.upstreams {
		if u.host == host {
			delete(s.upstreams, key)
		}
	}
}

var (
	repository = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	tag        = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`)
)

// Split takes an image's reference apart, as Docker reads it: the registry, the
// repository in it, and the tag ("latest" where there is neither) or digest.
func Split(image string) (host, name, reference string, err error) {
	bad := func(why string) (string, string, string, error) {
		return "", "", "", fmt.Errorf("image %.300q: %s", image, why)
	}
	name, sum, digested := strings.Cut(image, "@")
	host, reference = dockerHub, "latest"
	if first, rest, ok := strings.Cut(name, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost" || first != strings.ToLower(first)) {
		host, name = canonical(first), rest
		if !hostName.MatchString(host) {
			return bad("its registry has no usable name")
		}
	}
	if before, t, ok := strings.Cut(name, ":"); ok {
		if name, reference = before, t; !tag.MatchString(t) {
			return bad("its tag is none")
		}
	}
	if digested {
		d, err := parseDigest(sum)
		if err != nil {
			return bad(err.Error())
		}
		reference = string(d)
	}
	if host == dockerHub && !strings.Contains(name, "/") {
		name = "library/" + name
	}
	if !repository.MatchString(name) || len(name) > maxName {
		return bad("its name is none (lower-case letters, digits, and . _ - between them)")
	}
	return host, name, reference, nil
}

// Via returns the reference by which a machine gets an image from its session, and
// lets the session fetch it whatever the machine itself may reach: for images that
// the workflow names.
func (s *Session) Via(image string) (string, error) {
	host, name, reference, err := Split(image)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	s.images[host+"/"+name] = true
	s.mu.Unlock()
	sep := ":"
	if strings.Contains(reference, ":") {
		sep = "@"
	}
	// A port's colon is no part of a repository's name; an underscore is no part of a host's.
	return fmt.Sprintf("%s:%d/%s/%s%s%s", network.Gateway, Port, strings.Replace(host, ":", "_", 1), name, sep, reference), nil
}

// place is where a path of ours leads: a registry and a repository in it.
func place(name string) (host, repo string, ok bool) {
	host, repo = dockerHub, name
	if first, rest, cut := strings.Cut(name, "/"); cut && (strings.ContainsAny(first, "._") || first == "localhost") {
		host, repo = canonical(strings.Replace(first, "_", ":", 1)), rest
	}
	if host == dockerHub && !strings.Contains(repo, "/") {
		repo = "library/" + repo
	}
	return host, repo, hostName.MatchString(host) && len(name) <= maxName+64 && len(repo) <= maxName && repository.MatchString(repo)
}

// upstream returns how the session asks a registry for a repository.
func (s *Session) upstream(host, name string) (*upstream, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	named := s.images[host+"/"+name]
	key := strconv.FormatBool(named) + " " + host
	if u := s.upstreams[key]; u != nil {
		return u, nil
	}
	if len(s.upstreams) >= maxUpstreams {
		return nil, errors.New("this machine has asked too many registries")
	}
	u := &upstream{host: host, base: "https://" + host}
	if host == dockerHub {
		u.base = "https://" + dockerHubHost
	}
	dial := s.own
	if named {
		dial = s.named
	}
	if up, ok := s.cache.registries[host]; ok {
		if up.URL != "" {
			u.base = strings.TrimRight(up.URL, "/")
			mapped, err := url.Parse(up.URL)
			if err != nil {
				return nil, err
			}
			own, port := mapped.Hostname(), cmp.Or(mapped.Port(), map[string]string{"http": "80", "https": "443"}[mapped.Scheme])
			beyond, plain := dial, &net.Dialer{Timeout: answerTime}
			// Where it is was said by whoever runs this host. Where it sends on to was not.
			dial = func(ctx context.Context, network, address string) (net.Conn, error) {
				if address == net.JoinHostPort(own, port) {
					return plain.DialContext(ctx, network, address)
				}
				return beyond(ctx, network, address)
			}
		}
		if !s.stranger {
			u.user, u.pass = up.Username, up.Password
		}
	}
	if l, ok := s.logins[host]; ok {
		u.user, u.pass = l[0], l[1]
	}
	u.client = newClient(dial)
	s.upstreams[key] = u
	return u, nil
}

// Close ends the session's connections.
func (s *Session) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.upstreams {
		u.client.CloseIdleConnections()
	}
}

// ServeHTTP answers the machine: what of the distribution protocol takes to pull.
func (s *Session) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		refuse(w, http.StatusMethodNotAllowed, "UNSUPPORTED", "images can be pulled here, and nothing else")
		return
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-r.Context().Done():
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if ok && rest == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	for _, kind := range []string{"/manifests/", "/blobs/"} {
		i := strings.LastIndex(rest, kind)
		if !ok || i < 0 {
			continue
		}
		host, name, good := place(rest[:i])
		if !good {
			break
		}
		ref := rest[i+len(kind):]
		d, err := parseDigest(ref)
		switch {
		case kind == "/manifests/" && (err == nil || tag.MatchString(ref)):
			s.manifest(w, r, host, name, ref)
		case kind == "/blobs/" && err == nil:
			s.blob(w, r, host, name, d)
		default:
			refuse(w, http.StatusBadRequest, "DIGEST_INVALID", "neither tag nor sha256 digest")
		}
		return
	}
	refuse(w, http.StatusNotFound, "NAME_INVALID", "there is no such repository")
}

// refuse answers with an error as the protocol has it.
func refuse(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(map[string]any{"errors": []map[string]string{{"code": code, "message": message}}})
}

// fail answers with what kept us from the registry. Its 404 is one here, and that
// nobody may see it too: the engine tells those.
func (s *Session) fail(w http.ResponseWriter, r *http.Request, what string, err error) {
	if r.Context().Err() != nil {
		return
	}
	message := fmt.Sprintf("%s: %v", what, err)
	if told, ok := errors.AsType[*statusError](err); ok {
		switch told.status {
		case http.StatusNotFound:
			refuse(w, http.StatusNotFound, "MANIFEST_UNKNOWN", message)
			return
		case http.StatusUnauthorized, http.StatusForbidden:
			refuse(w, http.StatusForbidden, "DENIED", message)
			return
		case http.StatusTooManyRequests:
			refuse(w, http.StatusTooManyRequests, "TOOMANYREQUESTS", message)
			return
		}
	}
	if errors.Is(err, network.ErrPolicy) {
		refuse(w, http.StatusForbidden, "DENIED", message)
		return
	}
	s.cache.log.Debug("an image could not be fetched", "err", err)
	// Of a 5xx Docker would tell its users the number alone.
	refuse(w, http.StatusFailedDependency, "UNKNOWN", message)
}

// manifestTypes are the manifests that the engine reads.
var manifestTypes = []string{
	"application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
	"application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json",
}

// document is what of a manifest or an index is looked at.
type document struct {
	MediaType string       `json:"mediaType"`
	Config    *descriptor  `json:"config"`
	Layers    []descriptor `json:"layers"`
	Manifests []descriptor `json:"manifests"`
}

type descriptor struct {
	Digest string `json:"digest"`
	Size   int64  `json:"size"`
}

// mediaType is what a manifest is, if it does not say so itself.
func (d document) mediaType() string {
	switch {
	case d.MediaType != "":
		return d.MediaType
	case d.Manifests != nil:
		return manifestTypes[0]
	}
	return manifestTypes[1]
}

func (s *Session) manifest(w http.ResponseWriter, r *http.Request, host, name, ref string) {
	what := host + "/" + name + ":" + ref
	b, err := s.getManifest(r.Context(), host, name, ref)
	var doc document
	if err == nil {
		if err = json.Unmarshal(b, &doc); err == nil {
			err = s.admit(host, name, doc)
		}
	}
	if err != nil {
		s.fail(w, r, what, err)
		return
	}
	kind := doc.mediaType()
	if strings.ContainsFunc(kind, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		refuse(w, http.StatusFailedDependency, "MANIFEST_INVALID", what+": it has no usable type")
		return
	}
	w.Header().Set("Content-Type", kind)
	w.Header().Set("Docker-Content-Digest", string(digestOf(b)))
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method == http.MethodGet {
		w.Write(b)
	}
}

// getManifest returns a manifest that the session may have: from the disk where it
// was told of it, else from the registry.
func (s *Session) getManifest(ctx context.Context, host, name, ref string) ([]byte, error) {
	want, _ := parseDigest(ref)
	if want != "" && s.size(host, name, want) >= 0 && s.cache.isOrigin(origin{item{host, want}, name}) {
		if b, err := s.cache.read(item{host, want}, maxManifest); err == nil {
			return b, nil
		}
	}
	u, err := s.upstream(host, name)
	if err != nil {
		return nil, err
	}
	// Asking for the head costs nothing of what registries count.
	head, err := u.ask(ctx, http.MethodHead, name, "manifests/"+ref, manifestTypes)
	if err != nil {
		return nil, err
	}
	head.Body.Close()
	if d, err := parseDigest(head.Header.Get("Docker-Content-Digest")); err == nil && (want == "" || want == d) {
		if b, err := s.cache.read(item{host, d}, maxManifest); err == nil {
			s.cache.noteOrigin(origin{item{host, d}, name})
			return b, nil
		}
	}
	res, err := u.ask(ctx, http.MethodGet, name, "manifests/"+ref, manifestTypes)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxManifest+1))
	switch {
	case err != nil:
		return nil, err
	case len(b) > maxManifest:
		return nil, fmt.Errorf("its manifest has more than %d bytes", maxManifest)
	case want != "" && digestOf(b) != want:
		return nil, errors.New("what came has another digest")
	}
	got := item{host, digestOf(b)}
	s.cache.noteOrigin(origin{got, name})
	if err := s.cache.keep(got, b); err != nil {
		s.cache.log.Warn("an image's manifest is not kept", "err", err)
	}
	return b, nil
}

// admit notes what a manifest names: the session may have it from the disk.
func (s *Session) admit(host, name string, doc document) error {
	all := append(doc.Layers, doc.Manifests...)
	if doc.Config != nil {
		all = append(all, *doc.Config)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range all {
		d, err := parseDigest(one.Digest)
		if err != nil {
			continue // of another kind: it will not be asked for
		}
		if one.Size < 0 {
			return errors.New("its manifest names something of a negative size")
		}
		key := host + "/" + name + "@" + string(d)
		if _, ok := s.seen[key]; !ok && len(s.seen) >= maxSeen {
			return errors.New("this machine has asked for too many images")
		}
		s.seen[key] = one.Size
	}
	return nil
}

// size is what a manifest that the session got says of a blob, -1 if none does.
func (s *Session) size(host, name string, d digest) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.seen[host+"/"+name+"@"+string(d)]; ok {
		return n
	}
	return -1
}

func (s *Session) blob(w http.ResponseWriter, r *http.Request, host, name string, d digest) {
	what := host + "/" + name + "@" + string(d)
	size := s.size(host, name, d)
	if err := s.getBlob(r.Context(), host, name, d, size); err != nil {
		s.fail(w, r, what, err)
		return
	}
	f, n, err := s.cache.open(item{host, d})
	if errors.Is(err, fs.ErrNotExist) { // removed for something else at this moment
		if err = s.getBlob(r.Context(), host, name, d, size); err == nil {
			f, n, err = s.cache.open(item{host, d})
		}
	}
	if err != nil {
		s.fail(w, r, what, err)
		return
	}
	defer f.Close()
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Docker-Content-Digest", string(d))
	if r.Header.Get("Range") != "" {
		info, err := f.Stat()
		if err != nil {
			s.fail(w, r, what, err)
			return
		}
		http.ServeContent(w, r, "", info.ModTime(), f)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	if r.Method == http.MethodHead {
		return
	}
	h := sha256.New()
	if _, err := io.Copy(w, io.TeeReader(f, h)); err != nil {
		return // the machine's affair
	}
	if "sha256:"+hex.EncodeToString(h.Sum(nil)) != string(d) {
		s.cache.damaged(item{host, d})
		panic(http.ErrAbortHandler) // it sees as well, and asks again
	}
}

// getBlob has a blob on disk that the session may have.
func (s *Session) getBlob(ctx context.Context, host, name string, d digest, size int64) error {
	u, err := s.upstream(host, name)
	if err != nil {
		return err
	}
	from := origin{item{host, d}, name}
	if size < 0 || !s.cache.isOrigin(from) {
		// A manifest that names it shows nothing: anybody can write one. Whether there
		// is such a thing in that repository, for this session, is for the registry to
		// say.
		head, err := u.ask(ctx, http.MethodHead, name, "blobs/"+string(d), nil)
		if err != nil {
			return err
		}
		head.Body.Close()
		s.cache.noteOrigin(from)
	}
	return s.cache.fetch(ctx, from.item, size, func(ctx context.Context) (io.ReadCloser, int64, error) {
		res, err := u.ask(ctx, http.MethodGet, name, "blobs/"+string(d), nil)
		if err != nil {
			return nil, 0, err
		}
		return res.Body, res.ContentLength, nil
	})
}
