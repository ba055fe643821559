package results

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Paths of blobs. Azure's client wants an account, a container and a blob in the
// address of a host that is an IP address.
const (
	blobRoot    = "/results/"
	uploadsPath = blobRoot + "uploads/"
	blobsPath   = blobRoot + "blobs/"
)

const (
	maxBlock     = 256 << 20 // bytes of one request; the packages send at most 128 MiB
	maxBlocks    = 50_000
	maxBlockID   = 128
	maxBlockList = 16 << 20
)

// sign makes the address of a blob: perm is r or w, file and kind what a download
// says of itself.
func (n *Session) sign(path, perm string, valid time.Duration, file, kind string) string {
	q := url.Values{"sp": {perm}, "se": {strconv.FormatInt(n.store.now().Add(valid).Unix(), 10)}}
	if file != "" {
		q.Set("rscd", disposition(file))
	}
	if kind != "" {
		q.Set("rsct", kind)
	}
	q.Set("sig", n.signature(path, q))
	return strings.TrimSuffix(n.job.Base, "/") + path + "?" + q.Encode()
}

// signature covers the path and all of the query that we read.
func (n *Session) signature(path string, q url.Values) string {
	var text strings.Builder
	text.WriteString("blob\n" + path)
	for _, k := range []string{"sp", "se", "rscd", "rsct"} {
		text.WriteString("\n" + strconv.Quote(q.Get(k)))
	}
	return base64.RawURLEncoding.EncodeToString(n.mac(text.String()))
}

func disposition(file string) string {
	if v := mime.FormatMediaType("attachment", map[string]string{"filename": file}); v != "" {
		return v
	}
	return "attachment"
}

// fault is an error in Azure's words.
type fault struct {
	status    int
	code, msg string
}

func (f *fault) Error() string { return f.code + ": " + f.msg }

func tooLarge(format string, args ...any) error {
	return &fault{http.StatusRequestEntityTooLarge, "RequestBodyTooLarge", fmt.Sprintf(format, args...)}
}

// blob serves an address that was signed.
func (n *Session) blob(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("x-ms-version", "2025-11-05")
	h.Set("x-ms-request-id", newID())
	if id := r.Header.Get("x-ms-client-request-id"); len(id) <= 100 {
		h.Set("x-ms-client-request-id", id)
	}
	err := n.blobRequest(w, r)
	if err == nil {
		return
	}
	var f *fault
	if !errors.As(err, &f) {
		if r.Context().Err() == nil {
			n.store.log.Error("results", "repository", n.job.Repository, "run", n.job.Run, "err", err)
		}
		f = &fault{http.StatusInternalServerError, "InternalError", "the runner could not do it; its log says why"}
	}
	var b bytes.Buffer
	b.WriteString(xml.Header + "<Error><Code>" + f.code + "</Code><Message>")
	xml.EscapeText(&b, []byte(f.msg))
	b.WriteString("</Message></Error>")
	h.Set("x-ms-error-code", f.code)
	h.Set("Content-Type", "application/xml")
	h.Del("ETag")
	w.WriteHeader(f.status)
	if r.Method != http.MethodHead {
		w.Write(b.Bytes()) // who is gone is gone
	}
}

func (n *Session) blobRequest(w http.ResponseWriter, r *http.Request) error {
	q, err := url.ParseQuery(r.URL.RawQuery)
	if err != nil {
		return &fault{http.StatusBadRequest, "InvalidUri", "the query cannot be read"}
	}
	if !hmac.Equal([]byte(q.Get("sig")), []byte(n.signature(r.URL.Path, q))) {
		return &fault{http.StatusForbidden, "AuthenticationFailed", "the signature is not one of this job's"}
	}
	if until, err := strconv.ParseInt(q.Get("se"), 10, 64); err != nil || n.store.now().Unix() > until {
		return &fault{http.StatusForbidden, "AuthenticationFailed", "the address has expired"}
	}
	if id, ok := strings.CutPrefix(r.URL.Path, uploadsPath); ok && q.Get("sp") == "w" {
		u := n.upload(id)
		if u == nil {
			return &fault{http.StatusNotFound, "ContainerNotFound", "the upload has ended"}
		}
		if r.Method != http.MethodPut {
			return &fault{http.StatusForbidden, "AuthorizationPermissionMismatch", "the address is for an upload alone"}
		}
		return u.put(w, r, q)
	}
	if digest, ok := strings.CutPrefix(r.URL.Path, blobsPath); ok && q.Get("sp") == "r" {
		if r.Method != http.MethodGet && r.Method != http.MethodHead || q.Get("comp") != "" {
			return &fault{http.StatusForbidden, "AuthorizationPermissionMismatch", "the address is for a download alone"}
		}
		return n.download(w, r, "sha256:"+digest, q)
	}
	return &fault{http.StatusForbidden, "AuthorizationPermissionMismatch", "the address is not for that"}
}

