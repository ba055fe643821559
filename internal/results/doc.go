// Package results is the service that GitHub calls results: what the jobs of a run
// hand on to each other and to people (artifacts), and what runs of a repository
// keep for later ones (caches). Actions find it by ACTIONS_RESULTS_URL and
// ACTIONS_RUNTIME_TOKEN, and speak to it as the packages @actions/artifact and
// @actions/cache do:
//
//	POST /twirp/github.actions.results.api.v1.ArtifactService/METHOD    Twirp, JSON
//	POST /twirp/github.actions.results.api.v1.CacheService/METHOD
//	PUT, GET, HEAD /results/…?se=…&sp=…&sig=…    as much of Azure's blob storage as they use
//
// # One service a job
//
// A [Session] is the service of one execution of one job. It is served on the
// gateway of that job's machine and nowhere else, so that it need not be told who
// asks: run, job, branch and what it may do with caches are the session's, and
// nothing that a guest sends changes them. The token is a JWT because the packages
// read the run's and the job's id out of its scp claim; it is compared as a whole
// with the one that was handed out, and never parsed here. Addresses of blobs are
// signed (HMAC-SHA256 over path and query) with a key that the session made and
// that ends with it: no key is on the disk, and what one job was given is worth
// nothing to another.
//
// # On the disk
//
// A [Store] is a directory that several processes share:
//
//	REPOSITORY/            the first 32 hex digits of the SHA-256 of its lower-case name
//	  lock                 held (flock) while the index is read or changed
//	  index.json           every artifact and cache entry; replaced by rename
//	  blobs/DIGEST         contents, by SHA-256; one for equal ones
//	  uploads/ID/          blocks of an upload that is under way, then its blob
//
// A content is in blobs before the index names it, and the index has forgotten it
// before it goes. So a process may die at any moment: what it leaves is a blob that
// nobody names or an upload that nobody goes on with, and [Store.Sweep] removes
// both. Repositories share nothing, contents neither: whether somebody else has
// stored the same bytes cannot be told.
//
// # Artifacts
//
// They belong to a run, and every job of the run sees them once they are complete.
// A name is taken once in an attempt; to put another there, it has to be deleted
// first. A job that is executed again because its machine was lost begins without
// the artifacts of its first execution. A digest that the client sends must be
// that of the bytes that came.
//
// # Caches
//
// An entry belongs to a repository and a scope, which is the ref of the run that
// saved it. A run sees its own ref's, then those of a pull request's base branch,
// then those of the default branch; within each the key itself, then the newest
// that begins with it, then the restore keys in their order. Other branches'
// entries cannot be seen, so that a pull request cannot give anything to its base.
// An entry with the same key and version is never replaced. [Mode] is the
// workflow's cache-mode: it is enforced here, whatever the action makes of it.
//
// # Bounds
//
// All of [Limits]: a content's size, a job's artifacts, a repository's bytes (of
// artifacts: no more is taken, and from a fork's jobs no more than half; of caches:
// the least recently used go), what one job may have under way, and the room that
// must remain on the disk. Requests have bounded bodies, keys, names and numbers of
// blocks.
package results
