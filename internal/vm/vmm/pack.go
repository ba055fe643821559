package vmm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/klauspost/compress/zstd"

	"github.com/hearth-ci/hearth/internal/vm"
)

// A snapshot is packed as what it has that its template has not: a stream, for
// wherever it is to be kept. Pages of memory that are as in the template's memory file
// are named by their place there; disks stand on the template's, and only what was
// written over them is in the stream. All of it is one zstd stream:
//
//	manifest, as JSON     length (uvarint), bytes
//	each file, in order   name and size in the manifest's Files, then tokens
//	token                 kind (byte), length (uvarint), what the kind says
//
// The manifest's paths into the template are relative to it. What is unpacked is
// checked against the sums that were taken when the snapshot was made
// ([vm.Driver].Verify), so that a page which is not what it was is found however it
// came to be.

// The kinds of tokens.
const (
	packEnd  = 0 // of the file
	packData = 1 // length bytes follow
	packHole = 2 // length zeros
	packSame = 3 // length bytes of the template's memory; their offset (uvarint) follows
)

const (
	page = 4096
	// maxToken bounds the length of one token, which is what is held in memory.
	maxToken = 1 << 20
	// maxPackedManifest bounds the manifest of a packed snapshot.
	maxPackedManifest = 1 << 20
	// inTemplate begins the path of what is in the template.
	inTemplate = "template:"
)

// Identity names the template in dir: one that is made again, even of the same image
// and in the same place, has another.
func Identity(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}

// Pack writes the snapshot in dir to w, without what it shares with the one in
// template, on which its machine stood.
func Pack(ctx context.Context, w io.Writer, dir, template string) error {
	b, err := os.ReadFile(filepath.Join(dir, ManifestName))
	if err != nil {
		return fmt.Errorf("pack a snapshot: %w", err)
	}
	var m Manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return fmt.Errorf("pack a snapshot: %w", err)
	}
	type source struct{ name, path string }
	var files []source
	for _, name := range slices.Sorted(maps.Keys(m.Files)) {
		files = append(files, source{name, filepath.Join(dir, name)})
	}
	for d := range m.Disks {
		for n := range m.Disks[d].Below {
			i := &m.Disks[d].Below[n]
			if rel, err := filepath.Rel(template, i.Path); err == nil && filepath.IsLocal(rel) {
				i.Path = inTemplate + rel
				continue
			}
			// Of a snapshot that the machine had been put back to.
			name := fmt.Sprintf("below-%s-%d.%s", m.Disks[d].ID, n, i.Format)
			sum, err := vm.SumFile(ctx, i.Path)
			if err != nil {
				return fmt.Errorf("pack a snapshot: %w", err)
			}
			files = append(files, source{name, i.Path})
			m.Files[name], i.Path = sum, name
		}
	}
	pages, unmap, err := mapped(filepath.Join(template, MemoryName))
	if err != nil {
		return fmt.Errorf("pack a snapshot: the template's memory: %w", err)
	}
	defer unmap()
	z, err := zstd.NewWriter(w, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	p := &packer{w: bufio.NewWriterSize(z, 64<<10), pages: pages}
	b, err = json.Marshal(m)
	if err == nil {
		p.number(uint64(len(b)))
		p.bytes(b)
		p.number(uint64(len(files)))
	}
	for _, f := range files {
		if err == nil {
			err = p.file(ctx, f.name, f.path)
		}
	}
	if err == nil {
		err = p.w.Flush()
	}
	if err = errors.Join(err, p.err, z.Close()); err != nil {
		return fmt.Errorf("pack a snapshot: %w", err)
	}
	return nil
}

// mapped is a file's contents, nil if there is none.
func mapped(name string) (b []byte, unmap func(), err error) {
	f, err := os.Open(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil, func() {}, nil
	} else if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || st.Size() == 0 {
		return nil, func() {}, err
	}
	b, err = syscall.Mmap(int(f.Fd()), 0, int(st.Size()), syscall.PROT_READ, syscall.MAP_PRIVATE)
	return b, func() { syscall.Munmap(b) }, err
}

// packer writes tokens. Its first error stays.
type packer struct {
	w     *bufio.Writer
	pages []byte // the template's memory
	err   error
}