func (n *Session) download(w http.ResponseWriter, r *http.Request, digest string, q url.Values) error {
	f, err := os.Open(blobPath(n.dir, digest))
	if errors.Is(err, fs.ErrNotExist) {
		return &fault{http.StatusNotFound, "BlobNotFound", "the content is kept no longer"}
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h := w.Header()
	h.Set("x-ms-blob-type", "BlockBlob")
	h.Set("ETag", etag(digest))
	h.Set("Content-Type", "application/octet-stream")
	if kind := q.Get("rsct"); kind != "" {
		h.Set("Content-Type", kind)
	}
	if d := q.Get("rscd"); d != "" {
		h.Set("Content-Disposition", d)
	}
	if ms := r.Header.Get("x-ms-range"); ms != "" {
		r.Header.Set("Range", ms)
	}
	http.ServeContent(w, r, "", st.ModTime(), f)
	return nil
}

func etag(digest string) string { return `"` + strings.TrimPrefix(digest, "sha256:")[:16] + `"` }

// upload is a content on its way.
type upload struct {
	id, dir string
	session *Session
	cache   bool
	kind    string    // of an artifact
	expires time.Time // of an artifact

	mu     sync.Mutex
	blocks map[string]int64 // by id, bytes
	sum    int64            // of them
	flying int64            // bytes that requests have taken and not given a place yet
	size   int64            // of the blob
	digest string           // of the blob; "" until it is there
	gone   bool
}

func (u *upload) discard() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.gone = true
	u.session.stage(-u.sum - u.size)
	u.sum, u.size, u.digest = 0, 0, ""
	return os.RemoveAll(u.dir)
}

// stage counts bytes of uploads that have no place in the index yet.
func (n *Session) stage(by int64) (all int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.staged += by
	return n.staged
}

// put is Put Block, Put Block List or Put Blob.
func (u *upload) put(w http.ResponseWriter, r *http.Request, q url.Values) error {
	switch comp := q.Get("comp"); comp {
	case "block":
		id, err := base64.StdEncoding.DecodeString(q.Get("blockid"))
		if err != nil || len(id) == 0 || len(id) > maxBlockID {
			return &fault{http.StatusBadRequest, "InvalidQueryParameterValue", "blockid is no base64, or too long"}
		}
		if err := u.block(r, string(id)); err != nil {
			return err
		}
	case "blocklist":
		ids, err := parseBlockList(http.MaxBytesReader(w, r.Body, maxBlockList))
		if err != nil {
			return err
		}
		if err := u.commit(w, r, ids); err != nil {
			return err
		}
	case "":
		if kind := r.Header.Get("x-ms-blob-type"); kind != "BlockBlob" {
			return &fault{http.StatusBadRequest, "InvalidHeaderValue", "x-ms-blob-type: want BlockBlob"}
		}
		const whole = "\x00whole" // no id that a client sends reaches it: commit names it alone
		if err := u.block(r, whole); err != nil {
			return err
		}
		if err := u.commit(w, r, []string{whole}); err != nil {
			return err
		}
	default:
		return &fault{http.StatusBadRequest, "InvalidQueryParameterValue", "comp: want block or blocklist"}
	}
	w.Header().Set("x-ms-request-server-encrypted", "false")
	w.WriteHeader(http.StatusCreated)
	return nil
}

func (u *upload) file(id string) string {
	sum := sha256.Sum256([]byte(id))
	return filepath.Join(u.dir, hex.EncodeToString(sum[:16]))
}

