package oidc

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// ahead is how long a key is published before it signs, and after.
	ahead    = 24 * time.Hour
	keyBits  = 2048
	maxFile  = 1 << 20
	fileName = "keys.json"
)

// key is one that signs or has signed.
type key struct {
	ID   string    `json:"kid"`
	From time.Time `json:"from"` // when it begins to sign
	DER  []byte    `json:"pkcs8"`

	private *rsa.PrivateKey
}

// keyring is the file of keys as it was last read.
type keyring struct {
	dir    string
	rotate time.Duration

	mu   sync.Mutex
	keys []key // the oldest first
	mod  time.Time
	size int64
}

// current reads the keys, and makes what is missing of them.
func (r *keyring) current(now time.Time) ([]key, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.read(); err != nil {
		return nil, err
	}
	if r.due(now) {
		if err := r.change(now); err != nil {
			return nil, err
		}
	}
	return slices.Clone(r.keys), nil
}

// due reports whether there is a key to make or to forget.
func (r *keyring) due(now time.Time) bool {
	n := len(r.keys)
	return n == 0 || now.Sub(r.keys[n-1].From) >= r.rotate-ahead || n > 1 && now.Sub(r.keys[1].From) > ahead
}

func (r *keyring) change(now time.Time) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	lock, err := os.OpenFile(filepath.Join(r.dir, "lock"), os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return err
	}
	r.mod = time.Time{} // another process may have been first
	if err := r.read(); err != nil {
		return err
	}
	keys := slices.Clone(r.keys)
	n := len(keys)
	if n == 0 || now.Sub(keys[n-1].From) >= r.rotate-ahead {
		from := now.Add(ahead)
		if n == 0 {
			from = now // nobody knows another
		}
		k, err := newKey(from)
		if err != nil {
			return err
		}
		keys = append(keys, k)
	}
	for len(keys) > 1 && now.Sub(keys[1].From) > ahead {
		keys = keys[1:]
	}
	b, err := json.Marshal(keys)
	if err != nil {
		return err
	}
	tmp := filepath.Join(r.dir, fileName+".new")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(tmp, filepath.Join(r.dir, fileName))
	}
	if err != nil {
		return err
	}
	r.mod = time.Time{}
	return r.read()
}

func newKey(from time.Time) (key, error) {
	private, err := rsa.GenerateKey(rand.Reader, keyBits)
	if err != nil {
		return key{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return key{}, err
	}
	sum := sha256.Sum256(x509.MarshalPKCS1PublicKey(&private.PublicKey))
	return key{ID: base64.RawURLEncoding.EncodeToString(sum[:16]), From: from.UTC(), DER: der, private: private}, nil
}

// read reads the file if it has changed.
func (r *keyring) read() error {
	name := filepath.Join(r.dir, fileName)
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, fs.ErrNotExist) {
		r.keys = nil
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() || st.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("%s has keys in it, and others than its owner can read or write it: chmod 600, or, since they may have been read, remove it", name)
	}
	if st.ModTime().Equal(r.mod) && st.Size() == r.size {
		return nil
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return err
	}
	var keys []key
	if err := json.Unmarshal(b, &keys); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for i := range keys {
		parsed, err := x509.ParsePKCS8PrivateKey(keys[i].DER)
		private, ok := parsed.(*rsa.PrivateKey)
		if err != nil || !ok {
			return fmt.Errorf("%s: key %d is no RSA key", name, i+1) // its content stays out of every log
		}
		keys[i].private = private
	}
	r.keys, r.mod, r.size = keys, st.ModTime(), st.Size()
	return nil
}

// signing is the newest key whose time has come.
func signing(keys []key, now time.Time) key {
	k := keys[0]
	for _, next := range keys[1:] {
		if !next.From.After(now) {
			k = next
		}
	}
	return k
}
