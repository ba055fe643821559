package api

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"github.com/hearth-ci/hearth/internal/door"
)

// What tokens say beside their times. Other parts of Hearth sign tokens too; the
// audience keeps one kind from passing for another.
const (
	tokenIssuer   = "hearth"
	tokenAudience = "hearth-api"
	scopeAdmin    = "admin" // the machines of all subjects
	scopeAll      = "api"   // those of its own
	scopeVM       = "vm:"   // with a machine's id: that machine
)

const (
	// MinSecret is the least length of a secret, in bytes: that of an HS256 key.
	MinSecret = 32
	// MaxTokenAge is how long a token may be good for, from iat to exp: what is
	// stolen must not be good for ever.
	MaxTokenAge = 30 * 24 * time.Hour
	leeway      = 30 * time.Second // between two clocks
	maxToken    = 4 << 10          // bytes
	maxSubject  = 200              // bytes
)

type claims struct {
	Scope string `json:"scope"`
	// Parent is the id of the token by which the machine of this one was made: it
	// is as good as that one is.
	Parent string `json:"par,omitempty"`
	jwt.RegisteredClaims
}

// Grant is what a token is to be good for.
type Grant struct {
	Subject string // who bears it: owns the machines made with it
	VM      string // this machine alone; "" is more than one
	Admin   bool   // the machines of all subjects
	parent  string
}

// Signed is a token and what is known of it.
type Signed struct {
	Token     string // opens the API
	ID, Scope string
	Expires   time.Time
}

// Sign signs a token that is good for ttl.
func Sign(secret []byte, g Grant, ttl time.Duration) (Signed, error) {
	switch {
	case len(secret) < MinSecret:
		return Signed{}, fmt.Errorf("the JWT secret has %d bytes, it takes at least %d: try `openssl rand -hex 32`", len(secret), MinSecret)
	case ttl <= 0 || ttl > MaxTokenAge:
		return Signed{}, fmt.Errorf("a token cannot be good for %v: more than 0, at most %v", ttl, MaxTokenAge)
	case g.Subject == "" || len(g.Subject) > maxSubject:
		return Signed{}, fmt.Errorf("a token wants a subject, of at most %d bytes: whoever bears it", maxSubject)
	}
	s := Signed{ID: door.NewID(), Scope: scopeAll}
	switch {
	case g.VM != "":
		s.Scope = scopeVM + g.VM
	case g.Admin:
		s.Scope = scopeAdmin
	}
	now := time.Now()
	s.Expires = now.Add(ttl)
	var err error
	s.Token, err = jwt.NewWithClaims(jwt.SigningMethodHS256, claims{s.Scope, g.parent, jwt.RegisteredClaims{
		ID: s.ID, Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenAudience}, Subject: g.Subject,
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(s.Expires),
	}}).SignedString(secret)
	return s, err
}

// owner is whose a machine is. The same name by two issuers is two owners.
type owner struct{ issuer, subject string }

// memory is under which name what the owner runs is remembered. No repository has
// such a name, and no other owner.
func (o owner) memory() string {
	name := "api:" + url.PathEscape(o.subject)
	if o.issuer != tokenIssuer {
		name = "api:" + url.PathEscape(o.issuer) + "/" + url.PathEscape(o.subject)
	}
	if len(name) > maxSubject {
		name = fmt.Sprintf("api:%x", sha256.Sum256([]byte(name)))
	}
	return name
}

// grant is what a good token allows.
type grant struct {
	owner
	id    string // of the token
	vm    string // this machine alone, "" is more than one
	admin bool
}

// everything refuses tokens that are for one machine.
func (g grant) everything() error {
	if g.vm != "" {
		return problem(http.StatusForbidden, "wrong_scope", "use a token for more than a VM: `hearth token`", "this token is good for the VM %s only", g.vm)
	}
	return nil
}

// all refuses tokens that are not for the machines of all subjects.
func (g grant) all() error {
	if !g.admin {
		return problem(http.StatusForbidden, "wrong_scope", "use a token for all: `hearth token --admin`", "this token is not good for what belongs to all")
	}
	return nil
}

// machine refuses tokens that are for another machine.
func (g grant) machine(id string) error {
	if g.vm != "" && g.vm != id {
		return g.everything()
	}
	return nil
}

