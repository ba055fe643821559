// Package network is a machine's network: a TCP/IP stack in this process, at
// the other end of the machine's one cable. It needs no privilege, opens no
// port on the host, and is the same for every VM driver.
//
//	guest ══ Ethernet frames ══▶ filter ─▶ netstack ─┬─▶ TCP ─┬─▶ services (http.Handler per port, on the gateway)
//	      (unix stream, or tap)                      │        └─▶ policy ─▶ net.Dial ─▶ the world
//	                                                 ├─▶ UDP ─┬─▶ DNS ─▶ policy by name ─▶ host's resolver
//	                                                 │        └─▶ policy ─▶ net.Dial ─▶ the world
//	                                                 └─▶ ARP, ping of the gateway
//
// Every machine has a network of its own with the same addresses: the guest is
// [Guest], the gateway [Gateway], the name server [DNS]. So a snapshot wakes up
// with the addresses it fell asleep with, and no machine can reach another.
//
// # Why not something ready-made
//
// QEMU's built-in user network lets a guest reach the host's loopback through
// the gateway and has no policy; Debian 12's passt crashes. A stack of our own
// makes each connection of a guest a Go function that knows who, whereto and
// by which name, before it answers.
//
// # What is refused
//
// Whatever the policy: loopback, link-local (with the cloud metadata address),
// multicast, reserved ranges, and this host's own addresses. Under [Public],
// the default, private and carrier-grade ranges too, unless the policy names
// them, or names a host that resolved to them. The check is made on the address
// that is dialled, when it is dialled, so it does not matter what any other name
// resolved to (DNS rebinding). What is refused is not answered, as behind a
// firewall, unless the policy says so (Policy.Refuse).
//
// Under [AllowList] only the listed hosts can be resolved, and only addresses
// that one of those answers gave can be reached. An address shared by an
// allowed and another site (a CDN) lets the other one through: this is about
// which machines are talked to, not a content filter.
//
// # What is recorded
//
// Each connection yields one [Connection] when it ends, or at once when it was
// refused: which step it was opened in, by which name, how many bytes each
// way. The record is made outside of the guest, which cannot forge or delete
// it. Records are bounded (Limits.Records a step); what goes beyond is counted.
//
// # The guest is hostile
//
// Frames are bounded and filtered before the stack sees them (frame.go): other
// senders than the guest's address, other protocols than ARP and IPv4, pings
// to elsewhere are dropped. Connections, resolver queries, buffers and
// remembered names have limits. A guest that does not read loses packets, not
// our memory.
//
// # Life
//
// New starts the stack; ServeFrames and ServeTap connect a machine, one at a
// time, again after a restart; Close ends everything and returns when the last
// goroutine has. The goroutines: one writer and one reader per cable, two per
// connection, one per service, and netstack's own.
package network
