package qemu

import "bytes"

// Archive returns a cpio archive with one program in it.
func Archive(name string, program []byte) []byte {
	var b bytes.Buffer
	cpioEntry(&b, name, 0o100755, program)
	cpioEntry(&b, "TRAILER!!!", 0, nil)
	return b.Bytes()
}

// ProbeInitrd and ProbeWord are what the probe boots and waits for.
func ProbeInitrd() []byte { return probeInitrd() }

const ProbeWord = probeWord
