package vmm

import "encoding/binary"

// ProgramHeaders is how far into the file of a [Program] its code stands. An address
// for Linux to run it at is as far into a page.
const ProgramHeaders = 64 + 56

// Program returns an x86-64 ELF executable, by hand, that needs nothing under it: its
// code, to be run at an address from its first byte on.
func Program(at uint64, code []byte) []byte {
	le := binary.LittleEndian
	size := uint64(len(code))
	h := make([]byte, ProgramHeaders)
	copy(h, "\x7fELF\x02\x01\x01") // 64 bits, little endian
	le.PutUint16(h[16:], 2)        // executable
	le.PutUint16(h[18:], 62)       // x86-64
	le.PutUint32(h[20:], 1)
	le.PutUint64(h[24:], at) // entry
	le.PutUint64(h[32:], 64) // program headers
	le.PutUint16(h[52:], 64)
	le.PutUint16(h[54:], 56)
	le.PutUint16(h[56:], 1)
	p := h[64:]
	le.PutUint32(p[0:], 1) // load
	le.PutUint32(p[4:], 5) // readable, executable
	le.PutUint64(p[8:], ProgramHeaders)
	le.PutUint64(p[16:], at)
	le.PutUint64(p[24:], at)
	le.PutUint64(p[32:], size)
	le.PutUint64(p[40:], size)
	le.PutUint64(p[48:], 0x1000)
	return append(h, code...)
}
