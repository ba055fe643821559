package door

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Kind is what a pass opens.
type Kind string

// The kinds of passes.
const (
	Link    Kind = "link"    // a login, once
	Session Kind = "session" // the pages
	Worker  Kind = "worker"  // jobs, for a worker on another host
	Token   Kind = "token"   // the HTTP API; it is signed, not looked up: noted to be listed and taken back
)

// Pass is what lets somebody in.
type Pass struct {
	ID      string    `json:"id"` // names it; opens nothing
	Kind    Kind      `json:"kind"`
	Subject string    `json:"subject"` // who it is for
	Scope   string    `json:"scope,omitempty"`
	Created time.Time `json:"created"`
	Expires time.Time `json:"expires"`
	Revoked bool      `json:"revoked,omitempty"`
	Sum     string    `json:"sum,omitempty"` // SHA-256 of what opens, hex; of all but tokens
}

// How many passes are kept of a kind; of more the oldest go. Those that were
// taken back are never forgotten before they have expired.
const (
	maxLinks    = 100
	maxSessions = 1000
	maxTokens   = 1000
	maxWorkers  = 1000
	maxRevoked  = 10_000
	maxFile     = 8 << 20 // bytes
)

// ErrNoPass is returned for what opens nothing: it never did, was used, has
// expired or was taken back.
var ErrNoPass = errors.New("not good, or not any more")

// Passes are who was let in: a file that all processes of one state directory
// share. What one of them writes the others see at their next look.
type Passes struct {
	path string

	mu     sync.Mutex
	passes []Pass
	bySum  map[string]int
	seen   os.FileInfo // of the file that passes are from
}

// OpenPasses returns the passes in a file, which need not exist yet.
func OpenPasses(path string) *Passes { return &Passes{path: path} }

func sum(secret string) string {
	s := sha256.Sum256([]byte(secret))
	return hex.EncodeToString(s[:])
}

// NewID returns a name for a pass.
func NewID() string { return strings.ToLower(rand.Text()[:12]) }

// Issue makes a link, a session or a worker's token, good for ttl, and returns what opens it.
func (l *Passes) Issue(kind Kind, subject string, ttl time.Duration) (secret string, p Pass, err error) {
	secret = rand.Text() + rand.Text()
	now := time.Now().UTC()
	p = Pass{ID: NewID(), Kind: kind, Subject: subject, Created: now, Expires: now.Add(ttl), Sum: sum(secret)}
	return secret, p, l.change(func() error { l.passes = append(l.passes, p); return nil })
}

// Note writes down a token of the API that was signed.
func (l *Passes) Note(id, subject, scope string, expires time.Time) error {
	return l.change(func() error {
		l.passes = append(l.passes, Pass{ID: id, Kind: Token, Subject: subject, Scope: scope, Created: time.Now().UTC(), Expires: expires.UTC()})
		return nil
	})
}

// Redeem exchanges a link for a session. A link works once.
func (l *Passes) Redeem(link string, ttl time.Duration) (secret string, p Pass, err error) {
	secret = rand.Text() + rand.Text()
	err = l.change(func() error {
		i, ok := l.bySum[sum(link)]
		if !ok || !l.passes[i].good(Link) {
			return ErrNoPass
		}
		now := time.Now().UTC()
		p = Pass{ID: NewID(), Kind: Session, Subject: l.passes[i].Subject, Created: now, Expires: now.Add(ttl), Sum: sum(secret)}
		l.passes[i] = p // in the link's place
		return nil
	})
	return secret, p, err
}

// Check returns the session that a secret opens, or ErrNoPass.
func (l *Passes) Check(session string) (Pass, error) { return l.check(Session, session) }

// CheckWorker returns the worker that has a token, or ErrNoPass.
func (l *Passes) CheckWorker(token string) (Pass, error) { return l.check(Worker, token) }

func (l *Passes) check(kind Kind, secret string) (Pass, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.load(); err != nil {
		return Pass{}, err
	}
	if i, ok := l.bySum[sum(secret)]; ok && l.passes[i].good(kind) {
		return l.passes[i], nil
	}
	return Pass{}, ErrNoPass
}

func (p Pass) good(k Kind) bool { return p.Kind == k && !p.Revoked && time.Now().Before(p.Expires) }

// End ends a session; its secret opens nothing any more.
func (l *Passes) End(session string) error {
	return l.change(func() error {
		if i, ok := l.bySum[sum(session)]; ok {
			l.passes = slices.Delete(l.passes, i, i+1)
		}
		return nil
	})
}

