package results

import (
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

func deleteCaches(all []Cache, which func(Cache) bool) []Cache { return slices.DeleteFunc(all, which) }

const (
	maxKeys = 10  // a key and its restore keys, as GitHub has it
	maxKey  = 512 // characters of one

	// What the packages look for at the beginning of a message that says that the
	// job may not.
	readDenied  = "cache read denied: "
	writeDenied = "cache write denied: "
)

func checkKey(key string) error {
	switch {
	case key == "":
		return refuse(invalidArgument, "a cache's key must not be empty")
	case utf8.RuneCountInString(key) > maxKey:
		return refuse(invalidArgument, "a cache's key may be at most %d characters long", maxKey)
	case strings.Contains(key, ","):
		return refuse(invalidArgument, "a cache's key may not contain commas")
	}
	return nil
}

// keyed reads the key and the version of a request.
func keyed(m message) (key, version string, err error) {
	if key, err = m.text("key"); err != nil {
		return "", "", err
	}
	if err := checkKey(key); err != nil {
		return "", "", err
	}
	if version, err = m.text("version"); err != nil {
		return "", "", err
	}
	if version == "" || len(version) > 255 {
		return "", "", refuse(invalidArgument, "a cache's version must have 1 to 255 bytes")
	}
	return key, version, nil
}

func (n *Session) createCache(m message) (any, error) {
	key, version, err := keyed(m)
	if err != nil {
		return nil, err
	}
	if !n.job.Mode.Writes() || len(n.job.Scopes) == 0 {
		return map[string]any{"ok": false, "message": writeDenied + "the job's cache-mode is " + string(n.job.Mode)}, nil
	}
	var u *upload
	err = n.store.update(n.job.Repository, func(p *place) error {
		now := n.store.now()
		p.Caches = deleteCaches(p.Caches, func(c Cache) bool { return c.Upload != "" && c.Until.Before(now) })
		reserved := 0
		for _, c := range p.Caches {
			if c.Scope == n.job.Scopes[0] && c.Key == key && c.Version == version {
				return refuse(alreadyExists, "cache entry with the same key, version, and scope already exists")
			}
			if c.Upload != "" {
				reserved++
			}
		}
		if reserved >= 1000 {
			return refuse(resourceExhausted, "%d cache entries of the repository are being uploaded", reserved)
		}
		if u, err = n.begin(true); err != nil {
			return err
		}
		p.Caches = append(p.Caches, Cache{ID: p.next(), Scope: n.job.Scopes[0], Key: key, Version: version,
			Created: now.UTC(), Used: now.UTC(), Upload: u.id, Until: now.Add(uploadTime).UTC()})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"ok": true, "signed_upload_url": n.sign(uploadsPath+u.id, "w", uploadTime, "", "")}, nil
}

func (n *Session) finalizeCache(m message) (any, error) {
	key, version, err := keyed(m)
	if err != nil {
		return nil, err
	}
	size, err := m.number("size_bytes")
	if err != nil {
		return nil, err
	}
	x, err := n.store.view(n.job.Repository)
	if err != nil {
		return nil, err
	}
	var u *upload
	for _, c := range x.Caches {
		if c.Upload != "" && c.Key == key && c.Version == version {
			if u = n.upload(c.Upload); u != nil {
				break
			}
		}
	}
	if u == nil {
		return nil, refuse(notFound, "no cache entry of this key and version is being uploaded by this job")
	}
	var id int64
	err = u.committed(func(file, digest string, have int64) error {
		if max(size, 0) != have {
			return refuse(invalidArgument, "%d bytes arrived, and the client says %d", have, max(size, 0))
		}
		if have > n.store.limits.CacheBytes {
			return refuse(invalidArgument, "the entry has %d MiB, and all of a repository may have %d", have>>20, n.store.limits.CacheBytes>>20)
		}
		return n.store.update(n.job.Repository, func(p *place) error {
			i := slices.IndexFunc(p.Caches, func(c Cache) bool { return c.Upload == u.id })
			if i < 0 {
				return refuse(notFound, "the key is reserved no longer: the upload took more than %v", uploadTime)
			}
			if err := p.keep(file, digest); err != nil {
				return err
			}
			c := &p.Caches[i]
			now := n.store.now().UTC()
			c.Size, c.Digest, c.Upload, c.Until, c.Created, c.Used = have, digest, "", time.Time{}, now, now
			id = c.ID
			n.store.evict(p, id)
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return map[string]any{"ok": true, "entry_id": strconv.FormatInt(id, 10)}, n.end(u)
}

// evict removes entries until the repository's are within the limits: those that
// were not used for longest first, but for the one that is new.
func (s *Store) evict(p *place, stays int64) (gone []Cache) {
	total, count := p.cacheBytes(), len(p.Caches)
	for total > s.limits.CacheBytes || count > s.limits.Entries {
		oldest := -1
		for i, c := range p.Caches {
			if c.Upload == "" && c.ID != stays && (oldest < 0 || c.Used.Before(p.Caches[oldest].Used)) {
				oldest = i
			}
		}
		if oldest < 0 {
			return gone
		}
		gone = append(gone, p.Caches[oldest])
		total -= p.Caches[oldest].Size
		count--
		p.Caches = slices.Delete(p.Caches, oldest, oldest+1)
	}
	return gone
}

func (n *Session) cacheURL(m message) (any, error) {
	key, version, err := keyed(m)
	if err != nil {
		return nil, err
	}
	restore, err := m.texts("restore_keys", maxKeys-1)
	if err != nil {
		return nil, err
	}
	for _, k := range restore {
		if err := checkKey(k); err != nil {
			return nil, err
		}
	}
	if !n.job.Mode.Reads() {
		return nil, refuse(permissionDenied, "%sthe job's cache-mode is %s", readDenied, n.job.Mode)
	}
	x, err := n.store.view(n.job.Repository)
	if err != nil {
		return nil, err
	}
	i := find(x.Caches, n.job.Scopes, version, key, restore)
	if i < 0 {
		return map[string]any{"ok": false}, nil
	}
	hit := x.Caches[i]
	err = n.store.update(n.job.Repository, func(p *place) error {
		for i := range p.Caches {
			if p.Caches[i].ID == hit.ID {
				p.Caches[i].Used = n.store.now().UTC()
				return nil
			}
		}
		return ErrNotFound // it went this moment
	})
	if err == ErrNotFound {
		return map[string]any{"ok": false}, nil
	}
	if err != nil {
		return nil, err
	}
	return map[string]any{"ok": true, "matched_key": hit.Key,
		"signed_download_url": n.sign(blobsPath+strings.TrimPrefix(hit.Digest, "sha256:"), "r", downloadTime, "", "application/octet-stream")}, nil
}

// find is GitHub's search: the index of the entry, or -1.
func find(all []Cache, scopes []string, version, key string, restore []string) int {
	for _, scope := range scopes {
		newest := func(match func(string) bool) int {
			best := -1
			for i, c := range all {
				if c.Upload == "" && c.Scope == scope && c.Version == version && match(c.Key) && (best < 0 || c.Created.After(all[best].Created)) {
					best = i
				}
			}
			return best
		}
		if i := newest(func(k string) bool { return k == key }); i >= 0 {
			return i
		}
		for _, prefix := range append([]string{key}, restore...) {
			if i := newest(func(k string) bool { return strings.HasPrefix(k, prefix) }); i >= 0 {
				return i
			}
		}
	}
	return -1
}
