package oidc

import (
	"cmp"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"github.com/golang-jwt/jwt/v5"
)

// Config is what an [Issuer] is made of.
type Config struct {
	URL    string        // the issuer's: https, without a slash at its end
	Dir    string        // of its keys
	Rotate time.Duration // how long a key signs; 0 is 90 days
	Now    func() time.Time
	Log    *slog.Logger // nil discards
}

// Issuer makes tokens and says by which keys.
type Issuer struct {
	url  string
	ring *keyring
	now  func() time.Time
	log  *slog.Logger
}

// New returns an issuer. Its first key is made when it is first needed.
func New(cfg Config) *Issuer {
	i := &Issuer{url: cfg.URL, now: cfg.Now, log: cfg.Log, ring: &keyring{dir: cfg.Dir, rotate: max(cmp.Or(cfg.Rotate, 90*24*time.Hour), 2*ahead)}}
	if i.now == nil {
		i.now = time.Now
	}
	if i.log == nil {
		i.log = slog.New(slog.DiscardHandler)
	}
	return i
}

// claimNames are the claims that a job's token has, beside those of every token.
var claimNames = []string{"actor", "actor_id", "base_ref", "environment", "event_name", "head_ref",
	"job_workflow_ref", "job_workflow_sha", "ref", "ref_protected", "ref_type",
	"repository", "repository_id", "repository_owner", "repository_owner_id", "repository_visibility", "run_attempt", "run_id", "run_number",
	"runner_environment",
	"sha", "workflow", "workflow_ref", "workflow_sha"}

// SubjectKeys are what a subject may be made of.
func SubjectKeys() []string { return append([]string{"repo", "context"}, claimNames...) }

// Claims are what a token says of its job, by GitHub's names.
type Claims map[string]string

// Subject is sub: of the claims that are listed, or GitHub's own form. An error says
// which claim is asked for and is not there.
func Subject(c Claims, keys []string) (string, error) {
	if len(keys) == 0 {
		keys = []string{"repo", "context"}
	}
	value := func(name string) string { return name + ":" + strings.ReplaceAll(c[name], ":", "%3A") }
	var parts []string
	for _, k := range keys {
		switch {
		case k == "repo":
			parts = append(parts, "repo:"+c["repository"])
		case k == "context" && c["environment"] != "":
			parts = append(parts, value("environment"))
		case k == "context" && strings.HasPrefix(c["event_name"], "pull_request"):
			parts = append(parts, "pull_request")
		case k == "context":
			parts = append(parts, value("ref"))
		case c[k] == "":
			return "", fmt.Errorf("the subject is to have %q, and this job has none", k)
		default:
			parts = append(parts, value(k))
		}
	}
	return strings.Join(parts, ":"), nil
}

const (
	lifetime = 5 * time.Minute
	skew     = 10 * time.Minute // of the relying party's clock, which may be slow
)

// Token signs what a job is.
func (i *Issuer) Token(c Claims, subject []string, audience string) (string, error) {
	now := i.now()
	sub, err := Subject(c, subject)
	if err != nil {
		return "", err
	}
	keys, err := i.ring.current(now)
	if err != nil {
		return "", &keyError{err}
	}
	k := signing(keys, now)
	all := jwt.MapClaims{}
	for name, v := range c {
		all[name] = v
	}
	var id [16]byte
	rand.Read(id[:]) // never fails
	maps.Copy(all, jwt.MapClaims{"iss": i.url, "sub": sub, "aud": audience, "jti": hex.EncodeToString(id[:]),
		"iat": now.Unix(), "nbf": now.Add(-skew).Unix(), "exp": now.Add(lifetime).Unix()})
	t := jwt.NewWithClaims(jwt.SigningMethodRS256, all)
	t.Header["kid"] = k.ID
	return t.SignedString(k.private)
}

// keyError is a fault of ours.
type keyError struct{ err error }

func (e *keyError) Error() string { return "the issuer's keys: " + e.err.Error() }
func (e *keyError) Unwrap() error { return e.err }

