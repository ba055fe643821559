package qemu

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/hearth-ci/hearth/internal/vm/vmm"
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
	const at = 0x400000 + vmm.ProgramHeaders
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
	binary.LittleEndian.PutUint64(code[7:], uint64(at+len(code)))
	return vmm.Program(at, append(code, msg...))
}
