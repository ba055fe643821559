// Package remote is how workers on other hosts get jobs from a server: its [Server]
// stands beside a [desk.Desk], its [Client] is the [desk.Counter] of the worker. The
// worker asks, over HTTP(S), and nothing ever connects to it; it has no credentials but a
// token, and none of the database's.
//
//	worker                                      server
//	  │ claim: labels, size, an ephemeral key ─▶ │ queue: lease, fence (job, attempt)
//	  │ ◀─ the job, sealed to that key           │
//	  │ beat, which waits for news ────────────▶ │ lease renewed ─▶ cancelled? lost?
//	  │ records n…m ───────────────────────────▶ │ stored, flushed ─▶ next: m+1
//	  │ checkout, action, service, explain … ──▶ │ what the server has and the job needs
//	  │ finish ────────────────────────────────▶ │ conductor
//
// The worker runs the engine, so that a server that is away stops nothing: what the job
// tells is kept in memory (bounded; a job that tells more waits), and what it asks for
// waits. All of it is asked again until it is answered, with the same numbers.
//
// # What goes over the channel
//
// With the claim: the part of the plan that the job needs, its secrets and its token, what
// is foretold of its steps, the limits on its machine. It is sealed (HPKE: X25519,
// HKDF-SHA256, AES-256-GCM) to a key that the worker made for this one claim and keeps in
// memory: whatever ends TLS on the way reads nothing of it, and it never is on the
// worker's disk. When it is asked for: the repository's tree and other actions' (as tar
// archives, spooled to files without names), artifacts, caches and identity tokens (the
// job's requests, passed on), what the learner has to say. Learning stays on the server.
// Images and container registries are the worker's own.
//
// # Fences
//
// Every request names a job and an attempt, and the worker says who it is. The server
// answers 410 to whoever does not hold that attempt (any more): nothing is written, and
// the worker ends the machine. While nobody answers, a worker goes on for [Patience].
//
// A server that starts again finds in the queue who holds what, gives those workers a
// lease to tell that they live, and takes up where the last stored record of the attempt
// says ([ci.Record].Sent): nothing is lost or stored twice. Uploads of artifacts and
// caches that were open when it died are lost.
//
// # Versions
//
// [Protocol] is the version of all this. A server answers workers that are one version
// apart, and says to others which side to bring up to date.
package remote
