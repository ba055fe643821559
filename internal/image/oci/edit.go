package oci

import (
	"io"
	"path"
	"strings"
	"time"

	"github.com/hearth-ci/hearth/internal/image/erofs"
)

// Edited is which layer what we change counts as: above all others.
const edited = MaxLayers + 1

// Exists says whether there is something at an absolute path, links followed.
func (t *Tree) Exists(p string) bool {
	i, err := t.lookup(p, true)
	return i != nil && err == nil
}

// ReadFile returns a small file's content, nil if there is none at the path or it is
// larger than most.
func (t *Tree) ReadFile(p string, most int64) ([]byte, error) {
	i, err := t.lookup(p, true)
	if err != nil || i == nil || i.Type() != erofs.Regular || i.Size > most {
		return nil, err
	}
	if i.Size == 0 {
		return []byte{}, nil
	}
	r, err := i.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(r)
}

// WriteFile puts a file of ours at a path, in place of what is there. It keeps the
// owner and mode of a file that it replaces.
func (t *Tree) WriteFile(p string, data []byte, mode uint32, at time.Time) error {
	i := &erofs.Inode{Mode: erofs.Regular | mode, Size: int64(len(data)), MTime: at,
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(string(data))), nil }}
	if old, err := t.lookup(p, false); err == nil && old != nil && old.Type() == erofs.Regular {
		i.Mode, i.UID, i.GID = old.Mode, old.UID, old.GID
	}
	return t.place(p, i)
}

// Symlink puts a link of ours at a path, in place of what is there.
func (t *Tree) Symlink(target, p string) error {
	return t.place(p, &erofs.Inode{Mode: erofs.Symlink | 0o777, Target: target})
}

func (t *Tree) place(p string, i *erofs.Inode) error {
	dir, err := t.directory(edited, path.Dir(path.Clean("/"+p)))
	if err != nil {
		return err
	}
	t.put(edited, dir, path.Base(p), i)
	return nil
}

// Mkdir makes sure of a directory, with this owner and mode.
func (t *Tree) Mkdir(p string, mode, uid, gid uint32) error {
	d, err := t.directory(edited, path.Clean("/"+p))
	if err != nil {
		return err
	}
	d.Mode, d.UID, d.GID = erofs.Directory|mode, uid, gid
	return nil
}
