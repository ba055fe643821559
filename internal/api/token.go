package api

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// What tokens say beside their times. Other parts of Hearth sign tokens too; the
// audience keeps one kind from passing for another.
const (
	tokenIssuer   = "hearth"
	tokenAudience = "hearth-api"
	scopeAll      = "api" // everything
	scopeVM       = "vm:" // with a machine's id: that machine
)

const (
	// MinSecret is the least length of a secret, in bytes: that of an HS256 key.
	MinSecret = 32
	// MaxTokenAge is how long a token may be good for, from iat to exp: what is
	// stolen must not be good for ever.
	MaxTokenAge = 30 * 24 * time.Hour
	leeway      = 30 * time.Second // between two clocks
	maxToken    = 4 << 10          // bytes
)

type claims struct {
	Scope string `json:"scope"`
	jwt.RegisteredClaims
}

// Token signs a token that is good for ttl: for the whole API, or for the
// machine vm alone if that is not empty. who names its bearer in logs.
func Token(secret []byte, who, vm string, ttl time.Duration) (string, error) {
	if len(secret) < MinSecret {
		return "", fmt.Errorf("the JWT secret has %d bytes, it takes at least %d: try `openssl rand -hex 32`", len(secret), MinSecret)
	}
	if ttl <= 0 || ttl > MaxTokenAge {
		return "", fmt.Errorf("a token cannot be good for %v: more than 0, at most %v", ttl, MaxTokenAge)
	}
	scope := scopeAll
	if vm != "" {
		scope = scopeVM + vm
	}
	now := time.Now()
	return jwt.NewWithClaims(jwt.SigningMethodHS256, claims{scope, jwt.RegisteredClaims{
		Issuer: tokenIssuer, Audience: jwt.ClaimStrings{tokenAudience}, Subject: who,
		IssuedAt: jwt.NewNumericDate(now), ExpiresAt: jwt.NewNumericDate(now.Add(ttl)),
	}}).SignedString(secret)
}

// grant is what a good token allows.
type grant struct {
	who string
	vm  string // "" is everything
}

// everything refuses tokens that are for one machine.
func (g grant) everything() error {
	if g.vm != "" {
		return problem(http.StatusForbidden, "wrong_scope", "use a token for the whole API: `hearth token`", "this token is good for the VM %s only", g.vm)
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

// authorize checks a request's token: HS256 and nothing else, signed with our
// secret (compared in constant time), for this API, issued not long ago, not
// expired.
func (s *Server) authorize(r *http.Request) (grant, error) {
	if len(s.cfg.Secret) < MinSecret {
		return grant{}, problem(http.StatusServiceUnavailable, "no_secret", fmt.Sprintf("start the server with HEARTH_JWT_SECRET set to at least %d bytes: `openssl rand -hex 32`", MinSecret), "the server has no secret to check tokens with")
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
	_, err := jwt.ParseWithClaims(token, &c, func(*jwt.Token) (any, error) { return s.cfg.Secret, nil },
		jwt.WithValidMethods([]string{"HS256"}), jwt.WithExpirationRequired(), jwt.WithIssuedAt(), jwt.WithLeeway(leeway),
		jwt.WithIssuer(tokenIssuer), jwt.WithAudience(tokenAudience))
	switch {
	case errors.Is(err, jwt.ErrTokenExpired):
		return refuse("the token has expired")
	case errors.Is(err, jwt.ErrTokenUnverifiable), errors.Is(err, jwt.ErrTokenSignatureInvalid):
		return refuse("the token is not signed by this server's secret with HS256")
	case errors.Is(err, jwt.ErrTokenInvalidClaims):
		return refuse("the token is not for this API: %s", strings.ReplaceAll(strings.TrimPrefix(err.Error(), jwt.ErrTokenInvalidClaims.Error()+": "), "\n", ", "))
	case err != nil:
		return refuse("the token cannot be read")
	case c.IssuedAt == nil:
		return refuse("the token does not say when it was issued (iat)")
	case c.ExpiresAt.Sub(c.IssuedAt.Time) > MaxTokenAge:
		return refuse("the token is good for longer than %v", MaxTokenAge)
	}
	vm, one := strings.CutPrefix(c.Scope, scopeVM)
	switch {
	case c.Scope == scopeAll:
		return grant{who: c.Subject}, nil
	case one && vm != "":
		return grant{who: c.Subject, vm: vm}, nil
	}
	return grant{}, problem(http.StatusForbidden, "wrong_scope", "use a token for the API: `hearth token`", "the token's scope is %q", c.Scope)
}
