// Package image builds, keeps and verifies what machines boot from.
//
// An image is six layers, each built, cached and checked by itself:
//
//	kernel   the ELF kernel out of Debian's cloud kernel package, and the
//	         modules that a guest needs before it has a root file system
//	initrd   the guest agent as /init, and those modules in load order
//	base     the read-only root file system: a recipe's Ubuntu or Debian with
//	         what workflows expect
//	tools    the read-only file system for /opt/hearth: Node 20 and 24, npm
//	modules  the read-only file system for /usr/lib/modules: all of the kernel's
//	engine   the read-only file system with Docker, which lies below the base
//
// A seventh, toolcache, lies below the base as well: what setup actions find there,
// Node and Go, of images that are to have it ([Options].Tools).
//
// Each lists what is in it (packages.json), as one of its files.
//
// All machines share an image's files; what a job writes goes to a scratch disk
// of its own ([Scratch]), overlaid by the agent. The engine is Docker of the Debian
// release after the base's, on that one's runc and iptables, unpacked and nothing
// more: no script of a package runs. Where that release cannot be had, the layer is
// empty and says why ([Image.NoEngine]). The modules are a disk because what a boot
// does not need costs it time in an initrd: with those for jobs in it a boot took the
// emulator 7.0 s of processor time, without 4.3 s, for the machine had to copy them
// and to run depmod. One initrd serves every driver: virtio-mmio announced by ACPI (QEMU's microvm, Firecracker) and both
// channels to the agent (virtio console, vsock).
//
// # Who does the work
//
// The distribution's own tools: apt-get fetches and verifies the kernel
// package, mmdebstrap makes the root file system, mkfs.erofs packs it; npm, or
// its registry, has Node. Ours is what they do not have: the kernel's ELF out of
// the bzImage, load order out of the modules, the initrd's format.
//
// Neither root nor up-to-date package lists are needed. apt works on lists of
// its own; mmdebstrap runs in new mount and process namespaces, and as another
// user's root in a user namespace. Without root that takes uidmap and a range
// in /etc/subuid, and the errors say so.
//
// # Identity
//
// A layer is found by its inputs: what it is made of, the script that makes it,
// a version to bump when the code does; for the tools the pins. Its ID is a hash over inputs and
// contents, an image's ID one over its layers' IDs; so an ID stands for exact
// bytes, and what is derived from them ([Image.Template]) can be keyed by it.
// Package versions are not among the inputs, or every start would have to ask
// Debian: Options.Refresh does, and yields a new image if anything changed. A
// new agent costs a new initrd, some milliseconds.
//
// # Where it comes from
//
// Debian's packages: lists signed by a key of debian-archive-keyring name the
// sums of all packages. apt (for the kernel) and mmdebstrap's apt (for the base)
// verify both, whatever the host's configuration would let pass, and whatever
// keys the host trusts besides. What is installed and in no signed list stops the
// build. Ubuntu's packages, for the base alone: the same, with the key of Ubuntu's
// archive, which is part of this program. npm's packages: the table in package pin, exact version and sha256, and
// nothing is unpacked before its sum has been compared.
//
// [Image.SBOM] tells it for a given image, out of the layers' own lists. Images
// from before there were lists stay usable and cannot tell.
//
// # Trust
//
// Every use compares size, times and inode of each file with what they were
// when its hash was last compared, and hashes again on any difference
// ([Image.Verify] always does). A damaged layer is ErrCorrupt with the file's
// name from [Open], and is built again by [Build]; so is an image whose manifest
// names other layers than its ID stands for. The kernel's package, kept for
// [Image.Extend], is compared with its sum before each use.
//
// # Interruption
//
// A layer is filled in tmp/ and renamed when it is complete, hashed and on
// disk. One lock covers building and removing, across processes; it is the
// kernel's, so nobody has to clean it up. What lies in tmp/ when a builder gets
// the lock was left by one that was killed, and is swept. Programs we started
// die with us, also of SIGKILL, and take their mounts with them (namespaced).
// Whoever runs machines holds the image ([Image.Hold]); held images are not
// removed.
//
// # Measured
//
// Two cores, Debian 12, a mirror nearby: mmdebstrap 44 s for Ubuntu 24.04 and for
// Debian 12. Of Debian everything 44–50 s (base 44, tools 10
// beside it, kernel 7 beside it), 574 MB. Without root everything took
// 74 s, measured once and beside other work. With all in place 6–12 ms. Reading under emulation is the same for erofs with lz4, plain
// erofs and ext4 to within noise; the file is 367, 636 and 658 MB. QEMU's
// process start to the end of the modules: 1.2 s of guest time.
//
// # Container images
//
// [OpenImport] and Options.Import make the base of a container image's layers instead of
// a distribution's packages: stacked by package oci, written by package erofs, neither of
// which unpacks anything onto this machine, so that neither root nor a namespace is
// needed. Two layers of 240 MB took 4.6 s. The layer is found by the manifest's digest.
//
// # Not here
//
// Other architectures; signatures of container images.
package image
