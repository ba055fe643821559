package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// Kept is a manifest or a layer that is kept, for a registry: two that have the same
// have it twice (see item).
type Kept struct {
	Registry string    `json:"registry"` // its name; a port's colon is an underscore
	Digest   string    `json:"digest"`
	Bytes    int64     `json:"bytes"`
	Used     time.Time `json:"used"`          // last
	Why      string    `json:"why,omitempty"` // it was removed
	path     string
}

// List says what is kept in dir, by whatever process, what was not used for longest
// first. A directory that is not there has nothing.
func List(dir string) ([]Kept, error) {
	hosts, err := os.ReadDir(filepath.Join(dir, "blobs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var all []Kept
	for _, h := range hosts {
		at := filepath.Join(dir, "blobs", h.Name())
		entries, err := os.ReadDir(at)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // another process removes it when it is empty
			return nil, err
		}
		for _, e := range entries {
			if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
				all = append(all, Kept{Registry: h.Name(), Digest: "sha256:" + e.Name(), Bytes: info.Size(), Used: info.ModTime(), path: filepath.Join(at, e.Name())})
			}
		}
	}
	slices.SortFunc(all, func(a, b Kept) int { return a.Used.Compare(b.Used) })
	return all, nil
}

// Limits are what Trim leaves; a zero sets no limit.
type Limits struct {
	Unused time.Duration // since it was used last
	Bytes  int64         // of all together
	Match  func(Kept) bool
	DryRun bool
}

// Trim removes from dir what Match chooses, what was not used for so long and, of the
// rest, what was not used for longest; and returns that. Caches that have the directory
// open go on: who reads a layer has it, and what is asked for again is fetched again.
func Trim(dir string, l Limits) (removed []Kept, err error) {
	all, err := List(dir)
	if err != nil {
		return nil, err
	}
	var total int64
	for _, k := range all {
		total += k.Bytes
	}
	var errs []error
	for _, k := range all {
		switch {
		case l.Match != nil && l.Match(k):
			k.Why = "it was asked for"
		case l.Unused > 0 && time.Since(k.Used) > l.Unused:
			k.Why = fmt.Sprintf("it was not used for %v", l.Unused)
		case l.Bytes > 0 && total > l.Bytes:
			k.Why = fmt.Sprintf("all of them take more than %d MB", l.Bytes>>20)
		default:
			continue
		}
		if !l.DryRun {
			if err := os.Remove(k.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, err)
				continue
			}
			os.Remove(filepath.Dir(k.path)) // if it is empty; it is made again where one is put into it
		}
		total -= k.Bytes
		removed = append(removed, k)
	}
	return removed, errors.Join(errs...)
}
