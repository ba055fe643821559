package git

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// LFS brings what the pointers of Git LFS stand for: from a repository of this host
// that has it, or from the server's LFS API, as GitHub has it at the repository's own
// address. What a tree's .lfsconfig names is not asked: it is somebody else's wish for
// this host to call on an address.
type LFS struct {
	Objects string // lfs/objects of a git directory of this host; "" is none
	Remote  Remote // URL "" is none
}

// pointerSize is how large a pointer is at most.
const pointerSize = 1024

var (
	lfsOID  = regexp.MustCompile(`(?m)^oid sha256:([0-9a-f]{64})$`)
	lfsSize = regexp.MustCompile(`(?m)^size ([0-9]{1,15})$`)
)

// pointer reads a pointer.
func pointer(b []byte) (oid string, size int64, ok bool) {
	o, s := lfsOID.FindSubmatch(b), lfsSize.FindSubmatch(b)
	if !bytes.HasPrefix(b, []byte(lfs)) || o == nil || s == nil {
		return "", 0, false
	}
	size, err := strconv.ParseInt(string(s[1]), 10, 64)
	return string(o[1]), size, err == nil
}

// open is an object's content. It is checked against its name by who reads it.
func (l *LFS) open(ctx context.Context, oid string, size int64) (io.ReadCloser, error) {
	if l.Objects != "" {
		f, err := l.local(oid, size)
		if err == nil {
			return f, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
	}
	if l.Remote.URL == "" {
		return nil, errors.New("this host has it not, and there is no server to ask")
	}
	return l.remote(ctx, oid, size)
}

func (l *LFS) local(oid string, size int64) (io.ReadCloser, error) {
	root, err := os.OpenRoot(l.Objects)
	if err != nil {
		return nil, os.ErrNotExist
	}
	defer root.Close()
	name := filepath.Join(oid[:2], oid[2:4], oid)
	if fi, err := root.Lstat(name); err != nil || !fi.Mode().IsRegular() || fi.Size() != size {
		return nil, os.ErrNotExist
	}
	return root.Open(name)
}

// lfsClient gives up on a server that says nothing. A body may take its time: its
// reader's context ends it.
var lfsClient = &http.Client{Transport: &http.Transport{Proxy: http.ProxyFromEnvironment,
	ResponseHeaderTimeout: time.Minute, TLSHandshakeTimeout: 30 * time.Second,
	IdleConnTimeout: time.Minute}}

func (l *LFS) remote(ctx context.Context, oid string, size int64) (io.ReadCloser, error) {
	base, err := url.Parse(l.Remote.URL)
	if err != nil || base.Scheme != "https" && base.Scheme != "http" {
		return nil, fmt.Errorf("%.200q is no address to ask for it", l.Remote.URL)
	}
	type object struct {
		OID  string `json:"oid"`
		Size int64  `json:"size"`
	}
	ask, err := json.Marshal(map[string]any{"operation": "download", "transfers": []string{"basic"}, "objects": []object{{oid, size}}})
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(strings.TrimRight(l.Remote.URL, "/"), ".git")+".git/info/lfs/objects/batch",
		bytes.NewReader(ask))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", "application/vnd.git-lfs+json")
	req.Header.Set("Content-Type", "application/vnd.git-lfs+json")
	if l.Remote.Token != "" {
		req.SetBasicAuth("x-access-token", l.Remote.Token)
	}
	var answer struct {
		Message string `json:"message"`
		Objects []struct {
			OID     string `json:"oid"`
			Actions struct {
				Download struct {
					Href   string            `json:"href"`
					Header map[string]string `json:"header"`
				} `json:"download"`
			} `json:"actions"`
			Error struct {
				Code    int    `json:"code"`
				Message string `json:"message"`
			} `json:"error"`
		} `json:"objects"`
	}
	res, err := lfsClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s was asked: %w", base.Host, err)
	}
	defer res.Body.Close()
	bad := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&answer)
	switch {
	case res.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("%s answers %d %.200s", base.Host, res.StatusCode, cmp.Or(answer.Message, http.StatusText(res.StatusCode)))
	case bad != nil || len(answer.Objects) != 1 || answer.Objects[0].OID != oid:
		return nil, fmt.Errorf("%s does not answer as an LFS server does", base.Host)
	case answer.Objects[0].Error.Code != 0:
		return nil, fmt.Errorf("%s says: %d %.200s", base.Host, answer.Objects[0].Error.Code, answer.Objects[0].Error.Message)
	}
	get := answer.Objects[0].Actions.Download
	at, err := url.Parse(get.Href)
	if err != nil || at.Host == "" || at.Scheme != "https" && at.Scheme != base.Scheme {
		return nil, fmt.Errorf("%s names no address to fetch it from", base.Host)
	}
	if req, err = http.NewRequestWithContext(ctx, http.MethodGet, get.Href, nil); err != nil {
		return nil, fmt.Errorf("%s names no address to fetch it from", base.Host)
	}
	for k, v := range get.Header {
		req.Header.Set(k, v)
	}
	if res, err = lfsClient.Do(req); err != nil {
		// The address may be signed: it is not for a log.
		var failed *url.Error
		if errors.As(err, &failed) {
			err = failed.Err
		}
		return nil, fmt.Errorf("fetch it from %s: %w", at.Host, err)
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, fmt.Errorf("fetch it from %s: %s", at.Host, res.Status)
	}
	return res.Body, nil
}

// copyObject writes an object's content, which has to be what its name says.
func (l *LFS) copyObject(ctx context.Context, w io.Writer, oid string, size int64) error {
	r, err := l.open(ctx, oid, size)
	if err != nil {
		return err
	}
	defer r.Close()
	h := sha256.New()
	n, err := io.Copy(io.MultiWriter(w, h), io.LimitReader(r, size))
	if err == nil && (n != size || hex.EncodeToString(h.Sum(nil)) != oid) {
		err = errors.New("what came is not what the pointer says")
	}
	return err
}
