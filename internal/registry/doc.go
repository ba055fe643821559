// Package registry is what a machine's container engine pulls images from: a
// registry on the gateway's address ([Port]) that fetches from the registries of the
// world and keeps what it has fetched.
//
//	docker pull ─▶ 10.0.2.2:5000 ─▶ Session ─▶ Cache: blobs by digest ─▶ https://registry-1.docker.io, …
//
// The engine asks it for images of Docker Hub by itself (it is their mirror). Those
// of other registries have a name here, [Session.Via]: ghcr.io/o/i:1 is
// 10.0.2.2:5000/ghcr.io/o/i:1, and what has been pulled is tagged with its own name
// afterwards. It only gives; nothing is ever pushed.
//
// # Credentials stay here
//
// The guest asks without any. What a registry wants is added on this side: the host's
// own (Upstream), or a job's ([Session.Login]), which come first. A session of
// somebody who is not trusted has none of the host's.
//
// # What a session may have
//
// The cache is shared, what a session gets out of it is not: a tag is always asked of
// the registry, with the session's credentials, and a blob is given from the disk
// only where the registry has said, or has shown by giving it, that the repository has
// it, and this session was given a manifest of that repository that names it. For
// anything else the registry is asked first; one registry's word counts for what is
// its own alone. So nobody reads another one's private image because it has been
// pulled here once.
//
// The guest chooses names, and this process would connect to them: what may be asked
// is what the machine's network policy lets the machine reach itself, by name and by
// address. An image that the workflow names (Via) is fetched whatever the policy
// says, for its author wrote it down; but from public addresses, or those that the
// policy lists. A registry that is mapped ([Upstream]) is where the map says.
//
// # Bounds
//
// A manifest has at most [maxManifest] bytes, a blob [maxBlob], the cache
// Config.Limit: before a blob is fetched, room is made by removing what was not used
// for longest. A session has so many requests and remembers so many digests at once.
// What is kept was compared with its digest as it came, and is compared again as it
// is given; what differs is removed.
package registry