// Register adds what relying parties read to a mux, below the path of the issuer's
// URL. It is for everybody.
func (i *Issuer) Register(mux *http.ServeMux, path string) {
	public := func(what func() (any, error)) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			v, err := what()
			if err != nil {
				i.log.Error("OIDC", "err", err)
				http.Error(w, "the keys cannot be read: the server's log says why", http.StatusInternalServerError)
				return
			}
			h := w.Header()
			h.Set("Content-Type", "application/json")
			h.Set("Cache-Control", "public, max-age=3600")
			h.Set("X-Content-Type-Options", "nosniff")
			json.NewEncoder(w).Encode(v) // who is gone is gone
		}
	}
	mux.HandleFunc("GET "+path+"/.well-known/openid-configuration", public(func() (any, error) {
		return map[string]any{
			"issuer": i.url, "jwks_uri": i.url + "/.well-known/jwks",
			"subject_types_supported": []string{"public", "pairwise"}, "response_types_supported": []string{"id_token"},
			"id_token_signing_alg_values_supported": []string{"RS256"}, "scopes_supported": []string{"openid"},
			"claims_supported": append([]string{"sub", "aud", "exp", "iat", "iss", "jti", "nbf"}, claimNames...),
		}, nil
	}))
	mux.HandleFunc("GET "+path+"/.well-known/jwks", public(func() (any, error) {
		keys, err := i.ring.current(i.now())
		if err != nil {
			return nil, err
		}
		set := []map[string]string{}
		for _, k := range keys {
			set = append(set, map[string]string{"kty": "RSA", "use": "sig", "alg": "RS256", "kid": k.ID,
				"n": base64.RawURLEncoding.EncodeToString(k.private.N.Bytes()), "e": base64.RawURLEncoding.EncodeToString(big.NewInt(int64(k.private.E)).Bytes())})
		}
		return map[string]any{"keys": set}, nil
	}))
}

const (
	maxAudience = 1024
	// maxTokens is how many one job may ask for: signing takes the host a moment.
	maxTokens = 1000
)

// Desk hands out one job's tokens.
type Desk struct {
	issuer  *Issuer
	claims  Claims
	subject []string
	owner   string // the default audience
	request string
	count   atomic.Int32
}

// Desk returns what serves a job. subject is the repository's setting, audience what
// a token is for if the job does not say.
func (i *Issuer) Desk(c Claims, subject []string, audience string) *Desk {
	var b [32]byte
	rand.Read(b[:]) // never fails
	return &Desk{issuer: i, claims: maps.Clone(c), subject: slices.Clone(subject), owner: audience, request: hex.EncodeToString(b[:])}
}

// Resume makes the request token that which the key's holder had from a desk before.
// Call it before the first request.
func (d *Desk) Resume(key []byte) {
	h := hmac.New(sha256.New, key)
	h.Write([]byte("request token"))
	d.request = hex.EncodeToString(h.Sum(nil))
}

// RequestToken is ACTIONS_ID_TOKEN_REQUEST_TOKEN.
func (d *Desk) RequestToken() string { return d.request }

// ServeHTTP answers the guest.
func (d *Desk) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	answer := func(status int, v any) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		json.NewEncoder(w).Encode(v) // who is gone is gone
	}
	refuse := func(status int, text string) { answer(status, map[string]string{"message": text}) }
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	audience := cmp.Or(r.URL.Query().Get("audience"), d.owner)
	switch {
	case !strings.EqualFold(scheme, "bearer") || subtle.ConstantTimeCompare([]byte(token), []byte(d.request)) != 1:
		refuse(http.StatusUnauthorized, "the request token is not this job's")
	case r.Method != http.MethodGet && r.Method != http.MethodPost:
		refuse(http.StatusMethodNotAllowed, "GET gives a token")
	case len(audience) > maxAudience || !utf8.ValidString(audience):
		refuse(http.StatusBadRequest, fmt.Sprintf("the audience has more than %d bytes, or is no UTF-8", maxAudience))
	case d.count.Add(1) > maxTokens:
		refuse(http.StatusTooManyRequests, fmt.Sprintf("a job may ask for %d tokens", maxTokens))
	default:
		signed, err := d.issuer.Token(d.claims, d.subject, audience)
		if _, ours := err.(*keyError); ours {
			d.issuer.log.Error("OIDC", "err", err)
			refuse(http.StatusInternalServerError, "the runner could not do it; its log says why")
			return
		}
		if err != nil {
			refuse(http.StatusBadRequest, err.Error())
			return
		}
		answer(http.StatusOK, map[string]any{"count": len(signed), "value": signed})
	}
}
