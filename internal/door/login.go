package door

import (
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// Login is by a link that `hearth token --login` prints, good once and not for
// long. What it opens stands behind the # of its address, which browsers keep to
// themselves: no log of a server or a proxy, no Referer ever has it, and nothing
// that merely looks at links uses it up. The page sends it in a POST's body and
// gets a cookie for it that scripts cannot read.
type Login struct {
	Passes *Passes
	Secure bool          // people come by https
	TTL    time.Duration // of a session; 24 h
}

const maxSecret = 200 // bytes

// LinkTime is how long a link is good for.
const LinkTime = 10 * time.Minute

func (l *Login) cookie() string {
	if l.Secure {
		return "__Host-hearth" // browsers take it by https alone, for no other host
	}
	return "hearth"
}

// Who returns the session of a request, or ErrNoPass.
func (l *Login) Who(r *http.Request) (Pass, error) {
	c, err := r.Cookie(l.cookie())
	if err != nil || len(c.Value) > maxSecret {
		return Pass{}, ErrNoPass
	}
	return l.Passes.Check(c.Value)
}

// In exchanges what a person has, a link or what stands behind its #, for a
// session.
func (l *Login) In(w http.ResponseWriter, link string) error {
	if i := strings.LastIndex(link, "#"); i >= 0 {
		link = link[i+1:]
	}
	link = strings.TrimSpace(link)
	if link == "" || len(link) > maxSecret {
		return ErrNoPass
	}
	ttl := l.TTL
	if ttl <= 0 {
		ttl = 24 * time.Hour
	}
	secret, _, err := l.Passes.Redeem(link, ttl)
	if err == nil {
		l.set(w, secret, int(ttl/time.Second))
	}
	return err
}

// Out ends the session of a request.
func (l *Login) Out(w http.ResponseWriter, r *http.Request) error {
	l.set(w, "", -1)
	c, err := r.Cookie(l.cookie())
	if errors.Is(err, http.ErrNoCookie) {
		return nil
	}
	return l.Passes.End(c.Value)
}

func (l *Login) set(w http.ResponseWriter, value string, age int) {
	// Lax: whoever follows a check's link out of GitHub is logged in.
	http.SetCookie(w, &http.Cookie{Name: l.cookie(), Value: value, Path: "/", MaxAge: age, HttpOnly: true, Secure: l.Secure, SameSite: http.SameSiteLaxMode})
}

// Here returns a path of this server to go on to, "/" for what might lead
// elsewhere.
func Here(next string) string {
	u, err := url.Parse(next)
	if err != nil || len(next) > 2000 || u.Scheme != "" || u.Host != "" || u.Opaque != "" || u.User != nil ||
		!strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") || strings.HasPrefix(u.Path, "//") ||
		strings.ContainsFunc(next, func(r rune) bool { return r <= ' ' || r == '\\' || r >= 0x7f }) || strings.Contains(u.Path, `\`) {
		return "/"
	}
	return next
}
