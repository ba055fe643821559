package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// probeWord is what the probe's program prints.
const probeWord = "hearth: probe: user space runs"

// probeInitrd returns an initramfs with one file, /init: a static program that
// writes probeWord to standard output, which is the console, and restarts the
// machine. Until a guest's user space has spoken, nothing is known about KVM; a
// program of a hundred bytes spares the probe from needing an image.
func probeInitrd() []byte {
	var b bytes.Buffer
	cpioEntry(&b, "init", 0o100755, probeProgram())
	cpioEntry(&b, "TRAILER!!!", 0, nil)
	for b.Len()%512 != 0 {
		b.WriteByte(0)
	}
	return b.Bytes()
}

// cpioEntry writes one entry in cpio's "newc" form.
func cpioEntry(b *bytes.Buffer, name string, mode uint32, data []byte) {
	pad := func() {
		for b.Len()%4 != 0 {
			b.WriteByte(0)
		}
	}
	// magic, then 13 fields: ino, mode, uid, gid, nlink, mtime, size, device and
	// special device (2 × 2), length of the name, checksum.
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x",
		0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
	b.WriteString(name + "\x00")
	pad()
	b.Write(data)
	pad()
}

// probeProgram returns a static x86-64 ELF program, by hand.
func probeProgram() []byte {
	const base = 0x400000
	const headers = 64 + 56
	msg := []byte("\n" + probeWord + "\n")
	code := []byte{
		0xbf, 1, 0, 0, 0, // mov edi, 1 (standard output)
		0x48, 0xbe, 0, 0, 0, 0, 0, 0, 0, 0, // mov rsi, message
		0xba, byte(len(msg)), 0, 0, 0, // mov edx, its length
		0xb8, 1, 0, 0, 0, // mov eax, 1 (write)
		0x0f, 0x05, // syscall
		0xbf, 0xad, 0xde, 0xe1, 0xfe, // mov edi, LINUX_REBOOT_MAGIC1
		0xbe, 0x69, 0x19, 0x12, 0x28, // mov esi, LINUX_REBOOT_MAGIC2
		0xba, 0x67, 0x45, 0x23, 0x01, // mov edx, LINUX_REBOOT_CMD_RESTART
		0xb8, 169, 0, 0, 0, // mov eax, 169 (reboot)
		0x0f, 0x05, // syscall
		0xeb, 0xfe, // jmp here
	}
	le := binary.LittleEndian
	le.PutUint64(code[7:], uint64(base+headers+len(code)))
	size := uint64(headers + len(code) + len(msg))

	h := make([]byte, headers)
	copy(h, "\x7fELF\x02\x01\x01") // 64 bits, little endian
	le.PutUint16(h[16:], 2)        // executable
	le.PutUint16(h[18:], 62)       // x86-64
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], base+headers) // entry
	le.PutUint64(h[32:], 64)           // program headers
	le.PutUint16(h[52:], 64)
	le.PutUint16(h[54:], 56)
	le.PutUint16(h[56:], 1)
	p := h[64:]
	le.PutUint32(p[0:], 1) // load
	le.PutUint32(p[4:], 5) // readable, executable
	le.PutUint64(p[16:], base)
	le.PutUint64(p[24:], base)
	le.PutUint64(p[32:], size)
	le.PutUint64(p[40:], size)
	le.PutUint64(p[48:], 0x1000)
	return append(append(h, code...), msg...)
}
