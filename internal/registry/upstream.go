package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"time"
)

// dockerHub is the registry of images that name none, dockerHubHost where it is.
const (
	dockerHub     = "docker.io"
	dockerHubHost = "registry-1.docker.io"
)

// hostName is a registry's name, with a port or without.
var hostName = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?(:[0-9]{1,5})?$`)

// canonical is the one spelling of a registry's name.
func canonical(host string) string {
	switch host = strings.ToLower(host); host {
	case "index.docker.io", dockerHubHost:
		return dockerHub
	}
	return host
}

// upstream is a registry as one session asks it.
type upstream struct {
	host       string // its name
	base       string // URL up to /v2/
	user, pass string
	client     *http.Client

	mu     sync.Mutex
	tokens map[string]token // by repository
}

type token struct {
	header string // of Authorization
	until  time.Time
}

// Bounds of talking to a registry.
const (
	answerTime = 30 * time.Second // until it begins to answer
	maxToken   = 64 << 10
	maxTokens  = 200
)

// newClient returns a client that connects by dial alone.
func newClient(dial func(ctx context.Context, network, address string) (net.Conn, error)) *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: dial, ForceAttemptHTTP2: true, TLSHandshakeTimeout: answerTime, ResponseHeaderTimeout: answerTime,
		MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true}}
}

// statusError is a registry's answer that is none.
type statusError struct {
	host   string
	status int
	said   string
}

func (e *statusError) Error() string {
	s := fmt.Sprintf("%s answers %d %s", e.host, e.status, http.StatusText(e.status))
	if e.said != "" {
		s += ": " + e.said
	}
	return s
}

// ask makes a request for what is in a repository and returns the answer, which is
// 200. The path begins after /v2/NAME/.
func (u *upstream) ask(ctx context.Context, method, name, path string, accept []string) (*http.Response, error) {
	for again := false; ; again = true {
		r, err := http.NewRequestWithContext(ctx, method, u.base+"/v2/"+name+"/"+path, nil)
		if err != nil {
			return nil, err
		}
		for _, a := range accept {
			r.Header.Add("Accept", a)
		}
		r.Header.Set("User-Agent", "hearth")
		if t := u.token(name); t != "" {
			r.Header.Set("Authorization", t) // a redirect to another host goes without
		}
		res, err := u.client.Do(r)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", u.host, unwrapURL(err))
		}
		if res.StatusCode == http.StatusOK {
			return res, nil
		}
		said, _ := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		res.Body.Close()
		if res.StatusCode == http.StatusUnauthorized && !again {
			if err := u.authorize(ctx, name, res.Header.Values("WWW-Authenticate")); err != nil {
				return nil, fmt.Errorf("%s: %w", u.host, err)
			}
			continue
		}
		return nil, &statusError{u.host, res.StatusCode, firstError(said)}
	}
}

// unwrapURL leaves the address out of an error: a registry may have put a secret
// into the one that it redirected to.
func unwrapURL(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}

// firstError is the first message of a registry's error document.
func firstError(body []byte) string {
	var doc struct {
		Errors []struct{ Code, Message string }
	}
	if json.Unmarshal(body, &doc) != nil || len(doc.Errors) == 0 {
		return ""
	}
	return fmt.Sprintf("%.40s %.160s", doc.Errors[0].Code, doc.Errors[0].Message)
}

func (u *upstream) token(name string) string {
	u.mu.Lock()
	defer u.mu.Unlock()
	t, ok := u.tokens[name]
	if !ok || !t.until.IsZero() && time.Now().After(t.until) {
		return ""
	}
	return t.header
}

// authorize gets what a registry's challenge asks for.
func (u *upstream) authorize(ctx context.Context, name string, challenges []string) error {
	for _, c := range challenges {
		kind, rest, _ := strings.Cut(c, " ")
		switch strings.ToLower(kind) {
		case "basic":
			if u.user == "" {
				return errors.New("it wants credentials, and there are none for it")
			}
			r := &http.Request{Header: http.Header{}}
			r.SetBasicAuth(u.user, u.pass)
			u.remember(name, token{header: r.Header.Get("Authorization")})
			return nil
		case "bearer":
			t, err := u.bearer(ctx, name, parameters(rest))
			if err != nil {
				return err
			}
			u.remember(name, t)
			return nil
		}
	}
	return errors.New("it wants to know who asks, in a way that is not known here")
}

func (u *upstream) remember(name string, t token) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.tokens == nil || len(u.tokens) >= maxTokens {
		u.tokens = map[string]token{}
	}
	u.tokens[name] = t
}

// bearer asks for a token where the registry says.
func (u *upstream) bearer(ctx context.Context, name string, challenge map[string]string) (token, error) {
	realm, err := url.Parse(challenge["realm"])
	if err != nil || realm.Scheme != "https" && !(realm.Scheme == "http" && strings.HasPrefix(u.base, "http://")) || realm.Host == "" || realm.User != nil {
		return token{}, errors.New("it sends for a token to no usable address")
	}
	q := realm.Query()
	if s := challenge["service"]; s != "" {
		q.Set("service", s)
	}
	q.Set("scope", "repository:"+name+":pull")
	realm.RawQuery = q.Encode()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, realm.String(), nil)
	if err != nil {
		return token{}, err
	}
	if u.user != "" {
		r.SetBasicAuth(u.user, u.pass)
	}
	began := time.Now()
	res, err := u.client.Do(r)
	if err != nil {
		return token{}, fmt.Errorf("getting a token: %w", unwrapURL(err))
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxToken))
	if err != nil {
		return token{}, fmt.Errorf("getting a token: %w", err)
	}
	if res.StatusCode != http.StatusOK {
		return token{}, &statusError{u.host, res.StatusCode, "no token"}
	}
	var answer struct {
		Token       string
		AccessToken string `json:"access_token"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(b, &answer); err != nil {
		return token{}, errors.New("getting a token: the answer is no JSON")
	}
	text := cmp.Or(answer.Token, answer.AccessToken)
	if text == "" || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return token{}, errors.New("getting a token: there is none in the answer")
	}
	seconds := min(max(answer.ExpiresIn, 60), 3600)
	return token{"Bearer " + text, began.Add(time.Duration(seconds)*time.Second - 5*time.Second)}, nil
}

// parameters reads key="value" pairs of a challenge.
func parameters(s string) map[string]string {
	found := map[string]string{}
	for len(s) > 0 && len(found) < 16 {
		key, rest, ok := strings.Cut(s, "=")
		if !ok {
			break
		}
		key = strings.ToLower(strings.Trim(key, " ,"))
		if quoted, ok := strings.CutPrefix(rest, `"`); ok {
			value, after, ok := strings.Cut(quoted, `"`)
			if !ok {
				break
			}
			found[key], s = value, after
			continue
		}
		found[key], s, _ = strings.Cut(rest, ",")
	}
	return found
}
