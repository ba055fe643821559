package image

import (
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/pierrec/lz4/v4"
)

// maxVMLinux bounds the unpacked kernel. Debian's cloud kernel is 53 MB.
const maxVMLinux = 512 << 20

// vmlinux takes the uncompressed ELF kernel out of a bzImage. Both Firecracker
// and QEMU's microvm load the ELF directly: Firecracker takes nothing else,
// and QEMU starts 0.5–1 s earlier because nothing is unpacked under emulation.
func vmlinux(bz []byte) ([]byte, error) {
	payload, err := bzPayload(bz)
	if err != nil {
		return nil, err
	}
	elfData, err := decompressKernel(payload)
	if err != nil {
		return nil, err
	}
	if err := checkKernelELF(elfData); err != nil {
		return nil, err
	}
	return elfData, nil
}

// bzPayload finds the compressed kernel by the boot protocol's header fields
// (Documentation/x86/boot.rst: setup_sects, payload_offset, payload_length).
func bzPayload(bz []byte) ([]byte, error) {
	if len(bz) < 0x260 || string(bz[0x202:0x206]) != "HdrS" {
		return nil, errors.New("not a bzImage: no HdrS header")
	}
	if v := binary.LittleEndian.Uint16(bz[0x206:]); v < 0x0208 {
		return nil, fmt.Errorf("bzImage speaks boot protocol %d.%02d; 2.08 or later is needed to find its payload", v>>8, v&0xff)
	}
	setup := int64(bz[0x1f1])
	if setup == 0 {
		setup = 4
	}
	start := (setup+1)*512 + int64(binary.LittleEndian.Uint32(bz[0x248:]))
	end := start + int64(binary.LittleEndian.Uint32(bz[0x24c:]))
	if start >= end || end > int64(len(bz)) {
		return nil, fmt.Errorf("bzImage is cut off: its payload ends at byte %d of %d", end, len(bz))
	}
	return bz[start:end], nil
}

// decompressKernel unpacks a payload by its magic number.
func decompressKernel(p []byte) ([]byte, error) {
	has := func(magic string) bool { return bytes.HasPrefix(p, []byte(magic)) }
	switch {
	case has("\x7fELF"):
		return p, nil
	case has("\x02\x21\x4c\x18"):
		return unLZ4Legacy(p[4:])
	case has("\x1f\x8b"):
		r, err := gzip.NewReader(bytes.NewReader(p))
		if err != nil {
			return nil, fmt.Errorf("kernel payload: %w", err)
		}
		r.Multistream(false) // the kernel appends its size after the stream
		return readKernel(r)
	case has("BZh"):
		return readKernel(bzip2.NewReader(bytes.NewReader(p)))
	}
	for magic, name := range map[string]string{
		"\xfd7zXZ\x00": "XZ", "\x5d\x00\x00": "LZMA", "\x89LZO": "LZO", "\x28\xb5\x2f\xfd": "Zstandard",
	} {
		if has(magic) {
			return nil, fmt.Errorf("kernel payload is %s-compressed, which hearth cannot unpack (LZ4, gzip and bzip2 it can); give it an uncompressed vmlinux", name)
		}
	}
	return nil, fmt.Errorf("kernel payload has an unknown compression (starts with % x)", p[:min(6, len(p))])
}

func readKernel(r io.Reader) ([]byte, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxVMLinux+1))
	if err == nil && len(data) > maxVMLinux {
		err = fmt.Errorf("more than %d MB", maxVMLinux>>20)
	}
	if err != nil {
		return nil, fmt.Errorf("kernel payload: %w", err)
	}
	return data, nil
}

// unLZ4Legacy unpacks `lz4 -l` blocks: a little-endian size, then a block of
// at most 8 MB unpacked. The kernel's build appends the unpacked size as four
// bytes after the last block.
func unLZ4Legacy(p []byte) ([]byte, error) {
	const blockSize = 8 << 20
	var out []byte
	block := make([]byte, blockSize)
	for len(p) > 4 {
		n := int64(binary.LittleEndian.Uint32(p))
		p = p[4:]
		if n > int64(len(p)) {
			return nil, fmt.Errorf("kernel payload: LZ4 block of %d bytes, %d left", n, len(p))
		}
		size, err := lz4.UncompressBlock(p[:n], block)
		if err != nil {
			return nil, fmt.Errorf("kernel payload: LZ4 block at unpacked byte %d: %w", len(out), err)
		}
		if len(out)+size > maxVMLinux {
			return nil, fmt.Errorf("kernel payload: more than %d MB", maxVMLinux>>20)
		}
		out = append(out, block[:size]...)
		p = p[n:]
	}
	if len(p) == 4 {
		if want := binary.LittleEndian.Uint32(p); int(want) != len(out) {
			return nil, fmt.Errorf("kernel payload: unpacked to %d bytes, not %d", len(out), want)
		}
	}
	return out, nil
}

// checkKernelELF makes sure of what QEMU's -kernel and Firecracker look for:
// an x86-64 ELF executable with the PVH entry note.
func checkKernelELF(data []byte) error {
	f, err := elf.NewFile(bytes.NewReader(data))
	if err != nil {
		return fmt.Errorf("vmlinux: %w", err)
	}
	if f.Machine != elf.EM_X86_64 || f.Type != elf.ET_EXEC {
		return fmt.Errorf("vmlinux: %s %s, want an x86-64 executable", f.Machine, f.Type)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_NOTE {
			continue
		}
		notes, err := io.ReadAll(io.LimitReader(p.Open(), 1<<20))
		if err != nil {
			return fmt.Errorf("vmlinux: %w", err)
		}
		if hasPVHNote(notes) {
			return nil
		}
	}
	return errors.New("vmlinux: no PVH entry note (kernel built without CONFIG_PVH), so QEMU cannot start it")
}

// hasPVHNote looks for XEN_ELFNOTE_PHYS32_ENTRY (18) among ELF notes.
func hasPVHNote(p []byte) bool {
	align := func(n uint64) uint64 { return (n + 3) &^ 3 }
	for len(p) >= 12 {
		nameSize := uint64(binary.LittleEndian.Uint32(p))
		descSize := uint64(binary.LittleEndian.Uint32(p[4:]))
		kind := binary.LittleEndian.Uint32(p[8:])
		size := 12 + align(nameSize) + align(descSize)
		if size > uint64(len(p)) {
			return false
		}
		if kind == 18 && string(p[12:12+min(nameSize, 4)]) == "Xen\x00" {
			return true
		}
		p = p[size:]
	}
	return false
}