// block takes a request's body as a block. A length is required, so that what will
// not do is refused before it is read.
func (u *upload) block(r *http.Request, id string) (err error) {
	n := u.session
	size := r.ContentLength
	if size < 0 {
		return &fault{http.StatusLengthRequired, "MissingContentLengthHeader", "Content-Length is required"}
	}
	if size > maxBlock {
		return tooLarge("a request may have at most %d MiB", maxBlock>>20)
	}
	if err := n.store.room(u.dir, size); err != nil {
		return &fault{http.StatusInsufficientStorage, "InsufficientStorage", err.Error()}
	}
	u.mu.Lock()
	switch {
	case u.gone:
		err = &fault{http.StatusNotFound, "ContainerNotFound", "the upload has ended"}
	case len(u.blocks) >= maxBlocks:
		err = &fault{http.StatusConflict, "BlockCountExceedsLimit", fmt.Sprintf("a blob may have at most %d blocks", maxBlocks)}
	case u.sum+u.flying+size > n.store.limits.Item:
		err = tooLarge("an artifact or a cache entry may have at most %d MiB", n.store.limits.Item>>20)
	default:
		u.flying += size
	}
	u.mu.Unlock()
	if err != nil {
		return err
	}
	landed := false
	defer func() {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.flying -= size
		if !landed {
			n.stage(-size)
		}
	}()
	// Twice the limit of one: a blob lies beside its blocks while it is made.
	if n.stage(size) > 2*n.store.limits.Item {
		return tooLarge("the uploads of this job that are under way have more than %d MiB", 2*n.store.limits.Item>>20)
	}
	tmp := filepath.Join(u.dir, "in-"+newID())
	defer os.Remove(tmp)
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	sum := md5.New() // what Azure's clients send to find a damaged transfer
	var to io.Writer = f
	want := r.Header.Get("Content-MD5")
	if want != "" {
		to = io.MultiWriter(f, sum)
	}
	got, err := io.Copy(to, io.LimitReader(r.Body, size))
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if got != size {
		return &fault{http.StatusBadRequest, "InvalidInput", "the body is shorter than its Content-Length"}
	}
	if want != "" && want != base64.StdEncoding.EncodeToString(sum.Sum(nil)) {
		return &fault{http.StatusBadRequest, "Md5Mismatch", "the body is not that of the Content-MD5"}
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone {
		return &fault{http.StatusNotFound, "ContainerNotFound", "the upload has ended"}
	}
	if err := os.Rename(tmp, u.file(id)); err != nil {
		return err
	}
	landed = true
	old := u.blocks[id]
	n.stage(-old)
	u.blocks[id] = size
	u.sum += size - old
	return nil
}

// commit makes the blob of its blocks. One that was there goes.
func (u *upload) commit(w http.ResponseWriter, r *http.Request, ids []string) error {
	ctx := r.Context()
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone {
		return &fault{http.StatusNotFound, "ContainerNotFound", "the upload has ended"}
	}
	var total int64
	for _, id := range ids {
		size, ok := u.blocks[id]
		if !ok {
			return &fault{http.StatusBadRequest, "InvalidBlockList", "the list names a block that was not put"}
		}
		if total += size; total > u.session.store.limits.Item {
			return tooLarge("an artifact or a cache entry may have at most %d MiB", u.session.store.limits.Item>>20)
		}
	}
	u.session.stage(-u.size)
	u.size, u.digest = 0, ""
	blob := filepath.Join(u.dir, "blob")
	h := sha256.New()
	if len(ids) == 1 {
		// Its only block is the blob.
		if err := hashFile(ctx, u.file(ids[0]), h); err != nil {
			return err
		}
		if err := os.Rename(u.file(ids[0]), blob); err != nil {
			return err
		}
		u.sum -= u.blocks[ids[0]]
		delete(u.blocks, ids[0])
	} else {
		if err := u.session.store.room(u.dir, total); err != nil {
			return &fault{http.StatusInsufficientStorage, "InsufficientStorage", err.Error()}
		}
		f, err := os.OpenFile(blob, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		for _, id := range ids {
			if err = hashFile(ctx, u.file(id), io.MultiWriter(f, h)); err != nil {
				break
			}
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
		u.session.stage(total)
		// As with Azure, blocks that are in no list are forgotten.
		for id, size := range u.blocks {
			u.session.stage(-size)
			if err := os.Remove(u.file(id)); err != nil {
				return err
			}
		}
		u.blocks, u.sum = map[string]int64{}, 0
	}
	u.size, u.digest = total, "sha256:"+hex.EncodeToString(h.Sum(nil))
	w.Header().Set("ETag", etag(u.digest))
	w.Header().Set("Last-Modified", u.session.store.now().UTC().Format(http.TimeFormat))
	return nil
}

func hashFile(ctx context.Context, name string, to io.Writer) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(to, readerOf{ctx, f})
	return err
}

// readerOf is a reader that ends with its context.
type readerOf struct {
	ctx context.Context
	r   io.Reader
}

func (r readerOf) Read(p []byte) (int, error) {
	if r.ctx.Err() != nil {
		return 0, context.Cause(r.ctx)
	}
	return r.r.Read(p)
}

// committed calls f with the blob that was made, on the disk for good. It holds the
// upload meanwhile.
func (u *upload) committed(f func(file, digest string, size int64) error) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.gone || u.digest == "" {
		return refuse(notFound, "nothing was uploaded")
	}
	file := filepath.Join(u.dir, "blob")
	if err := syncFile(file); err != nil {
		return err
	}
	return f(file, u.digest, u.size)
}

func syncFile(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

var blockTags = regexp.MustCompile(`^(Latest|Uncommitted|Committed)$`)

// parseBlockList reads the body of Put Block List.
func parseBlockList(r io.Reader) ([]string, error) {
	bad := func(what string) ([]string, error) {
		return nil, &fault{http.StatusBadRequest, "InvalidXmlDocument", "the block list " + what}
	}
	dec := xml.NewDecoder(r)
	var ids []string
	depth := 0
	for {
		t, err := dec.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			return bad("is no XML")
		}
		switch t := t.(type) {
		case xml.StartElement:
			depth++
			switch {
			case depth == 1 && t.Name.Local == "BlockList":
			case depth == 2 && blockTags.MatchString(t.Name.Local):
				var text string
				if err := dec.DecodeElement(&text, &t); err != nil {
					return bad("is no XML")
				}
				depth--
				id, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
				if err != nil || len(id) == 0 || len(id) > maxBlockID {
					return bad("has an id that is no base64, or too long")
				}
				if len(ids) == maxBlocks {
					return bad("has more than " + strconv.Itoa(maxBlocks) + " blocks")
				}
				ids = append(ids, string(id))
			default:
				return bad("has an element that does not belong there")
			}
		case xml.EndElement:
			depth--
		}
	}
	return slices.Clip(ids), nil
}
