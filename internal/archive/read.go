package archive

import (
	"archive/tar"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
)

// Limits bound what is read out of an archive. 0 is no bound.
type Limits struct {
	Entries int
	Names   int64 // bytes of all names
	Bytes   int64 // of all files
}

// Each calls fn with each entry of a tar archive and what it holds, as long as the
// limits allow; what fn leaves of it is passed over.
func Each(r io.Reader, most Limits, fn func(h *tar.Header, r io.Reader) error) error {
	if most.Entries > 0 && most.Names > 0 && most.Bytes > 0 {
		// What is compressed may unpack to headers without end.
		r = &io.LimitedReader{R: r, N: most.Bytes + most.Names + int64(most.Entries+1)*2048}
	}
	t := tar.NewReader(r)
	for n, names, size := 0, int64(0), int64(0); ; {
		h, err := t.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			if l, ok := r.(*io.LimitedReader); ok && l.N <= 0 {
				return fmt.Errorf("it unpacks to more than %d bytes", most.Bytes)
			}
			return err
		}
		n, names = n+1, names+int64(len(h.Name)+len(h.Linkname))
		if h.Typeflag == tar.TypeReg {
			size += min(h.Size, 1<<60-size)
		}
		switch {
		case most.Entries > 0 && n > most.Entries:
			return fmt.Errorf("it has more than %d entries", most.Entries)
		case most.Names > 0 && names > most.Names:
			return fmt.Errorf("it has names of more than %d bytes", most.Names)
		case most.Bytes > 0 && size > most.Bytes:
			return fmt.Errorf("it unpacks to more than %d bytes", most.Bytes)
		}
		if err := fn(h, t); err != nil {
			return err
		}
	}
}

// Files calls fn with the regular files of a gzipped tar archive on disk that has
// everything below one directory, by their names in there: an npm package.
func Files(name string, most Limits, fn func(name string, h *tar.Header, r io.Reader) error) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return err
	}
	err = Each(z, most, func(h *tar.Header, r io.Reader) error {
		_, name, ok := strings.Cut(path.Clean(h.Name), "/")
		if !ok || h.Typeflag != tar.TypeReg {
			return nil
		}
		return fn(name, h, r)
	})
	return errors.Join(err, z.Close())
}