// sees says whether a machine of this owner exists for the token. What we signed
// for one machine is good for it, whoever's it is.
func (g grant) sees(id string, o owner) bool {
	return g.admin || g.owner == o && (g.vm == "" || g.vm == id) || g.vm == id && g.issuer == tokenIssuer
}

// authorize checks a request's token: HS256 and nothing else, signed with our
// secret (compared in constant time), by an issuer and for an audience that the
// settings name, issued not long ago, not expired, not taken back.
func (s *Server) authorize(r *http.Request) (grant, error) {
	if len(s.cfg.Secret) < MinSecret {
		return grant{}, problem(http.StatusServiceUnavailable, "no_secret",
			fmt.Sprintf("start the server with HEARTH_JWT_SECRET set to at least %d bytes: `openssl rand -hex 32`", MinSecret),
			"the server has no secret to check tokens with")
	}
	refuse := func(format string, args ...any) (grant, error) {
		return grant{}, problem(http.StatusUnauthorized, "unauthorized", "send \"Authorization: Bearer TOKEN\"; `hearth token` makes one", format, args...)
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	token = strings.TrimSpace(token)
	switch {
	case scheme == "":
		return refuse("there is no token")
	case !strings.EqualFold(scheme, "Bearer") || token == "":
		return refuse("the Authorization header is not a bearer token")
	case len(token) > maxToken:
		return refuse("the token is too long")
	}
	var c claims
	parsed, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.cfg.Secret, nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway))
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return refuse("the token has expired")
	case errors.Is(err, jwt.ErrTokenUnverifiable), errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return refuse("the token is not signed by this server's secret with HS256")
	case errors.Is(err, jwt.ErrTokenInvalidClaims):
		return refuse("the token is not for this API: %s", strings.ReplaceAll(strings.TrimPrefix(err.Error(), jwt.ErrTokenInvalidClaims.Error()+": "), "\n", ", "))
	case err != nil:
		return refuse("the token cannot be read")
	}
	// What a header calls critical must be understood, and there is nothing of that
	// kind that we do (RFC 7515, 4.1.11).
	if _, ok := parsed.Header["crit"]; ok {
		return refuse("the token's header has critical extensions (crit), which this server does not know")
	}
	switch {
	case c.Issuer != tokenIssuer && !slices.Contains(s.cfg.Issuers, c.Issuer):
		return refuse("the token is of the issuer %.100q, which this server does not take tokens of", c.Issuer)
	case !slices.ContainsFunc(c.Audience, func(a string) bool { return a == tokenAudience || slices.Contains(s.cfg.Audiences, a) }) &&
		(len(c.Audience) > 0 || !slices.Contains(s.cfg.Audiences, "")):
		return refuse("the token is not for this API: its audience (aud) is %.100q", strings.Join(c.Audience, ", "))
	case c.IssuedAt == nil:
		return refuse("the token does not say when it was issued (iat)")
	case c.ExpiresAt.Sub(c.IssuedAt.Time) > MaxTokenAge:
		return refuse("the token is good for longer than %v", MaxTokenAge)
	case c.Subject == "" || len(c.Subject) > maxSubject:
		return refuse("the token does not say whose it is (sub), or at too great length")
	}
	for _, id := range []string{c.ID, c.Parent} {
		if id == "" || s.cfg.Revoked == nil {
			continue
		}
		gone, err := s.cfg.Revoked(id)
		if err != nil {
			s.log.Error("which tokens were taken back is not known", "err", err)
			return grant{}, problem(http.StatusServiceUnavailable, "no_tokens", "the server's log says more", "the server cannot tell which tokens were taken back")
		}
		if gone {
			return refuse("the token was taken back")
		}
	}
	g := grant{owner: owner{c.Issuer, c.Subject}, id: c.ID}
	vm, one := strings.CutPrefix(c.Scope, scopeVM)
	switch {
	case c.Scope == scopeAdmin:
		g.admin = true
		return g, nil
	case c.Scope == scopeAll:
		return g, nil
	case one && vm != "":
		g.vm = vm
		return g, nil
	}
	return grant{}, problem(http.StatusForbidden, "wrong_scope", "use a token for the API: `hearth token`", "the token's scope is %.100q", c.Scope)
}
