// Package guest is what the host and the agent inside a machine say to each
// other: running commands, moving files, resuming after a restore. It holds both
// ends. [Connect] gives the host's end, a [Client]; [Server] is the agent's end,
// which also runs on the host so that everything above it can be tested without
// a machine. What the agent does as the first process of a machine (mounts,
// modules, network) is in the package boot.
//
// # The channel
//
// The protocol needs one reliable byte stream in both directions and nothing
// else: a virtio-serial port, a vsock connection, a Unix socket, net.Pipe. A
// virtio-serial port is the hardest of them and decides the shape:
//
//   - it has no connections. What a former host left in it, and what the guest
//     was about to say to that host when a snapshot was taken, comes first;
//   - the host may speak before the guest has opened the port;
//   - neither end learns in time that the other one was replaced.
//
// So a connection begins with a hello that can be found in the middle of
// anything: 16 bytes of magic and a nonce chosen by the host. The agent answers
// with another magic and the same nonce; the host skips whatever comes before
// that. The first four bytes of the nonce are the tag, which begins every frame
// afterwards, in both directions: a frame of another connection cannot be taken
// for one of this connection. An agent that finds a hello where a frame should
// begin ends the former connection and answers; one that finds neither a hello
// nor its tag looks for a hello from there on. If the agent was left waiting for
// the rest of a frame, it takes the hello for that rest; therefore a host that
// gets no answer sends another hello after as many zero bytes as a frame can be
// long.
//
// # Frames
//
//	tag 4 | stream 4 | length 4 | kind 1 | channel 1 | flags 2 | payload      (big endian)
//
// A payload has at most [MaxPayload] bytes, so that a frame goes through a
// virtio-serial port in one write. The host opens a stream with a request (the
// channel byte says which); data flow in both directions; the agent ends the
// stream with exactly one final frame, a result or an error. A stream that has
// no final frame has no result: whatever came before it, the host reports an
// error, never success.
//
// A stream may also lead on to a Unix socket of the machine ([Client.Dial]): of a
// fixed list, by name, so that what can be reached is the agent's choice and no path
// of anybody's. Data are the socket's, in both directions; the result says that it
// was closed at the other end.
//
// # Flow control
//
// Each end may send [Window] bytes on a stream, counting a frame as its whole
// length with the header; the receiver grants more as its consumer takes data.
// Neither end's reader therefore ever waits for a consumer: a job that prints a
// gigabyte to a slow consumer stops on its own pipe, and no other stream notices.
// The header counts so that a flood of empty frames is bounded, too.
//
// # Trust
//
// The agent shares its machine with the job, so the host treats every byte from
// it as hostile: lengths, stream numbers, credit and the number of bytes ahead of
// the hello are checked against fixed bounds; the first violation ends the
// connection ([ErrProtocol]). Text from the guest is bounded and quoted where it
// goes into errors. Paths are the guest's own business: the host never uses one;
// an archive from a guest reaches the caller as it is, with a bound on its size.
//
// # Who runs which goroutine
//
// Client: one goroutine reads the connection, one watches for an agent that no
// longer answers; an Exec's output is written by the goroutine that called it.
// Server: one goroutine reads the connection, two an exec (its output and error
// output), one for standard input where there is some. Frames are written by whoever has
// them, under a lock. The agent holds no timer and no ticker while idle.
package guest