func (p *packer) bytes(b []byte) {
	if p.err == nil {
		_, p.err = p.w.Write(b)
	}
}

func (p *packer) number(n uint64) { p.bytes(binary.AppendUvarint(nil, n)) }

func (p *packer) token(kind byte, length int, data []byte) {
	p.bytes([]byte{kind})
	p.number(uint64(length))
	p.bytes(data)
}

// data writes bytes as they are.
func (p *packer) data(b []byte) {
	for len(b) > 0 {
		n := min(len(b), maxToken)
		p.token(packData, n, b[:n])
		b = b[n:]
	}
}

var zeros [page]byte

func (p *packer) file(ctx context.Context, name, path string) error {
	p.number(uint64(len(name)))
	p.bytes([]byte(name))
	b, unmap, err := mapped(path)
	if err != nil {
		return err
	}
	defer unmap()
	if name == StateName {
		err = p.state(ctx, b)
	} else {
		err = p.aligned(ctx, b, name == MemoryName)
	}
	p.token(packEnd, 0, nil)
	return errors.Join(err, p.err)
}

// same writes that n bytes are those at an offset of the template's memory.
func (p *packer) same(offset, n int) {
	p.bytes([]byte{packSame})
	p.number(uint64(n))
	p.number(uint64(offset))
}

// aligned packs a file whose pages are where they are, as those of a memory file;
// ofMemory says that it is one.
func (p *packer) aligned(ctx context.Context, b []byte, ofMemory bool) error {
	kindAt := func(at int) byte {
		part := b[at:min(at+page, len(b))]
		switch {
		case bytes.Equal(part, zeros[:len(part)]):
			return packHole
		case ofMemory && at+len(part) <= len(p.pages) && bytes.Equal(part, p.pages[at:at+len(part)]):
			return packSame
		}
		return packData
	}
	for at := 0; at < len(b); {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		kind, end := kindAt(at), at+page
		for end < len(b) && end-at < maxToken && kindAt(end) == kind {
			end += page
		}
		end = min(end, len(b))
		switch kind {
		case packHole:
			p.token(packHole, end-at, nil)
		case packSame:
			p.same(at, end-at)
		default:
			p.data(b[at:end])
		}
		at = end
	}
	return nil
}

// Flags of a page in QEMU's stream, below its address.
const (
	ramZero     = 0x02
	ramPage     = 0x08
	ramContinue = 0x20 // of the same block as the one before: no name follows
	ramFlags    = page - 1
)

// state packs a VMM's state. QEMU's has the memory of a machine that was cloned in
// it, each page after its address: a page that looks like one and is as in the
// template's memory is named by that. What looks like a page and is none costs room
// and nothing else: what is written is what was read, in any case.
func (p *packer) state(ctx context.Context, b []byte) error {
	pending := 0 // from here on nothing has been written
	for at := 0; at+8 <= len(b); {
		if at&(1<<20-1) == 0 && ctx.Err() != nil {
			return context.Cause(ctx)
		}
		head := binary.BigEndian.Uint64(b[at:])
		flags, addr := head&ramFlags, head&^uint64(ramFlags)
		if flags&^uint64(ramContinue) != ramPage && flags&^uint64(ramContinue) != ramZero || addr >= uint64(len(p.pages)) {
			at++
			continue
		}
		data := at + 8
		if flags&ramContinue == 0 {
			if data >= len(b) || b[data] == 0 || data+1+int(b[data]) > len(b) {
				at++
				continue
			}
			data += 1 + int(b[data])
		}
		if flags&ramZero != 0 {
			if data < len(b) && b[data] == 0 {
				at = data + 1
			} else {
				at++
			}
			continue
		}
		if data+page > len(b) || int(addr)+page > len(p.pages) {
			at++
			continue
		}
		if bytes.Equal(b[data:data+page], p.pages[addr:addr+page]) {
			p.data(b[pending:data])
			p.same(int(addr), page)
			pending = data + page
		}
		at = data + page
	}
	p.data(b[pending:])
	return nil
}