// Revoke takes a pass back, by its id; of a token that nobody has noted too: it
// can be good until expires. It returns what was taken back.
func (l *Passes) Revoke(id string, expires time.Time) (p Pass, err error) {
	return p, l.change(func() error {
		revoked := 0
		for i := range l.passes {
			if l.passes[i].Revoked {
				revoked++
			}
			if l.passes[i].ID == id {
				l.passes[i].Revoked = true
				p = l.passes[i]
			}
		}
		switch {
		case revoked >= maxRevoked:
			return fmt.Errorf("%d tokens are taken back already: change the JWT secret, which ends them all", revoked)
		case p.ID == "":
			p = Pass{ID: id, Kind: Token, Created: time.Now().UTC(), Expires: expires.UTC(), Revoked: true}
			l.passes = append(l.passes, p)
		}
		return nil
	})
}

// Revoked says whether the token of this id was taken back.
func (l *Passes) Revoked(id string) (bool, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.load(); err != nil {
		return true, err
	}
	return slices.ContainsFunc(l.passes, func(p Pass) bool { return p.ID == id && p.Revoked }), nil
}

// List returns what is good or was taken back, oldest first.
func (l *Passes) List() ([]Pass, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.load(); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(l.passes), func(p Pass) bool { return !time.Now().Before(p.Expires) }), nil
}

// load reads the file if it is another than before. l.mu must be held.
func (l *Passes) load() error {
	fail := func(err error) error { return fmt.Errorf("the list of logins and tokens: %w", err) }
	info, err := os.Lstat(l.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.set(nil, nil)
		return nil
	case err != nil:
		return fail(err)
	case l.seen != nil && os.SameFile(info, l.seen) && info.ModTime().Equal(l.seen.ModTime()) && info.Size() == l.seen.Size():
		return nil
	case !info.Mode().IsRegular() || info.Mode().Perm()&0o077 != 0:
		return fail(fmt.Errorf("%s can be read by others: chmod 600 it", l.path))
	case info.Size() > maxFile:
		return fail(fmt.Errorf("%s has %d bytes: remove it, which ends all logins", l.path, info.Size()))
	}
	b, err := os.ReadFile(l.path)
	if err != nil {
		return fail(err)
	}
	var in struct {
		Passes []Pass `json:"passes"`
	}
	if err := json.Unmarshal(b, &in); err != nil {
		return fail(fmt.Errorf("%s: %w", l.path, err))
	}
	l.set(in.Passes, info)
	return nil
}

func (l *Passes) set(passes []Pass, seen os.FileInfo) {
	l.passes, l.seen, l.bySum = passes, seen, make(map[string]int, len(passes))
	for i, p := range passes {
		if p.Sum != "" {
			l.bySum[p.Sum] = i
		}
	}
}

// change lets fn change l.passes as the file has them now, and writes them down
// unless it fails. No other process changes them meanwhile.
func (l *Passes) change(fn func() error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	lock, err := os.OpenFile(l.path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("the list of logins and tokens: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("the list of logins and tokens: %w", err)
	}
	if err := l.load(); err != nil {
		return err
	}
	before := slices.Clone(l.passes)
	if err := fn(); err != nil {
		return err
	}
	l.prune()
	if err := l.write(); err != nil {
		l.set(before, l.seen)
		return fmt.Errorf("the list of logins and tokens: %w", err)
	}
	return nil
}

// prune forgets what has expired, and the oldest of what is too many.
func (l *Passes) prune() {
	now := time.Now()
	l.passes = slices.DeleteFunc(l.passes, func(p Pass) bool { return !now.Before(p.Expires) })
	left := map[Kind]int{Link: maxLinks, Session: maxSessions, Token: maxTokens, Worker: maxWorkers}
	for i := len(l.passes) - 1; i >= 0; i-- {
		p := l.passes[i]
		if p.Revoked {
			continue
		}
		if left[p.Kind]--; left[p.Kind] < 0 {
			l.passes = slices.Delete(l.passes, i, i+1)
		}
	}
}

func (l *Passes) write() error {
	b, err := json.Marshal(map[string]any{"passes": l.passes})
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(l.path), ".passes-*") // 0600
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), l.path)
	}
	if err != nil {
		os.Remove(f.Name())
		return err
	}
	info, err := os.Lstat(l.path)
	l.set(l.passes, info)
	return err
}