// Unpack makes in dir, which is empty, the snapshot that Pack has written, standing on
// the same template. Nothing that is read can make it write more than limit bytes, nor
// outside of dir. The manifest comes last: a directory with one is whole.
func Unpack(ctx context.Context, r io.Reader, dir, template string, limit int64) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w: unpack: %w", vm.ErrSnapshot, err)
		}
	}()
	if dir, err = EmptyDir(dir); err != nil {
		return err
	}
	z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return err
	}
	defer z.Close()
	in := bufio.NewReaderSize(z, 64<<10)
	text, err := counted(in, maxPackedManifest)
	if err != nil {
		return err
	}
	var m Manifest
	if err := json.Unmarshal(text, &m); err != nil {
		return err
	}
	pages, unmap, err := mapped(filepath.Join(template, MemoryName))
	if err != nil {
		return err
	}
	defer unmap()
	n, err := binary.ReadUvarint(in)
	if err != nil || n != uint64(len(m.Files)) {
		return fmt.Errorf("it has %d files, and its manifest %d: %w", n, len(m.Files), cmpErr(err))
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for range n {
		name, err := counted(in, 255)
		if err != nil {
			return err
		}
		sum, ok := m.Files[string(name)]
		if !ok || string(name) == ManifestName || strings.ContainsAny(string(name), "/\x00") {
			return fmt.Errorf("file %q is not accounted for", name)
		}
		if limit -= sum.Size; sum.Size < 0 || limit < 0 {
			return fmt.Errorf("file %q is larger than a machine of this kind can be", name)
		}
		if err := unpackFile(ctx, in, root, string(name), sum.Size, pages); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if _, err := in.ReadByte(); err != io.EOF { // or that which keeps the stream has not seen its end
		return fmt.Errorf("after its last file: %w", cmpErr(err))
	}
	for d := range m.Disks {
		for i := range m.Disks[d].Below {
			b := &m.Disks[d].Below[i]
			if rel, ok := strings.CutPrefix(b.Path, inTemplate); ok && filepath.IsLocal(rel) {
				b.Path = filepath.Join(template, rel)
			} else if _, ok := m.Files[b.Path]; ok {
				b.Path = filepath.Join(dir, b.Path)
			} else {
				return fmt.Errorf("disk %s stands on %q, which is nowhere", m.Disks[d].ID, b.Path)
			}
		}
	}
	return m.Write(ctx, dir)
}

// cmpErr is err, or that the stream is not what it should be.
func cmpErr(err error) error {
	if err != nil {
		return err
	}
	return errors.New("damaged")
}

// counted reads a length and so many bytes.
func counted(in *bufio.Reader, most uint64) ([]byte, error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return nil, err
	}
	if n > most {
		return nil, fmt.Errorf("%d bytes where at most %d can be", n, most)
	}
	b := make([]byte, n)
	_, err = io.ReadFull(in, b)
	return b, err
}

func unpackFile(ctx context.Context, in *bufio.Reader, root *os.Root, name string, size int64, pages []byte) (err error) {
	f, err := root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 1<<20)
	buf := make([]byte, maxToken)
	for at := int64(0); ; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		kind, err := in.ReadByte()
		if err != nil {
			return err
		}
		n, err := binary.ReadUvarint(in)
		if err != nil {
			return err
		}
		if n > maxToken || at+int64(n) > size {
			return errors.New("more than its size")
		}
		var data []byte
		switch kind {
		case packEnd:
			if at != size || n != 0 {
				return fmt.Errorf("%d bytes of %d", at, size)
			}
			if err := w.Flush(); err != nil {
				return err
			}
			return f.Truncate(size)
		case packData:
			data = buf[:n]
			if _, err := io.ReadFull(in, data); err != nil {
				return err
			}
		case packHole:
			if err := w.Flush(); err != nil {
				return err
			}
			if _, err := f.Seek(int64(n), io.SeekCurrent); err != nil {
				return err
			}
		case packSame:
			from, err := binary.ReadUvarint(in)
			if err != nil {
				return err
			}
			if from > uint64(len(pages)) || n > uint64(len(pages))-from {
				return errors.New("a page that the template does not have")
			}
			data = pages[from : from+n]
		default:
			return fmt.Errorf("a token of kind %d", kind)
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
		at += int64(n)
	}
}
